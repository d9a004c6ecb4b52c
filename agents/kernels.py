"""Compiled loops over compiled worlds: environment and policy in one call."""

from __future__ import annotations

from typing import Any

import numpy as np

from valueapprox.compiling import kernel, placeholder, specialise, template
from valueapprox.envs import World

# The world's kernels: see the head of `valueapprox.envs.world`.
world_reset, world_step = placeholder("world_reset"), placeholder("world_step")
world_observe, world_heuristic = placeholder("world_observe"), placeholder("world_heuristic")
act = placeholder("act")  # act(observation, facts, uniforms, counts) -> action, a policy

# Positions in facts: what loops must know of a world and a policy.
N_ACTIONS, LOW, HIGH, N_RESET, N_STEP, LIMIT, NOISE = range(7)
# Positions in counts: the world's uniform numbers that were used, steps of the episode, and the policy's numbers.
DRAWS, ELAPSED, POLICY_DRAWS = range(3)


def facts_of(world: World, limit: int, noise: float = 0.0) -> np.ndarray:
    """A world with a time limit, 0 for none, as loops read it."""
    actions = (world.n_actions, world.action_low, world.action_high)
    return np.array([*actions, world.n_reset_uniforms, world.n_step_uniforms, limit, noise], dtype=np.float64)


@template(inline=True, exact=True)
def advance(facts, params, state, action, uniforms, counts):
    """Take one step, drawing as `WorldEnv` does: (reward, terminated, whether the time limit is reached)."""
    u = 0.0
    if facts[N_STEP] > 0.0:
        u = uniforms[counts[DRAWS]]
        counts[DRAWS] += 1
    reward, terminated = world_step(params, state, action, u)
    counts[ELAPSED] += 1
    return reward, terminated, facts[LIMIT] > 0.0 and counts[ELAPSED] >= facts[LIMIT]


@template(inline=True, exact=True)
def restart(facts, params, state, uniforms, counts):
    """Begin the next episode."""
    world_reset(params, uniforms[counts[DRAWS] :], state)
    counts[DRAWS] += int(facts[N_RESET])
    counts[ELAPSED] = 0


@kernel(inline=True, exact=True)
def at_random(observation, facts, uniforms, counts):
    """Uniform: one of n_actions, or a number between low and high."""
    draw = uniforms[counts[POLICY_DRAWS]]
    counts[POLICY_DRAWS] += 1
    if facts[N_ACTIONS] > 0.0:
        return float(int(draw * facts[N_ACTIONS]))
    return facts[LOW] + (facts[HIGH] - facts[LOW]) * draw


@template(inline=True, exact=True)
def by_heuristic(observation, facts, uniforms, counts):
    """The world's heuristic, and now and then at random."""
    if facts[NOISE] > 0.0:
        counts[POLICY_DRAWS] += 1
        if uniforms[counts[POLICY_DRAWS] - 1] < facts[NOISE]:
            return at_random(observation, facts, uniforms, counts)
    return float(world_heuristic(observation))


@template(exact=True)
def rollout(
    facts, params, state, counts, uniforms, policy_uniforms,
    observations, actions, rewards, next_observations, terminated, truncated,
):  # fmt: skip
    """Follow a policy for T = rewards.size steps, starting a new episode whenever one ends.

    state (n_state,) and counts (3,) go on from call to call. Draws as `WorldEnv` and `make_policy` do, in their order,
    so one pair of generators gives the same experience here and in Gymnasium. observations, next_observations (T, d);
    the others (T,).
    """
    for t in range(rewards.size):
        world_observe(params, state, observations[t])
        action = act(observations[t], facts, policy_uniforms, counts)
        if facts[N_ACTIONS] == 0.0:
            action = np.float64(np.float32(action))  # as the action space has it
        reward, terminal, limit_reached = advance(facts, params, state, action, uniforms, counts)
        world_observe(params, state, next_observations[t])
        actions[t] = action
        rewards[t] = reward
        terminated[t] = terminal
        truncated[t] = limit_reached
        if terminal or limit_reached:
            restart(facts, params, state, uniforms, counts)


#: Policies that `rollout` can follow, by name.
POLICIES = {"random": at_random, "heuristic": by_heuristic}


def rollout_kernel(policy: str, world: World) -> Any:
    """`rollout` of a policy in a world; None if it cannot follow it."""
    kernels = world.kernels()
    if policy not in POLICIES or (policy == "heuristic" and world.heuristic is None):
        return None
    return specialise(rollout, act=specialise(POLICIES[policy], **kernels), **kernels)
