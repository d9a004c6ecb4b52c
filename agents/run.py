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
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from valueapprox import checkpoint
from valueapprox.agents.settings import RunSettings, resumed_settings
from valueapprox.checkpoint import CheckpointError
from valueapprox.checks import one_of
from valueapprox.cli.terminal import command
from valueapprox.files import LOCK_FILE, FolderLock
from valueapprox.interrupts import PATIENCE, Stop, Stopped, interruptible
from valueapprox.telemetry import RunLog, hold

__all__ = ["CHECKPOINT_FILE", "EPISODES_FILE", "KINDS", "Report", "Run", "Status", "read_episodes"]

CHECKPOINT_FILE = "checkpoint.npz"
SETTINGS_FILE = "settings.json"
EPISODES_FILE = "episodes.jsonl"
NORMS_EVERY = 64  # updates between two whose norms are measured: costs about 1 %
LOG_POINTS = 50  # of a run, by default
LAST_EPISODES = 100  # whose mean return is shown
NORM_CHARTS = {
    "gradient norm per layer": "grad_norm/.*",
    "trace norm per layer": "trace_norm/.*",
    "update / weight norm per layer": "update_ratio/.*",
    "weight norm per layer": "weight_norm/.*",
}


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


def read_episodes(folder: str | Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The run's episodes that ended by a step, in order: {"step": ..., "return": ..., "length": ...}."""
    path = Path(folder) / EPISODES_FILE
    if not path.exists():
        return []
    # a crash may have left half a line at the end
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [episode for episode in map(json.loads, lines) if episode["step"] <= last_step]


def lost_wrappers(env: str, names: list[str]) -> str:
    """What is said of wrappers that nobody can save."""
    what = ", ".join(names)
    return f"what the wrapper{'s' * (len(names) > 1)} {what} of {env} kept, such as running statistics, was not saved"


# --- the run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What a progress bar shows."""

    step: int
    steps: int
    steps_per_second: float
    shown: dict[str, float]  # by the words before them


@dataclass(frozen=True)
class Report:
    """How a run ended."""

    folder: Path
    step: int
    interrupted: int  # by which signal; 0: not
    seconds: float
    steps_per_second: float
    first_step_after: float  # seconds; NaN if nothing was learned
    n_episodes: int | None  # in all of the run's steps; None where episodes are not listed
    mean_return: float | None  # of the last `LAST_EPISODES`
    value_error: float | None  # where the true values are known


class Episodes:
    """Undiscounted return and length of running episodes, and what the log wants of finished ones."""

    def __init__(self, n: int = 1) -> None:
        self.running = np.zeros((n, 2))
        self.finished = np.zeros(3)  # since the last log: number, sum of returns, sum of lengths
        self.last_returns: deque[float] = deque(maxlen=LAST_EPISODES)

    def add(self, total: float, length: float) -> None:
        """Count an episode that has ended."""
        self.finished += 1.0, total, length
        self.last_returns.append(total)

    def mean_return(self) -> float | None:
        """Mean return of the last episodes."""
        return sum(self.last_returns) / len(self.last_returns) if self.last_returns else None

    def take(self) -> dict[str, float]:
        """Their means since the last log, by tag."""
        number, returns, lengths = map(float, self.finished)
        self.finished[:] = 0.0
        return {"episode/return": returns / number, "episode/length": lengths / number} if number > 0 else {}


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
        Where log, settings and checkpoint lie. A fresh run wants a folder without a run in it.
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
    #: Error against the true values, where they are known.
    value_error: float | None = None

    def __init_subclass__(cls) -> None:
        KINDS[cls.Settings.kind] = cls

    def __init__(
        self,
        settings: S | None,
        folder: str | Path,
        *,
        resume: bool = False,
        compiled: bool = True,
        notice: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.folder, self.notice, self.resumed, self.compiled = Path(folder), notice, resume, compiled
        self._stamp = _checkpoint_stamp(self.folder)
        self.step = self.logged = 0
        self.remarks: list[str] = []  # for the log
        if resume:
            path = self.folder / CHECKPOINT_FILE
            stored, arrays, meta = self._read(path)
            self.settings: S = resumed_settings(settings, stored, notice)
        else:
            assert settings is not None, "a fresh run has settings"
            settings.check()
            self.settings = settings.chosen()
            _check_fresh(self.folder)
        self.settings.check()
        self.episodes = Episodes(self.n_envs)
        if resume:
            try:
                self.step, self.logged = int(meta["step"]), int(meta["logged"])
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
    def _charts(self) -> dict[str, dict[str, list[str]]]:
        """The layout of charts in TensorBoard."""

    def _document(self) -> dict[str, Any]:
        """The settings for a person to read."""
        return asdict(self.settings)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint from which the run goes on bit for bit."""
        arrays, description = self._state()
        arrays |= {"episodes/running": self.episodes.running, "episodes/finished": self.episodes.finished}
        numbers = {"settings": asdict(self.settings), "step": self.step, "logged": self.logged}
        checkpoint.save(self.folder / CHECKPOINT_FILE, arrays, {"kind": self.settings.kind, **description, **numbers})
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
        progress
            Called after every block, or some ten times a second.

        Raises
        ------
        TimeoutError
            If an environment hangs, or Ray's workers do not start or do not answer.
        """
        self._started, self._first_step_after, self.patience = time.monotonic(), math.nan, patience
        self._clock = (self._started, self.step)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(self._hold_again()) if self.resumed else None
            self._connect(stack, n_workers, ray_address)
            stop = stack.enter_context(interruptible())
            self._begin(stack)
            if lock is None:
                lock = stack.enter_context(self._hold_fresh())
            log = stack.enter_context(self._open_log(lock))
            episodes = stack.enter_context(self._open_episodes())

            def save() -> None:
                log.flush()
                episodes()
                self.save()

            self._clock = (time.monotonic(), self.step)
            try:
                interrupted = self._learn(log, stop, save, checkpoint_every, progress)
            except (Exception, KeyboardInterrupt) as error:
                # Not what diverged, nor what an interruption has left half done: the last checkpoint stands.
                if isinstance(error, FloatingPointError) or not self._whole:
                    raise
                self._save_in_spite_of(error, save)
                if not (stop.is_set() and isinstance(error, KeyboardInterrupt)):
                    raise
                interrupted = stop.number
            rate = self._rate()
            if not interrupted:
                self._log(log)  # an interrupted run logs no point that an uninterrupted one would not have
            save()
        return Report(
            self.folder,
            self.step,
            interrupted,
            time.monotonic() - self._clock[0],
            rate,
            self._first_step_after,
            len(read_episodes(self.folder)) if self.lists_episodes else None,
            self.episodes.mean_return(),
            self.value_error,
        )

    def _learn(
        self,
        log: RunLog,
        stop: Stop,
        save: Callable[[], None],
        checkpoint_every: float,
        progress: Callable[[Status], None],
    ) -> int:
        """Returns the signal that ended it too early, or 0."""
        steps, last_save = self.settings.steps, time.monotonic()
        log_every = self.settings.log_every or max(1, steps // LOG_POINTS)
        while self.step < steps:
            try:
                shown = self._advance(min(steps - self.step, log_every - self.step % log_every))
            except Stopped:
                return stop.number
            if math.isnan(self._first_step_after):
                self._first_step_after = time.monotonic() - self._started
            if self.step // log_every > self.logged // log_every:
                self._log(log)
            if stop.number != signal.SIGHUP:  # then there is no terminal
                progress(Status(self.step, steps, self._rate(), shown))
            if stop.is_set():
                return stop.number if self.step < steps else 0
            if time.monotonic() - last_save > checkpoint_every:
                save()
                last_save = time.monotonic()
        return 0

    def _rate(self) -> float:
        """Steps per second since the kernels were loaded."""
        return (self.step - self._clock[1]) / max(time.monotonic() - self._clock[0], 1e-9)

    def _log(self, log: RunLog) -> None:
        if self.step == self.logged:
            return
        values = {tag: float(number) for tag, number in self._diagnostics().items()}
        log.scalars(self.step, {**values, **self.episodes.take(), "time/steps_per_second": self._rate()})
        self.logged = self.step

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
        if not self.resumed:
            log.text("settings", f"```json\n{settings}\n```")
            log.layout(self._charts())
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
        with path.open("a", encoding="utf-8") as self._episodes_file:
            yield self._episodes_file.flush

    def _add_episode(self, step: int, total: float, length: float) -> None:
        """Note an episode that ended at a step."""
        line = {"step": step, "return": total, "length": int(length)}
        self._episodes_file.write(json.dumps(line) + "\n")
        self.episodes.add(total, length)


def norm_charts(name: str, **further: list[str]) -> dict[str, list[str]]:
    """The charts of a network whose tags begin with a name: its norms, and further ones."""
    return {title: [f"{name}/{tag}"] for title, tag in NORM_CHARTS.items()} | {
        title.replace("_", " "): tags for title, tags in further.items()
    }


def kind_of(path: Path) -> type[Run[Any]]:
    """The kind of run that a checkpoint file is of, or CheckpointError."""
    kind = checkpoint.load(path).meta.get("kind")
    try:
        return KINDS[one_of("kind", str(kind), KINDS)]
    except ValueError:
        raise CheckpointError(f"{path} is no checkpoint of a run (its kind is {kind})") from None
