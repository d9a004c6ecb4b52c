"""Agents of many environments, exported: in C and in ONNX what they say themselves."""

import gymnasium as gym
import numpy as np
import pytest
from exported import assert_close, compiled, in_onnx_runtime, needs_compiler, needs_onnx
from gymnasium import spaces

from valueapprox.agents.acting import Rollout
from valueapprox.agents.batch_catalogue import DQN, PPO, PQN
from valueapprox.agents.export import scaling_of, value_network
from valueapprox.nn.scaling import Scaling, fold_scaling

SEEN = spaces.Box(-np.inf, np.inf, (3,), np.float32)
AGENTS = {
    "discrete": (PPO, spaces.Discrete(3, start=-1), {}),
    "shared": (PPO, spaces.MultiDiscrete([2, 3], start=[1, -1]), {"shared": True}),
    "box": (PPO, spaces.Box(-2.0, 3.0, (2,), np.float64), {"shared": True}),
    "plain": (PPO, spaces.MultiBinary(2), {"normalise_observations": False}),
    "pqn": (PQN, spaces.Discrete(4), {}),
    "dqn": (DQN, spaces.MultiDiscrete([2, 3]), {"learning_starts": 10, "normalise_observations": False}),
}


def states(n=40):
    return (100.0 + 7.0 * np.random.default_rng(6).normal(size=(n, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def agents():
    made = {}
    for name, (cls, actions, own) in AGENTS.items():
        settings = {"normalise_observations": True, "scale_rewards": True, "rollout": 30, "seed": 3, **own}
        agent = made[name] = cls(SEEN, actions, 2, (8, 8), **settings)
        rng = np.random.default_rng(5)
        for _ in range(3):
            rollout, policy = Rollout.zeros(30, 2, 3, agent.head.n_values, "float32"), agent.policy()
            rollout.observations[:] = 100.0 + 7.0 * rng.normal(size=rollout.observations.shape)
            rollout.next_observations[:] = rollout.observations[1:]
            for t in range(30):
                agent.acting.choose(rollout.observations[t], policy, rollout.actions[t], rollout.log_probs[t])
            rollout.rewards[:] = 5.0 * rng.normal(size=(30, 2)) + 2.0
            rollout.terminated[9::10] = True
            agent.learn(rollout, policy)
    return made


def check(found, agent):
    s = states()
    s[0] += 1000.0  # more than ten standard deviations from all that was seen
    said = np.array([agent.values(row) for row in s])
    actor = agent.actor()
    actions = np.array([np.asarray(actor.start(row), np.float64).ravel() for row in s])
    assert_close(found(s)["value" if agent.learns_policy else "action_values"], said, 1e-5)
    assert_close(found(s)["action"], actions, 1e-5)
    if isinstance(agent.action_space, spaces.Box):
        assert_close(found(s)["action_std"], np.tile(2.5 * np.exp(agent.spread.w), (len(s), 1)), 1e-5)
    elif agent.learns_policy:
        assert_close(found(s)["action_probabilities"].sum(axis=1), np.full(len(s), len(agent.head.layout)), 1e-5)


@needs_compiler
def test_in_c(agents, tmp_path):
    headers = compiled(tmp_path, **agents)
    for name, agent in agents.items():
        names = [output.name for output in headers[name].graph.outputs]
        check(lambda s, name=name, names=names: {o: getattr(headers[name], o)(s) for o in names}, agent)


@needs_onnx
def test_in_onnx(agents):
    for agent in agents.values():
        check(lambda s, agent=agent: in_onnx_runtime(agent, s), agent)


def test_values_folded_into_one_network(agents):
    # What a service has: observations and values as they come.
    for agent in agents.values():
        net, w = value_network(agent)
        unit = Scaling(np.zeros(net.n_outputs), np.full(net.n_outputs, agent.reward_scale))
        folded, weights = fold_scaling(net, w, scaling_of(agent), unit)
        assert_close(folded.forward(weights, states()), np.array([agent.values(row) for row in states()]), 1e-5)


def test_served(tmp_path):
    from valueapprox import train
    from valueapprox.commands.serve import folded

    trained = train(
        "CartPole-v1", "ppo", steps=64, envs=2, rollout=32, folder=tmp_path / "r", progress=False, hidden=[8, 8]
    )
    net, w = folded(trained.learned)
    observation, _ = gym.make("CartPole-v1").reset(seed=1)
    assert net.forward(w, observation)[0] == pytest.approx(trained.value(observation), rel=1e-5)
