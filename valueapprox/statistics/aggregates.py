"""From many numbers to one: the statistics over runs, by their names, and the area under a learning curve.

A statistic is a function `(values, axis=-1)` to the array without that axis, with `@register`. It must not depend on
the order of the values. A value may be -inf, the score of a run that failed or diverged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_numbers
from valueapprox.registry import Registry

__all__ = ["STATISTICS", "area_under_curve", "iqm", "mean", "median", "register"]


def _attempt(statistic: Any) -> None:
    """Does it take an axis, as NumPy's functions do, and not mind the order of the values?"""
    values = np.random.default_rng(0).normal(size=(3, 7))
    along = np.asarray(statistic(values))
    if along.shape != (3,):
        raise ValueError(f"of values (3, 7) along the last axis it has shape {along.shape}; expected (3,)")
    across = np.asarray(statistic(values.T, axis=0))
    if across.shape != (3,) or not np.allclose(along, across):
        raise ValueError("it is another along axis 0 than along the last one")
    if not np.allclose(along, statistic(values[:, ::-1], axis=-1)):
        raise ValueError("it depends on the order of the values")


#: Every statistic, by its name in files and on the command line.
STATISTICS = Registry("__call__", "valueapprox.statistics.aggregates", _attempt)
register = STATISTICS.register


@register("mean")
def mean(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """sum x_i / n; NaN where a value is not finite, since a mean over failed runs says nothing."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        found = values.mean(axis=axis)
    return np.where(np.isfinite(values).all(axis=axis), found, np.nan)


@register("median")
def median(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """The middle one, or the mean of the two in the middle; -inf where half of the runs or more have failed."""
    return np.asarray(np.median(np.asarray(values, dtype=np.float64), axis=axis))


@register("iqm")
def iqm(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """The interquartile mean, 2 int_{1/4}^{3/4} F^{-1}(u) du; -inf where more than a quarter of the runs have failed.

    F is the empirical distribution, so that of n = 6 values the second and the fifth count half. Where n is a multiple
    of four, this is the mean with a quarter cut from either end, as of Agarwal et al. 2021 ("Deep Reinforcement
    Learning at the Edge of the Statistical Precipice"), who cut floor(n / 4) where it is not.
    """
    values = np.sort(np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1), axis=-1)
    n = values.shape[-1]
    first, last = n // 4, n - n // 4
    i = np.arange(first, last)
    weights = np.minimum(i + 1, 0.75 * n) - np.maximum(i, 0.25 * n)
    return np.asarray(values[..., first:last] @ (weights / weights.sum()))


def area_under_curve(steps: ArrayLike, values: ArrayLike) -> Any:
    """The area under a learning curve, divided by the span of its steps: the mean value over them, by trapezoids.

    Parameters
    ----------
    steps
        (T,), growing.
    values
        (..., T), the curve or curves over these steps. Where a curve begins with NaN, since no episode had ended yet,
        the first known value is taken.

    Returns
    -------
    float or array
        One number per curve (...); NaN where a value after the first known one is NaN.

    Raises
    ------
    ValueError
        If there is no step, the steps do not grow, or the shapes do not fit.
    """
    x = as_numbers("steps", steps).astype(np.float64)
    y = as_numbers("values", values).astype(np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"steps has shape {x.shape}; expected (T,), at least one")
    if y.shape[-1:] != x.shape:
        raise ValueError(f"values has shape {y.shape}; expected (..., {x.size})")
    if not (np.diff(x) > 0).all():
        raise ValueError("steps is not growing; expected each step to lie after the one before")
    known = ~np.isnan(y)
    start = known.argmax(axis=-1)[..., None]
    y = np.where(np.arange(x.size) < start, np.take_along_axis(y, start, axis=-1), y)
    area = y[..., 0] if x.size == 1 else np.trapezoid(y, x, axis=-1) / (x[-1] - x[0])
    return float(area) if y.ndim == 1 else area
