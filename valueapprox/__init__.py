"""Value functions for reinforcement learning: a small network, its gradient written out by hand, learning online.

Importing this loads NumPy and the kernels' compiler, and neither Ray, TensorBoard nor Gymnasium.
"""

from valueapprox import gradient_flow, linear, losses, regularizers
from valueapprox.checkpoint import CheckpointError
from valueapprox.descent import risk, risk_gradient
from valueapprox.fitting import FitError, History, ReduceOnPlateau, fit
from valueapprox.network import Network
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
    RMSProp,
    StepDecay,
    VarianceAdjusted,
)
from valueapprox.predictions import Predictions
from valueapprox.value_function import DivergenceError, ValueFunction

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
    "RMSProp",
    "ReduceOnPlateau",
    "StepDecay",
    "ValueFunction",
    "VarianceAdjusted",
    "fit",
    "gradient_flow",
    "linear",
    "losses",
    "regularizers",
    "risk",
    "risk_gradient",
]

__version__ = "0.2.0"
