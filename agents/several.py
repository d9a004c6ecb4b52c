"""Several runs: of as many seeds on Ray workers, and compared in a table and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from valueapprox.agents.report import read_episodes
from valueapprox.agents.run import CHECKPOINT_FILE, SETTINGS_FILE
from valueapprox.agents.settings import RunSettings
from valueapprox.agents.training import kind_for, read_config
from valueapprox.checks import positive
from valueapprox.cli.charts import new_figure, new_table, save_figure
from valueapprox.cli.pictures import POINTS, mean_returns, steps_axis
from valueapprox.cluster import cluster, spread
from valueapprox.statistics import interval_of_mean
from valueapprox.telemetry import read_metrics

__all__ = ["LATEST", "Group", "complete", "complete_all", "draw_seeds", "group", "picture", "seed_runs", "tables"]

LATEST = 0.15  # a result is the mean return of the training episodes that ended in the last 15 % of the steps
ERRORS = ("value/error/rmsve", "evaluation/value_error", "value/td_error/rms")  # the first that all runs have is drawn
#: Not part of what makes two runs repetitions of one another.
WATCHING = ("seed", "log_every", "eval_every", "eval_episodes")


# --- running --------------------------------------------------------------------------------------------------------


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


# --- comparing ------------------------------------------------------------------------------------------------------


class Log(NamedTuple):
    """What is known of a run from its folder."""

    folder: Path
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    episodes: list[dict[str, Any]]

    @property
    def acts(self) -> bool:
        """Whether it learns how to act, and not the values of a policy."""
        return "policy" not in self.settings

    @property
    def steps(self) -> int:
        """How many it has done."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def last(self, *tags: str) -> float:
        """The last number of the first tag that there is, or NaN."""
        for tag in tags:
            for line in reversed(self.metrics):
                if tag in line:
                    return float(line[tag])
        return math.nan

    def curve(self, steps: np.ndarray, tag: str) -> np.ndarray:
        """Of an agent that acts, the mean return before each of these steps; otherwise the tag's last number there."""
        if self.acts:
            return mean_returns(self.episodes, steps)
        points = [(line["step"], line[tag]) for line in self.metrics if tag in line]
        at, numbers = np.array(points, np.float64).reshape(-1, 2).T
        places = np.searchsorted(at, steps, side="right") - 1
        return np.where(places >= 0, numbers[places] if len(numbers) else np.nan, np.nan)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    name: str
    runs: list[Log]


def read_run(folder: Path) -> Log:
    """The run in a folder."""
    settings = read_config(folder / SETTINGS_FILE)
    if not {"env", "agent", "seed"} <= set(settings):  # such as the folder of a fit
        raise ValueError(f"{folder} holds no run of an agent; expected folders that valueapprox train has written")
    return Log(folder, settings, read_metrics(folder), read_episodes(folder))


def group(paths: Sequence[Path]) -> list[Group]:
    """The runs in folders, each that of a run or of several, put together where only their seeds differ.

    Raises
    ------
    FileNotFoundError
        If there is no run in one of them.
    """
    groups: dict[str, list[Log]] = {}
    for path in paths:
        folders = [path] if (path / SETTINGS_FILE).exists() else sorted(path.glob(f"*/{SETTINGS_FILE}"))
        if not folders:
            raise FileNotFoundError(f"{path} holds no run; expected the folder of a run, or of several")
        for folder in folders:
            run = read_run(folder if folder.is_dir() else folder.parent)
            settings = {name: value for name, value in run.settings.items() if name not in WATCHING}
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    names = _names([json.loads(key) for key in groups], list(groups.values()))
    return [Group(name, runs) for name, runs in zip(names, groups.values(), strict=True)]


def _names(settings: Sequence[dict[str, Any]], runs: Sequence[list[Log]]) -> list[str]:
    """What tells groups apart: environment and agent, if these do, or else the few settings in which they differ."""
    shared = [name for name in settings[0] if all(name in other for other in settings)]
    plain = [name for name in shared if not any(isinstance(other[name], dict) for other in settings)]
    differing = [name for name in plain if len({str(other[name]) for other in settings}) > 1]
    heads = [name for name in ("env", "agent") if name in differing]
    for chosen in (heads, differing):
        names = [
            ", ".join(str(s[name]) if name in heads else f"{name} {_shown(s[name])}" for name in chosen)
            for s in settings
        ]
        if 0 < len(chosen) <= 4 and len(set(names)) == len(names):
            return names
    return [logs[0].folder.parent.name if len(logs) > 1 else logs[0].folder.name for logs in runs]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cell(numbers: Sequence[float]) -> str:
    """Mean over seeds with its 95 % interval."""
    known = np.array([number for number in numbers if math.isfinite(number)])
    if not len(known):
        return ""
    mean = interval_of_mean(known)
    return f"{mean.value:,.4g}" + (f" ({mean.low:,.4g} to {mean.high:,.4g})" if len(known) > 1 else "")


def tables(groups: Sequence[Group]) -> list[Table]:
    """One row per group, agents that act and value functions apart: means over seeds with 95 % intervals (Student)."""
    found = []
    acting = [group for group in groups if group.runs[0].acts]
    if acting:
        columns = ("seeds", "steps", "return while learning", "worst seed", "greedy, at the end")
        table = new_table("Returns: mean over seeds (95 % interval)", ["", "environment", "agent"], columns)
        for g in acting:
            late = [_late_return(run) for run in g.runs]
            final = [run.last("final/greedy/return", "evaluation/return") for run in g.runs]
            worst = "" if np.isnan(late).all() else f"{np.nanmin(late):,.4g}"
            table.add_row(*_heads(g), _cell(late), worst, _cell(final))
        table.caption = f"While learning: mean return of the episodes that ended in the last {LATEST:.0%} of the steps."
        found.append(table)
    if predicting := [group for group in groups if not group.runs[0].acts]:
        columns = ("seeds", "steps", "value error", "explained variance", "TD error")
        table = new_table("Values: mean over seeds (95 % interval)", ["", "environment", "agent"], columns)
        for g in predicting:
            value_error = [
                run.last("value/error/rmsve", "final/value_error", "evaluation/value_error") for run in g.runs
            ]
            explained = [run.last("final/explained_variance", "evaluation/explained_variance") for run in g.runs]
            td_error = [run.last("value/td_error/rms") for run in g.runs]
            table.add_row(*_heads(g), _cell(value_error), _cell(explained), _cell(td_error))
        found.append(table)
    return found


def _heads(group: Group) -> tuple[str, str, str, str, str]:
    settings, steps = group.runs[0].settings, sorted({run.steps for run in group.runs})
    shown = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    return group.name, settings["env"], settings["agent"], str(len(group.runs)), shown


def _late_return(run: Log) -> float:
    late = [episode["return"] for episode in run.episodes if episode["step"] > (1 - LATEST) * run.steps]
    return float(np.mean(late)) if late else math.nan


def draw_seeds(axes: Any, steps: np.ndarray, curves: np.ndarray, colour: str, label: str | None = None) -> None:
    """The mean of curves (n_seeds, n_steps) with its 95 % interval where no seed is missing, and each seed thin."""
    for curve in curves:
        there = np.isfinite(curve)
        axes.plot(steps[there], curve[there], color=colour, alpha=0.2 if len(curves) > 1 else 1.0, linewidth=0.7)
    complete_columns = np.isfinite(curves).all(axis=0)
    bands = [interval_of_mean(values) for values in curves[:, complete_columns].T]
    means, lows, highs = np.array([(b.value, b.low, b.high) for b in bands]).reshape(-1, 3).T
    axes.plot(steps[complete_columns], means, color=colour, linewidth=1.8, label=label)
    axes.fill_between(steps[complete_columns], lows, highs, color=colour, alpha=0.25, linewidth=0)


def picture(groups: Sequence[Group], path: Path) -> Path:
    """Curves over environment steps, one colour per group: mean over seeds, its 95 % interval, and every seed."""
    environments = list(dict.fromkeys((g.runs[0].settings["env"], g.runs[0].acts) for g in groups))
    columns = min(3, len(environments))
    rows = -(-len(environments) // columns)
    figure = new_figure(5.2 * columns, 3.6 * rows)
    for place, (env, acts) in enumerate(environments, start=1):
        axes = figure.add_subplot(rows, columns, place)
        here = [g for g in groups if (g.runs[0].settings["env"], g.runs[0].acts) == (env, acts)]
        every_run = [run for g in here for run in g.runs]
        last = max(run.steps for run in every_run)
        tag = next((tag for tag in ERRORS if all(not math.isnan(run.last(tag)) for run in every_run)), ERRORS[-1])
        steps = np.linspace(0, last, POINTS + 1)[1:]
        for colour, g in enumerate(here):
            draw_seeds(axes, steps, np.array([run.curve(steps, tag) for run in g.runs]), f"C{colour}", g.name)
        axes.set_title(env, fontsize=10)
        axes.set_ylabel("return while learning" if acts else tag.rpartition("value/")[2], fontsize=9)
        steps_axis(axes)
        axes.set_xlim(0, 1.02 * last)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path)
    return path
