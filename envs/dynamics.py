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
    "ACROBOT",
    "AGGREGATION",
    "CART_POLE",
    "MOUNTAIN_CAR",
    "ONE_HOT",
    "PENDULUM",
    "POSITION",
    "RANDOM_WALK",
    "World",
    "acrobot",
    "cart_pole",
    "mountain_car",
    "observe",
    "pendulum",
    "reset_state",
    "step_state",
]

RANDOM_WALK, CART_POLE, MOUNTAIN_CAR, ACROBOT, PENDULUM = range(5)
ONE_HOT, AGGREGATION, POSITION = 0, 1, 2  # what a random walk shows of its state


@dataclass(frozen=True, eq=False)
class World:
    """What a caller must know of a world to run it; small, and picklable.

    Parameters
    ----------
    code : int
        `RANDOM_WALK`, `CART_POLE`, `MOUNTAIN_CAR`, `ACROBOT` or `PENDULUM`.
    name : str
        For messages.
    params : array of float64
        The world's own numbers; their meaning is the world's.
    n_state, n_observation, n_actions : int
        Length of the state, length of what `observe` writes, and number of actions 0 ... n_actions - 1; 0 where
        the action is continuous.
    n_reset_uniforms, n_step_uniforms : int
        Uniform numbers used by one start, and by one step (0 or 1).
    max_episode_steps : int
        The customary time limit, 0 for none. Whoever runs the world applies it.
    observation_low, observation_high : float or tuple of float
        Bounds of an observation, one for all entries or one for each.
    action_low, action_high : float
        Bounds of a continuous action, which is one number. The world holds it to them.
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
    action_low: float = 0.0
    action_high: float = 0.0

    @property
    def continuous(self) -> bool:
        """Whether an action is a number from `action_low` to `action_high`, and not one of a few."""
        return self.n_actions == 0

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
def _step_random_walk(params: np.ndarray, state: np.ndarray, action: float, u: float) -> tuple[float, bool]:
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
def _step_cart_pole(state: np.ndarray, action: float) -> tuple[float, bool]:
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
def _step_mountain_car(state: np.ndarray, action: float) -> tuple[float, bool]:
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


# Acrobot: Sutton 1996; Sutton & Barto 1998, section 11.3, with the equations of the book ----------------------
# state (4,)   angle a of the first link from hanging down, angle b of the second from the first, their velocities
# params (1,)  the exponent 2. Gymnasium squares with the C library's pow, which in one case of a thousand is a bit
#              off x * x; were the 2 in sight of the compiler, it would multiply.

_TORQUE_STEP = 0.2
_A_DOT_MAX = 4 * math.pi
_B_DOT_MAX = 9 * math.pi
_ACROBOT_START = 0.1


@kernel(exact=True)
def _acrobot_accelerations(
    a: float, b: float, a_dot: float, b_dot: float, torque: float, two: float
) -> tuple[float, float]:
    """(a'', b'') of two links of length l = 1, mass m = 1, moment I = 1 and centre c = 1/2, under g = 9.8.

    d1 = m c^2 + m (l^2 + c^2 + 2 l c cos b) + 2 I,   d2 = m (c^2 + l c cos b) + I
    phi2 = m c g cos(a + b - pi/2)
    phi1 = -m l c b'^2 sin b - 2 m l c a' b' sin b + (m c + m l) g cos(a - pi/2) + phi2
    b'' = (torque + phi1 d2 / d1 - m l c a'^2 sin b - phi2) / (m c^2 + I - d2^2 / d1)
    a'' = -(d2 b'' + phi1) / d1
    """
    sin, cos = math.sin(b), math.cos(b)
    d1 = 0.25 + (1.25 + cos) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos) + 1.0
    phi2 = 0.5 * _GRAVITY * math.cos(a + b - math.pi / 2)
    phi1 = -0.5 * b_dot**two * sin - b_dot * a_dot * sin + 1.5 * _GRAVITY * math.cos(a - math.pi / 2) + phi2
    b_acc = (torque + d2 / d1 * phi1 - 0.5 * a_dot**two * sin - phi2) / (1.25 - d2**two / d1)
    return -(d2 * b_acc + phi1) / d1, b_acc


@kernel(exact=True)
def _wrapped(angle: float) -> float:
    """The same angle in [-pi, pi]."""
    while angle > math.pi:
        angle = angle - 2 * math.pi
    while angle < -math.pi:
        angle = angle + 2 * math.pi
    return angle


@kernel(exact=True)
def _step_acrobot(params: np.ndarray, state: np.ndarray, action: float) -> tuple[float, bool]:
    """One fourth-order Runge-Kutta step of 0.2 s, with a torque of action - 1 at the joint between the links.

    y <- y + h / 6 (k1 + 2 k2 + 2 k3 + k4), then angles wrapped to [-pi, pi] and velocities bounded. The reward is
    -1, and 0 at the goal: the tip one link's length above the pivot, -cos a - cos(a + b) > 1.
    """
    h, torque, two = _TORQUE_STEP, action - 1.0, params[0]
    a, b, a1, b1 = state[0], state[1], state[2], state[3]  # k1 = (a1, b1, u1, v1), and so on
    u1, v1 = _acrobot_accelerations(a, b, a1, b1, torque, two)
    a2, b2 = a1 + h / 2 * u1, b1 + h / 2 * v1
    u2, v2 = _acrobot_accelerations(a + h / 2 * a1, b + h / 2 * b1, a2, b2, torque, two)
    a3, b3 = a1 + h / 2 * u2, b1 + h / 2 * v2
    u3, v3 = _acrobot_accelerations(a + h / 2 * a2, b + h / 2 * b2, a3, b3, torque, two)
    a4, b4 = a1 + h * u3, b1 + h * v3
    u4, v4 = _acrobot_accelerations(a + h * a3, b + h * b3, a4, b4, torque, two)
    a = _wrapped(a + h / 6 * (a1 + 2.0 * a2 + 2.0 * a3 + a4))
    b = _wrapped(b + h / 6 * (b1 + 2.0 * b2 + 2.0 * b3 + b4))
    a_dot = a1 + h / 6 * (u1 + 2.0 * u2 + 2.0 * u3 + u4)
    b_dot = b1 + h / 6 * (v1 + 2.0 * v2 + 2.0 * v3 + v4)
    state[0] = a
    state[1] = b
    state[2] = min(max(a_dot, -_A_DOT_MAX), _A_DOT_MAX)
    state[3] = min(max(b_dot, -_B_DOT_MAX), _B_DOT_MAX)
    if -math.cos(a) - math.cos(b + a) > 1.0:
        return 0.0, True
    return -1.0, False


def acrobot() -> World:
    """Acrobot as in Gymnasium's Acrobot-v1: reward -1 a step until the tip swings above the line, then 0."""
    high = (1.0, 1.0, 1.0, 1.0, _A_DOT_MAX, _B_DOT_MAX)
    return World(
        code=ACROBOT,
        name="acrobot",
        params=np.array([2.0]),
        n_state=4,
        n_observation=6,
        n_actions=3,
        n_reset_uniforms=4,
        n_step_uniforms=0,
        max_episode_steps=500,
        observation_low=tuple(-bound for bound in high),
        observation_high=high,
    )


# Pendulum: Gymnasium's Pendulum-v1, of mass 1 and length 1, under g = 10 --------------------------------------
# state (2,)   angle theta from upright, not wrapped, and angular velocity
# params (1,)  the exponent 2, as for the acrobot

_PENDULUM_STEP = 0.05
_PENDULUM_GRAVITY = 10.0
_TORQUE_MAX = 2.0
_THETA_DOT_MAX = 8.0
_PENDULUM_START = (math.pi, 1.0)


@kernel(exact=True)
def _step_pendulum(params: np.ndarray, state: np.ndarray, action: float) -> tuple[float, bool]:
    """One semi-implicit Euler step of 0.05 s under a torque u, the action held to [-2, 2]; it never ends.

    The reward is of the state before: -(theta^2 + 0.1 theta'^2 + 0.001 u^2), with theta in [-pi, pi).
    theta' <- bound(theta' + 0.05 (3 g / 2 sin theta + 3 u)),   theta <- theta + 0.05 theta'

    A torque is float32, as the action space says, and so are the terms that hold nothing else, as in Gymnasium.
    """
    theta, theta_dot, two = state[0], state[1], params[0]
    u = min(max(np.float32(action), np.float32(-_TORQUE_MAX)), np.float32(_TORQUE_MAX))
    effort = np.float64(np.float32(0.001) * u ** np.float32(two))
    push = np.float64(np.float32(3.0) * u)
    angle = (theta + math.pi) % (2 * math.pi) - math.pi
    cost = angle**two + 0.1 * theta_dot**two + effort
    theta_dot = theta_dot + (3 * _PENDULUM_GRAVITY / 2 * math.sin(theta) + push) * _PENDULUM_STEP
    theta_dot = min(max(theta_dot, -_THETA_DOT_MAX), _THETA_DOT_MAX)
    state[0] = theta + theta_dot * _PENDULUM_STEP
    state[1] = theta_dot
    return -cost, False


def pendulum() -> World:
    """Pendulum as in Gymnasium's Pendulum-v1: swing up and stay, with one continuous action."""
    high = (1.0, 1.0, _THETA_DOT_MAX)
    return World(
        code=PENDULUM,
        name="pendulum",
        params=np.array([2.0]),
        n_state=2,
        n_observation=3,
        n_actions=0,
        n_reset_uniforms=2,
        n_step_uniforms=0,
        max_episode_steps=200,
        observation_low=tuple(-bound for bound in high),
        observation_high=high,
        action_low=-_TORQUE_MAX,
        action_high=_TORQUE_MAX,
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
    elif world == ACROBOT:
        low, high = -_ACROBOT_START, _ACROBOT_START
        for i in range(4):
            state[i] = np.float32(low + (high - low) * u[i])  # as Gymnasium rounds it
    elif world == PENDULUM:
        for i in range(2):
            high = _PENDULUM_START[i]
            state[i] = -high + (high - -high) * u[i]
    else:
        state[0] = (params[0] - 1.0) // 2.0


@kernel(exact=True)
def step_state(world: int, params: np.ndarray, state: np.ndarray, action: float, u: float) -> tuple[float, bool]:
    """Take one step from a state that is not terminal, and return (reward, terminated).

    world  code                       params (.,)  read     state (n_state,)  advanced in place
    u  one uniform number, used where n_step_uniforms is 1
    action  0 ... n_actions - 1, as an integer or a float; a finite float where the action is continuous
    """
    if world == CART_POLE:
        return _step_cart_pole(state, action)
    if world == MOUNTAIN_CAR:
        return _step_mountain_car(state, action)
    if world == ACROBOT:
        return _step_acrobot(params, state, action)
    if world == PENDULUM:
        return _step_pendulum(params, state, action)
    return _step_random_walk(params, state, action, u)


@kernel(exact=True)
def observe(world: int, params: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
    """Write what an agent sees of a state, terminal or not.

    world  code       params (.,)  read       state (n_state,)  read
    out (n_observation,)  overwritten, of any float type
    """
    if world == RANDOM_WALK:
        _observe_random_walk(params, state, out)
    elif world == ACROBOT:
        out[0] = math.cos(state[0])
        out[1] = math.sin(state[0])
        out[2] = math.cos(state[1])
        out[3] = math.sin(state[1])
        out[4] = state[2]
        out[5] = state[3]
    elif world == PENDULUM:
        out[0] = math.cos(state[0])
        out[1] = math.sin(state[0])
        out[2] = state[1]
    else:
        for i in range(state.size):
            out[i] = state[i]
