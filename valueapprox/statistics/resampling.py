"""Samples that are drawn again from the runs of each task, and the percentiles of what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from valueapprox.checks import as_numbers

__all__ = ["Values", "bootstrap", "percentiles", "strata", "stretch", "weights"]

MAX_NUMBERS = 4_000_000  # that resamples hold at a time

#: The runs of one task (n,), or a list of arrays with one per task.
Values = ArrayLike | Sequence[ArrayLike]


def strata(name: str, values: Values) -> list[np.ndarray]:
    """Values (n,), or a list of arrays with one per task, as a list of arrays of float64.

    Raises
    ------
    ValueError
        If there is no value, or an array has another shape than (n,).
    """
    given: Any = values
    several = isinstance(given, (list, tuple)) and any(np.ndim(part) for part in given)
    parts = [as_numbers(name, part).astype(np.float64) for part in (given if several else [given])]
    for part in parts:
        if part.ndim != 1 or not part.size:
            raise ValueError(f"{name} has shape {part.shape}; expected (n,) with n >= 1, or a list of such arrays")
    return parts


def bootstrap(
    parts: list[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], n: int, rng: np.random.Generator
) -> np.ndarray:
    """The statistic (n,) of n resamples, drawn with replacement within each stratum and pooled."""
    block = max(1, MAX_NUMBERS // sum(part.size for part in parts))
    found = []
    for b in [block] * (n // block) + [n % block] * (n % block > 0):
        drawn = [part[rng.integers(part.size, size=(b, part.size))] for part in parts]
        found.append(statistic(np.concatenate(drawn, axis=1)))
    return np.concatenate(found)


def weights(size: int, extra: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Weights (n, size + 2) of the runs, and of two more: one that is better and one that is worse than all others.

    This is the Bayesian bootstrap (Rubin 1981): independent exponential numbers, divided by their sum; the two at the
    end are Gamma(extra). A share of runs is then Beta(k + extra, size - k + extra), which has a width also where all
    runs are alike.
    """
    drawn = rng.standard_gamma(np.append(np.ones(size), [extra, extra]), size=(n, size + 2))
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))


def stretch(sizes: ArrayLike, more: int = 0) -> float:
    """By how much resamples within strata of n_s values spread too little, beside those of all N values as one.

    The variance of resamples is (n_s - 1) / n_s of what it should be, and (n_s - 1) / (n_s + 1) with `weights` (more =
    1), so that this is sqrt(sum_s n_s (n_s + more) / (n_s - 1) / N) / sqrt((N + more) / (N - 1)), as if all strata
    spread alike: 1 for one stratum. Strata of one value spread by nothing and are left out; NaN if there are no others.
    """
    n = np.asarray(sizes, dtype=np.float64)
    n = n[n > 1]
    if not n.size:
        return float("nan")
    total = n.sum()
    return float(np.sqrt((n * (n + more) / (n - 1)).sum() / total * (total - 1) / (total + more)))


def percentiles(found: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Of statistics of resamples (b, ...), those at the levels Phi(-z) and Phi(z); NaN if z is."""
    if np.isnan(z):
        nothing = np.full(found.shape[1:], np.nan)
        return nothing, nothing
    # Both are one of the statistics, and no mean of two: either may be -inf.
    ordered = np.sort(found, axis=0)
    k = max(1, int(ndtr(-z) * (len(ordered) + 1)))
    return ordered[k - 1], ordered[-k]
