"""DecayedMax: every weight by the largest direction that it has seen lately."""

from __future__ import annotations

from dataclasses import dataclass

from valueapprox.compiling import kernel
from valueapprox.optim.base import OWN, Optimizer, StepSize, register

BETA, EPSILON = range(OWN, OWN + 2)


@kernel(inline=True)
def decayed_max(w, z, start, stop, g, alpha, moments, t, hyper):
    """v <- max(beta v, |u|);  w <- w + alpha u / (v + epsilon), u = g z."""
    dtype = w.dtype.type
    beta, epsilon = dtype(hyper[BETA]), dtype(hyper[EPSILON])
    step = dtype(alpha)
    for p in range(start, stop):
        u = g * z[p]
        moments[0, p] = max(beta * moments[0, p], abs(u))
        w[p] += step * u / (moments[0, p] + epsilon)


@register("decayed_max")
@dataclass(frozen=True)
class DecayedMax(Optimizer):
    """Every coordinate by its own decayed maximum; u = delta z.

    v <- max(beta v, |u|);  w <- w + alpha u / (v + epsilon)
    No coordinate changes by more than alpha. (The rule of the 2026 revision of stream-x.) Rare large errors count
    little, so that values are biased: of a reward of 50 with probability 0.02, gamma = 0.9, true value 10, it learns
    9.3.
    """

    alpha: StepSize = 1e-3
    beta: float = 0.999
    epsilon: float = 1e-8
    rule = decayed_max
    n_moments = 1
