"""Intervals: against SciPy, against numbers by hand, and against how often they should cover."""

import math

import numpy as np
import pytest
import scipy.stats

from valueapprox.statistics import STATISTICS, estimate, interval_of_mean, tolerance_interval
from valueapprox.statistics.resampling import bootstrap


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (10, 2.262157), (30, 2.045230)])  # Student's table
def test_the_interval_of_a_mean_is_students(n, t):
    values = np.random.default_rng(n).normal(1e6, 3.0, n)
    estimate = interval_of_mean(values)
    half = t * values.std(ddof=1) / math.sqrt(n)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=1e-4)
    assert (estimate.value, (estimate.high + estimate.low) / 2) == pytest.approx((values.mean(), values.mean()))


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_of_a_mean_is_scipys(confidence):
    values = np.random.default_rng(0).normal(size=12)
    found = interval_of_mean(values, confidence)
    known = scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), rel=1e-12)
    assert estimate(values, "mean", confidence) == found


def test_the_interval_of_a_mean_over_tasks_is_welchs():
    # With as many runs of y as of x, the mean of x and -y is half of the difference of their means.
    rng = np.random.default_rng(2)
    x, y = rng.normal(3.0, 1.0, 8), rng.normal(1.0, 4.0, 8)
    found = estimate([x, -y], "mean")
    known = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx((x.mean() - y.mean()) / 2, rel=1e-12)
    assert (2 * found.low, 2 * found.high) == pytest.approx((known.low, known.high), rel=1e-12)


def test_one_value_has_no_interval_and_equal_ones_a_narrow_one():
    for statistic in STATISTICS:
        for values in ([3.0], [[3.0], [3.0]]):
            alone = estimate(values, statistic)
            assert alone.value == 3.0
            assert math.isnan(alone.low)
            assert math.isnan(alone.high)
        equal = estimate(np.full(10, 0.1), statistic)
        assert (equal.low, equal.high) == pytest.approx((0.1, 0.1), abs=1e-15)


def test_a_task_of_one_run_adds_nothing_to_the_spread():
    # (2 + 4 + 9) / 3 with variance (2 / 3)^2 s^2 / 2 of one degree of freedom: s^2 = 2, t(1) = 12.7062
    found = estimate([[2.0, 4.0], [9.0]], "mean")
    assert (found.value, found.high - found.value) == pytest.approx((5.0, 12.7062 * 2 / 3), rel=1e-5)


# --- the median -----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_median_by_hand():
    # n = 6: the smallest and the largest hold it with 1 - 2 / 64 = 0.96875, their neighbours with 1 - 14 / 64.
    # I = 0.01875 / 0.1875 = 0.1 and lambda = 5 0.1 / (1 + 4 0.1) = 5 / 14.
    found = estimate([60.0, 10.0, 30.0, 20.0, 50.0, 40.0], "median")
    assert (found.value, found.low, found.high) == pytest.approx((35.0, 10 + 50 / 14, 60 - 50 / 14))
    # n = 5: 1 - 2 / 32 = 0.9375 is the most that five values can promise.
    found = estimate([5.0, 1.0, 3.0, 2.0, 4.0], "median")
    assert (found.low, found.high) == (1.0, 5.0)
    # Exactly the confidence of the second smallest and second largest of six
    found = estimate([60.0, 10.0, 30.0, 20.0, 50.0, 40.0], "median", confidence=1 - 14 / 64)
    assert (found.low, found.high) == (20.0, 50.0)


@pytest.mark.parametrize("n", [6, 9, 10, 30, 101])
def test_the_interval_of_a_median_lies_between_two_order_statistics(n):
    # The exact one, with at least the confidence, is SciPy's; the next two order statistics have less.
    values = np.sort(np.random.default_rng(n).normal(size=n))
    found = estimate(values, "median")
    lower = scipy.stats.quantile_test(values, p=0.5, alternative="less").confidence_interval(0.975).high
    upper = scipy.stats.quantile_test(values, p=0.5, alternative="greater").confidence_interval(0.975).low
    last, first = np.searchsorted(values, lower), np.searchsorted(values, upper)
    assert values[first] <= found.low <= values[first + 1]
    assert values[last - 1] <= found.high <= values[last]


def test_intervals_of_failed_runs():
    runs = np.arange(10.0)
    runs[:2] = -np.inf
    for statistic in ("median", "iqm"):  # two of ten may be four of ten another time
        found = estimate(runs, statistic)
        assert math.isfinite(found.value)
        assert found.low == -math.inf
        assert found.value < found.high < 10
        all_failed = estimate(np.full(10, -np.inf), statistic)
        assert all_failed.value == all_failed.low == all_failed.high == -math.inf
    mean = estimate(runs, "mean")
    assert [math.isnan(number) for number in (mean.value, mean.low, mean.high)] == [True] * 3
    many = np.r_[-np.inf, np.arange(99.0)]  # one of a hundred is far from a quarter
    assert all(math.isfinite(estimate(many, s).low) for s in ("median", "iqm"))


# --- the bootstrap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 25])
def test_the_interval_of_an_iqm_has_the_percentiles_of_scipys_bootstrap(n):
    # At the levels Phi(-+ t(n - 1)). Both resample on their own: 20,000 times, for an error of a few per cent.
    values = np.random.default_rng(n).normal(size=n)
    found = estimate(values, "iqm", resamples=20_000)
    level = 1 - 2 * scipy.stats.norm.sf(scipy.stats.t.ppf(0.975, n - 1))
    known = scipy.stats.bootstrap(
        (values,), STATISTICS["iqm"], n_resamples=20_000, confidence_level=level, method="percentile", rng=0
    ).confidence_interval
    width = known.high - known.low
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.05 * width)


def test_resamples_keep_to_their_task():
    parts = [np.array([0.0, 0.0]), np.array([1.0, 1.0, 1.0])]
    found = bootstrap(parts, lambda sample: sample.sum(axis=1), 50, np.random.default_rng(0))
    np.testing.assert_array_equal(found, np.full(50, 3.0))


def test_resamples_are_the_same_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=20)
    whole = estimate(values, "iqm")
    monkeypatch.setattr("valueapprox.statistics.resampling.MAX_NUMBERS", 20 * 300)
    parts = estimate(values, "iqm")
    assert (whole.low, whole.high) == (parts.low, parts.high)


def test_the_same_seed_gives_the_same_interval():
    values = [np.random.default_rng(s).normal(size=6) for s in (0, 1)]
    assert estimate(values, "iqm", seed=5) == estimate(values, "iqm", seed=5)
    assert estimate(values, "iqm", seed=5) != estimate(values, "iqm", seed=6)


def test_a_higher_confidence_is_a_wider_interval():
    values = [np.random.default_rng(s).normal(size=7) for s in (0, 1)]
    for statistic in STATISTICS:
        for runs in (values, values[0]):
            wide, narrow = estimate(runs, statistic, 0.99), estimate(runs, statistic, 0.8)
            assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([],), r"values has shape \(0,\); expected \(n,\)"),
        (([[1.0], []],), r"values has shape \(0,\)"),
        ((np.ones((2, 3)),), r"values has shape \(2, 3\)"),
        (([1.0, 2.0], "mode"), "statistic is 'mode'; expected one of mean, median, iqm|did you mean"),
        (([1.0, 2.0], "mean", 95), "confidence is 95"),
        (([1.0, 2.0], "iqm", 0.95, 0, 0), "resamples is 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        estimate(*args)


def test_nan_is_no_score():
    for statistic in STATISTICS:
        found = estimate([1.0, math.nan, 2.0], statistic)
        assert [math.isnan(number) for number in (found.value, found.low, found.high)] == [True] * 3


# --- coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["mean", "median", "iqm"])
@pytest.mark.parametrize("n", [10, 30])
def test_a_95_percent_interval_covers_95_percent(statistic, n):
    # tests/bars/interval_coverage.py takes 5,000 samples and other distributions. Of these 500, as many as three
    # standard errors more than 97 % or less than 93 % may be covered: 453 to 496.
    samples = np.random.default_rng(n).normal(7.0, 2.0, (500, n))
    estimates = [estimate(sample, statistic, resamples=1000) for sample in samples]
    error = 3 * np.sqrt(500 * np.array([0.93 * 0.07, 0.97 * 0.03]))
    covered = sum(e.low <= 7.0 <= e.high for e in estimates)
    assert 500 * 0.93 - error[0] <= covered <= 500 * 0.97 + error[1]


def test_three_runs_of_each_task_cover_nearly_as_often():
    # The IQM of six alike tasks is that of one. Without the stretch for small strata it would be covered 82 %.
    samples = np.random.default_rng(0).normal(size=(500, 6, 3))
    estimates = [estimate(list(sample), "iqm", resamples=500) for sample in samples]
    assert 500 * 0.86 < sum(e.low <= 0.0 <= e.high for e in estimates) < 500 * 0.98


# --- tolerance ------------------------------------------------------------------------------------------------------


def test_a_tolerance_interval_needs_46_values():
    values = np.random.default_rng(0).normal(size=46)  # Wilks' number for 90 % with 95 % confidence
    found = tolerance_interval(values)
    assert (found.low, found.value, found.high) == (values.min(), np.median(values), values.max())
    few = tolerance_interval(values[:45])
    assert (few.low, few.value, few.high) == (-math.inf, np.median(values[:45]), math.inf)


@pytest.mark.parametrize("n", [46, 77, 93, 200, 1000])
def test_a_tolerance_interval_promises_enough_and_no_more(n):
    # Between the r-th smallest and r-th largest lies a share of Beta(n + 1 - 2 r, 2 r).
    r = 1 + int(tolerance_interval(np.arange(n)).low)
    assert scipy.stats.beta.sf(0.9, n + 1 - 2 * r, 2 * r) >= 0.95
    assert scipy.stats.beta.sf(0.9, n - 1 - 2 * r, 2 * r + 2) < 0.95


def test_tolerance_of_failed_runs():
    values = np.r_[np.full(3, -np.inf), np.arange(97.0)]
    assert tolerance_interval(values).low == -math.inf  # of a hundred, it is the second smallest
    assert tolerance_interval(values, share=0.5).low >= 0
    assert math.isnan(tolerance_interval([1.0, math.nan]).value)
