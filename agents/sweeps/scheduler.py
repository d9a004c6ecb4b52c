"""Cells on workers: a few long-lived Ray processes take about a second's work at a time."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from valueapprox.agents.sweeps.cells import Cell
from valueapprox.agents.sweeps.measures import WANTED, Wanted, measure
from valueapprox.agents.sweeps.store import FAILED, Result
from valueapprox.checks import positive
from valueapprox.cluster import cluster
from valueapprox.interrupts import PATIENCE, SAY_AFTER, Stop, interruptible

__all__ = ["ATTEMPTS", "run_cells"]

CHUNK_SECONDS = 1.0  # of work that a worker is sent at once
LEAST_SECONDS = 0.1  # of work for which sending is worth it, if there is that much
AHEAD = 2  # chunks that a worker has: while it returns one it works on the next
ATTEMPTS = 3  # of a cell that fails
LIVES = 8  # of a cell whose process dies: it need not be the cell's fault
MAX_CHUNK = 1000
#: Cells that are equal in these take about as long as each other.
SHAPE = ("env", "env_args", "agent", "hidden", "steps", "envs", "optimizer", "rollout", "epochs", "minibatch",
         "batch_size", "data")  # fmt: skip
MAX_DEATHS = 20


def run_cells(
    cells: Sequence[Cell],
    keep: Callable[[list[Result]], None],
    wanted: Wanted = WANTED,
    *,
    workers: int = 0,
    ray_address: str | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> bool:
    """Measure each cell once and hand over what came out, chunk by chunk; returns whether it was interrupted.

    Cells of one setting stay together, and settings that learn from the same experience, too: they share it. What comes
    out of a cell depends on nothing but the cell. One that fails is tried `ATTEMPTS` times.

    Parameters
    ----------
    cells
        What is to be measured.
    keep
        Called with results as they arrive, in no order.
    wanted
        What is wanted of each beside its numbers.
    workers
        Ray workers; with 0 all is done in this process.
    ray_address
        A Ray cluster; without it Ray is started on this machine.
    notice
        Called with a sentence when a worker dies.
    """
    positive("workers", workers, at_least=0)
    if not cells:
        return False
    with interruptible("Ending; what is done is kept.") as stop:
        if workers == 0:
            return _here(cells, keep, wanted, stop)
        with cluster(ray_address, workers), _Pool(cells, workers, wanted, notice) as pool:
            for results in pool.results(stop):
                keep(results)
        return stop.is_set()


def _here(cells: Sequence[Cell], keep: Callable[[list[Result]], None], wanted: Wanted, stop: Stop) -> bool:
    waiting, done, begun = deque(_ordered(cells)), list[Result](), time.monotonic()
    attempts: dict[str, int] = defaultdict(int)
    try:
        while waiting and not stop.is_set():
            cell = waiting.popleft()
            result = measure(cell, wanted)
            attempts[result.digest] += 1
            if result.status == FAILED and attempts[result.digest] < ATTEMPTS:
                waiting.append(cell)
                continue
            done.append(result._replace(attempts=attempts[result.digest]))
            if time.monotonic() - begun > CHUNK_SECONDS:
                keep(done)
                done, begun = [], time.monotonic()
    except KeyboardInterrupt:
        return True
    finally:
        keep(done)
    return stop.is_set()


def _ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that can share experience next to each other: those of one environment, agent and seed."""
    by: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        s = cell.settings
        by[_shape(cell), s["seed"]].append(cell)
    return [cell for group in by.values() for cell in group]


def _shape(cell: Cell) -> tuple[Any, ...]:
    s = cell.settings
    return tuple(str(s.get(name)) for name in SHAPE)


# --- workers ----------------------------------------------------------------------------------------------------------


class _Measurer:
    """The Ray actor."""

    def measure(self, chunk: list[tuple[dict[str, Any], str]], wanted: Wanted) -> list[Result]:
        return [measure(Cell(settings, stage), wanted) for settings, stage in chunk]

    def pid(self) -> int:
        return os.getpid()


@dataclass
class _Worker:
    actor: Any
    started: Any  # None once its process has answered: before, it gets no work that others could do
    chunks: deque[tuple[Any, list[Cell]]] = field(default_factory=deque)  # (reference, cells), oldest first


class _Pool:
    """The workers, the cells that wait, and how long cells of a shape take."""

    def __init__(self, cells: Sequence[Cell], n: int, wanted: Wanted, notice: Callable[[str], None]) -> None:
        self.wanted, self.notice = wanted, notice
        self.waiting: deque[Cell] = deque(_ordered(cells))
        self.alone: deque[Cell] = deque()  # of a chunk whose process died: one by one, after all others
        self.attempts: dict[str, int] = defaultdict(int)
        self.deaths_of: dict[str, int] = defaultdict(int)
        self.seconds: dict[tuple[Any, ...], float] = {}
        self.deaths = 0  # of processes in a row, without a result between them
        self.workers = [_Worker(*self._actor()) for _ in range(n)]

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            with contextlib.suppress(Exception):
                ray.kill(worker.actor)

    @staticmethod
    def _actor() -> tuple[Any, Any]:
        actor: Any = ray.remote(_Measurer).options(num_cpus=1, max_restarts=0).remote()
        return actor, actor.pid.remote()

    def results(self, stop: Stop) -> Iterator[list[Result]]:
        """What arrives, until all is done or the process is asked to end."""
        idle_since = time.monotonic()
        said = False
        while not stop.is_set():
            for _ in range(AHEAD):  # first one chunk for each, then the next
                for worker in self.workers:
                    if worker.started is None and len(worker.chunks) < AHEAD:
                        self._send(worker)
            busy = {worker.chunks[0][0]: worker for worker in self.workers if worker.chunks}
            if not (busy or self.waiting or self.alone):
                return
            starting = {worker.started: worker for worker in self.workers if worker.started is not None}
            if busy:
                idle_since, said = time.monotonic(), False
            elif (waited := time.monotonic() - idle_since) > PATIENCE:
                raise TimeoutError(
                    f"no process for a worker has started for {waited:.0f} s; expected one: does Ray have a free CPU?"
                )
            elif waited > SAY_AFTER and not said:
                said = True
                self.notice(f"no process for a worker has started for {waited:.0f} s; given up after {PATIENCE:g} s")
            ready, _ = ray.wait([*busy, *starting], num_returns=1, timeout=0.2)
            for reference in ready:
                if reference in starting:
                    self._has_started(starting[reference])
                else:
                    yield from self._received(busy[reference], reference)

    def _has_started(self, worker: _Worker) -> None:
        try:
            ray.get(worker.started)
            worker.started = None
        except RayActorError as error:
            self._replaced(worker, error)

    def _send(self, worker: _Worker) -> None:
        chunk = self._next_chunk()
        if chunk:
            plain = [(cell.settings, cell.stage) for cell in chunk]
            worker.chunks.append((worker.actor.measure.remote(plain, self.wanted), chunk))

    def _next_chunk(self) -> list[Cell]:
        if not self.waiting and self.alone:
            return [self.alone.popleft()]
        chunk: list[Cell] = []
        expected = 0.0
        # So that all workers end at about the same time, the last chunks are small.
        share = max(1, len(self.waiting) // (2 * len(self.workers)))
        while self.waiting and len(chunk) < MAX_CHUNK:
            known = self.seconds.get(_shape(self.waiting[0]))
            limit = CHUNK_SECONDS if len(chunk) < share else LEAST_SECONDS
            if chunk and (known is None or expected + known > limit):
                break
            expected += known or 0.0
            chunk.append(self.waiting.popleft())
        return chunk

    def _received(self, worker: _Worker, reference: Any) -> Iterator[list[Result]]:
        try:
            results: list[Result] = ray.get(reference)
        except (RayActorError, ObjectLostError) as error:  # a result is lost with the node that it lies on
            yield self._replaced(worker, error)
            return
        except RayTaskError as error:  # of our own: it would come again
            raise RuntimeError(f"a worker cannot measure cells: {error}") from error
        _, chunk = worker.chunks.popleft()
        self.deaths, done = 0, []
        for cell, result in zip(chunk, results, strict=True):
            shape = _shape(cell)
            before = self.seconds.get(shape, result.seconds)
            # Down at once, as the first one may have compiled; up as cells take longer.
            self.seconds[shape] = min(result.seconds, (before + result.seconds) / 2)
            self.attempts[result.digest] += 1
            if result.status == FAILED and self.attempts[result.digest] < ATTEMPTS:
                self.alone.append(cell)
            else:
                done.append(result._replace(attempts=self.attempts[result.digest]))
        yield done

    def _replaced(self, worker: _Worker, error: Exception) -> list[Result]:
        """A new process for one that died; what it worked on is done again, and given up if it dies of it each time."""
        self.notice(f"a Ray worker died ({str(error).strip().splitlines()[0]}); a new one does its work again")
        with contextlib.suppress(Exception):
            ray.kill(worker.actor)
        self.deaths += 1
        if self.deaths > MAX_DEATHS:
            raise RuntimeError(f"{self.deaths} Ray workers died in a row, with no cell done between them:\n{error}")
        (_, first), *others = worker.chunks or [(None, [])]
        worker.chunks.clear()
        worker.actor, worker.started = self._actor()
        for _, chunk in reversed(others):
            self.waiting.extendleft(reversed(chunk))
        if len(first) != 1:
            self.alone.extend(first)
            return []
        (cell,) = first
        self.deaths_of[cell.digest] += 1
        if self.deaths_of[cell.digest] < LIVES:
            self.alone.append(cell)
            return []
        why = f"the process that measured it died {LIVES} times: {error}"
        return [Result(cell.digest, FAILED, {}, np.zeros((2, 0)), why, LIVES)]
