"""Is one better than the other? By chance on any two seeds, in the mean on common seeds, and how many would decide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import nctdtr, ndtri, stdtrit

from valueapprox.checks import as_numbers, positive, unit_interval
from valueapprox.seeding import sequence
from valueapprox.statistics.intervals import Estimate, interval_of_mean
from valueapprox.statistics.resampling import Values, percentiles, strata, stretch, weights

__all__ = ["MAX_SEEDS", "paired_difference", "probability_of_improvement", "seeds_to_decide"]

MAX_SEEDS = 1_000_000


def _pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, m): 1 where x_i > y_j, 1/2 where they are equal, and else 0."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


def probability_of_improvement(
    x: Values, y: Values, confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """The chance that a run of X is better than one of Y: P(X > Y) + P(X = Y) / 2, the mean over tasks.

    Within a task it is Mann and Whitney's U / (n m) (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of
    the Statistical Precipice"). The interval has percentiles of a Bayesian bootstrap (Rubin 1981), stratified by task
    and by algorithm, in which a quarter of a run that is better and of one that is worse than all others join the runs
    of each. So it has a width also where every run of X beats every one of Y.

    Parameters
    ----------
    x, y
        (n,) and (m,), or lists of such arrays, one per task, the same tasks in both. -inf is a run that failed.
    confidence, seed, resamples
        As of `estimate`.

    Raises
    ------
    ValueError
        If x and y have another number of tasks.
    """
    xs, ys = strata("x", x), strata("y", y)
    if len(xs) != len(ys):
        raise ValueError(f"x has {len(xs)} tasks and y {len(ys)}; expected the same ones")
    confidence = unit_interval("confidence", confidence)
    positive("resamples", resamples)
    if any(np.isnan(part).any() for part in xs + ys):
        return Estimate(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(sequence(seed, "bootstrap"))
    tasks = list(zip(xs, ys, strict=True))
    found = np.zeros(resamples)
    for a, b in tasks:
        more = _pairs(*(np.append(part, [np.inf, -np.inf]) for part in (a, b)))
        w, v = (weights(part.size, 0.25 / len(tasks), resamples, rng) for part in (a, b))
        found += ((w @ more) * v).sum(axis=1) / len(tasks)
    sizes = [min(a.size, b.size) for a, b in tasks]
    low, high = percentiles(found, ndtri((1 + confidence) / 2) * stretch(sizes, more=1))
    value = float(np.mean([_pairs(a, b).mean() for a, b in tasks]))
    return Estimate(value, float(np.minimum(low, value)), float(np.maximum(high, value)))


def _differences(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """x - y of the same seeds, (n,)."""
    a, b = (as_numbers(name, values).astype(np.float64) for name, values in (("x", x), ("y", y)))
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"x has shape {a.shape} and y {b.shape}; expected the same (n,), one for each common seed")
    with np.errstate(invalid="ignore"):
        return np.asarray(a - b)


def paired_difference(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The mean of x - y over common seeds, with Student's interval.

    What both share, such as the same starts, drops out of the difference, so that it is known better than the
    difference of two means. NaN where a run failed.

    Parameters
    ----------
    x, y
        (n,), entry i of both from the same seed.
    confidence
        Of the interval; where it does not hold 0, one is better.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    return interval_of_mean(_differences(x, y), confidence)


def seeds_to_decide(x: ArrayLike, y: ArrayLike, confidence: float = 0.95, power: float = 0.8) -> int:
    """How many further common seeds would make the interval of the paired difference exclude 0?

    The least N - n, for which Student's test of N pairs rejects 0 with this power, if mean d and spread s of x - y are
    those seen so far: P(|T| > t(N - 1)) >= power, with T noncentral t of N - 1 degrees of freedom around sqrt(N) d / s.
    What was seen is itself uncertain, so that this is a plan and not a promise (Colas, Sigaud & Oudeyer 2018, "How Many
    Random Seeds?").

    Returns
    -------
    int
        0 where the interval excludes 0 already, and `MAX_SEEDS` where so many are not enough, as where d = 0.

    Raises
    ------
    ValueError
        If the shapes differ, there are less than two pairs, or a difference is not finite.
    """
    d = _differences(x, y)
    if d.size < 2 or not np.isfinite(d).all():
        raise ValueError(f"x - y is {d}; expected at least two finite differences")
    confidence, power = unit_interval("confidence", confidence), unit_interval("power", power)
    now = interval_of_mean(d, confidence)
    if now.low > 0 or now.high < 0:
        return 0
    effect = abs(d.mean()) / d.std(ddof=1) if d.mean() != 0 else 0.0

    def enough(total: int) -> bool:
        t, around = stdtrit(total - 1, (1 + confidence) / 2), math.sqrt(total) * effect
        return bool(1 - nctdtr(total - 1, around, t) + nctdtr(total - 1, around, -t) >= power)

    low, high = d.size, d.size + 1  # the answer lies above low
    while not enough(high):
        if high >= d.size + MAX_SEEDS:
            return MAX_SEEDS
        low, high = high, min(2 * high, d.size + MAX_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - d.size
