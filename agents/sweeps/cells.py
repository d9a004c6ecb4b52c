"""Cells of a sweep: a setting and a seed each, named by a digest of all that decides what comes out."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox.agents.training import settings_from
from valueapprox.checks import one_of, positive
from valueapprox.seeding import sequence
from valueapprox.supervised.table_fit import Settings as FitSettings

__all__ = [
    "EVALUATION",
    "FIRST_EVALUATION_SEED",
    "RUN",
    "TUNING",
    "Cell",
    "Range",
    "drawn",
    "evaluation_cell",
    "grid",
    "make",
]

TUNING, EVALUATION = "tuning", "evaluation"
RUN = "run"  # by itself, in a folder: part of no sweep
#: Seeds below are for choosing settings, those from here on for saying how good the chosen one is.
FIRST_EVALUATION_SEED = 1_000_000
FORMAT = 1  # of digests


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, or one fit.

    Attributes
    ----------
    settings
        All that decides its result, its seed too: those of a run, or of a fit with "data" and "data_digest".
    stage
        Whether it is there to choose a setting ("tuning") or to say how good one is ("evaluation").
    """

    settings: dict[str, Any]
    stage: str = TUNING

    def with_seed(self, seed: int) -> Cell:
        """The same setting with another seed."""
        return Cell({**self.settings, "seed": seed}, self.stage)

    @cached_property
    def digest(self) -> str:
        """Names the cell: equal for equal settings and seed, whatever else is swept."""
        text = json.dumps([FORMAT, self.settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @cached_property
    def setting(self) -> str:
        """Equal for the cells that differ in nothing but the seed."""
        return json.dumps({name: v for name, v in self.settings.items() if name != "seed"}, sort_keys=True)


def make(values: Mapping[str, Any], seed: int, stage: str = TUNING) -> Cell:
    """The cell of settings as a person gives them, with all that they leave open filled in.

    Raises
    ------
    ValueError
        If a setting does not exist, or makes no sense.
    """
    if "data" in values:
        own = {name: value for name, value in values.items() if name != "data"}
        known = list(FitSettings().as_dict())
        for name in own:
            one_of("a setting of fit", name, known)
        fit = FitSettings(**{**own, "seed": seed})
        fit.check()
        path = Path(values["data"]).resolve()
        return Cell(_plain(fit, {"data": str(path), "data_digest": _digest_of(path), **fit.as_dict()}), stage)
    settings = settings_from({**values, "seed": seed}).chosen()
    if getattr(settings, "asynchronous", False):
        raise ValueError("async is True; expected False, as a cell of a sweep comes out the same whenever it is run")
    return Cell(_plain(settings, asdict(settings)), stage)


def evaluation_cell(cell: Cell, number: int) -> Cell:
    """The same setting with the evaluation's seed of this number, which no tuning can have used."""
    return Cell({**cell.settings, "seed": FIRST_EVALUATION_SEED + number}, EVALUATION)


def _plain(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back; 1 where a float is meant is 1.0, as it decides the same."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    kind: Any = type(settings)
    for name in _floats(kind):
        if type(plain[name]) is int:
            plain[name] = float(plain[name])
    return plain


@cache
def _floats(settings: Any) -> list[str]:
    hints = typing.get_type_hints(settings)
    return [f.name for f in fields(settings) if float in (hints[f.name], *typing.get_args(hints[f.name]))]


@cache
def _digest_of(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"data is {path}; expected a CSV or npz file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- which settings there are -----------------------------------------------------------------------------------------


def grid(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of each setting; the last one named changes first."""
    for name, choices in values.items():
        if not isinstance(choices, list | tuple | np.ndarray) or not len(choices):
            raise ValueError(f"{name} is {choices!r}; expected a list of at least one value")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


@dataclass(frozen=True)
class Range:
    """From where to where a number is drawn, or from which values.

    Attributes
    ----------
    low, high
        Ends of the range.
    log
        Draw the logarithm evenly, and not the number.
    whole
        Whole numbers only, both ends included.
    choices
        Instead: these values, each as likely as any other.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, name: str, value: Any) -> Range:
        """From a configuration file: a list of values, or a table such as {low = 1e-4, high = 0.1, log = true}."""
        if isinstance(value, list):
            return cls(choices=tuple(value)).checked(name)
        if not isinstance(value, Mapping) or not {"low", "high"} <= set(value):
            raise ValueError(
                f"{name} is {value!r}; expected a list of values, or low and high, such as "
                "{low = 1e-4, high = 0.1, log = true}"
            )
        for word in value:
            one_of(f"an entry of the range of {name}", word, ("low", "high", "log", "whole"))
        return cls(**value).checked(name)

    def checked(self, name: str) -> Range:
        """Itself, if something can be drawn from it."""
        if self.choices:
            return self
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(
                f"{name} is drawn from {self.low} to {self.high}; expected finite ends, the lower one first"
            )
        if self.log and not self.low > 0:
            raise ValueError(f"{name} is drawn from {self.low} on a log scale; expected a positive low end")
        return self

    def draw(self, u: float) -> Any:
        """The value that a number u in [0, 1), evenly drawn, stands for."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        low, high = float(self.low), float(self.high)
        if self.whole:
            low, high = low - (0.5 if self.log else 0.0), high + (0.5 if self.log else 1.0)
        x = math.exp(math.log(low) + u * math.log(high / low)) if self.log else low + u * (high - low)
        if not self.whole:
            return float(f"{x:.6g}")  # that a person can type
        return int(min(max(round(x) if self.log else math.floor(x), self.low), self.high))


def drawn(ranges: Mapping[str, Range], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many settings, each drawn by itself: more of them leave the first ones as they are."""
    positive("random", n)
    found = []
    for i in range(n):
        rng = np.random.default_rng(sequence(seed, "random search", i))
        found.append({name: choice.draw(rng.random()) for name, choice in ranges.items()})
    return found
