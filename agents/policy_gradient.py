"""The family of PPO: a policy and a value function that learn from each rollout in minibatches, in one compiled call.

An agent of this family is a surrogate, a kernel, and what it takes as advantages and as targets of the values:

rule(ratio, advantage, settings) -> (weight, clipped)

ratio is pi(a|s) / mu(a|s) of the policy now and of the one that acted. The policy ascends weight grad log pi + entropy
grad H, in the mean over the minibatch, and the values descend value_weight / 2 (v - target)^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np

from valueapprox import Adam, Network, Optimizer
from valueapprox.agents.acting import Rollout
from valueapprox.agents.batched import (
    BatchAgent,
    BatchLearner,
    move,
    shuffle,
)
from valueapprox.agents.heads import Head, policy_head
from valueapprox.checks import positive, unit_interval
from valueapprox.compiling import kernel, placeholder, specialise, template
from valueapprox.nn.backprop import LAYERS, SIZES, ZERO, D, X, first_unit
from valueapprox.nn.batch import backward_batch, forward_batch, load_batch
from valueapprox.nn.batch import scratch as batch_scratch
from valueapprox.optim.base import norm, shrink
from valueapprox.seeding import sequence
from valueapprox.td.targets import gae

__all__ = ["PolicyGradient", "PolicyGradientSettings"]

N_MINIBATCHES, SUM_KL, SUM_CLIPPED, SUM_ENTROPY, SUM_POLICY_LOSS, SUM_VALUE_LOSS, N_SUMS = range(7)

rule = placeholder("rule")  # of the agent
log_pi, gradient_of = placeholder("log_pi"), placeholder("gradient_of")  # of its head


class Batch(NamedTuple):
    """A rollout of N transitions, as it is learned from."""

    states: np.ndarray  # (N, d) or more, normalised
    order: np.ndarray  # (N,)  in which it is gone through; shuffled in each epoch
    actions: np.ndarray  # (N, k)
    log_mu: np.ndarray  # (N,)  of the policy that acted
    advantages: np.ndarray  # (N,)
    targets: np.ndarray  # (N,)  of the values
    v_before: np.ndarray  # (N,)  values when the rollout was full


class Loss(NamedTuple):
    """What the kernels read of the settings."""

    clip: float
    value_clip: float  # 0 for none
    entropy: float
    value_weight: float
    max_grad_norm: float  # 0 for none
    kl_stop: float  # 0 for none
    normalise: bool
    epochs: int
    minibatch: int
    shared: bool
    spreads: int  # how many the policy has


@kernel
def mean_and_spread(values, order, first, n):
    """Mean, and standard deviation with n - 1, of some values; (0, 1) where there is only one."""
    if n < 2:
        return 0.0, 1.0
    mean = 0.0
    for r in range(first, first + n):
        mean += np.float64(values[order[r]])
    mean /= n
    squares = 0.0
    for r in range(first, first + n):
        distance = np.float64(values[order[r]]) - mean
        squares += distance * distance
    return mean, math.sqrt(squares / (n - 1)) + 1e-8


@kernel(inline=True)
def value_slope(v, target, v_before, clip):
    """(dL/dv, L) of L = 1/2 (v - target)^2, or of the larger of that and of v kept within clip of what it was."""
    error = v - target
    loss, slope = 0.5 * error * error, error
    if clip > 0.0:
        moved = v - v_before
        kept = v_before + min(max(moved, -clip), clip) - target
        if 0.5 * kept * kept > loss:
            loss, slope = 0.5 * kept * kept, (kept if abs(moved) < clip else 0.0)
    return slope, loss


@template
def log_pi_rows(outputs, head, spread, actions, found):
    """log pi(a|s) (N,) of actions (N, k), from the policy's outputs (N, m); these are lost."""
    for r in range(len(actions)):
        found[r], _ = log_pi(outputs[r], outputs[r], 0, head, spread, actions[r])


@template(blas=True)
def improve(actor, critic, spread, loss, head, batch, rates, key, counts, sums):
    """Epochs of minibatches over a rollout. Each minibatch: forward, the gradient at the outputs, backward, the norm of
    the gradient of all networks together brought down to max_grad_norm, the optimizer's step. Ends where the
    minibatch's mean of ratio - 1 - log ratio, an estimate of the divergence from the policy that acted (Schulman 2020),
    exceeds kl_stop. sums (6,): see N_MINIBATCHES and those after it.
    """
    dtype = actor.w.dtype.type
    order, n_all, capacity = batch.order, len(batch.order), loss.minibatch
    at, k = np.int64(first_unit(actor.spec, actor.spec[LAYERS])) * capacity, actor.spec[SIZES + actor.spec[LAYERS]]
    at_v, k_v = (
        np.int64(first_unit(critic.spec, critic.spec[LAYERS])) * capacity,
        critic.spec[SIZES + critic.spec[LAYERS]],
    )
    x, d, v, d_v = actor.scratch[X], actor.scratch[D], critic.scratch[X], critic.scratch[D]
    for _ in range(loss.epochs):
        if n_all > capacity:
            shuffle(order, key, counts)
        for first in range(0, n_all, capacity):
            n = min(capacity, n_all - first)
            load_batch(actor.scratch, batch.states, order, first, n)
            forward_batch(actor.w, actor.spec, actor.scratch, capacity, n, False, rates, ZERO)
            centre, size = 0.0, 1.0
            if loss.normalise:
                centre, size = mean_and_spread(batch.advantages, order, first, n)
            for j in range(spread.w.size):
                spread.gradient[j] = dtype(0)
            share, kl = 1.0 / n, 0.0
            for r in range(n):
                t = order[first + r]
                row = at + r * k
                log_p, entropy = log_pi(x, d, row, head, spread.w, batch.actions[t])
                log_ratio = log_p - np.float64(batch.log_mu[t])
                ratio = math.exp(log_ratio)
                advantage = (np.float64(batch.advantages[t]) - centre) / size
                weight, clipped = rule(ratio, advantage, loss)
                gradient_of(
                    x, d, row, head, spread.w, spread.gradient, batch.actions[t], weight * share, loss.entropy * share
                )
                kl += (ratio - 1.0 - log_ratio) * share
                sums[SUM_CLIPPED] += share if clipped else 0.0
                sums[SUM_ENTROPY] += entropy * share
                sums[SUM_POLICY_LOSS] -= ratio * advantage * share
            sums[SUM_KL] += kl
            sums[N_MINIBATCHES] += 1.0
            if loss.kl_stop > 0.0 and kl > loss.kl_stop:
                return
            if not loss.shared:  # the critic takes the actor's place in memory
                backward_batch(
                    actor.w, actor.spec, actor.scratch, capacity, n, False, rates, actor.gradient, True, False
                )
                load_batch(critic.scratch, batch.states, order, first, n)
                forward_batch(critic.w, critic.spec, critic.scratch, capacity, n, False, rates, ZERO)
            for r in range(n):
                t = order[first + r]
                cell = at_v + r * k_v + k_v - 1
                slope, value_loss = value_slope(
                    np.float64(v[cell]), np.float64(batch.targets[t]), np.float64(batch.v_before[t]), loss.value_clip
                )
                d_v[cell] = -loss.value_weight * share * slope
                sums[SUM_VALUE_LOSS] += value_loss * share
            backward_batch(
                critic.w, critic.spec, critic.scratch, capacity, n, False, rates, critic.gradient, True, False
            )
            total = norm(critic.gradient, ZERO, np.uint64(critic.w.size)) ** 2
            if not loss.shared:
                total += norm(actor.gradient, ZERO, np.uint64(actor.w.size)) ** 2
            if loss.spreads > 0:
                total += norm(spread.gradient, ZERO, np.uint64(spread.w.size)) ** 2
            clip = shrink(math.sqrt(total), loss.max_grad_norm)
            move(actor, clip)
            if not loss.shared:
                move(critic, clip)
            if loss.spreads > 0:
                move(spread, clip)


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSettings:
    """What agents of this family share."""

    rollout: int = 256
    """Steps of a rollout in each environment."""
    lam: float = 0.95
    """Lambda of the advantages (GAE), in [0, 1]: 1 is Monte Carlo, 0 is one-step TD."""
    entropy: float = 0.0
    """Weight of the policy's entropy, 0 or more."""
    value_weight: float = 0.5
    """Weight of the values' loss, 1/2 (v - target)^2."""
    max_grad_norm: float = 0.5
    """Maximum norm of the gradient, of all networks together; 0 for none."""
    shared: bool = False
    """Share all layers but the last between policy and values."""
    first_spread: float = 1.0
    """Initial standard deviation of continuous actions; the unit is half the distance between their bounds."""

    def __post_init__(self) -> None:
        positive("rollout", self.rollout)
        unit_interval("lam", self.lam)
        for name in ("entropy", "value_weight", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number that is not negative")
        if not 0 < self.first_spread < math.inf:
            raise ValueError(f"first_spread is {self.first_spread}; expected a positive number")


class PolicyGradient(BatchAgent):
    """The base of A2C, PPO and IMPALA. Networks: actor and critic, or one for both; and the spread of a Gaussian."""

    Settings = PolicyGradientSettings
    default_optimizer: ClassVar[Optimizer] = Adam(3e-4, epsilon=1e-5)
    noted = (
        *("actor/entropy", "actor/kl", "actor/clipped", "actor/loss", "critic/loss", "critic/explained_variance"),
        "actor/ratio",
    )
    charts: ClassVar[Mapping[str, list[str]]] = {
        "entropy of the policy": ["actor/entropy"],
        "divergence from the policy that acted": ["actor/kl"],
        "explained variance of the values' targets": ["critic/explained_variance"],
    }

    def _head(self, space: gym.Space[Any]) -> Head:
        return policy_head(space)

    def _make_networks(self) -> None:
        hidden, activation, layer_norm, init = self._shape
        own, n_all = self.own, self.n_envs * self.own.rollout
        self.minibatch = min(self._minibatch or n_all, n_all)

        def learner(name: str, outputs: int, index: int, gain: float) -> BatchLearner:
            sizes = (self.encode.size, *hidden, outputs)
            net = Network(sizes, activation, layer_norm=layer_norm, dtype=self.dtype)
            seed = sequence(self.seed, "weights", index)
            made = BatchLearner(net, self.optimizer, seed, init, gain, self.minibatch, scratch)
            return self.learners.setdefault(name, made)

        k = self.head.n_outputs
        widest = Network((self.encode.size, *hidden, k + 1), dtype=self.dtype)
        scratch = batch_scratch(widest.starts[-1], self.minibatch, self.dtype)  # for both: the smaller, the faster
        if own.shared:
            self.actor_learner = self.critic_learner = learner("network", k + 1, 0, 0.01)
            if init == "orthogonal":  # of the values' column, as a critic of its own has it
                self.actor_learner.net.unpack(self.actor_learner.w)[-1][0][:, k] *= 100.0
        else:
            self.critic_learner = learner("critic", 1, 0, 1.0)
            self.actor_learner = learner("actor", k, 1, 0.01)
        net = Network((1, max(1, self.head.n_spreads)), bias=False, dtype=self.dtype)
        self.spread = BatchLearner(net, self.optimizer, sequence(self.seed, "weights", 2), "zeros", 1.0, 1)
        self.spread.w[:] = math.log(own.first_spread)
        if self.head.n_spreads:
            self.learners["spread"] = self.spread
        loss = self._loss()
        kernels = {**self.head.kernels, **self.optimizer.kernels(), "rule": type(self).rule}
        self._loss_settings, self._improve = loss, specialise(improve, **kernels)
        self._log_pi = specialise(log_pi_rows, **kernels)

    @property
    def _minibatch(self) -> int:
        """Transitions of a minibatch; 0 for all of them."""
        return 0

    def _loss(self) -> Loss:
        own, spreads = self.own, self.head.n_spreads
        return Loss(
            0.0,
            0.0,
            own.entropy,
            own.value_weight,
            own.max_grad_norm,
            0.0,
            False,
            1,
            self.minibatch,
            own.shared,
            spreads,
        )

    @property
    def actor_network(self) -> Network:
        """The actor."""
        return self.actor_learner.net

    def _actor_weights(self) -> np.ndarray:
        return self.actor_learner.w

    def _noise(self) -> np.ndarray:
        return self.spread.w if self.head.n_spreads else np.zeros(0)

    def values_of(self, states: np.ndarray) -> np.ndarray:
        """v (N, 1)."""
        return self.critic_learner.outputs(states)[:, -1:]

    def log_pi_now(self, rollout: Rollout, states: np.ndarray) -> np.ndarray:
        """log pi(a|s) (T, n) of the policy as it is now, at normalised states (T n or more, d)."""
        n_steps, n, k = rollout.actions.shape
        found = np.empty(n_steps * n)
        outputs = self.actor_learner.outputs(states[: n_steps * n])
        self._log_pi(outputs, self.head.layout, self.spread.w, rollout.actions.reshape(-1, k), found)
        return found.reshape(n_steps, n)

    def targets(
        self, rollout: Rollout, states: np.ndarray, v_tm1: np.ndarray, v_t: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and the targets of values, each (T, n); see `valueapprox.td.targets`."""
        rewards, discounts = self.scaled(rollout)
        advantages = gae(rewards, discounts, v_tm1, v_t, rollout.terminated | rollout.truncated, self.own.lam)
        return advantages, advantages + v_tm1

    def _learn(self, rollout: Rollout, policy: np.ndarray) -> None:
        n_steps, n = rollout.rewards.shape
        n_all = n_steps * n
        states = self.states_of(rollout.observations, policy)
        # In one piece, or the kernel would be compiled once more for columns.
        values = np.ascontiguousarray(self.values_of(states)).reshape(n_steps + 1, n)
        v_t = values[1:].copy()
        cut = rollout.truncated & ~rollout.terminated
        if cut.any():
            v_t[cut] = self.values_of(self.states_of(rollout.next_observations[cut], policy))[:, 0]
        advantages, targets = self.targets(rollout, states, values[:-1], v_t)
        sums, none = np.zeros(N_SUMS), np.zeros(self.actor_network.n_layers)
        batch = Batch(
            *(states, np.flatnonzero(rollout.valid), rollout.actions.reshape(n_all, -1), rollout.log_probs.reshape(-1)),
            *(advantages.reshape(-1), targets.reshape(-1), values[:-1].reshape(-1)),
        )
        n_before = int(self.critic_learner.state.n_updates[0])
        self._improve(
            *(self.actor_learner.part, self.critic_learner.part, self.spread.part, self._loss_settings),
            *(self.head.layout, batch, none, self._shuffle_key, self.counts, sums),
        )
        share = 1.0 / max(1.0, sums[N_MINIBATCHES])
        n_updates = int(self.critic_learner.state.n_updates[0]) - n_before
        if n_updates:  # values learn nothing in the minibatch with which kl_stop ends the epochs
            self.note({"critic/loss": sums[SUM_VALUE_LOSS] / n_updates})
        targets, errors = targets[rollout.valid], (targets - values[:-1])[rollout.valid]
        variance = float(targets.var())
        self.note(
            {
                "actor/entropy": sums[SUM_ENTROPY] * share,
                "actor/kl": sums[SUM_KL] * share,
                "actor/clipped": sums[SUM_CLIPPED] * share,
                "actor/loss": sums[SUM_POLICY_LOSS] * share,
                "critic/explained_variance": 1.0 - float(errors.var()) / variance if variance > 0 else 0.0,
            }
        )
