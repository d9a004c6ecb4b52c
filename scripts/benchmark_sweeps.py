"""How fast sweeps are: many updates, many cells, and what the scheduler costs, each against a bound."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from valueapprox.agents.sweeps import Store, Sweep, Table
from valueapprox.agents.sweeps.page import parts_of, write
from valueapprox.checks import one_of
from valueapprox.cli.charts import new_table, print_wide
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line
from valueapprox.cluster import cluster

CARTPOLE = "valueapprox/CartPole-v1"
TD: dict[str, Any] = {"env": CARTPOLE, "agent": "td", "optimizer": "sgd", "schedule": "constant", "alpha": 1e-4}


@dataclass(frozen=True)
class BenchmarkSweeps:
    """Time sweeps on Ray workers, from the first cell to the last row of the store; Ray's own start is not counted.

    updates: 50 settings x 30 seeds x 100,000 steps of TD(lambda), 4-64-1, compiled CartPole, two workers and one
    control: 1,500 cells of 20,000 steps of stream-ac in compiled CartPole
    cells:   10,000 cells of 100 steps of TD(lambda)
    seconds: 200 cells of about a second each (of real learning), against the seconds that they take
    report:  the page of the 1,500 cells of `control`
    """

    parts: tyro.conf.Positional[tuple[str, ...]] = field(default_factory=tuple)
    """Which of them; all if none is named."""
    share: float = 1.0
    """Of the seeds; less than 1 to try it out."""


def main(options: BenchmarkSweeps) -> int:
    """Time and print; returns the exit code."""
    known: dict[str, Callable[[Path, float], list[tuple[str, str]]]] = {
        "updates": updates, "control": control, "cells": cells, "seconds": seconds, "report": report
    }  # fmt: skip
    announce_compile()
    table = new_table("Sweeps", ["what"], ["measured"])
    for name in options.parts or known:
        with tempfile.TemporaryDirectory() as folder:
            for row in known[one_of("part", name, known)](Path(folder), options.share):
                table.add_row(*row)
                console.print(f"{row[0]}: {row[1]}")
    print_wide(table)
    return 0


def timed(sweep: Sweep, folder: Path, workers: int) -> float:
    """Seconds of a sweep on workers that have loaded their kernels."""
    with cluster(n_cpus=workers):
        begun = time.perf_counter()
        table = sweep.run(folder, workers=workers)
        taken = time.perf_counter() - begun
    if (lost := len(table) - int((table["status"] == "done").sum())) > 0:
        console.print(f"{lost} of {len(table)} cells were lost")
    return taken


def updates(folder: Path, share: float) -> list[tuple[str, str]]:
    """150 million updates, by two workers and by one."""
    grid = {"alpha": np.geomspace(1e-6, 1e-4, 10).round(9).tolist(), "lam": [0.0, 0.4, 0.8, 0.9, 0.95]}
    fixed = {name: value for name, value in TD.items() if name != "alpha"}
    sweep = Sweep({**fixed, "steps": 100_000}, grid, seeds=max(1, round(30 * share)))
    two, one = timed(sweep, folder / "two", 2), timed(sweep, folder / "one", 1)
    n = 50 * sweep.seeds
    return [(f"updates: {n:,} cells of 100,000 steps, two workers", f"{two:.1f} s"),
            ("updates: one worker", f"{one:.1f} s, {one / two:.2f} times as long")]  # fmt: skip


def acting(share: float) -> Sweep:
    """1,500 cells of stream-ac."""
    grid = {"lam": [0.0, 0.4, 0.8, 0.9, 0.95], "entropy": [0.001, 0.003, 0.01, 0.03, 0.1], "gamma": [0.98, 0.99]}
    return Sweep({"env": CARTPOLE, "agent": "stream-ac", "steps": 20_000}, grid, seeds=max(1, round(30 * share)))


def control(folder: Path, share: float) -> list[tuple[str, str]]:
    """30 million steps of an actor-critic."""
    sweep = acting(share)
    return [(f"control: {50 * sweep.seeds:,} cells of 20,000 steps", f"{timed(sweep, folder, 2):.1f} s")]


def cells(folder: Path, share: float) -> list[tuple[str, str]]:
    """10,000 short cells."""
    sweep = Sweep({**TD, "steps": 100}, {"lam": np.linspace(0, 0.99, 100).tolist()}, seeds=max(1, round(100 * share)))
    taken = timed(sweep, folder, 2)
    return [
        (
            f"cells: {100 * sweep.seeds:,} of 100 steps",
            f"{taken:.1f} s, {1e3 * taken / (100 * sweep.seeds):.2f} ms each",
        )
    ]


def seconds(folder: Path, share: float) -> list[tuple[str, str]]:
    """Cells of about a second each: how much longer two workers take than half of the cells' own seconds."""
    sweep = Sweep({"env": CARTPOLE, "agent": "stream-ac", "steps": 400_000}, seeds=max(2, round(200 * share)))
    taken = timed(sweep, folder, 2)
    with Store(folder, read_only=True) as store:
        own = float(Table(store.rows())["seconds"].sum())
    return [
        (
            f"seconds: {sweep.seeds} cells of {own / sweep.seeds:.2f} s",
            f"{taken:.1f} s, {2 * taken / own - 1:.1%} more than their own",
        )
    ]


def report(folder: Path, share: float) -> list[tuple[str, str]]:
    """The page of a sweep with curves."""
    timed(acting(share), folder, 2)
    begun = time.perf_counter()
    with Store(folder, read_only=True) as store:
        table = Table(store.rows())
    write(folder, "report", table, parts_of(table))
    return [(f"report: {len(table):,} cells with curves", f"{time.perf_counter() - begun:.1f} s")]


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(BenchmarkSweeps)))
