"""Runs in folders as cells: what a report compares, whoever trained them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox.agents import provenance
from valueapprox.agents.report import read_episodes
from valueapprox.agents.run import SETTINGS_FILE
from valueapprox.agents.sweeps.cells import RUN, Cell
from valueapprox.agents.sweeps.measures import acted, predicted
from valueapprox.agents.sweeps.store import DONE, STORE_FILE, Result, Row, Store
from valueapprox.agents.sweeps.table import Table
from valueapprox.agents.training import read_config
from valueapprox.telemetry import read_metrics

__all__ = ["read_run", "table_of"]

#: How a run is watched: not part of what makes two runs repetitions of one another.
WATCHING = ("log_every", "eval_every", "eval_episodes")


def table_of(paths: Sequence[Path], points: bool = False) -> Table:
    """The cells of sweeps, and the runs in folders, each that of a run or of several.

    Raises
    ------
    FileNotFoundError
        If there is no run in one of them.
    """
    rows: list[Row] = []
    for path in paths:
        if (path / STORE_FILE).exists():
            with Store(path, read_only=True) as store:
                rows += store.rows(points)
            continue
        folders = (
            [path] if (path / SETTINGS_FILE).exists() else sorted(p.parent for p in path.glob(f"*/{SETTINGS_FILE}"))
        )
        if not folders:
            raise FileNotFoundError(f"{path} holds no run; expected the folder of a run, of several, or of a sweep")
        rows += [read_run(folder) for folder in folders]
    return Table([row._replace(number=n) for n, row in enumerate(rows)])


def read_run(folder: Path) -> Row:
    """The run in a folder, as far as it has learned."""
    settings = read_config(folder / SETTINGS_FILE)
    if not {"env", "agent", "seed"} <= set(settings):  # such as the folder of a fit
        raise ValueError(f"{folder} holds no run of an agent; expected folders that valueapprox train has written")
    logged, origins = read_metrics(folder), provenance.read(folder)
    steps = int(logged[-1]["step"]) if logged else 0
    plain = {name: value for name, value in settings.items() if name not in WATCHING}
    if "policy" in settings:
        numbers, curve = predicted(logged)
    else:
        numbers, curve = acted(logged, read_episodes(folder), steps)
    known = {name: number for name, number in numbers.items() if np.isfinite(number)}
    cell = Cell(plain, RUN)
    origin: dict[str, Any] = {
        n: v for n, v in (origins[-1] if origins else {}).items() if n not in ("step", "time", "command")
    }
    return Row(0, cell, Result(cell.digest, DONE, known, curve, "", 1, 0.0, origin, logged))
