"""RAdam: Adam that waits with dividing until it knows enough of the squares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import OWN, Optimizer, StepSize, register

BETA1, BETA2, EPSILON = range(OWN, OWN + 3)
ENOUGH = 5.0  # length of the mean of squares from which its variance is tractable


@kernel(inline=True)
def rectification(beta2, t):
    """sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho)); 0 while rho is at most 5.

    rho_inf = 2 / (1 - beta2) - 1;  rho = rho_inf - 2 t beta2^t / (1 - beta2^t).
    """
    longest = 2.0 / (1.0 - beta2) - 1.0
    power = beta2**t
    length = longest - 2.0 * t * power / (1.0 - power)
    if length <= ENOUGH:
        return 0.0
    return math.sqrt((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length))


@kernel(inline=True)
def radam(w, z, start, stop, g, alpha, moments, t, hyper):
    """As `adam`, times the rectification; without the division while that is 0; u = g z."""
    dtype = w.dtype.type
    beta1, beta2, epsilon = dtype(hyper[BETA1]), dtype(hyper[BETA2]), dtype(hyper[EPSILON])
    rest1, rest2 = dtype(1.0 - hyper[BETA1]), dtype(1.0 - hyper[BETA2])
    factor = rectification(hyper[BETA2], t)
    divide = factor > 0.0
    step = dtype(alpha * (factor if divide else 1.0) / (1.0 - hyper[BETA1] ** t))
    root = dtype(1.0 / math.sqrt(1.0 - hyper[BETA2] ** t))
    for p in range(start, stop):
        u = g * z[p]
        moments[0, p] = beta1 * moments[0, p] + rest1 * u
        moments[1, p] = beta2 * moments[1, p] + rest2 * u * u
        if divide:
            w[p] += step * moments[0, p] / (np.sqrt(moments[1, p]) * root + epsilon)
        else:
            w[p] += step * moments[0, p]


@register("radam")
@dataclass(frozen=True)
class RAdam(Optimizer):
    """Rectified Adam (Liu et al. 2020, arXiv 1908.03265, algorithm 2), with epsilon outside of the root.

    m, v and their corrections as in `Adam`; with rho the length of the mean of squares so far, and r its rectification:

    w <- w + alpha r m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) where rho > 5, otherwise
    w <- w + alpha m / (1 - beta1^t)
    """

    alpha: StepSize = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    rule = radam
    n_moments = 2
