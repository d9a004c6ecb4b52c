"""Intervals: against SciPy, against numbers by hand, and against how often they should cover."""

import math

import numpy as np
import pytest

from valueapprox.statistics import interval_of_mean


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (10, 2.262157), (30, 2.045230)])  # Student's table
def test_the_interval_of_a_mean_is_students(n, t):
    values = np.random.default_rng(n).normal(1e6, 3.0, n)
    estimate = interval_of_mean(values)
    half = t * values.std(ddof=1) / math.sqrt(n)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=1e-4)
    assert (estimate.value, (estimate.high + estimate.low) / 2) == pytest.approx((values.mean(), values.mean()))


@pytest.mark.parametrize("n", [5, 10, 30])
def test_a_95_percent_interval_covers_95_percent(n):
    # 4000 samples: a standard error of 0.35 percentage points
    samples = np.random.default_rng(n).normal(7.0, 2.0, (4000, n))
    estimates = [interval_of_mean(sample) for sample in samples]
    assert 0.93 < np.mean([e.low <= 7.0 <= e.high for e in estimates]) < 0.97


def test_one_value_has_no_interval_and_equal_ones_a_narrow_one():
    alone = interval_of_mean(np.array([3.0]))
    assert alone.value == 3.0
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    equal = interval_of_mean(np.full(10, 0.1))
    assert (equal.low, equal.high) == pytest.approx((0.1, 0.1), abs=1e-15)
