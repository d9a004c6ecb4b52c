"""The random walk of Sutton & Barto, and what can be known of it: dynamics, true values, visits."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np

from valueapprox.checks import one_of, positive, python_settings, unit_interval
from valueapprox.compiling import kernel

from .world import World, register

FEATURES = ("one-hot", "aggregation", "position")
N_STATES, JUMP, LEFT_REWARD, RIGHT_REWARD, POSITION, GROUP_SIZE = range(6)  # entries of params


@kernel(exact=True)
def reset(params, u, state):
    """In the middle."""
    state[0] = (params[N_STATES] - 1.0) // 2.0


@kernel(exact=True)
def step(params, state, action, u):
    """Move left (action 0) or right (1) by 1 + floor(u * jump), which is uniform on 1 ... jump.

    Every move past an end stops at it, with its reward. Sutton & Barto 2018, examples 6.2 and 9.1.
    """
    distance = 1.0 + math.floor(u * params[JUMP])
    position = state[0] + distance if action == 1 else state[0] - distance
    if position < 0.0:
        state[0] = -1.0
        return params[LEFT_REWARD], True
    if position >= params[N_STATES]:
        state[0] = params[N_STATES]
        return params[RIGHT_REWARD], True
    state[0] = position
    return 0.0, False


@kernel(exact=True)
def observe(params, state, out):
    """One-hot of the state or its group, all zeros at an end; or the position, with the ends at -1 and 1."""
    n_states, position = params[N_STATES], state[0]
    if params[POSITION] != 0.0:
        out[0] = 2.0 * (position + 1.0) / (n_states + 1.0) - 1.0
        return
    out[:] = 0.0
    if 0.0 <= position < n_states:
        out[int(position // params[GROUP_SIZE])] = 1.0


@register("RandomWalk-v0")
@dataclass(frozen=True)
class RandomWalk(World):
    """A walk along a line from its middle, left or right, until it steps past an end.

    A move goes the way of the action (0 left, 1 right) by a distance uniform on 1 ... jump. Every move past
    an end terminates there, with that end's reward; all other rewards are 0.

    Parameters
    ----------
    n_states : int, at least 1
        States that are not terminal. A walk starts at index (n_states - 1) // 2.
    jump : int, at least 1
        Longest move.
    left_reward, right_reward : float
        Rewards of the two ends.
    features : {"one-hot", "aggregation", "position"}
        What is observed: one-hot of the state (tabular), one-hot of its group, or the position on a scale
        with the ends at -1 and 1. A one-hot is all zeros at an end, whose value is 0 by definition.
    groups : int, 1 to n_states
        Groups of "aggregation", of ceil(n_states / groups) states each; the last may be smaller.

    Notes
    -----
    In Sutton & Barto 2018, example 6.2 is `RandomWalk(5, left_reward=0.0)`; figure 12.3 is `RandomWalk()`,
    with 19 states and ends of -1 and 1; example 9.1 is `RandomWalk(1000, 100, features="aggregation")`.

    The methods speak of a policy that goes right with probability `p_right` everywhere. The state is the position,
    0 ... n_states - 1; -1 and n_states are the ends.
    """

    n_states: int = 19
    jump: int = 1
    left_reward: float = -1.0
    right_reward: float = 1.0
    features: Literal["one-hot", "aggregation", "position"] = "one-hot"
    groups: int = 10
    reset, step, observe = reset, step, observe
    n_actions = 2

    def __post_init__(self) -> None:
        python_settings(self)
        for name in ("n_states", "jump", "groups"):
            positive(name, getattr(self, name))
        for name, value in (("left_reward", self.left_reward), ("right_reward", self.right_reward)):
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}; expected a finite number")
        one_of("features", self.features, FEATURES)
        filled = math.ceil(self.n_states / self._group_size)
        if self.features == "aggregation" and filled != self.groups:
            raise ValueError(
                f"groups is {self.groups}, but {self.n_states} states in groups of {self._group_size} fill only "
                f"{filled}; expected {filled}, or another number that leaves no group empty"
            )

    @property
    def start(self) -> int:
        """Index of the state where every walk begins; 500th of 1000, as in example 9.1."""
        return (self.n_states - 1) // 2

    @property
    def _group_size(self) -> int:
        return math.ceil(self.n_states / self.groups) if self.features == "aggregation" else 1

    def transition_matrix(self, p_right: float = 0.5) -> np.ndarray:
        """P[i, j] = Pr(next state j | state i), (n, n); what a row lacks to 1 is the chance to end."""
        p_right = unit_interval("p_right", p_right)
        index = np.arange(self.n_states)
        move = index[None, :] - index[:, None]
        right = (move >= 1) & (move <= self.jump)
        return (p_right * right + (1.0 - p_right) * right.T) / self.jump

    def expected_rewards(self, p_right: float = 0.5) -> np.ndarray:
        """r[i] = E(reward | state i), (n,): each end's reward times the fraction of moves that go past it."""
        p_right = unit_interval("p_right", p_right)
        index = np.arange(self.n_states)
        past_left = np.maximum(self.jump - index, 0) / self.jump
        past_right = past_left[::-1]
        return (1.0 - p_right) * past_left * self.left_reward + p_right * past_right * self.right_reward

    def true_values(self, gamma: float = 1.0, p_right: float = 0.5) -> np.ndarray:
        """Solve v = r + gamma P v, (n,). Sutton & Barto 2018, eq. 3.14."""
        transition = unit_interval("gamma", gamma) * self.transition_matrix(p_right)
        return np.linalg.solve(np.eye(self.n_states) - transition, self.expected_rewards(p_right))

    def state_distribution(self, p_right: float = 0.5) -> np.ndarray:
        """Fraction of steps spent in each state, (n,): mu = eta / sum(eta), where eta = h + P^T eta.

        h is 1 where walks start, eta the expected visits per episode. Sutton & Barto 2018, eqs. 9.2 and 9.3.
        """
        start = np.zeros(self.n_states)
        start[self.start] = 1.0
        visits = np.linalg.solve(np.eye(self.n_states) - self.transition_matrix(p_right).T, start)
        return visits / visits.sum()

    def features_matrix(self) -> np.ndarray:
        """Observation of every state, (n, d): row i is what `observe` writes in state i."""
        matrix = np.empty((self.n_states, self.n_observation))
        for i, row in enumerate(matrix):
            observe(self.params, np.array([float(i)]), row)
        return matrix

    def truth(self, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, true values and visits of all states."""
        return self.features_matrix(), self.true_values(gamma), self.state_distribution()

    def draw(self, state: np.ndarray) -> str:
        """The line with the walker as ``o``, for example ``|...o.|``."""
        line = ["|", *"." * self.n_states, "|"]
        line[int(state[0]) + 1] = "o"
        return "".join(line)

    @property
    def params(self) -> np.ndarray:
        """As the kernels read them."""
        moves = (self.n_states, self.jump, self.left_reward, self.right_reward)
        return np.array([*moves, self.features == "position", self._group_size], dtype=np.float64)

    @property
    def n_step_uniforms(self) -> int:
        """A longest move of 1 needs no number."""
        return int(self.jump > 1)

    @property
    def observation_low(self) -> tuple[float, ...]:
        """-1 for a position, else 0."""
        return tuple(-1.0 if self.features == "position" else 0.0 for _ in self.observation_high)

    @property
    def observation_high(self) -> tuple[float, ...]:
        """1."""
        return (1.0,) * {"one-hot": self.n_states, "aggregation": self.groups, "position": 1}[self.features]
