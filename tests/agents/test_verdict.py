"""The verdict in words follows from the numbers: cases worked out by hand."""

import re

import numpy as np
import pytest

from valueapprox.agents import verdict
from valueapprox.agents.control_run import ControlSettings
from valueapprox.agents.evaluation import MonteCarlo, Returns
from valueapprox.statistics import Estimate

CARTPOLE = ControlSettings("CartPole-v1")


def exactly(value, half=0.0):
    return Estimate(value, value - half, value + half)


def values(value_error, rmse, spread, explained, bias=0.0):
    error = None if value_error is None else exactly(value_error)
    return MonteCarlo(error, exactly(rmse), exactly(bias, 0.01), exactly(explained), exactly(0.0), spread, 20, 100, 0)


def returns(mean, half=1.0):
    return Returns(exactly(mean, half), 1.0, mean, mean, 100.0, 20, 0)


def errors(*numbers):
    return [{"step": k, "value/td_error/rms": number} for k, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("value_error", "rmse", "explained", "expected"),
    [
        # rmse^2 - error^2 = 0.64 of a variance of 1 is chance: 36 % could be explained
        (
            0.1,
            np.sqrt(0.64 + 0.01),
            0.35,
            "explain 35% of the variance of returns, of at most about 36%: .* as good as",
        ),
        (0.3, np.sqrt(0.64 + 0.09), 0.27, "explain 27% .* of at most about 36%: .* That is good, and could be better"),
        (0.5, np.sqrt(0.64 + 0.25), 0.11, "explain 11% .* of at most about 36%: .* far from what is possible"),
        (None, 0.9, 0.19, "explain 19% of the variance of returns .* how much of it is chance, .* is not known here"),
        (0.0, 1.0, 0.0, "explain 0% .* of at most about 0%: the rest is chance, which no value function explains.$"),
    ],
)
def test_explained_variance_is_compared_with_what_is_possible(value_error, rmse, explained, expected):
    (sentence, *_) = verdict.of_values(values(value_error, rmse, 1.0, explained), [])
    assert re.search(expected, sentence), sentence


def test_a_bias_is_named_where_it_matters():
    assert "On average they are too high, by 0.5." in verdict.of_values(values(0.5, 1.0, 1.0, 0.5, bias=0.5), [])
    assert "On average they are too low, by 0.5." in verdict.of_values(values(0.5, 1.0, 1.0, 0.5, bias=-0.5), [])
    assert not any("too" in s for s in verdict.of_values(values(0.5, 1.0, 1.0, 0.5, bias=0.05), []))


@pytest.mark.parametrize(
    ("logged", "expected"),
    [
        ([1.0] * 8 + [0.9, 0.9], "was still falling, by 10% over the last fifth: take more steps"),
        ([1.0] * 10, "no longer falls: try a larger network"),
        ([1.0, 0.5], "no longer falls"),  # too few points to say more
    ],
)
def test_what_to_try_next_for_values(logged, expected):
    assert expected in verdict.of_values(values(0.5, np.sqrt(0.64 + 0.25), 1.0, 0.11), errors(*logged))[-1]


def test_nothing_is_said_where_nothing_is_known():
    assert verdict.of_values(None, []) == []
    assert verdict.of_returns(CARTPOLE, 1000, [], {}) == []


def episodes(*levels, n=20, noise=1e-3, steps=1000):
    """So many episodes in each fifth of the steps, with returns around a level."""
    rng = np.random.default_rng(0)
    ends = np.linspace(0, steps, 5 * n + 1)[1:]
    means = np.repeat(levels, n)
    returns = means + noise * rng.normal(size=5 * n)
    return [{"step": int(end), "return": float(g)} for end, g in zip(ends, returns, strict=True)]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((10, 20, 30, 40, 50), ["rose from 10 in the first", "It was still rising: take more steps."]),
        ((10, 50, 50, 50, 50), ["rose from 10"]),
        ((10, 60, 60, 60, 50), ["rose from 10", r"It was 60 before that: keep the best with --eval-every"]),
        ((50, 10, 10, 10, 10), ["fell from 50", "It did not get better"]),
        ((50, 50, 50, 50, 50), ["went from 50", "It did not get better"]),
    ],
)
def test_whether_it_learned(levels, expected):
    sentences = verdict.of_returns(CARTPOLE, 1000, episodes(*levels, noise=1e-3), {})
    assert len(sentences) == len(expected)
    assert all(words.rstrip(".") in s for words, s in zip(expected, sentences, strict=True)), sentences


def test_equal_returns_are_no_learning():
    (sentence,) = verdict.of_returns(CARTPOLE, 1000, episodes(*[-200] * 5, noise=0.0), {})
    assert "Every episode had the return -200" in sentence


@pytest.mark.parametrize("env", ["CartPole-v1", "valueapprox/CartPole-v1"])
@pytest.mark.parametrize(("mean", "verb"), [(480.0, "reaches"), (470.0, "does not reach")])
def test_the_greedy_policy_is_compared_with_the_threshold(env, mean, verb):
    found = verdict.of_returns(ControlSettings(env), 1000, [], {"greedy": returns(mean)})
    assert found == [
        f"The greedy policy {verb} 475, at which Gymnasium calls it solved: {mean:g} ({mean - 1:g} to {mean + 1:g})."
    ]


def test_greedy_worse_than_sampled():
    found = verdict.of_returns(
        ControlSettings("valueapprox/RandomWalk-v0"), 1, [], {"greedy": returns(1.0), "sampled": returns(9.0)}
    )
    assert found == ["Acting greedily is worse than sampling: this policy needs its randomness."]
