"""Settings that Optuna suggests, round by round, so that they do not depend on how many workers there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from valueapprox.agents.sweeps.cells import Cell, Range
from valueapprox.agents.sweeps.store import Store
from valueapprox.agents.sweeps.table import Table

if TYPE_CHECKING:
    from valueapprox.agents.sweeps.sweep import Sweep

__all__ = ["by_optuna"]


def by_optuna(sweep: Sweep, store: Store, fill: Callable[[Sequence[Cell]], object]) -> list[Cell]:
    """Ask for settings in rounds and fill the store with their cells; returns all cells.

    The score that Optuna is told is the median over seeds, of which a cell that failed is the worst. Each round is told
    whole before the next is asked for, in the order of the settings.

    Raises
    ------
    ModuleNotFoundError
        If Optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ModuleNotFoundError("search is optuna, which is missing: pip install 'valueapprox[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=sweep.search_seed))
    found: list[Cell] = []
    for share in np.array_split(np.arange(sweep.random), min(sweep.rounds, sweep.random)):
        trials = [study.ask() for _ in share]
        drawn = [{name: _suggested(trial, name, of) for name, of in sweep.ranges.items()} for trial in trials]
        cells = [sweep.crossed([one]) for one in drawn]
        found += [cell for those in cells for cell in those]
        fill([cell for those in cells for cell in those])
        table = Table(store.rows())
        for trial, those in zip(trials, cells, strict=True):
            part = table.only(digests={cell.digest for cell in those})
            scores = np.concatenate([group.scores for group in part.groups()])
            score = float(np.median(scores)) if len(scores) else -np.inf
            if np.isfinite(score):
                study.tell(trial, score)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return found


def _suggested(trial: Any, name: str, of: Range) -> Any:
    if of.choices:
        return of.choices[trial.suggest_int(name, 0, len(of.choices) - 1)]
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(of.high), log=of.log)
    return float(f"{trial.suggest_float(name, of.low, of.high, log=of.log):.6g}")
