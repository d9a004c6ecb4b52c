"""Pendulum: Gymnasium's Pendulum-v1, of mass 1 and length 1, under g = 10."""

import math
from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel

from .world import World, register, uniform

GRAVITY, SECONDS = 10.0, 0.05
TORQUE_MAX, THETA_DOT_MAX = 2.0, 8.0
THETA_START, THETA_DOT_START = math.pi, 1.0


@kernel(exact=True)
def reset(params, u, state):
    """At any angle, with a velocity between -1 and 1."""
    state[0] = uniform(-THETA_START, THETA_START, u[0])
    state[1] = uniform(-THETA_DOT_START, THETA_DOT_START, u[1])


@kernel(exact=True)
def step(params, state, action, u):
    """One semi-implicit Euler step of 0.05 s under a torque u, the action held to [-2, 2]; it never ends.

    The reward is of the state before: -(theta^2 + 0.1 theta'^2 + 0.001 u^2), with theta in [-pi, pi).
    theta' <- bound(theta' + 0.05 (3 g / 2 sin theta + 3 u)),   theta <- theta + 0.05 theta'

    A torque is float32, as the action space says, and so are the terms that hold nothing else, as in Gymnasium.
    """
    theta, theta_dot, two = state[0], state[1], params[0]
    torque = min(max(np.float32(action), np.float32(-TORQUE_MAX)), np.float32(TORQUE_MAX))
    effort = np.float64(np.float32(0.001) * torque ** np.float32(two))
    push = np.float64(np.float32(3.0) * torque)
    angle = (theta + math.pi) % (2 * math.pi) - math.pi
    cost = angle**two + 0.1 * theta_dot**two + effort
    theta_dot = theta_dot + (3 * GRAVITY / 2 * math.sin(theta) + push) * SECONDS
    theta_dot = min(max(theta_dot, -THETA_DOT_MAX), THETA_DOT_MAX)
    state[0] = theta + theta_dot * SECONDS
    state[1] = theta_dot
    return -cost, False


@kernel(exact=True)
def observe(params, state, out):
    """Cosine and sine of the angle, and its velocity."""
    out[0] = math.cos(state[0])
    out[1] = math.sin(state[0])
    out[2] = state[1]


@kernel(exact=True)
def upright(observation):
    """Pump energy while it hangs, a spring and a damper near the top."""
    cos, sin, speed = np.float64(observation[0]), np.float64(observation[1]), np.float64(observation[2])
    if cos > 0.8:
        torque = -10.0 * math.atan2(sin, cos) - 2.0 * speed
    else:
        torque = np.sign(speed) * TORQUE_MAX
    return min(max(torque, -TORQUE_MAX), TORQUE_MAX)


@register("Pendulum-v1")
@dataclass(frozen=True)
class Pendulum(World):
    """Gymnasium's Pendulum-v1: swing up and stay, with one continuous action.

    The state: angle theta from upright, not wrapped, and angular velocity.
    """

    reset, step, observe, heuristic = reset, step, observe, upright
    n_state = 2
    action_low = -TORQUE_MAX
    action_high = TORQUE_MAX
    n_reset_uniforms = 2
    max_episode_steps = 200
    observation_high = (1.0, 1.0, THETA_DOT_MAX)

    @property
    def params(self) -> np.ndarray:
        """The exponent 2, out of the compiler's sight as in `Acrobot.params`."""
        return np.array([2.0])
