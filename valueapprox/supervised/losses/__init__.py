"""Losses l(yhat, y): how wrong an output is, and the derivative that backpropagation starts from.

A new one is a file and a line here; see `valueapprox.supervised.losses.base`.
"""

from valueapprox.supervised.losses.base import LOSSES, Custom, Function, Loss, get, register, stored
from valueapprox.supervised.losses.squared import MSE, HalfSquared, Squared  # isort: split

from valueapprox.supervised.losses.huber import Huber
from valueapprox.supervised.losses.log_loss import LogLoss, LogLossFromLogits
from valueapprox.supervised.losses.nll import NLL, NLLFromLogits

__all__ = [
    "LOSSES", "MSE", "NLL", "Custom", "Function", "HalfSquared", "Huber", "LogLoss", "LogLossFromLogits", "Loss",
    "NLLFromLogits", "Squared", "get", "register", "stored",
]  # fmt: skip
