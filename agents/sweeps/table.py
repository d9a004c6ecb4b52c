"""Results as arrays: one row per cell, and the cells of one setting together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from valueapprox.agents.sweeps.cells import EVALUATION
from valueapprox.agents.sweeps.measures import BEST_IS_LEAST, main_number
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED, Row
from valueapprox.statistics import Estimate, interval_of_mean

__all__ = ["Group", "Table", "best", "names_of", "problem_of", "renamed", "value_text"]

#: Settings that say which problem is solved, and not how; of values the discount does, too.
PROBLEM = ("env", "env_args", "data", "data_digest", "policy", "noise", "target")


def problem_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say which problem is solved: numbers of different problems are not compared."""
    names = (*PROBLEM, "gamma") if "policy" in settings else PROBLEM
    return {name: settings[name] for name in names if name in settings}


@dataclass(frozen=True)
class Group:
    """The cells of one setting at one stage, by seed.

    Attributes
    ----------
    name
        What tells it from the other settings.
    rows
        Its cells, in the order of their seeds.
    number
        What is compared: "return", "value_error", ...
    """

    name: str
    rows: Sequence[Row]
    number: str

    @property
    def settings(self) -> dict[str, Any]:
        """What its cells share."""
        return {name: value for name, value in self.rows[0].cell.settings.items() if name != "seed"}

    @property
    def setting(self) -> str:
        """The same as a text."""
        return self.rows[0].cell.setting

    @property
    def stage(self) -> str:
        """tuning, or evaluation."""
        return self.rows[0].cell.stage

    @property
    def seeds(self) -> np.ndarray:
        """The seed of each cell."""
        return np.array([row.cell.settings["seed"] for row in self.rows])

    @property
    def least_is_best(self) -> bool:
        """Whether a smaller number is better, as of an error."""
        return self.number.removesuffix("_area") in BEST_IS_LEAST

    @property
    def values(self) -> np.ndarray:
        """The number of each cell (n,): the worst there can be of one that failed, diverged or has none; NaN: not run.

        Infinite is worse than anything that was seen.
        """
        worst = math.inf if self.least_is_best else -math.inf
        return np.array(
            [math.nan if row.result is None else row.result.numbers.get(self.number, worst) for row in self.rows]
        )

    @property
    def scores(self) -> np.ndarray:
        """The same so that more is better, of the cells that have run."""
        values = self.values[~np.isnan(self.values)]
        return -values if self.least_is_best else values

    def count(self, status: str) -> int:
        """How many of its cells ended so."""
        return sum(row.result is not None and row.result.status == status for row in self.rows)

    @property
    def mean(self) -> Estimate:
        """Mean over seeds with its 95 % interval, of the scores; NaN if a cell has no number."""
        scores = self.scores
        if not len(scores) or not np.isfinite(scores).all():
            return Estimate(math.nan, math.nan, math.nan)
        return interval_of_mean(scores)

    @property
    def worst(self) -> float:
        """The number of the worst seed."""
        scores = self.scores
        found = float(scores.min()) if len(scores) else math.nan
        return -found if self.least_is_best else found

    def curves(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) steps, and the curve of each cell that has one (n, T); NaN where nothing is known."""
        known = [row.result.curve for row in self.rows if row.result is not None and row.result.curve.shape[1]]
        if not known:
            return np.zeros(0), np.zeros((0, 0))
        longest = max(known, key=lambda curve: curve.shape[1])[0]

        def brought(curve: np.ndarray) -> np.ndarray:
            same = np.array_equal(curve[0], longest)
            return curve[1] if same else np.interp(longest, curve[0], curve[1], left=math.nan, right=math.nan)

        return longest, np.array([brought(curve) for curve in known])

    def __str__(self) -> str:
        return self.name


class Table:
    """Results of a sweep, or of runs: one row per cell.

    ``table["return"]`` is a column (n,): a number that came out, a setting (NaN or None where a cell has none), "seed",
    "stage", "status" or "seconds".
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        #: What is compared, where a setting has it.
        self.number = _number_of(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def numbers(self) -> list[str]:
        """Names of all numbers that came out of some cell, the one that is compared first."""
        found = {name: None for row in self.rows if row.result is not None for name in row.result.numbers}
        return sorted(found, key=lambda name: name != self.number)

    @property
    def varied(self) -> list[str]:
        """Names of the settings in which cells differ, without the seed."""
        return names_of([row.cell.settings for row in self.rows])

    def __getitem__(self, column: str) -> np.ndarray:
        if column == "status":
            return np.array(["" if row.result is None else row.result.status for row in self.rows])
        if column == "stage":
            return np.array([row.cell.stage for row in self.rows])
        if column == "seconds":
            return np.array([math.nan if row.result is None else row.result.seconds for row in self.rows])
        if column in self.numbers:
            results = [row.result for row in self.rows]
            return np.array([math.nan if r is None else r.numbers.get(column, math.nan) for r in results])
        found = [row.cell.settings.get(column) for row in self.rows]
        if all(value is None for value in found) and not any(column in row.cell.settings for row in self.rows):
            known = [*self.numbers, *self.varied, "seed", "stage", "status", "seconds"]
            raise KeyError(f"column is {column!r}; expected one of {', '.join(known)}")
        single = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in found]
        plain = [tuple(value) if isinstance(value, list) else value for value in single]
        if all(isinstance(value, bool | int | float) for value in plain):
            return np.array(plain)
        column_of_objects = np.empty(len(plain), object)
        column_of_objects[:] = plain
        return column_of_objects

    def only(self, stage: str = "", digests: set[str] | None = None) -> Table:
        """The part of a stage, or of some cells; the number that is compared stays."""
        rows = [
            row
            for row in self.rows
            if (not stage or row.cell.stage == stage) and (digests is None or row.cell.digest in digests)
        ]
        part = Table(rows)
        part.number = self.number or part.number
        return part

    def groups(self, stage: str = "") -> list[Group]:
        """The cells of each setting together, at a stage or at both."""
        parts: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if not stage or row.cell.stage == stage:
                parts.setdefault((row.cell.stage, row.cell.setting), []).append(row)
        names = self.varied
        return [
            Group(
                _name(rows[0].cell.settings, names),
                sorted(rows, key=lambda r: r.cell.settings["seed"]),
                self.number if self.number in _names(rows) else _number_of(rows) or self.number,
            )
            for rows in parts.values()
        ]

    def competitors(self) -> dict[str, list[Group]]:
        """The settings of each agent on each problem, among which one is chosen: all but the evaluations."""
        found: dict[str, list[Group]] = {}
        for group in self.groups():
            if group.stage == EVALUATION:
                continue
            s = group.settings
            found.setdefault(json.dumps([s.get("agent"), problem_of(s)]), []).append(group)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many cells are done, diverged, failed, and not run."""
        status = self["status"]
        return {
            what: int((status == (what if what != "missing" else "")).sum())
            for what in (DONE, DIVERGED, FAILED, "missing")
        }


def _names(rows: Sequence[Row]) -> set[str]:
    return {name for row in rows if row.result is not None for name in row.result.numbers}


def _number_of(rows: Sequence[Row]) -> str:
    """The number by which cells are compared: the first, in the order of `NUMBERS`, that any has."""
    return main_number(_names(rows))


def best(groups: Sequence[Group]) -> Group:
    """The setting whose mean is best in the worst case: that with the best lower end of its interval.

    A setting of which a cell failed or diverged is only chosen where all are so, then by its median.
    """

    def order(group: Group) -> tuple[float, float]:
        mean = group.mean
        low = mean.low if math.isfinite(mean.low) else mean.value
        scores = group.scores
        return (
            low if math.isfinite(low) else -math.inf,
            float(np.median(scores)) if len(scores) else -math.inf,
        )

    if not groups:
        raise ValueError("there are no settings to choose from")
    return max(groups, key=order)


def renamed(groups: Sequence[Group]) -> list[Group]:
    """The same groups, named by what tells them from each other alone."""
    names = names_of([group.settings for group in groups])
    return [replace(group, name=_name(group.settings, names)) for group in groups]


def names_of(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings in which some differ, the seed apart; environment and agent come first.

    What some have and others have not, as of another agent, is no difference.
    """
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [
        name
        for name in names
        if name not in ("seed", "schedule_steps", "data_digest")
        and len({json.dumps(one[name], sort_keys=True) for one in settings if name in one}) > 1
    ]
    return sorted(differing, key=lambda name: name not in ("env", "data", "agent"))


def _name(settings: dict[str, Any], names: Sequence[str]) -> str:
    """What tells a setting from others: environment and agent by themselves, other settings with their names."""
    words = []
    for name in names:
        if name not in settings:
            continue
        text = value_text(settings[name])
        words.append(text if name in ("env", "agent") else f"{name} {text}")
    return ", ".join(words) or str(settings.get("agent", "fit"))


def value_text(value: Any) -> str:
    """A setting's value where a person reads it."""
    if isinstance(value, list):
        return " ".join(map(value_text, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{name} {value_text(one)}" for name, one in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
