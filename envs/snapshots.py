"""Saving where an environment stands and going on from there bit for bit: compiled worlds and Gymnasium's classics."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium import wrappers as wrap
from gymnasium.envs import classic_control as classic
from gymnasium.wrappers.utils import RunningMeanStd

from valueapprox.checks import python_value
from valueapprox.seeding import generator_from, generator_state

from .world import WorldEnv

__all__ = ["env_state", "restore_env_state", "restore_wrappers", "unknown_wrappers", "wrapper_states"]

# What an environment keeps from step to step beside `state` and its generator.
_CLASSICS: dict[type, tuple[str, ...]] = {
    classic.AcrobotEnv: (),
    classic.CartPoleEnv: ("steps_beyond_terminated",),
    classic.Continuous_MountainCarEnv: (),
    classic.MountainCarEnv: (),
    classic.PendulumEnv: ("last_u",),
}
# What a wrapper keeps; those of the second line beyond the end of an episode.
_WRAPPERS: dict[type, str] = {
    wrap.TimeLimit: "_elapsed_steps",
    wrap.OrderEnforcing: "_has_reset",
    wrap.TimeAwareObservation: "timesteps",
}
_STATISTICS: dict[type, tuple[str, ...]] = {
    wrap.NormalizeObservation: ("obs_rms", "_update_running_mean"),
    wrap.NormalizeReward: ("return_rms", "discounted_reward", "_update_running_mean"),
    wrap.RecordEpisodeStatistics: ("episode_count", "episode_returns", "episode_lengths"),
}
# Those that keep nothing. The checker only warns: what it has checked may be lost.
_STATELESS = frozenset({
    wrap.ClipAction, wrap.ClipReward, wrap.DiscretizeAction, wrap.DiscretizeObservation, wrap.DtypeObservation,
    wrap.FilterObservation, wrap.FlattenObservation, wrap.GrayscaleObservation, wrap.PassiveEnvChecker,
    wrap.RescaleAction, wrap.RescaleObservation, wrap.ReshapeObservation, wrap.ResizeObservation,
})  # fmt: skip


def env_state(env: gymnasium.Env[Any, Any]) -> dict[str, Any] | None:
    """Where an environment stands, for `restore_env_state`; None if what it keeps is not known.

    Known are the worlds of this package and Gymnasium's CartPole, MountainCar, MountainCarContinuous, Acrobot and
    Pendulum, with NumPy's usual generator (PCG64), in wrappers of Gymnasium's that keep nothing, a count, or running
    statistics. A subclass of one of Gymnasium's may keep more, and is not known.

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
    if isinstance(base, WorldEnv):
        world = base.state()
    elif type(base) in _CLASSICS:
        state = getattr(base, "state", None)  # before the first reset, some have None and some no such thing
        world = {
            "state": None if state is None else np.array(state),
            "generator": generator_state(base.np_random),
            **{name: python_value(getattr(base, name, None)) for name in _CLASSICS[type(base)]},
        }
    else:
        return None
    return {"env": _name(base), "wrappers": [[_name(w), _kept(w)] for w in wrappers], "world": world}


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
    # Up to version 0.2 the worlds' package was called `envs`.
    wanted = [re.sub(r"^envs\.", "valueapprox.", state["env"]), *(name for name, _ in state["wrappers"])]
    if got != wanted or wrappers is None:
        raise ValueError(f"env is {env}; expected the environment of this state: {' in '.join(wanted)}")
    env.reset(seed=0)  # the checker remembers that there was a reset, and steps without complaint
    for wrapper, (_, value) in zip(wrappers, state["wrappers"], strict=True):
        _keep(wrapper, value)
    world = state["world"]
    if isinstance(base, WorldEnv):
        base.restore(world)
        return
    base.np_random = generator_from(world["generator"])
    values = world["state"]
    base.state = None if values is None else np.array(values)  # type: ignore[attr-defined]
    for name in _CLASSICS[type(base)]:
        setattr(base, name, world[name])


def wrapper_states(env: gymnasium.Env[Any, Any]) -> list[list[Any]]:
    """Running statistics of Gymnasium's own wrappers around any environment, outermost first: [name, statistics]."""
    return [[_name(w), _kept(w)] for w in _around(env) if type(w) in _STATISTICS]


def restore_wrappers(env: gymnasium.Env[Any, Any], states: list[list[Any]]) -> None:
    """Give wrappers the statistics that `wrapper_states` found in the same ones; without any, they stay as they are.

    Raises
    ------
    ValueError
        If the environment is wrapped otherwise.
    """
    own = [w for w in _around(env) if type(w) in _STATISTICS] if states else []
    if [_name(w) for w in own] != [name for name, _ in states]:
        raise ValueError(f"env is {env}; expected the wrappers of these statistics: {[name for name, _ in states]}")
    for wrapper, (_, value) in zip(own, states, strict=True):
        _keep(wrapper, value)


def unknown_wrappers(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Names of wrappers that may keep something which nobody can save: those that are not Gymnasium's own."""
    return [type(w).__name__ for w in _around(env) if not type(w).__module__.startswith("gymnasium.")]


def _around(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Wrapper[Any, Any, Any, Any]]:
    """All wrappers, outermost first, but for those that say that they keep nothing of the environment."""
    found = []
    while isinstance(env, gymnasium.Wrapper):
        if not getattr(type(env), "keeps_nothing", False):
            found.append(env)
        env = env.env
    return found


def _wrappers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Wrapper[Any, Any, Any, Any]] | None:
    """The wrappers that keep something, innermost first; None if there is one that may keep anything."""
    keeping = [w for w in _around(env)[::-1] if type(w) not in _STATELESS]
    return keeping if all(type(w) in _WRAPPERS or type(w) in _STATISTICS for w in keeping) else None


def _kept(wrapper: gymnasium.Env[Any, Any]) -> Any:
    """What a wrapper keeps, for JSON: a single number as it is, more by name."""
    kind = type(wrapper)
    if kind in _WRAPPERS:
        return getattr(wrapper, _WRAPPERS[kind])
    return {name: _written(getattr(wrapper, name)) for name in _STATISTICS[kind]}


def _keep(wrapper: gymnasium.Env[Any, Any], value: Any) -> None:
    kind = type(wrapper)
    values = {_WRAPPERS[kind]: value} if kind in _WRAPPERS else value
    for name in values:
        setattr(wrapper, name, _read(values[name], getattr(wrapper, name)))


def _written(value: Any) -> Any:
    if isinstance(value, RunningMeanStd):
        return {name: _written(getattr(value, name)) for name in ("mean", "var", "count")}
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "values": value.tolist()}
    return [value.dtype.str, value.item()] if isinstance(value, np.generic) else value


def _read(value: Any, own: Any) -> Any:
    if isinstance(own, RunningMeanStd):
        again = RunningMeanStd()
        for name, part in value.items():
            setattr(again, name, _read(part, None))
        return again
    if isinstance(value, dict):
        return np.array(value["values"], value["dtype"])
    return np.dtype(value[0]).type(value[1]) if isinstance(value, list) else value


def _name(env: gymnasium.Env[Any, Any]) -> str:
    if isinstance(env, WorldEnv):
        return f"valueapprox.{type(env.world).__name__}Env"  # as each was called in version 0.1
    return f"{type(env).__module__.partition('.')[0]}.{type(env).__name__}"  # CartPoleEnv is here and in Gymnasium
