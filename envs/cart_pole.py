"""Cart-pole: Barto, Sutton & Anderson 1983, with the equations of Florian 2007 without friction."""

import math
from dataclasses import dataclass

from valueapprox.compiling import kernel

from .world import World, register, uniform

GRAVITY = 9.8
CART_MASS, POLE_MASS, HALF_LENGTH = 1.0, 0.1, 0.5
MASS = POLE_MASS + CART_MASS
POLE_MOMENT = POLE_MASS * HALF_LENGTH
PUSH, SECONDS = 10.0, 0.02
X_LIMIT, THETA_LIMIT = 2.4, 12 * 2 * math.pi / 360  # 12 degrees
START = 0.05


@kernel(exact=True)
def reset(params, u, state):
    """Everything uniform between -0.05 and 0.05."""
    for i in range(4):
        state[i] = uniform(-START, START, u[i])


@kernel(exact=True)
def step(params, state, action, u):
    """One explicit Euler step of 0.02 s under a push of 10 N to the left (action 0) or right (1); reward 1.

    M = mass of cart and pole, m = mass of the pole, l = half its length, c = (F + m l theta'^2 sin theta) / M
    theta'' = (g sin theta - c cos theta) / (l (4/3 - m cos^2 theta / M))
    x'' = c - m l theta'' cos theta / M
    """
    x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
    force = PUSH if action == 1 else -PUSH
    sin, cos = math.sin(theta), math.cos(theta)
    c = (force + POLE_MOMENT * (theta_dot * theta_dot) * sin) / MASS
    theta_acc = (GRAVITY * sin - cos * c) / (HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * (cos * cos) / MASS))
    x_acc = c - POLE_MOMENT * theta_acc * cos / MASS
    state[0] = x + SECONDS * x_dot
    state[1] = x_dot + SECONDS * x_acc
    state[2] = theta + SECONDS * theta_dot
    state[3] = theta_dot + SECONDS * theta_acc
    return 1.0, abs(state[0]) > X_LIMIT or abs(state[2]) > THETA_LIMIT


@kernel(exact=True)
def lean(observation):
    """Push towards the side to which the pole leans."""
    return 1 if observation[2] > 0.0 else 0


@register("CartPole-v1")
@dataclass(frozen=True)
class CartPole(World):
    """Gymnasium's CartPole-v1: reward 1 a step until the pole falls or the cart leaves.

    The state, which is observed as it is: position x and velocity of the cart, angle theta and angular velocity of the
    pole.
    """

    reset, step, heuristic = reset, step, lean
    n_state = 4
    n_actions = 2
    n_reset_uniforms = 4
    max_episode_steps = 500
    observation_high = (2 * X_LIMIT, math.inf, 2 * THETA_LIMIT, math.inf)
