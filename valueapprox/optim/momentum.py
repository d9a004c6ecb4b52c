"""Momentum: steps that remember their direction."""

from __future__ import annotations

from dataclasses import dataclass

from valueapprox.compiling import kernel
from valueapprox.optim.base import OWN, Optimizer, register

BETA = OWN


@kernel(inline=True)
def momentum(w, z, start, stop, g, alpha, moments, t, hyper):
    """v <- beta v + g z;  w <- w + alpha v."""
    beta = w.dtype.type(hyper[BETA])
    step = w.dtype.type(alpha)
    for p in range(start, stop):
        moments[0, p] = beta * moments[0, p] + g * z[p]
        w[p] += step * moments[0, p]


@kernel(inline=True)
def divisor(moments, p, t, hyper):
    """1 - beta: a steady gradient is summed 1 / (1 - beta) times."""
    return 1.0 - hyper[BETA]


@register("momentum")
@dataclass(frozen=True)
class Momentum(Optimizer):
    """v <- beta v + u;  w <- w + alpha v. Heavy ball (Polyak 1964)."""

    beta: float = 0.9
    rule = momentum
    divisor = divisor
    n_moments = 1
