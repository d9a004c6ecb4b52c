"""What comes out of one cell: a few numbers that compare it with others, and a curve.

A cell is a run without a folder, so that its numbers are those of the run by itself.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from valueapprox.agents import evaluation, provenance
from valueapprox.agents.callbacks import Point
from valueapprox.agents.evaluation import discounted, horizon
from valueapprox.agents.prediction_run import PredictionRun
from valueapprox.agents.report import read_episodes
from valueapprox.agents.rollout import Block, CompiledRollout, Task, make_rollout
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.agents.sweeps.cells import FIRST_EVALUATION_SEED, Cell
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED, Result
from valueapprox.agents.training import kind_for, settings_from
from valueapprox.cli.pictures import mean_returns
from valueapprox.interrupts import watched
from valueapprox.statistics import area_under_curve
from valueapprox.supervised.examples import TableData, read_examples
from valueapprox.supervised.table_fit import Settings as FitSettings
from valueapprox.supervised.table_fit import fit_table
from valueapprox.telemetry import read_metrics

__all__ = [
    "BEST_IS_LEAST",
    "LATEST",
    "NUMBERS",
    "WANTED",
    "Wanted",
    "acted",
    "build",
    "main_number",
    "measure",
    "predicted",
]

LATEST = 0.15  # a return is the mean over the training episodes that ended in the last 15 % of the steps
POINTS = 50  # of a curve
#: What compares cells, the first that all of them have.
NUMBERS = ("return", "value_error", "rmse", "td_error", "validation_loss", "loss")
BEST_IS_LEAST = ("value_error", "rmse", "td_error", "validation_loss", "loss", "steps", "epochs")
REFERENCE_STATES, REFERENCE_STEPS, REFERENCE_STREAMS, REFERENCE_SEED = 512, 4096, 8, FIRST_EVALUATION_SEED - 1
SHARED_BYTES = 256 * 2**20


def main_number(names: set[str]) -> str:
    """The number by which cells that have these are compared."""
    return next((name for name in NUMBERS if name in names), "")


class Wanted(NamedTuple):
    """What is wanted of a cell beside its numbers and its curve."""

    points: bool = False
    """All that is logged."""
    marks: Sequence[int] = ()
    """Further steps at which the return is wanted, as return_at_STEP."""
    logs: Path | None = None
    """Where each run leaves a folder of its own, named by the cell's digest."""


WANTED = Wanted()


def measure(cell: Cell, wanted: Wanted = WANTED) -> Result:
    """Run a cell to its end, whatever that is: an error is part of the result."""
    begun = time.perf_counter()
    try:
        numbers, curve, logged = _fit(cell, wanted) if "data" in cell.settings else _run(cell, wanted)
        status, error = DONE, ""
        numbers = {name: number for name, number in numbers.items() if math.isfinite(number)}
    except FloatingPointError as diverged:
        numbers, curve, logged, status, error = {}, np.zeros((2, 0)), [], DIVERGED, str(diverged)
    except Exception:  # noqa: BLE001  (whatever it is: the other cells go on)
        numbers, curve, logged, status, error = {}, np.zeros((2, 0)), [], FAILED, traceback.format_exc()
    seconds = time.perf_counter() - begun
    return Result(cell.digest, status, numbers, curve, error, 1, seconds, _origin(), logged)


@cache
def _origin() -> dict[str, Any]:
    return provenance.here()


# --- runs -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _settings(text: str) -> Any:
    """Of all cells of a setting."""
    return settings_from(json.loads(text))


def build(cell: Cell) -> None:
    """Make the run of a cell and let it go, or read the data of a fit: raises what is wrong with its settings."""
    if "data" in cell.settings:
        fit = FitSettings.from_dict(cell.settings)
        data = _examples(cell.settings["data"], fit)
        fit.make_network(data)
        fit.make_optimizer(len(data.training.S))
        return
    settings = settings_from(cell.settings)
    kind_for(settings.agent)(settings, None).close()


def _run(cell: Cell, wanted: Wanted) -> tuple[dict[str, float], np.ndarray, list[dict[str, float]]]:
    settings = replace(_settings(cell.setting), seed=cell.settings["seed"])
    folder = None if wanted.logs is None else wanted.logs / cell.digest
    begun = folder is not None and (folder / CHECKPOINT_FILE).exists()
    run = kind_for(settings.agent)(settings, folder, resume=begun)
    callbacks = []
    if predicts := isinstance(run, PredictionRun):
        run.make_rollout = partial(_shared, (run.settings.steps, run.settings.block))
        reference = None if run.known is not None else _reference(*_key(run.task), run.settings.gamma)
        callbacks = [] if reference is None else [reference]
    if folder is None:
        # What only episodes tell needs no points of the log on the way, but the end at a return does.
        whole = predicts or wanted.points or run.settings.stop_at is not None
        logged, episodes = run.measure(callbacks, 0 if whole else run.settings.steps)
    else:
        if run.step < run.settings.steps and not run.stopped and run.train(callbacks=callbacks).interrupted:
            raise KeyboardInterrupt
        run.close()
        logged, episodes = read_metrics(folder), read_episodes(folder)
    found = predicted(logged) if predicts else acted(logged, episodes, run.step, wanted.marks)
    return *found, logged if wanted.points else []


def acted(
    logged: Sequence[Mapping[str, float]],
    episodes: Sequence[Mapping[str, Any]],
    steps: int,
    marks: Sequence[int] = (),
) -> tuple[dict[str, float], np.ndarray]:
    """The numbers and the curve of an agent that acts, from its log and its training episodes.

    return: mean return of the episodes that ended in the last 15 % of the steps; return_area: the mean of the curve of
    returns over all steps; evaluation_return: of the last evaluation in fresh episodes, if there was one; episodes and
    steps: how many there were, fewer than planned where the run ended at `stop_at`.
    """
    at = np.linspace(0, steps, POINTS + 1)[1:]
    curve = np.stack([at, mean_returns(episodes, at)])
    numbers = {"return": _return_at(episodes, steps), "return_area": _area(*curve)}
    numbers |= {f"return_at_{mark}": _return_at(episodes, mark) for mark in marks if mark < steps}
    for tag in ("final/greedy/return", "evaluation/return"):
        if found := [point[tag] for point in logged if tag in point]:
            numbers["evaluation_return"] = float(found[-1])
            break
    return numbers | {"episodes": float(len(episodes)), "steps": float(steps)}, curve


def _return_at(episodes: Sequence[Mapping[str, Any]], step: int) -> float:
    """Mean return of the episodes that ended in the last 15 % of the steps up to this one."""
    late = [e["return"] for e in episodes if (1 - LATEST) * step < e["step"] <= step]
    return float(np.mean(late)) if late else math.nan


#: Tags of the errors of values, and what they are called; the first that is logged is the one that counts.
VALUE_TAGS = {
    "value/error/rmsve": "value_error",
    "evaluation/value_error": "value_error",
    "evaluation/rmse": "rmse",
    "value/td_error/rms": "td_error",
}


def predicted(logged: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], np.ndarray]:
    """The numbers and the curve of a value function, from its log.

    value_error: against the true values, or without the spread of returns; rmse: against returns, with that spread;
    td_error: root mean square. Of the first of these that there is, NAME_area is the mean of its curve.
    """
    columns = {tag: list({p["step"]: (p["step"], p[tag]) for p in logged if tag in p}.values()) for tag in VALUE_TAGS}
    tag = next((tag for tag, points in columns.items() if points), "")
    if not tag:
        return {}, np.zeros((2, 0))
    curve = np.array(columns[tag], np.float64).T
    numbers = {VALUE_TAGS[tag]: float(curve[1, -1]), f"{VALUE_TAGS[tag]}_area": _area(*curve)}
    for other in ("final/explained_variance", "evaluation/explained_variance"):
        if found := [point[other] for point in logged if other in point]:
            numbers["explained_variance"] = float(found[-1])
            break
    if points := columns["value/td_error/rms"]:
        numbers.setdefault("td_error", float(points[-1][1]))
    return numbers, curve


def _area(steps: np.ndarray, values: np.ndarray) -> float:
    """The mean of a curve over its steps; a gap in it is bridged by a straight line."""
    known = np.isfinite(values)
    if not known.any():
        return math.nan
    used = known | (np.arange(len(values)) < known.argmax())
    return float(area_under_curve(steps[used], values[used]))


# --- experience that several cells learn from -------------------------------------------------------------------------


class _Recorded:
    """A rollout whose blocks are kept, for others that learn from the same experience."""

    def __init__(self, rollout: Any) -> None:
        self.rollout, self.blocks, self.bytes = rollout, list[tuple[Any, tuple[Block, Any]]](), 0


class _Reader:
    """Gives the blocks of a recorded rollout from the first one on."""

    def __init__(self, recorded: _Recorded) -> None:
        self._recorded, self._next = recorded, 0

    def collect(self, lengths: Any) -> tuple[Block, Any]:
        recorded = self._recorded
        if self._next == len(recorded.blocks):
            found = recorded.rollout.collect(lengths)
            recorded.blocks.append((lengths, found))
            recorded.bytes += sum(part.nbytes for part in found[0])
        asked, found = recorded.blocks[self._next]
        assert asked == lengths, "runs of one task and length ask for the same blocks"
        self._next += 1
        return found

    def close(self) -> None:
        """Nothing is open."""


_recorded: OrderedDict[str, _Recorded] = OrderedDict()


def _shared(lengths: tuple[int, int], task: Task, numbers: list[int]) -> Any:
    """The rollout of a task: in a compiled world the same blocks for all cells that ask for as many.

    What is experienced does not depend on who learns from it.
    """
    key = repr((task, numbers, lengths))
    if key not in _recorded:
        rollout = make_rollout(task, numbers)
        # Both observations, the reward, flags and an action of each step.
        if (
            not isinstance(rollout, CompiledRollout)
            or lengths[0] * (8 * rollout.world.n_observation + 16) > SHARED_BYTES
        ):
            return rollout
        _recorded[key] = _Recorded(rollout)
    _recorded.move_to_end(key)
    while len(_recorded) > 1 and sum(known.bytes for known in _recorded.values()) > SHARED_BYTES:
        _recorded.popitem(last=False)
    return _Reader(_recorded[key])


def _key(task: Task) -> tuple[str, Task]:
    plain = replace(task, seed=0)
    return repr(plain), plain


class _Reference:
    """States that the policy visits, with the return of each: compares all cells that learn the same values.

    rmse = sqrt(mean (G - v)^2) holds the spread of returns, which is the same for all of these cells.
    """

    def __init__(self, states: np.ndarray, returns: np.ndarray) -> None:
        self.states, self.returns = states, returns
        self.variance = float(returns.var())

    def __call__(self, point: Point) -> None:
        """Log how far the values are from these returns."""
        run: Any = point.run
        error = self.returns - np.asarray(run.value_function.predict(self.states), np.float64)
        point.values["evaluation/rmse"] = float(np.sqrt(np.mean(error**2)))
        if self.variance > 0:
            point.values["evaluation/explained_variance"] = float(1 - error.var() / self.variance)


@cache
def _references() -> dict[tuple[str, float], _Reference | None]:
    return {}


def _reference(key: str, task: Task, gamma: float) -> _Reference | None:
    """Of a task and a discount, always the same; None where no return is known."""
    known = _references()
    if (key, gamma) not in known:
        known[key, gamma] = _gathered(task, gamma)
    return known[key, gamma]


def _gathered(task: Task, gamma: float) -> _Reference | None:
    reach = horizon(gamma)
    # As the value that is learned bootstraps at a time limit, returns go on behind it.
    arguments = task.env_args if math.isinf(reach) else {**task.env_args, "max_episode_steps": -1}
    rollout = make_rollout(replace(task, env_args=arguments, seed=REFERENCE_SEED), list(range(REFERENCE_STREAMS)))
    try:
        with watched(task.env):
            block, _ = rollout.collect(REFERENCE_STEPS)
    finally:
        rollout.close()
    states, returns = [], []
    for i in range(REFERENCE_STREAMS):
        rewards, terminated = block.rewards[i], block.terminated[i]
        ends = np.flatnonzero(terminated | block.truncated[i])
        for start, stop in zip([0, *(ends + 1)], [*(ends + 1), REFERENCE_STEPS], strict=True):
            part = rewards[start:stop]
            n = evaluation.n_known(part, bool(stop > start and terminated[stop - 1]), gamma)
            states.append(block.observations[i, start : start + n])
            returns.append(discounted(part, gamma)[:n])
    every, known = np.concatenate(states), np.concatenate(returns)
    if len(known) < 2:
        return None
    chosen = np.linspace(0, len(known) - 1, min(REFERENCE_STATES, len(known))).astype(np.int64)
    return _Reference(np.ascontiguousarray(every[chosen]), known[chosen])


# --- fits -------------------------------------------------------------------------------------------------------------


#: Settings of a fit that say which rows and columns there are; the others do not change what is read.
READING = ("target", "features", "ignore", "delimiter", "missing", "missing_words", "one_hot", "dates", "date_format",
           "loss", "validation", "seed")  # fmt: skip


def _examples(path: str, settings: FitSettings) -> TableData:
    return _read(path, json.dumps({name: settings.as_dict()[name] for name in READING}))


@lru_cache(maxsize=4)
def _read(path: str, settings: str) -> TableData:
    return read_examples(Path(path), FitSettings.from_dict(json.loads(settings)), lambda sentence: None)


def _fit(cell: Cell, wanted: Wanted) -> tuple[dict[str, float], np.ndarray, list[dict[str, float]]]:
    settings = FitSettings.from_dict(cell.settings)
    path = Path(cell.settings["data"])
    data = _examples(str(path), settings)
    with tempfile.TemporaryDirectory() as folder:
        result = fit_table(data, path, Path(folder), settings, progress=False, notice=lambda sentence: None)
    if result.interrupted:
        raise KeyboardInterrupt
    history = result.history
    name = "loss" if data.validation is None else "validation_loss"
    curve = np.stack([history["epoch"], history[name]])
    last = history.best_loss if settings.early_stopping is not None else curve[1, -1]  # of the weights that are kept
    return {name: float(last), "epochs": float(history.epoch)}, curve, history.rows if wanted.points else []
