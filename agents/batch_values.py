"""The family of DQN and PQN: action values q(s, a) that learn from minibatches, by regression on targets.

Networks: value, and where targets come from a copy of it that stands still, that copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np

from valueapprox import Network
from valueapprox.agents.batched import BatchAgent, BatchLearner, move
from valueapprox.agents.choosing import best_action, draw, softmax_action
from valueapprox.agents.heads import Head
from valueapprox.agents.spaces import MOST_INDEXED, by_index
from valueapprox.checks import positive, unit_interval
from valueapprox.compiling import kernel, template
from valueapprox.nn.backprop import LAYERS, SIZES, ZERO, D, X, first_unit
from valueapprox.nn.batch import backward_batch, forward_batch, load_batch
from valueapprox.optim.base import norm, shrink
from valueapprox.seeding import sequence

__all__ = ["BatchValues", "Regression", "ValueSettings", "regress", "values_head"]

EPSILON, TEMPERATURE = range(2)  # what the policy depends on beside the values


@kernel
def draw_by_value(x, at, head, noise, key, counts, greedy, action):
    """Epsilon-greedily, or by softmax of q / temperature; returns 0, as nobody asks for its log-probability."""
    n = int(head[0])
    if greedy:
        action[0] = best_action(x, at, n, key, counts)
    elif noise[TEMPERATURE] > 0.0:
        action[0] = softmax_action(x, at, n, np.float64(noise[TEMPERATURE]), draw(key, counts))
    elif draw(key, counts) < noise[EPSILON]:
        action[0] = int(draw(key, counts) * n)
    else:
        action[0] = best_action(x, at, n, key, counts)
    return 0.0


def values_head(space: gym.Space[Any], who: str) -> Head:
    """A value for each action, of a space that has few of them."""
    actions = by_index(space)
    if actions is None:
        raise TypeError(
            f"action_space is {space}; expected Discrete, MultiDiscrete or MultiBinary of at most {MOST_INDEXED} "
            f"actions in all, since {who} learns a value for each. PPO takes any"
        )
    # NumPy's numbers, as the space itself samples them: Gymnasium's checks of Python's take longer.
    decode: Any = actions.decode
    n, none = actions.n_outputs, np.zeros(0)
    return Head(
        *(n, 1, 0, np.array([float(n)]), none, lambda values: decode(np.int64(values[0]), none)),
        {"draw_row": draw_by_value},
    )


class Regression(NamedTuple):
    """What the kernels read of the settings."""

    minibatch: int
    max_grad_norm: float  # 0 for none
    max_error: float  # 0 for none


@template(blas=True)
def regress(q, settings, states, order, first, n, actions, targets, rates, sums):
    """One step of descent along the mean of 1/2 (q(s, a) - target)^2 over order[first : first + n].

    states (N, d), actions (N, k) and targets (N,). Where an error is larger than max_error, its gradient is that of
    max_error: the loss of Huber 1964. sums (3,): minibatches, losses, and values.
    """
    capacity, share = settings.minibatch, 1.0 / n
    k = q.spec[SIZES + q.spec[LAYERS]]
    at = np.int64(first_unit(q.spec, q.spec[LAYERS])) * capacity
    x, d = q.scratch[X], q.scratch[D]
    load_batch(q.scratch, states, order, first, n)
    forward_batch(q.w, q.spec, q.scratch, capacity, n, False, rates, ZERO)
    for r in range(n):
        t = order[first + r]
        row = at + r * k
        for j in range(k):
            d[row + j] = d.dtype.type(0)
        taken = row + int(actions[t, 0])
        error = np.float64(targets[t]) - np.float64(x[taken])
        sums[1] += 0.5 * error * error * share
        sums[2] += np.float64(x[taken]) * share
        if settings.max_error > 0.0:
            error = min(max(error, -settings.max_error), settings.max_error)
        d[taken] = error * share
    backward_batch(q.w, q.spec, q.scratch, capacity, n, False, rates, q.gradient, True, False)
    size = norm(q.gradient, ZERO, np.uint64(q.w.size))
    move(q, shrink(size, settings.max_grad_norm))
    sums[0] += 1.0


@dataclass(frozen=True, kw_only=True)
class ValueSettings:
    """What agents of this family share."""

    rollout: int = 1
    """Steps of a rollout in each environment."""
    epsilon: tuple[float, float, float] = (1.0, 0.05, 0.5)
    """Random actions at first, at last, and the share of the schedule's steps in between (a straight line)."""
    temperature: float = 0.0
    """Choose by softmax of q / temperature; 0 for epsilon-greedily."""
    max_grad_norm: float = 10.0
    """Maximum norm of the gradient; 0 for none."""
    max_error: float = 0.0
    """Clip errors to this size in the gradient (Huber loss); 0 for no clipping."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", tuple(float(e) for e in self.epsilon))
        if len(self.epsilon) != 3:
            raise ValueError(f"epsilon is {self.epsilon}; expected a first value, a last value and a share of the run")
        for number in self.epsilon:
            unit_interval("epsilon", number)
        positive("rollout", self.rollout)
        for name in ("temperature", "max_grad_norm", "max_error"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number that is not negative")


class BatchValues(BatchAgent):
    """The base of PQN and of the agents with replay."""

    Settings = ValueSettings
    learns_policy = False
    noted = ("value/loss", "value/mean")
    charts: ClassVar[Mapping[str, list[str]]] = {"loss": ["value/loss"], "exploration": ["agent/epsilon"]}

    def _head(self, space: gym.Space[Any]) -> Head:
        return values_head(space, type(self).__name__)

    def _make_networks(self) -> None:
        hidden, activation, layer_norm, init = self._shape
        own = self.own
        sizes = (self.encode.size, *hidden, self.head.n_outputs)
        net = Network(sizes, activation, layer_norm=layer_norm, dtype=self.dtype)
        self.regression = Regression(self._minibatch, own.max_grad_norm, own.max_error)
        seed = sequence(self.seed, "weights", 0)
        self.q = self.learners["value"] = BatchLearner(net, self.optimizer, seed, init, 1.0, self._minibatch)
        self._none = np.zeros(net.n_layers)

    @property
    def _minibatch(self) -> int:
        raise NotImplementedError

    @property
    def actor_network(self) -> Network:
        """The network of values."""
        return self.q.net

    def _actor_weights(self) -> np.ndarray:
        return self.q.w

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        first, last, share = self.own.epsilon
        steps = share * self.horizon
        return first + (last - first) * (min(1.0, self.counts[1] / steps) if steps > 0 else 1.0)

    def _noise(self) -> np.ndarray:
        return np.array([self.epsilon, self.own.temperature])

    def values_of(self, states: np.ndarray) -> np.ndarray:
        """q (N, n_actions)."""
        return self.q.outputs(states)

    def diagnostics(self) -> dict[str, float]:
        """Averages since the last call, by the log's tags; epsilon as it is."""
        values = super().diagnostics()
        return values if self.own.temperature > 0 else {**values, "agent/epsilon": self.epsilon}
