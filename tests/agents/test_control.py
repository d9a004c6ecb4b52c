"""Control agents that act without learning, in the log, and in an environment."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stream_agents import (
    ACTORS,
    AGENTS,
    ALGORITHMS,
    PAIRS,
    PLAIN,
    THREE,
    VALUE_BASED,
    assert_same,
    inputs,
    life,
    live,
    make,
    snapshot,
)

from valueapprox import SGD
from valueapprox.agents import QRC, ExpectedSarsa, Sarsa, StreamAC, StreamQ, StreamTD
from valueapprox.agents import layout as kernels


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("name", AGENTS)
def test_an_actor_changes_nothing_of_its_agent(name, greedy):
    agent, alone = make(name, time_limit=20), make(name, time_limit=20)
    for calls in (life(30), life(30, seed=1)[1:]):
        assert str(live(agent, calls)) == str(live(alone, calls))
        hidden = [array.copy() for array in agent.arrays]
        actor = agent.actor(seed=1, greedy=greedy)
        actor.start(np.ones(3))
        for _ in range(20):
            actor.step(np.array([1.0, -2.0, 0.5]))
        assert_same(snapshot(agent), snapshot(alone))
        for array, before in zip(agent.arrays, hidden, strict=True):
            np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("name", AGENTS)
def test_an_actor_is_frozen_while_its_agent_learns_on(name):
    agent, states = (
        make(name, optimizer=SGD(0.1), second_optimizer=SGD(0.1)),
        np.random.default_rng(0).normal(size=(30, 3)),
    )
    live(agent, life(20))
    now, later, w = agent.actor(), agent.actor(), agent.first.w.copy()
    actions = [now.start(s) for s in states]
    live(agent, life(100, seed=1))
    assert str([later.start(s) for s in states]) == str(actions)
    assert np.abs(agent.first.w - w).max() > 0.01


@pytest.mark.parametrize("name", [name for name in AGENTS if AGENTS[name][0] is not StreamTD])
def test_a_greedy_actor_takes_the_best_action(name):
    agent = make(name, normalise_observations=False)
    live(agent, life(30))
    actor = agent.actor()
    acting = agent.second if name in ACTORS or "actor" in name else agent.first
    for s in np.random.default_rng(0).normal(size=(20, 3)):
        outputs = acting.net.forward(acting.w, s)
        if name == "gaussian":
            np.testing.assert_allclose(actor.start(s), outputs[:2], rtol=1e-12)
        elif name == "factored":
            parts = np.split(outputs, np.cumsum(PAIRS.nvec)[:-1])
            np.testing.assert_array_equal(actor.start(s) - PAIRS.start, [part.argmax() for part in parts])
        else:
            assert actor.start(s) == outputs.argmax()


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"q, limits are terminal"}))
def test_an_actor_that_is_not_greedy_has_randomness_of_its_own(name):
    agent = make(name)
    live(agent, life(20, ends=0.0))

    def actions(seed):
        actor = agent.actor(seed=seed, greedy=False)
        return str([actor.start(np.ones(3)) for _ in range(60)])

    assert actions(0) == actions(0) != actions(1)
    live(agent, life(3, ends=0.0))


def test_an_actor_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        make("q").actor().start(np.array([0.0, np.nan, 0.0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", AGENTS)
def test_measuring_changes_no_learned_bit(name, dtype):
    plain, measured = make(name, dtype=dtype), make(name, dtype=dtype)
    measured.norms_every = 2
    answers = [], []
    for call in life(80, dtype=dtype):
        answers[0].append(live(plain, [call]))
        answers[1].append(live(measured, [call]))
        measured.diagnostics()
    assert str(answers[0]) == str(answers[1])
    a, b = snapshot(plain), snapshot(measured)
    for state in (a, b):
        for name in ("first", "second"):
            state[f"{name}/scalars"][3:] = 0.0  # sums for the log
    assert_same(a, b, but=("sums", "first/stats", "second/stats", "first/watched", "second/watched"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_tags_of_the_log(name):
    agent = make(name)
    agent.norms_every = 1
    live(agent, life(20))
    shown = agent.diagnostics()
    layers = [f"{tag}/{l}" for tag in ("grad_norm", "trace_norm", "update_ratio", "weight_norm") for l in "AB"]
    bounded = [] if name == "qrc" else ["step_size", "bounded"]  # by default QRC learns by SGD
    per_network = [*layers, *bounded]
    first = "critic" if name in ACTORS else "value"
    expected = {f"{first}/{tag}" for tag in [*per_network, "td_error/mean", "td_error/rms"]}
    if name in ACTORS:
        expected |= {f"actor/{tag}" for tag in [*per_network, "entropy"]}
    if name == "gaussian":
        expected.add("actor/spread")
    if name == "qrc":
        expected |= {f"h/{tag}" for tag in per_network}
    if name in VALUE_BASED:
        expected.add("agent/epsilon")
    assert set(shown) == expected
    assert all(math.isfinite(number) for number in shown.values())
    if bounded:
        assert 0 < shown[f"{first}/step_size"] <= 1
        assert 0 <= shown[f"{first}/bounded"] <= 1


def test_the_norms_of_h_are_in_the_log():
    agent = make("qrc")
    agent.norms_every = 1
    live(agent, life(20))
    assert {"h/grad_norm/A", "h/trace_norm/A", "h/update_ratio/A"} <= set(agent.diagnostics())


@pytest.mark.parametrize("name", AGENTS)
def test_the_numbers_of_the_log(name):
    agent = make(name, **PLAIN)
    agent.norms_every = 1
    first = "critic" if type(agent) is StreamAC else "value"
    for call in life(40):
        before, traced = agent.first.w.copy(), agent.first.z.copy()
        x, action = inputs(agent), 0 if first == "critic" else int(agent.counts[kernels.ACTION])
        g = agent.first.net.gradient(before, x, action)
        cut = "before" in name and agent.counts[kernels.EXPLORING]
        live(agent, [call])
        shown = agent.diagnostics()
        if call[0] == "start":
            assert not any("td_error" in tag or "grad_norm" in tag for tag in shown)
            continue
        z = 0.9 * 0.8 * (0.0 if cut else traced) + g if "gamma" not in AGENTS[name][2] else 0.8 * traced + g
        norms = agent.first.net.layer_norms
        for layer in "AB":
            assert shown[f"{first}/grad_norm/{layer}"] == pytest.approx(norms(g)[layer], rel=1e-9)
            assert shown[f"{first}/trace_norm/{layer}"] == pytest.approx(norms(z)[layer], rel=1e-9)
            ratio = norms(agent.first.w - before)[layer] / norms(agent.first.w)[layer]
            assert shown[f"{first}/update_ratio/{layer}"] == pytest.approx(ratio, rel=1e-6)
            assert shown[f"{first}/weight_norm/{layer}"] == pytest.approx(norms(agent.first.w)[layer])
        assert shown[f"{first}/td_error/rms"] == pytest.approx(abs(shown[f"{first}/td_error/mean"]))


def test_every_second_step_is_measured_and_averages_begin_anew():
    agent = make("actor-critic")
    agent.norms_every = 2
    live(agent, life(10, ends=0.0))
    assert agent.first.stats[0, 3] == 5
    agent.diagnostics()
    assert not agent.first.stats.any()
    assert not agent.sums.any()
    assert not any("grad_norm" in tag for tag in agent.diagnostics())
    with pytest.raises(ValueError, match="norms_every"):
        agent.norms_every = -1


@pytest.mark.parametrize("kind", [StreamAC, StreamQ, Sarsa, ExpectedSarsa, QRC])
def test_a_bandit_is_learned(kind):
    # One state, action 2 pays 1 and the others 0, every episode is one step. By ObGD and the defaults of the recipe.
    agent = kind(spaces.Discrete(1), THREE, **({} if kind is StreamAC else {"epsilon": (1.0, 0.05, 1000)}), seed=1)
    for _ in range(3000):
        agent.end(float(agent.start(0) == 2), 0, terminated=True)
    actor = agent.actor()
    assert [actor.start(0) for _ in range(10)] == [2] * 10


def test_gymnasiums_environments_take_what_agents_answer():
    for name, kind in (("CartPole-v1", StreamQ), ("Pendulum-v1", StreamAC)):
        env = gym.make(name)
        agent = kind(env.observation_space, env.action_space, time_limit=30, seed=1)
        for episode in range(2):
            observation, _ = env.reset(seed=episode)
            action = agent.start(observation)
            for t in range(30):
                assert env.action_space.contains(action)
                observation, reward, terminated, _, _ = env.step(action)
                if terminated or t == 29:
                    agent.end(reward, observation, terminated)
                    break
                action = agent.step(reward, observation)
        assert agent.counts[kernels.RUNNING] == 0
