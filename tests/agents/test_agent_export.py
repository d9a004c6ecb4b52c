"""Agents as they are exported: from observations as they come to values in the rewards' unit and to greedy actions."""

import gymnasium as gym
import numpy as np
import pytest
from exported import assert_close, compiled, in_onnx_runtime, needs_compiler, needs_onnx
from gymnasium import spaces

from valueapprox.agents import QRC, StreamAC, StreamQ, StreamTD
from valueapprox.agents.export import normalisation

SEEN = spaces.Box(-np.inf, np.inf, (3,), np.float32)
WHOLE = spaces.Box(np.array([0, -5]), np.array([3, 5]), dtype=np.int64)
HALF = spaces.Box(np.array([2.0, -np.inf, -1.0]), np.array([np.inf, np.inf, 3.0]), dtype=np.float64)
AGENTS = {
    "q": (StreamQ, spaces.Discrete(4, start=3)),
    "q_table": (StreamQ, spaces.MultiDiscrete([2, 3], start=[1, -1])),
    "q_binary": (StreamQ, spaces.MultiBinary(2)),
    "qrc": (QRC, spaces.Discrete(2)),
    "ac": (StreamAC, spaces.Discrete(3, start=-1)),
    "ac_factors": (StreamAC, spaces.MultiDiscrete([2, 4, 3], start=[0, 5, -2])),
    "ac_binary": (StreamAC, spaces.MultiBinary((2, 2))),
    "ac_box": (StreamAC, spaces.Box(-2.0, 2.0, (2,), np.float64)),
    "ac_half": (StreamAC, HALF),
    "ac_whole": (StreamAC, WHOLE),
    "td": (StreamTD, spaces.Discrete(2)),
}
RELATIVE = {"float64": 1e-12, "float32": 1e-5}
BY_DTYPE = {"float32": list(AGENTS), "float64": ["q"]}  # agents of another dtype compile for seconds


def played(name, dtype="float32", n=200, **options):
    """An agent that has learned from random observations far from 0, and what it has seen."""
    cls, actions = AGENTS[name]
    agent = cls(SEEN, actions, hidden=(8, 8), dtype=dtype, seed=3, **options)
    rng = np.random.default_rng(5)
    seen = (100.0 + 7.0 * rng.normal(size=(n, 3))).astype(np.float32).astype(dtype)  # as its weights are
    agent.start(seen[0])
    for t in range(1, n):
        if t % 20 == 0:
            agent.end(rng.normal() + 2.0, seen[t], terminated=t % 40 == 0)
        elif t % 20 == 1:
            agent.start(seen[t])
        else:
            agent.step(5.0 * rng.normal() + 2.0, seen[t])
    return agent, seen


def states(n=40):
    return (100.0 + 7.0 * np.random.default_rng(6).normal(size=(n, 3))).astype(np.float32)


def expected(agent, s):
    """Outputs by name, from the networks alone, and the greedy actor's actions."""
    net, unit = agent.first.net, normalisation(agent)[1]
    x = (s - seen_mean(agent)[0]) / seen_mean(agent)[1]
    outputs = {"value" if net.n_outputs == 1 else "action_values": unit * net.forward(agent.first.w, x)}
    if isinstance(agent, StreamTD):
        return {"value": np.array([[agent.value(row)] for row in s])}
    if agent.learns_policy:
        y = agent.second.net.forward(agent.second.w, x).astype(np.float64)
        outputs |= policy(agent.action_space, y)
    actor = agent.actor()
    actions = np.array([np.asarray(actor.start(row), np.float64).ravel() for row in s.astype(net.dtype)])
    return {**outputs, "action": actions}


def seen_mean(agent):
    seen = agent.test_seen.astype(np.float64)
    return seen.mean(axis=0), np.sqrt(seen.var(axis=0, ddof=1) + 1e-8)


def policy(space, y):
    """Of an actor's outputs y (n, ...)."""
    if isinstance(space, spaces.Box):
        k = y.shape[1] // 2
        low, high = space.low.astype(float), space.high.astype(float)
        bounded = np.isfinite(low) & np.isfinite(high)
        unit = np.where(bounded, (high - low) / 2, 1.0)
        # HALF's first entry has its 0 one unit inside of its bound, 2.
        origin = np.where(bounded, np.where(bounded, high, 0) / 2 + np.where(bounded, low, 0) / 2, 0.0)
        origin = np.where(np.isfinite(low) & ~bounded, low + 1.0, origin)
        return {"action_mean": origin + unit * y[:, :k], "action_std": unit * np.logaddexp(0.0, y[:, k:])}
    sizes = [2] * space.shape[0] * space.shape[-1] if isinstance(space, spaces.MultiBinary) else None
    sizes = sizes or (space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [int(space.n)])
    parts = np.split(np.exp(y), np.cumsum(sizes)[:-1], axis=1)
    return {"action_probabilities": np.concatenate([p / p.sum(axis=1, keepdims=True) for p in parts], axis=1)}


@pytest.fixture(scope="module", params=BY_DTYPE)
def agents(request):
    made = {}
    for name in BY_DTYPE[request.param]:
        agent, seen = played(name, request.param)
        agent.test_seen = seen
        made[name] = agent
    return request.param, made


def check(found, agent, dtype):
    s = states()
    wanted = expected(agent, s)
    assert list(found) == list(wanted)
    for output, values in wanted.items():
        assert_close(found[output], values, RELATIVE[dtype])


@needs_compiler
def test_in_c(agents, tmp_path):
    dtype, made = agents
    headers = compiled(tmp_path, **made)
    for name, agent in made.items():
        outputs = [output.name for output in headers[name].graph.outputs]
        check({output: getattr(headers[name], output)(states()) for output in outputs}, agent, dtype)


@needs_onnx
def test_in_onnx(agents):
    dtype, made = agents
    for agent in made.values():
        found = in_onnx_runtime(agent, states())
        check(found, agent, dtype)
        assert "action" not in found or (found["action"].dtype == np.int64) != isinstance(
            agent.action_space, spaces.Box
        )


@needs_compiler
def test_the_time_is_the_number_of_steps(tmp_path):
    agent, _ = played("q", time_limit=20)
    header = compiled(tmp_path, agent=agent)["agent"]
    assert header.graph.n_inputs == 4
    assert "the last entry of observation is the number of steps" in header.graph.about
    actor, s = agent.actor(), states(15)
    actions = [actor.start(s[0]), *map(actor.step, s[1:])]
    assert header.action(np.column_stack([s, np.arange(15)]))[:, 0].tolist() == actions
    frozen = agent.memory.copy()
    assert len({tuple(v) for v in header.action_values(np.column_stack([s[[0] * 15], np.arange(15)]))}) == 15
    np.testing.assert_array_equal(agent.memory, frozen)


@needs_compiler
def test_without_normalisers_observations_and_rewards_are_as_they_come(tmp_path):
    agent, _ = played("q", normalise_observations=False, scale_rewards=False)
    header = compiled(tmp_path, agent=agent)["agent"]
    assert_close(header.action_values(states()), agent.first.net.forward(agent.first.w, states()), 1e-5)


@needs_compiler
def test_rewards_that_are_all_equal_have_no_unit(tmp_path):
    env = gym.make("CartPole-v1")
    agent = StreamTD(env.observation_space, env.action_space, gamma=0.0, hidden=(4,))
    observation, _ = env.reset(seed=0)
    agent.start(observation)
    for _ in range(5):
        observation, reward, *_ = env.step(0)
        agent.step(reward, observation)
    header = compiled(tmp_path, agent=agent)["agent"]
    assert_close(header.value(observation[None])[0], [agent.value(observation)], 1e-5)


@needs_compiler
def test_a_discrete_observation_is_one_hot(tmp_path):
    agent = StreamQ(spaces.Discrete(4), spaces.Discrete(2), (5,), seed=1)
    agent.start(1)
    for t in range(30):
        agent.step(float(t % 3), t % 4)
    header = compiled(tmp_path, agent=agent)["agent"]
    actor = agent.actor()
    assert header.action(np.eye(4))[:, 0].tolist() == [actor.start(o) for o in range(4)]
