"""Examples from a table: columns in their roles, classes numbered, rows held out, and all that is wrong at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from valueapprox.seeding import sequence
from valueapprox.supervised import losses
from valueapprox.supervised.columns import Cells, Column, Problem, Raw, encode, learn_columns, read_columns
from valueapprox.supervised.models import Examples, Label
from valueapprox.supervised.tables import Table, TableError, read_table

if TYPE_CHECKING:
    from valueapprox.supervised.table_fit import Settings

__all__ = ["TableData", "read_examples"]

Notice = Callable[[str], None]


class TableData(NamedTuple):
    """What is learned from what: `features` are the network's inputs, made of the columns."""

    training: Examples
    validation: Examples | None
    columns: tuple[Column, ...]
    features: tuple[str, ...]
    targets: tuple[str, ...]
    classes: tuple[Label, ...]

    @property
    def n_outputs(self) -> int:
        """How many outputs a network for them has."""
        return len(self.classes) or len(self.targets)


class Targets(NamedTuple):
    """What is predicted: labels of classes or numbers, where they are missing, and what is wrong with them."""

    labels: np.ndarray
    Y: np.ndarray
    missing: np.ndarray
    problems: list[Problem]


def read_examples(path: Path, settings: Settings, notice: Notice) -> TableData:
    """Read the file, and the file for validation or the rows that are held out.

    Raises
    ------
    TableError
        If there is nothing to learn, or cells cannot be used; it names all such columns, and what mends them.
    """
    table = read_table(path, settings.delimiter)
    features, targets = table.roles(settings.target, settings.features, settings.ignore)
    if table.n_nameless:
        notice(f"{table.n_nameless} column{'s' * (table.n_nameless > 1)} of {path} without a name: left out")
    of_classes = losses.LOSSES[settings.loss].targets_are == "classes"
    if of_classes and len(targets) != 1:
        raise TableError(f"--target is {', '.join(targets)}; expected one column, as {settings.loss} learns classes")
    treatment = settings.treatment
    for option, names in (("--one-hot", treatment.one_hot), ("--dates", treatment.dates)):
        for name in table.pick(names, option):
            if name not in features:
                raise TableError(f"{option} is {name}; expected columns to predict from, and it is none of them")
    if both := [name for name in treatment.one_hot if name in treatment.dates]:
        raise TableError(f"--one-hot and --dates are both {both[0]}; expected one of them for a column")
    n = len(table.cells[targets[0]])
    raw, rows, found = _usable_rows(table, features, targets, settings, notice)
    classes: tuple[Label, ...] = tuple(sorted(set(found.labels[rows].tolist()))) if of_classes else ()
    Y = _numbers(table, targets, found, rows, settings.loss, classes)
    for j, name in enumerate(targets):
        column = Y[:, j] if Y.ndim == 2 else Y
        if (column == column[0]).all() and len(column) > 1:
            value = classes[0] if classes else f"{column[0]:g}"
            raise TableError(f"{path}: {name} is {value} in all {len(column)} rows; there is nothing to learn")
    # Positions among the rows that are used: fills and categories come from those that are learned from.
    kept, held = np.arange(len(rows)), np.arange(0)
    if not isinstance(settings.validation, Path) and settings.validation > 0:
        n_held = max(1, round(settings.validation * len(rows)))
        order = np.random.default_rng(sequence(settings.seed, "validation")).permutation(len(rows))
        held, kept = np.sort(order[:n_held]), np.sort(order[n_held:])
    if len(kept) < 2:
        used = f" of which {len(rows)} can be used" if len(rows) < n else ""
        raise TableError(
            f"{path} has {n} row{'s' * (n > 1)}{used}{', and 1 is held out' * bool(len(held))}; expected at least 2 to "
            "learn from"
        )
    columns = learn_columns(raw, rows[kept], treatment)
    S = _encoded(table, columns, raw, rows, notice)
    validation = Examples(S[held], Y[held]) if len(held) else None
    if isinstance(settings.validation, Path):
        other = read_table(settings.validation, settings.delimiter)
        inputs, outputs = other.pick(features, "--features"), other.pick(targets, "--target")
        raw, rows, found = _usable_rows(other, inputs, outputs, settings, notice)
        other_Y = _numbers(other, outputs, found, rows, settings.loss, classes)
        validation = Examples(_encoded(other, columns, raw, rows, notice), other_Y)
    names = tuple(name for column in columns for name in column.inputs)
    return TableData(Examples(S[kept], Y[kept]), validation, columns, names, tuple(targets), classes)


def _targets(table: Table, names: Sequence[str], settings: Settings) -> Targets:
    """The columns to predict, read; of classes the labels."""
    columns = {name: table.parse(name, settings.missing_words) for name in names}
    problems: list[Problem] = []
    labels = np.empty(0)
    for name, cells in columns.items():
        absent = cells.missing if settings.missing == "refuse" or cells.missing.all() else np.zeros_like(cells.missing)
        if losses.LOSSES[settings.loss].targets_are == "classes":
            labels = table.labels(name, settings.missing_words)
            named = Cells(cells.numbers, absent, np.zeros_like(absent))
            problems += table.problem(name, named, ("--missing drop",), what="class")
        else:
            offers = ("--loss", "--missing drop", "--missing-words")
            problems += table.problem(name, cells._replace(missing=absent), offers)
    missing = np.any([cells.missing for cells in columns.values()], axis=0)
    return Targets(labels, np.stack([cells.numbers for cells in columns.values()], axis=1), missing, problems)


def _numbers(
    table: Table, names: Sequence[str], found: Targets, rows: np.ndarray, loss: str, classes: tuple[Label, ...]
) -> np.ndarray:
    """The targets of these rows as `fit` takes them; for classes their numbers, in the order of `classes`."""
    kind = losses.LOSSES[loss].targets_are
    if kind == "classes":
        number = {str(label): k for k, label in enumerate(classes)}
        for row in rows:
            if str(found.labels[row]) not in number:
                raise TableError(
                    f"{table.where(row, names[0])}: class {str(found.labels[row])!r} was not learned; expected one of "
                    f"{', '.join(number)}"
                )
        return np.array([number[str(found.labels[row])] for row in rows])
    Y = found.Y[rows]
    if kind == "labels" and not ((Y == 0) | (Y == 1)).all():
        i, j = np.argwhere((Y != 0) & (Y != 1))[0]
        raise TableError(
            f"{table.where(rows[i], names[j])}: {Y[i, j]:g} is neither 0 nor 1, which {loss} learns; --loss nll learns "
            "other classes"
        )
    return Y


def _usable_rows(
    table: Table, features: Sequence[str], targets: Sequence[str], settings: Settings, notice: Notice
) -> tuple[dict[str, Raw], np.ndarray, Targets]:
    """The columns as they are read, and the rows that can be used; a `TableError` that says all that is wrong."""
    table.roles(targets, features)  # of one length
    raw, problems = read_columns(table, features, settings.treatment)
    found = _targets(table, targets, settings)
    table.complain([*problems, *found.problems])
    missing = found.missing.copy()
    if settings.missing == "drop":
        missing |= np.any([column.missing for column in raw.values()], axis=0)
    if missing.all():
        raise TableError(f"{table.path} has a missing cell in each of its {len(missing)} rows; expected some without")
    if missing.any():
        n = int(missing.sum())
        without = "a cell" if settings.missing == "drop" else "the target"
        notice(f"{n} of {len(missing)} rows of {table.path} {'are' if n > 1 else 'is'} left out: {without} is missing")
    return raw, np.flatnonzero(~missing), found


def _encoded(
    table: Table, columns: Sequence[Column], raw: Mapping[str, Raw], rows: np.ndarray, notice: Notice
) -> np.ndarray:
    """The inputs of these rows; what was not as learned is said."""
    result = encode(columns, raw, table)
    for sentence in result.notes:
        notice(sentence)
    return result.S[rows]
