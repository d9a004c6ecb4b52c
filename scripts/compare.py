"""Compare runs: a table over seeds with intervals, and their curves in one picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from valueapprox.agents import several
from valueapprox.cli.charts import print_wide
from valueapprox.cli.terminal import command_line, console, errors_in_one_line, plain


@dataclass(frozen=True)
class Compare:
    """Compare runs of any agents. Runs that differ in their seeds alone are put together.

    A folder may be that of a run or, as `train.py --seeds` leaves it, of several. For example:
      compare.py runs/a runs/b
      compare.py runs/* --picture comparison.png
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    picture: Path = Path("compare.png")
    """Where the curves are drawn."""


def main(options: Compare) -> int:
    """Read, print and draw; returns the exit code."""
    if not options.runs:
        raise ValueError("no run is named; expected folders, such as runs/a runs/b")
    groups = several.group(options.runs)
    for table in several.tables(groups):
        print_wide(table)
    console.print(f"Curves  {plain(several.picture(groups, options.picture))}")
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Compare)))
