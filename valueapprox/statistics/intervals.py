"""How sure is a number that comes from a few runs? Confidence intervals and tolerance intervals.

Each interval is the one that keeps its promise for few runs: Student's t for a mean, order statistics for a median,
and a bootstrap whose percentiles are moved outwards for anything else. The page "Statistics over runs" of the
documentation has a table of how often each covers the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, stdtrit

from valueapprox.checks import one_of, positive, unit_interval
from valueapprox.seeding import sequence
from valueapprox.statistics.aggregates import STATISTICS, median
from valueapprox.statistics.resampling import Values, bootstrap, percentiles, strata, stretch

__all__ = ["Estimate", "estimate", "interval_of_mean", "intervals_of_measures", "tolerance_interval"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, of 95 % confidence where nothing else is said."""

    value: float
    low: float
    high: float


# --- Student's t ----------------------------------------------------------------------------------------------------


def _student(value: float, error: float, df: float, confidence: float) -> Estimate:
    """value -+ t(df) error."""
    half = float(stdtrit(df, (1 + confidence) / 2)) * error
    return Estimate(float(value), float(value - half), float(value + half))


def interval_of_mean(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of independent values (n,), with Student's interval: t(n - 1) s / sqrt(n) to either side.

    One value has no interval (NaN), and values that are not all finite have no mean.
    """
    return _of_means(strata("values", np.asarray(values)), unit_interval("confidence", confidence))


def _of_means(parts: list[np.ndarray], confidence: float) -> Estimate:
    """The mean of all values; its variance is sum_s (n_s / n)^2 s_s^2 / n_s, with Welch and Satterthwaite's degrees.

    Of one stratum, that is Student's interval. A stratum of one value adds nothing to the variance.
    """
    value = float(STATISTICS["mean"](np.concatenate(parts)))
    sizes = np.array([part.size for part in parts])
    if math.isnan(value) or sizes.max() == 1:
        return Estimate(value, math.nan, math.nan)
    n = sizes.sum()
    terms = np.array([part.var(ddof=1) * part.size / n**2 for part in parts if part.size > 1])
    squares = terms**2 / (sizes[sizes > 1] - 1)
    # Without any spread the degrees of freedom do not matter.
    df = terms.sum() ** 2 / squares.sum() if squares.sum() > 0 else n - 1
    return _student(value, math.sqrt(terms.sum()), df, confidence)


def intervals_of_measures(
    rows: np.ndarray, measures: Callable[[np.ndarray], np.ndarray], confidence: float = 0.95
) -> list[Estimate]:
    """Estimates of measures that follow from sums of independent rows (m, q), such as a ratio of two sums.

    The standard error is the jackknife's (Efron & Stein 1981): how much a measure changes when each row in turn is left
    out. Of a mean it is s / sqrt(m), so that the interval is Student's. One row alone has no interval (NaN).

    Parameters
    ----------
    rows
        (m, q), one per independent piece of experience, such as an episode.
    measures
        From sums (..., q) to the measures (..., k).
    confidence
        Of each interval.
    """
    m, total = len(rows), rows.sum(axis=0)
    value = measures(total)
    if m == 1:
        return [Estimate(float(v), math.nan, math.nan) for v in value]
    others = measures(total - rows)
    others = np.where(np.isfinite(others), others, value)  # where only the row left out made it defined
    error2 = (m - 1) / m * ((others - others.mean(axis=0)) ** 2).sum(axis=0)
    return [_student(v, math.sqrt(e), m - 1, confidence) for v, e in zip(value, error2, strict=True)]


# --- order statistics -----------------------------------------------------------------------------------------------


def _of_median(values: np.ndarray, confidence: float) -> Estimate:
    """The median of one stratum, with the interval between two order statistics of either side, interpolated.

    The k-th smallest and k-th largest hold the median between them with probability g_k = 1 - 2 P(B(n, 1/2) < k),
    whatever the distribution. Between the last k with g_k >= confidence and the next one, the ends are interpolated by
    Hettmansperger & Sheather 1986: lambda = (n - k) I / (k + (n - 2 k) I), I = (g_k - confidence) / (g_k - g_{k+1}).
    Where even the smallest and the largest of n values miss the confidence, they are the ends.
    """
    x, n = np.sort(values), len(values)
    if n == 1:
        return Estimate(float(x[0]), math.nan, math.nan)
    g = 1 - 2 * bdtr(np.arange((n + 1) // 2), n, 0.5)  # of k = 1, 2, ...
    k = max(1, int((g >= confidence).sum()))
    share = 0.0
    if g[k - 1] > confidence and k < len(g):
        part = (g[k - 1] - confidence) / (g[k - 1] - g[k])
        share = (n - k) * part / (k + (n - 2 * k) * part)
    return Estimate(float(median(x)), _between(x[k - 1], x[k], share), _between(x[n - k], x[n - k - 1], share))


def _between(a: float, b: float, share: float) -> float:
    """(1 - share) a + share b, also where one of them is infinite."""
    return float(a if share == 0 else (1 - share) * a + share * b)


def tolerance_interval(values: ArrayLike, share: float = 0.9, confidence: float = 0.95) -> Estimate:
    """Between which two values do at least this share of all runs lie, those not yet run included?

    The r-th smallest and the r-th largest of the n values, with the largest r for which P(B(n, share) <= n - 2 r) is at
    least the confidence; this holds whatever the distribution (Wilks 1941; advised by Patterson, Neumann, White &
    White 2024, "Empirical Design in Reinforcement Learning"). Where n is too small for r = 1, such as below 46 for a
    share of 0.9 and a confidence of 0.95, the ends are -inf and inf. The value is the median.

    Raises
    ------
    ValueError
        If there is no value, or share or confidence does not lie in [0, 1].
    """
    (x,) = strata("values", np.asarray(values))
    share, confidence = unit_interval("share", share), unit_interval("confidence", confidence)
    if np.isnan(x).any():
        return Estimate(math.nan, math.nan, math.nan)
    x, n = np.sort(x), x.size
    needed = int(np.searchsorted(bdtr(np.arange(n + 1), n, share), confidence))  # least k with P(B <= k) >= confidence
    r = (n - needed) // 2
    low, high = (x[r - 1], x[n - r]) if r >= 1 else (-math.inf, math.inf)
    return Estimate(float(median(x)), float(low), float(high))


# --- the bootstrap --------------------------------------------------------------------------------------------------


def estimate(
    values: Values, statistic: str = "mean", confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """A statistic of the runs with its confidence interval.

    The mean has Student's interval (Welch's, with several tasks), and the median of one task that of order statistics
    (Hettmansperger & Sheather 1986). Everything else has the percentiles of a bootstrap that is stratified by task
    (Agarwal et al. 2021), further out than 2.5 and 97.5 %, since these would cover too little: at the levels
    Phi(-+ t(sum_s (n_s - 1)) f), with Student's t, and a factor f for small strata (`stretch`). This is the expanded
    percentile interval of Hesterberg 2015 ("What Teachers Should Know About the Bootstrap"), but for f = 1 with one
    task, as resamples of medians and IQMs, unlike those of means, spread by no less than fresh samples.

    Parameters
    ----------
    values
        (n,), or a list of arrays with one per task; the statistic is that of all values together. -inf is the score of
        a run that failed: median and IQM and their lower ends bear it, the mean is NaN.
    statistic
        Its name in `STATISTICS`.
    confidence
        How often such intervals hold the true value.
    seed
        Of the resampling: the same seed gives the same interval.
    resamples
        How many.

    Returns
    -------
    Estimate
        With NaN for the ends where no task has two values, and for all where a value is NaN.

    Raises
    ------
    ValueError
        If there is no value, the statistic is not known, or the confidence is none.
    """
    parts = strata("values", values)
    compute = STATISTICS[one_of("statistic", statistic, STATISTICS)]
    confidence = unit_interval("confidence", confidence)
    positive("resamples", resamples)
    if any(np.isnan(part).any() for part in parts):
        return Estimate(math.nan, math.nan, math.nan)
    if statistic == "mean":
        return _of_means(parts, confidence)
    if statistic == "median" and len(parts) == 1:
        return _of_median(parts[0], confidence)
    rng = np.random.default_rng(sequence(seed, "bootstrap"))
    sizes = [part.size for part in parts]
    z = float(stdtrit(sum(sizes) - len(sizes), (1 + confidence) / 2)) * stretch(sizes)
    low, high = percentiles(bootstrap(parts, compute, resamples, rng), z)
    return Estimate(float(compute(np.concatenate(parts))), float(low), float(high))
