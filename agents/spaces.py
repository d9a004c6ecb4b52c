"""From a Gymnasium observation to the network's input: a vector of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["Encoder", "UnsupportedSpaceError", "encoder"]


class UnsupportedSpaceError(TypeError):
    """A space that cannot be used as it is."""


class Encoder:
    """Turns an observation of a space into a state vector s (d,).

    Attributes
    ----------
    size : int
        d.
    """

    def __init__(self, size: int, encode: Callable[[Any], np.ndarray]) -> None:
        self.size = size
        self._encode = encode

    def __call__(self, observation: Any) -> np.ndarray:
        """The state vector (d,) of an observation."""
        return self._encode(observation)


def encoder(space: gym.Space[Any], flatten: bool = False) -> Encoder:
    """The encoder of an observation space: a Box is read row by row, a Discrete becomes one-hot.

    With `flatten`, every other space that Gymnasium can flatten (Dict, Tuple, MultiDiscrete, ...) is flattened by it.

    Raises
    ------
    UnsupportedSpaceError
        For any other space.
    """
    if isinstance(space, spaces.Box):
        size = int(np.prod(space.shape))
        return Encoder(size, lambda observation: np.asarray(observation).reshape(size))
    if isinstance(space, spaces.Discrete):
        identity = np.eye(int(space.n), dtype=np.float32)
        return Encoder(int(space.n), lambda observation: identity[_state_number(observation, space)])
    flattenable = space.is_np_flattenable
    if flatten and flattenable:
        return Encoder(int(spaces.flatdim(space)), lambda observation: np.asarray(spaces.flatten(space, observation)))
    help_ = "; pass flatten (--flatten) to turn it into one vector" if flattenable and not flatten else ""
    raise UnsupportedSpaceError(f"the observation space is {space}; Box or Discrete is wanted{help_}")


def _state_number(observation: Any, space: spaces.Discrete) -> int:
    number = int(observation) - int(space.start)
    if not 0 <= number < space.n:
        raise ValueError(f"the observation is {observation}, which is not in {space}")
    return number
