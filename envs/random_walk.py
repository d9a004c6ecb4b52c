"""The random walk of Sutton & Barto, and what can be known of it: dynamics, true values, visits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from .dynamics import AGGREGATION, ONE_HOT, POSITION, RANDOM_WALK, World, observe

__all__ = ["RandomWalk"]

_FEATURES = {"one-hot": ONE_HOT, "aggregation": AGGREGATION, "position": POSITION}


@dataclass(frozen=True)
class RandomWalk:
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

    The methods speak of a policy that goes right with probability `p_right` everywhere.
    """

    n_states: int = 19
    jump: int = 1
    left_reward: float = -1.0
    right_reward: float = 1.0
    features: Literal["one-hot", "aggregation", "position"] = "one-hot"
    groups: int = 10

    def __post_init__(self) -> None:
        for name in ("n_states", "jump", "groups"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: got {value!r}, wants an integer of at least 1")
        for name in ("left_reward", "right_reward"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name}: got {value!r}, wants a finite number")
        if self.features not in _FEATURES:
            raise ValueError(f"features: got {self.features!r}, wants one of {list(_FEATURES)}")
        filled = math.ceil(self.n_states / self._group_size)
        if self.features == "aggregation" and filled != self.groups:
            raise ValueError(
                f"groups: got {self.groups}, but {self.n_states} states in groups of {self._group_size} fill "
                f"only {filled}; wants {filled}, or another number that leaves no group empty"
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
        p_right = _fraction("p_right", p_right)
        index = np.arange(self.n_states)
        move = index[None, :] - index[:, None]
        right = (move >= 1) & (move <= self.jump)
        return (p_right * right + (1.0 - p_right) * right.T) / self.jump

    def expected_rewards(self, p_right: float = 0.5) -> np.ndarray:
        """r[i] = E(reward | state i), (n,): each end's reward times the fraction of moves that go past it."""
        p_right = _fraction("p_right", p_right)
        index = np.arange(self.n_states)
        past_left = np.maximum(self.jump - index, 0) / self.jump
        past_right = past_left[::-1]
        return (1.0 - p_right) * past_left * self.left_reward + p_right * past_right * self.right_reward

    def true_values(self, gamma: float = 1.0, p_right: float = 0.5) -> np.ndarray:
        """Solve v = r + gamma P v, (n,). Sutton & Barto 2018, eq. 3.14."""
        transition = _fraction("gamma", gamma) * self.transition_matrix(p_right)
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
        world = self.world()
        matrix = np.empty((self.n_states, world.n_observation))
        for i in range(self.n_states):
            observe(world.code, world.params, np.array([float(i)]), matrix[i])
        return matrix

    def world(self) -> World:
        """The walk as the compiled functions want it."""
        moves = (self.n_states, self.jump, self.left_reward, self.right_reward)
        n_observation = {"one-hot": self.n_states, "aggregation": self.groups, "position": 1}[self.features]
        return World(
            code=RANDOM_WALK,
            name="random walk",
            params=np.array([*moves, _FEATURES[self.features], self._group_size]),
            n_state=1,
            n_observation=n_observation,
            n_actions=2,
            n_reset_uniforms=0,
            n_step_uniforms=int(self.jump > 1),
            max_episode_steps=0,
            observation_low=-1.0 if self.features == "position" else 0.0,
            observation_high=1.0,
        )


def _fraction(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: got {value!r}, wants a number from 0 to 1")
    return value
