"""StreamTD: the values of a given policy."""

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stream_agents import PLAIN, SPACE, THREE, assert_frequencies, assert_same, frequencies, life, live, make, snapshot

from valueapprox import SGD, DivergenceError
from valueapprox.agents import StreamQ, StreamTD
from valueapprox.agents.control_loop import CompiledLoop
from valueapprox.agents.prediction import Prediction
from valueapprox.envs import RandomWalk, compiled_world


@pytest.mark.parametrize(("settings", "unit"), [(PLAIN, 1.0), ({"normalise_observations": False}, 100.0)])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_values_of_the_random_walk_are_found(gamma, settings, unit):
    # v of 5 states, by a table; in the second case the learner divides rewards of 100 by their running spread.
    # With G = gamma^T at the right end and 0 at the left, E G^2 is v for gamma^2: var G = v(gamma^2) - v(gamma)^2.
    # State i (1 to 5, from 3) is visited in 3 / (6 - i) of the walks for i < 3 and mirrored, so that the mean first
    # return after it has the standard error sqrt(var G / visits), and 4 of them are the tolerance. The mean of the
    # values over the last 3000 walks knows as much as those returns: over 8 seeds it spreads by half of that. A
    # constant step leaves a bias in proportion to it, at 0.01 and gamma = 0.9 a quarter of the tolerance.
    walk = RandomWalk(5, left_reward=0.0)
    n_walks, states = 3000, walk.features_matrix()
    table = {
        "dtype": "float64",
        "hidden": (),
        "init": "zeros",
        "optimizer": SGD(0.01),
        "gamma": gamma,
        "lam": 0.5,
        "seed": 3,
    } | settings
    agent = StreamTD(spaces.Box(0.0, 1.0, (5,), np.float64), spaces.Discrete(2), **table)
    values = np.zeros(5)
    for t in range(500 + n_walks):
        i = walk.start
        action = agent.start(states[i])
        while True:
            i += 1 if action == 1 else -1
            if not 0 <= i < 5:
                break
            action = agent.step(0.0, states[i])
        agent.end(unit * (i == 5), np.zeros(5), terminated=True)
        if t >= 500:
            values += [agent.value(s) / (unit * n_walks) for s in states]
    expected = walk.true_values(gamma)
    if gamma == 1.0:
        np.testing.assert_allclose(expected, np.arange(1, 6) / 6)
    visits = n_walks * np.array([3 / 5, 3 / 4, 1, 3 / 4, 3 / 5])
    tolerance = 4 * np.sqrt((walk.true_values(gamma**2) - expected**2) / visits)
    assert tolerance.max() < 0.04
    assert (np.abs(values - expected) < tolerance).all()


def test_a_value_by_hand_in_the_rewards_own_unit_with_the_statistics_as_they_stand():
    # Rewards 2, 4, 20 at gamma 1/2: u = 2, 5, 22.5. The time is 3 of 8 steps from -1/2 to 1/2: -1/8.
    agent, alone = (make("td", gamma=0.5, time_limit=8, hidden=(5, 4)) for _ in range(2))
    seen = np.random.default_rng(0).normal(3.0, 2.0, (4, 3))
    calls = [("start", seen[0]), *(("step", r, s) for r, s in zip((2.0, 4.0, 20.0), seen[1:], strict=True))]
    s = np.array([1.0, -2.0, 0.5])

    def expected(time):
        x = (s - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0, ddof=1) + 1e-8)
        unit = math.sqrt(np.var([2.0, 5.0, 22.5], ddof=1) + 1e-8)
        return unit * agent.first.net.forward(agent.first.w, np.append(x, time))[0]

    live(alone, calls)
    for call in calls:
        agent.value(s)
        live(agent, [call])
    hidden = [array.copy() for array in agent.arrays]
    assert agent.value(s) == pytest.approx(expected(-0.125), rel=1e-12)
    assert agent.value(s, elapsed=0) == pytest.approx(expected(-0.5), rel=1e-12)
    assert agent.value(s, elapsed=8) == pytest.approx(expected(0.5), rel=1e-12) != pytest.approx(agent.value(s))
    for array, before in zip(agent.arrays, hidden, strict=True):
        np.testing.assert_array_equal(array, before)
    assert_same(snapshot(agent), snapshot(alone))
    with pytest.raises(ValueError, match="finite"):
        agent.value(np.array([0.0, np.nan, 0.0]))
    seen = np.vstack([seen, s])
    agent.step(0.0, s)  # u = 11.25
    assert agent.value(s) == agent.value(s, elapsed=4)
    agent.end(0.0, s, terminated=False)
    assert agent.value(s) == agent.value(s, elapsed=0)  # no episode runs


def test_without_the_recipe_it_is_the_prediction_agent():
    settings = {"hidden": (5,), "optimizer": SGD(0.003), "gamma": 0.9, "lam": 0.8, "seed": 4, "dtype": "float64"}
    agent = StreamTD(SPACE, THREE, **settings, **PLAIN | {"activation": "relu"})
    other = Prediction(SPACE, THREE, **settings)
    agent.first.w[:] = other.value_function.w
    calls = life(200)
    assert live(agent, calls) == live(other, calls)
    np.testing.assert_allclose(agent.first.w, other.value_function.w, rtol=1e-10, atol=1e-13)
    s = np.array([0.3, -0.1, 0.7])
    assert agent.value(s) == pytest.approx(float(other.value_function.predict(s)), rel=1e-9)


def test_a_value_that_is_not_finite_is_an_error():
    agent = make("td", **PLAIN)
    agent.first.w[-1] = np.nan
    with pytest.raises(DivergenceError):
        agent.value(np.ones(3))


class Told:
    """A policy that notes what it is shown, and answers from a list."""

    def __init__(self, answers):
        self.answers, self.shown = answers, []

    def __call__(self, observation, rng):
        self.shown.append(observation)
        return self.answers[len(self.shown) - 1]


def test_the_policy_is_shown_what_the_environment_gives_and_its_answer_is_passed_on():
    # Any space: this one has no array for an action.
    actions = spaces.Dict({"say": spaces.Text(5), "push": THREE})
    observations, answers = [7, np.int64(9), 8], [{"say": w, "push": 1} for w in ("a", "b", "c")]
    policy = Told(answers)
    agent = StreamTD(spaces.Discrete(4, start=7), actions, policy)
    with pytest.raises(RuntimeError, match="no action"):
        agent.action()
    assert agent.start(observations[0]) is agent.action() is answers[0]
    assert agent.step(1.0, observations[1]) is answers[1]
    assert agent.end(1.0, 10, terminated=True) is None
    assert agent.start(observations[2]) is answers[2]
    assert all(a is b for a, b in zip(policy.shown, observations, strict=True))
    agent.restore(snapshot(agent))
    with pytest.raises(RuntimeError, match="no action"):
        agent.action()
    with pytest.raises(TypeError, match="policy is"):
        StreamTD(SPACE, THREE, (32, 32))
    assert actions.contains(StreamTD(SPACE, actions).start(np.ones(3)))


@pytest.mark.parametrize(
    "actions",
    [
        spaces.Discrete(3, start=-5),
        spaces.Box(-1.0, 1.0, (2, 2)),
        spaces.Box(-np.inf, np.inf, (), np.float64),
        spaces.MultiDiscrete([2, 300]),
        spaces.MultiBinary((2, 3)),
    ],
    ids=str,
)
def test_a_restored_agent_knows_the_action_that_is_to_be_taken(actions, tmp_path):
    agent, again = StreamTD(SPACE, actions, seed=1), StreamTD(SPACE, actions, seed=2)
    live(agent, life(5, ends=0.0))
    agent.save(tmp_path / "agent.npz")
    again.load(tmp_path / "agent.npz")
    assert np.array(again.action()).dtype == np.array(agent.action()).dtype
    np.testing.assert_array_equal(again.action(), agent.action())
    assert actions.contains(again.action())
    for call in life(5, ends=0.0, seed=1)[1:]:
        np.testing.assert_array_equal(live(again, [call])[0], live(agent, [call])[0])


@pytest.mark.parametrize("n_drawn", [0, 1, 2, 3])
def test_the_policys_generator_is_restored_to_the_bit(n_drawn, tmp_path):
    # Every second whole number comes from 32 bits that were left over.
    agent, again = (StreamTD(SPACE, THREE, lambda observation, rng: rng.integers(3), seed=s) for s in (1, 2))
    live(agent, life(n_drawn, ends=0.0)[:n_drawn])
    again.rng.integers(3)
    assert agent.rng.bit_generator.state["has_uint32"] == n_drawn % 2
    agent.save(tmp_path / "agent.npz")
    again.load(tmp_path / "agent.npz")
    assert again.rng.bit_generator.state == agent.rng.bit_generator.state


def test_the_uniform_policy_is_uniform_and_so_is_its_actor():
    agent = make("td")
    assert_frequencies(frequencies(agent), [1 / 3] * 3)
    actor = agent.actor()
    assert_frequencies(np.bincount([actor.start(np.zeros(3)) for _ in range(6000)], minlength=3), [1 / 3] * 3)


def test_the_compiled_loop_which_knows_no_policy_is_not_for_it():
    env = gym.make("valueapprox/CartPole-v1")
    world = compiled_world("valueapprox/CartPole-v1")[0]
    for kind, fits in ((StreamQ, True), (StreamTD, False)):
        assert CompiledLoop.fits(kind(env.observation_space, env.action_space), env, world) is fits
