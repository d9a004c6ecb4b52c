"""A sweep: which settings are tried on which seeds, where the results lie, and which setting is chosen."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from valueapprox.agents.sweeps import cells
from valueapprox.agents.sweeps.cells import FIRST_EVALUATION_SEED, TUNING, Cell, Range
from valueapprox.agents.sweeps.measures import Wanted, build
from valueapprox.agents.sweeps.scheduler import run_cells
from valueapprox.agents.sweeps.store import Result, Store
from valueapprox.agents.sweeps.table import Table, best
from valueapprox.checks import one_of, positive
from valueapprox.cluster import cluster
from valueapprox.telemetry import hold

__all__ = ["Status", "Sweep", "attempt", "complete", "open_store"]


@dataclass(frozen=True)
class Status:
    """What a progress bar shows."""

    done: int
    n_cells: int
    stage: str


@dataclass(frozen=True)
class Sweep:
    """Settings crossed, listed or drawn at random, each on the same seeds.

    Parameters
    ----------
    fixed
        Settings of all cells, as `valueapprox.train` takes them: env, agent, steps, ...; or "data" and those of a fit.
    grid
        Values of each setting that is varied; all combinations are tried.
    settings
        Instead, or each crossed with the grid: settings listed one by one.
    ranges, random, search_seed
        From where to where settings are drawn at random, how many such settings, and the seed of the draws.
    search, rounds
        "random", or "optuna", which draws the next of so many rounds where the ones before did well.
    seeds, first_seed
        How many seeds each setting is run with, and the first of them.
    then_evaluate
        Seeds with which the chosen setting is run once more: others than those that chose it. 0 for none.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    settings: Sequence[Mapping[str, Any]] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    random: int = 0
    search_seed: int = 0
    search: str = "random"
    rounds: int = 4
    seeds: int = 10
    first_seed: int = 0
    then_evaluate: int = 0

    @classmethod
    def from_toml(cls, path: str | Path) -> Sweep:
        """What a file asks for: settings at its top, then [grid], [[settings]] and [ranges]; see docs/howto/sweeps.md.

        Raises
        ------
        ValueError
            If it cannot be read, or holds what a sweep has not.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); expected TOML") from None
        return cls.from_dict(values, Path(path).parent)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: Path | None = None) -> Sweep:
        """The same from names with values; a relative data file lies in `folder`."""
        own = {f.name for f in fields(cls)} - {"fixed"}
        given = {name: value for name, value in values.items() if name in own}
        fixed = {name: value for name, value in values.items() if name not in own}
        if "data" in fixed and folder is not None:
            fixed["data"] = str(folder / fixed["data"])
        given["ranges"] = {name: Range.of(name, value) for name, value in given.get("ranges", {}).items()}
        return cls(fixed, **given)

    def __post_init__(self) -> None:
        positive("seeds", self.seeds)
        positive("first_seed", self.first_seed, at_least=0)
        positive("then_evaluate", self.then_evaluate, at_least=0)
        positive("random", self.random, at_least=0)
        one_of("search", self.search, ("random", "optuna"))
        if self.first_seed + self.seeds > FIRST_EVALUATION_SEED:
            raise ValueError(
                f"the last seed is {self.first_seed + self.seeds - 1}; expected one below {FIRST_EVALUATION_SEED:,}: "
                "those from there on are for evaluations"
            )
        if self.ranges and not self.random:
            raise ValueError("random is 0; expected how many settings are drawn from the ranges")
        if self.random and not self.ranges:
            raise ValueError(f"random is {self.random} and there are no ranges; expected some to draw from")
        for one, other in ((self.fixed, self.grid), (self.fixed, self.ranges), (self.grid, self.ranges)):
            if both := sorted(set(one) & set(other)):
                raise ValueError(f"{both[0]} is given twice; expected it fixed, in the grid, or in the ranges")
        for name in sorted({name for one in self.settings for name in one} & {*self.grid, *self.ranges}):
            raise ValueError(
                f"{name} is given twice; expected it in the settings that are listed, or in grid or ranges"
            )
        if "seed" in {*self.fixed, *self.grid, *self.ranges}:
            raise ValueError("seed is given; expected seeds, how many there are, and first_seed")

    # --- cells --------------------------------------------------------------------------------------------------------

    def crossed(self, drawn: Sequence[Mapping[str, Any]]) -> list[Cell]:
        """The cells of the grid and the list with these further settings."""
        listed = self.settings or [{}]
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        firsts = [
            cells.make({**self.fixed, **combination, **one, **draw}, self.first_seed)
            for combination in cells.grid(self.grid)
            for one in listed
            for draw in drawn or [{}]
        ]
        return [first.with_seed(seed) for first in firsts for seed in seeds]

    def cells(self) -> list[Cell]:
        """Every cell of the tuning, in order.

        Raises
        ------
        ValueError
            If a setting does not exist or makes no sense, or if the search decides on the way (optuna).
        """
        if self.search == "optuna":
            raise ValueError("search is optuna; expected random, as optuna decides its settings on the way")
        return self.crossed(cells.drawn(self.ranges, self.random, self.search_seed) if self.random else [])

    # --- running ------------------------------------------------------------------------------------------------------

    def run(
        self,
        out: str | Path | None = None,
        *,
        workers: int = 0,
        ray_address: str | None = None,
        points: bool = False,
        logs: bool = False,
        command: str = "",
        notice: Callable[[str], None] = lambda sentence: None,
        progress: Callable[[Status], None] = lambda status: None,
    ) -> Table:
        """Run what is missing, and give back all there is.

        Parameters
        ----------
        out
            Folder of the store, which is continued if there is one; None keeps nothing.
        workers, ray_address
            Ray workers, and where; 0 for this process. The numbers do not depend on it.
        points
            Keep all that is logged, for a TensorBoard run of every tag.
        logs
            Leave the folder of each run, with log and checkpoint, in runs/ of `out`; of the machine that it ran on.
        command
            What was typed, for the report.
        notice
            Called with a sentence when something noteworthy happens.
        progress
            Called as cells are done.

        Raises
        ------
        ValueError
            If a setting does not exist or makes no sense. Nothing has been run then.
        FileExistsError
            If another process runs a sweep in that folder.
        KeyboardInterrupt
            If it is interrupted; what is done is kept.
        """
        with ExitStack() as stack:
            if out is None:
                out = stack.enter_context(tempfile.TemporaryDirectory())
            first = [] if self.search == "optuna" else self.cells()  # an error before anything is written
            attempt(first)
            store = stack.enter_context(open_store(out, command, notice))
            fill = partial(
                complete,
                store,
                workers=workers,
                ray_address=ray_address,
                points=points,
                logs=Path(out).resolve() / "runs" if logs else None,
                notice=notice,
                progress=progress,
            )
            if workers:
                stack.enter_context(cluster(ray_address, workers))
            if self.search == "optuna":
                from valueapprox.agents.sweeps.search import by_optuna

                first = by_optuna(self, store, fill)
            else:
                fill(first)
            if self.then_evaluate:
                tuned = Table(store.rows()).only(digests={cell.digest for cell in first})
                chosen = [best(groups) for groups in tuned.competitors().values()]
                store.note("chosen", [group.setting for group in chosen])
                fill([cells.evaluation_cell(g.rows[0].cell, k) for g in chosen for k in range(self.then_evaluate)])
            return Table(store.rows())


@contextmanager
def open_store(out: str | Path, command: str, notice: Callable[[str], None]) -> Iterator[Store]:
    """The store in a folder, which no other process may fill meanwhile; the command is noted for the report."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, notice), Store(folder) as store:
        if command:
            commands = store.about("commands", [])
            store.note("commands", commands if command in commands else [*commands, command])
        yield store


def complete(
    store: Store,
    wanted: Sequence[Cell],
    *,
    workers: int = 0,
    ray_address: str | None = None,
    points: bool = False,
    marks: Sequence[int] = (),
    logs: Path | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
    progress: Callable[[Status], None] = lambda status: None,
) -> None:
    """Run those of some cells that the store has no result of; KeyboardInterrupt if that is interrupted."""
    store.plan(wanted)
    settled = store.settled()
    missing = [cell for cell in wanted if cell.digest not in settled]
    stage = wanted[0].stage if wanted else TUNING
    done = len(wanted) - len(missing)
    progress(Status(done, len(wanted), stage))

    def keep(results: list[Result]) -> None:
        nonlocal done
        store.add(results)
        done += len(results)
        progress(Status(done, len(wanted), stage))

    wanted_of_each = Wanted(points, tuple(marks), logs)
    if run_cells(missing, keep, wanted_of_each, workers=workers, ray_address=ray_address, notice=notice):
        raise KeyboardInterrupt


def attempt(wanted: Sequence[Cell]) -> None:
    """Build the runs of some cells, so that each value of each setting is tried, and raise what they raise.

    What cannot work is then known before anything has run.
    """
    seen: set[tuple[str, str]] = set()
    for cell in wanted:
        own = {(name, str(value)) for name, value in cell.settings.items() if name != "seed"}
        if not own <= seen:
            seen |= own
            build(cell)
