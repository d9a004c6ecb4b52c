"""Prediction agents: follow a policy and learn its values, behind the field's start / step / end interface."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from valueapprox import Network, Optimizer, ValueFunction
from valueapprox.agents.policies import Policy, uniform
from valueapprox.agents.spaces import encoder
from valueapprox.seeding import sequence
from valueapprox.td.base import settings_of

__all__ = ["Prediction"]


class Prediction:
    """Acts by a fixed policy and learns v of it from every transition on the way.

    Parameters
    ----------
    observation_space, action_space
        Of the environment. Observations: Box or Discrete; others with `flatten`, where Gymnasium can.
    policy
        ``policy(observation, rng) -> action``; None for uniform random.
    hidden
        Units of each hidden layer; empty for a linear value function.
    optimizer, gamma, lam, method
        As for `ValueFunction`.
    seed
        Of the initial weights and of the policy's randomness.
    flatten
        Let Gymnasium flatten an observation space that is neither Box nor Discrete.
    further
        Settings of the method, such as n; all others are of `Network`: activations, layer_norm, bias, dtype.

    Examples
    --------
    >>> env = gym.make("CartPole-v1")
    >>> agent = Prediction(env.observation_space, env.action_space, hidden=(16,), seed=1)
    >>> observation, _ = env.reset(seed=1)
    >>> action = agent.start(observation)
    >>> observation, reward, terminated, truncated, _ = env.step(action)
    >>> action = agent.step(reward, observation)
    >>> agent.value_function.n_transitions
    1
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        policy: Policy | None = None,
        hidden: tuple[int, ...] = (64,),
        optimizer: Optimizer | None = None,
        gamma: float = 0.99,
        lam: float = 0.9,
        *,
        method: str = "td",
        seed: int = 0,
        flatten: bool = False,
        **further: Any,
    ) -> None:
        self.encode = encoder(observation_space, flatten)
        own = {name: further.pop(name) for name in settings_of(method) if name in further}
        net = Network((self.encode.size, *hidden, 1), **further)
        self.value_function = ValueFunction(
            net, optimizer, gamma, lam, method=method, seed=sequence(seed, "weights"), **own
        )
        self.policy = uniform(action_space) if policy is None else policy
        self.rng = np.random.default_rng(sequence(seed, "policy", 0))
        self._s: np.ndarray | None = None

    def start(self, observation: Any) -> Any:
        """Begin an episode; returns the first action."""
        if self._s is not None:
            self.value_function.cut_trace()  # the last episode was left without an `end`
        self._s = self._state(observation)
        return self.policy(observation, self.rng)

    def step(self, reward: float, observation: Any) -> Any:
        """Learn from the transition into `observation`, and return the next action."""
        self._learn(reward, observation, terminated=False, truncated=False)
        return self.policy(observation, self.rng)

    def end(self, reward: float, observation: Any, terminated: bool) -> None:
        """Learn from the last transition of an episode. `terminated` False: it was cut here, and bootstraps."""
        self._learn(reward, observation, terminated=terminated, truncated=not terminated)
        self._s = None

    def _state(self, observation: Any) -> np.ndarray:
        # A copy: environments may write the next observation into the same array.
        return np.array(self.encode(observation), dtype=self.value_function.w.dtype)

    def _learn(self, reward: float, observation: Any, terminated: bool, truncated: bool) -> None:
        if self._s is None:
            raise RuntimeError("no episode is running: call start(observation) first")
        s_next = self._state(observation)
        self.value_function.learn(self._s, reward, s_next, terminated, truncated)
        self._s = s_next
