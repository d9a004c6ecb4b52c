"""AdaptiveObGD: ObGD along a direction that is scaled weight by weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import OWN, GlobalOptimizer, StepSize, register
from valueapprox.optim.obgd import bounded_step_size

KAPPA, BETA2, EPSILON = range(OWN, OWN + 3)


@kernel(inline=True)
def adaptive_obgd(w, z, delta, factor, moments, scalars, t, hyper):
    """v <- beta2 v + (1 - beta2) u^2, and ObGD's step along u / sqrt(v / (1 - beta2^t) + epsilon), u = delta z."""
    dtype = w.dtype.type
    size = dtype(0)
    beta2, rest2, epsilon = dtype(hyper[BETA2]), dtype(1.0 - hyper[BETA2]), dtype(hyper[EPSILON])
    correction = dtype(1.0 / (1.0 - hyper[BETA2] ** t))
    for p in range(z.size):
        u = delta * z[p]
        moments[0, p] = beta2 * moments[0, p] + rest2 * u * u
        size += abs(z[p]) / np.sqrt(moments[0, p] * correction + epsilon)
    scale = dtype(bounded_step_size(size, delta, factor, hyper[KAPPA], scalars, hyper)) * delta
    for p in range(z.size):
        w[p] += scale * z[p] / np.sqrt(moments[0, p] * correction + epsilon)


@register("adaptive_obgd")
@dataclass(frozen=True)
class AdaptiveObGD(GlobalOptimizer):
    """ObGD with a second moment (the same paper's code).

    v <- beta2 v + (1 - beta2) (delta z)^2;  u = delta z / sqrt(v / (1 - beta2^t) + epsilon)
    M = alpha kappa max(|delta|, 1) ||u / delta||_1;  w <- w + alpha / max(1, M) u. Biased as `ObGD` is: 3.3 for
    the true 10.
    """

    alpha: StepSize = 1.0
    kappa: float = 2.0
    beta2: float = 0.999
    epsilon: float = 1e-8
    rule = adaptive_obgd
    n_moments = 1
