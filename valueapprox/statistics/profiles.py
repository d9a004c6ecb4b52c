"""How are the scores of all runs distributed? Performance profiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_numbers, positive, unit_interval
from valueapprox.seeding import sequence
from valueapprox.statistics.intervals import Values, counts, percentiles, strata

__all__ = ["performance_profile"]


def performance_profile(
    scores: Values, thresholds: ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of runs with a score above each threshold: P(score > tau), with a band.

    It is the score distribution of Agarwal et al. 2021 ("Deep Reinforcement Learning at the Edge of the Statistical
    Precipice"). The band holds each threshold for itself; it is the expanded percentile interval of a bootstrap that is
    stratified by task.

    Parameters
    ----------
    scores
        (n,), or a list of arrays with one per task, on one scale. -inf, a run that failed, is above no threshold.
    thresholds
        (k,).
    confidence, seed, resamples
        As of `estimate`.

    Returns
    -------
    profile, low, high : arrays (k,)

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
    positive("resamples", resamples)
    if any(np.isnan(part).any() for part in parts):
        raise ValueError("scores holds NaN; expected numbers, and -inf for a run that failed")

    n = sum(part.size for part in parts)
    above = [part[:, None] > tau for part in parts]  # (n_s, k)
    rng = np.random.default_rng(sequence(seed, "bootstrap"))
    found = sum((counts(part.size, resamples, rng) @ a for part, a in zip(parts, above, strict=True)), np.zeros(())) / n
    low, high = percentiles(found, [part.size for part in parts], confidence)
    return np.concatenate(above).mean(axis=0), low, high
