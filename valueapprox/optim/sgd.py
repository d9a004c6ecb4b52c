"""SGD: the textbook's step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel, template
from valueapprox.nn.backprop import BIAS, LAYERS, ONE, SIZES, ZERO, D, X, first_unit
from valueapprox.optim.base import (
    ALPHA,
    CLIP_LAYER_NORM,
    CLIP_NORM,
    Optimizer,
    accumulate_then_step,
    count_update,
    register,
    unit_divisor,
)


@kernel(inline=True)
def sgd(w, z, start, stop, g, alpha, moments, t, hyper):
    """w <- w + alpha g z."""
    step = w.dtype.type(alpha) * g
    for p in range(start, stop):
        w[p] += step * z[p]


@kernel(inline=True)
def fused(w, z, scale, decay, spec, scratch, count, hyper):
    """`accumulate` and SGD's step in one pass over memory: z <- decay z + x^T d;  w <- w + alpha scale z."""
    x, d = scratch[X], scratch[D]
    factor = count_update(count, hyper)
    o, a = ZERO, first_unit(spec, 0)
    for layer in range(spec[LAYERS]):
        n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        b = first_unit(spec, layer + 1)
        step = w.dtype.type(hyper[ALPHA + layer] * factor) * scale
        if m == ONE:
            d_b = d[b]
            for i in range(n):
                z_new = decay * z[o + i] + x[a + i] * d_b
                z[o + i] = z_new
                w[o + i] += step * z_new
            o += n
        else:
            for i in range(n):
                x_i = x[a + i]
                for j in range(m):
                    z_new = decay * z[o + j] + x_i * d[b + j]
                    z[o + j] = z_new
                    w[o + j] += step * z_new
                o += m
        if spec[BIAS]:
            for j in range(m):
                z_new = decay * z[o + j] + d[b + j]
                z[o + j] = z_new
                w[o + j] += step * z_new
            o += m
        a = b


@template(inline=True)
def accumulate_and_sgd(w, z, delta, decay, spec, scratch, moments, scalars, count, hyper):
    """In one pass where nothing is clipped."""
    if hyper[CLIP_NORM] == 0.0 and hyper[CLIP_LAYER_NORM] == 0.0:
        fused(w, z, delta, decay, spec, scratch, count, hyper)
    else:
        accumulate_then_step(w, z, delta, decay, spec, scratch, moments, scalars, count, hyper)


@register("sgd")
@dataclass(frozen=True)
class SGD(Optimizer):
    """w <- w + alpha u. With u = delta z the textbook TD update."""

    rule = sgd
    accumulate_kind = accumulate_and_sgd
    divisor = unit_divisor
