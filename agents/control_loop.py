"""A control agent in a compiled world: environment and agent, for thousands of steps, in one compiled call."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from valueapprox.agents.base import ControlAgent
from valueapprox.agents.choosing import in_space
from valueapprox.agents.layout import ACTION, ACTIONS, DIVERGED, LEARNED
from valueapprox.agents.spaces import encoder
from valueapprox.agents.stream import begin, step
from valueapprox.agents.td import StreamTD
from valueapprox.compiling import specialise, template
from valueapprox.envs import World, env_state, restore_env_state
from valueapprox.envs.dynamics import observe, reset_state, step_state
from valueapprox.seeding import generator_from, generator_state

__all__ = ["Chunk", "CompiledLoop"]

PLAIN = ("gymnasium.TimeLimit", "gymnasium.OrderEnforcing")  # wrappers that the loop stands in for
DRAWS, ELAPSED, EPISODES, DONE = range(4)  # entries of counters
AT, RETURN, LENGTH = range(3)  # entries of a row of episodes


@template(exact=True)
def learn(
    n, world, params, n_actions, n_reset, n_step, limit, uniforms, state, counters, running, observation, episodes,
    settings, memory, counts, key, action, *rest,
):  # fmt: skip
    """Let an agent live in a world for n steps, a new episode following each that ends; returns (status, last reward).

    state (n_state,), running (2,) and the agent's arrays go on from call to call. An episode runs, and its next action
    is chosen. counters (4,): numbers used of uniforms, steps since the episode began, episodes ended, steps done;
    running: return and length of the running episode; episodes (n, 3): step, return and length of each that ended.

    Numbers are drawn as `CompiledEnv` draws them, and `step` and `begin` are the agent's own kernels, so that one
    generator gives the same weights here and in the Gymnasium loop.
    """
    reward = 0.0
    for _ in range(n):
        if n_actions > 0:
            taken = float(counts[ACTION])
        else:
            if not abs(action[0]) < np.inf:
                return DIVERGED, reward
            taken = np.float64(np.float32(in_space(settings[ACTIONS:], 0, action[0])))
        u = 0.0
        if n_step > 0:
            u = uniforms[counters[DRAWS]]
            counters[DRAWS] += 1
        reward, terminal = step_state(world, params, state, taken, u)
        counters[ELAPSED] += 1
        running[0] += reward
        running[1] += 1.0
        ended = terminal or (limit > 0 and counters[ELAPSED] >= limit)
        observe(world, params, state, observation)
        cut = ended and not terminal
        status = step(observation, reward, terminal, cut, settings, memory, counts, key, action, *rest)
        if status != LEARNED:
            return status, reward
        counters[DONE] += 1
        if ended:
            row = episodes[counters[EPISODES]]
            row[AT], row[RETURN], row[LENGTH] = counters[DONE], running[0], running[1]
            counters[EPISODES] += 1
            counters[ELAPSED] = 0
            running[0], running[1] = 0.0, 0.0
            reset_state(world, params, uniforms[counters[DRAWS] :], state)
            counters[DRAWS] += n_reset
            observe(world, params, state, observation)
            status = begin(observation, settings, memory, counts, key, action, *rest)
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
        self.agent, self.env, self.world, self.limit, self.running = agent, env, world, limit, running
        self.observation = np.zeros(world.n_observation, np.float32)
        self.learn = specialise(learn, **agent.kernels)

    @staticmethod
    def fits(agent: ControlAgent, env: gym.Env[Any, Any], world: World) -> bool:
        """Whether nothing stands between world and agent that the loop does not know."""
        if isinstance(agent, StreamTD):  # its actions are not the kernel's
            return False
        where = env_state(env)
        plain = where is not None and all(name in PLAIN for name, _ in where["wrappers"])
        return plain and encoder(env.observation_space).size == world.n_observation

    def run(self, n: int) -> Chunk:
        """Take n steps."""
        world = self.world
        where = env_state(self.env)
        assert where is not None, "asked for at the start"
        # Drawn ahead, as many as could be used, then set back to what was.
        rng = generator_from(where["world"]["generator"])
        uniforms = rng.random(n * (world.n_step_uniforms + world.n_reset_uniforms) + 1)
        counters = np.zeros(4, np.int64)
        limits = [pair for pair in where["wrappers"] if pair[0] == "gymnasium.TimeLimit"]
        counters[ELAPSED] = limits[0][1] if limits else 0
        episodes = np.zeros((n, 3))
        state = where["world"]["state"]
        status, reward = self.learn(
            *(n, world.code, world.params, world.n_actions),
            *(world.n_reset_uniforms, world.n_step_uniforms, self.limit, uniforms, state, counters, self.running),
            *(self.observation, episodes, *self.agent.arrays),
        )
        if status != LEARNED:
            self.agent.fail(status, reward, self.observation)
        rng = generator_from(where["world"]["generator"])
        rng.bit_generator.advance(int(counters[DRAWS]))  # type: ignore[attr-defined]
        where["world"]["generator"] = generator_state(rng)
        for pair in limits:
            pair[1] = int(counters[ELAPSED])
        restore_env_state(self.env, where)
        return Chunk(n, episodes[: counters[EPISODES]])
