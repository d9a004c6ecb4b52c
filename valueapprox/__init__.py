"""Value functions for reinforcement learning: a small network, its gradient written out by hand, learning online.

Importing this loads NumPy and the kernels' compiler, and neither Ray, TensorBoard nor Gymnasium.
"""

import importlib
from typing import Any

from valueapprox.checkpoint import CheckpointError
from valueapprox.nn import twolayer
from valueapprox.nn.network import Network
from valueapprox.optim import (
    SGD,
    Adam,
    AdaptiveObGD,
    Constant,
    CosineDecay,
    DecayedMax,
    ExponentialDecay,
    Intentional,
    InverseTime,
    LinearDecay,
    Momentum,
    ObGD,
    Optimizer,
    RAdam,
    RMSProp,
    StepDecay,
    VarianceAdjusted,
)
from valueapprox.supervised import gradient_flow, linear, losses, regularizers
from valueapprox.supervised.fitting import FitError, History, ReduceOnPlateau, fit
from valueapprox.supervised.objective import risk, risk_gradient
from valueapprox.td.predictions import Predictions
from valueapprox.td.value_function import DivergenceError, ValueFunction

__all__ = [
    "SGD",
    "Adam",
    "AdaptiveObGD",
    "CheckpointError",
    "Constant",
    "CosineDecay",
    "DecayedMax",
    "DivergenceError",
    "ExponentialDecay",
    "FitError",
    "History",
    "Intentional",
    "InverseTime",
    "LinearDecay",
    "Momentum",
    "Network",
    "ObGD",
    "Optimizer",
    "Predictions",
    "RAdam",
    "RMSProp",
    "ReduceOnPlateau",
    "StepDecay",
    "ValueFunction",
    "VarianceAdjusted",
    "fit",
    "gradient_flow",
    "linear",
    "load",
    "losses",
    "regularizers",
    "risk",
    "risk_gradient",
    "train",
    "twolayer",
]

__version__ = "0.2.0"

#: What needs Gymnasium is imported once it is asked for.
_LATER = {"load": "valueapprox.agents.trained", "train": "valueapprox.agents.training"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'valueapprox' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
