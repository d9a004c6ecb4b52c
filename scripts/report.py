"""Compare runs, or the cells of a sweep, on one page: tables with intervals, learning curves, commands."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from valueapprox.agents.sweeps import page, sheets
from valueapprox.agents.sweeps.board import MOST_SETTINGS, write_bands
from valueapprox.agents.sweeps.runs import table_of
from valueapprox.agents.sweeps.store import STORE_FILE, Store
from valueapprox.cli.terminal import command_line, console, errors_in_one_line, note, plain, typed

SHOWN = 20  # settings of a table in the terminal


@dataclass(frozen=True)
class ReportCommand:
    """Compare the cells of a sweep, or runs of any agents, on one page: HTML, and the same as Markdown, LaTeX and CSV.

    A folder may be that of a sweep, of a run or, as train.py --seeds leaves it, of several runs. Runs that differ in
    their seeds alone are put together. TensorBoard gets runs of its own, with the mean of every tag over seeds and
    its 95 % interval. For example:
      report.py sweeps/mc
      report.py runs/a runs/b runs/c
      report.py runs/* --out comparison
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of sweeps or runs."""
    out: Path | None = None
    """Where the page goes: the folder of the sweep, or report/, if not given."""
    number: str = ""
    """The number that is compared, such as return_area or evaluation_return; the usual one if not given."""
    tensorboard: bool = True
    """Write the TensorBoard run, into tensorboard/ of that folder."""


def main(options: ReportCommand) -> int:
    """Read, draw, write and print; returns the exit code."""
    if not options.folders:
        raise ValueError("no folder is named; expected those of sweeps or runs, such as sweeps/mc or runs/a runs/b")
    table = table_of(options.folders, points=options.tensorboard)
    if options.number:
        if options.number not in table.numbers:
            raise ValueError(f"number is {options.number}; expected one of {', '.join(table.numbers)}")
        table.number = options.number
    if not table.number:
        raise ValueError(f"{options.folders[0]} holds no cell with a result yet; expected at least one")
    alone = len(options.folders) == 1 and (options.folders[0] / STORE_FILE).exists()
    out = options.out or (options.folders[0] if alone else Path("report"))
    commands: list[str] = []
    for folder in options.folders:
        if (folder / STORE_FILE).exists():
            with Store(folder, read_only=True) as store:
                commands += store.about("commands", [])
    title = options.folders[0].name if len(options.folders) == 1 else f"{len(options.folders)} folders"
    paths = page.write(out, title, table, page.parts_of(table, commands))
    for sheet in sheets.overview(table, max_rows=SHOWN):
        sheets.show(sheet)
    console.print(f"Page         {plain(paths[0])}")
    console.print(f"The same     {', '.join(plain(path.name) for path in paths[1:])}")
    if options.tensorboard:
        board = write_bands(out / "tensorboard", table)
        if (n := len(table.groups())) > MOST_SETTINGS:
            note(f"TensorBoard has the first {MOST_SETTINGS} of {n} settings")
        console.print(f"Look at it   {plain(typed('tensorboard', '--logdir', board))}")
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(ReportCommand)))
