"""Intentional: the change of the output is chosen, and the step solved for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.optim.base import (
    ALPHA,
    FIRST_OWN,
    N_BOUNDED,
    OWN,
    SECOND_OWN,
    SUM_OF_STEPS,
    THIRD_OWN,
    StepSize,
    TraceOptimizer,
    register,
    share_of_newest,
)

BETA2, EPSILON, CLIP, CLIP_DECAY, RMS, NORMALISE = range(OWN, OWN + 6)
GRADIENT_SIZE, SQUARED_ERROR, ERROR_SIZE = FIRST_OWN, SECOND_OWN, THIRD_OWN


@kernel(inline=True)
def intentional(w, z, g, delta, decay, factor, moments, scalars, t, hyper):
    """w <- w + a error D z. D z is kept in g, so that roots and quotients are found once."""
    dtype = w.dtype.type
    one, epsilon = dtype(1), dtype(hyper[EPSILON])
    rms = hyper[RMS] != 0.0
    beta2, rest2 = dtype(hyper[BETA2]), dtype(1.0 - hyper[BETA2])
    correction = dtype(1.0 / (1.0 - hyper[BETA2] ** t)) if rms else one
    size, trace_size = dtype(0), dtype(0)
    for p in range(w.size):
        scale = one
        if rms:
            moments[1, p] = beta2 * moments[1, p] + rest2 * g[p] * g[p]
            scale = one / (np.sqrt(moments[1, p] * correction) + epsilon)
        size += g[p] * g[p] * scale
        scaled = scale * z[p]
        trace_size += scaled * z[p]
        g[p] = scaled
    share = share_of_newest(np.float64(decay), t)
    scalars[GRADIENT_SIZE] += share * (np.float64(size) - scalars[GRADIENT_SIZE])
    step = hyper[ALPHA] * factor / max(math.sqrt(scalars[GRADIENT_SIZE] * np.float64(trace_size)), 1e-8)
    error = np.float64(delta)
    b = hyper[CLIP_DECAY]
    scalars[SQUARED_ERROR] = b * scalars[SQUARED_ERROR] + (1.0 - b) * error * error
    if hyper[CLIP] > 0.0:
        cap = hyper[CLIP] * math.sqrt(scalars[SQUARED_ERROR] / (1.0 - b**t))
        scalars[N_BOUNDED] += 1.0 if abs(error) > cap else 0.0
        error = max(min(error, cap), -cap)
    if hyper[NORMALISE] != 0.0:
        scalars[ERROR_SIZE] = b * scalars[ERROR_SIZE] + (1.0 - b) * abs(error)
        error /= max(scalars[ERROR_SIZE] / (1.0 - b**t), 1e-12)
    scalars[SUM_OF_STEPS] += step
    along = dtype(step * error)
    for p in range(w.size):
        w[p] += along * g[p]


@register("intentional")
@dataclass(frozen=True)
class Intentional(TraceOptimizer):
    """Chooses the change of the output, alpha delta, and solves for the step (Intentional updates, 2026).

    nu <- beta2 nu + (1 - beta2) g^2;  D = 1 / (sqrt(nu / (1 - beta2^t)) + epsilon), or 1 with rms=False
    S <- S + (1 - k) / (1 - k^t) (sum g^2 D - S), k = gamma lambda;  a = alpha / sqrt(S sum z^2 D)
    w <- w + a delta D z;  with normalise=True, for actors, delta is divided by its running mean size first.

    S is the mean of sum g^2 D that forgets by k; for k = 1 the factor is 1 / t. Needs the gradient g beside the trace
    z. Without rms and trace it is normalised LMS for a linear v.

    clip, which is off unless given, clips |delta| at clip sqrt(c / (1 - b^t)) with c <- b c + (1 - b) delta^2,
    b = clip_decay and c_0 = 1.

    The values that it learns are means, which those of the published epsilon = 1e-8 and clip = 20 are not where errors
    are skewed. With rewards of 1 / p with probability p and gamma = 0.9 the true value is 10. At p = 0.005 the values
    of a network are 6 % too small with that epsilon, by which the weights that hardly matter take the largest part in a
    step; at p = 0.001 the clip binds. For actors the published alpha is 0.05.
    """

    alpha: StepSize = 0.5
    beta2: float = 0.999
    epsilon: float = 0.1
    clip: float | None = None
    clip_decay: float = 0.9998
    rms: bool = True
    normalise: bool = False
    rule = intentional
    n_moments = 2
    first_scalars = (0.0, 1.0, 0.0)
