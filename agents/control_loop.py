"""A control agent in a compiled world: environment and agent, for thousands of steps, in one compiled call."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from valueapprox.agents.base import ControlAgent
from valueapprox.agents.choosing import in_space
from valueapprox.agents.kernels import DRAWS, ELAPSED, N_ACTIONS, advance, facts_of, restart, world_observe
from valueapprox.agents.layout import ACTION, ACTIONS, DIVERGED, LEARNED
from valueapprox.agents.spaces import encoder
from valueapprox.agents.stream import begin, step
from valueapprox.agents.td import StreamTD
from valueapprox.compiling import specialise, template
from valueapprox.envs import World, env_state, restore_env_state
from valueapprox.seeding import generator_from, generator_state

__all__ = ["Chunk", "CompiledLoop"]

PLAIN = ("gymnasium.TimeLimit", "gymnasium.OrderEnforcing")  # wrappers that the loop stands in for
EPISODES, DONE = 2, 3  # entries of counts, behind DRAWS and ELAPSED
AT, RETURN, LENGTH = range(3)  # entries of a row of episodes


@template(exact=True)
def learn(facts, params, state, counts, uniforms, running, observation, episodes, *agent):
    """Let an agent live in a world for n steps, a new episode following each that ends; returns (status, last reward).

    state (n_state,), running (2,) and the agent's arrays go on from call to call. An episode runs, and its next action
    is chosen. counts (4,): numbers used of uniforms, steps since the episode began, episodes ended, steps done;
    running: return and length of the running episode; episodes (n, 3): step, return and length of each that ended.

    Numbers are drawn as `WorldEnv` draws them, and `step` and `begin` are the agent's own kernels, so that one
    generator gives the same weights here and in the Gymnasium loop.
    """
    settings, own_counts, action = agent[0], agent[2], agent[4]
    reward = 0.0
    for _ in range(len(episodes)):
        if facts[N_ACTIONS] > 0.0:
            taken = float(own_counts[ACTION])
        else:
            if not abs(action[0]) < np.inf:
                return DIVERGED, reward
            taken = np.float64(np.float32(in_space(settings[ACTIONS:], 0, action[0])))
        reward, terminal, limit_reached = advance(facts, params, state, taken, uniforms, counts)
        running[0] += reward
        running[1] += 1.0
        ended = terminal or limit_reached
        world_observe(params, state, observation)
        status = step(observation, reward, terminal, ended and not terminal, *agent)
        if status != LEARNED:
            return status, reward
        counts[DONE] += 1
        if ended:
            row = episodes[counts[EPISODES]]
            row[AT], row[RETURN], row[LENGTH] = counts[DONE], running[0], running[1]
            counts[EPISODES] += 1
            running[0], running[1] = 0.0, 0.0
            restart(facts, params, state, uniforms, counts)
            world_observe(params, state, observation)
            status = begin(observation, *agent)
            if status != LEARNED:
                return status, 0.0
    return LEARNED, reward


class Chunk(NamedTuple):
    """What happened in some steps."""

    n_steps: int
    episodes: np.ndarray  # (m, 3): step of the chunk in which it ended, counted from 1; return; length


class CompiledLoop:
    """Runs an agent in an environment that is a compiled world.

    Parameters
    ----------
    agent
        With an episode running in `env`.
    env
        As `gymnasium.make` gives it. Between chunks it stands where the loop does, and can be stepped on its own.
    world, limit
        What it is: see `envs.compiled_world`.
    running
        (2,) return and length of the running episode so far, kept up to date.
    """

    def __init__(
        self, agent: ControlAgent, env: gym.Env[Any, Any], world: World, limit: int, running: np.ndarray
    ) -> None:
        self.agent, self.env, self.world, self.running = agent, env, world, running
        self.facts, self.params = facts_of(world, limit), world.params
        self.observation = np.zeros(world.n_observation, np.float32)
        self.learn = specialise(learn, **agent.kernels, **world.kernels())

    @staticmethod
    def fits(agent: ControlAgent, env: gym.Env[Any, Any], world: World) -> bool:
        """Whether nothing stands between world and agent that the loop does not know."""
        where = None if isinstance(agent, StreamTD) else env_state(env)  # whose actions are not the kernel's
        plain = where is not None and all(name in PLAIN for name, _ in where["wrappers"])
        return plain and encoder(env.observation_space).size == world.n_observation

    def run(self, n: int) -> Chunk:
        """Take n steps."""
        where = env_state(self.env)
        assert where is not None, "asked for at the start"
        rng = generator_from(where["world"]["generator"])
        # Drawn ahead, as many as could be used, then set back to what was.
        uniforms = rng.random(n * (self.world.n_step_uniforms + self.world.n_reset_uniforms) + 1)
        counts = np.zeros(4, np.int64)
        limits = [pair for pair in where["wrappers"] if pair[0] == "gymnasium.TimeLimit"]
        counts[ELAPSED] = limits[0][1] if limits else 0
        episodes = np.zeros((n, 3))
        status, reward = self.learn(
            *(self.facts, self.params, where["world"]["state"], counts, uniforms),
            *(self.running, self.observation, episodes, *self.agent.arrays),
        )
        if status != LEARNED:
            self.agent.fail(status, reward, self.observation)
        rng.bit_generator.advance(int(counts[DRAWS]) - uniforms.size)  # type: ignore[attr-defined]
        where["world"]["generator"] = generator_state(rng)
        for pair in limits:
            pair[1] = int(counts[ELAPSED])
        restore_env_state(self.env, where)
        return Chunk(n, episodes[: counts[EPISODES]])
