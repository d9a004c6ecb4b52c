"""Adam: running means of the direction and of its square."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import OWN, Optimizer, StepSize, register

BETA1, BETA2, EPSILON = range(OWN, OWN + 3)


@kernel(inline=True)
def adam(w, z, start, stop, g, alpha, moments, t, hyper):
    """The corrections 1 - beta^t, taken out of the loop: alpha / c1 * m / (sqrt(v) / sqrt(c2) + epsilon), u = g z."""
    dtype = w.dtype.type
    beta1, beta2, epsilon = dtype(hyper[BETA1]), dtype(hyper[BETA2]), dtype(hyper[EPSILON])
    rest1, rest2 = dtype(1.0 - hyper[BETA1]), dtype(1.0 - hyper[BETA2])
    step = dtype(alpha / (1.0 - hyper[BETA1] ** t))
    root = dtype(1.0 / math.sqrt(1.0 - hyper[BETA2] ** t))
    for p in range(start, stop):
        u = g * z[p]
        moments[0, p] = beta1 * moments[0, p] + rest1 * u
        moments[1, p] = beta2 * moments[1, p] + rest2 * u * u
        w[p] += step * moments[0, p] / (np.sqrt(moments[1, p]) * root + epsilon)


@kernel(inline=True)
def divisor(moments, p, t, hyper):
    """sqrt(v / (1 - beta2^t)) + epsilon."""
    dtype = moments.dtype.type
    return np.sqrt(moments[1, p] * dtype(1.0 / (1.0 - hyper[BETA2] ** t))) + dtype(hyper[EPSILON])


@register("adam")
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam with bias correction and epsilon outside the root (Kingma & Ba 2015, algorithm 1).

    m <- beta1 m + (1 - beta1) u;  v <- beta2 v + (1 - beta2) u^2
    w <- w + alpha (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    v grows with the very error that it divides, so that values of rare large rewards come out too small when v
    remembers few of them: rewards of 1 / p with probability p = 0.005, gamma = 0.9, true value 10, are learned as 9.2,
    with beta2 = 0.9999, the default for streams, as 9.8.
    """

    alpha: StepSize = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    rule = adam
    divisor = divisor
    n_moments = 2


#: The default where values are learned from a stream: v then remembers enough of the rare large errors.
STREAM_ADAM = Adam(beta2=0.9999)
