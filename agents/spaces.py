"""Between Gymnasium's spaces and the networks: observations become vectors of numbers, choices become actions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox.agents import layout
from valueapprox.agents.choosing import to_space

__all__ = ["Decoder", "Encoder", "UnsupportedSpaceError", "by_factor", "by_index", "continuous", "encoder", "factors"]

MOST_INDEXED = 1024  # actions of a space of several numbers of which a value is learned for each
NARROWEST = 0.25  # spread among integers: in the middle of one, 95 % of the samples are rounded to it
NO_BOUND = 1e12  # a bound beyond this is none: float32 has 3.4e38


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
    raise UnsupportedSpaceError(f"the observation space is {space}; expected Box or Discrete{help_}")


def _state_number(observation: Any, space: spaces.Discrete) -> int:
    number = int(observation) - int(space.start)
    if not 0 <= number < space.n:
        raise ValueError(f"the observation is {observation}, which is not in {space}")
    return number


# --- actions --------------------------------------------------------------------------------------------------------


class Decoder(NamedTuple):
    """How an agent's choice becomes an action of its environment's space."""

    n_outputs: int  # of the network that acts
    n_values: int  # numbers that the kernels write for one action; 0 where it is an index
    layout: np.ndarray  # what the kernels know of the space
    decode: Callable[[int, np.ndarray], Any]  # (index, values) -> action


def factors(space: spaces.MultiDiscrete | spaces.MultiBinary) -> tuple[np.ndarray, np.ndarray]:
    """How many values each entry of an action can have, and the smallest."""
    if isinstance(space, spaces.MultiBinary):
        return np.full(space.shape, 2, np.int64), np.zeros(space.shape, np.int64)
    return space.nvec.astype(np.int64), np.asarray(space.start, np.int64)


def by_index(space: gym.Space[Any]) -> Decoder | None:
    """One output for each action, of a Discrete space, or of another one with few actions; None for any other."""
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return Decoder(int(space.n), 0, np.zeros(0), lambda index, values: index + first)
    if not isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return None
    counts, start = factors(space)
    n = math.prod(counts.ravel().tolist())
    if n > MOST_INDEXED:
        return None
    indices = np.stack(np.unravel_index(np.arange(n), counts.ravel().tolist()), axis=1)  # (n, entries)
    actions = (start + indices.reshape(n, *counts.shape)).astype(space.dtype)
    return Decoder(n, 0, np.zeros(0), lambda index, values: actions[index].copy())


def by_factor(space: spaces.MultiDiscrete | spaces.MultiBinary) -> Decoder:
    """One output for each value of each entry: a choice is made of each entry by itself."""
    counts, start = factors(space)

    def decode(index: int, values: np.ndarray) -> np.ndarray:
        return (start + values.reshape(start.shape).astype(np.int64)).astype(space.dtype)

    return Decoder(int(counts.sum()), counts.size, counts.ravel().astype(np.float64), decode)


def continuous(space: spaces.Box) -> Decoder:
    """Two outputs for each entry, of a Gaussian in the policy's own unit.

    Between two bounds that unit is half their distance, and its 0 lies in the middle. Otherwise it is the
    environment's, and 0 is 0, or lies one unit inside of the single bound where 0 is outside. Actions are cut off at
    the bounds, and rounded to the nearest integer in a space of integers.
    """
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    whole = space.dtype.kind != "f"
    if whole:  # the largest integers are not numbers of float64, and would be rounded to beyond the type's range
        beyond = [int(number) > int(bound) for number, bound in zip(high, space.high.ravel(), strict=True)]
        high = np.where(beyond, np.nextafter(high, 0.0), high)
    # Infinite bounds of integers are stored as the largest of the type.
    below = space.bounded_below.ravel() & (low > -NO_BOUND)
    above = space.bounded_above.ravel() & (high < NO_BOUND)
    entries = np.zeros((low.size, layout.N_OF_ENTRY))
    numbers = entries.ravel()
    for entry, a, b, bounded_below, bounded_above in zip(entries, low, high, below, above, strict=True):
        origin, unit = 0.0, 1.0
        if bounded_below and bounded_above:
            origin, unit = (a + b) / 2.0, (b - a) / 2.0
        elif bounded_below:
            origin = a + 1.0 if a > 0.0 else 0.0
        elif bounded_above:
            origin = b - 1.0 if b < 0.0 else 0.0
        entry[layout.ORIGIN], entry[layout.UNIT], entry[layout.WHOLE] = origin, unit, whole
        entry[layout.LOW], entry[layout.HIGH] = a, b
        entry[layout.NARROWEST] = NARROWEST / unit if whole and unit > 0.0 else 0.0
        both = bounded_below and bounded_above
        entry[layout.LEAST] = -1.0 if both else (a - origin if bounded_below else -np.inf)
        entry[layout.MOST] = 1.0 if both else (b - origin if bounded_above else np.inf)

    def decode(index: int, values: np.ndarray) -> np.ndarray:
        action = np.empty(values.size)
        to_space(numbers, values, action)
        return action.reshape(space.shape).astype(space.dtype)

    return Decoder(2 * low.size, low.size, numbers, decode)
