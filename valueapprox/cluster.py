"""Ray as a place to run: connecting to it, and workers that survive the death of their process.

A worker is any object with a `restore(snapshot)` method whose other methods return (result, snapshot). It lives in this
process or in a Ray actor, with the same interface. When an actor dies, a new one is made, brought to the last snapshot
that arrived, and the calls still open are made again: if the worker is deterministic, nobody can tell from the results.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before Ray is imported: no usage statistics leave the machine, and `uv run` must not make workers build a
# second environment. Of two workers that fail, the first one's error is raised; Ray would print the other's beside it.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import grpc
import ray
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import ObjectLostError, RayActorError

from valueapprox.interrupts import PATIENCE, SAY_AFTER, Stopped, end_if_killed, tick, watched

__all__ = ["LocalWorker", "RayWorker", "Worker", "cluster", "must_answer", "share", "spread"]

# A worker steps environments; every library in it that would start a thread per core only gets in the others' way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
OBJECT_STORE = 512 * 2**20
ANSWER = 5.0  # seconds in which an address must answer
DEATHS = 3  # deaths in a row, without a result between them, after which a worker is given up


@contextlib.contextmanager
def cluster(address: str | None = None, n_cpus: int = 2) -> Iterator[None]:
    """Be connected to Ray: to the cluster at `address`, or to one of our own on this machine, ended at the end.

    A connection that exists already is used and left as it is.

    Raises
    ------
    ConnectionError
        If nothing answers at `address`.
    """
    if ray.is_initialized():
        _must_have(n_cpus)
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if address is None:
            with _environment(ONE_THREAD):  # inherited by the processes that Ray starts
                ray.init(
                    address="local", num_cpus=n_cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet
                )
            end_if_killed(_agents())
        else:
            must_answer(address)
            try:
                with watched(f"Ray at {address!r}"):
                    ray.init(address=address, runtime_env={"env_vars": ONE_THREAD}, **quiet)
            except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
                raise ConnectionError(f"Ray does not answer at {address!r}: {_first_line(error)}") from None
    try:
        _must_have(n_cpus)
        yield
    finally:
        ray.shutdown()
        if address is None:
            end_if_killed([])


def _agents() -> list[int]:
    """Children of the raylet that we have started: its agents outlive it by minutes if this process is killed."""
    found: list[int] = []
    with contextlib.suppress(Exception):  # what is not public may change, and not every system has these files
        raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
        for path in Path(f"/proc/{raylet}/task").glob("*/children"):
            found += map(int, path.read_text().split())
    return found


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def must_answer(address: str) -> None:
    """Ray waits a minute for a cluster that is not there; a socket knows at once."""
    if address == "local":
        return
    if address == "auto":
        found = _automatic()
        try:
            must_answer(found)
        except ConnectionError as error:
            raise ConnectionError(
                f"the Ray address is 'auto', which stands for {found!r} here, but {error}; start a cluster with "
                "'ray start --head', or leave --ray-address out"
            ) from None
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError(f"the Ray address is {address!r}; expected host:port, ray://host:port or auto")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nothing answers at the Ray address {address!r} ({error})") from None
    if os.environ.get("RAY_USE_TLS") == "1":
        return
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER)
        except grpc.FutureTimeoutError:
            raise ConnectionError(f"something answers at the Ray address {address!r}, but it is not Ray") from None


def _automatic() -> str:
    """What Ray takes for "auto": RAY_ADDRESS, a cluster that runs here, or the last one that was started."""
    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise ConnectionError(
            "the Ray address is 'auto', but no Ray cluster was started on this machine; start one with 'ray start "
            "--head', or leave --ray-address out"
        ) from None


def _must_have(n_cpus: int) -> None:
    """A worker for which there is no CPU would be waited for without end."""
    there = int(ray.cluster_resources().get("CPU", 0))
    if there < n_cpus:
        raise ValueError(f"workers is {n_cpus}; expected at most {there}, as Ray has so many CPUs")


def spread(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    """Make independent calls on a connected Ray, one CPU each; yields (place in `calls`, result) as they are done.

    A call whose process dies is made again, up to three times: what it does must bear that. The error of a call is
    raised here when its turn comes.
    """
    task = ray.remote(function).options(num_cpus=1, max_retries=DEATHS)
    open_calls = {task.remote(*arguments): place for place, arguments in enumerate(calls)}
    try:
        while open_calls:
            (done,), _ = ray.wait(list(open_calls), num_returns=1)
            yield open_calls.pop(done), ray.get(done)
    finally:
        for reference in open_calls:
            ray.cancel(reference, force=True)


def _cpus() -> str:
    """How many CPUs Ray has now: fewer than there were if a node is gone."""
    with contextlib.suppress(Exception):
        return f"Ray has {int(ray.cluster_resources().get('CPU', 0))} CPUs"
    return "Ray does not say how many CPUs it has"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def share(value: Any) -> Any:
    """Put a value into Ray's object store, once for all workers that are given what this returns in its place."""
    return ray.put(value)


class Worker:
    """Calls made one after the other on an object somewhere; results come back in the order of the calls."""

    def submit(self, method: str, *arguments: Any) -> None:
        """Ask for a call; it may run at once or when its result is wanted."""
        raise NotImplementedError

    def result(self) -> Any:
        """Wait for the oldest call that is still open, and return (result, snapshot)."""
        raise NotImplementedError

    def close(self) -> None:
        """End the worker."""


class LocalWorker(Worker):
    """The object in this process."""

    def __init__(self, make: Callable[..., Any], *arguments: Any, snapshot: Any = None) -> None:
        self.object = make(*arguments)
        if snapshot is not None:
            self.object.restore(snapshot)
        self._open: deque[tuple[str, tuple[Any, ...]]] = deque()

    def submit(self, method: str, *arguments: Any) -> None:
        """Note the call."""
        self._open.append((method, arguments))

    def result(self) -> Any:
        """Make the oldest call."""
        method, arguments = self._open.popleft()
        return getattr(self.object, method)(*arguments)

    def close(self) -> None:
        """End the object."""
        self.object.close()


class _Host:
    """The Ray actor: holds the object and passes calls on."""

    def __init__(self, make: Callable[..., Any], arguments: tuple[Any, ...], snapshot: Any) -> None:
        self._object = make(*arguments)
        if snapshot is not None:
            self._object.restore(snapshot)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._object, method)(*arguments)

    def pid(self) -> int:
        return os.getpid()


class RayWorker(Worker):
    """The object in a Ray actor of its own, replaced when it dies.

    Parameters
    ----------
    make, arguments
        Build the object, on the worker: `make(*arguments)`.
    snapshot
        State to bring it to at first; None for a fresh one.
    on_death
        Called with a sentence when a process died and is about to be replaced, or when nothing is heard of it.
    patience
        Seconds without a result after which the worker is given up, and within which its process must have started; 0
        for no limit. The first result may take five times as long, any other ten times as long as the slowest so far.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *arguments: Any,
        snapshot: Any = None,
        on_death: Callable[[str], None] = warnings.warn,
        patience: float = PATIENCE,
    ) -> None:
        self._make, self._arguments, self._snapshot, self._on_death = make, arguments, snapshot, on_death
        self._patience, self._slowest, self._said = patience, 0.0, False
        self._open: deque[tuple[Any, str, tuple[Any, ...]]] = deque()
        self._deaths = 0
        self._start()

    def _start(self) -> None:
        host = ray.remote(_Host).options(num_cpus=1, max_restarts=0)
        self._actor = host.remote(self._make, self._arguments, self._snapshot)
        self._started: Any = self._actor.pid.remote()  # None once it has answered

    def submit(self, method: str, *arguments: Any) -> None:
        """Send the call; the actor works on it while we do something else."""
        self._open.append((None, method, arguments))
        if all(reference is not None for reference, _, _ in list(self._open)[:-1]):
            self._send(len(self._open) - 1)

    def _send(self, place: int) -> None:
        _, method, arguments = self._open[place]
        self._asked = time.monotonic()
        self._open[place] = (self._actor.call.remote(method, *arguments), method, arguments)

    def result(self) -> Any:
        """Wait for the oldest open call; if the process has died, replace it and call again.

        Raises
        ------
        TimeoutError
            If no process starts, or nothing is heard of it; see `patience`.
        Stopped
            If the process was asked to end meanwhile: see `valueapprox.interrupts`.
        """
        while True:
            if self._open[0][0] is None:
                self._send(0)
            try:
                if self._started is not None:
                    self._wait(self._started)
                    ray.get(self._started)
                    self._started = None
                self._slowest = max(self._slowest, self._wait(self._open[0][0]))
                result, self._snapshot = ray.get(self._open[0][0])
            except (RayActorError, ObjectLostError) as error:  # a result is lost with the node that it lies on
                self._replace(error)
                continue
            self._open.popleft()
            self._deaths = 0
            for place, (reference, _, _) in enumerate(list(self._open)):
                if reference is None:
                    self._send(place)
            return result, self._snapshot

    def _wait(self, reference: Any) -> float:
        """Wait until a result is there, and say so if it takes long; returns the seconds that it took."""
        began = time.monotonic()
        while not ray.wait([reference], timeout=0.2)[0]:
            if tick():
                raise Stopped
            self._is_late(reference, time.monotonic() - began)
        self._said = False
        return time.monotonic() - began

    def _is_late(self, reference: Any, waited: float) -> None:
        """Say that a result takes long, or raise TimeoutError if it took too long."""
        starting = reference is self._started
        limit = self._patience
        if not starting:
            limit *= 5 if self._slowest == 0.0 else 1
            limit = max(limit, 10 * self._slowest) if limit else 0.0
        what = "no process for a Ray worker has started" if starting else "a Ray worker has not answered"
        until = f"; it is given up after {limit:g} s (--patience)" if limit else ""
        if not self._said and waited > SAY_AFTER:
            self._on_death(f"{what} for {waited:.0f} s ({_cpus()}){until}")
            self._said = True
        if limit and waited > limit:
            raise TimeoutError(
                f"{what} for {limit:g} s ({_cpus()}); expected one within that time (--patience SECONDS; 0 waits "
                "without end)"
            )

    def _replace(self, error: RayActorError | ObjectLostError) -> None:
        # An error in the constructor is no accident: it would come again.
        self._deaths += 1
        if self._deaths > DEATHS or "creation task" in str(error):
            raise RuntimeError(f"a Ray worker died {self._deaths} times in a row:\n{error}") from error
        self._on_death(f"a Ray worker died ({_first_line(error)}); a new one takes over and does its work again")
        with contextlib.suppress(Exception):
            ray.kill(self._actor)
        self._start()
        # The first alone, the others once it has succeeded: a call that kills the process must not take the results of
        # earlier ones along.
        self._open = deque((None, method, arguments) for _, method, arguments in self._open)

    @staticmethod
    def first_ready(workers: Sequence[RayWorker]) -> RayWorker:
        """Wait until one of these workers has the result of its oldest call, or has died: the one that it is.

        Raises
        ------
        TimeoutError, Stopped
            As `result` does.
        """
        began = time.monotonic()
        while True:
            waiting = {worker._open[0][0]: worker for worker in workers}
            if None in waiting:
                return waiting[None]  # its process was replaced
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=0.2)
            if ready:
                return waiting[ready[0]]
            if tick():
                raise Stopped
            for reference, worker in waiting.items():
                worker._is_late(reference, time.monotonic() - max(began, worker._asked))

    def pid(self) -> int:
        """Process id of the actor."""
        return int(ray.get(self._actor.pid.remote()))

    def close(self) -> None:
        """End the actor's process."""
        with contextlib.suppress(Exception):
            ray.kill(self._actor)
