"""Rollouts from a vector environment of Gymnasium's interface, whatever its autoreset mode and wherever it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from valueapprox.agents.acting import LARGEST, Acting, Rollout
from valueapprox.checks import positive

if TYPE_CHECKING:
    from valueapprox.agents.batched import BatchAgent

__all__ = ["VectorExperience", "learn_in"]


class VectorExperience:
    """Brings an agent rollouts of a vector environment: with SyncVectorEnv, AsyncVectorEnv, or one of your own.

    With NEXT_STEP a step in which an environment does nothing but reset is in the rollout, and marked as not valid.
    With DISABLED, environments whose episode has ended are reset here.

    Parameters
    ----------
    agent
        Whose policy acts; `n_envs` is as large as the vector.
    env
        It states its mode in ``metadata["autoreset_mode"]``.
    seed
        Of its first reset, and of the actions.
    """

    def __init__(self, agent: BatchAgent, env: VectorEnv[Any, Any, Any], seed: int = 0) -> None:
        if env.num_envs != agent.n_envs:
            raise ValueError(f"env has {env.num_envs} environments; expected {agent.n_envs}, as the agent's n_envs")
        self.agent, self.env = agent, env
        self.mode = AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        self.acting = Acting(agent, range(env.num_envs), seed)
        self.observations = self._split(env.reset(seed=positive("seed", seed, at_least=0))[0])
        self.dead = np.zeros(env.num_envs, np.bool_)  # NEXT_STEP: the coming step only resets

    def _split(self, observations: Any) -> list[np.ndarray]:
        """The state of each environment."""
        encode = self.agent.encode
        return [np.array(encode(o)) for o in iterate(self.env.observation_space, observations)]

    def _actions(self, chosen: np.ndarray) -> Any:
        space, actions = self.env.single_action_space, self.agent.decoded(chosen)
        return concatenate(space, actions, create_empty_array(space, len(actions)))  # type: ignore[arg-type]

    def gather(self, n_steps: int, policy: np.ndarray) -> Rollout:
        """The next T steps of the vector, acted on with `policy`.

        Raises
        ------
        ValueError
            If a reward is no finite number.
        """
        agent, env = self.agent, self.env
        rollout = Rollout.zeros(n_steps, env.num_envs, agent.encode.size, agent.head.n_values, agent.dtype)
        rollout.observations[0] = self.observations
        for t in range(n_steps):
            drawn = self.acting.draws.copy()
            self.acting.choose(rollout.observations[t], policy, rollout.actions[t], rollout.log_probs[t])
            self.acting.draws[self.dead] = drawn[self.dead]  # the same numbers in all modes
            arrived, rewards, terminated, truncated, info = env.step(self._actions(rollout.actions[t]))
            if not (np.abs(rewards) <= LARGEST).all():
                raise ValueError(f"rewards is {rewards}; expected finite numbers up to {LARGEST:g}")
            observations, ended = self._split(arrived), terminated | truncated
            after = list(observations)
            if self.mode is AutoresetMode.SAME_STEP:
                for i in np.flatnonzero(ended):
                    after[i] = np.array(agent.encode(info["final_obs"][i]))
            elif self.mode is AutoresetMode.DISABLED and ended.any():
                observations = self._split(env.reset(options={"reset_mask": ended})[0])
            rollout.valid[t] = ~self.dead
            rollout.rewards[t], rollout.next_observations[t] = np.where(self.dead, 0.0, rewards), after
            rollout.terminated[t], rollout.truncated[t] = terminated, truncated
            rollout.observations[t + 1] = observations
            if self.mode is AutoresetMode.NEXT_STEP:
                self.dead = ended
        self.observations = observations
        return rollout


def learn_in(agent: BatchAgent, env: VectorEnv[Any, Any, Any], n_steps: int, seed: int = 0) -> BatchAgent:
    """Let an agent learn in a vector environment, from at least n_steps transitions; gives it back.

    Examples
    --------
    >>> env = gymnasium.make_vec("CartPole-v1", 8, vectorization_mode="async")
    >>> agent = PPO(env.single_observation_space, env.single_action_space, n_envs=8)
    >>> learn_in(agent, env, 100_000)
    """
    experience, stop = VectorExperience(agent, env, seed), agent.n_steps + positive("n_steps", n_steps)
    while agent.n_steps < stop:
        policy = agent.policy()
        agent.learn(experience.gather(agent.rollout_steps, policy), policy)
    return agent
