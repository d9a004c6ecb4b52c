"""Control agents: learn to act from a stream, one transition at a time, behind the field's start / step / end.

Each step is one compiled call: it normalises observation and reward, learns from the transition and chooses the next
action. The recipe around the algorithms is that of stream-x (Elsayed, Vasan & Mahmood 2024), arXiv 2410.14606.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox import DivergenceError, Network, ObGD, Optimizer
from valueapprox.agents import layout, stream
from valueapprox.agents.choosing import choose_by_value, epsilon_now, outputs
from valueapprox.agents.layout import LEARNED
from valueapprox.agents.spaces import MOST_INDEXED, Decoder, by_index, encoder
from valueapprox.agents.stored import Stored
from valueapprox.checks import aligned_zeros, divergence_advice, one_of, positive, unit_interval
from valueapprox.compiling import kernel, specialise
from valueapprox.nn.backprop import X
from valueapprox.optim.base import N_BOUNDED, SUM_OF_STEPS
from valueapprox.registry import Registry
from valueapprox.seeding import sequence
from valueapprox.td.base import GRADIENT, N_SAMPLED, TOTALS, TRACE, UPDATE, improve

if TYPE_CHECKING:
    from valueapprox.export.graph import Graph

__all__ = ["AGENTS", "Actor", "ControlAgent", "register"]

#: A unit is flat, f'(psi) below 2 % of its largest value, where psi (-abs(psi) for sigmoid, tanh) is at most this.
FLAT_BELOW = {
    "linear": -np.inf,
    "relu": 0.0,
    "leaky_relu": 0.0,
    "elu": -3.912023,  # log 0.02
    "sigmoid": -5.288242,  # where x (1 - x) = 0.02 / 4
    "tanh": -2.644121,  # artanh sqrt 0.98
    "softplus": -3.891820,  # log(0.02 / 0.98)
}
MULTI = (spaces.MultiDiscrete, spaces.MultiBinary)
DEAD_AFTER = 3000  # steps in which there was no sign of life


class Learner:
    """One network with all that learning it from a stream needs, as the kernels' list of arrays."""

    def __init__(self, net: Network, optimizer: Optimizer, seed: np.random.SeedSequence, init: str) -> None:
        self.net, self.optimizer = net, optimizer
        self.w = net.init(seed, init)
        self.z = np.zeros_like(self.w)
        self.state = optimizer.init(self.w)
        self.hyper = optimizer.hyper(net.layer_names)
        self.scratch, self.scratch_next = (
            aligned_zeros((layout.MOST_ALIVE + 1, net.starts[-1]), self.w.dtype),
            net.scratch(),
        )
        self.scratch[layout.MOST_ALIVE] = np.finfo(self.w.dtype).min
        self.watched = np.zeros(1)  # steps that `MOST_ALIVE` is of
        self.before = np.zeros_like(self.w)
        self.stats = np.zeros((4, max(4, net.n_layers)))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the kernels' order."""
        return (
            *(self.w, self.z, self.state.moments, self.state.scalars, self.state.n_updates, self.hyper),
            *(self.net.spec, self.scratch, self.scratch_next, self.before, self.stats),
        )

    def learned(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold; `here` has the forward pass from which the next update starts."""
        return {
            "w": self.w,
            "z": self.z,
            "moments": self.state.moments,
            "scalars": self.state.scalars,
            "n_updates": self.state.n_updates,
            "here": self.scratch,
            "stats": self.stats,
            "watched": self.watched,
        }

    def diagnostics(self, n_steps: float) -> dict[str, float]:
        """Norms per layer, averaged since the last call; the effective step size and how often it was bounded."""
        values: dict[str, float] = {}
        sampled = self.stats[TOTALS, N_SAMPLED]
        if sampled > 0:
            for tag, row in (("grad_norm", GRADIENT), ("trace_norm", TRACE), ("update_ratio", UPDATE)):
                for name, total in zip(self.net.layer_names, self.stats[row], strict=False):
                    values[f"{tag}/{name}"] = total / sampled
        for name, length in self.net.layer_norms(self.w).items():
            values[f"weight_norm/{name}"] = length
        if n_steps > 0 and self.state.scalars[SUM_OF_STEPS] > 0:
            values["step_size"] = self.state.scalars[SUM_OF_STEPS] / n_steps
            values["bounded"] = self.state.scalars[N_BOUNDED] / n_steps
        values |= self._dead_units(n_steps)
        self.stats[:] = 0.0
        self.state.scalars[SUM_OF_STEPS] = self.state.scalars[N_BOUNDED] = 0.0
        return values

    def _dead_units(self, n_steps: float) -> dict[str, float]:
        """Share of each hidden layer's units that were flat whenever watched, once there were steps enough."""
        self.watched += n_steps
        if self.watched < DEAD_AFTER:
            return {}
        net, best = self.net, self.scratch[layout.MOST_ALIVE]
        shares = {
            f"dead_units/{name}": float(np.mean(best[start : start + units] <= FLAT_BELOW[net.hidden]))
            for name, start, units in zip(net.layer_names, net.starts[1:], net.sizes[1:-1], strict=False)
        }
        best[:] = np.finfo(best.dtype).min
        self.watched[:] = 0.0
        return shares


# --- how agents of action values choose ------------------------------------------------------------------------------


@kernel(inline=True)
def choose_from_values(agent, first, second, greedy):
    """Epsilon-greedily, or by softmax: see `choose_by_value`."""
    start, n = outputs(first.spec)
    choose_by_value(first.scratch[X], start, n, agent.settings, agent.counts, agent.key, greedy)
    return LEARNED


@kernel(inline=True)
def choose_next_from_values(agent, first, second, persist):
    """The same after an update."""
    return choose_from_values(agent, first, second, False)


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Of an agent that has no settings of its own."""


class ControlAgent(Stored):
    """What control agents share: `StreamAC`, `StreamQ`, `Sarsa`, `ExpectedSarsa`, `QRC` and `StreamTD`.

    At an ending `end(reward, observation, terminated)` is called with the final observation. Terminated: its value is
    0. Cut by a time limit: its value is bootstrapped. After the update, either clears the eligibility traces.

    Parameters
    ----------
    observation_space, action_space
        Of the environment. Observations: Box or Discrete; others with `flatten`, where Gymnasium can. Actions:
        Discrete, MultiDiscrete or MultiBinary (for agents of action values up to 1024 in all), for `StreamAC` also Box,
        for `StreamTD` any.
    hidden
        Units of each hidden layer; the actor, or h of QRC, has a network of its own with the same ones.
    optimizer, second_optimizer
        Of the value network, and of the actor or QRC's h. If not given, Intentional() for the critic of an
        actor-critic and Intentional(0.1) for `StreamTD`, whose values are then means; ObGD(kappa=3) for the actor;
        ObGD(kappa=2) for action values, as published, which are biased (see `ObGD`); for QRC, whose direction is not a
        trace alone, SGD(1e-3) and SGD(1e-4), ten times the published 1e-4 and 1e-5.
    gamma, lam
        Discount and trace decay, in [0, 1].
    normalise_observations
        Bring each entry to mean 0 and variance 1 by its running statistics.
    scale_rewards
        Divide rewards by the running standard deviation of their discounted sums. While these are all equal rewards
        stay as they are, where the published code divides them by 1e-4.
    rescale_outputs
        When that divisor changes, multiply the last layer of the value network, so that values in the rewards' own unit
        do not change (van Hasselt et al. 2016, arXiv 1602.07714, for a running target). Without it, as published, the
        first thousand steps are spent on values that the next step's unit makes wrong.
    time_limit
        Give the agent the time as one more input, from -0.5 at the start of an episode to 0.5 at this step. (The
        published code is a step late: the second state has -0.5 too, the last one less than 0.5.)
    bootstrap_at_limit
        False treats a time limit as terminal, as the published code of stream-x does: for comparison.
    average_reward
        Rate eta at which the mean reward rbar is learned, rbar <- rbar + eta delta; delta then has r - rbar, and gamma
        may be 1: differential Sarsa and actor-critic. 0: none.
    epsilon
        Of exploring: first value, last value, steps in between (a straight line); or one number. Actor-critics do
        without.
    temperature
        Choose by softmax of q / temperature instead of epsilon-greedily.
    activation, layer_norm, init, dtype
        Of the networks. "sparse" keeps at least one input of each unit; "sparse_published" may keep none.
    flatten
        Let Gymnasium flatten an observation space that is neither Box nor Discrete.
    seed
        Of weights and actions.

    Examples
    --------
    >>> env = gym.make("CartPole-v1")
    >>> agent = StreamAC(env.observation_space, env.action_space, seed=1)
    >>> observation, _ = env.reset(seed=1)
    >>> action = agent.start(observation)
    >>> observation, reward, terminated, truncated, _ = env.step(action)
    >>> action = agent.step(reward, observation)
    >>> agent.n_steps
    1
    """

    #: On the command line and in files.
    agent_name: ClassVar[str]
    #: The settings that one agent alone has: a frozen dataclass, keyword-only, with defaults and a docstring each.
    Settings: ClassVar[type[Any]] = NoSettings
    #: update(agent, first, second, transition, bootstraps, work) -> (delta, persist): a template or kernel.
    update: ClassVar[Any]
    #: choose(agent, first, second, greedy) -> status: at the state whose first network has run.
    choose: ClassVar[Any] = choose_from_values
    #: choose_next(agent, first, second, persist) -> status: the same after an update.
    choose_next: ClassVar[Any] = choose_next_from_values
    learns_policy: ClassVar[bool] = False
    file_kind = "control"
    name = "value"  # of the first network, in the log
    second_name = ""
    default_optimizers: tuple[Optimizer, Optimizer] = (ObGD(kappa=2.0), ObGD(kappa=3.0))

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        hidden: tuple[int, ...] = (32, 32),
        optimizer: Optimizer | None = None,
        second_optimizer: Optimizer | None = None,
        gamma: float = 0.99,
        lam: float = 0.8,
        *,
        normalise_observations: bool = True,
        scale_rewards: bool = True,
        rescale_outputs: bool = True,
        time_limit: int | None = None,
        bootstrap_at_limit: bool = True,
        average_reward: float = 0.0,
        epsilon: tuple[float, float, int] | float = (1.0, 0.01, 25_000),
        temperature: float | None = None,
        activation: str = "leaky_relu",
        layer_norm: bool = True,
        init: str = "sparse",
        dtype: str = "float32",
        flatten: bool = False,
        seed: int = 0,
        **own: Any,
    ) -> None:
        self.encode = encoder(observation_space, flatten)
        self.action_space = action_space
        positive("seed", seed, at_least=0)
        n_inputs = self.encode.size + (time_limit is not None)
        actions = self._actions(action_space)
        n_outputs, self._to_space = actions.n_outputs, actions.decode
        self._action_values = np.zeros(actions.n_values)

        def network(outputs: int) -> Network:
            return Network((n_inputs, *hidden, outputs), activation, layer_norm=layer_norm, dtype=dtype)

        first = network(1 if self.learns_policy else n_outputs)
        # An agent of one network has a second that is as small as can be and not used: kernels have one signature.
        second = network(n_outputs) if self.second_name else Network((1, 1), dtype=dtype)
        defaults = self.default_optimizers
        self.first = Learner(first, optimizer or defaults[0], sequence(seed, "weights", 0), init)
        self.second = Learner(second, second_optimizer or defaults[1], sequence(seed, "weights", 1), init)

        first_rule, second_rule = self.first.optimizer.kernels(), self.second.optimizer.kernels()
        #: What templates of the agent's kernels are specialised with.
        self.kernels = {
            "improve_first": specialise(improve, **first_rule),
            "improve_second": specialise(improve, **second_rule),
            "step_first": first_rule["step"],
            "step_second": second_rule["step"],
        }
        for part, chosen in self._own_kernels(action_space).items():
            self.kernels[part] = specialise(chosen, **self.kernels)
        self.learn, self.begin, self.act = (
            specialise(door, **self.kernels) for door in (stream.step, stream.begin, stream.act)
        )

        first_epsilon, last_epsilon, epsilon_steps = (
            epsilon if isinstance(epsilon, tuple | list) else (epsilon, epsilon, 0)
        )
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number, or None for epsilon-greedy")
        if not (average_reward >= 0 and np.isfinite(average_reward)):
            raise ValueError(f"average_reward is {average_reward}; expected a rate that is not negative")
        settings = np.append(np.zeros(layout.N_SETTINGS), actions.layout)
        settings[layout.GAMMA], settings[layout.LAMBDA] = unit_interval("gamma", gamma), unit_interval("lam", lam)
        settings[layout.EPSILON_FIRST] = unit_interval("epsilon", first_epsilon)
        settings[layout.EPSILON_LAST] = unit_interval("epsilon", last_epsilon)
        settings[layout.EPSILON_STEPS] = positive("epsilon's steps", epsilon_steps, at_least=0)
        settings[layout.TEMPERATURE] = temperature or 0.0
        settings[layout.AVERAGE_REWARD] = average_reward
        settings[layout.NORMALISE], settings[layout.SCALE] = normalise_observations, scale_rewards
        settings[layout.RESCALE_OUTPUTS] = rescale_outputs
        settings[layout.TIME_STEP] = 0.0 if time_limit is None else 1.0 / positive("time_limit", time_limit)
        settings[layout.LIMIT_IS_TERMINAL] = not bootstrap_at_limit
        known = [f.name for f in dataclasses.fields(self.Settings)]
        for name in own:
            one_of(f"a setting of {type(self).__name__}", name, known)
        for index, value in self._own_settings(self.Settings(**own)).items():
            settings[index] = value
        self.settings = settings
        both = np.zeros((2, layout.STATISTICS + 2 * self.encode.size))
        self.memory = both[0]
        self.counts = np.zeros(layout.N_COUNTS, np.int64)
        self.sums = np.zeros(layout.N_SUMS)
        self.key = np.uint64(sequence(seed, "actions").generate_state(1, np.uint64)[0])
        work = np.zeros((3, max(self.first.w.size, self.second.w.size)), dtype)
        #: What every kernel gets, in this order.
        self.arrays = (
            *(settings, both.reshape(-1), self.counts, self.key, self._action_values, self.sums),
            *self.first.arrays(),
            *self.second.arrays(),
            work,
        )

    def _own_kernels(self, action_space: gym.Space[Any]) -> dict[str, Any]:
        """The kernels that one agent alone has, in the order in which they are specialised with those before."""
        cls = type(self)
        return {"update": cls.update, "choose": cls.choose, "choose_next": cls.choose_next}

    def _actions(self, action_space: gym.Space[Any]) -> Decoder:
        """What it makes of the action space."""
        actions = by_index(action_space)
        if actions is not None:
            return actions
        if isinstance(action_space, MULTI):
            raise TypeError(
                f"action_space is {action_space}; expected at most {MOST_INDEXED} actions in all, since "
                f"{type(self).__name__} learns a value for each. StreamAC chooses each entry by itself"
            )
        expected = "Discrete, MultiDiscrete or MultiBinary"
        if self.learns_policy:
            raise TypeError(f"action_space is {action_space}; expected Box, {expected}")
        also = ". StreamAC takes Box" if isinstance(action_space, spaces.Box) else ""
        raise TypeError(f"action_space is {action_space}; expected {expected} for {type(self).__name__}{also}")

    def _own_settings(self, own: Any) -> dict[int, float]:
        """Where the kernels find the settings that one agent alone has."""
        return {}

    # --- start, step, end ---------------------------------------------------------------------------------------------

    def start(self, observation: Any) -> Any:
        """Begin an episode; returns the first action."""
        status = self.begin(self._state(observation), *self.arrays)
        if status != layout.LEARNED:
            self.fail(status, 0.0, observation)
        return self._next_action(observation)

    def step(self, reward: float, observation: Any) -> Any:
        """Learn from the transition into `observation`, and return the next action."""
        status = self.learn(self._state(observation), float(reward), False, False, *self.arrays)
        if status != layout.LEARNED:
            self.fail(status, reward, observation)
        return self._next_action(observation)

    def end(self, reward: float, observation: Any, terminated: bool) -> None:
        """Learn from the last transition of an episode. `terminated` False: it was cut here, and bootstraps."""
        ended = bool(terminated)
        status = self.learn(self._state(observation), float(reward), ended, not ended, *self.arrays)
        if status != layout.LEARNED:
            self.fail(status, reward, observation)

    def _state(self, observation: Any) -> np.ndarray:
        state = self.encode(observation)
        dtype = np.float32 if state.dtype == np.float32 else np.float64
        # Read-only or strided arrays are other types to Numba, for which the kernels would be compiled anew.
        return state if state.dtype == dtype and state.flags.carray else np.array(state, dtype, order="C")

    def _next_action(self, observation: Any) -> Any:
        """The answer of `start` and `step`: what the kernel has chosen at this observation."""
        return self.action()

    def action(self) -> Any:
        """The action that was chosen last, as the environment takes it."""
        return self._to_space(int(self.counts[layout.ACTION]), self._action_values)

    def fail(self, status: int, reward: float, observation: Any) -> None:
        """Raise what the kernel's status means."""
        if status == layout.NO_EPISODE:
            raise RuntimeError("no episode is running: call start(observation) first")
        step = self.n_steps + 1
        if status == layout.BAD_INPUT:
            bad_reward = not abs(reward) <= layout.LARGEST
            what = f"the reward is {reward}" if bad_reward else f"the observation is {observation}"
            raise ValueError(
                f"{what} at step {step}; expected finite numbers up to {layout.LARGEST:g}. Nothing was learned"
            )
        largest = max(np.abs(learner.w).max() for learner in (self.first, self.second))
        raise DivergenceError(
            f"the TD error or an output is infinite or NaN at step {step} (largest weight {largest:.3g})"
            + divergence_advice(*(learner.w for learner in (self.first, self.second)))
        )

    # --- acting without learning --------------------------------------------------------------------------------------

    def actor(self, seed: int = 0, greedy: bool = True) -> Actor:
        """A copy that acts and does not learn: weights and normalisers frozen, random numbers of its own."""
        return Actor(self, seed, greedy)

    def exported(self) -> Graph:
        """What `valueapprox.export` writes of it: see `agents.export.describe_agent`."""
        from valueapprox.agents.export import describe_agent

        return describe_agent(self)

    def values(self, observation: Any, elapsed: int | None = None) -> np.ndarray:
        """What the value network says at an observation: v (1,), or q(a) (n_actions,). Nothing changes.

        In the rewards' own unit, with the normalisers as they stand.

        Parameters
        ----------
        observation
            As the environment gives it.
        elapsed
            With `time_limit`: the number of steps from the episode's start to this observation. None: as many as the
            running episode has, or 0 where none runs.

        Raises
        ------
        ValueError
            If the observation is not finite.
        DivergenceError
            If a value is not.
        """
        memory, first, second = self.memory.copy(), self.first, self.second
        if elapsed is not None:
            memory[layout.TIME] = elapsed * self.settings[layout.TIME_STEP] - 0.5
        elif not self.counts[layout.RUNNING]:
            memory[layout.TIME] = -0.5
        scratch = first.net.scratch()
        status = self.act(
            *(self._state(observation), True, self.settings, memory, self.counts.copy(), self.key),
            *(self._action_values.copy(), self.sums, first.w, first.net.spec, scratch),
            *(second.w, second.net.spec, second.net.scratch()),
        )
        if status == layout.BAD_INPUT:
            raise ValueError(f"the observation is {observation}; expected finite numbers up to {layout.LARGEST:g}")
        start, n = first.net.starts[-2], first.net.n_outputs
        values = scratch[X, start : start + n].astype(np.float64) * (memory[layout.REWARD_SCALE] or 1.0)
        if not np.isfinite(values).all():
            raise DivergenceError("a value is infinite or NaN")
        return values

    def value(self, observation: Any, elapsed: int | None = None) -> float:
        """The value of an observation: v, or max_a q(a) of an agent of action values. See `values`."""
        return float(self.values(observation, elapsed).max())

    # --- what the log shows -------------------------------------------------------------------------------------------

    @property
    def n_steps(self) -> int:
        """Number of transitions learned from."""
        return int(self.counts[layout.STEPS])

    @property
    def norms_every(self) -> int:
        """Every how many steps the per-layer norms are measured for `diagnostics`; 0, as at first, is never."""
        return int(self.settings[layout.NORMS_EVERY])

    @norms_every.setter
    def norms_every(self, steps: int) -> None:
        self.settings[layout.NORMS_EVERY] = positive("norms_every", steps, at_least=0)

    def diagnostics(self) -> dict[str, float]:
        """Averages since the last call, by the log's tags: see docs/reference/tags.md."""
        seen = self.sums[layout.N_LEARNED]
        values: dict[str, float] = {}
        if seen > 0:
            values[f"{self.name}/td_error/mean"] = self.sums[layout.SUM_DELTA] / seen
            values[f"{self.name}/td_error/rms"] = float(np.sqrt(self.sums[layout.SUM_DELTA_SQUARED] / seen))
            values |= self._own_diagnostics(seen)
        if type(self).choose is choose_from_values and self.settings[layout.TEMPERATURE] == 0.0:
            values["agent/epsilon"] = float(epsilon_now(self.settings, self.counts))
        if self.settings[layout.AVERAGE_REWARD] > 0.0:
            values["agent/mean_reward"] = float(self.memory[layout.MEAN_REWARD])
        for name, learner in self.networks().items():
            values |= {f"{name}/{tag}": number for tag, number in learner.diagnostics(seen).items()}
        self.sums[:] = 0.0
        return values

    def networks(self) -> dict[str, Learner]:
        """Its networks by their names in the log: critic and actor, or value, or value and h."""
        return {self.name: self.first} | ({self.second_name: self.second} if self.second_name else {})

    def _own_diagnostics(self, n_steps: float) -> dict[str, float]:
        """What one agent alone logs: averages over the steps since the last call."""
        return {}

    # --- files --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that was learned, as arrays (views): an agent made with the same arguments goes on from it exactly."""
        arrays = {"memory": self.memory, "counts": self.counts, "sums": self.sums, "action": self._action_values}
        for prefix, learner in (("first", self.first), ("second", self.second)):
            arrays |= {f"{prefix}/{name}": array for name, array in learner.learned().items()}
        return arrays


class Actor:
    """Acts with what an agent has learned so far, behind start and step, and learns nothing."""

    def __init__(self, agent: ControlAgent, seed: int, greedy: bool) -> None:
        self.agent, self.greedy = agent, greedy
        self.memory = agent.memory.copy()
        self.counts = agent.counts.copy()
        self.action = agent._action_values.copy()
        self.key = np.uint64(sequence(seed, "evaluation").generate_state(1, np.uint64)[0])
        self.counts[layout.DRAWS] = 0
        first, second = agent.first, agent.second
        self._nets = (first.w.copy(), first.net.spec, first.net.scratch(), second.w.copy(), second.net.spec)
        self._second_scratch = second.net.scratch()

    def start(self, observation: Any) -> Any:
        """The first action of an episode."""
        self.memory[layout.TIME] = -0.5
        return self._act(observation)

    def step(self, observation: Any) -> Any:
        """The next action."""
        self.memory[layout.TIME] += self.agent.settings[layout.TIME_STEP]
        return self._act(observation)

    def _act(self, observation: Any) -> Any:
        agent = self.agent
        status = agent.act(
            *(agent._state(observation), self.greedy, agent.settings, self.memory, self.counts, self.key, self.action),
            *(agent.sums, *self._nets, self._second_scratch),
        )
        if status == layout.BAD_INPUT:
            raise ValueError(f"the observation is {observation}; expected finite numbers up to {layout.LARGEST:g}")
        if status != layout.LEARNED:
            raise DivergenceError("an output of the network is infinite or NaN")
        return agent._to_space(int(self.counts[layout.ACTION]), self.action)


# --- the registry ---------------------------------------------------------------------------------------------------

#: Every agent that learns to act from a stream, by its name on the command line and in files.
AGENTS = Registry("update", "valueapprox.agents.stream", lambda cls: cls.Settings(), label="agent_name")
register = AGENTS.register
