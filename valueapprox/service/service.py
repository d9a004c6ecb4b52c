"""Service: one learner that many threads feed and read, with a journal, so that no acknowledged transition is lost.

Requests to learn wait in a queue for one thread, the writer. It takes all that wait as one group: what is to be learned
goes to the journal and is forced to disk, then it is learned, then the weights are published, then the requests are
answered. Readers use the weights that were published last and wait for nobody.

What is learned depends on the order of the journal and on nothing else: the last checkpoint and the journal behind it
give the same weights again, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint as files
from valueapprox.checkpoint import CheckpointError
from valueapprox.checks import as_floats, as_numbers
from valueapprox.files import FolderLock
from valueapprox.nn.network import Network
from valueapprox.service.journal import COPIES, Journal, JournalError, owner, read
from valueapprox.service.messages import (
    DIVERGED,
    DUPLICATE,
    GAP,
    LEARNED,
    Closed,
    Gradients,
    InvalidTransitions,
    LearnResult,
    Norms,
    Plan,
    QueueFull,
    ReadOnly,
    ServiceError,
    ServiceSettings,
    StorageError,
    Transitions,
    Values,
    Weights,
    decode,
    encode,
    encode_weights,
    without_gap,
)
from valueapprox.td import kernels as td
from valueapprox.td.predictions import Predictions
from valueapprox.td.value_function import ValueFunction

__all__ = ["Service"]

CHECKPOINT, LOCK = "checkpoint.npz", "lock"  # in the folder, beside the journal
RETRY_SECONDS = 10.0  # until a checkpoint that failed is tried again
DIAGNOSTICS_SECONDS = 1.0
LEARNS = ("net", "optimizer", "discounts", "lams", "names", "separate")  # settings that a folder does not change


class Snapshot(NamedTuple):
    """What readers see: replaced as a whole, and never written to."""

    version: int
    w: np.ndarray  # (m, P)


class Job(NamedTuple):
    """What waits for the writer: transitions, or something to do between two groups."""

    future: Future[Any]
    batch: Transitions | None = None
    action: Callable[[], Any] | None = None


class Streams:
    """The streams that are known by name: the last sequence number of each, and which traces belong to whom.

    There are `places` traces. When a further stream wants one, the stream that was used least recently gives its own
    up; it starts again with a trace of zero. Which one that is depends only on what was learned before.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.last: dict[str, int] = {}
        self.traces: OrderedDict[str, int] = OrderedDict()  # name -> place, least recently used first
        self.free = list(range(places - 1, -1, -1))

    def plan(
        self, batch: Transitions, new: dict[str, int], cut_gaps: bool, most: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare numbers with those that came before: (status, expected, cut), each (n,).

        LEARNED means: to be learned. `new` holds the last numbers of streams in this group, beside those that are
        known already, and is brought up to date.
        """
        n = len(batch)
        status, expected = np.full(n, LEARNED, np.uint8), np.full(n, -1, np.int64)
        cut = np.zeros(n, np.bool_)
        used = np.zeros(1, np.int64) if len(batch.names) == 1 else np.unique(batch.stream)
        unknown = sum(batch.names[i] not in self.last and batch.names[i] not in new for i in used) if n else 0
        if unknown and len(self.last.keys() | new.keys()) + unknown > most:
            raise InvalidTransitions(
                "stream", f"{most} streams are known, as many as max_known_streams allows; no further one is taken"
            )
        order = None if len(used) == 1 else np.argsort(batch.stream, kind="stable")
        start = 0
        for i in used if n else ():
            name = batch.names[i]
            if order is None:
                rows = np.arange(n)
            else:
                stop = int(np.searchsorted(batch.stream, i, "right", sorter=order))
                rows, start = order[start:stop], stop
            numbers = batch.sequence[rows]
            last = new.get(name, self.last.get(name))
            first = int(numbers[0])
            if (last is None or first == last + 1) and (np.diff(numbers) == 1).all():
                new[name] = int(numbers[-1])
                continue
            blocked = False
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                if last is None or (number == last + 1 and not blocked):
                    last = number
                elif number <= last:
                    status[row] = DUPLICATE
                elif cut_gaps:
                    cut[row], last = True, number
                else:
                    blocked, status[row], expected[row] = True, GAP, last + 1
            if last is not None:
                new[name] = last
        return status, expected, cut

    def take_places(self, names: list[str]) -> tuple[dict[str, int], set[str]]:
        """Places for at most `places` different streams, and those among them whose trace starts at zero."""
        taken: dict[str, int] = {}
        fresh: set[str] = set()
        wanted = set(names)
        for name in names:
            if name in self.traces:
                self.traces.move_to_end(name)
            else:
                fresh.add(name)
                if not self.free:
                    oldest = next(other for other in self.traces if other not in wanted)
                    self.free.append(self.traces.pop(oldest))
                self.traces[name] = self.free.pop()
            taken[name] = self.traces[name]
        return taken, fresh

    def resized(self, places: int) -> Streams:
        """The same with another number of places; the least recently used streams lose theirs if it is smaller."""
        self_new = Streams(places)
        self_new.last = self.last
        kept = list(self.traces)[-places:]
        self_new.traces = OrderedDict((name, i) for i, name in enumerate(kept))
        self_new.free = list(range(places - 1, len(kept) - 1, -1))
        return self_new


class Service:
    """One learner, many threads; see the module. Use it as a context manager, or close it.

    Parameters
    ----------
    settings
        What it learns.
    folder
        Where journal and checkpoint lie. If they are there already, the service goes on from them. None: nothing is
        kept.
    weights
        Initial weights (P,) or (m, P) instead of those of `settings.seed`, where the folder holds none yet.

    Raises
    ------
    StorageError
        If another process has the folder.
    JournalError, CheckpointError
        If what lies in the folder is damaged.
    ValueError
        If what lies there was learned with another network, optimizer, discounts, lams, names or `separate`.

    Examples
    --------
    >>> service = Service(ServiceSettings(Network((2, 1), bias=False), discounts=(0.9,), scheme="zeros"))
    >>> service.learn(Transitions.of("plant", 0, [1, 0], 1.0, [0, 1])).td_errors
    array([[1.]])
    >>> service.learn(Transitions.of("plant", 0, [1, 0], 1.0, [0, 1])).duplicates
    1
    >>> service.values([[1, 0]])
    Values(values=array([[0.01]], dtype=float32), version=1)
    >>> service.close()
    """

    def __init__(
        self, settings: ServiceSettings, folder: str | Path | None = None, *, weights: ArrayLike | None = None
    ) -> None:
        self._start(settings, folder, weights, 0)

    @classmethod
    def open(cls, folder: str | Path, **changes: Any) -> Service:
        """Go on with what lies in `folder`; `changes` replace settings that say nothing about what is learned."""
        stored = _stored_settings(Path(folder) / CHECKPOINT)
        return cls(replace(stored, **changes), folder)

    @classmethod
    def from_checkpoint(cls, path: str | Path, folder: str | Path | None = None, **changes: Any) -> Service:
        """A service of a trained value function: the file of `ValueFunction.save`, a run's checkpoint, or a service's.

        Without a folder it is read-only. With one, learning begins there with these weights, fresh traces and a fresh
        optimizer; if the folder holds a service already, that one goes on and `path` is only compared with it.
        """
        path = Path(path)
        if path.is_dir():
            path = path / CHECKPOINT
        arrays, meta = files.load(path)
        if meta.get("kind") == "service":
            settings, w, version = _stored_settings(path), arrays["learner/w"], int(meta["version"])
        else:
            v = ValueFunction.load(path)
            if v.method != "td" and folder is not None:
                raise ValueError(f"{path} was learned by {v.method}; the service learns by TD(lambda) only")
            settings = ServiceSettings(v.net, v.optimizer, (v.gamma,), (v.lam,), ("value",))
            w, version = v.w[None], v.n_transitions
        settings = replace(settings, **{"read_only": folder is None, **changes})
        self = cls.__new__(cls)
        self._start(settings, folder, w, version)
        return self

    def _start(
        self,
        settings: ServiceSettings,
        folder: str | Path | None,
        weights: ArrayLike | None,
        version: int,
    ) -> None:
        self.settings, self.folder = settings, None if folder is None else Path(folder)
        self.notices: list[str] = []
        self._streams = Streams(settings.max_streams)
        self._version = version
        self._position = 0  # number of the next record of the journal: those before it are learned
        self._identity = b""  # of the service in the folder
        self._journal: Journal | None = None
        self._lock: FolderLock | None = None
        self._began = time.monotonic()
        self._counts = dict.fromkeys(("learned", "duplicates", "rejected", "diverged", "refused"), 0)
        self._storage_error = self._checkpoint_error = ""
        self._broken: BaseException | None = None
        self._checkpoint_version, self._checkpoint_time = -1, time.monotonic()
        self._journal_bytes = 0  # since the last checkpoint
        self._last_learned = 0.0
        if self.folder is None:
            self._begin(weights)
        else:
            self._lock = _hold(self.folder, self.notices.append)
            try:
                self._recover(weights)
            except BaseException:
                if self._journal is not None:
                    self._journal.close()
                self._lock.close()
                raise
        self._learner.sample_every = settings.sample_every
        self._diagnostics = self._learner.diagnostics()
        self._diagnosed = time.monotonic()
        self._pending = False  # sums since then
        self.net, self.names = settings.net, settings.names
        self.n_inputs, self.n_predictions = settings.net.n_inputs, len(settings.names)
        self._rate = 1e5  # transitions per second, a running guess for retry_after
        self._publish()
        self._warm_up()
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._waiting = 0  # transitions in the queue
        self._closing = False
        self._final_error: Exception | None = None
        self._writer = threading.Thread(target=self._write, name="valueapprox-writer", daemon=True)
        self._writer.start()

    # --- recovery and checkpoints -------------------------------------------------------------------------------------

    def _begin(self, weights: ArrayLike | None) -> None:
        self._learner = self.settings.learner()
        if weights is not None:
            self._learner.w = _finite(weights, self._learner.w)

    def _warm_up(self) -> None:
        """Compile, or load from the cache, what requests will call."""
        for n in (1, 2):
            self._learner.predict(np.zeros((n, self.n_inputs)))
        self._learner.input_gradients(np.zeros((1, self.n_inputs)))
        if not self.settings.read_only:
            small = Predictions(Network((1, 1), dtype=self.net.dtype))
            small.learn(0, np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))

    def _recover(self, weights: ArrayLike | None) -> None:
        """Bring the learner to where the last acknowledgement was: the checkpoint, and the journal behind it."""
        assert self.folder is not None
        settings, path = self.settings, self.folder / CHECKPOINT
        for pattern in (f".{CHECKPOINT}.*.tmp", ".journal-*.tmp"):
            for left in self.folder.glob(pattern):  # of a service that was killed while it wrote one
                left.unlink()
        known, marked = None, False
        if path.exists():
            known, marked = self._load(path)
        else:
            if any(self.folder.glob("journal-*")):
                raise JournalError(f"{self.folder} holds a journal but no {CHECKPOINT}, without which it says nothing")
            self._begin(weights)
        # Version 0.1 wrote none; then what lies in the journal already, if anything does, becomes the checkpoint's.
        self._identity = known or owner(self.folder) or secrets.token_bytes(16)
        replayed, covered = 0, self._position
        for number, payload in read(self.folder, self._position, self._identity, old_format=known is None):
            try:
                what = decode(payload)
                self._must_fit(what)
            except ValueError as error:
                raise JournalError(f"record {number} of the journal in {self.folder}: {error}") from None
            if isinstance(what, Plan):
                replayed += len(what.batch)
                self._apply(what)
            else:
                self._replace_weights(what)
            self._position = number + 1
        if settings.max_streams != self._streams.places:
            self._resize(settings.max_streams)
        self._learner.sample_every = settings.sample_every
        if settings.durability != "none":
            self._journal = Journal(self.folder, covered, settings.segment_bytes, self._identity, marked=marked)
            self._must_have_learned()
            self.notices += self._journal.notices
        if replayed:
            self.notices.append(f"{replayed} transitions were learned again from the journal, up to {self._version}")
        # A first checkpoint says what the journal belongs to; the next start need not replay what this one has.
        if replayed or known is None or _stored_settings(path) != settings:
            try:
                self._save()
            except OSError as error:  # a full disk must not keep from serving what is there already
                if not path.exists():
                    raise StorageError(self._checkpoint_error) from error
        else:
            self._checkpoint_version = self._version

    def _must_fit(self, what: Plan | np.ndarray) -> None:
        """Refuse a record of another service's journal, before the kernel reads it as one of this."""
        dtype, d, k = np.dtype(self.settings.net.dtype), self.settings.net.n_inputs, len(self.settings.names)
        if isinstance(what, Plan):
            found = (what.batch.state.dtype, what.batch.state.shape[1], what.batch.cumulants.shape[1])
            if found != (dtype, d, k):
                raise ValueError(
                    f"it holds states of {found[1]} {found[0]} and {found[2]} cumulants; this service has {d} {dtype} "
                    f"and {k}, so the journal is of another one"
                )
        elif (what.dtype, what.shape) != (dtype, self._learner.w.shape):
            raise ValueError(
                f"it holds {what.dtype} weights {what.shape}; this service has {dtype} {self._learner.w.shape}, so the "
                "journal is of another one"
            )

    def _load(self, path: Path) -> tuple[bytes | None, bool]:
        """Go on from a checkpoint; its identity, and whether the journal had a copy of its last record then."""
        arrays, meta = files.load(path)
        stored = _stored_settings(path)
        for name in LEARNS:
            if getattr(stored, name) != getattr(self.settings, name):
                raise ValueError(
                    f"{name} is {_said(getattr(self.settings, name))}; the service in {path.parent} was started with "
                    f"{_said(getattr(stored, name))}, and what it learned belongs to that"
                )
        try:
            own = {name.removeprefix("learner/"): a for name, a in arrays.items() if name.startswith("learner/")}
            files.must_be_finite(own)
            self._learner = Predictions.from_state(own, meta["learner"])
            self._streams = Streams(self._learner.streams)
            names = arrays["names"].tobytes().decode().split("\n")
            self._streams.last = dict(zip(names, arrays["sequences"].tolist(), strict=True)) if names[0] else {}
            places = [(names[i], int(place)) for i, place in arrays["places"]]
            self._streams.traces = OrderedDict(places)
            taken = {place for _, place in places}
            self._streams.free = [i for i in range(self._streams.places - 1, -1, -1) if i not in taken]
            self._version, self._position = int(meta["version"]), int(meta["position"])
            identity = bytes.fromhex(meta["identity"]) if "identity" in meta else None  # version 0.1 wrote none
            return identity, bool(meta.get("marked"))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds no state of a service ({error!r})") from None

    def _save(self) -> None:
        """Write the checkpoint, then forget the journal that it covers."""
        assert self.folder is not None
        streams, journal, position = self._streams, self._journal, self._position
        used = max(streams.traces.values(), default=-1) + 1
        arrays, learner = self._learner.state_dict(used)
        number = {name: i for i, name in enumerate(streams.last)}
        everything = {
            **{f"learner/{name}": array for name, array in arrays.items()},
            "names": np.frombuffer("\n".join(streams.last).encode(), np.uint8),
            "sequences": np.array(list(streams.last.values()), np.int64),
            "places": np.array([(number[name], i) for name, i in streams.traces.items()], np.int64).reshape(-1, 2),
        }
        meta = {
            "kind": "service",
            "settings": self.settings.as_dict(),
            "learner": learner,
            "version": self._version,
            "position": position,
            "identity": self._identity.hex(),
            "marked": journal is not None and journal.marked,
        }
        self._checkpoint_time = time.monotonic()  # also of a try that fails
        try:
            files.save(self.folder / CHECKPOINT, everything, meta, private=True)
            self._checkpoint_version, self._checkpoint_error, self._journal_bytes = self._version, "", 0
            if journal is not None:
                journal.rotate()
                journal.forget(position, self.settings.retain_bytes)
            else:
                for old in (*self.folder.glob("journal-*.log"), *map(self.folder.joinpath, COPIES)):
                    old.unlink(missing_ok=True)  # of a time when there was one
        except OSError as error:
            self._checkpoint_error = f"the last checkpoint could not be written: {error}"
            raise

    def _resize(self, places: int) -> None:
        """Give the learner another number of traces."""
        streams = self._streams.resized(places)
        arrays, settings = self._learner.state_dict()
        rows = [self._streams.traces[name] for name in streams.traces]
        arrays = {**arrays, "traces": arrays["traces"][rows], "inward": arrays["inward"][rows]}
        self._learner = Predictions.from_state(arrays, {**settings, "streams": places})
        self._streams = streams

    def _checkpoint_is_due(self) -> bool:
        settings, changes = self.settings, self._version - self._checkpoint_version
        if self.folder is None or (changes == 0 and self._journal_bytes == 0):
            return False
        age = time.monotonic() - self._checkpoint_time
        if self._checkpoint_error:
            return age >= RETRY_SECONDS
        return (
            age >= settings.checkpoint_seconds
            or changes >= settings.checkpoint_transitions
            or self._journal_bytes >= settings.checkpoint_bytes
        )

    # --- the writer's thread ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        group: list[Job] | None = []
        try:
            while True:
                group = self._next_group()
                if group is None:
                    break
                if group and group[0].action is not None:
                    _run(group[0].future, group[0].action)
                    self._must_have_learned()
                elif group:
                    self._learn_group(group)
                self._look_after()
        except BaseException as error:  # noqa: BLE001  (a mistake of ours: nothing may be learned on top of it)
            self._broken = error
            with self._wake:
                left, self._queue, self._waiting = list(self._queue), deque(), 0
            for job in (group or []) + left:
                _fail(job.future, self._explain_broken())
        try:
            if self.folder is not None and self._broken is None and self._version != self._checkpoint_version:
                self._save()
        except Exception as error:  # noqa: BLE001  (`close` raises it)
            self._final_error = error
        finally:
            if self._journal is not None:
                self._journal.close()
            if self._lock is not None:
                self._lock.close()

    def _must_have_learned(self) -> None:
        """What is in the journal is learned: otherwise a checkpoint would cover what it does not hold."""
        if self._journal is not None and self._journal.next != self._position:
            raise RuntimeError(f"record {self._position} of the journal was not learned")

    def _next_group(self) -> list[Job] | None:
        """The requests that are served together, once there are any; [] after a while without, None at the end."""
        settings = self.settings
        with self._wake:
            if not self._queue and not self._closing:
                self._wake.wait(self._patience())
            if not self._queue:
                return None if self._closing else []
            group = [self._queue.popleft()]
            rows = _length(group[0])
            while self._queue and group[0].action is None and settings.durability != "every":
                if self._queue[0].action is not None or rows + _length(self._queue[0]) > settings.max_batch:
                    break
                group.append(self._queue.popleft())
                rows += _length(group[-1])
            self._waiting -= rows
        return [job for job in group if job.future.set_running_or_notify_cancel()]

    def _patience(self) -> float | None:
        """Seconds after which there may be something to look after."""
        waits = [DIAGNOSTICS_SECONDS] if self._pending else []
        if self.folder is not None and self._version != self._checkpoint_version:
            limit = RETRY_SECONDS if self._checkpoint_error else self.settings.checkpoint_seconds
            waits.append(max(0.01, self._checkpoint_time + limit - time.monotonic()))
        return min(*waits, threading.TIMEOUT_MAX) if waits else None

    def _look_after(self) -> None:
        if self._pending and time.monotonic() - self._diagnosed >= DIAGNOSTICS_SECONDS:
            # Norms are measured at every so many updates: those of before stay until there are others.
            self._diagnostics = {**self._diagnostics, **self._learner.diagnostics()}
            self._diagnosed, self._pending = time.monotonic(), False
        if self._checkpoint_is_due():
            with contextlib.suppress(OSError):  # health says so; the journal has everything
                self._save()

    def _learn_group(self, group: list[Job]) -> None:
        """Plan, journal, learn, publish, answer."""
        began = time.monotonic()
        settings, streams = self.settings, self._streams
        new: dict[str, int] = {}
        planned: list[tuple[Job, Transitions, np.ndarray, np.ndarray, np.ndarray]] = []
        for job in group:
            assert job.batch is not None
            try:
                compared = streams.plan(job.batch, new, settings.on_gap == "cut", settings.max_known_streams)
            except InvalidTransitions as error:
                _fail(job.future, error)
                continue
            planned.append((job, job.batch, *compared))
        plan = _join([(batch, status == LEARNED, cut) for _, batch, status, _, cut in planned], self._discounts())
        if plan is not None:
            try:
                if self._journal is not None:
                    payload = encode(plan)
                    number = self._journal.append(payload)
                    self._journal_bytes += len(payload)
                    self._storage_error = ""
            except OSError as error:
                self._storage_error = f"the journal cannot be written: {error}"
                for job, *_ in planned:
                    _fail(job.future, StorageError(f"{self._storage_error}; nothing was learned, try again later"))
                return
            version = self._version
            td_errors, diverged = self._apply(plan)
            if self._journal is not None:
                self._position = number + 1
            self._publish()
        at = 0
        for job, batch, status, expected, _ in planned:
            learned = np.flatnonzero(status == LEARNED)
            errors = np.full((len(batch), self.n_predictions), np.nan)
            if len(learned):
                those = slice(at, at + len(learned))
                errors[learned] = td_errors[those]
                status[learned] = np.where(diverged[those], DIVERGED, LEARNED)
                version += len(learned) - int(diverged[those].sum())
                at += len(learned)
            result = LearnResult(version if len(learned) else self._version, status, errors, expected)
            for name, code in (("learned", LEARNED), ("duplicates", DUPLICATE), ("rejected", GAP)):
                self._counts[name] += int(np.count_nonzero(status == code))
            self._counts["diverged"] += result.diverged
            job.future.set_result(result)
        if at:
            self._rate += 0.1 * (at / max(time.monotonic() - began, 1e-6) - self._rate)

    def _apply(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """Learn what a record of the journal says: TD errors (n, k), and which diverged (n,)."""
        batch, streams, n = plan.batch, self._streams, len(plan.batch)
        td_errors, status = np.empty((n, len(self.settings.names))), np.empty(n, np.uint8)
        start = 0
        while start < n:
            stop = self._stop(batch, start)
            part = slice(start, stop)
            used, first = np.unique(batch.stream[part], return_index=True)
            in_order = used[np.argsort(first)]
            taken, fresh = streams.take_places([batch.names[i] for i in in_order])
            places = np.zeros(len(batch.names), np.int64)
            cut = plan.cut[part].copy()
            for i, row in zip(used.tolist(), first.tolist(), strict=True):
                places[i] = taken[batch.names[i]]
                cut[row] |= batch.names[i] in fresh
            gammas = self._discounts() if batch.discounts is None else batch.discounts[part]
            td_errors[part], status[part] = self._learner._learn(
                places[batch.stream[part]],
                cut,
                batch.state[part],
                batch.cumulants[part],
                batch.next_state[part],
                batch.terminated[part],
                batch.truncated[part],
                gammas,
            )
            start = stop
        for i, number in zip(batch.stream.tolist(), batch.sequence.tolist(), strict=True):
            streams.last[batch.names[i]] = number
        diverged = status == td.DIVERGED
        self._version += n - int(diverged.sum())
        self._pending = True
        return td_errors, diverged

    def _stop(self, batch: Transitions, start: int) -> int:
        """Up to where no more streams occur than there are traces."""
        if len(batch.names) <= self._streams.places:
            return len(batch)
        seen: set[int] = set()
        for row in range(start, len(batch)):
            seen.add(int(batch.stream[row]))
            if len(seen) > self._streams.places:
                return row
        return len(batch)

    def _discounts(self) -> np.ndarray:
        return np.array([self.settings.discounts])

    def _publish(self) -> None:
        self._snapshot = Snapshot(self._version, self._learner.w.copy())

    def _replace_weights(self, w: np.ndarray) -> None:
        self._learner.restart(w)
        self._version += 1

    def _explain_broken(self) -> ServiceError:
        return ServiceError(
            f"the service stopped learning after an error of its own ({self._broken!r}); start it again"
        )

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(self, batch: Transitions, timeout: float | None = None) -> LearnResult:
        """Learn, and wait for the acknowledgement; `submit` says what it raises. TimeoutError after `timeout` seconds.

        Raises Gap, with the number that is due, if transitions are missing in a stream; the future of `submit` gives
        the status of each instead. After a TimeoutError the transitions may still be learned; sending them again is
        safe.
        """
        return without_gap(batch, self.submit(batch).result(timeout))

    def submit(self, batch: Transitions) -> Future[LearnResult]:
        """Put transitions into the queue; the future gives what became of them, or raises.

        Raises
        ------
        InvalidTransitions
            If they are not well formed; in the future, if there are too many streams.
        QueueFull
            If too many wait already.
        ReadOnly, Closed
            If the service does not learn, or no longer.
        StorageError
            In the future: the journal could not be written, and nothing of the request was learned.
        """
        if self.settings.read_only:
            raise ReadOnly("this service only answers; it was started without learning")
        batch = batch.checked(self.net, self.n_predictions, self.settings.max_batch)
        return self._put(Job(Future(), batch))

    def _put(self, job: Job) -> Future[Any]:
        with self._wake:
            if self._waiting and self._waiting + _length(job) > self.settings.max_queue:
                self._counts["refused"] += 1
                raise QueueFull(
                    f"{self._waiting} transitions wait to be learned, and {self.settings.max_queue} may; try again",
                    min(60.0, max(0.05, self._waiting / self._rate)),
                )
            if self._broken is not None:
                raise self._explain_broken()
            if self._closing:
                raise Closed("the service was closed")
            self._queue.append(job)
            self._waiting += _length(job)
            self._wake.notify()
        return job.future

    def load_weights(self, weights: str | Path | ArrayLike) -> int:
        """Go on with other weights, from an array (P,) or (m, P) or a checkpoint's file; returns the new version.

        Traces are cut and the optimizer starts afresh, since both belong to the old weights; streams go on.

        Raises
        ------
        ValueError
            If they have another shape, or are not finite or too large for values to be.
        CheckpointError
            If the file is damaged or belongs to another network.
        StorageError
            If they could not be written down; the old weights are still in use.
        """
        if isinstance(weights, str | Path):
            weights = _weights_from(Path(weights), self.net)
        w = _finite(weights, self._snapshot.w)
        if np.abs(w).max() > self._learner.limit:
            raise ValueError(f"weights go up to {np.abs(w).max():.3g}; up to {self._learner.limit:.3g} is wanted")

        def swap() -> int:
            if self._journal is not None:
                try:
                    payload = encode_weights(w)
                    number = self._journal.append(payload)
                    self._journal_bytes += len(payload)
                except OSError as error:
                    raise StorageError(f"the weights cannot be written to the journal: {error}") from error
            self._replace_weights(w)
            if self._journal is not None:
                self._position = number + 1
            if self._journal is None and self.folder is not None:
                try:
                    self._save()
                except OSError as error:
                    raise StorageError(
                        f"the weights are in use, but no checkpoint could be written: {error}"
                    ) from error
                finally:
                    self._publish()
            self._publish()
            return self._version

        return int(self._put(Job(Future(), action=swap)).result())

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Number of changes that the weights have had: transitions learned, and weights loaded."""
        return self._snapshot.version

    def _states(self, states: ArrayLike) -> np.ndarray:
        with np.errstate(over="ignore"):
            array = as_floats("states", states, np.dtype(self.net.dtype), (None, self.n_inputs))
        if not np.isfinite(array).all():
            t, i = map(int, np.argwhere(~np.isfinite(array))[0])
            raise ValueError(f"states[{t}, {i}] is {array[t, i]}; a finite number is wanted")
        return array

    def values(self, states: ArrayLike) -> Values:
        """Predictions (n, k) at states (n, d), all with the same weights."""
        snapshot = self._snapshot
        return Values(self._learner.predict(self._states(states), snapshot.w), snapshot.version)

    def gradients(self, states: ArrayLike, output: int = 0) -> Gradients:
        """How prediction `output` changes with each input: d v / d s (n, d) at states (n, d)."""
        snapshot = self._snapshot
        return Gradients(self._learner.input_gradients(self._states(states), output, snapshot.w), snapshot.version)

    def weights(self) -> Weights:
        """The weights and their version."""
        snapshot = self._snapshot
        w = snapshot.w.copy()
        w.flags.writeable = False
        return Weights(w, snapshot.version, self.net.blocks, self.net.as_dict(), self.names)

    def norms(self) -> Norms:
        """Euclidean norm of each layer's weights."""
        snapshot = self._snapshot
        return Norms(self._learner.layer_norms(snapshot.w), snapshot.version)

    def health(self) -> dict[str, Any]:
        """The state of the service, JSON-able.

        ready (values are served), learning (bool), reason (str, why it does not learn), version, queued (transitions
        that wait), queue_limit, n_streams, n_traces, n_updates; counts since the start: learned, duplicates, rejected,
        diverged, refused (queue full); durability, journal_bytes, journal_segments, checkpoint_version,
        checkpoint_age_seconds, checkpoint_error, uptime_seconds, pid.
        """
        now, journal = time.monotonic(), self._journal
        if self._broken is not None:
            reason = str(self._explain_broken())
        elif self._closing:
            reason = "the service is closing"
        elif self.settings.read_only:
            reason = "this service only answers; it was started without learning"
        else:
            reason = self._storage_error
        return {
            "ready": not self._closing,
            "learning": not reason,
            "reason": reason,
            "version": self.version,
            "queued": self._waiting,
            "queue_limit": self.settings.max_queue,
            "n_streams": len(self._streams.last),
            "n_traces": len(self._streams.traces),
            "n_updates": self._learner.n_transitions,
            **self._counts,
            "durability": self.settings.durability if self.folder is not None else "none",
            "journal_bytes": journal.n_bytes if journal is not None else 0,
            "journal_segments": journal.n_segments if journal is not None else 0,
            "checkpoint_version": self._checkpoint_version if self.folder is not None else None,
            "checkpoint_age_seconds": now - self._checkpoint_time if self.folder is not None else None,
            "checkpoint_error": self._checkpoint_error,
            "uptime_seconds": now - self._began,
            "pid": os.getpid(),
        }

    def diagnostics(self) -> dict[str, float]:
        """Averages over the last second in which something was learned, by the log's tags without their network.

        As `Predictions.diagnostics`, but reading them changes nothing.
        """
        return dict(self._diagnostics)

    # --- the end ------------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write a checkpoint now; what was submitted before is in it.

        Raises
        ------
        StorageError
            If it cannot be written; the one before is as it was.
        """
        if self.folder is None:
            raise ValueError("this service has no folder for a checkpoint")

        def save() -> None:
            try:
                self._save()
            except OSError as error:
                raise StorageError(self._checkpoint_error) from error

        self._put(Job(Future(), action=save)).result()

    def close(self, timeout: float | None = None) -> None:
        """Finish what waits, write a checkpoint, and release the folder. What comes later raises Closed.

        Values can still be read. Raises TimeoutError if that takes longer than `timeout` seconds (it goes on), and
        StorageError if the checkpoint could not be written, which loses something only with durability "none".
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._writer.join(timeout)
        if self._writer.is_alive():
            raise TimeoutError(f"the service has not finished after {timeout} seconds; it goes on")
        if self._final_error is not None:
            error, self._final_error = self._final_error, None
            raise StorageError(f"the last checkpoint could not be written: {error}") from error

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(weights: ArrayLike, like: np.ndarray) -> np.ndarray:
    """Weights as `like` is, copied."""
    array = as_numbers("weights", weights)
    with np.errstate(over="ignore"):
        w = as_floats("weights", array[None] if array.ndim == 1 else array, like.dtype, like.shape).copy()
    if not np.isfinite(w).all():
        place = tuple(map(int, np.argwhere(~np.isfinite(w))[0]))
        raise ValueError(f"weights{list(place)} is {w[place]}; finite numbers are wanted")
    return w


def _length(job: Job) -> int:
    return 0 if job.batch is None else len(job.batch)


def _fail(future: Future[Any], error: BaseException) -> None:
    """Answer with an error, unless it is answered already; also if it is being cancelled at this moment."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _run(future: Future[Any], action: Callable[[], Any]) -> None:
    try:
        future.set_result(action())
    except Exception as error:  # noqa: BLE001  (it belongs to the one who waits)
        future.set_exception(error)


def _join(parts: list[tuple[Transitions, np.ndarray, np.ndarray]], discounts: np.ndarray) -> Plan | None:
    """One batch of the chosen rows of many; None if there are none."""
    parts = [part for part in parts if part[1].any()]
    if not parts:
        return None
    names: dict[str, int] = {}
    streams = []
    for batch, chosen, _ in parts:
        number = np.array([names.setdefault(name, len(names)) for name in batch.names], np.int64)
        streams.append(number[batch.stream[chosen]])

    def rows(name: str) -> np.ndarray:
        return np.concatenate([getattr(batch, name)[chosen] for batch, chosen, _ in parts])

    gammas = None
    if any(batch.discounts is not None for batch, _, _ in parts):
        gammas = np.concatenate(
            [
                np.tile(discounts, (int(chosen.sum()), 1)) if batch.discounts is None else batch.discounts[chosen]
                for batch, chosen, _ in parts
            ]
        )
    arrays = {name: rows(name) for name in ("sequence", "state", "cumulants", "next_state", "terminated", "truncated")}
    batch = Transitions(tuple(names), np.concatenate(streams), **arrays, discounts=gammas)
    return Plan(batch, np.concatenate([cut[chosen] for _, chosen, cut in parts]))


def _said(value: Any) -> str:
    return str(value) if isinstance(value, Network) else repr(value)


def _hold(folder: Path, notice: Callable[[str], None]) -> FolderLock:
    """Hold the service's folder until the lock is closed, or its process ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FolderLock(folder, LOCK, notice)
    except BlockingIOError:
        raise StorageError(f"another service has {folder}; end it, or choose another folder") from None
    except OSError as error:
        raise StorageError(f"{folder} cannot be used as a folder of the service: {error}") from None


def _stored_settings(path: Path) -> ServiceSettings:
    meta = files.load(path).meta
    try:
        return ServiceSettings.from_dict(meta["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not the checkpoint of a service ({error!r})") from None


def _weights_from(path: Path, net: Network) -> np.ndarray:
    """The weights in the checkpoint of a service, a value function or a run."""
    arrays, meta = files.load(path)
    if meta.get("kind") == "service":
        stored, w = _stored_settings(path).net, arrays["learner/w"]
    else:
        v = ValueFunction.load(path)
        stored, w = v.net, v.w[None]
    if stored != net:
        raise CheckpointError(f"{path} holds weights of {stored}; this service has {net}")
    return w
