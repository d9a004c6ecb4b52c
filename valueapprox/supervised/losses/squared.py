"""Squared errors: summed, halved, or averaged over the outputs too."""

from __future__ import annotations

from dataclasses import dataclass

from valueapprox.compiling import kernel
from valueapprox.supervised.losses.base import Loss, register


@kernel(inline=True, exact=True)
def squared(yhat, y, d, a, b, k, loss):
    """sum_k (yhat_k - y_k)^2, derivative 2 (yhat - y)."""
    two = yhat.dtype.type(2)
    total = yhat.dtype.type(0)
    for j in range(k):
        error = yhat[a + j] - y[b + j]
        total += error * error
        d[a + j] = two * error
    return total


@kernel(inline=True, exact=True)
def half_squared(yhat, y, d, a, b, k, loss):
    """sum_k 1/2 (yhat_k - y_k)^2, derivative yhat - y."""
    half = yhat.dtype.type(0.5)
    total = yhat.dtype.type(0)
    for j in range(k):
        error = yhat[a + j] - y[b + j]
        total += half * error * error
        d[a + j] = error
    return total


@register("half_squared")
@dataclass(frozen=True)
class HalfSquared(Loss):
    """sum_k 1/2 (yhat_k - y_k)^2, derivative yhat - y."""

    rule = half_squared


@register("squared")
@dataclass(frozen=True)
class Squared(Loss):
    """sum_k (yhat_k - y_k)^2, derivative 2 (yhat - y)."""

    rule = squared


@register("mse")
@dataclass(frozen=True)
class MSE(Loss):
    """sum_k (yhat_k - y_k)^2, whose risk is a mean over the outputs too."""

    rule = squared
    over_outputs = True
