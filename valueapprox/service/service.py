"""Service: one learner that many threads feed and read, with a journal, so that no acknowledged transition is lost.

Requests to learn wait in a queue for one thread, the writer. It takes all that wait as one group: what is new goes to
the journal and is forced to disk, then it is learned, then the weights are published, then the requests are answered.
Readers use the weights that were published last and wait for nobody.

What is learned depends on the order of the journal and on nothing else: the last checkpoint and the journal after it
give the same weights again, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checkpoint import CheckpointError
from valueapprox.nn.network import Network
from valueapprox.service.errors import ClosedError, QueueFullError, ReadOnlyError, ServiceError, StorageError
from valueapprox.service.messages import (
    DIVERGED,
    DUPLICATE,
    GAP,
    LEARNED,
    Gradients,
    LearnResult,
    Norms,
    Transitions,
    Values,
    Weights,
    without_gap,
)  # fmt: skip
from valueapprox.service.recent import Recent
from valueapprox.service.records import Change
from valueapprox.service.settings import ServiceSettings
from valueapprox.service.state import State, join
from valueapprox.service.store import CHECKPOINT, Store, Trained, load_service
from valueapprox.service.validation import check_states, check_weights
from valueapprox.td.predictions import Predictions

__all__ = ["Service", "outcome", "settle", "values_of_each"]

DIAGNOSTICS_SECONDS = 1.0
READ_ONLY = "this service is read-only: it was started without learning"


class Snapshot(NamedTuple):
    """What readers see: replaced as a whole, and never written to."""

    version: int
    w: np.ndarray  # (m, P)


class Job(NamedTuple):
    """What waits for the writer: transitions, or something to do between two groups."""

    future: Future[Any]
    batch: Transitions | None = None
    action: Callable[[], Any] | None = None

    @property
    def n(self) -> int:
        """Number of transitions."""
        return 0 if self.batch is None else len(self.batch)


class Service:
    """One learner, many threads; see the module. Use it as a context manager, or close it.

    Parameters
    ----------
    settings
        What it learns.
    folder
        Where journal and checkpoint are kept. A service that is there already is continued. None: nothing is kept.
    weights
        Initial weights (P,) or (m, P) instead of those of `settings.seed`, where the folder holds none yet.
    version
        Of these weights.

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
    >>> service = Service(ServiceSettings(Network((2, 1), bias=False), discounts=(0.9,), init="zeros"))
    >>> service.learn(Transitions.of("plant", 0, [1, 0], 1.0, [0, 1])).td_errors
    array([[1.]])
    >>> service.learn(Transitions.of("plant", 0, [1, 0], 1.0, [0, 1])).duplicates
    1
    >>> service.values([[1, 0]])
    Values(values=array([[0.01]], dtype=float32), version=1)
    >>> service.close()
    """

    def __init__(
        self,
        settings: ServiceSettings,
        folder: str | Path | None = None,
        *,
        weights: ArrayLike | None = None,
        version: int = 0,
    ) -> None:
        self.settings, self.folder = settings, None if folder is None else Path(folder)
        self.net, self.names = settings.net, settings.names
        self.n_inputs, self.n_predictions = settings.net.n_inputs, len(settings.names)
        self._began = time.monotonic()
        self._store: Store | None = None
        if self.folder is None:
            self._state = State.fresh(settings, weights, version)
        else:
            self._store = Store(self.folder, settings)
            try:
                self._state = self._store.recover(weights, version)
            except BaseException:
                self._store.close()
                raise
        self.notices: list[str] = [] if self._store is None else self._store.notices
        self._state.learner.norms_every = settings.norms_every
        self._counts = dict.fromkeys(("learned", "duplicates", "rejected", "diverged", "refused"), 0)
        self._storage_error = ""
        self._broken: BaseException | None = None
        self._diagnostics = self._state.learner.diagnostics()
        self._recent = Recent(self.n_predictions)
        self._diagnosed = time.monotonic()
        self._pending = False  # sums since then
        self._rate = 1e5  # transitions per second, a running guess for retry_after
        self._publish()
        self._warm_up()
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._waiting = 0  # transitions in the queue
        self._closing = False
        self._final_error: StorageError | None = None
        self._writer = threading.Thread(target=self._write, name="valueapprox-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, folder: str | Path, **changes: Any) -> Service:
        """Continue the service in `folder`; `changes` replace settings that say nothing about what is learned."""
        stored, *_ = load_service(Path(folder) / CHECKPOINT)
        return cls(replace(stored, **changes), folder)

    @classmethod
    def from_checkpoint(cls, path: str | Path, folder: str | Path | None = None, **changes: Any) -> Service:
        """A service of a trained value function: the file of `ValueFunction.save`, a run's checkpoint, or a service's.

        Without a folder it is read-only. With one, learning begins there with these weights, fresh traces and a fresh
        optimizer; if the folder holds a service already, that one is continued and `path` is only compared with it.
        """
        trained = Trained.load(Path(path))
        if trained.method != "td" and folder is not None:
            raise ValueError(f"the method of {path} is {trained.method}; expected td, by which a service learns")
        settings = replace(trained.settings, **{"read_only": folder is None, **changes})
        return cls(settings, folder, weights=trained.w, version=trained.version)

    def _warm_up(self) -> None:
        """Compile, or load from the cache, what requests will call."""
        for n in (1, 2):
            self._state.learner.predict(np.zeros((n, self.n_inputs)))
        self._state.learner.input_gradients(np.zeros((1, self.n_inputs)))
        if not self.settings.read_only:
            small = Predictions(Network((1, 1), dtype=self.net.dtype))
            small.learn(0, np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))

    # --- the writer's thread ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        store, state = self._store, self._state
        group: list[Job] | None = []
        try:
            while (group := self._next_group()) is not None:
                if group and group[0].action is not None:
                    settle(group[0].future, outcome(group[0].action))
                    if store is not None:
                        store.check_learned(state)
                elif group:
                    self._learn_group(group)
                self._housekeep()
            if self._pending:
                self._diagnose()
        except BaseException as error:  # noqa: BLE001  (a mistake of ours: nothing may be learned on top of it)
            self._broken = error
            with self._wake:
                left, self._queue, self._waiting = list(self._queue), deque(), 0
            for job in (group or []) + left:
                _fail(job.future, self._explain_broken())
        try:
            if store is not None and self._broken is None and state.version != store.checkpoint_version:
                store.save(state)
        except StorageError as error:
            self._final_error = error  # `close` raises it
        except Exception as error:  # noqa: BLE001  (as above)
            self._final_error = StorageError(f"the last checkpoint could not be written: {error}")
        finally:
            if store is not None:
                store.close()

    def _next_group(self) -> list[Job] | None:
        """The requests that are served together, once there are any; [] after a while without, None at the end."""
        settings = self.settings
        with self._wake:
            if not self._queue and not self._closing:
                self._wake.wait(self._next_deadline())
            if not self._queue:
                return None if self._closing else []
            group = [self._queue.popleft()]
            rows = group[0].n
            while self._queue and group[0].action is None and settings.durability != "every":
                if self._queue[0].action is not None or rows + self._queue[0].n > settings.max_batch:
                    break
                group.append(self._queue.popleft())
                rows += group[-1].n
            self._waiting -= rows
        return [job for job in group if job.future.set_running_or_notify_cancel()]

    def _next_deadline(self) -> float | None:
        """Seconds after which there may be something to do although no request comes."""
        due = None if self._store is None else self._store.next_deadline(self._state)
        waits = [DIAGNOSTICS_SECONDS] * self._pending + ([] if due is None else [due])
        return min(*waits, threading.TIMEOUT_MAX) if waits else None

    def _housekeep(self) -> None:
        if self._pending and time.monotonic() - self._diagnosed >= DIAGNOSTICS_SECONDS:
            self._diagnose()
        if self._store is not None and self._store.is_due(self._state):
            with contextlib.suppress(StorageError):  # health says so; the journal has everything
                self._store.save(self._state)

    def _diagnose(self) -> None:
        # Norms are measured at every so many updates: those of before stay until there are others.
        self._diagnostics = {**self._diagnostics, **self._state.learner.diagnostics()}
        self._diagnosed, self._pending = time.monotonic(), False

    def _learn_group(self, group: list[Job]) -> None:
        """Plan, journal, learn, publish, answer."""
        began = time.monotonic()
        settings, state = self.settings, self._state
        new: dict[str, int] = {}
        planned: list[tuple[Job, Transitions, np.ndarray, np.ndarray, np.ndarray]] = []
        for job in group:
            assert job.batch is not None
            try:
                compared = state.streams.plan(job.batch, new, settings.on_gap == "cut", settings.max_known_streams)
            except ServiceError as error:
                _fail(job.future, error)
                continue
            planned.append((job, job.batch, *compared))
        plan = join([(batch, status == LEARNED, cut) for _, batch, status, _, cut in planned], state.discounts)
        version = state.version
        if plan is not None:
            try:
                td_errors, diverged = self._commit(plan)
            except StorageError as error:
                for job, *_ in planned:
                    _fail(job.future, error)
                return
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
            result = LearnResult(version if len(learned) else state.version, status, errors, expected)
            for name, code in (
                ("learned", LEARNED),
                ("duplicates", DUPLICATE),
                ("rejected", GAP),
                ("diverged", DIVERGED),
            ):
                self._counts[name] += int(np.count_nonzero(status == code))
            job.future.set_result(result)
        if plan is not None:
            predict = self._state.learner.predict
            self._recent.offer(plan.batch, td_errors, state.version, lambda s: predict(s, self._snapshot.w))
            self._rate += 0.1 * (at / max(time.monotonic() - began, 1e-6) - self._rate)

    def _commit(self, change: Change) -> tuple[np.ndarray, np.ndarray]:
        """Write a change to the journal, learn it, publish the weights; gives what `State.apply` gives."""
        try:
            number = None if self._store is None else self._store.append(change)
        except OSError as error:
            self._storage_error = f"the journal cannot be written: {error}"
            raise StorageError(f"{self._storage_error}; nothing was learned, try again later") from error
        self._storage_error = ""
        td_errors, diverged = self._state.apply(change, number)
        self._pending |= len(td_errors) > 0
        self._publish()
        return td_errors, diverged

    def _publish(self) -> None:
        self._snapshot = Snapshot(self._state.version, self._state.learner.w.copy())

    def _explain_broken(self) -> ServiceError:
        return ServiceError(f"the service stopped learning after an error of its own ({self._broken!r}); restart it")

    # --- learning -----------------------------------------------------------------------------------------------------

    def learn(self, batch: Transitions, timeout: float | None = None) -> LearnResult:
        """Learn, and wait for the acknowledgement; `submit` says what it raises. TimeoutError after `timeout` seconds.

        Raises GapError, with the number that is due, if transitions are missing in a stream; the future of `submit`
        gives the status of each instead. After a TimeoutError the transitions may still be learned; sending them again
        is safe.
        """
        return without_gap(batch, self.submit(batch).result(timeout))

    def submit(self, batch: Transitions) -> Future[LearnResult]:
        """Put transitions into the queue; the future gives what became of them, or raises.

        Raises
        ------
        InvalidRequestError
            If they are not well formed; in the future, if there are too many streams.
        QueueFullError
            If too many wait already.
        ReadOnlyError, ClosedError
            If the service does not learn, or no longer.
        StorageError
            In the future: the journal could not be written, and nothing of the request was learned.
        """
        if self.settings.read_only:
            raise ReadOnlyError(READ_ONLY)
        batch = batch.checked(self.net, self.n_predictions, self.settings.max_batch)
        return self._put(Job(Future(), batch))

    def _put(self, job: Job) -> Future[Any]:
        with self._wake:
            if self._waiting and self._waiting + job.n > self.settings.max_queue:
                self._counts["refused"] += 1
                raise QueueFullError(
                    f"{self._waiting} transitions are waiting to be learned, and max_queue is "
                    f"{self.settings.max_queue}; try again later",
                    min(60.0, max(0.05, self._waiting / self._rate)),
                )
            if self._broken is not None:
                raise self._explain_broken()
            if self._closing:
                raise ClosedError("the service was closed")
            self._queue.append(job)
            self._waiting += job.n
            self._wake.notify()
        return job.future

    def load_weights(self, weights: str | Path | ArrayLike) -> int:
        """Continue with other weights, from an array (P,) or (m, P) or a checkpoint's file; returns the new version.

        Traces are cut and the optimizer starts afresh, since both belong to the old weights; streams continue.

        Raises
        ------
        InvalidRequestError
            If they have another shape, or are not finite or too large for values to be.
        CheckpointError
            If the file is damaged or belongs to another network.
        StorageError
            If they could not be written down. Without a journal they are in use all the same.
        """
        store, state = self._store, self._state
        if isinstance(weights, str | Path):
            trained = Trained.load(Path(weights))
            if trained.settings.net != self.net:
                raise CheckpointError(f"the network of {weights} is {trained.settings.net}; expected {self.net}")
            weights = trained.w
        w = check_weights(weights, self._snapshot.w, state.learner.limit)

        def swap() -> int:
            self._commit(w)
            if store is not None and store.journal is None:
                store.save(state)
            return state.version

        return int(self._put(Job(Future(), action=swap)).result())

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Number of changes that the weights have had: transitions learned, and weights loaded."""
        return self._snapshot.version

    def values(self, states: ArrayLike) -> Values:
        """Predictions (n, k) at states (n, d), all with the same weights."""
        snapshot = self._snapshot
        return Values(self._state.learner.predict(check_states(states, self.net), snapshot.w), snapshot.version)

    def gradients(self, states: ArrayLike, output: int = 0) -> Gradients:
        """How prediction `output` changes with each input: d v / d s (n, d) at states (n, d)."""
        snapshot, learner = self._snapshot, self._state.learner
        return Gradients(learner.input_gradients(check_states(states, self.net), output, snapshot.w), snapshot.version)

    def weights(self) -> Weights:
        """The weights and their version."""
        snapshot = self._snapshot
        w = snapshot.w.copy()
        w.flags.writeable = False
        return Weights(w, snapshot.version, self.net.blocks, self.net.as_dict(), self.names)

    def norms(self) -> Norms:
        """Euclidean norm of each layer's weights."""
        snapshot = self._snapshot
        return Norms(self._state.learner.layer_norms(snapshot.w), snapshot.version)

    def health(self) -> dict[str, Any]:
        """The state of the service, JSON-able.

        ready (values are served), learning (bool), reason (str, why it does not learn), version, queued (transitions
        that wait), queue_limit, n_streams, n_traces, n_updates; counts since the start: learned, duplicates, rejected,
        diverged, refused (queue full); durability, journal_bytes, journal_segments, checkpoint_version,
        checkpoint_age_seconds, checkpoint_error, uptime_seconds, pid.
        """
        if self._broken is not None:
            reason = str(self._explain_broken())
        elif self._closing:
            reason = "the service is closing"
        else:
            reason = READ_ONLY if self.settings.read_only else self._storage_error
        kept = {"durability": "none", "journal_bytes": 0, "journal_segments": 0, "checkpoint_version": None,
                "checkpoint_age_seconds": None, "checkpoint_error": ""}  # fmt: skip
        return {
            "ready": not self._closing,
            "learning": not reason,
            "reason": reason,
            "version": self.version,
            "queued": self._waiting,
            "queue_limit": self.settings.max_queue,
            "n_streams": len(self._state.streams.last),
            "n_traces": len(self._state.streams.slots),
            "n_updates": self._state.learner.n_transitions,
            **self._counts,
            **(kept if self._store is None else self._store.health()),
            "uptime_seconds": time.monotonic() - self._began,
            "pid": os.getpid(),
        }

    def diagnostics(self) -> dict[str, float]:
        """Averages over the last second in which something was learned, by the log's tags without their network.

        As `Predictions.diagnostics`, but reading them changes nothing.
        """
        return dict(self._diagnostics)

    def recent(self, after: int = 0) -> list[dict[str, Any]]:
        """Predictions and TD errors at some of what was learned in the last minutes, oldest first, JSON-able.

        A point is a transition: id, which rises; seconds, since the start; stream; version, of the weights after it;
        values, at its state with these weights; td_errors. Only those whose id is larger than `after` are given. There
        are two a second for each of four streams at most, and of many predictions the first 32.
        """
        return self._recent.since(after)

    # --- the end ------------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Write a checkpoint now; what was submitted before is in it.

        Raises
        ------
        StorageError
            If it cannot be written; the one before is as it was.
        """
        store = self._store
        if store is None:
            raise ValueError("this service has no folder; a checkpoint needs one")

        self._put(Job(Future(), action=lambda: store.save(self._state))).result()

    def close(self, timeout: float | None = None) -> None:
        """Finish what waits, write a checkpoint, and release the folder. What comes later raises ClosedError.

        Values can still be read. Raises TimeoutError if that takes longer than `timeout` seconds (it continues), and
        StorageError if the checkpoint could not be written, which loses something only with durability "none".
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._writer.join(timeout)
        if self._writer.is_alive():
            raise TimeoutError(f"the service has not finished after {timeout} seconds; it is still closing")
        if self._final_error is not None:
            error, self._final_error = self._final_error, None
            raise error

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  (it belongs to the one who waits)
        return error


def values_of_each(service: Any, requests: list[np.ndarray]) -> list[Values | Exception]:
    """What each of several requests gets: predictions by one forward pass, or what is wrong with its states."""
    try:
        values, version = service.values(requests[0] if len(requests) == 1 else np.concatenate(requests))
    except Exception as error:  # noqa: BLE001  (somebody's states do not fit)
        return [error] if len(requests) == 1 else [outcome(service.values, each) for each in requests]
    stops = np.cumsum([len(states) for states in requests]).tolist()
    return [Values(values[stop - len(states) : stop], version) for states, stop in zip(requests, stops, strict=True)]


def _fail(future: Future[Any], error: BaseException) -> None:
    """Answer with an error, unless it is answered already; also if it is being cancelled at this moment."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def settle(future: Any, outcome: Any) -> None:
    """Give a future what an `outcome` was: a result, or an error."""
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
