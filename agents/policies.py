"""Policies to evaluate: uniform random, a heuristic for each classic task, or any Python function.

A policy is a function of one observation and a generator, ``policy(observation, rng) -> action``. All randomness comes
from that generator, so each environment's actions are a stream of their own whatever worker it runs on.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox.agents.spaces import factors
from valueapprox.checks import one_of, unit_interval
from valueapprox.compiling import interpreted
from valueapprox.envs import WORLDS, Acrobot, CartPole, MountainCar, Pendulum, World, find_world

__all__ = ["Policy", "heuristics", "make_policy", "resolve"]

Policy = Callable[[Any, np.random.Generator], Any]

HEURISTIC_NOISE = 0.1  # enough random actions that the policy sees more than one path


def follow(world: type[World]) -> Policy:
    """A world's heuristic as a policy in any environment of its task."""
    plain = interpreted(world.heuristic)  # to call it compiled would take longer
    if world.n_actions:
        return lambda observation, rng: int(plain(observation))
    return lambda observation, rng: np.array([plain(observation)], np.float32)


lean, pump, swing, upright = map(follow, (CartPole, MountainCar, Acrobot, Pendulum))  # found by name since version 0.1


def pump_continuous(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """MountainCarContinuous: `pump` with full force."""
    return np.array([pump(observation, rng) - 1.0], dtype=np.float32)


def heuristics() -> dict[str, Policy]:
    """Heuristic of a task, by the name of its environment without namespace and version."""
    ours = {task_name(env_id): follow(world) for env_id, world in WORLDS.items() if world.heuristic is not None}
    return {**ours, "MountainCarContinuous": pump_continuous}


def task_name(env_id: str) -> str:
    """``valueapprox/CartPole-v1`` -> ``CartPole``."""
    return re.sub(r"-v\d+$", "", env_id.rpartition(":")[2].rpartition("/")[2])


def uniform(space: gym.Space[Any]) -> Policy:
    """Random actions, distributed as the space's own `sample` is: uniform wherever the space is bounded.

    Along an unbounded direction of a Box that is a standard normal number, and beyond a single bound an exponential
    one. The usual spaces are drawn here; for any other a copy of the space is seeded for each action, which takes some
    20 us.
    """
    if type(space) is spaces.Discrete:
        n, first = int(space.n), int(space.start)
        return lambda observation, rng: first + int(rng.random() * n)
    if type(space) is spaces.MultiDiscrete or type(space) is spaces.MultiBinary:
        counts, start = factors(space)
        dtype = space.dtype
        return lambda observation, rng: (start + (rng.random(counts.shape) * counts).astype(np.int64)).astype(dtype)
    if type(space) is spaces.Box and space.is_bounded("both"):
        low, high = space.low, space.high
        if space.dtype.kind != "f":
            return lambda observation, rng: np.asarray(rng.integers(low, high, dtype=space.dtype, endpoint=True))
        base, width = low.astype(np.float64), high.astype(np.float64) - low.astype(np.float64)
        # as compiled rollouts do, to the bit
        return lambda observation, rng: np.asarray(
            np.clip(base + width * rng.random(space.shape), low, high), space.dtype
        )
    own = deepcopy(space)

    def sample(observation: Any, rng: np.random.Generator) -> Any:
        own.seed(int(rng.integers(2**63)))
        return own.sample()

    return sample


def resolve(name: str, noise: float | None, env_id: str) -> tuple[str, float]:
    """Fill in what was left open: "auto" is the task's heuristic, or random where there is none.

    Raises
    ------
    ValueError
        If the policy is unknown, or the noise is outside [0, 1].
    """
    with suppress(Exception):  # whatever it is, making the environment says it better
        find_world(env_id)
    task, known = task_name(env_id), heuristics()
    if name == "auto":
        name = "heuristic" if task in known else "random"
    if ":" not in name:
        one_of("policy", name, ("auto", "heuristic", "random", "module:function"))
        if name == "heuristic" and task not in known:
            raise ValueError(f"policy is 'heuristic'; expected another, as {env_id} has none: {', '.join(known)} have")
    if name == "random":
        return name, 0.0
    return name, unit_interval("noise", (HEURISTIC_NOISE if name == "heuristic" else 0.0) if noise is None else noise)


def make_policy(name: str, noise: float, env_id: str, action_space: gym.Space[Any]) -> Policy:
    """The policy of a resolved name; with probability `noise` it acts at random instead.

    Raises
    ------
    ValueError
        If ``module:function`` cannot be imported or is no function.
    """
    at_random = uniform(action_space)
    if name == "random":
        return at_random
    chosen = heuristics()[task_name(env_id)] if name == "heuristic" else _imported(name)
    if noise == 0.0:
        return chosen

    def noisy(observation: Any, rng: np.random.Generator) -> Any:
        return at_random(observation, rng) if rng.random() < noise else chosen(observation, rng)

    return noisy


def _imported(name: str) -> Policy:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a script's path holds its own folder, not the one it was started in
        sys.path.append(here)
    try:
        policy = getattr(importlib.import_module(module), function)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"policy is {name!r}; module {module!r} cannot be imported ({error})") from None
    except AttributeError:
        raise ValueError(f"policy is {name!r}; module {module!r} has no {function!r}") from None
    if not callable(policy):
        raise ValueError(f"policy {name!r} is {policy!r}; expected a function (observation, rng) -> action")
    return policy
