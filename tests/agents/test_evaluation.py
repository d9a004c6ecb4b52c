"""Monte Carlo evaluation against numbers by hand, and against true values within its intervals."""

import math

import numpy as np
import pytest

from valueapprox import Network, ValueFunction
from valueapprox.agents import evaluation
from valueapprox.agents.rollout import Task
from valueapprox.envs import RandomWalk


def task(env="scripted_envs:Rewards-v0", policy="random", **env_args):
    return Task(env, policy, env_args=env_args)


def table(values, gamma):
    """A value function that holds one value per one-hot state."""
    v = ValueFunction(Network((len(values), 1), bias=False, dtype="float64"), gamma=gamma)
    v.w[:] = values
    return v


# By hand: rewards 1, 2, 4 with gamma 1/2.  G = 1 + 2/2 + 4/4 = 3,  2 + 4/2 = 4,  4.
RETURNS = [3.0, 4.0, 4.0, 0.0]


def test_returns_by_hand():
    assert evaluation.discounted(np.array([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    assert evaluation.discounted(np.array([]), 0.5).tolist() == []


@pytest.mark.parametrize(
    ("gamma", "steps"), [(0.0, 1), (0.5, 10), (0.9, 66), (0.99, 688), (1.0, math.inf)]
)  # the least h with gamma^h <= 0.001
def test_the_horizon(gamma, steps):
    assert evaluation.horizon(gamma) == steps
    if 0 < gamma < 1:
        assert gamma**steps <= 0.001 < gamma ** (steps - 1)


@pytest.mark.parametrize(
    ("values", "rmse", "bias", "explained", "value_error"),
    [
        (RETURNS, 0.0, 0.0, 1.0, 0.0),
        ([0, 0, 0, 0], math.sqrt((9 + 16 + 16) / 3), -11 / 3, 0.0, None),
        ([5, 6, 6, 0], 2.0, 2.0, 1.0, 2.0),
        # v - G = (-1, 0, 1), so bias 0; var(G) = 41/3 - (11/3)^2 = 2/9 and 1 - (2/3) / (2/9) = -2
        ([2, 4, 5, 0], math.sqrt(2 / 3), 0.0, -2.0, None),
    ],
)
def test_errors_by_hand(values, rmse, bias, explained, value_error):
    result = evaluation.monte_carlo(table(values, 0.5), task(), n_episodes=20)
    assert (result.n_episodes, result.n_states, result.n_skipped) == (20, 60, 0)
    assert result.rmse.value == pytest.approx(rmse, abs=1e-6)
    assert result.bias.value == pytest.approx(bias, abs=1e-12)
    assert result.explained_variance.value == pytest.approx(explained, abs=1e-9)
    assert result.mean_return.value == pytest.approx(11 / 3)
    assert result.spread == pytest.approx(math.sqrt(2 / 9))
    if value_error is not None:  # the same in every state
        assert result.value_error.value == pytest.approx(value_error, abs=1e-9)
    # every episode is the same, so nothing is uncertain
    for estimate in (result.rmse, result.bias, result.mean_return):
        assert (estimate.low, estimate.high) == pytest.approx((estimate.value, estimate.value), abs=1e-6)


def test_a_cut_episode_gives_no_return_to_states_within_a_horizon_of_the_cut():
    # gamma 1/2: a horizon of 10 steps, so 2 of the 12 states of an episode that the environment cuts. Their returns
    # are those of 12 and 11 ones: 2 (1 - 2^-12) and 2 (1 - 2^-11).
    result = evaluation.monte_carlo(
        table(np.zeros(13), 0.5), task(rewards=[1.0] * 12, ending="truncated"), n_episodes=3
    )
    assert (result.n_states, result.n_skipped) == (6, 30)
    assert result.mean_return.value == pytest.approx(2 - 2**-12 - 2**-11)


def test_without_one_known_return_there_is_no_evaluation():
    with pytest.raises(ValueError, match="smaller gamma"):
        evaluation.monte_carlo(table(np.zeros(4), 0.5), task(ending="truncated"), n_episodes=3)


def test_an_endless_episode_is_followed_for_two_horizons():
    # r = 1 for ever: 20 steps, of which the first 10 states count, G_t = 2 (1 - 2^-(20 - t))
    result = evaluation.monte_carlo(table([0.0, 0.0], 0.5), task(rewards=[1.0], ending="never"), n_episodes=3)
    assert (result.n_states, result.n_skipped) == (30, 0)
    assert result.mean_return.value == pytest.approx(np.mean([2 * (1 - 2.0 ** -(20 - t)) for t in range(10)]))


def test_a_time_limit_is_lifted():
    # The walk of one state ends at once; 3 steps are no limit for CartPole's heuristic either, whose value is higher.
    limited = Task("CartPole-v1", "heuristic", 0.0, {"max_episode_steps": 3})
    v = ValueFunction(Network((4, 1), bias=False), gamma=0.9)
    result = evaluation.monte_carlo(v, limited, n_episodes=3)
    assert result.mean_return.value > 5  # three steps alone would give 1 + 0.9 + 0.81 at most


@pytest.mark.parametrize("n_episodes", [0, 1, -3])
def test_too_few_episodes_are_an_error(n_episodes):
    with pytest.raises(ValueError, match="episodes"):
        evaluation.monte_carlo(table(RETURNS, 0.5), task(), n_episodes=n_episodes)


def test_an_environment_that_cannot_be_replayed_has_no_value_error():
    v = ValueFunction(Network((1, 1)), gamma=0.5)
    result = evaluation.monte_carlo(v, task("scripted_envs:Entropy-v0"), n_episodes=3)
    assert result.value_error is None
    assert result.n_states == 30


def test_nothing_learned_and_no_global_generator_is_touched():
    v = table(RETURNS, 0.5)
    v.learn(np.eye(4)[0], 1.0, np.eye(4)[1])
    arrays, _ = v.state_dict()
    before = {name: array.copy() for name, array in arrays.items()}
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    evaluation.monte_carlo(v, task(), n_episodes=3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])


def test_the_seed_decides_the_episodes():
    v = ValueFunction(Network((4, 8, 1)), gamma=0.9)
    a, b, c = (evaluation.monte_carlo(v, task("CartPole-v1"), 5, seed) for seed in (1, 1, 2))
    assert a == b != c


# The random walk, whose values are known ------------------------------------------------------------------------------

WALK = RandomWalk(5)
TRUE = WALK.true_values(0.9)
WALKING = Task("valueapprox/RandomWalk-v0", "random", env_args={"n_states": 5})


def test_intervals_cover_what_they_should():
    mean_return = WALK.state_distribution() @ TRUE  # of the states that the policy visits
    assert mean_return == pytest.approx(0.0, abs=1e-12)  # both ends mirror each other
    v, runs = table(TRUE, 0.9), 40
    covered = np.zeros(2)
    for seed in range(runs):
        result = evaluation.monte_carlo(v, WALKING, 25, seed)
        covered += [e.low <= 0.0 <= e.high for e in (result.mean_return, result.bias)]
    # 95 % promised: of 40, fewer than 34 would come once in 30 times
    assert (covered >= 34).all()


def test_intervals_of_a_root_mean_square_cover_too():
    # Episodes of 4 states with errors from N(0, 1): a root mean square of 1. 1500 evaluations of 20 episodes.
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1500):
        parts = [(np.zeros(4), errors) for errors in rng.normal(size=(20, 4))]
        rmse = evaluation._summarise(parts, None, 20, 0).rmse
        covered += rmse.low <= 1.0 <= rmse.high
    assert 0.92 < covered / 1500 < 0.97


def test_the_value_error_of_a_constant_offset_is_the_offset():
    result = evaluation.monte_carlo(table(TRUE + 0.5, 0.9), WALKING, 300)
    assert result.value_error.low < 0.5 < result.value_error.high
    assert result.value_error.value == pytest.approx(0.5, abs=0.1)
    assert result.bias.low < 0.5 < result.bias.high
    assert result.rmse.value > 0.6  # which holds the spread of returns as well


def test_the_value_error_agrees_with_the_exact_one():
    v = table(np.zeros(5), 0.9)
    result = evaluation.monte_carlo(v, WALKING, 400)
    assert result.value_error.low < evaluation.rmsve(v, evaluation.truth(WALKING, 0.9)) < result.value_error.high


def test_the_value_error_of_the_truth_is_about_zero():
    assert evaluation.monte_carlo(table(TRUE, 0.9), WALKING, 400).value_error.low < 0.05


def test_rmsve_of_the_truth_is_zero():
    assert evaluation.rmsve(table(TRUE, 0.9), evaluation.truth(WALKING, 0.9)) == pytest.approx(0.0, abs=1e-12)


def test_rmsve_by_hand():
    # Three states, gamma 1: values -1/2, 0, 1/2; the middle is visited half of the time.
    # v = 0: sqrt(1/4 * 1/4 + 1/4 * 1/4) = sqrt(1/8).   v = (0, 1, 0): sqrt(1/8 + 1/2)
    known = evaluation.truth(Task("valueapprox/RandomWalk-v0", "random", env_args={"n_states": 3}), 1.0)
    assert evaluation.rmsve(table([0, 0, 0], 1.0), known) == pytest.approx(math.sqrt(1 / 8))
    assert evaluation.rmsve(table([0, 1, 0], 1.0), known) == pytest.approx(math.sqrt(5 / 8))


def test_the_truth_is_known_for_the_random_walk_under_the_random_policy_alone():
    for env in ("valueapprox/RandomWalk-v0", "valueapprox.envs:valueapprox/RandomWalk-v0"):
        features, values, distribution = evaluation.truth(Task(env, "random"), 1.0)
        np.testing.assert_array_equal(features, np.eye(19))
        np.testing.assert_allclose(values, np.arange(-9, 10) / 10, atol=1e-12)
        assert distribution.sum() == pytest.approx(1.0)
    assert evaluation.truth(Task("CartPole-v1", "random"), 1.0) is None
    assert evaluation.truth(Task("valueapprox/RandomWalk-v0", "module:function"), 1.0) is None
