"""The family of DQN: action values that learn from transitions drawn at random from those that are remembered.

An agent of this family says what the value of the next state is, a kernel:

rule(values, online, n, target) -> v

values and online (n,) are q(s', a) of the network that targets come from and of the one that learns; the latter only
where `needs_online`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from valueapprox.agents.acting import CLIP, N_NOISE, N_WEIGHTS, Rollout, normalised
from valueapprox.agents.batch_values import BatchValues, ValueSettings, regress
from valueapprox.agents.choosing import draw
from valueapprox.checks import positive
from valueapprox.compiling import placeholder, specialise, template
from valueapprox.nn.backprop import LAYERS, SIZES, ZERO, X, first_unit
from valueapprox.nn.batch import forward_batch, load_batch

__all__ = ["ReplayAgent", "ReplaySettings"]

rule = placeholder("rule")


class Memory(NamedTuple):
    """The transitions that are remembered, as they came; the oldest give way."""

    observations: np.ndarray  # (capacity, d)
    actions: np.ndarray  # (capacity, 1)
    rewards: np.ndarray  # (capacity,)
    next_observations: np.ndarray  # (capacity, d)
    terminated: np.ndarray  # (capacity,)


class Drawn(NamedTuple):
    """A minibatch."""

    states: np.ndarray  # (m, d), normalised
    next_states: np.ndarray  # (m, d)
    actions: np.ndarray  # (m, 1)
    rewards: np.ndarray  # (m,)
    discounts: np.ndarray  # (m,)  0 where the next state is terminal
    targets: np.ndarray  # (m,)
    values: np.ndarray  # (m, n_actions)  of next states
    online: np.ndarray  # (m, n_actions)
    order: np.ndarray  # (m,)  0, 1, 2, ...


class Target(NamedTuple):
    """How targets are made."""

    gamma: float
    temperature: float
    scale: float  # what rewards are divided by
    bound: float  # of scaled rewards
    n_updates: int
    needs_online: bool


@template(blas=True)
def outputs_at(w, spec, scratch, states, order, rates, found):
    """The outputs (m, k) of weights w at states (m, d)."""
    m, k = len(states), spec[SIZES + spec[LAYERS]]
    load_batch(scratch, states, order, 0, m)
    forward_batch(w, spec, scratch, m, m, False, rates, ZERO)
    at = np.int64(first_unit(spec, spec[LAYERS])) * m
    for r in range(m):
        for j in range(k):
            found[r, j] = scratch[X, at + r * k + j]


@template(blas=True)
def learn_from_memory(q, w_target, memory, size, policy, sizes, drawn, settings, rates, key, counts, sums):
    """n_updates minibatches, each drawn uniformly from `size` transitions, with repetition.

    target = r + gamma rule(q(s', .)), and r where s' is terminal. policy and sizes say how observations are normalised,
    see `act_row`. settings: a `Target` and a `Regression`.
    """
    target, regression = settings
    m, d = len(drawn.targets), memory.observations.shape[1]
    shift = sizes[N_WEIGHTS] + sizes[N_NOISE]
    mean, inverse, bound = policy[shift : shift + d], policy[shift + d : shift + d + d], policy[shift + d + d]
    for _ in range(target.n_updates):
        for r in range(m):
            t = int(draw(key, counts) * size)
            for i in range(d):
                drawn.states[r, i] = normalised(memory.observations[t, i], mean[i], inverse[i], bound)
                drawn.next_states[r, i] = normalised(memory.next_observations[t, i], mean[i], inverse[i], bound)
            drawn.actions[r, 0] = memory.actions[t, 0]
            drawn.rewards[r] = min(max(memory.rewards[t] / target.scale, -target.bound), target.bound)
            drawn.discounts[r] = 0.0 if memory.terminated[t] else target.gamma
        outputs_at(w_target, q.spec, q.scratch, drawn.next_states, drawn.order, rates, drawn.values)
        if target.needs_online:
            outputs_at(q.w, q.spec, q.scratch, drawn.next_states, drawn.order, rates, drawn.online)
        for r in range(m):
            v_next = rule(drawn.values[r], drawn.online[r], drawn.values.shape[1], target)
            drawn.targets[r] = drawn.rewards[r] + drawn.discounts[r] * v_next
        regress(q, regression, drawn.states, drawn.order, 0, m, drawn.actions, drawn.targets, rates, sums)


@dataclass(frozen=True, kw_only=True)
class ReplaySettings(ValueSettings):
    """What agents of this family share."""

    capacity: int = 50_000
    """Size of the replay memory in transitions; the oldest are overwritten."""
    minibatch: int = 32
    """Transitions of a minibatch."""
    updates: int = 1
    """Minibatches after each rollout."""
    learning_starts: int = 1000
    """Transitions before the first minibatch."""
    target_every: int = 500
    """Transitions between updates of the target network; 0 copies the network before each rollout's minibatches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("capacity", "minibatch", "updates"):
            positive(name, getattr(self, name))
        for name in ("learning_starts", "target_every"):
            positive(name, getattr(self, name), at_least=0)


class ReplayAgent(BatchValues):
    """The base of DQN and of Expected Sarsa with replay."""

    Settings = ReplaySettings
    bears_lag = True
    needs_online: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {
        "envs": 1,
        "schedule": "constant",
        "activation": "relu",
        "normalise_observations": False,
        "scale_rewards": False,
    }

    @staticmethod
    def small(settings: Any) -> dict[str, Any]:
        """Other settings for a trial that loads the same kernels, those of learning too, and takes no time."""
        return {"rollout": settings.minibatch, "envs": 1, "learning_starts": 0, "capacity": settings.minibatch}

    @property
    def _minibatch(self) -> int:
        return int(self.own.minibatch)

    def _make_networks(self) -> None:
        super()._make_networks()
        own, d, m = self.own, self.encode.size, self._minibatch
        self.w_target = self.q.w.copy()
        self.target_age = np.zeros(1, np.int64)  # transitions since it was copied
        self.memory = Memory(
            *(np.zeros((own.capacity, d), self.dtype), np.zeros((own.capacity, 1), np.int16)),
            *(np.zeros(own.capacity), np.zeros((own.capacity, d), self.dtype), np.zeros(own.capacity, np.bool_)),
        )
        k, kind = self.head.n_outputs, self.dtype
        self._drawn = Drawn(
            *(np.zeros((m, d), kind), np.zeros((m, d), kind), np.zeros((m, 1), kind), np.zeros(m), np.zeros(m)),
            *(np.zeros(m), np.zeros((m, k), kind), np.zeros((m, k), kind), np.arange(m)),
        )
        kernels = {**self.optimizer.kernels(), "rule": type(self).rule}
        self._improve = specialise(learn_from_memory, **kernels)

    def _remember(self, rollout: Rollout) -> int:
        """Take the rollout's transitions into the memory, in the order of time; returns how many they are."""
        capacity, first = self.own.capacity, int(self.counts[1])
        parts = (
            *(rollout.observations[:-1], rollout.actions, rollout.rewards, rollout.next_observations),
            rollout.terminated,
        )
        n_new = int(np.count_nonzero(rollout.valid))
        if n_new == 1 == rollout.valid.size:  # an agent that learns at each step
            for to, part in zip(self.memory, parts, strict=True):
                to[first % capacity] = part[0, 0]
        else:
            at = (first + np.arange(n_new)[-capacity:]) % capacity
            for to, part in zip(self.memory, parts, strict=True):
                to[at] = part[rollout.valid][-capacity:]
        return n_new

    def _learn(self, rollout: Rollout, policy: np.ndarray) -> None:
        own, n_new = self.own, self._remember(rollout)
        seen = int(self.counts[1]) + n_new
        self.target_age += n_new
        if seen < max(own.learning_starts, own.minibatch):
            return
        if self.target_age[0] >= own.target_every:
            self.w_target[:] = self.q.w
            self.target_age[0] = 0
        target = Target(
            *(self.gamma, own.temperature, self.reward_scale, CLIP if self.scales else math.inf),
            *(own.updates, self.needs_online),
        )
        sums = np.zeros(3)
        self._improve(
            *(self.q.part, self.w_target, self.memory, min(seen, own.capacity), policy, self.sizes, self._drawn),
            *((target, self.regression), self._none, self._shuffle_key, self.counts, sums),
        )
        self.note({"value/loss": sums[1] / sums[0], "value/mean": sums[2] / sums[0]})

    def _own_state(self) -> dict[str, np.ndarray]:
        memory = {f"memory/{name}": array for name, array in self.memory._asdict().items()}
        return {"w_target": self.w_target, "target_age": self.target_age, **memory}
