"""A run from start to end, whatever learns in it: settings, folder, log, checkpoints, interruptions, resume.

What differs between kinds of runs is a class of its own with a few methods: see `Run`.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from valueapprox import checkpoint
from valueapprox.agents import provenance
from valueapprox.agents.callbacks import Callback, Point, stop_at_return
from valueapprox.agents.checked import fault_of
from valueapprox.agents.report import EPISODES_FILE, LAST_EPISODES, Episodes, Report, Status, read_episodes
from valueapprox.agents.settings import RunSettings, resumed_settings
from valueapprox.checkpoint import CheckpointError
from valueapprox.cli.terminal import command
from valueapprox.files import LOCK_FILE, FolderLock
from valueapprox.interrupts import PATIENCE, Stop, Stopped, interruptible, watched
from valueapprox.seeding import seed_for
from valueapprox.telemetry import MemoryLog, RunLog, hold

if TYPE_CHECKING:
    from valueapprox.agents.evaluation import MonteCarlo, Recording, Returns

__all__ = ["BEST_FILE", "CHECKPOINT_FILE", "KINDS", "Run"]

CHECKPOINT_FILE = "checkpoint.npz"
BEST_FILE = "best.npz"  # the checkpoint of the best evaluation, where there are any
SETTINGS_FILE = "settings.json"
NORMS_EVERY = 64  # updates between two whose norms are measured: costs 2 to 3 %
LOG_POINTS = 50  # of a run, by default
#: The first charts in TensorBoard, which puts those of all runs that have the same tags into one.
LEARNED_CHARTS = {
    "return": ["episode/return", "evaluation/return"],
    "TD error": ["(value|critic)/td_error/rms"],
    "steps per second": ["time/steps_per_second"],
}
HISTOGRAM_POINTS = 10  # of a run, at which its weights are drawn

S = TypeVar("S", bound=RunSettings)

# --- the folder -----------------------------------------------------------------------------------------------------


def _check_fresh(folder: Path) -> None:
    """Raise FileExistsError if a fresh run's folder holds something."""
    if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; choose another --run-dir, or --resume {folder}")


def _checkpoint_stamp(folder: Path) -> tuple[int, ...]:
    """What tells the checkpoint in a run's folder from any other that takes its place; () if there is none."""
    with contextlib.suppress(OSError):
        status = (folder / CHECKPOINT_FILE).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return ()


# --- the run --------------------------------------------------------------------------------------------------------


#: Every kind of run, by the kind of its checkpoints.
KINDS: dict[str, type[Run[Any]]] = {}


class Run(ABC, Generic[S]):
    """One run in a folder.

    A kind of run gives `Settings` and the abstract methods.

    Parameters
    ----------
    settings
        What to learn; with `resume`, None for those of the run, or the same ones with more steps: the resumed run is
        then the longer one with the same `schedule_steps`, bit for bit. Other `schedule_steps` change the plan.
    folder
        Where log, settings and checkpoint lie. A fresh run wants a folder without a run in it. None for a run that only
        `measure` trains, in memory.
    resume
        Continue from the folder's checkpoint.
    compiled
        Run compiled worlds in compiled loops. False takes Gymnasium's, for comparison: the same bits.
    notice
        Called with a sentence when something noteworthy happens.

    Raises
    ------
    ValueError
        If a setting makes no sense. Nothing has been written then.
    FileExistsError
        If a fresh run's folder holds a run.
    CheckpointError
        If there is nothing to resume, or it is damaged.
    """

    Settings: ClassVar[type[Any]]
    #: Whether each episode is a line of `EPISODES_FILE`.
    lists_episodes: ClassVar[bool] = False
    #: How actions can be chosen in an evaluation; the first one is that of evaluations while the run learns.
    ways: ClassVar[tuple[str, ...]] = ("",)
    #: Error against the true values, where they are known.
    value_error: float | None = None

    def __init_subclass__(cls) -> None:
        if "Settings" in vars(cls):  # and not a base of several kinds
            KINDS[cls.Settings.kind] = cls

    def __init__(
        self,
        settings: S | None,
        folder: str | Path | None,
        *,
        resume: bool = False,
        compiled: bool = True,
        notice: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.folder, self.in_memory = Path(folder or ""), folder is None
        self.notice, self.resumed, self.compiled = notice, resume, compiled
        self._stamp = () if self.in_memory else _checkpoint_stamp(self.folder)
        self.step = self.logged = self.evaluated = self.concluded = 0
        self.best = -math.inf  # score of the best evaluation
        self.stopped = ""  # why a callback has ended it
        self._every = 0
        self.patience = PATIENCE
        self._progress: Callable[[Status], None] = lambda status: None
        self._write_episode: Callable[[dict[str, Any]], object] = lambda line: None
        self._clock = (time.monotonic(), 0)  # when learning began, evaluations taken off, and at which step
        self.remarks: list[str] = []  # for the log
        if resume:
            path = self.folder / CHECKPOINT_FILE
            stored, arrays, meta = self._read(path)
            self.settings: S = resumed_settings(settings, stored, notice)
        else:
            assert settings is not None, "a fresh run has settings"
            settings.check()
            self.settings = settings.chosen()
            if not self.in_memory:
                _check_fresh(self.folder)
        self.settings.check()
        self.episodes = Episodes(self.n_envs)
        if resume:
            try:
                self.step, self.logged = int(meta["step"]), int(meta["logged"])
                self.evaluated, best = int(meta.get("evaluated", 0)), meta.get("best")
                self.concluded = int(meta.get("concluded", 0))
                self.best = self.best if best is None else float(best)
                self.stopped = str(meta.get("stopped", ""))
                self.episodes.running[:] = arrays["episodes/running"].reshape(self.episodes.running.shape)
                self.episodes.finished[:] = arrays["episodes/finished"]
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(path, error) from None
            lines = read_episodes(self.folder, self.step)[-LAST_EPISODES:]
            self.episodes.last_returns.extend(line["return"] for line in lines)
            self._prepare(stored, arrays, meta)
        else:
            self._prepare(None, {}, {})

    # --- what a kind of run says --------------------------------------------------------------------------------------

    @property
    def n_envs(self) -> int:
        """How many environments it learns from."""
        return 1

    @abstractmethod
    def _prepare(self, stored: S | None, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Make learner and environment, anew or (with `stored` settings) as a checkpoint has them."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and description of all that goes on after a resume."""

    def close(self) -> None:
        """Let go of what a run that will not be trained holds."""

    def _connect(self, stack: contextlib.ExitStack, n_workers: int, ray_address: str | None) -> None:
        """Load kernels and connect to Ray, for those kinds of runs that have workers; `stack` ends it."""
        if n_workers:
            raise ValueError(f"workers is {n_workers}; expected 0, as a {self.settings.kind} has one environment")

    @abstractmethod
    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Start what brings experience; `stack` ends it. No file is written yet."""

    @abstractmethod
    def _advance(self, limit: int) -> dict[str, float]:
        """Learn from the next transitions, at most `limit`, and count them; returns what the progress bar shows."""

    @property
    def _whole(self) -> bool:
        """Whether no part of a step, or of a block, has been learned: only then can a checkpoint be written."""
        return True

    @abstractmethod
    def _diagnostics(self) -> dict[str, float]:
        """Values for the log, by tag."""

    @abstractmethod
    def _weights(self) -> dict[str, np.ndarray]:
        """The weights of each layer, by tag."""

    @abstractmethod
    def _evaluate(
        self, way: str, n_episodes: int, seed: int, recording: Recording | None, progress: Callable[[int], None]
    ) -> Returns | MonteCarlo:
        """Evaluate in fresh episodes what was learned so far, choosing actions in one of the `ways`."""

    @abstractmethod
    def _charts(self) -> dict[str, dict[str, list[str]]]:
        """The layout of charts in TensorBoard."""

    def _document(self) -> dict[str, Any]:
        """The settings for a person to read."""
        return asdict(self.settings)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, name: str = CHECKPOINT_FILE) -> None:
        """Write a checkpoint from which the run goes on bit for bit."""
        arrays, description = self._state()
        arrays |= {"episodes/running": self.episodes.running, "episodes/finished": self.episodes.finished}
        numbers = {"settings": asdict(self.settings), "step": self.step, "logged": self.logged}
        if self.stopped:
            numbers |= {"stopped": self.stopped}
        if self.concluded:
            numbers |= {"concluded": self.concluded}
        if self.evaluated:
            numbers |= {"evaluated": self.evaluated, "best": self.best if math.isfinite(self.best) else None}
        checkpoint.save(self.folder / name, arrays, {"kind": self.settings.kind, **description, **numbers})
        self._stamp = _checkpoint_stamp(self.folder)

    @classmethod
    def stored_settings(cls, folder: str | Path) -> S:
        """What the run in a folder was started with, or CheckpointError."""
        return cls._read(Path(folder) / CHECKPOINT_FILE)[0]

    @classmethod
    def _read(cls, path: Path) -> tuple[S, dict[str, np.ndarray], dict[str, Any]]:
        arrays, meta = checkpoint.load(path)
        return cls._settings_of(path, meta), arrays, meta

    @classmethod
    def _settings_of(cls, path: Path, meta: Mapping[str, Any]) -> S:
        if meta.get("kind") != cls.Settings.kind:
            raise cls._damaged(path, f"its kind is {meta.get('kind')}")
        try:
            found: S = cls.Settings.from_dict(meta["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise cls._damaged(path, error) from None
        return found

    @classmethod
    def _damaged(cls, path: Path, error: Exception | str) -> CheckpointError:
        return CheckpointError(f"{path} is no checkpoint of a {cls.Settings.kind} ({error!r})")

    def _save_in_spite_of(self, error: BaseException, save: Callable[[], None]) -> None:
        """Save a run that an error ends, and say how it can go on."""
        try:
            save()
        except OSError as another:
            self.notice(f"what was learned since the last checkpoint cannot be saved ({another})")
        else:
            env = self.settings.env
            why = f"{env} was left behind" if isinstance(error, KeyboardInterrupt) else "there was an error"
            self.notice(
                f"{why}; what was learned up to step {self.step:,} is saved. To continue: "
                f"{command('train.py', '--resume', self.folder)}"
            )

    def _remark(self, sentence: str) -> None:
        """Say it, now and in the log."""
        self.notice(sentence)
        self.remarks.append(sentence)

    # --- learning -----------------------------------------------------------------------------------------------------

    def train(
        self,
        n_workers: int = 0,
        *,
        ray_address: str | None = None,
        checkpoint_every: float = 30.0,
        patience: float = PATIENCE,
        callbacks: Sequence[Callback] = (),
        episodes: int = 0,
        recording: Recording | None = None,
        command: str = "",
        progress: Callable[[Status], None] = lambda status: None,
    ) -> Report:
        """Learn until the run's steps are done, or until Ctrl-C, SIGTERM or SIGHUP; all end with a checkpoint.

        So does an error of the environment, which is raised once what was learned is saved. Learning that diverges is
        not saved: the last checkpoint stands.

        Parameters
        ----------
        n_workers
            Ray workers that collect experience, where the kind of run has such; 0 collects in this process. The
            weights do not depend on it.
        ray_address
            Address of a Ray cluster; None starts one on this machine.
        checkpoint_every
            Seconds between two checkpoints.
        patience
            Seconds after which an environment, or a Ray worker, that does not answer ends the run; 0 for no limit. A
            worker's first block may take five times as long, others ten times as long as the slowest before.
        callbacks
            Called at every point of the log, with a `Point`; see `valueapprox.agents.callbacks`. One that returns
            something true ends the run here.
        episodes
            Fresh episodes in which what was learned is evaluated at the end; 0 for none.
        recording
            Of the first of these episodes, where the environment can be drawn.
        command
            What was typed to start it, for its record (`provenance.PROVENANCE_FILE`).
        progress
            Called after every block, or some ten times a second, and after each episode of an evaluation.

        Raises
        ------
        TimeoutError
            If an environment hangs, or Ray's workers do not start or do not answer.
        """
        self._started, self._first_step_after, self.patience = time.monotonic(), math.nan, patience
        self._clock, self._progress, self.stopped = (self._started, self.step), progress, ""
        self._command = command
        self._callbacks = list(callbacks)
        for callback in self._callbacks:
            if not callable(callback):
                raise TypeError(f"a callback is {callback!r}; expected a function that takes a Point")
        if (target := getattr(self.settings, "stop_at", None)) is not None:
            self._callbacks.append(stop_at_return(target))
        with contextlib.ExitStack() as files, contextlib.ExitStack() as stack:
            lock = files.enter_context(self._hold_again()) if self.resumed else None
            self._connect(stack, n_workers, ray_address)
            stop = stack.enter_context(interruptible())
            self._begin(stack)
            if lock is None:
                lock = files.enter_context(self._hold_fresh())
            log = files.enter_context(self._open_log(lock))
            flush_episodes = files.enter_context(self._open_episodes())

            def save() -> None:
                log.flush()
                flush_episodes()
                self.save()

            self._clock = (time.monotonic(), self.step)
            try:
                interrupted = self._learn(log, stop, save, checkpoint_every)
            except (Exception, KeyboardInterrupt) as error:
                # Not what diverged, nor what an interruption has left half done: the last checkpoint stands.
                if isinstance(error, FloatingPointError) or not self._whole:
                    raise
                self._save_in_spite_of(error, save)
                if not (stop.is_set() and isinstance(error, KeyboardInterrupt)):
                    raise
                interrupted = stop.number
            seconds, rate = self.seconds, self._rate()
            save()
            stack.close()  # workers, and the wish to save first, end with learning
            results: dict[str, Returns | MonteCarlo] = {}
            if not interrupted:  # an interrupted run logs no point that an uninterrupted one would not have
                results = self._evaluate_at_the_end(episodes, recording)
                new = self.step > self.concluded  # not of a finished run that is evaluated once more
                self.concluded = self.step if results else self.concluded
                self._log(log, results if new else {}, last=True)
                if new and recording is not None and recording.frames:
                    log.film("policy", recording.gif(), recording.frames[0].size, self.step)
                log.hparams_done()
                save()
        return Report(
            self.folder,
            self.step,
            interrupted,
            self.stopped,
            seconds,
            rate,
            self._first_step_after,
            len(read_episodes(self.folder)) if self.lists_episodes else None,
            self.episodes.mean_return(),
            self.value_error,
            results,
        )

    def measure(
        self, callbacks: Sequence[Callback] = (), every: int = 0, patience: float = PATIENCE
    ) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
        """Learn all steps without a folder: (what is logged, point by point, and the episodes), as `train` writes them.

        `every`: steps between two points of the log, if not the settings' own; the numbers do not depend on it.

        Raises
        ------
        KeyboardInterrupt
            If the process is asked to end meanwhile.
        """
        log, episodes = MemoryLog(), list[dict[str, Any]]()
        self._started, self._first_step_after, self.patience = time.monotonic(), math.nan, patience
        self._callbacks, self._write_episode, self._every = list(callbacks), episodes.append, every
        if (target := getattr(self.settings, "stop_at", None)) is not None:
            self._callbacks.append(stop_at_return(target))
        with contextlib.ExitStack() as stack:
            self._connect(stack, 0, None)
            self._begin(stack)
            self._clock = (time.monotonic(), self.step)
            if self._learn(log, stack.enter_context(interruptible()), lambda: None, math.inf):
                raise KeyboardInterrupt
            self._log(log, last=True)
        return log.points, episodes

    @property
    def seconds(self) -> float:
        """Time of learning, without evaluations."""
        return time.monotonic() - self._clock[0]

    def _learn(self, log: RunLog | MemoryLog, stop: Stop, save: Callable[[], None], checkpoint_every: float) -> int:
        """Returns the signal that ended it too early, or 0."""
        steps, last_save = self.settings.steps, time.monotonic()
        every = [n for n in (self._log_every, self.settings.eval_every) if n]
        try:
            if self.step < steps:
                self._log(log)  # what fell due where the run was interrupted
            while self.step < steps and not self.stopped:
                shown = self._advance(min(steps - self.step, *(n - self.step % n for n in every)))
                if math.isnan(self._first_step_after):
                    self._first_step_after = time.monotonic() - self._started
                if self.step < steps:
                    self._log(log)
                if stop.number != signal.SIGHUP:  # then there is no terminal
                    self._progress(Status(self.step, steps, self._rate(), shown))
                if stop.is_set():
                    return stop.number if self.step < steps else 0
                if time.monotonic() - last_save > checkpoint_every:
                    save()
                    last_save = time.monotonic()
        except Stopped:
            return stop.number
        return 0

    def _rate(self) -> float:
        """Steps per second since the kernels were loaded."""
        return (self.step - self._clock[1]) / max(time.monotonic() - self._clock[0], 1e-9)

    @property
    def _log_every(self) -> int:
        return self._every or self.settings.log_every or max(1, self.settings.steps // LOG_POINTS)

    def _is_due(self, every: int, last: int) -> bool:
        """Whether a multiple of `every` lies between the step at which something was done last and this one."""
        return every > 0 and self.step // every > last // every

    def _log(
        self,
        log: RunLog | MemoryLog,
        results: Mapping[str, Returns | MonteCarlo] | None = None,
        last: bool = False,
    ) -> None:
        """Log what falls due at this step, and let callbacks have their say; at the last one everything is due."""
        every = self.settings.eval_every
        due = self._is_due(every, self.evaluated) or (last and every and self.step > self.evaluated)
        evaluation = self._evaluate_now() if due else None
        point = self._is_due(self._log_every, self.logged) or (last and self.step > self.logged)
        values = {f"evaluation/{tag}": number for tag, number in evaluation.tags().items()} if evaluation else {}
        if point:
            values |= {tag: float(number) for tag, number in self._diagnostics().items()}
            values |= {**self.episodes.take(), "time/steps_per_second": self._rate()}
        for way, result in (results or {}).items():
            values |= {"/".join(filter(None, ("final", way, tag))): number for tag, number in result.tags().items()}
        if point or evaluation is not None:
            for callback in self._callbacks:
                if reason := callback(Point(self, values, evaluation)):
                    self.stopped = self.stopped or (reason if isinstance(reason, str) else "a callback has ended it")
        if values:
            log.scalars(self.step, values)
        if point and self._is_due(max(1, self.settings.steps // HISTOGRAM_POINTS), self.logged):
            log.histograms(self.step, self._weights())
        if values:
            self.logged = self.step

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, n_episodes: int = 20, seed: int | None = None) -> Returns | MonteCarlo:
        """Evaluate what is learned so far in fresh episodes, in an environment of their own; it changes nothing.

        Without a seed, they begin with other states at every step of the run.
        """
        seed = seed_for(self.settings.seed, "evaluation", self.step) if seed is None else seed
        return self._timed(self.ways[0], n_episodes, seed, None)

    def _timed(self, way: str, n_episodes: int, seed: int, recording: Recording | None) -> Returns | MonteCarlo:
        """`_evaluate`, watched, and without counting its time as learning."""
        begun = time.monotonic()
        try:
            with watched(self.settings.env, self.patience):
                return self._evaluate(way, n_episodes, seed, recording, self._episode_is_done(n_episodes))
        finally:
            self._clock = (self._clock[0] + time.monotonic() - begun, self._clock[1])

    def _episode_is_done(self, n_episodes: int) -> Callable[[int], None]:
        def show(done: int) -> None:
            self._progress(Status(self.step, self.settings.steps, self._rate(), {}, (done, n_episodes)))

        return show

    def _evaluate_now(self) -> Returns | MonteCarlo | None:
        """The evaluation that falls due, its checkpoint kept if it is the best so far."""
        result = None
        try:
            result = self.evaluate(self.settings.eval_episodes)
        except ValueError as error:
            if fault_of(error) is not None:
                raise
            self.notice(f"no evaluation at step {self.step:,}: {error}")
        self.evaluated = self.step
        if result is not None and result.score > self.best:
            self.best = result.score
            if not self.in_memory:
                self.save(BEST_FILE)
        return result

    def _evaluate_at_the_end(self, n_episodes: int, recording: Recording | None) -> dict[str, Returns | MonteCarlo]:
        results = {}
        for way in self.ways if n_episodes else ():
            try:
                results[way] = self._timed(way, n_episodes, 1, recording if way == self.ways[0] else None)
            except ValueError as error:
                if fault_of(error) is not None:
                    raise
                self.notice(f"no evaluation: {error}")
        return results

    # --- files --------------------------------------------------------------------------------------------------------

    def _hold_fresh(self) -> FolderLock:
        """Make the folder and hold it, or raise FileExistsError without having changed anything."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = hold(self.folder, self.notice)
        try:
            _check_fresh(self.folder)  # another process may have begun a run there since the first look
        except BaseException:
            lock.close()
            raise
        return lock

    def _hold_again(self) -> FolderLock:
        """Hold the folder of a run whose checkpoint was read, or raise FileExistsError."""
        lock = hold(self.folder, self.notice)
        if _checkpoint_stamp(self.folder) != self._stamp:
            lock.close()
            raise FileExistsError(f"another process has continued the run in {self.folder} meanwhile; resume it again")
        return lock

    def _open_log(self, lock: FolderLock) -> RunLog:
        settings = json.dumps(self._document(), indent=2)
        checkpoint.write_whole(self.folder / SETTINGS_FILE, lambda file: file.write(settings.encode()))
        log = RunLog(self.folder, self.logged if self.resumed else None, lock=lock)
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        for n, remark in enumerate(self.remarks):
            log.text(f"resumed at step {self.step}/{n}", remark, self.step)
        origin = provenance.add(self.folder, self.step, self._command)
        log.text(f"started at step {self.step}", f"```json\n{json.dumps(origin, indent=2)}\n```", self.step)
        if not self.resumed:
            log.text("settings", f"```json\n{settings}\n```")
            log.layout(self._charts())
            log.hparams(asdict(self.settings))
            self.save()
        return log

    @contextlib.contextmanager
    def _open_episodes(self) -> Iterator[Callable[[], None]]:
        """The file of episodes, without those that a resume forgets; gives what writes all of it down."""
        if not self.lists_episodes:
            yield lambda: None
            return
        path = self.folder / EPISODES_FILE
        kept = "".join(json.dumps(line) + "\n" for line in read_episodes(self.folder, self.step))
        checkpoint.write_whole(path, lambda file: file.write(kept.encode()))
        with path.open("a", encoding="utf-8") as file:
            self._write_episode = lambda line: file.write(json.dumps(line) + "\n")
            yield file.flush

    def _add_episode(self, step: int, total: float, length: float) -> None:
        """Note an episode that ended at a step."""
        self._write_episode({"step": step, "return": total, "length": int(length)})
        self.episodes.add(total, length)
