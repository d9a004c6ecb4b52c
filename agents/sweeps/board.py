"""A TensorBoard run of a table: the mean of every tag over seeds with its interval, and HParams of the settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from valueapprox.agents.sweeps.table import Group, Table
from valueapprox.statistics import interval_of_mean
from valueapprox.telemetry import RunLog

__all__ = ["write_bands"]

MARK_FILE = "README"
MOST_SETTINGS = 200  # with a run of its own: TensorBoard's table of hyper-parameters wants one for each


def write_bands(folder: Path, table: Table) -> Path:
    """Write, for each setting, mean and ends of the 95 % interval of every tag at every step that all seeds have.

    What was written there before is replaced. Bands lie in the tab of custom scalars; a setting has a run of its own,
    so that the table of hyper-parameters shows it with its numbers. There are at most `MOST_SETTINGS`, the first ones.

    Raises
    ------
    FileExistsError
        If the folder holds something that was not written by this.
    """
    mark = folder / MARK_FILE
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise FileExistsError(f"{folder} exists and holds something else; choose another --out, or --no-tensorboard")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.write_text("Written by valueapprox report, which replaces this folder when it is run again.\n")
    groups = table.groups()
    for n, group in enumerate(groups[:MOST_SETTINGS]):
        own = folder / f"{n:03d}-{_file_name(group)}"
        own.mkdir()
        with RunLog(own) as log:
            tags = _tags(group)
            log.bands({tag: tag for tag in tags})
            log.hparams({name: group.settings.get(name) for name in table.varied} | {"stage": group.stage})
            by_step: dict[int, dict[str, float]] = {}
            for tag, (steps, values) in tags.items():
                for step, column in zip(steps, values.T, strict=True):
                    found = interval_of_mean(column)
                    line = by_step.setdefault(int(step), {})
                    line |= {f"{tag}/mean": found.value, f"{tag}/low": found.low, f"{tag}/high": found.high}
            for step in sorted(by_step):
                log.scalars(step, {tag: x for tag, x in by_step[step].items() if np.isfinite(x)})
            last = max(by_step, default=0)
            results = {f"result/{name}": _mean_of(group, name) for name in table.numbers}
            log.scalars(last, {name: x for name, x in results.items() if np.isfinite(x)})
            log.hparams_done()
    return folder


def _mean_of(group: Group, name: str) -> float:
    found = [row.result.numbers.get(name, np.nan) for row in group.rows if row.result is not None]
    return float(np.mean(found)) if found else np.nan


def _tags(group: Group) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each tag the steps at which all seeds have it (T,), and their values (n, T); without points, of the curve."""
    results = [row.result for row in group.rows if row.result is not None]
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if results and all(result.points for result in results):
        for tag in sorted({tag for result in results for point in result.points for tag in point if tag != "step"}):
            series = [{int(p["step"]): p[tag] for p in result.points if tag in p} for result in results]
            at = sorted(set.intersection(*map(set, series)))
            if at:
                found[tag] = np.array(at), np.array([[line[step] for step in at] for line in series])
        return found
    steps, lines = group.curves()
    whole = np.isfinite(lines).all(axis=0) if lines.size else np.zeros(0, np.bool_)
    if whole.any():
        found[group.number] = steps[whole], lines[:, whole]
    return found


def _file_name(group: Group) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{group.stage}-{group.name}")[:80]
