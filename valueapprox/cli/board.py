"""A blackboard: titles, sentences and tables of numbers on a console, and whether two ways to a number agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

__all__ = ["BY_HAND", "COMPILED", "NUMERIC", "Board", "Numbers", "written"]

MAX_DIFFERENCE = 1e-7  # between two ways to one number, relative to the number if that is above 1
BY_HAND, COMPILED, NUMERIC = "by the formula", "compiled", "central difference"

Numbers = dict[str, dict[str, Any]]


class Board:
    """Prints, and keeps every number that it printed: numbers[title of the table][row][column]."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.numbers: Numbers = {}

    def title(self, text: str) -> None:
        """Begin a note."""
        self.console.print(Rule(text, align="left", style="bold"))
        self.console.print()

    def say(self, text: str) -> None:
        """A paragraph; or, if it begins with spaces, a line of code or a formula, which is not broken."""
        code = text.startswith(" ")
        self.console.print(text, style="cyan" if code else "", soft_wrap=code)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], compare: tuple[str, str] | None = None
    ) -> None:
        """A table whose first column names the rows; cells that are no text are numbers, and kept.

        `compare` names two columns whose numbers are to be the same; how far they differ is printed and kept.
        """
        table = Table(box=SIMPLE_HEAD, show_edge=False)
        for j, column in enumerate(columns):  # a matrix that is broken over lines cannot be read
            table.add_column(column, overflow="fold", no_wrap=j == 0 or any(not isinstance(r[j], str) for r in rows))
        kept: dict[str, Any] = {}
        for row in rows:
            table.add_row(*(cell if isinstance(cell, str) else written(cell) for cell in row))
            kept[str(row[0])] = {c: v for c, v in zip(columns, row, strict=True) if not isinstance(v, str)}
        self.numbers[title] = kept
        self.console.print(title, style="bold")
        self.console.print(table)
        if compare is not None:
            pairs = [(row[compare[0]], row[compare[1]]) for row in kept.values() if set(compare) <= set(row)]
            difference = max(apart(a, b) for a, b in pairs)
            kept["largest difference"] = difference
            agree = difference <= MAX_DIFFERENCE
            self.console.print(
                f" {compare[0]} and {compare[1]}: the largest difference is {difference:.1e}"
                + ("" if agree else ". THEY DISAGREE"),
                style="green" if agree else "bold red",
            )
        self.console.print()

    def compare(
        self, title: str, *rows: Sequence[Any], columns: tuple[str, ...] = ("formula", BY_HAND, COMPILED)
    ) -> None:
        """A table whose last two columns are two ways to the same numbers."""
        self.table(title, ("", *columns), rows, (columns[-2], columns[-1]))

    def disagreements(self) -> list[str]:
        """Titles of the tables in which two ways to a number disagree."""
        found = self.numbers.items()
        return [title for title, kept in found if kept.get("largest difference", 0.0) > MAX_DIFFERENCE]


def apart(a: Any, b: Any) -> float:
    """The largest difference of two arrays, relative to entries above 1; infinite for other shapes, or NaN in one."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or not np.isfinite(a - b).all():
        return math.inf
    return float((np.abs(a - b) / np.maximum(1.0, np.abs(b))).max(initial=0.0))


def written(value: Any) -> str:
    """A number in four digits, a vector in a line, a matrix in brackets over lines."""
    array = np.asarray(value, float)
    if array.ndim == 0:
        number = float(array) + 0.0  # takes the sign off -0
        return f"{number:.0f}" if number.is_integer() and abs(number) < 1e9 else f"{number:.4g}"
    if array.ndim == 1:
        return "(" + ", ".join(written(v) for v in array) + ")"
    cells = [[written(v) for v in row] for row in array]
    width = max(len(cell) for row in cells for cell in row)
    if len(cells) == 1:
        return f"[{' '.join(cell.rjust(width) for cell in cells[0])}]"
    left, right = ("⎡" + "⎢" * (len(cells) - 2) + "⎣"), ("⎤" + "⎥" * (len(cells) - 2) + "⎦")
    return "\n".join(
        f"{a}{' '.join(cell.rjust(width) for cell in row)}{b}" for a, row, b in zip(left, cells, right, strict=True)
    )
