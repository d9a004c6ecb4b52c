"""Policies: uniform where they say so, found by name, and with errors that help."""

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats

from valueapprox.agents.policies import heuristics, make_policy, resolve, uniform


def test_uniform_over_a_discrete_space_by_chi_square():
    policy, rng = uniform(spaces.Discrete(5, start=3)), np.random.default_rng(0)
    counts = np.bincount([policy(None, rng) for _ in range(5000)], minlength=8)
    assert counts[:3].sum() == 0
    # 4 degrees of freedom: above 18.5 once in a thousand seeds
    assert ((counts[3:] - 1000.0) ** 2 / 1000).sum() < 18.5


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.Box(-2.0, 3.0, (2, 3)),
        spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([1.0, np.inf], np.float32)),
        spaces.Box(np.array([0.0], np.float32), np.array([np.inf], np.float32)),
        spaces.MultiDiscrete([2, 7]),
        spaces.MultiBinary(3),
    ],
    ids=str,
)
def test_uniform_actions_lie_in_their_space(space):
    policy, rng = uniform(space), np.random.default_rng(0)
    actions = [policy(None, rng) for _ in range(200)]
    assert all(space.contains(action) for action in actions)
    assert len({str(action) for action in actions}) > 3


def drawn(space, n=2000, seed=0):
    policy, rng = uniform(space), np.random.default_rng(seed)
    actions = [policy(None, rng) for _ in range(n)]
    assert all(space.contains(action) for action in actions)
    return actions


@pytest.mark.parametrize(
    ("space", "n_actions"),
    [
        (spaces.Discrete(5, start=-2), 5),
        (spaces.MultiDiscrete([2, 2], start=[5, -1]), 4),
        (spaces.MultiDiscrete([[2, 3], [1, 2]], start=[[0, 7], [-3, 100]]), 12),
        (spaces.MultiBinary((3, 1)), 8),
        (spaces.Box(-2, 2, (1,), np.int64), 5),
        (spaces.Box(0, 1, (1,), np.int8), 2),
        (spaces.Box(np.array([-1, 5]), np.array([1, 6]), dtype=np.int16), 6),
        (spaces.Box(250, 255, (), np.uint8), 6),
        (spaces.Box(0, 1, (2,), bool), 4),
        (spaces.Box(2**63 - 4, 2**63 - 2, (1,), np.int64), 3),
        (spaces.Box(-(2**63), -(2**63) + 2, (1,), np.int64), 3),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.int64))), 6),
        (spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.MultiBinary(1)), 6),
        (spaces.Text(min_length=1, max_length=1, charset="abc"), 3),
        (spaces.Sequence(spaces.Discrete(3, start=1), seed=0), None),
    ],
    ids=str,
)
def test_each_action_of_a_finite_space_is_as_likely(space, n_actions):
    counts = Counter(str(action) for action in drawn(space))
    if n_actions is None:  # lengths are geometric: half of the sequences are not longer than one
        assert len(counts) > 30
        return
    assert len(counts) == n_actions
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-2.0, 3.0, (2, 3)),
        spaces.Box(-1000.0, 1000.0, (1,), np.float64),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(3.0, np.inf, (1,)),
        spaces.Box(-np.inf, -3.0, (1,), np.float64),
        spaces.Box(-np.inf, np.inf, (1,), np.int64),
        spaces.Box(4, np.inf, (1,), np.int64),
        spaces.Box(np.array([0.0, -np.inf, 1.0], np.float32), np.array([1.0, np.inf, np.inf], np.float32)),
    ],
    ids=str,
)
def test_a_box_is_sampled_as_its_own_sample_does(space):
    space.seed(1)
    own = np.array([action.ravel() for action in drawn(space, 1000)], np.float64)
    theirs = np.array([space.sample().ravel() for _ in range(1000)], np.float64)
    assert all(stats.ks_2samp(a, b).pvalue > 1e-4 for a, b in zip(own.T, theirs.T, strict=True))


class Halves(spaces.Box):
    """A space with a `sample` of its own."""

    def sample(self, mask=None, probability=None):
        return np.full(self.shape, 0.5, self.dtype)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Graph(spaces.Box(-1, 1, (2,)), spaces.Discrete(3)),
        spaces.OneOf((spaces.Discrete(2), spaces.Box(-1, 1, (2,)))),
        spaces.Sequence(spaces.Box(-1, 1, (1,)), stack=True),
        spaces.Text(5),
        spaces.Dict(a=spaces.Tuple((spaces.Discrete(5), spaces.Box(0, 1, (2,)))), b=spaces.Text(3)),
    ],
    ids=str,
)
def test_any_space_is_sampled_from_the_policys_generator_alone(space):
    a, b, other = drawn(space, 30), drawn(space, 30), drawn(space, 30, seed=1)
    assert str(a) == str(b) != str(other)
    before = space.np_random.bit_generator.state
    drawn(space, 3)
    assert space.np_random.bit_generator.state == before


def test_a_space_with_a_sample_of_its_own_is_asked():
    assert {float(action[0]) for action in drawn(Halves(0.0, 1.0, (1,)), 10)} == {0.5}


def test_the_same_generator_gives_the_same_actions():
    policy = uniform(spaces.Box(-1.0, 1.0, (2,)))
    a, b = (policy(None, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("task", sorted(heuristics()))
def test_heuristics_act_within_the_action_space(task):
    env = gym.make(
        {"CartPole": "CartPole-v1", "Acrobot": "Acrobot-v1", "Pendulum": "Pendulum-v1"}.get(task, f"{task}-v0")
    )
    policy, rng = heuristics()[task], np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        action = policy(observation, rng)
        assert env.action_space.contains(action if isinstance(action, np.ndarray) else np.int64(action))
        observation, _, terminated, _, _ = env.step(action)
        assert not terminated


def test_noise_is_the_fraction_of_random_actions():
    # With noise 0.4 the heuristic's action 1 is replaced by 0 in 0.4 / 2 of the cases: 0.2 +- 4 * 0.0063
    policy, rng = make_policy("heuristic", 0.4, "CartPole-v1", spaces.Discrete(2)), np.random.default_rng(0)
    actions = [policy(np.array([0, 0, 1.0, 0]), rng) for _ in range(4000)]
    assert np.mean(np.array(actions) == 0) == pytest.approx(0.2, abs=0.026)


def test_a_policy_is_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_policy_here.py").write_text("def act(observation, rng):\n    return 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    assert make_policy("my_policy_here:act", 0.0, "CartPole-v1", spaces.Discrete(2))(None, None) == 42


@pytest.mark.parametrize(
    ("name", "noise", "env", "expected"),
    [
        ("auto", None, "CartPole-v1", ("heuristic", 0.1)),
        ("auto", None, "valueapprox/MountainCar-v0", ("heuristic", 0.1)),
        ("auto", None, "valueapprox.envs:valueapprox/CartPole-v1", ("heuristic", 0.1)),
        ("auto", None, "LunarLander-v3", ("random", 0.0)),
        ("auto", 0.5, "CartPole-v1", ("heuristic", 0.5)),
        ("heuristic", 0.0, "CartPole-v1", ("heuristic", 0.0)),
        ("random", 0.5, "CartPole-v1", ("random", 0.0)),
        ("module:function", None, "CartPole-v1", ("module:function", 0.0)),
        ("module:function", 0.2, "CartPole-v1", ("module:function", 0.2)),
    ],
)
def test_what_is_left_open_is_filled_in(name, noise, env, expected):
    assert resolve(name, noise, env) == expected


@pytest.mark.parametrize(
    ("name", "noise", "env", "message"),
    [
        ("heuristics", None, "CartPole-v1", "did you mean 'heuristic'"),
        (
            "heuristic",
            None,
            "LunarLander-v3",
            "policy is 'heuristic'; expected another, as LunarLander-v3 has none: .*CartPole",
        ),
        ("heuristic", 1.5, "CartPole-v1", "noise is 1.5"),
        ("heuristic", float("nan"), "CartPole-v1", "noise is nan"),
        ("module:function", -0.1, "CartPole-v1", "noise is -0.1"),
    ],
)
def test_unknown_policies_and_noise_are_errors(name, noise, env, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, noise, env)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "'no_such_module' cannot be imported"),
        ("math:no_such_function", "'math' has no 'no_such_function'"),
        ("math:pi", "expected a function"),
        ("math:", "has no ''"),
    ],
)
def test_a_policy_that_cannot_be_found_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        make_policy(name, 0.0, "CartPole-v1", spaces.Discrete(2))
