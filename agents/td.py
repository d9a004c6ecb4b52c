"""StreamTD: TD(lambda), the values of a policy that is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox import Intentional, ObGD
from valueapprox.agents.base import Actor, ControlAgent
from valueapprox.agents.choosing import outputs
from valueapprox.agents.layout import LEARNED, RUNNING
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
