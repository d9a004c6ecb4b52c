"""What is known of the random walk, against the book, by hand, by value iteration and by simulation."""

import dataclasses

import numpy as np
import pytest

from valueapprox.envs import RandomWalk

WALKS = [
    RandomWalk(),
    RandomWalk(5, left_reward=0.0),
    RandomWalk(12, jump=5, left_reward=2.0, right_reward=-3.0),
    RandomWalk(3, jump=8),
    RandomWalk(1),
]


def test_five_states_are_example_6_2():
    np.testing.assert_allclose(RandomWalk(5, left_reward=0.0).true_values(), np.arange(1, 6) / 6)


def test_nineteen_states_are_figure_12_3():
    np.testing.assert_allclose(RandomWalk().true_values(), np.arange(-9, 10) / 10, atol=1e-14)


def test_a_thousand_states_are_example_9_1_by_value_iteration():
    # An end is a hundred places whose value stays its reward; a state has the mean of its 200 neighbours.
    line = np.concatenate([np.full(100, -1.0), np.zeros(1000), np.full(100, 1.0)])
    for _ in range(2000):
        sums = np.concatenate([[0.0], np.cumsum(line)])
        left = sums[100:1100] - sums[:1000]  # places i - 100 ... i - 1 of place i
        right = sums[201:1201] - sums[101:1101]  # places i + 1 ... i + 100
        line[100:1100] = (left + right) / 200
    values = RandomWalk(1000, jump=100).true_values()
    np.testing.assert_allclose(values, line[100:1100], atol=1e-9)
    # Figure 9.1: about linear, but bent at the ends, where part of the moves lead to the same end.
    assert values[0] > -0.95
    assert values[499] == pytest.approx(-values[500])


def test_one_state_that_always_ends():
    # Left -1 or right 3, each at once: (1 - 0.25) * -1 + 0.25 * 3 = 0.
    walk = RandomWalk(1, right_reward=3.0)
    assert walk.true_values(p_right=0.25).tolist() == [0.0]
    assert walk.state_distribution().tolist() == [1.0]


def test_a_walk_that_only_goes_right_discounts_the_steps_to_the_end():
    # From state i of 4, the reward 2 comes with step 4 - i: 2 * 0.5 ** (3 - i).
    walk = RandomWalk(4, right_reward=2.0)
    np.testing.assert_allclose(walk.true_values(gamma=0.5, p_right=1.0), [0.25, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(walk.state_distribution(p_right=1.0), [0, 1 / 3, 1 / 3, 1 / 3])


def outcomes(walk, p_right, i):
    """(probability, reward, terminated, next state) of every move from state i, by the compiled step."""
    for action, p_action in ((0, 1 - p_right), (1, p_right)):
        for k in range(walk.jump):
            state = np.array([float(i)])
            reward, terminated = RandomWalk.step(walk.params, state, action, (k + 0.5) / walk.jump)
            yield p_action / walk.jump, reward, terminated, int(state[0])


@pytest.mark.parametrize("walk", WALKS, ids=repr)
@pytest.mark.parametrize("p_right", [0.5, 0.2])
def test_matrix_rewards_and_bellman_equation_are_those_of_the_dynamics(walk, p_right):
    gamma = 0.9
    transition = np.zeros((walk.n_states, walk.n_states))
    rewards = np.zeros(walk.n_states)
    backups = np.zeros(walk.n_states)
    values = walk.true_values(gamma, p_right)
    for i in range(walk.n_states):
        for probability, reward, terminated, j in outcomes(walk, p_right, i):
            rewards[i] += probability * reward
            backups[i] += probability * (reward + (0.0 if terminated else gamma * values[j]))
            if not terminated:
                transition[i, j] += probability
    np.testing.assert_allclose(walk.transition_matrix(p_right), transition, atol=1e-15)
    np.testing.assert_allclose(walk.expected_rewards(p_right), rewards, atol=1e-15)
    np.testing.assert_allclose(values, backups, atol=1e-14)


def test_five_states_are_visited_as_in_the_gamblers_ruin():
    # From 3 of 0 ... 6, place j is visited 2 min(3, j) (6 - max(3, j)) / 6 times: 1, 2, 3, 2, 1.
    np.testing.assert_allclose(RandomWalk(5).state_distribution(), np.array([1, 2, 3, 2, 1]) / 9)


def test_state_distribution_is_the_frequency_in_a_long_simulation():
    walk, p_right = RandomWalk(8, jump=3), 0.6
    generator = np.random.default_rng(1)
    counts = np.zeros(walk.n_states)
    n_steps = 200_000
    state = np.array([float(walk.start)])
    for go_right, u in zip(generator.random(n_steps) < p_right, generator.random(n_steps), strict=True):
        counts[int(state[0])] += 1
        if RandomWalk.step(walk.params, state, int(go_right), u)[1]:
            state[0] = walk.start
    # Standard error below 0.002: episodes of some 4 steps, 50 000 of them.
    np.testing.assert_allclose(counts / n_steps, walk.state_distribution(p_right), atol=0.005)


@pytest.mark.parametrize(("n_states", "start"), [(1, 0), (2, 0), (5, 2), (19, 9), (1000, 499)])
def test_a_walk_starts_in_the_middle(n_states, start):
    assert RandomWalk(n_states).start == start


def test_one_hot_features_are_the_identity():
    np.testing.assert_array_equal(RandomWalk(6).features_matrix(), np.eye(6))


def test_groups_of_states_share_a_feature_and_the_last_may_be_smaller():
    # 7 states in 3 groups: groups of ceil(7 / 3) = 3, 3 and 1.
    matrix = RandomWalk(7, features="aggregation", groups=3).features_matrix()
    np.testing.assert_array_equal(matrix, np.eye(3)[[0, 0, 0, 1, 1, 1, 2]])


def test_position_lies_between_ends_at_minus_one_and_one():
    # 3 states and 2 ends are 5 equidistant points: -1, -0.5, 0, 0.5, 1. With these as rewards of the
    # ends, the value of a fair walk is its position.
    assert RandomWalk(3, features="position").features_matrix().tolist() == [[-0.5], [0.0], [0.5]]
    walk = RandomWalk(features="position")
    np.testing.assert_allclose(walk.features_matrix()[:, 0], walk.true_values(), atol=1e-14)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_states": 0}, "n_states is 0; expected a whole number of at least 1"),
        ({"n_states": 5.5}, "n_states is 5.5; expected a whole number"),
        ({"jump": -1}, "jump is -1; expected a whole number of at least 1"),
        ({"jump": True}, "jump is True; expected a whole number"),
        ({"left_reward": float("nan")}, "left_reward is nan; expected a finite number"),
        ({"right_reward": "1"}, "right_reward is '1'; expected a finite number"),
        ({"features": "tiles"}, "features is 'tiles'; expected one of one-hot, aggregation, position"),
        ({"groups": 0}, "groups is 0; expected a whole number of at least 1"),
        ({"n_states": 5, "features": "aggregation"}, "groups is 10, .*expected 5,"),
        # 10 states in 6 groups of 2 would leave the sixth empty: a weight that never learns.
        ({"n_states": 10, "features": "aggregation", "groups": 6}, "groups is 6, .*expected 5,"),
    ],
)
def test_errors_name_the_argument_what_it_got_and_what_it_wants(wrong, message):
    with pytest.raises(ValueError, match=message):
        RandomWalk(**wrong)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_probability_and_discount_lie_between_0_and_1(bad):
    with pytest.raises(ValueError, match=r"p_right is .*\[0, 1\]"):
        RandomWalk().state_distribution(bad)
    with pytest.raises(ValueError, match=r"gamma is .*\[0, 1\]"):
        RandomWalk().true_values(gamma=bad)


def test_a_walk_is_a_value():
    assert RandomWalk(7) == dataclasses.replace(RandomWalk(), n_states=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RandomWalk().jump = 2
