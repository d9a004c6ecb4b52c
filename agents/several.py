"""Several runs, of as many seeds, each in a folder of its own, on Ray workers or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from valueapprox.agents.report import read_episodes
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.agents.settings import RunSettings
from valueapprox.agents.training import kind_for
from valueapprox.checks import positive
from valueapprox.cluster import cluster, spread

__all__ = ["complete", "complete_all", "seed_runs"]


def seed_runs(settings: RunSettings, folder: Path, seeds: Sequence[int]) -> list[tuple[RunSettings, Path]]:
    """The settings and the folder of the run of each seed."""
    return [(replace(settings, seed=seed), folder / f"seed-{seed}") for seed in seeds]


def complete(settings: RunSettings, folder: str | Path, episodes: int = 0) -> list[dict[str, Any]]:
    """Begin a run, or go on with it, or leave it as it is if it is done; returns its episodes."""
    begun = (Path(folder) / CHECKPOINT_FILE).exists()
    run = kind_for(settings.agent)(settings, folder, resume=begun)
    if run.step < settings.steps and not run.stopped:
        if run.train(episodes=episodes).interrupted:
            raise KeyboardInterrupt  # the runs after this one are not wanted either
    else:
        run.close()
    return read_episodes(folder)


def complete_all(
    runs: Sequence[tuple[RunSettings, Path]],
    n_workers: int,
    ray_address: str | None = None,
    episodes: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """`complete` each run, on Ray workers or, with 0, in this process. What is done already stays as it is."""
    positive("workers", n_workers, at_least=0)
    calls = [(settings, folder.resolve(), episodes) for settings, folder in runs]
    if n_workers == 0:
        for done, call in enumerate(calls, start=1):
            complete(*call)
            progress(done)
        return
    with cluster(ray_address, n_workers):
        for done, _ in enumerate(spread(complete, calls), start=1):
            progress(done)
