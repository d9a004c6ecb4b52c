"""Figures without a window, tables of numbers, progress: what commands draw with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from valueapprox.checkpoint import write_whole
from valueapprox.cli.terminal import console

__all__ = ["new_figure", "new_table", "print_wide", "progress_bar", "save_figure"]

MAX_WIDTH = 400  # of a table


def new_figure(width: float, height: float, **options: Any) -> Any:
    """A figure of so many inches, which is drawn into a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, which only pictures need
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **{"layout": "constrained", **options})
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, dpi: int = 120) -> None:
    """Write a figure into a PNG file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def new_table(title: str | None, names: Sequence[str], numbers: Iterable[str], **options: Any) -> Table:
    """A table without lines: columns of text on the left, which are not broken, and then columns of numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, **options)
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_wide(table: Table) -> None:
    """Print a table of many columns in full, however narrow the terminal is."""
    width = Console(width=MAX_WIDTH).measure(table).maximum
    Console(width=max(console.width, width), highlight=False).print(table)


@contextmanager
def progress_bar(label: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar that is told how much is done."""
    if quiet:
        yield lambda done: None
        return
    with Progress(
        TextColumn(f"[bold]{label}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)
