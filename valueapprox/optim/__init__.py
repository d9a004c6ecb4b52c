"""Optimizers: how an update direction becomes a change of the weights. A new one is a file and a line here."""

from valueapprox.optim.base import OPTIMIZERS, Optimizer, OptimizerState, register
from valueapprox.optim.schedules import (
    SCHEDULES,
    Constant,
    CosineDecay,
    ExponentialDecay,
    InverseTime,
    LinearDecay,
    Schedule,
    StepDecay,
)
from valueapprox.optim.sgd import SGD  # isort: split

from valueapprox.optim.adam import STREAM_ADAM, Adam
from valueapprox.optim.adaptive_obgd import AdaptiveObGD
from valueapprox.optim.decayed_max import DecayedMax
from valueapprox.optim.intentional import Intentional
from valueapprox.optim.momentum import Momentum
from valueapprox.optim.obgd import ObGD
from valueapprox.optim.radam import RAdam
from valueapprox.optim.rmsprop import RMSProp
from valueapprox.optim.variance_adjusted import VarianceAdjusted

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "STREAM_ADAM",
    "Adam",
    "AdaptiveObGD",
    "Constant",
    "CosineDecay",
    "DecayedMax",
    "ExponentialDecay",
    "Intentional",
    "InverseTime",
    "LinearDecay",
    "Momentum",
    "ObGD",
    "Optimizer",
    "OptimizerState",
    "RAdam",
    "RMSProp",
    "Schedule",
    "StepDecay",
    "VarianceAdjusted",
    "register",
]
