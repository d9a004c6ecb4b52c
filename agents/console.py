"""What commands show of a run: its progress, and tables of its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from valueapprox.agents.evaluation import MonteCarlo, Returns
from valueapprox.agents.report import Status
from valueapprox.cli.terminal import console

__all__ = ["evaluation_table", "returns_table", "training_bar"]


@contextmanager
def training_bar(quiet: bool) -> Iterator[Callable[[Status], None]]:
    """A progress bar for `Run.train`: steps, steps per second, how well it learns, time left."""
    if quiet:
        yield lambda status: None
        return
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[result]}"),
        TimeRemainingColumn(),
        console=console,
    )
    try:
        task = progress.add_task("learning", total=None, rate="", result="")

        def show(status: Status) -> None:
            progress.start()  # not before: an error on the way to the first block leaves no empty bar
            if status.episodes is not None:
                done, total = status.episodes
                progress.update(task, description="evaluating", completed=done, total=total, rate="", result="")
                return
            progress.update(
                task,
                description="learning",
                completed=status.step,
                total=status.steps,
                rate=f"{status.steps_per_second:,.0f} steps/s",
                result="  ".join(f"{what} {number:,.4g}" for what, number in status.shown.items()),
            )

        yield show
    finally:
        progress.stop()


def evaluation_table(result: MonteCarlo) -> Table:
    """Learned values v against Monte Carlo returns G, with 95 % intervals."""
    table = Table(
        title=f"Learned values v against the returns G of {result.n_states:,} states in {result.n_episodes} episodes",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("")
    for column in ("estimate", "95 % interval"):
        table.add_column(column, justify="right")
    for name, estimate in (
        ("value error: root mean square of v - v_pi", result.value_error),
        ("root mean square of v - G", result.rmse),
        ("bias, mean of v - G", result.bias),
        ("explained variance", result.explained_variance),
        ("mean of G", result.mean_return),
    ):
        if estimate is not None:
            table.add_row(name, f"{estimate.value:.4g}", f"{estimate.low:.4g} to {estimate.high:.4g}")
    table.add_row("standard deviation of G", f"{result.spread:.4g}", "")
    if result.n_skipped:
        table.caption = f"{result.n_skipped:,} states left out: their episodes were cut before the return was known"
    return table


def returns_table(results: Mapping[str, Returns]) -> Table:
    """Returns of fresh episodes by how actions were chosen, with 95 % intervals of the mean."""
    n_episodes = next(iter(results.values())).n_episodes
    table = Table(
        title=f"Returns of {n_episodes} fresh episodes, nothing learned in them", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("actions")
    for column in ("mean", "95 % interval", "spread", "lowest", "highest", "mean length"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        mean = result.mean
        numbers = (result.spread, result.lowest, result.highest, result.mean_length)
        table.add_row(
            name, f"{mean.value:,.4g}", f"{mean.low:,.4g} to {mean.high:,.4g}", *(f"{n:,.4g}" for n in numbers)
        )
    n_cut = sum(result.n_cut for result in results.values())
    if n_cut:
        table.caption = f"{n_cut} episodes did not end and were given up"
    return table
