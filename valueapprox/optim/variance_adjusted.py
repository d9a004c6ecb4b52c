"""VarianceAdjusted: second moments that forget as the trace does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import (
    ALPHA,
    N_BOUNDED,
    OWN,
    SUM_OF_STEPS,
    StepSize,
    TraceOptimizer,
    register,
    share_of_newest,
)

EPSILON, CLIP = range(OWN, OWN + 2)


@kernel(inline=True)
def variance_adjusted(w, z, g, delta, decay, factor, moments, scalars, t, hyper):
    """v <- v + share (g^2 - v);  w <- w + alpha clip(delta) z / (sqrt(v) + epsilon)."""
    dtype = w.dtype.type
    one, epsilon = dtype(1), dtype(hyper[EPSILON])
    rest = dtype(share_of_newest(np.float64(decay), t))
    kept = one - rest
    bound = hyper[CLIP] if hyper[CLIP] > 0.0 else np.inf
    clipped = max(min(np.float64(delta), bound), -bound)
    scalars[N_BOUNDED] += 1.0 if clipped != delta else 0.0
    scalars[SUM_OF_STEPS] += hyper[ALPHA] * factor
    step = dtype(hyper[ALPHA] * factor * clipped)
    for p in range(w.size):
        moments[1, p] = kept * moments[1, p] + rest * g[p] * g[p]
        w[p] += step * z[p] / (np.sqrt(moments[1, p]) + epsilon)


@register("variance_adjusted")
@dataclass(frozen=True)
class VarianceAdjusted(TraceOptimizer):
    """The rule of Adaptive Q(lambda) (2026): second moments that forget as the trace does, and a clipped error.

    v <- v + (1 - k) / (1 - k^t) (g^2 - v), k = gamma lambda
    w <- w + alpha clip(delta, +-clip) z / (sqrt(v) + epsilon)

    The published v <- k v + (1 - k) g^2 begins at 0, and stays there for k = 1; this one is the same with its bias
    corrected, for k = 1 the mean. The clip makes values medians rather than means: of a reward of 50 with probability
    0.02, gamma = 0.9, true value 10, it learns 3.3. clip=None does not clip.
    """

    alpha: StepSize = 4.6e-4
    epsilon: float = 0.1
    clip: float | None = 1.0
    rule = variance_adjusted
    n_moments = 2
