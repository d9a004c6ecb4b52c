"""Policies: uniform where they say so, found by name, and with errors that help."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from agents.policies import HEURISTICS, make_policy, resolve, uniform


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


def test_the_same_generator_gives_the_same_actions():
    policy = uniform(spaces.Box(-1.0, 1.0, (2,)))
    a, b = (policy(None, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("task", sorted(HEURISTICS))
def test_heuristics_act_within_the_action_space(task):
    env = gym.make(
        {"CartPole": "CartPole-v1", "Acrobot": "Acrobot-v1", "Pendulum": "Pendulum-v1"}.get(task, f"{task}-v0")
    )
    policy, rng = HEURISTICS[task], np.random.default_rng(0)
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
        ("auto", None, "envs:valueapprox/CartPole-v1", ("heuristic", 0.1)),
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
        ("heuristic", None, "LunarLander-v3", "no heuristic for LunarLander-v3.*CartPole"),
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
        ("math:pi", "a function .* is wanted"),
        ("math:", "has no ''"),
    ],
)
def test_a_policy_that_cannot_be_found_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        make_policy(name, 0.0, "CartPole-v1", spaces.Discrete(2))


def test_an_action_space_without_a_uniform_distribution_is_an_error():
    with pytest.raises(TypeError, match="Discrete, Box, MultiDiscrete or MultiBinary"):
        make_policy("random", 0.0, "X-v0", spaces.Text(3))
