"""How are the scores of all runs distributed? Performance profiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from valueapprox.checks import as_numbers, unit_interval
from valueapprox.statistics.resampling import Values, strata, stretch

__all__ = ["performance_profile"]


def performance_profile(
    scores: Values, thresholds: ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of runs with a score above each threshold, P(score > tau), with a band.

    It is the score distribution of Agarwal et al. 2021 ("Deep Reinforcement Learning at the Edge of the Statistical
    Precipice"). The band holds for each threshold by itself. For one task it is Jeffreys' interval of a share (Brown,
    Cai & DasGupta 2001): the quantiles of Beta(k + 1/2, n - k + 1/2), which have a width also where all runs are above
    the threshold, or none, where every resample of a bootstrap is the same. For several tasks, n_s of n runs and k_s of
    k above it in task s, it is that of the beta distribution with the mean and the variance of
    sum_s n_s / n Beta(k_s + e, n_s - k_s + e), e = 1 / (2 n_tasks), the variance corrected for small n_s (`stretch`).

    Parameters
    ----------
    scores
        (n,), or a list of arrays with one per task, on one scale. -inf, a run that failed, is above no threshold.
    thresholds
        (k,).
    confidence
        Of the band at each threshold.

    Returns
    -------
    profile, low, high : arrays (k,)
        The band is NaN where no task has two runs.

    Raises
    ------
    ValueError
        If there is no score, or one is NaN.
    """
    parts = strata("scores", scores)
    tau = as_numbers("thresholds", thresholds)
    if tau.ndim != 1:
        raise ValueError(f"thresholds has shape {tau.shape}; expected (k,)")
    confidence = unit_interval("confidence", confidence)
    if any(np.isnan(part).any() for part in parts):
        raise ValueError("scores holds NaN; expected numbers, and -inf for a run that failed")
    sizes = np.array([part.size for part in parts])[:, None]
    above = np.array([(part[:, None] > tau).sum(axis=0) for part in parts])  # (n_tasks, k)
    profile, share, e = above.sum(axis=0) / sizes.sum(), sizes / sizes.sum(), 0.5 / len(parts)
    each = (above + e) / (sizes + 2 * e)
    mean = (share * each).sum(axis=0)
    variance = stretch(sizes, more=1) ** 2 * (share**2 * each * (1 - each) / (sizes + 2 * e + 1)).sum(axis=0)
    total = mean * (1 - mean) / variance - 1  # a + b of the beta distribution
    low, high = (betaincinv(mean * total, (1 - mean) * total, (1 + c) / 2) for c in (-confidence, confidence))
    return profile, np.minimum(low, profile), np.maximum(high, profile)
