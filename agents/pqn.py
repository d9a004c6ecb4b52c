"""PQN: Q-learning from many environments, with neither replay nor target network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from valueapprox.agents.acting import Rollout
from valueapprox.agents.batch_values import BatchValues, ValueSettings, regress
from valueapprox.agents.batched import register, shuffle
from valueapprox.checks import positive, unit_interval
from valueapprox.compiling import specialise, template
from valueapprox.optim import RAdam
from valueapprox.td.targets import lambda_returns


@template(blas=True)
def epochs_of_regression(q, settings, epochs, states, order, actions, targets, rates, key, counts, sums):
    """Minibatches over a rollout of N transitions, in another order in each epoch."""
    for _ in range(epochs):
        shuffle(order, key, counts)
        for first in range(0, len(order), settings.minibatch):
            n = min(settings.minibatch, len(order) - first)
            regress(q, settings, states, order, first, n, actions, targets, rates, sums)


@dataclass(frozen=True, kw_only=True)
class PQNSettings(ValueSettings):
    """Of PQN."""

    rollout: int = 128
    """Steps of a rollout in each environment."""
    lam: float = 0.65
    """Lambda of the returns, in [0, 1]."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Minibatches per rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unit_interval("lam", self.lam)
        positive("epochs", self.epochs)
        positive("minibatches", self.minibatches)


@register("pqn")
class PQN(BatchValues):
    """Parallelised Q-network: Gallici et al. 2025, arXiv 2407.04811, algorithm 1, by Q(lambda) of Peng & Williams 1996.

    From each rollout, epochs of minibatches: descend 1/2 (q(s, a) - G)^2, with the values as the rollout found them in

        G_t = r_{t+1} + gamma ((1 - lam) max_a q(s_{t+1}, a) + lam G_{t+1})

    LayerNorm takes the place of a target network.
    """

    rule = epochs_of_regression
    Settings = PQNSettings
    default_optimizer = RAdam(1e-3)
    defaults: ClassVar[Mapping[str, Any]] = {
        "envs": 4,
        "hidden": (120, 84),
        "activation": "relu",
        "layer_norm": True,
        "normalise_observations": False,
        "scale_rewards": False,
    }

    @property
    def _minibatch(self) -> int:
        return -(-self.n_envs * self.own.rollout // self.own.minibatches)

    def _make_networks(self) -> None:
        super()._make_networks()
        self._improve = specialise(epochs_of_regression, **self.optimizer.kernels())

    def _learn(self, rollout: Rollout, policy: np.ndarray) -> None:
        n_steps, n = rollout.rewards.shape
        n_all = n_steps * n
        states = self.states_of(rollout.observations, policy)
        v_t = self.values_of(states).max(axis=1).reshape(n_steps + 1, n)[1:]
        cut = rollout.truncated & ~rollout.terminated
        if cut.any():
            v_t[cut] = self.values_of(self.states_of(rollout.next_observations[cut], policy)).max(axis=1)
        rewards, discounts = self.scaled(rollout)
        ended = rollout.terminated | rollout.truncated
        targets = lambda_returns(rewards, discounts, v_t, ended, self.own.lam).reshape(-1)
        sums = np.zeros(3)
        self._improve(
            *(self.q.part, self.regression, self.own.epochs, states, np.flatnonzero(rollout.valid)),
            *(rollout.actions.reshape(n_all, -1), targets, self._none, self._shuffle_key, self.counts, sums),
        )
        self.note({"value/loss": sums[1] / sums[0], "value/mean": sums[2] / sums[0]})
