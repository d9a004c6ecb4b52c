"""Worlds as compiled functions: start, step and observe, chosen by an integer code inside the kernel.

The compiled loops and the Gymnasium environments run these very functions. Each is a pure function of its
arguments: randomness comes in as uniform numbers from [0, 1), and time limits are the caller's.

A new world is a code, its functions, a branch in `reset_state`, `step_state` and `observe`, and a `World`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from valueapprox.compiling import kernel

__all__ = [
    "AGGREGATION",
    "CART_POLE",
    "MOUNTAIN_CAR",
    "ONE_HOT",
    "POSITION",
    "RANDOM_WALK",
    "World",
    "cart_pole",
    "mountain_car",
    "observe",
    "reset_state",
    "step_state",
]

RANDOM_WALK, CART_POLE, MOUNTAIN_CAR = 0, 1, 2
ONE_HOT, AGGREGATION, POSITION = 0, 1, 2  # what a random walk shows of its state


@dataclass(frozen=True, eq=False)
class World:
    """What a caller must know of a world to run it; small, and picklable.

    Parameters
    ----------
    code : int
        `RANDOM_WALK`, `CART_POLE` or `MOUNTAIN_CAR`.
    name : str
        For messages.
    params : array of float64
        The world's own numbers; their meaning is the world's.
    n_state, n_observation, n_actions : int
        Length of the state, length of what `observe` writes, and number of actions 0 ... n_actions - 1.
    n_reset_uniforms, n_step_uniforms : int
        Uniform numbers used by one start, and by one step (0 or 1).
    max_episode_steps : int
        The customary time limit, 0 for none. Whoever runs the world applies it.
    observation_low, observation_high : float or tuple of float
        Bounds of an observation, one for all entries or one for each.
    """

    code: int
    name: str
    params: np.ndarray
    n_state: int
    n_observation: int
    n_actions: int
    n_reset_uniforms: int
    n_step_uniforms: int
    max_episode_steps: int
    observation_low: float | tuple[float, ...]
    observation_high: float | tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", np.array(self.params, dtype=np.float64))

    def __reduce__(self) -> tuple[type[World], tuple[Any, ...]]:
        # An array comes out of Ray's object store read-only, which to Numba is another type, and every worker
        # would compile anew. Made again by the constructor, it is a copy that can be written.
        return World, tuple(getattr(self, field.name) for field in fields(self))


# Random walk ------------------------------------------------------------------------------------------------
# state (1,)   position 0 ... n_states - 1; -1 and n_states are the ends
# params (6,)  n_states, jump, left_reward, right_reward, features, group_size; `RandomWalk.world` writes them


@kernel(exact=True)
def _step_random_walk(params: np.ndarray, state: np.ndarray, action: int, u: float) -> tuple[float, bool]:
    """Move left (action 0) or right (1) by 1 + floor(u * jump), which is uniform on 1 ... jump.

    Every move past an end stops at it, with its reward. Sutton & Barto 2018, examples 6.2 and 9.1.
    """
    n_states, jump, left_reward, right_reward = params[0], params[1], params[2], params[3]
    distance = 1.0 + math.floor(u * jump)
    position = state[0] + distance if action == 1 else state[0] - distance
    if position < 0.0:
        state[0] = -1.0
        return left_reward, True
    if position >= n_states:
        state[0] = n_states
        return right_reward, True
    state[0] = position
    return 0.0, False


@kernel(exact=True)
def _observe_random_walk(params: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
    """One-hot of the state or its group, all zeros at an end; or the position, with the ends at -1 and 1."""
    n_states, features, group_size = params[0], params[4], params[5]
    position = state[0]
    if features == POSITION:
        out[0] = 2.0 * (position + 1.0) / (n_states + 1.0) - 1.0
        return
    out[:] = 0.0
    if 0.0 <= position < n_states:
        out[int(position // group_size)] = 1.0


# Cart-pole: Barto, Sutton & Anderson 1983, equations of Florian 2007 without friction -----------------------
# state (4,)  position x and velocity of the cart, angle theta and angular velocity of the pole

_GRAVITY = 9.8
_CART_MASS = 1.0
_POLE_MASS = 0.1
_MASS = _POLE_MASS + _CART_MASS
_HALF_LENGTH = 0.5
_POLE_MOMENT = _POLE_MASS * _HALF_LENGTH
_PUSH = 10.0
_SECONDS = 0.02
_X_LIMIT = 2.4
_THETA_LIMIT = 12 * 2 * math.pi / 360  # 12 degrees
_CART_POLE_START = 0.05


@kernel(exact=True)
def _step_cart_pole(state: np.ndarray, action: int) -> tuple[float, bool]:
    """One explicit Euler step of 0.02 s under a push of 10 N to the left (action 0) or right (1); reward 1.

    M = mass of cart and pole, m = mass of the pole, l = half its length, c = (F + m l theta'^2 sin theta) / M
    theta'' = (g sin theta - c cos theta) / (l (4/3 - m cos^2 theta / M))
    x'' = c - m l theta'' cos theta / M
    """
    x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
    force = _PUSH if action == 1 else -_PUSH
    sin, cos = math.sin(theta), math.cos(theta)
    c = (force + _POLE_MOMENT * (theta_dot * theta_dot) * sin) / _MASS
    theta_acc = (_GRAVITY * sin - cos * c) / (_HALF_LENGTH * (4.0 / 3.0 - _POLE_MASS * (cos * cos) / _MASS))
    x_acc = c - _POLE_MOMENT * theta_acc * cos / _MASS
    state[0] = x + _SECONDS * x_dot
    state[1] = x_dot + _SECONDS * x_acc
    state[2] = theta + _SECONDS * theta_dot
    state[3] = theta_dot + _SECONDS * theta_acc
    return 1.0, abs(state[0]) > _X_LIMIT or abs(state[2]) > _THETA_LIMIT


def cart_pole() -> World:
    """Cart-pole as in Gymnasium's CartPole-v1: reward 1 a step until the pole falls or the cart leaves."""
    high = (2 * _X_LIMIT, math.inf, 2 * _THETA_LIMIT, math.inf)
    return World(
        code=CART_POLE,
        name="cart-pole",
        params=np.empty(0),
        n_state=4,
        n_observation=4,
        n_actions=2,
        n_reset_uniforms=4,
        n_step_uniforms=0,
        max_episode_steps=500,
        observation_low=tuple(-bound for bound in high),
        observation_high=high,
    )


# Mountain car: Moore 1990; Sutton & Barto 2018, example 10.1 ------------------------------------------------
# state (2,)  position x, velocity v

_X_MIN, _X_MAX, _X_GOAL = -1.2, 0.6, 0.5
_V_MAX = 0.07
_THRUST = 0.001
_SLOPE = 0.0025
_MOUNTAIN_CAR_START = (-0.6, -0.4)


@kernel(exact=True)
def _step_mountain_car(state: np.ndarray, action: int) -> tuple[float, bool]:
    """Thrust to the left (action 0), none (1) or to the right (2); the reward is -1 until the goal, x >= 0.5.

    v <- bound(v + 0.001 (action - 1) - 0.0025 cos 3x),   x <- bound(x + v),   v = 0 at the left wall
    """
    v = state[1] + ((action - 1) * _THRUST - _SLOPE * math.cos(3.0 * state[0]))
    v = min(max(v, -_V_MAX), _V_MAX)
    x = min(max(state[0] + v, _X_MIN), _X_MAX)
    if x == _X_MIN and v < 0.0:
        v = 0.0
    state[0] = x
    state[1] = v
    return -1.0, x >= _X_GOAL


def mountain_car() -> World:
    """Mountain car as in Gymnasium's MountainCar-v0: reward -1 a step until the top of the right hill."""
    return World(
        code=MOUNTAIN_CAR,
        name="mountain car",
        params=np.empty(0),
        n_state=2,
        n_observation=2,
        n_actions=3,
        n_reset_uniforms=1,
        n_step_uniforms=0,
        max_episode_steps=200,
        observation_low=(_X_MIN, -_V_MAX),
        observation_high=(_X_MAX, _V_MAX),
    )


# The three functions that callers use -----------------------------------------------------------------------


@kernel(exact=True)
def reset_state(world: int, params: np.ndarray, u: np.ndarray, state: np.ndarray) -> None:
    """Start an episode, in the middle of a random walk, else at low + (high - low) * u.

    This is how NumPy's `Generator.uniform` does it, so one generator gives the start states of Gymnasium.

    world  code                                      params (.,)      read
    u (.,) read, n_reset_uniforms numbers or more    state (n_state,) overwritten
    """
    if world == CART_POLE:
        low, high = -_CART_POLE_START, _CART_POLE_START
        for i in range(4):
            state[i] = low + (high - low) * u[i]
    elif world == MOUNTAIN_CAR:
        low, high = _MOUNTAIN_CAR_START
        state[0] = low + (high - low) * u[0]
        state[1] = 0.0
    else:
        state[0] = (params[0] - 1.0) // 2.0


@kernel(exact=True)
def step_state(world: int, params: np.ndarray, state: np.ndarray, action: int, u: float) -> tuple[float, bool]:
    """Take one step from a state that is not terminal, and return (reward, terminated).

    world  code                       params (.,)  read     state (n_state,)  advanced in place
    action  0 ... n_actions - 1       u  one uniform number, used where n_step_uniforms is 1
    """
    if world == CART_POLE:
        return _step_cart_pole(state, action)
    if world == MOUNTAIN_CAR:
        return _step_mountain_car(state, action)
    return _step_random_walk(params, state, action, u)


@kernel(exact=True)
def observe(world: int, params: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
    """Write what an agent sees of a state, terminal or not.

    world  code       params (.,)  read       state (n_state,)  read
    out (n_observation,)  overwritten, of any float type
    """
    if world == RANDOM_WALK:
        _observe_random_walk(params, state, out)
    else:
        for i in range(state.size):
            out[i] = state[i]
