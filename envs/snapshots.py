"""Saving where an environment stands and going on from there bit for bit: compiled worlds and Gymnasium's classics."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from valueapprox.seeding import generator_from, generator_state

from .compiled_env import CompiledEnv

__all__ = ["env_state", "restore_env_state"]

# What an environment keeps from step to step beside `state` and its generator.
_CLASSICS: dict[type, tuple[str, ...]] = {
    AcrobotEnv: (),
    CartPoleEnv: ("steps_beyond_terminated",),
    Continuous_MountainCarEnv: (),
    MountainCarEnv: (),
    PendulumEnv: ("last_u",),
}
# What a wrapper keeps. The checker only warns: what it has checked may be lost.
_WRAPPERS: dict[type, str] = {TimeLimit: "_elapsed_steps", OrderEnforcing: "_has_reset"}


def env_state(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """Where an environment stands, for `restore_env_state`; None if what it keeps is not known.

    Known are the worlds of this package and Gymnasium's CartPole, MountainCar, MountainCarContinuous, Acrobot and
    Pendulum, in no wrappers but those of `gymnasium.make`, with NumPy's usual generator (PCG64). A subclass of one of
    Gymnasium's may keep more, and is not known.

    Returns
    -------
    dict or None
        JSON-able but for the array ``["world"]["state"]``, whose type counts: some classics have float32 in it. Not
        in it are keyword arguments of the environment, and the generator behind `action_space.sample()`.
    """
    base = env.unwrapped
    wrappers = _wrappers(env)
    if wrappers is None or not isinstance(base.np_random.bit_generator, np.random.PCG64):
        return None
    if isinstance(base, CompiledEnv):
        world = base.state()
    elif type(base) in _CLASSICS:
        state = getattr(base, "state", None)  # before the first reset, some have None and some no such thing
        world = {
            "state": None if state is None else np.array(state),
            "generator": generator_state(base.np_random),
            **{name: _plain(getattr(base, name, None)) for name in _CLASSICS[type(base)]},
        }
    else:
        return None
    return {
        "env": _name(base),
        "wrappers": [[_name(w), getattr(w, _WRAPPERS[type(w)])] for w in wrappers],
        "world": world,
    }


def restore_env_state(env: gymnasium.Env[Any, Any], state: dict[str, Any]) -> None:
    """Bring an environment to where `env_state` was taken. It must have been made with the same arguments.

    Raises
    ------
    ValueError
        If it is another environment, or is wrapped otherwise.
    """
    base = env.unwrapped
    wrappers = _wrappers(env)
    got = [_name(base), *(_name(w) for w in wrappers or [])]
    wanted = [state["env"], *(name for name, _ in state["wrappers"])]
    if got != wanted or wrappers is None:
        raise ValueError(f"env: got {env}, wants the environment of this state: {' in '.join(wanted)}")
    env.reset(seed=0)  # the checker remembers that there was a reset, and steps without complaint
    for wrapper, (_, value) in zip(wrappers, state["wrappers"], strict=True):
        setattr(wrapper, _WRAPPERS[type(wrapper)], value)
    world = state["world"]
    if isinstance(base, CompiledEnv):
        base.restore(world)
        return
    base.np_random = generator_from(world["generator"])
    values = world["state"]
    base.state = None if values is None else np.array(values)  # type: ignore[attr-defined]
    for name in _CLASSICS[type(base)]:
        setattr(base, name, world[name])


def _wrappers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]] | None:
    """The wrappers that keep something, innermost first; None if there is one that may keep anything."""
    found: list[gymnasium.Env[Any, Any]] = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env) in _WRAPPERS:
            found.insert(0, env)
        elif type(env) is not PassiveEnvChecker:
            return None
        env = env.env
    return found


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return f"{type(env).__module__.partition('.')[0]}.{type(env).__name__}"  # CartPoleEnv is here and in Gymnasium


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
