"""Mountain car: Moore 1990; Sutton & Barto 2018, example 10.1."""

import math
from dataclasses import dataclass

from valueapprox.compiling import kernel

from .world import World, register, uniform

X_MIN, X_MAX, X_GOAL = -1.2, 0.6, 0.5
V_MAX = 0.07
THRUST, SLOPE = 0.001, 0.0025
START_LOW, START_HIGH = -0.6, -0.4


@kernel(exact=True)
def reset(params, u, state):
    """At rest in the valley."""
    state[0] = uniform(START_LOW, START_HIGH, u[0])
    state[1] = 0.0


@kernel(exact=True)
def step(params, state, action, u):
    """Thrust to the left (action 0), none (1) or to the right (2); the reward is -1 until the goal, x >= 0.5.

    v <- bound(v + 0.001 (action - 1) - 0.0025 cos 3x),   x <- bound(x + v),   v = 0 at the left wall
    """
    v = state[1] + ((action - 1) * THRUST - SLOPE * math.cos(3.0 * state[0]))
    v = min(max(v, -V_MAX), V_MAX)
    x = min(max(state[0] + v, X_MIN), X_MAX)
    if x == X_MIN and v < 0.0:
        v = 0.0
    state[0], state[1] = x, v
    return -1.0, x >= X_GOAL


@kernel(exact=True)
def pump(observation):
    """Push the way the car already moves, which adds energy."""
    return 2 if observation[1] >= 0.0 else 0


@register("MountainCar-v0")
@dataclass(frozen=True)
class MountainCar(World):
    """Gymnasium's MountainCar-v0: reward -1 a step until the top of the right hill.

    The state, which is observed as it is: position x and velocity v.
    """

    reset, step, heuristic = reset, step, pump
    n_state = 2
    n_actions = 3
    n_reset_uniforms = 1
    max_episode_steps = 200
    observation_low = (X_MIN, -V_MAX)
    observation_high = (X_MAX, V_MAX)
