"""Sensitivity, effective dimension and the choice across environments, on sweeps that a person can work out."""

import math

import numpy as np
import pytest

from valueapprox.statistics import choose_across, effective_dimension, sensitivity, sensitivity_curves

#: Two environments whose percentiles are 0 and 1 where scores are normalised by this.
UNIT = np.repeat([[0.0, 0.0], [1.0, 1.0]], [10, 10], axis=0)


def test_sensitivity_by_hand():
    # Each setting is best in one environment; the third is good in both.
    found = sensitivity([[1.0, 0.0], [0.0, 1.0], [0.8, 0.7]], UNIT)
    assert found.tuned_each == 1.0
    assert found.tuned_across == pytest.approx(0.75)
    assert found.value == pytest.approx(0.25)
    assert (found.best_each.tolist(), found.best_across) == ([0, 1], 2)


def test_scores_are_normalised_by_percentiles_of_each_environment():
    # 0 ... 100: the 5th percentile is 5 and the 95th 95. The second environment is a hundred times as large.
    scores = np.arange(101.0)[:, None] * [1.0, 100.0] + [0.0, -7.0]
    found = sensitivity(scores)
    np.testing.assert_allclose(found.normalised[:, 0], (np.arange(101) - 5) / 90)
    np.testing.assert_allclose(found.normalised[:, 1], found.normalised[:, 0])
    assert found.tuned_each == pytest.approx(95 / 90)
    assert found.value == 0.0


def test_scale_and_shift_of_an_environment_do_not_matter():
    scores = np.random.default_rng(0).normal(size=(30, 4))
    here, there = sensitivity(scores), sensitivity(scores * [1, 10, 0.1, 1000] + [0, -3, 5, 1e4])
    assert here.value == pytest.approx(there.value)
    assert here.value >= 0


def test_a_setting_that_diverges_in_an_environment_is_chosen_elsewhere_alone():
    scores = np.array([[-math.inf, 2.0], [0.0, 0.0], [1.0, 1.0]])
    found = sensitivity(scores, UNIT)
    assert found.tuned_each == 1.5
    assert (found.best_each.tolist(), found.best_across, found.value) == ([2, 0], 2, 0.5)
    # It has no part in the percentiles.
    wide = np.concatenate([scores, np.arange(20.0)[:, None] * [1, 1]])
    assert np.isfinite(sensitivity(wide).normalised[1:]).all()


def grid(**values):
    names = list(values)
    return [
        dict(zip(names, v, strict=True)) for v in np.stack(np.meshgrid(*values.values()), -1).reshape(-1, len(names))
    ]


def test_effective_dimension_counts_what_must_be_tuned():
    # The best a is 0 in the first environment and 2 in the second; b = 1 is best in both; c does nothing.
    settings = grid(a=[0, 1, 2], b=[0, 1], c=[0, 1])
    scores = np.array([[(1 - s["a"] / 2) * s["b"], (s["a"] / 2) * s["b"]] for s in settings])
    # In the mean over environments each a is as good: 0.5 of 1.
    assert sensitivity(scores, UNIT).value == pytest.approx(0.5)
    assert effective_dimension(scores, settings, reference=UNIT) == 1
    assert effective_dimension(scores, settings, share=0.5, reference=UNIT) == 0


def test_two_hyperparameters_that_must_be_tuned_together():
    settings = grid(a=[0, 1], b=[0, 1], c=[0, 1])
    scores = np.array([[s["a"] == 0 and s["b"] == 0, s["a"] == 1 and s["b"] == 1] for s in settings], float)
    # The default, a = b = 0, is right in one of two environments, and of no use in the other if one alone is tuned.
    assert effective_dimension(scores, settings, share=0.5, reference=UNIT) == 0
    assert effective_dimension(scores, settings, share=0.51, reference=UNIT) == 2


def test_effective_dimension_is_that_of_every_subset():
    rng = np.random.default_rng(0)
    settings = grid(a=[0, 1, 2], b=[0, 1, 2], c=[0, 1])
    for _ in range(20):
        scores = rng.normal(size=(18, 3))
        found = sensitivity(scores)
        gamma, default = found.normalised, settings[found.best_across]
        reached = []
        for tuned in ("", "a", "b", "c", "ab", "ac", "bc", "abc"):
            rows = [all(s[h] == default[h] for h in "abc" if h not in tuned) for s in settings]
            if gamma[rows].max(axis=0).mean() >= 0.9 * found.tuned_each:
                reached.append(len(tuned))
        assert effective_dimension(scores, settings, share=0.9) == min(reached)


def test_sensitivity_curves_by_hand():
    settings = [
        {"alpha": 0.1, "lam": 0.0},
        {"alpha": 0.1, "lam": 0.9},
        {"alpha": 0.01, "lam": 0.0},
        {"alpha": 0.01, "lam": 0.9},
    ]
    curves = sensitivity_curves([1.0, 4.0, 2.0, -math.inf], settings)
    assert list(curves) == ["alpha", "lam"]
    assert curves["alpha"][0][:2] == (0.01, 2.0)
    assert math.isnan(curves["alpha"][0][2])
    assert curves["alpha"][1] == (0.1, 4.0, 2.5)
    assert curves["lam"][0] == (0.0, 2.0, 1.5)
    # Values that cannot be sorted come as they are, lists among them.
    curves = sensitivity_curves([1.0, 2.0, 3.0], [{"sizes": [64]}, {"sizes": "none"}, {"sizes": [64]}])
    assert curves["sizes"] == [([64], 3.0, 2.0), ("none", 2.0, 2.0)]


def test_the_choice_across_environments_by_hand():
    # Environment 0: scores 1, 2, 3 are above 0, 1/3, 2/3 of all; environment 1, a thousand times as large, orders them
    # 2, 0, 1. The mean over environments: (0 + 2/3) / 2, (1/3 + 0) / 2, (2/3 + 1/3) / 2.
    scores = np.array([[1.0, 3000.0], [2.0, -1000.0], [3.0, 2000.0]])[:, :, None]
    assert choose_across(scores) == 2


def test_the_choice_is_by_ranks():
    scores = np.random.default_rng(0).normal(size=(12, 3, 5))
    chosen = choose_across(scores)
    other = np.stack([np.exp(scores[:, 0]), scores[:, 1] ** 3, 100 * scores[:, 2] - 7], axis=1)
    assert choose_across(other) == chosen
    failed = scores.copy()
    failed[chosen] = -math.inf
    assert choose_across(failed) != chosen


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sensitivity([1.0, 2.0]), r"scores has shape \(2,\); expected \(n_settings, n_envs\)"),
        (lambda: sensitivity([[1.0], [math.nan]]), "scores holds NaN"),
        (lambda: sensitivity([[1.0, 1.0], [1.0, 2.0]]), "environment 0 have equal 5th and 95th percentiles"),
        (lambda: sensitivity([[1.0], [2.0]], UNIT), r"reference has shape \(20, 2\); expected \(m, 1\)"),
        (lambda: effective_dimension([[1.0], [2.0]], [{"a": 1}]), "grid has 1 settings; expected 2"),
        (lambda: sensitivity_curves([1.0, 2.0], [{"a": 1}, {"b": 1}]), r"has \['b'\]; expected \['a'\]"),
        (lambda: choose_across([[1.0]]), r"expected \(n_settings, n_envs, n_seeds\)"),
    ],
)
def test_sweeps_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
