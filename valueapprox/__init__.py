"""Value functions for reinforcement learning: a small network, its gradient written out by hand, learning online.

Importing this loads NumPy and the kernels' compiler, and neither Ray, TensorBoard nor Gymnasium.
"""

from valueapprox.checkpoint import CheckpointError
from valueapprox.network import Network
from valueapprox.optimizers import (
    SGD,
    Adam,
    Constant,
    CosineDecay,
    InverseTime,
    LinearDecay,
    Momentum,
    Optimizer,
    RMSProp,
)
from valueapprox.value_function import DivergenceError, ValueFunction

__all__ = [
    "SGD",
    "Adam",
    "CheckpointError",
    "Constant",
    "CosineDecay",
    "DivergenceError",
    "InverseTime",
    "LinearDecay",
    "Momentum",
    "Network",
    "Optimizer",
    "RMSProp",
    "ValueFunction",
]

__version__ = "0.1.0"
