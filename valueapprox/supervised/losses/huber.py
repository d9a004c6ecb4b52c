"""Huber's loss: squared near 0, absolute beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from valueapprox.compiling import kernel
from valueapprox.supervised.losses.base import OWN, Loss, register

DELTA = OWN


@kernel(inline=True, exact=True)
def huber(yhat, y, d, a, b, k, loss):
    """1/2 e^2 for |e| <= delta, else delta (|e| - delta / 2), with e = yhat - y, summed over the outputs."""
    dtype = yhat.dtype.type
    zero, half, delta = dtype(0), dtype(0.5), dtype(loss[DELTA])
    total = zero
    for j in range(k):
        error = yhat[a + j] - y[b + j]
        if abs(error) > delta:
            total += delta * (abs(error) - half * delta)
            d[a + j] = delta if error > zero else -delta
        else:
            total += half * error * error
            d[a + j] = error
    return total


@register("huber")
@dataclass(frozen=True)
class Huber(Loss):
    """1/2 e^2 for |e| <= delta, else delta (|e| - delta / 2), with e = yhat - y (Huber 1964)."""

    delta: float = 1.0
    rule = huber

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.delta, Real) and math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is {self.delta!r}; expected a positive number, where Huber's loss turns linear")
