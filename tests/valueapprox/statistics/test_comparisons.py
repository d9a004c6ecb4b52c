"""Comparisons: against Mann and Whitney, Student and tables of power."""

import math

import numpy as np
import pytest
import scipy.stats
from scipy.special import ndtr

from valueapprox.statistics import paired_difference, probability_of_improvement, seeds_to_decide
from valueapprox.statistics.comparisons import MAX_SEEDS


@pytest.mark.parametrize("rounded", [6, 0])  # without ties, and with many
def test_the_probability_of_improvement_is_mann_and_whitneys(rounded):
    rng = np.random.default_rng(0)
    x, y = np.round(rng.normal(1, 1, 7), rounded), np.round(rng.normal(0, 1, 11), rounded)
    u = scipy.stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement(x, y).value == pytest.approx(u / 77)


def test_the_probability_of_improvement_by_hand():
    # Of the pairs of (1, 3) and (2, 3): 1 < 2, 1 < 3, 3 > 2, 3 = 3
    assert probability_of_improvement([1, 3], [2, 3]).value == 0.375
    assert probability_of_improvement([[1, 3], [5, 6]], [[2, 3], [0, 1, 2]]).value == (0.375 + 1) / 2
    assert probability_of_improvement([-math.inf, 1], [-math.inf, -math.inf]).value == 0.75


def test_what_one_gains_the_other_loses():
    rng = np.random.default_rng(1)
    x, y = [list(rng.normal(0.5, 1, 6)) for _ in range(3)], [list(rng.normal(0, 1, 8)) for _ in range(3)]
    forth, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert forth.value + back.value == pytest.approx(1)
    assert (forth.low + back.high, forth.high + back.low) == pytest.approx((1, 1), abs=0.02)
    assert 0 <= forth.low < forth.value < forth.high <= 1


def test_the_best_of_few_is_not_certain_to_be_better():
    three = probability_of_improvement([4, 5, 6], [1, 2, 3])
    thirty = probability_of_improvement(np.arange(30) + 30, np.arange(30))
    assert (three.value, three.high, thirty.value, thirty.high) == (1, 1, 1, 1)
    assert 0.2 < three.low < 0.6
    assert 0.85 < thirty.low < 1
    same = probability_of_improvement(np.full(5, 500.0), np.full(5, 500.0))
    assert same.low < 0.5 == same.value < same.high


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_its_interval_covers(shift):
    rng, truth = np.random.default_rng(2), ndtr(shift / math.sqrt(2))
    found = [
        probability_of_improvement(rng.normal(shift, 1, 10), rng.normal(0, 1, 10), resamples=500) for _ in range(300)
    ]
    assert sum(e.low <= truth <= e.high for e in found) > 300 * 0.91


def test_probabilities_that_cannot_be_compared():
    with pytest.raises(ValueError, match="x has 2 tasks and y 1; expected the same ones"):
        probability_of_improvement([[1.0], [2.0]], [1.0])
    assert math.isnan(probability_of_improvement([1.0], [math.nan]).value)
    alone = probability_of_improvement([2.0], [1.0])
    assert (alone.value, math.isnan(alone.low), math.isnan(alone.high)) == (1.0, True, True)


# --- on common seeds ------------------------------------------------------------------------------------------------


def test_a_paired_difference_is_students():
    rng = np.random.default_rng(0)
    y = rng.normal(0, 10, 9)
    x = y + rng.normal(1, 1, 9)
    found, known = paired_difference(x, y), scipy.stats.ttest_rel(x, y).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx(((x - y).mean(), known.low, known.high), rel=1e-9)
    failed = paired_difference([1.0, -math.inf], [-math.inf, -math.inf])
    assert math.isnan(failed.value)
    with pytest.raises(ValueError, match=r"x has shape \(2,\) and y \(3,\); expected the same \(n,\)"):
        paired_difference([1, 2], [1, 2, 3])


def pairs(effect, n):
    """n pairs whose differences have this mean and a standard deviation of 1."""
    d = np.random.default_rng(0).normal(size=n)
    d = effect + (d - d.mean()) / d.std(ddof=1)
    y = np.random.default_rng(1).normal(size=n)
    return y + d, y


@pytest.mark.parametrize(("effect", "n", "total"), [(0.5, 10, 34), (0.2, 10, 199), (-0.8, 5, 15)])
def test_seeds_to_decide_are_those_of_the_tables(effect, n, total):
    # Paired t test, two-sided, 5 %, power 80 %: 34, 199 and 15 pairs for effects of 0.5, 0.2 and 0.8 (Cohen's tables)
    assert seeds_to_decide(*pairs(effect, n)) == total - n


@pytest.mark.parametrize(("confidence", "power"), [(0.95, 0.8), (0.9, 0.5), (0.99, 0.95)])
def test_fewer_seeds_have_less_power(confidence, power):
    n, effect = 8, 0.3
    total = n + seeds_to_decide(*pairs(effect, n), confidence, power)

    def power_of(m):
        t = scipy.stats.t.ppf((1 + confidence) / 2, m - 1)
        around = effect * math.sqrt(m)
        return scipy.stats.nct.sf(t, m - 1, around) + scipy.stats.nct.cdf(-t, m - 1, around)

    assert power_of(total) >= power > power_of(total - 1)


def test_seeds_that_are_decided_or_never_will_be():
    assert seeds_to_decide(*pairs(2.0, 10)) == 0
    assert seeds_to_decide([2.0, 3.0], [1.0, 2.0]) == 0  # each by 1
    assert seeds_to_decide([1.0, 2.0], [1.0, 2.0]) == MAX_SEEDS
    assert seeds_to_decide(*pairs(1e-6, 10)) == MAX_SEEDS
    assert 0 < seeds_to_decide(*pairs(0.003, 10)) < MAX_SEEDS
    for x in ([1.0], [1.0, -math.inf]):
        with pytest.raises(ValueError, match="expected at least two finite differences"):
            seeds_to_decide(x, [0.0] * len(x))
