"""RMSProp: every weight by the root of its own mean square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import OWN, Optimizer, StepSize, register

BETA, EPSILON = range(OWN, OWN + 2)


@kernel(inline=True)
def rmsprop(w, z, start, stop, g, alpha, moments, t, hyper):
    """v <- beta v + (1 - beta) u^2;  w <- w + alpha u / (sqrt(v) + epsilon), u = g z."""
    dtype = w.dtype.type
    beta, rest, epsilon = dtype(hyper[BETA]), dtype(1.0 - hyper[BETA]), dtype(hyper[EPSILON])
    step = dtype(alpha)
    for p in range(start, stop):
        u = g * z[p]
        moments[0, p] = beta * moments[0, p] + rest * u * u
        w[p] += step * u / (np.sqrt(moments[0, p]) + epsilon)


@kernel(inline=True)
def divisor(moments, p, t, hyper):
    """sqrt(v) + epsilon."""
    return np.sqrt(moments[0, p]) + moments.dtype.type(hyper[EPSILON])


@register("rmsprop")
@dataclass(frozen=True)
class RMSProp(Optimizer):
    """v <- beta v + (1 - beta) u^2;  w <- w + alpha u / (sqrt(v) + epsilon). (Tieleman & Hinton 2012.)"""

    alpha: StepSize = 1e-3
    beta: float = 0.99
    epsilon: float = 1e-8
    rule = rmsprop
    divisor = divisor
    n_moments = 1
