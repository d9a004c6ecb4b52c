"""Performance profiles: shares by hand, and Jeffreys' interval from SciPy."""

import math

import numpy as np
import pytest
import scipy.stats

from valueapprox.statistics import performance_profile


def test_a_profile_by_hand():
    scores = [[1.0, 2.0, 3.0], [-math.inf, 3.0]]
    profile, low, high = performance_profile(scores, [-1e300, 0.5, 2.0, 3.0])
    np.testing.assert_allclose(profile, [0.8, 0.8, 0.4, 0.0])  # a score at a threshold is not above it
    assert (low <= profile).all()
    assert (profile <= high).all()
    assert low[-1] == 0 < high[-1]


def test_the_band_of_one_task_is_jeffreys_interval():
    profile, low, high = performance_profile(np.arange(10.0), [-1.0, 2.5, 4.5, 8.5])
    k = np.array([10, 7, 5, 1])
    np.testing.assert_allclose(profile, k / 10)
    np.testing.assert_allclose(low, scipy.stats.beta.ppf(0.025, k + 0.5, 10.5 - k))
    np.testing.assert_allclose(high[1:], scipy.stats.beta.ppf(0.975, k + 0.5, 10.5 - k)[1:])
    assert high[0] == 1  # and not a little less, where all runs are above


def test_tasks_that_differ_make_the_band_narrow():
    # Of ten runs of each, all are above the threshold in one task and none in the other: 1/2, and hardly anything else.
    easy, hard = np.full(10, 1.0), np.full(10, -1.0)
    _, low, high = performance_profile([easy, hard], [0.0])
    _, low_pooled, high_pooled = performance_profile(np.append(easy, hard), [0.0])
    assert high[0] - low[0] < 0.4 * (high_pooled[0] - low_pooled[0])
    assert low[0] < 0.5 < high[0]


def test_a_profile_falls():
    scores = [np.random.default_rng(s).normal(s, 1, 5) for s in range(4)]
    for curve in performance_profile(scores, np.linspace(-3, 6, 50)):
        assert (np.diff(curve) <= 1e-12).all()


def test_bands_cover():
    rng, tasks = np.random.default_rng(0), np.array([0.3, 0.6, 0.8, 0.9])  # shares above 0
    covered = np.zeros(3)
    for _ in range(1000):
        for i, n in enumerate((3, 5, 10)):
            _, low, high = performance_profile([p - rng.random(n) for p in tasks], [0.0])
            covered[i] += low[0] <= tasks.mean() <= high[0]
    assert (covered > 920).all()


def test_profiles_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="scores holds NaN; expected numbers, and -inf"):
        performance_profile([1.0, math.nan], [0.0])
    with pytest.raises(ValueError, match=r"thresholds has shape \(\); expected \(k,\)"):
        performance_profile([1.0], 0.0)
    profile, low, high = performance_profile([[1.0], [2.0]], [1.5])
    assert profile == [0.5]
    assert np.isnan([low, high]).all()
