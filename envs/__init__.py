"""Worlds: dynamics as compiled functions, the same as Gymnasium environments, and true values where known.

Importing this package registers `valueapprox/RandomWalk-v0`, `valueapprox/CartPole-v1`,
`valueapprox/MountainCar-v0`, `valueapprox/Acrobot-v1` and `valueapprox/Pendulum-v1`;
`gymnasium.make("valueapprox.envs:valueapprox/CartPole-v1")` does so by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium

from .dynamics import World, acrobot, cart_pole, mountain_car, observe, pendulum, reset_state, step_state
from .random_walk import RandomWalk
from .snapshots import env_state, restore_env_state, restore_wrappers, unknown_wrappers, wrapper_states

__all__ = [
    "RandomWalk",
    "World",
    "acrobot",
    "cart_pole",
    "compiled_world",
    "env_state",
    "mountain_car",
    "observe",
    "pendulum",
    "reset_state",
    "restore_env_state",
    "restore_wrappers",
    "step_state",
    "unknown_wrappers",
    "wrapper_states",
]


def _random_walk(**walk: Any) -> World:
    return RandomWalk(**walk).world()


# id: (environment class, the function that makes its world of the same keyword arguments)
_WORLDS: dict[str, tuple[str, Callable[..., World]]] = {
    "valueapprox/RandomWalk-v0": ("RandomWalkEnv", _random_walk),
    "valueapprox/CartPole-v1": ("CartPoleEnv", cart_pole),
    "valueapprox/MountainCar-v0": ("MountainCarEnv", mountain_car),
    "valueapprox/Acrobot-v1": ("AcrobotEnv", acrobot),
    "valueapprox/Pendulum-v1": ("PendulumEnv", pendulum),
}

for _id, (_class, _make) in _WORLDS.items():
    if _id not in gymnasium.registry:
        # A string as entry point: the spec can be written as JSON and sent to workers.
        _limit = _make().max_episode_steps or None
        gymnasium.register(_id, entry_point=f"valueapprox.envs.compiled_env:{_class}", max_episode_steps=_limit)


def compiled_world(env_id: str, *, max_episode_steps: int | None = None, **kwargs: Any) -> tuple[World, int] | None:
    """Give the compiled world of an environment id and its time limit, or None where there is none.

    Parameters
    ----------
    env_id : str
        As for `gymnasium.make`. Only ids of this package have a world: `CartPole-v1` means Gymnasium's own.
    max_episode_steps : int, optional
        As for `gymnasium.make`: a limit instead of the customary one, or -1 for none.
    **kwargs
        As for `gymnasium.make`: keyword arguments of the environment.

    Returns
    -------
    (World, int) or None
        The world and its time limit in steps, 0 for none.
    """
    _, _, name = env_id.rpartition(":")  # "module:id" imports the module first
    if name not in _WORLDS:
        return None
    _, make = _WORLDS[name]
    world = make(**kwargs)
    if max_episode_steps is None:
        return world, world.max_episode_steps
    if max_episode_steps < 1 and max_episode_steps != -1:
        raise ValueError(f"max_episode_steps: got {max_episode_steps}, wants at least 1, or -1 for no limit")
    return world, max(max_episode_steps, 0)
