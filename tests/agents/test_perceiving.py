"""What control agents make of observations, rewards and time."""

import math

import numpy as np
import pytest
from gymnasium import spaces
from stream_agents import ALGORITHMS, inputs, last_delta, live, make

from valueapprox import SGD
from valueapprox.agents import layout as kernels


@pytest.mark.parametrize("name", ALGORITHMS)
def test_observations_are_normalised_by_all_that_was_seen(name):
    # 1, 2, 4: means 1, 3/2, 7/3; variances 1 (for want of one), 1/2, 7/3. Then 1 in a new episode: mean 2, variance 2.
    agent = make(name, spaces.Box(-9, 9, (1,), np.float64))
    agent.start(np.array([1.0]))
    assert inputs(agent)[0] == 0.0
    agent.step(1.0, np.array([2.0]))
    assert inputs(agent)[0] == pytest.approx(0.5 / math.sqrt(0.5 + 1e-8), rel=1e-12)
    agent.end(1.0, np.array([4.0]), False)
    assert agent.first.scratch_next[0, 0] == pytest.approx(5 / 3 / math.sqrt(7 / 3 + 1e-8), rel=1e-12)
    agent.start(np.array([1.0]))
    assert inputs(agent)[0] == pytest.approx(-1.0 / math.sqrt(2.0 + 1e-8), rel=1e-12)
    assert agent.memory[kernels.OBSERVATIONS_SEEN] == 4
    if name == "td":  # whose actor needs no network
        return
    actor = agent.actor()
    for _ in range(3):
        actor.start(np.array([5.0]))
        assert actor._nets[2][0, 0] == pytest.approx(3.0 / math.sqrt(2.0 + 1e-8), rel=1e-12)


def test_an_observation_that_never_changes_is_zero():
    agent = make("q")
    for _ in range(3):
        agent.start(np.array([3.0, -1e6, 1e-9]))
        assert inputs(agent).tolist() == [0.0, 0.0, 0.0]


def test_normalising_is_exact_far_from_zero():
    agent, rng = make("q"), np.random.default_rng(0)
    seen = 1e6 + rng.normal(size=(200, 3))
    live(agent, [("start", seen[0]), *(("step", 0.0, s) for s in seen[1:])])
    expected = (seen[-1] - seen.mean(axis=0)) / seen.std(axis=0, ddof=1)
    np.testing.assert_allclose(inputs(agent), expected, rtol=1e-6)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_rewards_are_scaled_by_the_spread_of_their_discounted_sums(name, terminated):
    # gamma = 1/2, rewards 2, 4, 6 | 1. u = 2, 5, then cut before the last reward is added: 6, and 4 in the new episode.
    # No variance at first, then 9/2, 13/3, 35/12. Values are 0, so delta is the scaled reward.
    agent = make(name, hidden=(), init="zeros", optimizer=SGD(0.0), second_optimizer=SGD(0.0), gamma=0.5)
    s = np.ones(3)
    agent.start(s)
    deltas = [last_delta(agent, "step", 2.0, s), last_delta(agent, "step", 4.0, s)]
    deltas.append(last_delta(agent, "end", 6.0, s, terminated))
    agent.start(s)
    deltas.append(last_delta(agent, "step", 1.0, s))
    expected = [2.0, *(r / math.sqrt(v + 1e-8) for r, v in ((4, 4.5), (6, 13 / 3), (1, 35 / 12)))]
    np.testing.assert_allclose(deltas, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_values_in_the_rewards_own_unit_outlast_a_change_of_the_unit(name):
    # Step sizes are 0: nothing is learned, but the divisor of rewards changes, from 3/sqrt(2) to 7.
    agent = make(
        name, hidden=(4,), gamma=0.5, optimizer=SGD(0.0), second_optimizer=SGD(0.0), normalise_observations=False
    )
    s = np.array([0.3, -1.0, 2.0])
    values = []
    agent.start(s)
    for reward in (2.0, 4.0, 20.0):  # u = 2, 5, 22.5
        agent.step(reward, s)
        values.append(agent.first.net.forward(agent.first.w, s) * (agent.memory[kernels.REWARD_SCALE] or 1.0))
    assert agent.memory[kernels.REWARD_SCALE] == pytest.approx(np.std([2.0, 5.0, 22.5], ddof=1))
    np.testing.assert_allclose(values[2], values[1], rtol=1e-12)
    without = make(name, hidden=(4,), gamma=0.5, rescale_outputs=False, optimizer=SGD(0.0), second_optimizer=SGD(0.0))
    before = without.first.w.copy()
    live(without, [("start", s), ("step", 2.0, s), ("step", 4.0, s), ("step", 20.0, s)])
    np.testing.assert_array_equal(without.first.w, before)


def test_rewards_that_never_change_have_no_unit():
    # gamma = 0: u = r = 0.001 at every step. A divisor of sqrt(0 + 1e-8) would make it 10 here, and 1 of 1e-4.
    agent = make("q", hidden=(), init="zeros", optimizer=SGD(0.0), gamma=0.0)
    agent.start(np.ones(3))
    assert [last_delta(agent, "step", 0.001, np.ones(3)) for _ in range(3)] == [0.001] * 3
