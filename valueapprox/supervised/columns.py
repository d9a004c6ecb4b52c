"""What becomes of a table's columns on their way into a network: missing cells, categories and dates.

It is learned from the rows that a model is fitted to, stored with the model, and applied to every row that it predicts.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from valueapprox.checks import one_of

if TYPE_CHECKING:
    from valueapprox.supervised.tables import Table

__all__ = [
    "Cells", "Column", "Encoded", "Problem", "Raw", "TableError", "Treatment", "days", "encode", "learn_columns",
    "read_columns", "read_dates",
]  # fmt: skip

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
POLICIES = ("refuse", "drop", "mean", "median")
OFFERS = ("--missing", "--missing-words", "--one-hot", "--dates", "--ignore")


class TableError(ValueError):
    """A file of examples that cannot be used; the message says where and why, in a line for each thing."""

    @property
    def place(self) -> str:
        """What follows the first line of the message."""
        return str(self).partition("\n")[2]


class Problem(NamedTuple):
    """What is wrong with a column, and command-line options that mend it: each with its values."""

    where: str
    what: str
    options: tuple[tuple[str, ...], ...] = ()


class Cells(NamedTuple):
    """A column as numbers (n,), NaN where there is none: the cell is `missing`, or holds something `other`."""

    numbers: np.ndarray
    missing: np.ndarray
    other: np.ndarray


@dataclass(frozen=True)
class Treatment:
    """What is asked for.

    missing
        Of a row with a missing cell: "refuse" it; "drop" it; or fill in the "mean" or "median" of the column's other
        cells, and add a column NAME missing of 0 and 1.
    one_hot
        Columns of which each different cell becomes a column of 0 and 1.
    dates
        Columns of dates, which become days since 1970-01-01.
    date_format
        How dates are written, as for `datetime.strptime`; ISO 8601 if None.
    words
        What means a missing cell, beside an empty one, NA and NaN.
    """

    missing: str = "refuse"
    one_hot: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    date_format: str | None = None
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("missing", self.missing, POLICIES)
        for name in ("one_hot", "dates", "words"):
            object.__setattr__(self, name, tuple(str(part) for part in getattr(self, name)))

    def kind(self, name: str) -> Literal["number", "one-hot", "date"]:
        """What a column of this name is read as."""
        return "one-hot" if name in self.one_hot else "date" if name in self.dates else "number"


class Raw(NamedTuple):
    """A column as it is read: numbers (n,), NaN where missing; of a one-hot column the texts instead."""

    numbers: np.ndarray
    missing: np.ndarray
    texts: list[str]


def days(text: str, form: str | None = None) -> float:
    """Days since 1970-01-01, in UTC; a date without a zone counts as UTC.

    >>> days("1970-01-02 12:00")
    1.5
    """
    date = datetime.datetime.fromisoformat(text) if form is None else datetime.datetime.strptime(text, form)
    return (date.replace(tzinfo=date.tzinfo or datetime.UTC) - EPOCH) / DAY


def read_dates(table: Table, name: str, cells: Cells, form: str | None = None) -> tuple[Cells, list[Problem]]:
    """A column of dates as days since 1970-01-01, and what is wrong with it but missing cells."""
    array = table.cells[name]
    if isinstance(array, np.ndarray) and array.dtype.kind == "M":
        numbers = (array - np.datetime64(0, "D")) / np.timedelta64(1, "D")
        return Cells(np.where(cells.missing, np.nan, numbers), cells.missing, np.zeros(len(array), bool)), []
    texts, numbers, wrong = table.texts(name), np.full(len(array), np.nan), np.zeros(len(array), bool)
    for i in np.flatnonzero(~cells.missing):
        try:
            numbers[i] = days(texts[i], form)
        except (ValueError, OverflowError):
            wrong[i] = True
    read = Cells(numbers, cells.missing, np.zeros(len(array), bool))
    if not wrong.any():
        return read, []
    row, count = int(np.argmax(wrong)), int(wrong.sum())
    wanted = "as in 2024-03-31 or 2024-03-31T18:00" if form is None else f"of the form {form}"
    hint = " (--date-format says how they are written, such as %d.%m.%Y)" if form is None else ""
    told = f"{texts[row]!r} is no date; expected a date {wanted}; of {len(array)} cells, {count} are not{hint}"
    return read, [Problem(table.where(row, name, path=False), told)]


def read_columns(
    table: Table, names: Sequence[str], treatment: Treatment, *, offers: Sequence[str] = OFFERS
) -> tuple[dict[str, Raw], list[Problem]]:
    """The columns as they are to be treated, and all that is wrong with them; missing cells if they are refused."""
    columns: dict[str, Raw] = {}
    problems: list[Problem] = []
    for name in names:
        cells = table.parse(name, treatment.words)
        kind = treatment.kind(name)
        texts: list[str] = []
        if kind == "one-hot":
            texts = table.texts(name)
            cells = cells._replace(other=np.zeros_like(cells.other))
        elif kind == "date":
            cells, wrong = read_dates(table, name, cells, treatment.date_format)
            problems += wrong
        columns[name] = Raw(cells.numbers, cells.missing, texts)
        if treatment.missing != "refuse" and not cells.missing.all():
            cells = cells._replace(missing=np.zeros_like(cells.missing))
        what = {"number": "number", "one-hot": "category", "date": "date"}[kind]
        problems += table.problem(name, cells, offers, what=what)
    return columns, problems


class Encoded(NamedTuple):
    """Rows as a network takes them: S (n, d); rows that cannot be taken are NaN. Notes say what was not as learned."""

    S: np.ndarray
    notes: list[str]


@dataclass(frozen=True)
class Column:
    """How one column of a table becomes inputs of a network.

    fill
        What stands for a missing cell; None: its row is not taken.
    flag
        Whether a second input says where cells were missing.
    categories
        Of a one-hot column; a cell that is none of them, or missing, is 0 in all.
    """

    name: str
    kind: str = "number"
    fill: float | None = None
    flag: bool = False
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))

    @property
    def inputs(self) -> list[str]:
        """Names of its inputs."""
        inputs = [f"{self.name}={category}" for category in self.categories] if self.kind == "one-hot" else [self.name]
        return [*inputs, *[f"{self.name} missing"] * self.flag]

    def encode(self, raw: Raw, table: Table, notes: list[str]) -> np.ndarray:
        """Its inputs (n, m) for the cells of a table, whose oddities go to the notes."""
        flag = raw.missing[:, None].astype(float)
        if self.kind == "one-hot":
            index = {category: j for j, category in enumerate(self.categories)}
            inputs = np.zeros((len(raw.missing), len(self.categories)))
            unseen = []
            for row, text in enumerate(raw.texts):
                if raw.missing[row]:
                    continue
                if text in index:
                    inputs[row, index[text]] = 1.0
                else:
                    unseen.append(row)
            if unseen:
                n, one = len(unseen), len(unseen) == 1
                notes.append(
                    f"{table.where(unseen[0], self.name)}: {raw.texts[unseen[0]]!r} was not among the categories that "
                    f"were learned; {n} such cell{'s' * (not one)} count{'s' * one} as none of them"
                )
            if self.fill is None:
                inputs[raw.missing] = np.nan
        else:
            inputs = np.where(raw.missing, np.nan if self.fill is None else self.fill, raw.numbers)[:, None]
        return np.concatenate([inputs, flag], axis=1) if self.flag else inputs


def learn_columns(columns: Mapping[str, Raw], rows: np.ndarray, treatment: Treatment) -> tuple[Column, ...]:
    """What becomes of each column, as the given rows have it: fills, flags and categories."""
    learned = []
    for name, raw in columns.items():
        kind, missing = treatment.kind(name), raw.missing[rows]
        impute = treatment.missing in ("mean", "median")
        fill: float | None = None
        categories: tuple[str, ...] = ()
        if kind == "one-hot":
            categories = tuple(sorted({raw.texts[row] for row in rows if not raw.missing[row]}))
            fill = 0.0 if impute else None
        elif impute:
            present = raw.numbers[rows][~missing]
            if not present.size:
                raise TableError(f"column {name!r} is missing in every row to learn from; --ignore leaves it out")
            fill = float(present.mean() if treatment.missing == "mean" else np.median(present))
        learned.append(Column(name, kind, fill, bool(impute and missing.any()), categories))
    return tuple(learned)


def encode(columns: Sequence[Column], raw: Mapping[str, Raw], table: Table) -> Encoded:
    """All inputs side by side."""
    notes: list[str] = []
    parts = [column.encode(raw[column.name], table, notes) for column in columns]
    return Encoded(np.concatenate(parts, axis=1), notes)
