"""Worlds: dynamics as compiled functions, the same as Gymnasium environments, and true values where known.

Importing this package registers every world as ``valueapprox/NAME``, for example ``valueapprox/CartPole-v1``;
``gymnasium.make("valueapprox.envs:valueapprox/CartPole-v1")`` does so by itself. A new world is a file and a line here.
"""

from .acrobot import Acrobot
from .cart_pole import CartPole
from .mountain_car import MountainCar
from .pendulum import Pendulum
from .random_walk import RandomWalk
from .snapshots import env_state, restore_env_state, restore_wrappers, unknown_wrappers, wrapper_states
from .world import WORLDS, World, WorldEnv, compiled_world, find_world, register

__all__ = [
    "WORLDS", "Acrobot", "CartPole", "MountainCar", "Pendulum", "RandomWalk", "World", "WorldEnv", "compiled_world",
    "env_state", "find_world", "register", "restore_env_state", "restore_wrappers", "unknown_wrappers",
    "wrapper_states",
]  # fmt: skip
