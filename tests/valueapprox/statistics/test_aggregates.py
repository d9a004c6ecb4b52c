"""Statistics over runs: what is true of each that is registered, numbers by hand, and the area under a curve."""

import math

import numpy as np
import pytest
import scipy.stats

from valueapprox.statistics import STATISTICS, area_under_curve, estimate, register


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_takes_an_axis_and_does_not_mind_the_order(name):
    statistic, rng = STATISTICS[name], np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 9))
    for axis in (0, 1, 2, -1):
        found = statistic(values, axis=axis)
        by_hand = np.apply_along_axis(lambda v: float(statistic(v)), axis, values)
        np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    np.testing.assert_allclose(statistic(values), statistic(rng.permuted(values, axis=-1)), rtol=1e-12)
    assert np.shape(statistic([2.0])) == ()
    assert statistic.name == name


@pytest.mark.parametrize("name", STATISTICS)
def test_every_statistic_has_an_interval(name):
    runs = np.random.default_rng(1).normal(5.0, 1.0, 12)
    for values in (runs, list(runs), [runs[:4], runs[4:]]):
        e = estimate(values, name)
        assert e.low < e.value < e.high
        assert e.value == pytest.approx(float(STATISTICS[name](runs)))


@pytest.mark.parametrize("n", [4, 8, 12, 100])
def test_where_n_is_a_multiple_of_four_the_iqm_is_scipys_trimmed_mean(n):
    values = np.random.default_rng(n).lognormal(size=(5, n))
    np.testing.assert_allclose(STATISTICS["iqm"](values), scipy.stats.trim_mean(values, 0.25, axis=1), rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "iqm"),
    [
        ([7], 7),
        ([1, 3], 2),
        ([0, 1, 100], (0.25 * 0 + 1 + 0.25 * 100) / 1.5),  # the middle half is 1.5 of 3 values
        ([0, 1, 2, 3, 100], (0.75 * 1 + 2 + 0.75 * 3) / 2.5),
        ([5, 0, 4, 1, 3, 2], (0.5 * 1 + 2 + 3 + 0.5 * 4) / 3),
        ([-math.inf, 1, 2, 6], 1.5),
        ([-math.inf, -math.inf, 1, 2], -math.inf),
        ([-math.inf, 1, 2], -math.inf),
    ],
)
def test_iqm_by_hand(values, iqm):
    assert STATISTICS["iqm"](values) == pytest.approx(iqm)


def test_failed_runs_are_the_worst():
    failed = [-math.inf, 1.0, 2.0, 9.0]
    assert np.isnan(STATISTICS["mean"](failed))
    assert STATISTICS["median"](failed) == 1.5
    assert STATISTICS["median"]([-math.inf, -math.inf, 2.0]) == -math.inf
    np.testing.assert_array_equal(STATISTICS["mean"]([failed, [1.0, 2.0, 3.0, 4.0]]), [np.nan, 2.5])


@pytest.fixture
def forgotten():
    known = dict(STATISTICS)
    yield
    STATISTICS.clear()
    STATISTICS.update(known)


@pytest.mark.usefixtures("forgotten")
def test_a_statistic_is_a_function_and_a_line():
    @register("midrange")
    def midrange(values, axis=-1):
        return (np.min(values, axis=axis) + np.max(values, axis=axis)) / 2

    e = estimate([1.0, 2.0, 3.0, 4.0, 8.0], "midrange")
    assert e.value == 4.5
    assert e.low < e.value < e.high
    with pytest.raises(ValueError, match="statistic is 'midrnge'; did you mean 'midrange'"):
        estimate([1.0, 2.0], "midrnge")


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda values, axis=-1: np.asarray(values)[..., 0], "is another along axis 0"),
        (lambda values, axis=-1: np.mean(values), r"shape \(\); expected \(3,\)"),
        (lambda values, axis=-1: np.mean(values, axis=-1), "is another along axis 0"),
        (lambda values, axis=-1: np.take(values, 0, axis=axis), "depends on the order"),
        (lambda values: np.mean(values, axis=-1), "axis"),
    ],
)
def test_what_is_no_statistic_is_refused(function, message):
    with pytest.raises(TypeError, match=message):
        register("wrong")(function)
    assert "wrong" not in STATISTICS


# --- the area under a curve -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "values", "area"),
    [
        ([0, 10], [2, 4], 3),
        ([0, 1, 3], [0, 1, 3], 1.5),  # (1/2 + 4) / 3
        ([100, 200, 400], [5, 5, 5], 5),
        ([0, 1, 3], [math.nan, 1, 3], 5 / 3),  # 1, 1, 3: (1 + 4) / 3
        ([7], [2.5], 2.5),
        ([0, 1], [math.nan, math.nan], math.nan),
        ([0, 1, 2], [1, math.nan, 1], math.nan),
        ([0, 1, 2], [1, 1, -math.inf], -math.inf),
    ],
)
def test_area_under_a_curve_by_hand(steps, values, area):
    found = area_under_curve(steps, values)
    assert type(found) is float
    assert found == pytest.approx(area, nan_ok=True)


def test_areas_of_many_curves_are_those_of_each():
    steps = np.cumsum(np.random.default_rng(0).integers(1, 5, 20))
    curves = np.random.default_rng(1).normal(size=(2, 3, 20))
    curves[0, 1, :4] = np.nan
    before = curves.copy()
    each = [[area_under_curve(steps, curve) for curve in row] for row in curves]
    np.testing.assert_allclose(area_under_curve(steps, curves), each)
    np.testing.assert_array_equal(curves, before)


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([0, 1], [1, 2, 3], r"values has shape \(3,\); expected \(..., 2\)"),
        ([0, 2, 1], [1, 2, 3], "steps is not growing"),
        ([], [], r"steps has shape \(0,\)"),
    ],
)
def test_what_is_no_curve_is_refused(steps, values, message):
    with pytest.raises(ValueError, match=message):
        area_under_curve(steps, values)
