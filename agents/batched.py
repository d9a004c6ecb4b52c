"""Agents that learn from many environments at once: rollouts of T steps in n environments feed minibatches to networks.

Acting goes row by row (see `agents.acting`), and learning by matrix products (see `valueapprox.nn.batch`). While a
rollout is collected nothing is learned and normalisers stand still.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np

from valueapprox import DivergenceError, Network, Optimizer
from valueapprox.agents.acting import CLIP, LARGEST, Acting, Rollout, merge_observations, merge_rewards, normalise_rows
from valueapprox.agents.choosing import draw
from valueapprox.agents.heads import Head
from valueapprox.agents.spaces import encoder
from valueapprox.agents.stored import Stored
from valueapprox.checks import divergence_advice, one_of, positive, unit_interval
from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn import batch
from valueapprox.nn.backprop import LAYERS, ZERO, layer_size
from valueapprox.optim.base import ALPHA, OPTIMIZERS, norm
from valueapprox.registry import Registry
from valueapprox.seeding import sequence

if TYPE_CHECKING:
    from valueapprox.export.graph import Graph

__all__ = ["BATCH_AGENTS", "BatchActor", "BatchAgent", "BatchLearner", "Part", "register"]

EPSILON = 1e-8  # added to a variance
NORMS_EVERY = 16  # minibatches between two whose norms are measured
N_NORMED, GRADIENT, CLIPPED, UPDATE = range(4)  # rows of stats: how many, and sums of norms per layer


class Part(NamedTuple):
    """A network as the kernels of learning see it."""

    w: np.ndarray
    gradient: np.ndarray
    moments: np.ndarray
    scalars: np.ndarray
    n_updates: np.ndarray
    hyper: np.ndarray
    spec: np.ndarray
    scratch: np.ndarray  # for a minibatch
    before: np.ndarray
    stats: np.ndarray


# --- networks -------------------------------------------------------------------------------------------------------


class BatchLearner:
    """One network with all that learning it from minibatches needs.

    Parameters
    ----------
    gain
        Of the last layer's first weights: with `init="orthogonal"` hidden layers get sqrt 2 and the last one this.
    capacity
        Examples in memory at once.
    scratch
        For as many, if it has one with others.
    """

    def __init__(
        self,
        net: Network,
        optimizer: Optimizer,
        seed: np.random.SeedSequence,
        init: str,
        gain: float,
        capacity: int,
        scratch: np.ndarray | None = None,
    ) -> None:
        self.net, self.optimizer = net, optimizer
        self.w = net.init(seed, init)
        if init == "orthogonal":
            for layer, (weights, _) in enumerate(net.unpack(self.w), start=1):
                weights *= gain if layer == net.n_layers else math.sqrt(2.0)
        self.state = optimizer.init(self.w)
        self.stats = np.zeros((4, max(1, net.n_layers)))
        self.hyper = optimizer.hyper(net.layer_names)
        self.alphas = self.hyper[ALPHA:].copy()
        self.capacity = capacity
        self.scratch = batch.scratch(net.starts[-1], capacity, net.dtype) if scratch is None else scratch
        self.part = Part(
            *(self.w, np.zeros_like(self.w), self.state.moments, self.state.scalars, self.state.n_updates, self.hyper),
            *(net.spec, self.scratch, np.zeros_like(self.w), self.stats),
        )

    def outputs(self, states: np.ndarray) -> np.ndarray:
        """yhat (N, k) at states (N, d)."""
        found = np.empty((len(states), self.net.n_outputs), self.w.dtype)
        none = np.zeros(self.net.n_layers)
        order = np.arange(len(states))
        batch.predict_kernel(self.w, self.net.spec, self.scratch, self.capacity, states, order, none, found)
        return found

    def learned(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold."""
        state = self.state
        return {"w": self.w, "moments": state.moments, "scalars": state.scalars, "n_updates": state.n_updates} | {
            "stats": self.stats
        }

    def diagnostics(self) -> dict[str, float]:
        """Norms per layer, averaged since the last call."""
        values: dict[str, float] = {}
        names, n = self.net.layer_names, self.stats[N_NORMED, 0]
        for row, tag in ((GRADIENT, "grad_norm"), (CLIPPED, "clipped_grad_norm"), (UPDATE, "update_ratio")):
            if n > 0:
                values |= {f"{tag}/{name}": total / n for name, total in zip(names, self.stats[row], strict=False)}
        values |= {f"weight_norm/{name}": size for name, size in self.net.layer_norms(self.w).items()}
        self.stats[:] = 0.0
        return values


# --- minibatches ----------------------------------------------------------------------------------------------------

step = placeholder("step")  # of the optimizer


@kernel
def shuffle(order, key, counts):
    """A random permutation (Fisher & Yates), every one as likely."""
    for i in range(len(order) - 1, 0, -1):
        j = int(draw(key, counts) * (i + 1))
        order[i], order[j] = order[j], order[i]


@kernel
def note_norms(part, clip, before_step):
    """Into stats: before the step the norms of each layer's gradient, and its weights set aside; after it the update's.

    Of the update, its norm over that of the weights.
    """
    stop = ZERO
    for layer in range(part.spec[LAYERS]):
        start = stop
        stop += layer_size(part.spec, layer)
        if before_step:
            size = norm(part.gradient, start, stop)
            part.stats[GRADIENT, layer] += size
            part.stats[CLIPPED, layer] += clip * size
        else:
            for p in range(start, stop):
                part.before[p] = part.w[p] - part.before[p]
            size = norm(part.w, start, stop)
            part.stats[UPDATE, layer] += norm(part.before, start, stop) / size if size > 0.0 else 0.0
    if before_step:
        part.stats[N_NORMED, 0] += 1.0
        for p in range(part.w.size):
            part.before[p] = part.w[p]


@template(inline=True)
def move(part, clip):
    """The optimizer's step along the gradient, scaled by clip."""
    sampled = part.n_updates[0] % NORMS_EVERY == 0
    if sampled:
        note_norms(part, clip, True)
    step(part.w, part.gradient, clip, part.spec, part.moments, part.scalars, part.n_updates, part.hyper)
    if sampled:
        note_norms(part, clip, False)


# --- agents ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Of an agent that has no settings of its own."""


class BatchAgent(Stored):
    """What agents share that learn from rollouts of n environments.

    `start` takes n observations and gives n actions; each `step` takes what came of them, and learns when the rollout
    is full. Where an environment's episode has ended, `observations` has the first one of its next episode and
    `final_observations` the last one of the old. Terminated: the value of what follows is 0. Truncated, by a time
    limit: that of the final observation. No value of another episode enters.

    Parameters
    ----------
    observation_space, action_space
        Of one environment. Observations: Box or Discrete; others with `flatten`, where Gymnasium can.
    n_envs
        n, how many environments.
    hidden
        Units of each hidden layer, of each network.
    optimizer
        Of all networks; the agent's own if not given.
    gamma
        Discount, in [0, 1].
    normalise_observations
        Bring each entry to mean 0 and variance 1, and cut it off at 10, by statistics of the rollouts before this one.
    scale_rewards
        Divide rewards by the running standard deviation of their discounted sums, and cut them off at 10.
    horizon
        Transitions that are planned, over which epsilon falls.
    schedule
        Of the step size: "constant", or "linear", which falls in a straight line to 0 over `horizon`.
    activation, layer_norm, init, dtype
        Of the networks. "orthogonal" gives hidden layers the gain sqrt 2.
    flatten
        Let Gymnasium flatten an observation space that is neither Box nor Discrete.
    seed
        Of weights, actions and minibatches.
    **own
        The agent's own settings.
    """

    #: On the command line and in files.
    agent_name: ClassVar[str]
    #: The settings that one agent alone has: a frozen dataclass, keyword-only, with defaults and a docstring each.
    Settings: ClassVar[type[Any]] = NoSettings
    #: What makes it the agent that it is: see the module of its family.
    rule: ClassVar[Any]
    default_optimizer: ClassVar[Optimizer]
    #: Settings of runs whose default is another one for this agent, by name.
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: Tags of the log whose averages over rollouts it notes.
    noted: ClassVar[tuple[str, ...]] = ()
    #: Charts that say whether it learned, by title, for TensorBoard.
    charts: ClassVar[Mapping[str, list[str]]] = {}
    file_kind = "batch"
    learns_policy: ClassVar[bool] = True
    #: Whether it can learn from rollouts in which an older policy of its own has acted.
    bears_lag: ClassVar[bool] = False
    own: Any

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        n_envs: int = 8,
        hidden: tuple[int, ...] = (64, 64),
        optimizer: Optimizer | None = None,
        gamma: float = 0.99,
        *,
        normalise_observations: bool = False,
        scale_rewards: bool = False,
        horizon: int = 100_000,
        schedule: str = "constant",
        activation: str = "tanh",
        layer_norm: bool = False,
        init: str = "orthogonal",
        dtype: str = "float32",
        flatten: bool = False,
        seed: int = 0,
        **own: Any,
    ) -> None:
        known = [f.name for f in dataclasses.fields(self.Settings)]
        for name in own:
            one_of(f"a setting of {type(self).__name__}", name, known)
        self.own = self.Settings(**own)
        self.encode, self.action_space = encoder(observation_space, flatten), action_space
        self.n_envs, self.gamma = positive("n_envs", n_envs), unit_interval("gamma", gamma)
        self.seed, self.horizon = positive("seed", seed, at_least=0), positive("horizon", horizon)
        self.falls = one_of("schedule", schedule, ("constant", "linear")) == "linear"
        self.normalises, self.scales, self.dtype = normalise_observations, scale_rewards, dtype
        self.head = self._head(action_space)
        self.optimizer = self.default_optimizer if optimizer is None else optimizer
        if self.optimizer.needs_gradient:
            others = ", ".join(name for name, cls in OPTIMIZERS.items() if not cls.needs_gradient)
            raise ValueError(
                f"optimizer is {type(self.optimizer).__name__}, which is made for eligibility traces; expected one of "
                f"{others}"
            )
        self._shape = (hidden, activation, layer_norm, init)
        self.counts = np.zeros(3, np.int64)  # numbers drawn for minibatches, transitions, rollouts
        self.learners: dict[str, BatchLearner] = {}
        self._make_networks()
        d = self.encode.size
        actor = self.actor_network
        self.sizes = np.array([actor.size, self._noise().size, d])
        self.kernels = {**self.head.kernels, **self.optimizer.kernels()}
        self.acting = Acting(self, range(n_envs), seed)
        self._shuffle_key = np.uint64(sequence(seed, "minibatches").generate_state(1, np.uint64)[0])
        self.observed, self.rewarded = np.zeros(1 + 2 * d), np.zeros(3)
        self.discounted = np.zeros(n_envs)
        self.sums = np.zeros((len(self.noted), 2))  # of `noted`: totals, and of how many
        self._rollout: Rollout | None = None
        self._t = 0

    # --- what a family of agents says ---------------------------------------------------------------------------------

    def _head(self, space: gym.Space[Any]) -> Head:
        """The policy."""
        raise NotImplementedError

    def _make_networks(self) -> None:
        """Fill `learners`."""
        raise NotImplementedError

    @property
    def actor_network(self) -> Network:
        """The network that acts."""
        raise NotImplementedError

    def _actor_weights(self) -> np.ndarray:
        raise NotImplementedError

    def _noise(self) -> np.ndarray:
        """What the policy depends on beside its network's outputs."""
        return np.zeros(0)

    @property
    def rollout_steps(self) -> int:
        """T, steps of a rollout in each environment."""
        return int(self.own.rollout)

    @staticmethod
    def small(settings: Any) -> dict[str, Any]:
        """Other settings for a trial that loads the same kernels, and takes no time."""
        return {"rollout": 4, "envs": min(2, settings.envs)}

    def _learn(self, rollout: Rollout, policy: np.ndarray) -> None:
        """Improve from a rollout that was acted on with `policy`."""
        raise NotImplementedError

    def values_of(self, states: np.ndarray) -> np.ndarray:
        """v, or q of each action, at normalised states (N, d): (N, k), in the unit of scaled rewards."""
        raise NotImplementedError

    # --- acting -------------------------------------------------------------------------------------------------------

    def policy(self) -> np.ndarray:
        """All that acting needs, as one array: weights, noise, and the normaliser."""
        d, kind = self.encode.size, self.dtype
        mean, inverse, bound = np.zeros(d), np.ones(d), np.full(1, np.inf)
        if self.normalises and self.observed[0] > 1.0:
            mean = self.observed[1 : 1 + d]
            inverse = 1.0 / np.sqrt(self.observed[1 + d :] / self.observed[0] + EPSILON)
            bound[0] = CLIP
        parts = (self._actor_weights(), self._noise(), mean, inverse, bound)
        return np.concatenate([part.astype(kind, copy=False) for part in parts])

    @property
    def reward_scale(self) -> float:
        """What rewards are divided by; 1 while their sums do not differ, or without scaling."""
        if not self.scales or self.rewarded[2] <= 0.0:
            return 1.0
        return math.sqrt(self.rewarded[2] / self.rewarded[0])

    def decoded(self, actions: np.ndarray) -> list[Any]:
        """Actions (n, k) as the environments take them."""
        decode = self.head.decode
        return [decode(action) for action in actions]

    def start(self, observations: Any) -> list[Any]:
        """Begin: n observations, the actions for them."""
        if len(observations) != self.n_envs:
            raise ValueError(f"observations has {len(observations)} rows; expected {self.n_envs}, one per environment")
        self._rollout = self._fresh()
        self._rollout.observations[0] = self._encoded(observations)
        self._t = 0
        return self._chosen()

    def _fresh(self) -> Rollout:
        return Rollout.zeros(self.rollout_steps, self.n_envs, self.encode.size, self.head.n_values, self.dtype)

    def _encoded(self, observations: Any) -> np.ndarray:
        return np.array([self.encode(observation) for observation in observations], self.dtype)

    def _chosen(self) -> list[Any]:
        rollout = self._rollout
        assert rollout is not None
        if self._t == 0:
            self._policy = self.policy()
        t = self._t
        self.acting.choose(rollout.observations[t], self._policy, rollout.actions[t], rollout.log_probs[t])
        return self.decoded(rollout.actions[t])

    def step(
        self,
        rewards: Any,
        observations: Any,
        terminated: Any,
        truncated: Any,
        final_observations: Any = None,
    ) -> list[Any]:
        """Take what came of the actions; returns the next ones.

        Parameters
        ----------
        rewards, terminated, truncated
            (n,) each.
        observations
            n of them; where an episode has ended, the first observation of the next.
        final_observations
            n entries, of which those count where an episode was truncated: ``info["final_obs"]`` of a vector
            environment with SAME_STEP.

        Raises
        ------
        RuntimeError
            Before `start`.
        ValueError
            If a number is not finite, or a final observation is missing. Nothing was taken then.
        """
        rollout = self._rollout
        if rollout is None:
            raise RuntimeError("no rollout is running; call start(observations) first")
        t = self._t
        arrived = self._encoded(observations)
        rewards = np.asarray(rewards, np.float64)
        terminated, truncated = np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_)
        if not (np.abs(rewards) <= LARGEST).all():
            raise ValueError(f"rewards is {rewards}; expected finite numbers up to {LARGEST:g}")
        after = arrived.copy()
        for i in np.flatnonzero(terminated | truncated):
            final = None if final_observations is None else final_observations[i]
            if final is None and truncated[i] and not terminated[i]:
                raise ValueError(
                    f"final_observations has nothing for environment {i}, which was truncated; expected its last "
                    "observation, which bootstraps"
                )
            if final is not None:
                after[i] = self.encode(final)
        for name, rows in (("observations", arrived), ("final_observations", after)):
            if not (np.abs(rows) <= LARGEST).all():
                raise ValueError(f"{name} is {rows}; expected finite numbers up to {LARGEST:g}")
        rollout.rewards[t], rollout.next_observations[t] = rewards, after
        rollout.terminated[t], rollout.truncated[t] = terminated, truncated
        rollout.observations[t + 1] = arrived
        self._t += 1
        if self._t == self.rollout_steps:
            self.learn(rollout, self._policy)
            rollout.observations[0] = rollout.observations[-1]
            self._t = 0
        return self._chosen()

    def learn(self, rollout: Rollout, policy: np.ndarray, numbers: list[int] | None = None) -> None:
        """Learn from a rollout that was collected with `policy`, in all environments or in those with some numbers.

        Raises
        ------
        DivergenceError
            If a weight is no finite number any more.
        """
        n_new = int(np.count_nonzero(rollout.valid))
        if n_new == 0:
            return
        if self.falls:
            share = max(0.0, 1.0 - self.counts[1] / self.horizon)
            for learner in self.learners.values():
                learner.hyper[ALPHA:] = learner.alphas * share
        if self.scales:
            ended = rollout.terminated | rollout.truncated
            sums = self.discounted if numbers is None else self.discounted[numbers]
            sums[rollout.restarted] = 0.0
            merge_rewards(rollout.rewards, ended, rollout.valid, self.gamma, sums, self.rewarded)
            if numbers is not None:
                self.discounted[numbers] = sums
        self._learn(rollout, policy)
        if self.normalises:
            merge_observations(rollout.observations[:-1][rollout.valid], self.observed)
        self.counts[1] += n_new
        self.counts[2] += 1
        for name, learner in self.learners.items():
            if not np.isfinite(learner.w).all():
                raise DivergenceError(
                    f"a weight of {name} is infinite or NaN after {self.counts[1]:,} transitions: learning has diverged"
                    + divergence_advice(learner.w)
                )

    def scaled(self, rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
        """The rewards as they are learned, and the discount of each transition, 0 at a terminal one; (T, n)."""
        kind: Any = np.dtype(self.dtype).type
        rewards = rollout.rewards
        if self.scales:
            rewards = np.clip(rewards / self.reward_scale, -CLIP, CLIP)
        return rewards.astype(kind), np.where(rollout.terminated, kind(0), kind(self.gamma))

    @property
    def n_steps(self) -> int:
        """Number of transitions learned from."""
        return int(self.counts[1])

    def states_of(self, rows: np.ndarray, policy: np.ndarray) -> np.ndarray:
        """Observations (..., d) as the networks see them, (N, d)."""
        flat = rows.reshape(-1, rows.shape[-1])
        out = np.empty(flat.shape, self.dtype)
        normalise_rows(flat, policy, self.sizes, out)
        return out

    def values(self, observation: Any) -> np.ndarray:
        """What the value network says at an observation: v (1,), or q(a) (n_actions,), in the rewards' own unit."""
        states = self.states_of(np.asarray(self.encode(observation), np.float64)[None], self.policy())
        return self.values_of(states)[0].astype(np.float64) * self.reward_scale

    def value(self, observation: Any, elapsed: int | None = None) -> float:
        """v, or max_a q(a), of an observation; `elapsed` is for agents that see the time."""
        return float(self.values(observation).max())

    def actor(self, seed: int = 0, greedy: bool = True) -> BatchActor:
        """A copy that acts and does not learn: weights and normaliser frozen, random numbers of its own."""
        return BatchActor(self, seed, greedy)

    def exported(self) -> Graph:
        """What `valueapprox.export` writes of it: see `agents.export.describe_batch_agent`."""
        from valueapprox.agents.export import describe_batch_agent

        return describe_batch_agent(self)

    def networks(self) -> dict[str, BatchLearner]:
        """Its networks by their names in the log."""
        return self.learners

    # --- log and files ------------------------------------------------------------------------------------------------

    def note(self, numbers: Mapping[str, float]) -> None:
        """Add to what `diagnostics` averages, by tag."""
        for tag, number in numbers.items():
            self.sums[self.noted.index(tag)] += number, 1.0

    def diagnostics(self) -> dict[str, float]:
        """Averages since the last call, by the log's tags: see docs/reference/tags.md."""
        values = {tag: float(total / n) for tag, (total, n) in zip(self.noted, self.sums, strict=True) if n > 0}
        self.sums[:] = 0.0
        for name, learner in self.networks().items():
            values |= {f"{name}/{tag}": number for tag, number in learner.diagnostics().items()}
        return values

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that was learned, as arrays (views): an agent made with the same arguments goes on from it exactly."""
        arrays: dict[str, np.ndarray] = {"counts": self.counts, "observed": self.observed, "rewarded": self.rewarded}
        arrays |= {"discounted": self.discounted, "sums": self.sums}
        for prefix, learner in self.learners.items():
            arrays |= {f"{prefix}/{name}": array for name, array in learner.learned().items()}
        return arrays | self._own_state()

    def _own_state(self) -> dict[str, np.ndarray]:
        return {}


class BatchActor:
    """Acts in one environment with what an agent has learned so far, and learns nothing."""

    def __init__(self, agent: BatchAgent, seed: int, greedy: bool) -> None:
        self.agent, self.greedy, self.policy = agent, greedy, agent.policy()
        self.acting = Acting(agent, [0], seed, "evaluation")
        self.action, self.log_prob = np.zeros((1, agent.head.n_values), agent.dtype), np.zeros(1)

    def start(self, observation: Any) -> Any:
        """The action at an observation."""
        state = np.array(self.agent.encode(observation), self.agent.dtype)[None]
        self.acting.choose(state, self.policy, self.action, self.log_prob, self.greedy)
        return self.agent.decoded(self.action)[0]

    step = start


# --- the registry ---------------------------------------------------------------------------------------------------

#: Every agent that learns from many environments, by its name on the command line and in files.
BATCH_AGENTS = Registry("rule", "valueapprox.agents.batched", lambda cls: cls.Settings(), label="agent_name")
register = BATCH_AGENTS.register
