"""Acrobot: Sutton 1996; Sutton & Barto 1998, section 11.3, with the equations of the book."""

import math
from dataclasses import dataclass

import numpy as np

from valueapprox.compiling import kernel

from .world import World, register, uniform

GRAVITY, SECONDS = 9.8, 0.2
A_DOT_MAX, B_DOT_MAX = 4 * math.pi, 9 * math.pi
START = 0.1


@kernel(exact=True)
def accelerations(a, b, a_dot, b_dot, torque, two):
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
    phi2 = 0.5 * GRAVITY * math.cos(a + b - math.pi / 2)
    phi1 = -0.5 * b_dot**two * sin - b_dot * a_dot * sin + 1.5 * GRAVITY * math.cos(a - math.pi / 2) + phi2
    b_acc = (torque + d2 / d1 * phi1 - 0.5 * a_dot**two * sin - phi2) / (1.25 - d2**two / d1)
    return -(d2 * b_acc + phi1) / d1, b_acc


@kernel(exact=True)
def wrapped(angle):
    """The same angle in [-pi, pi]."""
    while angle > math.pi:
        angle = angle - 2 * math.pi
    while angle < -math.pi:
        angle = angle + 2 * math.pi
    return angle


@kernel(exact=True)
def reset(params, u, state):
    """Everything uniform between -0.1 and 0.1, in float32 as Gymnasium rounds it."""
    for i in range(4):
        state[i] = np.float32(uniform(-START, START, u[i]))


@kernel(exact=True)
def step(params, state, action, u):
    """One fourth-order Runge-Kutta step of 0.2 s, with a torque of action - 1 at the joint between the links.

    y <- y + h / 6 (k1 + 2 k2 + 2 k3 + k4), then angles wrapped to [-pi, pi] and velocities bounded. The reward is
    -1, and 0 at the goal: the tip one link's length above the pivot, -cos a - cos(a + b) > 1.
    """
    h, torque, two = SECONDS, action - 1.0, params[0]
    a, b, a1, b1 = state[0], state[1], state[2], state[3]  # k1 = (a1, b1, u1, v1), and so on
    u1, v1 = accelerations(a, b, a1, b1, torque, two)
    a2, b2 = a1 + h / 2 * u1, b1 + h / 2 * v1
    u2, v2 = accelerations(a + h / 2 * a1, b + h / 2 * b1, a2, b2, torque, two)
    a3, b3 = a1 + h / 2 * u2, b1 + h / 2 * v2
    u3, v3 = accelerations(a + h / 2 * a2, b + h / 2 * b2, a3, b3, torque, two)
    a4, b4 = a1 + h * u3, b1 + h * v3
    u4, v4 = accelerations(a + h * a3, b + h * b3, a4, b4, torque, two)
    a = wrapped(a + h / 6 * (a1 + 2.0 * a2 + 2.0 * a3 + a4))
    b = wrapped(b + h / 6 * (b1 + 2.0 * b2 + 2.0 * b3 + b4))
    a_dot = a1 + h / 6 * (u1 + 2.0 * u2 + 2.0 * u3 + u4)
    b_dot = b1 + h / 6 * (v1 + 2.0 * v2 + 2.0 * v3 + v4)
    state[0], state[1] = a, b
    state[2] = min(max(a_dot, -A_DOT_MAX), A_DOT_MAX)
    state[3] = min(max(b_dot, -B_DOT_MAX), B_DOT_MAX)
    if -math.cos(a) - math.cos(b + a) > 1.0:
        return 0.0, True
    return -1.0, False


@kernel(exact=True)
def observe(params, state, out):
    """Cosine and sine of both angles, and their velocities."""
    for i in range(2):
        out[2 * i] = math.cos(state[i])
        out[2 * i + 1] = math.sin(state[i])
        out[4 + i] = state[2 + i]


@kernel(exact=True)
def swing(observation):
    """Torque at the elbow against the shoulder's rotation, which raises the energy."""
    return 0 if observation[4] >= 0.0 else 2


@register("Acrobot-v1")
@dataclass(frozen=True)
class Acrobot(World):
    """Gymnasium's Acrobot-v1: reward -1 a step until the tip swings above the line, then 0.

    The state: angle a of the first link from hanging down, angle b of the second from the first, their velocities.
    """

    reset, step, observe, heuristic = reset, step, observe, swing
    n_state = 4
    n_actions = 3
    n_reset_uniforms = 4
    max_episode_steps = 500
    observation_high = (1.0, 1.0, 1.0, 1.0, A_DOT_MAX, B_DOT_MAX)

    @property
    def params(self) -> np.ndarray:
        """The exponent 2.

        Gymnasium squares with the C library's pow, which in one case of a thousand is a bit off x * x; were the 2 in
        sight of the compiler, it would multiply.
        """
        return np.array([2.0])
