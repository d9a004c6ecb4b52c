"""Agents with replay against a second implementation in NumPy, and the memory that they learn from."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from valueapprox import SGD
from valueapprox.agents.acting import Rollout
from valueapprox.agents.batch_catalogue import DQN, DoubleDQN, ExpectedSarsaReplay

SEEN = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ALPHA, GAMMA, M = 0.05, 0.9, 6


def agent_of(cls, **own):
    own = {"capacity": 20, "minibatch": M, "updates": 3, "learning_starts": 0, "rollout": 10, **own}
    return cls(SEEN, spaces.Discrete(3), 1, (5,), SGD(ALPHA), GAMMA, activation="tanh", dtype="float64", seed=2, **own)


def rollout_of(rng, agent, n_steps=10):
    rollout = Rollout.zeros(n_steps, 1, 3, 1, "float64")
    rollout.observations[:] = rng.normal(size=rollout.observations.shape)
    rollout.next_observations[:] = rollout.observations[1:]
    rollout.actions[:] = rng.integers(0, 3, rollout.actions.shape)
    rollout.rewards[:] = rng.normal(size=rollout.rewards.shape)
    rollout.terminated[3], rollout.truncated[7] = True, True
    rollout.next_observations[7] = 9.0  # the final observation, from which it bootstraps
    return rollout


def uniform(key, number):
    """SplitMix64, 53 bits."""
    z = (int(key) + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return ((z ^ (z >> 31)) >> 11) / 2**53


def value_of(cls, q_target, q_online, temperature):
    if cls is DQN:
        return q_target.max()
    if cls is DoubleDQN:
        return q_target[q_online.argmax()]
    p = np.exp((q_target - q_target.max()) / temperature)
    return p @ q_target / p.sum()


CASES = [(DQN, {"max_error": 0.3}), (DoubleDQN, {"max_error": 0.0}), (ExpectedSarsaReplay, {"temperature": 0.2})]


@pytest.mark.parametrize(("cls", "own"), CASES)
@pytest.mark.parametrize("target_every", [0, 15])
def test_three_rollouts_against_numpy(cls, own, target_every):
    agent, rng = agent_of(cls, target_every=target_every, max_grad_norm=0.5, **own), np.random.default_rng(0)
    net, w = agent.q.net, agent.q.w.copy()
    w_target, memory, drawn, age = w.copy(), [], 0, 0
    for _ in range(3):  # 30 transitions, of which the last 20 are remembered
        rollout = rollout_of(rng, agent)
        for t in range(10):
            s, s_next = rollout.observations[t, 0], rollout.next_observations[t, 0]
            memory.append((s, int(rollout.actions[t, 0, 0]), rollout.rewards[t, 0], s_next, rollout.terminated[t, 0]))
        agent.learn(rollout, agent.policy())
        age += 10
        if age >= target_every:
            w_target, age = w.copy(), 0
        ring = [memory[i] if len(memory) <= 20 else memory[(len(memory) - 1 - (len(memory) - 1 - i) % 20)] for i in
                range(min(20, len(memory)))]  # fmt: skip
        for _ in range(3):
            gradient = np.zeros_like(w)
            for _ in range(M):
                drawn += 1
                s, a, r, s_next, terminal = ring[int(uniform(agent._shuffle_key, drawn) * len(ring))]
                v = value_of(cls, net.forward(w_target, s_next), net.forward(w, s_next), own.get("temperature"))
                error = r + (0.0 if terminal else GAMMA * v) - net.forward(w, s)[a]
                limit = own.get("max_error") or np.inf
                gradient += np.clip(error, -limit, limit) * net.gradient(w, s, a) / M
            w = w + ALPHA * gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
        np.testing.assert_allclose(agent.q.w, w, rtol=1e-10, atol=1e-12)


def test_a_memory_is_saved_and_goes_on(tmp_path):
    one, other, rng = agent_of(DQN), agent_of(DQN), np.random.default_rng(1)
    one.learn(rollout_of(rng, one), one.policy())
    one.save(tmp_path / "agent.npz")
    other.load(tmp_path / "agent.npz")
    rollout = rollout_of(rng, one)
    for agent in (one, other):
        agent.learn(rollout, agent.policy())
    np.testing.assert_array_equal(one.q.w, other.q.w)


def test_a_table_is_learned_to_its_values():
    # One state, terminal half of the time: q = r + 0.9 q / 2 with r = 1: q = 1 / (1 - 0.45) = 1.818...
    own = {"rollout": 100, "capacity": 100, "updates": 3000, "learning_starts": 0, "target_every": 0, "max_error": 0.0}
    one = spaces.Discrete(1)
    agent = DQN(one, one, 1, (), SGD(0.005), GAMMA, dtype="float64", minibatch=20, **own)
    rollout = Rollout.zeros(100, 1, 1, 1, "float64")
    rollout.observations[:] = rollout.next_observations[:] = 1.0
    rollout.rewards[:] = 1.0
    rollout.terminated[::2] = True
    for _ in range(60):  # each has a fresh copy for its targets: q <- 1 + 0.45 q
        agent.learn(rollout, agent.policy())
    assert agent.value(0) == pytest.approx(1 / 0.55, abs=0.05)


def test_spaces_without_values():
    env = gym.make("Pendulum-v1")
    with pytest.raises(TypeError, match="DQN learns a value for each"):
        DQN(env.observation_space, env.action_space)
