"""How often do 95 % intervals cover the truth? In thousands of samples of each kind, as Markdown tables.

The exit code is 1 where an interval of normal numbers, n = 10 or 30, covers less than 93 or more than 97 % of the time.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

sys.path.insert(0, str(Path(__file__).parents[2]))

from valueapprox.statistics import (
    STATISTICS,
    Estimate,
    estimate,
    performance_profile,
    probability_of_improvement,
    tolerance_interval,
)

SIZES = (3, 5, 10, 30)
SHIFTS = ((0.0,), (1.0,), (2.0,), (3.0,), (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0))
SHARES = (0.5, 0.8, 0.95, 0.99)
THRESHOLDS = (0.0, 1.0, 3.0)


def density(x: np.ndarray) -> np.ndarray:
    """Of the standard normal distribution."""
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


@dataclass
class Normals:
    """A mixture of normal distributions, and runs that fail: component c with probability p_c."""

    p: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float]
    failing: float = 0.0

    def draw(self, rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
        """Samples of it."""
        c = rng.choice(len(self.p), size, p=self.p)
        x = rng.normal(np.take(self.means, c), np.take(self.deviations, c))
        return np.where(rng.random(size) < self.failing, -np.inf, x)

    def cdf(self, x: float) -> float:
        """P(X <= x)."""
        z = (x - np.array(self.means)) / self.deviations
        return self.failing + (1 - self.failing) * float(np.dot(self.p, ndtr(z)))

    def quantile(self, u: float) -> float:
        """Where the distribution function is u."""
        return brentq(lambda x: self.cdf(x) - u, -100, 100, xtol=1e-12)

    def truth(self) -> dict[str, float]:
        """Mean, median and IQM, the last from the partial means of the components between the quartiles."""
        means, s = np.array(self.means), np.array(self.deviations)
        a, b = ((self.quantile(u) - means) / s for u in (0.25, 0.75))
        middle = means * (ndtr(b) - ndtr(a)) - s * (density(b) - density(a))
        iqm = 2 * (1 - self.failing) * float(np.dot(self.p, middle))
        mean = float(np.dot(self.p, means)) if not self.failing else np.nan
        return {"mean": mean, "median": self.quantile(0.5), "iqm": iqm}


class Exponential:
    """P(X > x) = exp(-x)."""

    def draw(self, rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
        """Samples of it."""
        return rng.exponential(size=size)

    def truth(self) -> dict[str, float]:
        """IQM: 2 int -ln(1 - u) du, with (1 - u) ln(1 - u) + u as the integral."""
        upper, lower = (0.25 * np.log(0.25) + 0.75), (0.75 * np.log(0.75) + 0.25)
        return {"mean": 1.0, "median": np.log(2.0), "iqm": 2 * (upper - lower)}


class Lognormal:
    """exp of a standard normal number."""

    def draw(self, rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
        """Samples of it."""
        return rng.lognormal(size=size)

    def truth(self) -> dict[str, float]:
        """The mean is sqrt(e), the part of it between two quantiles that of a normal distribution around 1."""
        q = 0.6744897501960817
        return {"mean": np.exp(0.5), "median": 1.0, "iqm": 2 * np.exp(0.5) * (ndtr(q - 1) - ndtr(-q - 1))}


KINDS = {
    "normal": Normals([1.0], [0.0], [1.0]),
    "exponential": Exponential(),
    "lognormal": Lognormal(),
    "70 % near 10, 30 % near 0": Normals([0.7, 0.3], [10.0, 0.0], [1.0, 1.0]),
    "normal, 10 % failed": Normals([1.0], [0.0], [1.0], failing=0.1),
}
#: Six tasks whose scores differ in mean and spread.
TASKS = [Normals([1.0], [mean], [s]) for mean, s in zip((0, 1, 1, 2, 3, 5), (1, 0.3, 1, 2, 0.5, 1), strict=True)]
POOLED = Normals([1 / 6] * 6, *([getattr(task, name)[0] for task in TASKS] for name in ("means", "deviations")))


def covered(interval: Callable[[], Estimate], truth: float, n: int) -> float:
    """Percent of n fresh intervals that hold the truth."""
    found = [interval() for _ in range(n)]
    return 100 * float(np.mean([e.low <= truth <= e.high for e in found]))


def of_statistics(sources: list[Any], statistic: str, n: int, rng: np.random.Generator) -> Estimate:
    """Of n runs of each task."""
    runs = [source.draw(rng, (n,)) for source in sources]
    return estimate(runs if len(runs) > 1 else runs[0], statistic)


def of_improvement(shifts: Sequence[float], n: int, rng: np.random.Generator) -> Estimate:
    """Of n runs of both in each task, between which there is a shift."""
    x, y = ([rng.normal(shift, 1, n) for shift in shifts], [rng.normal(0, 1, n) for _ in shifts])
    return probability_of_improvement(x, y)


def of_profile(sources: list[Any], tau: float, n: int, rng: np.random.Generator) -> Estimate:
    """Of n runs of each task, at one threshold."""
    profile, low, high = performance_profile([source.draw(rng, (n,)) for source in sources], [tau])
    return Estimate(profile[0], low[0], high[0])


def of_tolerance(n_samples: int, rng: np.random.Generator) -> dict[int, float]:
    """Percent of tolerance intervals that hold at least 90 % of what the sample came from, by n."""
    found = {}
    for n in (46, 60, 100):
        ends = [tolerance_interval(rng.random(n)) for _ in range(n_samples)]
        found[n] = 100 * float(np.mean([e.high - e.low >= 0.9 for e in ends]))
    return found


def row(*cells: object) -> None:
    """A row of a table."""
    print(
        "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def table(title: str, columns: Sequence[object], rows: dict[str, list[float]]) -> None:
    """A table with its head."""
    print()
    row(title, *columns)
    row("---", *["---:"] * len(columns))
    for name, cells in rows.items():
        row(name, *cells)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n, rng = options.samples, np.random.default_rng(options.seed)
    sizes, wrong = [f"n = {size}" for size in SIZES], []

    def percents(interval: Callable[..., Estimate], *args: Any, truth: float) -> list[float]:
        return [covered(partial(interval, *args, size, rng), truth, n) for size in SIZES]

    rows = {}
    for kind, source in KINDS.items():
        for statistic, truth in source.truth().items():
            if not np.isnan(truth):
                rows[f"{kind}, {statistic}"] = percents(of_statistics, [source], statistic, truth=truth)
    table("one task", sizes, rows)
    for statistic in STATISTICS:
        cells = dict(zip(SIZES, rows[f"normal, {statistic}"], strict=True))
        poor = [size for size in (10, 30) if not 93 <= cells[size] <= 97]
        wrong += [f"{statistic} of {size} normal numbers: {cells[size]:.1f} %" for size in poor]

    truths = POOLED.truth()
    table("six tasks", sizes, {s: percents(of_statistics, TASKS, s, truth=truths[s]) for s in STATISTICS})

    rows = {}
    for shifts in SHIFTS:
        chances = ndtr(np.array(shifts) / np.sqrt(2))
        title = f"{chances[0]:.2f}" if len(shifts) == 1 else f"six tasks, {chances[0]:.2f} to {chances[-1]:.2f}"
        rows[title] = percents(of_improvement, shifts, truth=float(chances.mean()))
    table("probability of improvement", sizes, rows)

    rows = {}
    for p in SHARES:
        tau = KINDS["normal"].quantile(1 - p)
        rows[f"{p}"] = percents(of_profile, [KINDS["normal"]], tau, truth=p)
    for tau in THRESHOLDS:
        p = 1 - POOLED.cdf(tau)
        rows[f"six tasks, {p:.2f}"] = percents(of_profile, TASKS, tau, truth=p)
    table("profile, share above", sizes, rows)

    held = of_tolerance(n, rng)
    table("tolerance", [f"n = {k}" for k in held], {"share of 0.9": list(held.values())})
    for line in wrong:
        print(f"{line}; expected 93 to 97 %")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
