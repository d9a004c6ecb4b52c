"""The service as a named Ray actor: one learner for all experiments on a cluster, which outlives every one of them.

The actor is detached, restarts itself when its process dies, and recovers from its folder. Calls that were open are
made again by Ray; that is safe, since a transition is learned once however often it is sent.

Ray costs half a millisecond for each call and may deliver calls in another order. So a handle has one call for learning
and one for values on their way at a time, each with everything that was submitted meanwhile, in order.
"""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.cluster import must_answer  # first, since it sets what Ray reads when it is imported
from valueapprox.service.errors import QueueFullError, ServiceError, StorageError
from valueapprox.service.messages import Gradients, LearnResult, Norms, Transitions, Values, Weights, without_gap
from valueapprox.service.service import Service, outcome, settle, values_of_each
from valueapprox.service.settings import ServiceSettings

import ray  # isort: skip
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

__all__ = ["RemoteService", "connect", "start"]

NAMESPACE = "valueapprox"
RELEASE_SECONDS = 30.0  # that a restarted actor waits for the folder
IDLE_SECONDS = 10.0  # after which a thread that sends requests ends
MAX_ROWS = 16_384  # transitions, or states, in a message, unless one request has more


class _Host:
    """The actor. Its calls run in one event loop; learning itself is done by the service's own thread."""

    def __init__(self, settings: ServiceSettings, folder: str | None) -> None:
        again = ray.get_runtime_context().was_current_actor_reconstructed
        deadline = time.monotonic() + (RELEASE_SECONDS if again else 0.0)
        # An error is kept for whoever asks, since Ray would give the text of it only.
        self._service = outcome(Service, settings, folder)
        while isinstance(self._service, StorageError) and time.monotonic() < deadline:
            time.sleep(0.1)  # the process that this one replaces may not quite be gone
            self._service = outcome(Service, settings, folder)

    def _service_or_raise(self) -> Service:
        if isinstance(self._service, Exception):
            raise self._service
        return self._service

    async def call(self, method: str, *arguments: Any) -> Any:
        """What needs no waiting."""
        return getattr(self._service_or_raise(), method)(*arguments)

    async def wait_for(self, method: str, *arguments: Any) -> Any:
        """What waits for the writer."""
        return await asyncio.to_thread(getattr(self._service_or_raise(), method), *arguments)

    async def learn(self, batches: list[Transitions]) -> list[LearnResult | BaseException]:
        """Learn in this order: what became of each request, or why not."""
        service = self._service_or_raise()
        outcomes: list[Any] = []
        for batch in batches:
            before = outcomes[-1] if outcomes else None
            # What follows a request must not overtake it if that was refused.
            outcomes.append(before if isinstance(before, QueueFullError) else outcome(service.submit, batch))
        waiting = [asyncio.wrap_future(found) for found in outcomes if isinstance(found, Future)]
        results = iter(await asyncio.gather(*waiting, return_exceptions=True))
        return [next(results) if isinstance(found, Future) else found for found in outcomes]

    async def values(self, states: list[np.ndarray]) -> list[Values | Exception]:
        """Predictions for each of several requests, by one forward pass."""
        return values_of_each(self._service_or_raise(), states)

    async def about(self) -> ServiceSettings:
        """The settings, once the service is there."""
        return self._service_or_raise().settings


class OrderedSender:
    """Requests in the order in which they came: all that wait go as one call, and one call is on its way at a time."""

    def __init__(self, name: str, call: Callable[[list[Any]], Any], max_waiting: int) -> None:
        self._name, self._call, self._max = name, call, max_waiting
        self._wake = threading.Condition()
        self._queue: deque[tuple[Any, Future[Any]]] = deque()
        self._rows = 0
        self._thread: threading.Thread | None = None

    def submit(self, request: Any) -> Future[Any]:
        """Put a request into the queue."""
        future: Future[Any] = Future()
        with self._wake:
            if self._rows and self._rows + len(request) > self._max:
                raise QueueFullError(
                    f"{self._rows} transitions or states are waiting to be sent, and max_queue is {self._max}; try "
                    "again later"
                )
            self._queue.append((request, future))
            self._rows += len(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="valueapprox-sender", daemon=True)
                self._thread.start()
            self._wake.notify()
        return future

    def _send(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._wake.wait_for(lambda: bool(self._queue), IDLE_SECONDS):
                    self._thread = None
                    return
                group = [self._queue.popleft()]
                rows = len(group[0][0])
                while self._queue and rows + len(self._queue[0][0]) <= MAX_ROWS:
                    group.append(self._queue.popleft())
                    rows += len(group[-1][0])
                self._rows -= rows
            group = [(request, future) for request, future in group if future.set_running_or_notify_cancel()]
            if group:
                try:
                    outcomes = _get(self._call([request for request, _ in group]), None, self._name)
                except BaseException as error:  # noqa: BLE001  (it belongs to those who wait)
                    outcomes = [error] * len(group)
                for (_, future), found in zip(group, outcomes, strict=True):
                    settle(future, found)


class RemoteService:
    """A service in a Ray actor, with the methods of `Service`; made by `start` and `connect`.

    It can be handed to Ray tasks and actors. Errors arrive as what they were: InvalidRequestError, QueueFullError, ....
    While the actor restarts, calls wait; `timeout` bounds that, in seconds, with a TimeoutError.
    """

    def __init__(self, name: str, actor: Any, settings: ServiceSettings, timeout: float | None = None) -> None:
        self.name, self.settings, self.timeout = name, settings, timeout
        self.net, self.names = settings.net, settings.names
        self.n_inputs, self.n_predictions = settings.net.n_inputs, len(settings.names)
        self._actor = actor
        self._learning = OrderedSender(name, actor.learn.remote, settings.max_queue)
        self._reading = OrderedSender(name, actor.values.remote, settings.max_queue)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteService, (self.name, self._actor, self.settings, self.timeout)

    def _get(self, reference: Any) -> Any:
        return _get(reference, self.timeout, self.name)

    def submit(self, batch: Transitions) -> Future[LearnResult]:
        """Send transitions without waiting for the answer. What one handle submits is learned in that order."""
        return self._learning.submit(batch)

    def learn(self, batch: Transitions, timeout: float | None = None) -> LearnResult:
        """Learn, and wait for the acknowledgement. See `Service.learn`."""
        return without_gap(batch, self.submit(batch).result(self.timeout if timeout is None else timeout))

    def values(self, states: ArrayLike) -> Values:
        """Predictions (n, k) at states (n, d), all with the same weights."""
        values, version = self._get(self._actor.call.remote("values", np.asarray(states)))
        return Values(np.array(values), version)

    def submit_values(self, states: ArrayLike) -> Future[Values]:
        """`values` without waiting for the answer; the states of several calls may share one forward pass."""
        return self._reading.submit(np.atleast_1d(np.asarray(states)))

    def gradients(self, states: ArrayLike, output: int = 0) -> Gradients:
        """How prediction `output` changes with each input: d v / d s (n, d) at states (n, d)."""
        gradients, version = self._get(self._actor.call.remote("gradients", np.asarray(states), output))
        return Gradients(np.array(gradients), version)

    def weights(self) -> Weights:
        """The weights and their version."""
        return Weights(*self._get(self._actor.call.remote("weights")))

    def norms(self) -> Norms:
        """Euclidean norm of each layer's weights."""
        return Norms(*self._get(self._actor.call.remote("norms")))

    def load_weights(self, weights: str | Path | ArrayLike) -> int:
        """Continue with other weights; a path is one on the actor's machine. See `Service.load_weights`."""
        given = str(weights) if isinstance(weights, str | Path) else np.asarray(weights)
        return int(self._get(self._actor.wait_for.remote("load_weights", given)))

    @property
    def version(self) -> int:
        """Number of changes that the weights have had."""
        return int(self.norms().version)

    def health(self) -> dict[str, Any]:
        """The state of the service; see `Service.health`."""
        return dict(self._get(self._actor.call.remote("health")))

    def diagnostics(self) -> dict[str, float]:
        """Averages over the last second in which something was learned; see `Service.diagnostics`."""
        return dict(self._get(self._actor.call.remote("diagnostics")))

    def recent(self, after: int = 0) -> list[dict[str, Any]]:
        """Predictions at some of what was learned in the last minutes; see `Service.recent`."""
        return list(self._get(self._actor.call.remote("recent", after)))

    def checkpoint(self) -> None:
        """Write a checkpoint now."""
        self._get(self._actor.wait_for.remote("checkpoint"))

    def stop(self) -> None:
        """End the service for everybody: finish what waits, write a checkpoint, remove the actor."""
        try:
            self._get(self._actor.wait_for.remote("close"))
        finally:
            ray.kill(self._actor)


def start(
    name: str,
    settings: ServiceSettings,
    folder: str | Path | None,
    ray_address: str | None = None,
    *,
    shared_folder: bool = False,
    timeout: float | None = None,
) -> RemoteService:
    """Start a service as a detached actor called `name`.

    Parameters
    ----------
    name
        What `connect` asks for.
    settings
        What it learns.
    folder
        Where its journal lies. None: nothing is kept, and when the actor's process dies, it is not started again.
    ray_address
        The cluster, as for `connect`.
    shared_folder
        Whether all machines of the cluster see the folder. Otherwise the actor stays on this machine.
    timeout
        Seconds that each call of the handle may take; None for any time.

    Raises
    ------
    ValueError
        If there is an actor of this name already, or settings and folder do not fit.
    """
    _join(ray_address)
    options = dict.fromkeys(("max_restarts", "max_task_retries"), 0 if folder is None else -1)
    if not shared_folder:
        here = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    path = None if folder is None else str(Path(folder).absolute())
    try:
        kind = ray.remote(_Host).options(name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, **options)
        actor = kind.remote(settings, path)
    except ValueError:
        raise ValueError(
            f"the name {name!r} is taken by a running service; connect to it, or choose another name"
        ) from None
    try:
        return RemoteService(name, actor, _get(actor.about.remote(), timeout, name), timeout)
    except BaseException:
        ray.kill(actor)
        raise


def connect(name: str, ray_address: str | None = None, *, timeout: float | None = None) -> RemoteService:
    """The service called `name`, which `start` started somewhere on the cluster; nothing is created.

    Parameters
    ----------
    name
        Its name.
    ray_address
        host:port, ray://host:port, or "auto" for the cluster on this machine; None for the one that this process is
        connected to, or else "auto".
    timeout
        Seconds that each call may take; None for any time.

    Raises
    ------
    LookupError
        If no service has this name; the message says which there are.
    ConnectionError
        If no cluster answers.
    """
    _join(ray_address)
    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        actors = ray.util.list_named_actors(all_namespaces=True)
        known = ", ".join(sorted(entry["name"] for entry in actors if entry["namespace"] == NAMESPACE))
        message = f"expected one of {known}" if known else "none is running"
        raise LookupError(f"no service on this cluster is called {name!r}; {message}") from None
    return RemoteService(name, actor, _get(actor.about.remote(), timeout, name), timeout)


def _join(address: str | None) -> None:
    """Be connected to the cluster; a connection that exists already is used."""
    if ray.is_initialized():
        return
    address = address or "auto"
    must_answer(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
            raise ConnectionError(f"Ray does not answer at {address!r}: {str(error).strip().splitlines()[0]}") from None


def _get(reference: Any, timeout: float | None, name: str) -> Any:
    try:
        return ray.get(reference, timeout=timeout)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, BaseException) else error) from None
    except RayActorError as error:
        raise ServiceError(f"the service {name!r} is gone: {str(error).strip().splitlines()[0]}") from error
    except GetTimeoutError:
        raise TimeoutError(f"the service {name!r} has not answered within {timeout} seconds") from None
