"""Negative log-likelihood of one class of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from valueapprox.compiling import kernel
from valueapprox.supervised.losses.base import Loss, register
from valueapprox.supervised.losses.log_loss import smallest_step


@kernel(inline=True, exact=True)
def nll(yhat, y, d, a, b, k, loss):
    """-sum_k y_k log yhat_k, derivative -y / yhat."""
    dtype = yhat.dtype.type
    tiny = smallest_step(yhat)
    total = dtype(0)
    for j in range(k):
        p, t = max(yhat[a + j], tiny), y[b + j]
        total -= t * dtype(math.log(p))
        d[a + j] = -t / p
    return total


@kernel(inline=True, exact=True)
def nll_from_logits(yhat, y, d, a, b, k, loss):
    """-sum_k y_k log softmax(yhat)_k, derivative softmax(yhat) - y."""
    dtype = yhat.dtype.type
    top = yhat[a]
    for j in range(k):
        top = max(top, yhat[a + j])
    exponentials = weight = dtype(0)
    for j in range(k):
        d[a + j] = dtype(math.exp(yhat[a + j] - top))
        exponentials += d[a + j]
        weight += y[b + j]  # 1, or nearly
    log_sum = dtype(math.log(exponentials))
    total = dtype(0)
    for j in range(k):
        t = y[b + j]
        total += t * (log_sum - (yhat[a + j] - top))
        d[a + j] = weight * d[a + j] / exponentials - t
    return total


@register("nll_from_logits")
@dataclass(frozen=True)
class NLLFromLogits(Loss):
    """`NLL` of softmax(yhat), derivative softmax(yhat) - y."""

    rule = nll_from_logits
    targets_are = "classes"
    output = "linear"
    applies = "softmax"


@register("nll")
@dataclass(frozen=True)
class NLL(Loss):
    """-sum_k y_k log yhat_k = -log yhat_class, derivative -y / yhat, yhat the probabilities of classes."""

    rule = nll
    targets_are = "classes"
    output = "softmax"
    from_theta = NLLFromLogits
