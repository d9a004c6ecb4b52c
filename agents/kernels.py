"""Compiled loops over compiled worlds: environment and policy in one call."""

from __future__ import annotations

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.envs.dynamics import ACROBOT, CART_POLE, MOUNTAIN_CAR, World, observe, reset_state, step_state

RANDOM, HEURISTIC = range(2)
ENV_DRAWS, POLICY_DRAWS, ELAPSED = range(3)  # entries of counts


@kernel(exact=True)
def heuristic(world, observation):
    """`valueapprox.agents.policies.lean`, `swing` and `pump`."""
    if world == CART_POLE:
        return 1 if observation[2] > 0.0 else 0
    if world == ACROBOT:
        return 0 if observation[4] >= 0.0 else 2
    return 2 if observation[1] >= 0.0 else 0


@kernel(exact=True)
def rollout(
    world, params, policy, noise, n_actions, low, high, n_reset, n_step, limit, state, counts,
    env_uniforms, policy_uniforms, observations, actions, rewards, next_observations, terminated, truncated,
):  # fmt: skip
    """Follow a policy for T = rewards.size steps, starting a new episode whenever one ends.

    state (n_state,) goes on from call to call; counts (3,) numbers used of env_uniforms and policy_uniforms, and steps
    since the episode began. Draws as `CompiledEnv` and `make_policy` do, in their order, so one pair of generators
    gives the same experience here and in Gymnasium. Random actions are uniform: one of n_actions, or a number between
    low and high where n_actions is 0. observations, next_observations (T, d); the others (T,).
    """
    for t in range(rewards.size):
        observe(world, params, state, observations[t])
        random = policy == RANDOM
        if not random and noise > 0.0:
            random = policy_uniforms[counts[POLICY_DRAWS]] < noise
            counts[POLICY_DRAWS] += 1
        if random:
            draw = policy_uniforms[counts[POLICY_DRAWS]]
            action = float(int(draw * n_actions)) if n_actions > 0 else low + (high - low) * draw
            counts[POLICY_DRAWS] += 1
        else:
            action = float(heuristic(world, observations[t]))
        u = 0.0
        if n_step > 0:
            u = env_uniforms[counts[ENV_DRAWS]]
            counts[ENV_DRAWS] += 1
        reward, terminal = step_state(world, params, state, action, u)
        counts[ELAPSED] += 1
        cut = limit > 0 and counts[ELAPSED] >= limit
        observe(world, params, state, next_observations[t])
        actions[t] = action
        rewards[t] = reward
        terminated[t] = terminal
        truncated[t] = cut
        if terminal or cut:
            reset_state(world, params, env_uniforms[counts[ENV_DRAWS] :], state)
            counts[ENV_DRAWS] += n_reset
            counts[ELAPSED] = 0


def follows(policy: int, world: World) -> bool:
    """Whether `rollout` can follow a policy in a world."""
    return policy == RANDOM or world.code in (CART_POLE, MOUNTAIN_CAR, ACROBOT)


def count_array() -> np.ndarray:
    """Fresh counts for `rollout`."""
    return np.zeros(3, np.int64)
