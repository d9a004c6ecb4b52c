"""What do hyper-parameters do? Sensitivity to them, how many matter, and one setting for several environments.

Scores are higher for better; a setting whose runs diverged scores -inf.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_numbers, unit_interval
from valueapprox.statistics.aggregates import mean

__all__ = ["Sensitivity", "choose_across", "effective_dimension", "sensitivity", "sensitivity_curves"]

PERCENTILES = (5.0, 95.0)  # of an environment's scores become 0 and 1

Grid = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sensitivity:
    """How much an algorithm owes to tuning in each environment.

    Attributes
    ----------
    value
        The sensitivity: `tuned_each - tuned_across`, never below 0.
    tuned_each
        Mean over environments of the best normalised score in each.
    tuned_across
        The best, over settings, mean normalised score over environments.
    best_each
        (n_envs,) the index of the best setting in each environment.
    best_across
        The index of the one that is best in the mean.
    normalised
        (n_settings, n_envs) scores, 0 and 1 at the 5th and 95th percentile of each environment.
    """

    value: float
    tuned_each: float
    tuned_across: float
    best_each: np.ndarray
    best_across: int
    normalised: np.ndarray


def _scores(scores: ArrayLike, shape: str) -> np.ndarray:
    """Scores as float64, of as many dimensions as the shape names."""
    found = as_numbers("scores", scores).astype(np.float64)
    if found.ndim != shape.count("n_") or not found.size:
        raise ValueError(f"scores has shape {found.shape}; expected {shape}")
    if np.isnan(found).any():
        raise ValueError("scores holds NaN; expected numbers, and -inf for what diverged")
    return found


def _normalised(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(p - p5) / (p95 - p5) with the percentiles of each environment's finite scores in the reference."""
    out = np.empty_like(scores)
    for e in range(scores.shape[1]):
        known = reference[np.isfinite(reference[:, e]), e]
        p5, p95 = np.percentile(known, PERCENTILES) if known.size else (0.0, 0.0)
        if not p95 > p5:
            raise ValueError(f"scores of environment {e} have equal 5th and 95th percentiles; expected some spread")
        out[:, e] = (scores[:, e] - p5) / (p95 - p5)
    return out


def sensitivity(scores: ArrayLike, reference: ArrayLike | None = None) -> Sensitivity:
    """How much better is an algorithm if its hyper-parameters are chosen for each environment than once for all?

    With Gamma(h, e) the score of setting h in environment e, normalised to (p - p5(e)) / (p95(e) - p5(e)):
    mean_e max_h Gamma(h, e) - max_h mean_e Gamma(h, e). Adkins, Bowling & White 2024, "A Method for Evaluating
    Hyperparameter Sensitivity in Reinforcement Learning", as their code computes it.

    Parameters
    ----------
    scores
        (n_settings, n_envs), the mean over the seeds of each.
    reference
        (m, n_envs), where the percentiles are taken; the scores themselves if None. To compare algorithms, give each
        the same: all settings of all of them, as the paper does. Settings that diverged (-inf) are left out there.

    Raises
    ------
    ValueError
        If a shape does not fit, a score is NaN, or an environment's percentiles are equal.
    """
    found = _scores(scores, "(n_settings, n_envs)")
    base = found if reference is None else _scores(reference, "(n_settings, n_envs)")
    if base.shape[1] != found.shape[1]:
        raise ValueError(f"reference has shape {base.shape}; expected (m, {found.shape[1]})")
    gamma = _normalised(found, base)
    across = gamma.mean(axis=1)
    each, best = gamma.max(axis=0).mean(), int(across.argmax())
    with np.errstate(invalid="ignore"):
        return Sensitivity(
            float(each - across[best]), float(each), float(across[best]), gamma.argmax(axis=0), best, gamma
        )


def effective_dimension(scores: ArrayLike, grid: Grid, share: float = 0.95, reference: ArrayLike | None = None) -> int:
    """How many hyper-parameters must be tuned in each environment to reach this share of what tuning all of them gives?

    The least k, for which there are k hyper-parameters such that, with all others as in the setting that is best over
    all environments, mean_e max Gamma over settings of these k is at least share * mean_e max_h Gamma(h, e): the
    effective hyperparameter dimensionality of Adkins, Bowling & White 2024, see `sensitivity`.

    Parameters
    ----------
    scores
        (n_settings, n_envs), as of `sensitivity`.
    grid
        One {name: value} per setting, all with the same names. Every combination of values should be there: with
        values drawn at random no two settings agree in what is held, and all hyper-parameters are needed.
    share
        In [0, 1].
    reference
        As of `sensitivity`.

    Raises
    ------
    ValueError
        If the grid does not fit the scores; or as of `sensitivity`.
    """
    share = unit_interval("share", share)
    found = sensitivity(scores, reference)
    names = _names(grid, len(found.normalised))
    default = grid[found.best_across]
    agrees = {name: np.array([bool(row[name] == default[name]) for row in grid]) for name in names}
    for k in range(len(names)):
        for held in combinations(names, len(names) - k):
            rows = np.all([agrees[name] for name in held], axis=0)
            if found.normalised[rows].max(axis=0).mean() >= share * found.tuned_each:
                return k
    return len(names)


def _names(grid: Grid, n: int) -> list[str]:
    """The hyper-parameters of a grid of n settings."""
    if len(grid) != n:
        raise ValueError(f"grid has {len(grid)} settings; expected {n}, one for each row of scores")
    names = list(grid[0])
    for row in grid:
        if set(row) != set(names):
            raise ValueError(f"a setting of the grid has {sorted(row)}; expected {sorted(names)} as the first one")
    return names


def sensitivity_curves(scores: ArrayLike, grid: Grid) -> dict[str, list[tuple[Any, float, float]]]:
    """Of each hyper-parameter: for each of its values the best score over the others, and the mean over them.

    Parameters
    ----------
    scores
        (n_settings,), -inf where a setting diverged; a mean over such a one is NaN.
    grid
        One {name: value} per setting, all with the same names.

    Returns
    -------
    dict
        {name: [(value, best, mean), ...]}, sorted where the values can be, else as they come first.
    """
    found = _scores(scores, "(n_settings,)")
    curves = {}
    for name in _names(grid, len(found)):
        points = []
        for value in _distinct(row[name] for row in grid):
            here = found[[bool(row[name] == value) for row in grid]]
            points.append((value, float(here.max()), float(mean(here))))
        curves[name] = points
    return curves


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once; they may be lists."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    try:
        return sorted(found)
    except TypeError:
        return found


def choose_across(scores: ArrayLike) -> int:
    """The index of one setting for several environments, by ranks, so that no environment's scale counts more.

    In each environment a run's score becomes the share of all settings' runs there that are below it; the setting with
    the largest mean over environments and seeds is chosen. This is the choice of the Cross-environment Hyperparameter
    Setting Benchmark (Patterson, Neumann, Kumaraswamy, White & White 2024, arXiv 2407.18840), as its code computes it,
    and of Patterson, Neumann, White & White 2024, "Empirical Design in Reinforcement Learning".

    What it has been chosen by is no result: run the chosen setting again, on fresh seeds.

    Parameters
    ----------
    scores
        (n_settings, n_envs, n_seeds), -inf for a run that failed.

    Raises
    ------
    ValueError
        If the shape does not fit, or a score is NaN.
    """
    found = _scores(scores, "(n_settings, n_envs, n_seeds)")
    ranks = np.empty_like(found)
    for e in range(found.shape[1]):
        here = np.sort(found[:, e], axis=None)
        ranks[:, e] = np.searchsorted(here, found[:, e], side="left") / here.size
    return int(ranks.mean(axis=(1, 2)).argmax())
