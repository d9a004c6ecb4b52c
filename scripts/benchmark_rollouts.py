"""Speed of rollouts: transitions per second that one and two Ray workers bring to the driver, in turns."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from valueapprox.agents.policies import resolve
from valueapprox.agents.rollout import Task, make_rollout
from valueapprox.cli.terminal import announce_compile, command_line, console, errors_in_one_line
from valueapprox.cluster import RayWorker, cluster


@dataclass(frozen=True)
class Benchmark:
    """Collect with one worker and with many, in turns, and print transitions per second and their ratio.

    Nothing is learned: the driver takes each block and asks for the next. An environment that costs next to nothing
    shows what Ray's transport can carry, a costly one how well the work is spread.
    """

    envs: tuple[str, ...] = ("valueapprox/CartPole-v1", "CartPole-v1", "LunarLander-v3")
    """Environments to collect in."""
    blocks: tuple[int, ...] = (262144, 1024, 512)
    """Transitions of each stream in a block: one number for each environment."""
    streams: int = 4
    """Environments of each worker."""
    workers: int = 2
    """The larger number of workers."""
    rounds: int = 5
    """How often each is timed."""
    seconds: float = 3.0
    """Length of one timing."""


def rate(task: Task, n_workers: int, block: int, options: Benchmark) -> float:
    """Transitions per second that arrive, two blocks asked for in advance."""
    shares = np.arange(n_workers * options.streams).reshape(n_workers, -1)
    workers = [RayWorker(make_rollout, task, [int(i) for i in share]) for share in shares]
    try:
        for worker in workers:
            worker.submit("collect", block)
            worker.submit("collect", block)
        for worker in workers:  # the first block waits for the worker's process
            worker.result()
            worker.submit("collect", block)
        arrived, start = 0, time.perf_counter()
        while time.perf_counter() - start < options.seconds:
            for worker in workers:
                collected, _ = worker.result()
                worker.submit("collect", block)
                arrived += collected.rewards.size
        return arrived / (time.perf_counter() - start)
    finally:
        for worker in workers:
            worker.close()


def main(options: Benchmark) -> int:
    """Time, print; returns the exit code."""
    if len(options.blocks) != len(options.envs):
        raise ValueError(f"blocks has {len(options.blocks)} entries; expected one for each of {len(options.envs)} envs")
    announce_compile()
    table = Table(title="Transitions per second, and how many times as many", title_justify="left", box=SIMPLE_HEAD)
    for column in ("environment", "1 worker", f"{options.workers} workers", "ratio, median (quartiles)"):
        table.add_column(column, justify="left" if column == "environment" else "right")
    with cluster(n_cpus=options.workers):
        for env, block in zip(options.envs, options.blocks, strict=True):
            task = Task(env, *resolve("auto", None, env))
            with console.status(f"collecting in {env}"):
                rates = np.array(
                    [[rate(task, n, block, options) for n in (1, options.workers)] for _ in range(options.rounds)]
                )
            low, middle, high = np.percentile(rates[:, 1] / rates[:, 0], [25, 50, 75])
            one, many = np.median(rates, axis=0)
            table.add_row(env, f"{one:,.0f}", f"{many:,.0f}", f"{middle:.2f} ({low:.2f} to {high:.2f})")
    console.print(table)
    return 0


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
