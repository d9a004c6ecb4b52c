"""ObGD: steps that cannot overshoot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import ALPHA, N_BOUNDED, OWN, SUM_OF_STEPS, GlobalOptimizer, StepSize, register

KAPPA = OWN


@kernel(inline=True)
def bounded_step_size(size, delta, factor, kappa, scalars, hyper):
    """alpha / max(1, M), M = alpha kappa max(|delta|, 1) size; what it was bounded by goes into the scalars."""
    alpha = hyper[ALPHA] * factor
    bound = alpha * kappa * max(abs(np.float64(delta)), 1.0) * np.float64(size)
    step = alpha / max(1.0, bound)
    scalars[SUM_OF_STEPS] += step
    scalars[N_BOUNDED] += 1.0 if bound > 1.0 else 0.0
    return step


@kernel(inline=True)
def obgd(w, z, delta, factor, moments, scalars, t, hyper):
    """w <- w + alpha / max(1, alpha kappa max(|delta|, 1) ||z||_1) delta z."""
    dtype = w.dtype.type
    size = dtype(0)
    for p in range(z.size):
        size += abs(z[p])
    scale = dtype(bounded_step_size(size, delta, factor, hyper[KAPPA], scalars, hyper)) * delta
    for p in range(z.size):
        w[p] += scale * z[p]


@register("obgd")
@dataclass(frozen=True)
class ObGD(GlobalOptimizer):
    """Overshooting-bounded gradient descent (Elsayed, Vasan & Mahmood 2024, algorithm 3).

    M = alpha kappa max(|delta|, 1) ||z||_1;  w <- w + alpha / max(1, M) delta z
    With alpha = 1, ||w_new - w||_1 <= 1 / kappa. The norm is over the whole network, and so is the step size.

    An error beyond 1 counts by its sign alone, so that values are biased where errors are skewed: of a reward of 50
    with probability 0.02, gamma = 0.9, true value 10, it learns 3.3. For means take `Intentional`.
    """

    alpha: StepSize = 1.0
    kappa: float = 2.0
    rule = obgd
