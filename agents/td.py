"""StreamTD: TD(lambda), the values of a policy that is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox import DivergenceError, Intentional, ObGD
from valueapprox.agents.base import Actor, ControlAgent
from valueapprox.agents.choosing import outputs
from valueapprox.agents.layout import BAD_INPUT, LARGEST, LEARNED, REWARD_SCALE, RUNNING, TIME, TIME_STEP
from valueapprox.agents.policies import Policy, uniform
from valueapprox.agents.spaces import Decoder
from valueapprox.agents.stream import learn_from, value
from valueapprox.compiling import kernel, template
from valueapprox.nn.backprop import X
from valueapprox.seeding import sequence
from valueapprox.td.base import td_error


@template(inline=True)
def update(agent, v, unused, t, bootstraps, work):
    """delta = r + gamma v(s') - v(s);  z <- gamma lambda z + grad v(s);  w <- w + step(delta z)."""
    v_next = np.float64(v.scratch_next[X, outputs(v.spec)[0]]) if bootstraps else 0.0
    delta = td_error(t.r, t.discount, v_next, value(v, 0, t.unit))
    learn_from(v, 0, t, delta)
    return delta, 0.0


@kernel(inline=True)
def choose(agent, v, unused, greedy):
    """Nothing: its actions come from elsewhere."""
    return LEARNED


@kernel(inline=True)
def choose_next(agent, v, unused, persist):
    """Nothing, too."""
    return LEARNED


class StreamTD(ControlAgent):
    """TD(lambda): predicts the discounted sum of rewards under a policy that it is given, and does not change.

    delta = r + gamma v(s') - v(s);  z <- gamma lambda z + grad v(s), and the optimizer's step along delta z

    By default that of `Intentional`, whose values are means.

    Any action space will do. `epsilon`, `temperature` and `second_optimizer` mean nothing here.

    policy
        ``policy(observation, rng) -> action``, which must be a function of these two alone; None for uniform random. It
        is asked after the step's learning, so that an error of its own leaves a transition that was learned from.
    """

    update, choose, choose_next = update, choose, choose_next
    default_optimizers = (Intentional(0.1), ObGD(kappa=3.0))

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        policy: Policy | None = None,
        **settings: Any,
    ) -> None:
        if policy is not None and not callable(policy):
            raise TypeError(f"policy is {policy!r}; expected a function (observation, rng) -> action, or None")
        super().__init__(observation_space, action_space, **settings)
        self.policy = uniform(action_space) if policy is None else policy
        self.rng = np.random.default_rng(sequence(settings.get("seed", 0), "policy", 0))
        self._action: Any = None
        self._scratch = self.first.net.scratch(), self.second.net.scratch()

    def _actions(self, action_space: gym.Space[Any]) -> Decoder:
        return Decoder(1, 0, np.zeros(0), lambda index, values: None)

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
            memory[TIME] = elapsed * self.settings[TIME_STEP] - 0.5
        elif not self.counts[RUNNING]:
            memory[TIME] = -0.5
        here, here_2 = self._scratch
        status = self.act(
            *(self._state(observation), True, self.settings, memory, self.counts, self.key, self._action_values),
            *(self.sums, self.first.w, self.first.net.spec, here, self.second.w, self.second.net.spec, here_2),
        )
        if status == BAD_INPUT:
            raise ValueError(f"the observation is {observation}; expected finite numbers up to {LARGEST:g}")
        v = float(here[X, self.first.net.starts[-2]]) * (memory[REWARD_SCALE] or 1.0)
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
        if self.counts[RUNNING] and self.action_space.shape is not None:
            action = arrays["action"].copy()
            self._action = int(action) if isinstance(self.action_space, spaces.Discrete) else action


class PolicyActor(Actor):
    """Acts by the policy that a `StreamTD` is given."""

    def __init__(self, agent: StreamTD, seed: int, greedy: bool) -> None:
        super().__init__(agent, seed, greedy)
        self.policy, self.rng = agent.policy, np.random.default_rng(sequence(seed, "evaluation"))

    def _act(self, observation: Any) -> Any:
        return self.policy(observation, self.rng)
