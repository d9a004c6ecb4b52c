"""Control agents: learn to act from a stream, one transition at a time, behind the field's start / step / end.

Each step is one compiled call: it normalises observation and reward, learns from the transition and chooses the next
action. The recipe around the algorithms is that of stream-x (Elsayed, Vasan & Mahmood 2024), arXiv 2410.14606.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox import SGD, DivergenceError, Intentional, Network, ObGD, Optimizer, checkpoint
from valueapprox.agents import control_kernels as kernels
from valueapprox.agents.policies import Policy, uniform
from valueapprox.agents.spaces import MOST_INDEXED, Decoder, by_factor, by_index, continuous, encoder
from valueapprox.backprop import X
from valueapprox.checks import aligned_zeros, divergence_advice, one_of, positive, unit_interval
from valueapprox.compiling import specialise
from valueapprox.optim import OPTIMIZERS
from valueapprox.optim.base import N_BOUNDED, SUM_OF_STEPS
from valueapprox.seeding import sequence
from valueapprox.td import GRADIENT, N_SAMPLED, TOTALS, TRACE, UPDATE

__all__ = ["QRC", "ControlAgent", "ExpectedSarsa", "Sarsa", "StreamAC", "StreamQ", "StreamTD"]

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
        self.here, self.there = aligned_zeros((kernels.MOST_ALIVE + 1, net.starts[-1]), self.w.dtype), net.scratch()
        self.here[kernels.MOST_ALIVE] = np.finfo(self.w.dtype).min
        self.watched = np.zeros(1)  # steps that `MOST_ALIVE` is of
        self.before = np.zeros_like(self.w)
        self.stats = np.zeros((4, max(4, net.n_layers)))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the kernels' order."""
        return (
            *(self.w, self.z, self.state.moments, self.state.scalars, self.state.n_updates, self.hyper),
            *(self.net.spec, self.here, self.there, self.before, self.stats),
        )

    def learned(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold; `here` has the forward pass from which the next update starts."""
        return {
            "w": self.w,
            "z": self.z,
            "moments": self.state.moments,
            "scalars": self.state.scalars,
            "n_updates": self.state.n_updates,
            "here": self.here,
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
        net, best = self.net, self.here[kernels.MOST_ALIVE]
        shares = {
            f"dead_units/{name}": float(np.mean(best[start : start + units] <= FLAT_BELOW[net.hidden]))
            for name, start, units in zip(net.layer_names, net.starts[1:], net.sizes[1:-1], strict=False)
        }
        best[:] = np.finfo(best.dtype).min
        self.watched[:] = 0.0
        return shares


class ControlAgent:
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
        Of the value network, and of the actor or QRC's h. If not given, Intentional() for the critic of an actor-critic
        and Intentional(0.1) for `StreamTD`, whose values are then means; ObGD(kappa=3) for the actor; ObGD(kappa=2) for
        action values, as published, which are biased (see `ObGD`); for QRC, whose direction is not a trace alone,
        SGD(1e-3) and SGD(1e-4), ten times the published 1e-4 and 1e-5.
    gamma, lam
        Discount and trace decay, in [0, 1].
    normalise_observations
        Bring each entry to mean 0 and variance 1 by its running statistics.
    scale_rewards
        Divide rewards by the running standard deviation of their discounted sums. While these are all equal rewards
        stay as they are, where the published code divides them by 1e-4.
    keep_values
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

    algorithm = kernels.Q
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
        keep_values: bool = True,
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
        algorithm, actions = self._algorithm(action_space)
        n_outputs, self._to_space = actions.n_outputs, actions.decode
        self._action_values = np.zeros(actions.n_values)

        def network(outputs: int) -> Network:
            return Network((n_inputs, *hidden, outputs), activation, layer_norm=layer_norm, dtype=dtype)

        policy_based = self.algorithm == kernels.ACTOR_CRITIC
        first = network(1 if policy_based else n_outputs)
        # An agent of one network has a second that is as small as can be and not used: kernels have one signature.
        second = network(n_outputs) if self.second_name else Network((1, 1), dtype=dtype)
        defaults = self.default_optimizers
        self.first = Learner(first, optimizer or defaults[0], sequence(seed, "weights", 0), init)
        self.second = Learner(second, second_optimizer or defaults[1], sequence(seed, "weights", 1), init)

        first_rule, second_rule = self.first.optimizer.kernels(), self.second.optimizer.kernels()
        #: What templates of the agent's kernels are specialised with.
        self.kernels = {
            "improve_first": specialise(kernels.improve, **first_rule),
            "improve_second": specialise(kernels.improve, **second_rule),
            "step_first": first_rule["step"],
            "step_second": second_rule["step"],
        }
        self.learn = specialise(kernels.step, **self.kernels)

        first_epsilon, last_epsilon, epsilon_steps = (
            epsilon if isinstance(epsilon, tuple | list) else (epsilon, epsilon, 0)
        )
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature is {temperature}; a positive number is wanted, or None for epsilon-greedy")
        if not (average_reward >= 0 and np.isfinite(average_reward)):
            raise ValueError(f"average_reward is {average_reward}; a rate that is not negative is wanted")
        settings = np.append(np.zeros(kernels.N_SETTINGS), actions.layout)
        settings[kernels.ALGORITHM] = algorithm
        settings[kernels.GAMMA], settings[kernels.LAMBDA] = unit_interval("gamma", gamma), unit_interval("lam", lam)
        settings[kernels.EPSILON_FIRST] = unit_interval("epsilon", first_epsilon)
        settings[kernels.EPSILON_LAST] = unit_interval("epsilon", last_epsilon)
        settings[kernels.EPSILON_STEPS] = positive("epsilon's steps", epsilon_steps, at_least=0)
        settings[kernels.TEMPERATURE] = temperature or 0.0
        settings[kernels.AVERAGE_REWARD] = average_reward
        settings[kernels.NORMALISE], settings[kernels.SCALE] = normalise_observations, scale_rewards
        settings[kernels.KEEP_VALUES] = keep_values
        settings[kernels.TIME_STEP] = 0.0 if time_limit is None else 1.0 / positive("time_limit", time_limit)
        settings[kernels.LIMIT_IS_TERMINAL] = not bootstrap_at_limit
        known = list(inspect.signature(self._own_settings).parameters)
        for name in own:
            one_of(f"a setting of {type(self).__name__}", name, known)
        for place, value in self._own_settings(**own).items():
            settings[place] = value
        self.settings = settings
        both = np.zeros((2, kernels.STATISTICS + 2 * self.encode.size))
        self.memory = both[0]
        self.counts = np.zeros(kernels.N_COUNTS, np.int64)
        self.sums = np.zeros(kernels.N_SUMS)
        self.key = np.uint64(sequence(seed, "actions").generate_state(1, np.uint64)[0])
        work = np.zeros((3, max(self.first.w.size, self.second.w.size)), dtype)
        #: What every kernel gets, in this order.
        self.arrays = (
            *(settings, both.reshape(-1), self.counts, self.key, self._action_values, self.sums),
            *self.first.arrays(),
            *self.second.arrays(),
            work,
        )

    def _algorithm(self, action_space: gym.Space[Any]) -> tuple[int, Decoder]:
        """The kernels' code of the algorithm, and what it makes of the action space."""
        if self.algorithm == kernels.ACTOR_CRITIC and isinstance(action_space, spaces.Box):
            return kernels.GAUSSIAN_ACTOR_CRITIC, continuous(action_space)
        if self.algorithm == kernels.ACTOR_CRITIC and isinstance(action_space, MULTI):
            return kernels.FACTORED_ACTOR_CRITIC, by_factor(action_space)
        actions = by_index(action_space)
        if actions is not None:
            return self.algorithm, actions
        if isinstance(action_space, MULTI):
            raise TypeError(
                f"action_space is {action_space}; expected at most {MOST_INDEXED} actions in all, since "
                f"{type(self).__name__} learns a value for each. StreamAC chooses each entry by itself"
            )
        expected = "Discrete, MultiDiscrete or MultiBinary"
        if self.algorithm == kernels.ACTOR_CRITIC:
            raise TypeError(f"action_space is {action_space}; expected Box, {expected}")
        also = ". StreamAC takes Box" if isinstance(action_space, spaces.Box) else ""
        raise TypeError(f"action_space is {action_space}; expected {expected} for {type(self).__name__}{also}")

    def _own_settings(self) -> dict[int, float]:
        """The settings that one agent alone has."""
        return {}

    # --- start, step, end ---------------------------------------------------------------------------------------------

    def start(self, observation: Any) -> Any:
        """Begin an episode; returns the first action."""
        status = kernels.begin(self._state(observation), *self.arrays)
        if status != kernels.LEARNED:
            self.fail(status, 0.0, observation)
        return self._next_action(observation)

    def step(self, reward: float, observation: Any) -> Any:
        """Learn from the transition into `observation`, and return the next action."""
        status = self.learn(self._state(observation), float(reward), False, False, *self.arrays)
        if status != kernels.LEARNED:
            self.fail(status, reward, observation)
        return self._next_action(observation)

    def end(self, reward: float, observation: Any, terminated: bool) -> None:
        """Learn from the last transition of an episode. `terminated` False: it was cut here, and bootstraps."""
        ended = bool(terminated)
        status = self.learn(self._state(observation), float(reward), ended, not ended, *self.arrays)
        if status != kernels.LEARNED:
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
        return self._to_space(int(self.counts[kernels.ACTION]), self._action_values)

    def fail(self, status: int, reward: float, observation: Any) -> None:
        """Raise what the kernel's status means."""
        if status == kernels.NO_EPISODE:
            raise RuntimeError("no episode is running: call start(observation) first")
        step = self.n_steps + 1
        if status == kernels.BAD_INPUT:
            bad_reward = not abs(reward) <= kernels.LARGEST
            what = f"the reward is {reward}" if bad_reward else f"the observation is {observation}"
            raise ValueError(
                f"{what} at step {step}; finite numbers up to {kernels.LARGEST:g} are wanted. Nothing was learned"
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

    # --- what the log shows -------------------------------------------------------------------------------------------

    @property
    def n_steps(self) -> int:
        """Number of transitions learned from."""
        return int(self.counts[kernels.STEPS])

    @property
    def sample_every(self) -> int:
        """Every how many steps the per-layer norms are measured for `diagnostics`; 0, as at first, is never."""
        return int(self.settings[kernels.SAMPLE_EVERY])

    @sample_every.setter
    def sample_every(self, steps: int) -> None:
        self.settings[kernels.SAMPLE_EVERY] = positive("sample_every", steps, at_least=0)

    def diagnostics(self) -> dict[str, float]:
        """Averages since the last call, by the log's tags: see the README's glossary."""
        seen = self.sums[kernels.N_LEARNED]
        values: dict[str, float] = {}
        if seen > 0:
            values[f"{self.name}/td_error/mean"] = self.sums[kernels.SUM_DELTA] / seen
            values[f"{self.name}/td_error/rms"] = float(np.sqrt(self.sums[kernels.SUM_DELTA_SQUARED] / seen))
            if self.algorithm == kernels.ACTOR_CRITIC:
                values["actor/entropy"] = self.sums[kernels.SUM_ENTROPY] / seen
                if self.settings[kernels.ALGORITHM] == kernels.GAUSSIAN_ACTOR_CRITIC:
                    values["actor/spread"] = self.sums[kernels.SUM_SPREAD] / seen
        if self.algorithm not in (kernels.ACTOR_CRITIC, kernels.TD) and self.settings[kernels.TEMPERATURE] == 0.0:
            values["agent/epsilon"] = float(kernels.epsilon_now(self.settings, self.counts))
        if self.settings[kernels.AVERAGE_REWARD] > 0.0:
            values["agent/mean_reward"] = float(self.memory[kernels.MEAN_REWARD])
        for name, learner in ((self.name, self.first), (self.second_name, self.second)):
            if name:
                values |= {f"{name}/{tag}": number for tag, number in learner.diagnostics(seen).items()}
        self.sums[:] = 0.0
        return values

    # --- files --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """All that was learned, as arrays (views): an agent made with the same arguments goes on from it exactly."""
        arrays = {"memory": self.memory, "counts": self.counts, "sums": self.sums, "action": self._action_values}
        for prefix, learner in (("first", self.first), ("second", self.second)):
            arrays |= {f"{prefix}/{name}": array for name, array in learner.learned().items()}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave, of an agent that was made with the same arguments."""
        own = self.state_dict()
        for name, array in own.items():
            stored = arrays[name]
            if stored.shape != array.shape or stored.dtype != array.dtype:
                raise ValueError(f"{name} is {stored.dtype} {stored.shape}; {array.dtype} {array.shape} is wanted")
        checkpoint.must_be_finite({name: arrays[name] for name in own})
        for name, array in own.items():
            array[...] = arrays[name]

    def save(self, path: str | Path) -> None:
        """Write what was learned to one file, whole or not at all, without pickle."""
        checkpoint.save(path, self.state_dict(), {"kind": "control", "agent": type(self).__name__})

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote, of an agent that was made with the same arguments.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or of another agent.
        """
        arrays, meta = checkpoint.load(path)
        if meta.get("agent") != type(self).__name__:
            raise checkpoint.CheckpointError(f"{path} holds no {type(self).__name__}, but {meta.get('agent')}")
        try:
            self.restore(arrays)
        except (KeyError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path} does not fit this agent ({error})") from None


class Actor:
    """Acts with what an agent has learned so far, behind start and step, and learns nothing."""

    def __init__(self, agent: ControlAgent, seed: int, greedy: bool) -> None:
        self.agent, self.greedy = agent, greedy
        self.memory = agent.memory.copy()
        self.counts = agent.counts.copy()
        self.action = agent._action_values.copy()
        self.key = np.uint64(sequence(seed, "evaluation").generate_state(1, np.uint64)[0])
        self.counts[kernels.DRAWS] = 0
        first, second = agent.first, agent.second
        self._nets = (first.w.copy(), first.net.spec, first.net.scratch(), second.w.copy(), second.net.spec)
        self._second_scratch = second.net.scratch()

    def start(self, observation: Any) -> Any:
        """The first action of an episode."""
        self.memory[kernels.TIME] = -0.5
        return self._act(observation)

    def step(self, observation: Any) -> Any:
        """The next action."""
        self.memory[kernels.TIME] += self.agent.settings[kernels.TIME_STEP]
        return self._act(observation)

    def _act(self, observation: Any) -> Any:
        agent = self.agent
        status = kernels.act(
            *(agent._state(observation), self.greedy, agent.settings, self.memory, self.counts, self.key, self.action),
            *(*self._nets, self._second_scratch),
        )
        if status == kernels.BAD_INPUT:
            raise ValueError(f"the observation is {observation}; finite numbers up to {kernels.LARGEST:g} are wanted")
        if status != kernels.LEARNED:
            raise DivergenceError("an output of the network is infinite or NaN")
        return agent._to_space(int(self.counts[kernels.ACTION]), self.action)


class StreamAC(ControlAgent):
    """Actor-critic(lambda), with a softmax policy for discrete actions and a Gaussian one for continuous ones.

    delta = r + gamma v(s') - v(s)
    critic: z <- gamma lambda z + grad v(s), and the optimizer's step along delta z
    actor:  z <- gamma lambda z + grad [log pi(a|s) + entropy sign(delta) H(pi(.|s))], and the step along delta z

    By default the critic's values are means (see `Intentional`), and so biased by no skew of the rewards.

    Several discrete entries (MultiDiscrete, MultiBinary) are chosen each by a softmax of its own. The unit of a
    continuous action is half the distance of its bounds, around their middle: see `spaces.continuous`. A mean
    that is more than its spread outside of the bounds gets no gradient that would lead it further out.

    entropy
        Weight of the policy's entropy H in the actor's trace.
    persistence
        For discrete actions: the largest probability with which a step draws its action from the same random number u
        as the step before, instead of from a new one. It is

            persistence max(0, 1 - mean |delta| / 0.05) clip((H / log n - 0.5) / 0.3, 0, 1)

        with the mean over about the last 5000 steps, in the unit of scaled rewards, and H the entropy of the policy
        over n actions. A critic that has come to expect failure, in a task whose goal was not found yet, leaves
        hardly any error to learn from, and a policy that is still nearly uniform trembles on the spot; so it holds on
        to an action for some twenty steps. (Exploration by repeated actions: Dabney, Ostrovski & Barreto 2021.) Every
        action is still taken with probability pi(a|s), but actions depend on each other: while they do, the expected
        update is not the policy gradient, and the critic's values are those of this behaviour. Both end as soon as
        there is something to learn, or the policy has made up its mind. 0: independent draws, as published. Gaussian
        policies, and `actor`s, draw independently always.
    """

    algorithm = kernels.ACTOR_CRITIC
    name, second_name = "critic", "actor"
    default_optimizers = (Intentional(), ObGD(kappa=3.0))

    def _own_settings(self, entropy: float = 0.01, persistence: float = 0.95) -> dict[int, float]:
        if not 0 <= entropy < np.inf:
            raise ValueError(f"entropy is {entropy}; expected a number that is not negative")
        return {kernels.ENTROPY: entropy, kernels.PERSISTENCE: unit_interval("persistence", persistence)}


class StreamQ(ControlAgent):
    """Q(lambda) of Watkins: delta = r + gamma max_a q(s', a) - q(s, a).

    cut
        Where the trace is cut for an action that is not greedy. "after", as in the code of stream-x: the update of that
        action is still credited to the past, then the trace is cleared. "before", as Watkins has it: the trace is
        cleared before that update, which changes q of that action alone.
    """

    algorithm = kernels.Q

    def _own_settings(self, cut: str = "after") -> dict[int, float]:
        return {kernels.CUT_BEFORE: one_of("cut", cut, ("after", "before")) == "before"}


class Sarsa(ControlAgent):
    """Sarsa(lambda): delta = r + gamma q(s', a') - q(s, a), with the action a' that is taken next."""

    algorithm = kernels.SARSA


class ExpectedSarsa(ControlAgent):
    """Expected Sarsa(lambda): delta = r + gamma sum_a pi(a|s') q(s', a) - q(s, a), pi the policy that acts."""

    algorithm = kernels.EXPECTED_SARSA


class QRC(ControlAgent):
    """QRC(lambda): Q with gradient corrections, by a second network h (eqs. 26 to 28 of arXiv 2507.09087).

    regularise
        beta, the weight decay of h: 1 as in TDRC, 0 as in TDC.
    cut
        As for `StreamQ`.
    """

    algorithm = kernels.QRC
    second_name = "h"
    default_optimizers = (SGD(1e-3), SGD(1e-4))

    def _own_settings(self, regularise: float = 1.0, cut: str = "after") -> dict[int, float]:
        for name, learner in (("optimizer", self.first), ("second_optimizer", self.second)):
            if learner.optimizer.needs_gradient:
                plain = ", ".join(c.__name__ for c in OPTIMIZERS.values() if not c.needs_gradient)
                raise ValueError(
                    f"{name} is {type(learner.optimizer).__name__}, whose step is made for delta times a trace, and "
                    f"QRC's is a sum of corrections; expected one of {plain}"
                )
        if not 0 <= regularise < np.inf:
            raise ValueError(f"regularise is {regularise}; a weight that is not negative is wanted")
        return {
            kernels.REGULARISE: regularise,
            kernels.CUT_BEFORE: one_of("cut", cut, ("after", "before")) == "before",
        }


class StreamTD(ControlAgent):
    """TD(lambda): predicts the discounted sum of rewards under a policy that it is given, and does not change.

    delta = r + gamma v(s') - v(s);  z <- gamma lambda z + grad v(s), and the optimizer's step along delta z

    By default that of `Intentional`, whose values are means.

    Any action space will do. `epsilon`, `temperature` and `second_optimizer` mean nothing here.

    policy
        ``policy(observation, rng) -> action``, which must be a function of these two alone; None for uniform random. It
        is asked after the step's learning, so that an error of its own leaves a transition that was learned from.
    """

    algorithm = kernels.TD
    default_optimizers = (Intentional(0.1), ObGD(kappa=3.0))

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        policy: Policy | None = None,
        **settings: Any,
    ) -> None:
        if policy is not None and not callable(policy):
            raise TypeError(f"policy is {policy!r}; a function (observation, rng) -> action is wanted, or None")
        super().__init__(observation_space, action_space, **settings)
        self.policy = uniform(action_space) if policy is None else policy
        self.rng = np.random.default_rng(sequence(settings.get("seed", 0), "policy", 0))
        self._action: Any = None
        self._scratch = self.first.net.scratch(), self.second.net.scratch()

    def _algorithm(self, action_space: gym.Space[Any]) -> tuple[int, Decoder]:
        return self.algorithm, Decoder(1, 0, np.zeros(0), lambda index, values: None)

    def _next_action(self, observation: Any) -> Any:
        self._action = self.policy(observation, self.rng)
        return self._action

    def action(self) -> Any:
        """The policy's last action. A restored agent knows it if the space has a shape: Discrete, Box, Multi-...

        Raises
        ------
        RuntimeError
            If there was none yet, or it is not known.
        """
        if self._action is None:
            raise RuntimeError("no action is known: start and step return the policy's")
        return self._action

    def value(self, observation: Any, elapsed: int | None = None) -> float:
        """v at an observation, in the rewards' own unit, with the normalisers as they stand. Nothing changes.

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
            If the value is not.
        """
        memory = self.memory.copy()
        if elapsed is not None:
            memory[kernels.TIME] = elapsed * self.settings[kernels.TIME_STEP] - 0.5
        elif not self.counts[kernels.RUNNING]:
            memory[kernels.TIME] = -0.5
        here, here_2 = self._scratch
        status = kernels.act(
            *(self._state(observation), True, self.settings, memory, self.counts, self.key, self._action_values),
            *(self.first.w, self.first.net.spec, here, self.second.w, self.second.net.spec, here_2),
        )
        if status == kernels.BAD_INPUT:
            raise ValueError(f"the observation is {observation}; finite numbers up to {kernels.LARGEST:g} are wanted")
        v = float(here[X, self.first.net.starts[-2]]) * (memory[kernels.REWARD_SCALE] or 1.0)
        if not np.isfinite(v):
            raise DivergenceError("the value is infinite or NaN")
        return v

    def actor(self, seed: int = 0, greedy: bool = True) -> Actor:
        """Acts by the policy with random numbers of its own. `greedy` changes nothing."""
        return PolicyActor(self, seed, greedy)

    def state_dict(self) -> dict[str, np.ndarray]:
        """As for the other agents; with the last action, and where the policy's generator stands, as copies."""
        bits: Any = self.rng.bit_generator.state
        words = [part for name in ("state", "inc") for part in divmod(bits["state"][name], 2**64)]
        arrays = super().state_dict()
        arrays["policy"] = np.array([*words, bits["has_uint32"], bits["uinteger"]], np.uint64)
        shape = self.action_space.shape
        if shape is not None:
            action = np.zeros(shape) if self._action is None else self._action
            arrays["action"] = np.array(action, self.action_space.dtype).reshape(shape)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave, of an agent that was made with the same arguments."""
        super().restore(arrays)
        state, state_low, inc, inc_low, has_uint32, uinteger = (int(word) for word in arrays["policy"])
        self.rng.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": state << 64 | state_low, "inc": inc << 64 | inc_low},
            "has_uint32": has_uint32,
            "uinteger": uinteger,
        }
        self._action = None
        if self.counts[kernels.RUNNING] and self.action_space.shape is not None:
            action = arrays["action"].copy()
            self._action = int(action) if isinstance(self.action_space, spaces.Discrete) else action


class PolicyActor(Actor):
    """Acts by the policy that a `StreamTD` is given."""

    def __init__(self, agent: StreamTD, seed: int, greedy: bool) -> None:
        super().__init__(agent, seed, greedy)
        self.policy, self.rng = agent.policy, np.random.default_rng(sequence(seed, "evaluation"))

    def _act(self, observation: Any) -> Any:
        return self.policy(observation, self.rng)
