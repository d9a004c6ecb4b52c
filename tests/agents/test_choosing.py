"""How control agents choose their actions, and when actions persist."""

import math

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats
from stream_agents import (
    AGENTS,
    ALGORITHMS,
    PLAIN,
    PLANE,
    SPACE,
    THREE,
    assert_frequencies,
    frequencies,
    inputs,
    last_delta,
    life,
    live,
    make,
    policy,
)

from valueapprox import SGD
from valueapprox.agents import QRC, ExpectedSarsa, Sarsa, StreamAC, StreamQ
from valueapprox.agents import layout as kernels
from valueapprox.agents.choosing import draw, epsilon_now
from valueapprox.agents.control_loop import CompiledLoop
from valueapprox.envs import compiled_world


def linear(kind=StreamQ, outputs=(0.0, 0.0, 0.0), **settings):
    """An agent whose outputs at the zero state are `outputs`."""
    agent = kind(SPACE, THREE, (), dtype="float64", **PLAIN | settings)
    acting = agent.second if kind is StreamAC else agent.first
    acting.w[-3:] = outputs
    return agent


@pytest.mark.parametrize("kind", [StreamQ, Sarsa, ExpectedSarsa, QRC])
def test_ties_are_broken_at_random(kind):
    assert_frequencies(frequencies(linear(kind, epsilon=(0, 0, 0))), [1 / 3] * 3)
    assert_frequencies(frequencies(linear(kind, (1, 0.5, 1), epsilon=(0, 0, 0))), [1 / 2, 0, 1 / 2])
    assert_frequencies(frequencies(linear(kind, (1, 0.5, 1.25), epsilon=(0, 0, 0))), [0, 0, 1])


def test_a_greedy_actor_breaks_ties_at_random_too():
    actor = linear(StreamAC, (1, 0.5, 1)).actor(seed=3)
    counts = np.bincount([actor.start(np.zeros(3)) for _ in range(6000)], minlength=3)
    assert_frequencies(counts, [1 / 2, 0, 1 / 2])


@pytest.mark.parametrize(("n_steps", "epsilon"), [(0, 0.9), (25, 0.7), (50, 0.5), (100, 0.1), (10_000, 0.1)])
def test_epsilon_goes_in_a_straight_line(n_steps, epsilon):
    agent = linear(outputs=(1, 2, 0), epsilon=(0.9, 0.1, 100))
    agent.counts[kernels.STEPS] = n_steps
    assert epsilon_now(agent.settings, agent.counts) == pytest.approx(epsilon)
    assert_frequencies(frequencies(agent), [epsilon / 3, 1 - 2 * epsilon / 3, epsilon / 3])


def test_epsilon_of_no_steps_is_its_last_value():
    assert_frequencies(frequencies(linear(outputs=(1, 2, 0), epsilon=(1.0, 0.0, 0))), [0, 1, 0])


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_softmax_frequencies(temperature):
    values = np.array([0.1, 0.3, -0.2])
    p = np.exp(values / temperature)
    assert_frequencies(frequencies(linear(outputs=values, temperature=temperature)), p / p.sum())


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_the_actors_frequencies_and_their_entropy(shift):
    logits = np.array([0.1, 1.3, -0.7])
    p = np.exp(logits) / np.exp(logits).sum()
    agent = linear(StreamAC, logits + shift)
    assert_frequencies(frequencies(agent), p)
    agent.step(1.0, np.ones(3))
    assert agent.diagnostics()["actor/entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-9)


@pytest.mark.parametrize("settings", [{"epsilon": (0.4, 0.4, 0)}, {"temperature": 0.5}])
@pytest.mark.parametrize("outputs", [(0.1, 1.3, -0.7), (1.0, -1.0, 1.0)])
def test_the_expectation_of_expected_sarsa_is_the_mean_over_what_it_does(settings, outputs):
    agent = linear(ExpectedSarsa, outputs, **settings, gamma=1.0)
    expected = policy(np.array(outputs), settings, 0) @ outputs
    counts = frequencies(agent)
    spread = math.sqrt(counts @ (np.array(outputs) - expected) ** 2 / counts.sum() ** 2)
    assert abs(counts @ outputs / counts.sum() - expected) < 4 * spread
    agent.counts[kernels.ACTION] = 1  # from q(s, a) = outputs[1]
    assert last_delta(agent, "step", 0.0, np.zeros(3)) == pytest.approx(expected - outputs[1], rel=1e-12)


def test_gaussian_samples_have_the_mean_and_spread_that_the_actor_says():
    agent = StreamAC(SPACE, PLANE, (), dtype="float64", **PLAIN)
    agent.second.w[-4:] = [0.7, -3.0, 1.0, -2.0]
    spread = np.log1p(np.exp([1.0, -2.0]))
    n = 10_000
    samples = np.array([agent.start(np.zeros(3)) for _ in range(n)])
    standard = (samples - [0.7, -3.0]) / spread
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=4 / math.sqrt(n))
    np.testing.assert_allclose(standard.std(axis=0), 1.0, atol=4 / math.sqrt(2 * n))
    assert abs(np.corrcoef(standard.T)[0, 1]) < 4 / math.sqrt(n)
    assert all(stats.kstest(column, "norm").pvalue > 1e-4 for column in standard.T)
    np.testing.assert_allclose(agent.actor().start(np.zeros(3)), [0.7, -3.0])
    agent.step(1.0, np.ones(3))
    shown = agent.diagnostics()
    assert shown["actor/spread"] == pytest.approx(spread.mean(), rel=1e-12)
    assert shown["actor/entropy"] == pytest.approx(stats.norm.entropy(scale=spread).sum(), rel=1e-12)


def test_random_numbers_are_uniform_and_streams_have_nothing_to_do_with_each_other():
    def numbers(agent, n=20_000):
        return np.array([draw(agent.key, agent.counts) for _ in range(n)])

    agents = [make("q", seed=seed) for seed in (0, 1, 2)]
    streams = [numbers(agent) for agent in agents]
    evaluation = agents[0].actor(seed=0)
    streams.append(np.array([draw(evaluation.key, evaluation.counts) for _ in range(20_000)]))
    assert len({agent.key for agent in agents} | {evaluation.key}) == 4
    for u in streams:
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        for lag in (1, 2, 3, 10):
            assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / math.sqrt(u.size)
        assert np.unique(u).size == u.size
    correlations = np.corrcoef(streams)
    assert np.abs(correlations - np.eye(4)).max() < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("name", AGENTS)
def test_nobody_touches_numpys_generator(name):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    live(make(name), life(10))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def still(delta=0.0, logits=(0.0, 0.0, 0.0), **settings):
    """A stream-ac that learns nothing: every TD error is `delta`, the policy the softmax of `logits`."""
    own = {"hidden": (), "init": "zeros", "optimizer": SGD(0.0), "second_optimizer": SGD(0.0)} | settings
    agent = make("actor-critic", **PLAIN | own)
    agent.second.w[-3:] = logits
    agent.start(np.zeros(3))

    def step():
        action = agent.step(delta, np.zeros(3))
        return agent.memory[kernels.DRAWN], action

    return agent, step


@pytest.mark.parametrize(
    ("delta", "logits", "settings", "expected"),
    [
        (0.0, (0.0, 0.0, 0.0), {}, 0.95),
        (0.0, (0.0, 0.0, 0.0), {"persistence": 0.5}, 0.5),
        (0.0, (0.0, 0.0, 0.0), {"persistence": 0.0}, 0.0),
        (-0.0125, (0.0, 0.0, 0.0), {}, 0.95 * 0.75),  # a quarter of 0.05
        (0.05, (0.0, 0.0, 0.0), {}, 0.0),
        # H of (0.75, 0.125, 0.125) is 0.735622 nats, 0.669599 log 3: (0.669599 - 0.5) / 0.3 of the way.
        (0.0, (math.log(6.0), 0.0, 0.0), {}, 0.95 * 0.565329),
        (0.0, (math.log(18.0), 0.0, 0.0), {}, 0.0),  # (0.9, 0.05, 0.05): H = 0.359 log 3
    ],
)
def test_an_undecided_policy_keeps_its_number_while_there_is_nothing_to_learn_from(delta, logits, settings, expected):
    _, step = still(delta, logits, seed=2, **settings)
    drawn, actions = np.array([step() for _ in range(20_000)]).T
    kept = np.mean(drawn[1:] == drawn[:-1])
    assert kept == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 20_000))
    # Whether it is kept or not, every action has the policy's probability. A number that is kept k times on average
    # counts once: 20,000 / (1 + 2 k) independent draws.
    p = np.exp(logits) / np.exp(logits).sum()
    n = 20_000 * (1 - expected) / (1 + expected)
    np.testing.assert_allclose(np.bincount(actions.astype(int), minlength=3) / 20_000, p, atol=4 * math.sqrt(0.25 / n))
    assert ((actions[1:] == actions[:-1]) | (drawn[1:] != drawn[:-1])).all()


def test_an_episode_begins_with_a_new_number_and_an_actor_draws_anew_always():
    agent, step = still(seed=3)
    starts, before = 0, []
    for _ in range(100):
        before.append(step()[0])
        agent.end(0.0, np.zeros(3), terminated=True)
        agent.start(np.zeros(3))
        starts += int(agent.memory[kernels.DRAWN] != before[-1])
    assert starts == 100
    actor = agent.actor(greedy=False)
    actions = np.array([actor.start(np.zeros(3)), *(actor.step(np.zeros(3)) for _ in range(3000))])
    assert np.mean(actions[1:] == actions[:-1]) == pytest.approx(1 / 3, abs=0.04)


def test_the_number_that_persists_is_saved(tmp_path):
    (agent, step), (again, step_again) = still(seed=4), still(seed=4)
    for _ in range(30):
        step()
    agent.save(tmp_path / "agent.npz")
    again.load(tmp_path / "agent.npz")
    assert [step_again() for _ in range(60)] == [step() for _ in range(60)]


@pytest.mark.parametrize("seed", [16, 20, 26, 27])
def test_the_goal_of_mountain_car_is_found(seed):
    # Every reward is -1 until the goal is reached, and the limit of 200 steps bootstraps. These are seeds in which
    # independent draws, with the error of the actor enlarged where it was small, never found it.
    env = gym.make("valueapprox/MountainCar-v0")
    agent = StreamAC(env.observation_space, env.action_space, seed=seed)
    observation, _ = env.reset(seed=seed)
    agent.start(observation)
    loop = CompiledLoop(agent, env, *compiled_world("valueapprox/MountainCar-v0"), np.zeros(2))
    chunks = [loop.run(10_000) for _ in range(20)]
    assert np.mean(np.concatenate([chunk.episodes[:, 1] for chunk in chunks[-3:]])) > -160


@pytest.mark.parametrize("name", ALGORITHMS)
def test_time_goes_from_minus_a_half_to_a_half(name):
    agent = make(name, time_limit=4, normalise_observations=False)
    assert agent.first.net.n_inputs == 4
    s = np.ones(3)
    for terminated in (True, False):
        agent.start(s)
        seen = [inputs(agent)[3]]
        for _ in range(3):
            agent.step(1.0, s)
            seen.append(inputs(agent)[3])
        agent.end(1.0, s, terminated)
        assert [*seen, agent.first.scratch_next[0, 3]] == [-0.5, -0.25, 0.0, 0.25, 0.5]
    agent.start(s)
    agent.step(1.0, s)
    if name == "td":
        return
    actor = agent.actor()
    seen = []
    for call in (actor.start, actor.step, actor.step, actor.start):
        call(s)
        seen.append(actor._nets[2][0, 3])
    assert seen == [-0.5, -0.25, 0.0, -0.5]
    assert agent.memory[kernels.TIME] == -0.25
