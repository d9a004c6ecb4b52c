"""Log loss: the negative log-likelihood of labels 0 and 1, each output on its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from valueapprox.compiling import kernel
from valueapprox.supervised.losses.base import Loss, register


@kernel(inline=True, exact=True)
def smallest_step(yhat):
    """The smallest number that changes 1: probabilities are kept from 0 and 1 by it, so that a loss is finite."""
    return yhat.dtype.type(1.1920929e-07) if yhat.itemsize == 4 else yhat.dtype.type(2.220446049250313e-16)


@kernel(inline=True, exact=True)
def log_loss(yhat, y, d, a, b, k, loss):
    """sum_k -y log yhat - (1 - y) log(1 - yhat), derivative (yhat - y) / (yhat (1 - yhat))."""
    dtype = yhat.dtype.type
    one, tiny = dtype(1), smallest_step(yhat)
    total = dtype(0)
    for j in range(k):
        p = min(max(yhat[a + j], tiny), one - tiny)
        t = y[b + j]
        total -= t * dtype(math.log(p)) + (one - t) * dtype(math.log1p(-p))
        d[a + j] = (p - t) / (p * (one - p))
    return total


@kernel(inline=True, exact=True)
def log_loss_from_logits(yhat, y, d, a, b, k, loss):
    """sum_k log(1 + e^theta) - y theta, derivative sigmoid(theta) - y; the argument of exp is never positive."""
    dtype = yhat.dtype.type
    zero, one = dtype(0), dtype(1)
    total = zero
    for j in range(k):
        theta, t = yhat[a + j], y[b + j]
        e = dtype(math.exp(-abs(theta)))
        total += max(theta, zero) - theta * t + dtype(math.log1p(e))
        d[a + j] = (one / (one + e) if theta >= zero else e / (one + e)) - t
    return total


@register("log_loss_from_logits")
@dataclass(frozen=True)
class LogLossFromLogits(Loss):
    """`LogLoss` of sigmoid(yhat), derivative sigmoid(yhat) - y."""

    rule = log_loss_from_logits
    targets_are = "labels"
    output = "linear"
    applies = "sigmoid"


@register("log_loss")
@dataclass(frozen=True)
class LogLoss(Loss):
    """sum_k -y log yhat - (1 - y) log(1 - yhat), derivative (yhat - y) / (yhat (1 - yhat)), yhat probabilities."""

    rule = log_loss
    targets_are = "labels"
    output = "sigmoid"
    from_theta = LogLossFromLogits
