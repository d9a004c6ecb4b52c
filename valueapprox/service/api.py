"""The HTTP door: a FastAPI application over a Service, or over anything with its methods.

Bodies are validated by models that are made from the network's own shapes, so that the OpenAPI description says exactly
what is taken. Value requests that arrive in one turn of the event loop share one forward pass. What holds for every
request (token, limits, metrics, the version of the weights) stands in one place, `Door`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pydantic_core
from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import request_response

from valueapprox.nn.network import Network
from valueapprox.service.bodies import JSON, NPY, NPZ, BodyError, numbers, read_npy, read_npz, write_npy, write_npz
from valueapprox.service.messages import (
    STATUS_NAMES,
    Closed,
    InvalidTransitions,
    LearnResult,
    QueueFull,
    ReadOnly,
    ServiceError,
    StorageError,
    Transitions,
    Values,
    gap,
)
from valueapprox.service.metrics import Metrics
from valueapprox.service.schemas import (
    ARRAYS_TEXT,
    About,
    Alive,
    Error,
    GradientsAnswer,
    Limits,
    ManyLearned,
    NormsAnswer,
    OneLearned,
    Ready,
    Requests,
    Served,
    ValuesAnswer,
    VersionAnswer,
    WeightsAnswer,
    parse,
    transitions_from,
)

__all__ = ["Limits", "Served", "create_app"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MEANING = {
    200: "done",
    400: "the body cannot be read",
    401: "the token is missing or another one",
    403: "not here: a name that is not this machine's, or a service that does not learn",
    408: "the body took too long",
    409: "sequence numbers are missing in a stream; `expected` says which one is due",
    413: "the body is too large",
    415: "another content type is wanted",
    422: "a field is wrong, and named",
    429: "no room; try again after as many seconds as retry-after says",
    500: "a fault of the service",
    503: "not now: nothing can be kept, or the service is ending",
}
ONCE = frozenset(  # headers that would say two things if they came twice
    (b"host", b"origin", b"authorization", b"content-type", b"content-length", b"content-encoding", b"expect")
)
LOGGED_PATH = 300  # characters of an address in the log
OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")  # without a token: probes, and what describes the API
AS_JSON = ("", JSON, "application/x-www-form-urlencoded")  # the last is what `curl -d` says if nobody tells it
IN_THE_LOOP = 8192  # states whose forward pass is short enough not to be handed to another thread,
LOOP_WORK = 2**24  # if they are no more than this divided by the number of weights: some milliseconds
PARSED_IN_THE_LOOP = 2**18  # bytes of JSON, likewise
PAGE = Path(__file__).with_name("page.html")
log = logging.getLogger("valueapprox.service")


# --- many requests, one forward pass ----------------------------------------------------------------------------------


class Batcher:
    """Value requests of one turn of the event loop, answered by one forward pass with one set of weights."""

    def __init__(self, service: Served) -> None:
        self.service = service
        self.most = max(1, min(IN_THE_LOOP, LOOP_WORK // service.settings.net.n_parameters))
        self._waiting: list[tuple[np.ndarray, asyncio.Future[Values]]] = []
        self._rows = 0

    async def values(self, states: np.ndarray) -> Values:
        """Predictions (n, k) at states (n, d)."""
        loop = asyncio.get_running_loop()
        if len(states) > self.most:
            return await loop.run_in_executor(None, self.service.values, states)
        if self._rows + len(states) > self.most:
            self._answer()
        if not self._waiting:
            loop.call_soon(self._answer)
        future: asyncio.Future[Values] = loop.create_future()
        self._waiting.append((states, future))
        self._rows += len(states)
        return await future

    def _answer(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        try:
            together = waiting[0][0] if len(waiting) == 1 else np.concatenate([states for states, _ in waiting])
            values, version = self.service.values(together)
        except Exception as error:  # noqa: BLE001  (goes to everyone who waits)
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for states, future in waiting:
            if not future.done():
                future.set_result(Values(values[start : start + len(states)], version))
            start += len(states)


# --- what holds for every request -------------------------------------------------------------------------------------


def error_answer(
    status: int, kind: str, field: str | None, message: str, version: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The body of an error, which is the same everywhere."""
    content = pydantic_core.to_json({"error": {"type": kind, "field": field, "message": message}, "version": version})
    return Response(content, status, {"x-version": str(version), **(headers or {})}, JSON)


class Door:
    """ASGI: who may come in, and what every answer carries.

    Without a token, only requests that name this machine are taken: a page from elsewhere, open in a browser here, can
    reach 127.0.0.1, but cannot hide where it comes from.
    """

    def __init__(
        self, app: Any, service: Served, metrics: Metrics, token: str | None, hosts: tuple[str, ...] | None,
        log_requests: bool,
    ) -> None:  # fmt: skip
        self.app, self.service, self.metrics, self.hosts, self.log_requests = app, service, metrics, hosts, log_requests
        self.token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def tell(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                if not any(name == b"x-version" for name, _ in headers):
                    headers.append((b"x-version", b"%d" % self.service.version))
            await send(message)

        try:
            refusal = self.refusal(scope)
            if refusal is None:
                await self.app(scope, receive, tell)
            else:
                await refusal(scope, receive, tell)
        except Exception:
            log.exception("a request failed", extra={"path": scope["path"][:LOGGED_PATH]})
            if status:  # too late for an answer
                raise
            answer = error_answer(500, "Failure", None, "the service failed; its log says why", self.service.version)
            await answer(scope, receive, tell)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.observe(scope["path"], scope["method"], status, seconds)
            if self.log_requests:
                facts = {
                    "path": scope["path"][:LOGGED_PATH],
                    "method": scope["method"],
                    "status": status,
                    "seconds": seconds,
                }
                log.info("request", extra=facts)

    def refusal(self, scope: Any) -> Response | None:
        """The answer to somebody who may not come in."""
        headers = dict(scope["headers"])
        version = self.service.version
        if len(headers) != len(scope["headers"]):
            names = [name for name, _ in scope["headers"]]
            for name in ONCE.intersection(names):
                if (count := names.count(name)) > 1:
                    return error_answer(
                        400, "Invalid", name.decode(), f"is given {count} times; expected once", version
                    )
        if self.token is not None and scope["path"] not in OPEN:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self.token):
                return error_answer(
                    401, "Unauthorized", "authorization",
                    "the header 'authorization: Bearer TOKEN' with this service's token is wanted",
                    version, {"www-authenticate": "Bearer"},
                )  # fmt: skip
        if self.hosts is not None:
            if _host(headers.get(b"host", b"")) not in self.hosts:
                return error_answer(
                    403, "Forbidden", "host",
                    f"this service answers to {', '.join(self.hosts)}; with a token, to any name", version,
                )  # fmt: skip
            origin = headers.get(b"origin")
            if origin is not None and _host(origin.rpartition(b"//")[2]) not in self.hosts:
                return error_answer(
                    403, "Forbidden", "origin", "requests from pages of other sites are refused", version
                )
        return None


def _accept(request: Request) -> str:
    return ", ".join(request.headers.getlist("accept"))


def _host(netloc: bytes) -> str:
    """The name in host:port."""
    try:
        return urlsplit(f"//{netloc.decode('ascii')}").hostname or ""
    except ValueError:
        return ""


# --- the application --------------------------------------------------------------------------------------------------


def create_app(
    service: Served,
    *,
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
    limits: Limits | None = None,
    log_requests: bool = False,
) -> FastAPI:
    """The application.

    Parameters
    ----------
    service
        A Service, or anything with its methods.
    token
        Every request must carry it, except for probes and the description of the API.
    hosts
        Names by which the service may be called; None for any. Those of this machine by default; with a token, any.
    limits
        What a request may cost.
    log_requests
        Log every request.
    """
    return _Application(service, token, None if token else hosts, limits or Limits(), log_requests).app


class _Application:
    """The routes of one application, and what they share."""

    def __init__(
        self, service: Served, token: str | None, hosts: tuple[str, ...] | None, limits: Limits, log_requests: bool
    ) -> None:
        self.service, self.limits, self.token = service, limits, token
        self.net: Network = service.settings.net
        self.requests = Requests(service, limits)
        self.batcher = Batcher(service)
        self.reading = 0
        # One thread: a parser holds the interpreter's lock, and with more of them the event loop would wait for each.
        self.parser = ThreadPoolExecutor(1, "parser")
        self.app = FastAPI(
            title="Value service", version="1", docs_url=None, redoc_url=None, redirect_slashes=False,
            summary=self._summary(),
            description="The header x-version of every answer is the version of the weights.",
        )  # fmt: skip
        self._routes()
        paths = tuple(route.path for route in self.app.routes if hasattr(route, "path"))
        self.metrics = Metrics(service, paths)
        self.app.add_middleware(
            Door, service=service, metrics=self.metrics, token=token, hosts=hosts, log_requests=log_requests
        )
        self.app.add_exception_handler(BodyError, self._on_body_error)
        self.app.add_exception_handler(ServiceError, self._on_service_error)
        self.app.add_exception_handler(HTTPException, self._on_http_error)
        self._describe()

    def _summary(self) -> str:
        d, k = self.service.n_inputs, self.service.n_predictions
        return f"{k} prediction{'s' * (k > 1)} from states of {d} number{'s' * (d > 1)}, network {self.net}"

    # --- errors ---

    def _on_body_error(self, request: Request, error: Any) -> Response:
        return error_answer(error.status, "Invalid", error.field, error.message, self.service.version)

    def _on_service_error(self, request: Request, error: Any) -> Response:
        kind, field, headers, status = type(error).__name__, None, {}, 503
        if isinstance(error, InvalidTransitions):
            status, field = 422, error.field
            if self.requests.k == 1 and self._kind(request, NPZ) == JSON:
                field = {"cumulants": "reward", "discounts": "discount"}.get(field, field)
        elif isinstance(error, QueueFull):
            status, headers = 429, {"retry-after": str(math.ceil(error.retry_after))}
        elif isinstance(error, ReadOnly):
            status = 403
        elif isinstance(error, StorageError | Closed):
            headers = {"retry-after": "5"}
        return error_answer(status, kind, field, str(error), self.service.version, headers)

    def _on_http_error(self, request: Request, error: Any) -> Response:
        path = request.scope["path"][:200]  # request.url would read the host, which may be anything
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        routes = [route for route in self.app.routes if path in (getattr(route, "path", None), "/*")]
        methods = sorted({method for route in routes for method in getattr(route, "methods", None) or ()})
        version = self.service.version
        if methods and request.method == "OPTIONS":
            return Response(None, 204, {"allow": ", ".join(["OPTIONS", *methods]), "x-version": str(version)})
        if error.status_code == 405:
            headers["allow"] = ", ".join(methods)
            message = f"is {request.method}; expected {' or '.join(methods)} at {path}"
            return error_answer(405, "NotAllowed", "method", message, version, headers)
        kind, message = "Invalid", str(error.detail)
        if error.status_code == 404:
            kind, message = "NotFound", f"there is no {path}; /docs lists what there is"
        return error_answer(error.status_code, kind, None, message, version, headers)

    # --- requests ---

    async def _body(self, request: Request) -> bytes:
        """The body, unless it is too large, too slow, or too many are being read or worked on."""
        limits, declared = self.limits, request.headers.get("content-length")
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise BodyError(415, "content-encoding", f"is {encoding[:80]!r}; expected a body as it is")
        if declared is not None and declared.isdecimal() and int(declared) > limits.max_body:
            raise self._too_large(int(declared))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_seconds):  # for all of it: a byte now and then does not help
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise BodyError(400, None, "the connection was closed before the body had arrived")
                    part = message.get("body", b"")
                    size += len(part)
                    self.reading += len(part)
                    request.scope["reading"] = size  # until the answer is there, see `_settled`
                    if size > limits.max_body:
                        raise self._too_large(size)
                    if self.reading > limits.max_reading:
                        raise QueueFull("too many bodies are being read; try again", 1.0)
                    parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise BodyError(408, None, f"the body did not arrive within {limits.body_seconds:g} s") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _settled(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The handler; the bytes that it has read are free again when it ends, however it ends."""

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            finally:
                self.reading -= request.scope.pop("reading", 0)

        return handle

    def _too_large(self, size: int) -> BodyError:
        return BodyError(413, None, f"the body has {size:,} bytes or more; at most {self.limits.max_body:,} are taken")

    async def _aside(self, body: bytes, read: Callable[[], Any]) -> Any:
        """`read()`, in another thread if the body is large, so that others are answered meanwhile."""
        if len(body) <= PARSED_IN_THE_LOOP:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self.parser, read)

    def _kind(self, request: Request, binary: str) -> str:
        """JSON, or the binary type that this route takes."""
        named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if named in AS_JSON:
            return JSON
        if named == binary:
            return binary
        raise BodyError(415, "content-type", f"is {named[:80]!r}; {JSON} or {binary} is wanted")

    def _options(self, request: Request, **known: tuple[str, ...]) -> dict[str, str]:
        """The query, in which each option has one of the known values."""
        options: dict[str, str] = {}
        query = request.scope["query_string"].decode("latin-1")
        if not query:
            return options
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in known or name in options:
                there = f"there is {', '.join(known)}" if known else "this address has no options"
                raise BodyError(422, name[:80], f"is given twice, or not known; {there}")
            if value not in known[name]:
                raise BodyError(422, name, f"is {value[:80]!r}; {_choice(known[name])} is wanted")
            options[name] = value
        return options

    async def _states(self, request: Request) -> np.ndarray:
        """The states (n, d) in a body, as JSON or npy."""
        body = await self._body(request)
        if self._kind(request, NPY) == JSON:
            return await self._aside(body, lambda: np.array(parse(self.requests.states, body).states, self.net.dtype))
        shape = (None, self.service.n_inputs)
        states = await self._aside(body, lambda: numbers("states", read_npy(body, "states"), self.net.dtype, shape))
        if not 1 <= len(states) <= self.limits.max_states:
            raise BodyError(422, "states", f"has {len(states)} rows; 1 to {self.limits.max_states} are taken at a time")
        return states

    # --- answers ---

    def _json(self, content: dict[str, Any], status: int = 200, version: int | None = None) -> Response:
        version = int(content["version"]) if version is None else version
        body = pydantic_core.to_json(content, inf_nan_mode="null")
        return Response(body, status, {"x-version": str(version)}, JSON)

    def _array(self, request: Request, name: str, array: np.ndarray, version: int) -> Response:
        """An array as it was asked for: npy for npy, JSON for JSON, unless `accept` says otherwise."""
        if self._wants(request, NPY):
            return Response(write_npy(array), 200, {"x-version": str(version)}, NPY)
        return self._json({name: array.tolist(), "version": version})

    def _wants(self, request: Request, binary: str) -> bool:
        accept = _accept(request)
        if JSON in accept:
            return False
        return binary in accept or request.headers.get("content-type", "").startswith(binary)

    # --- routes ---

    async def values(self, request: Request) -> Response:
        """What states are worth: v(s) for each prediction."""
        self._options(request)
        states = await self._states(request)
        values, version = await self.batcher.values(states)
        return self._array(request, "values", values, version)

    async def gradients(self, request: Request) -> Response:
        """Why a state is worth that: how a prediction changes with each input, d v / d s."""
        options = self._options(request, output=tuple(map(str, range(self.requests.k))))
        states, output = await self._states(request), int(options.get("output", 0))
        loop = asyncio.get_running_loop()
        gradients, version = (
            self.service.gradients(states, output)
            if len(states) <= min(16, self.batcher.most)
            else await loop.run_in_executor(None, self.service.gradients, states, output)
        )
        return self._array(request, "gradients", gradients, version)

    async def learn(self, request: Request) -> Response:
        """Learn from transitions: one, or {"transitions": [...]}, in this order.

        The answer comes once they are kept. A transition whose number was seen before is not learned again, so
        whoever gets no answer may send it again. 409: numbers are missing in a stream, and from there on nothing of it
        was learned; other streams were.
        """
        self._options(request)
        body = await self._body(request)
        single = False
        if self._kind(request, NPZ) == JSON:
            single, batch = await self._aside(body, lambda: self._from_json(body))
        else:
            batch = await self._aside(body, lambda: transitions_from(read_npz(body), self.service))
        result = await self._acknowledged(self.service.submit(batch))
        return self._learned(request, batch, result, single)

    def _from_json(self, body: bytes) -> tuple[bool, Transitions]:
        """Transitions, and whether it is a single one."""
        single = self.requests.is_single(body)
        parsed = parse(self.requests.transition if single else self.requests.transitions, body)
        return single, self.requests.arrays([parsed] if single else parsed.transitions)

    async def _acknowledged(self, future: Future[Any]) -> Any:
        """Wait for another thread without holding this one up."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()

        def settle() -> None:
            if waiter.done():  # nobody waits any more
                return
            error = future.exception()
            if error is None:
                waiter.set_result(future.result())
            else:
                waiter.set_exception(error)

        future.add_done_callback(lambda _: loop.call_soon_threadsafe(settle))
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                return await waiter
        except TimeoutError:
            raise ServiceError(
                f"no acknowledgement within {self.limits.answer_seconds:g} s; send it again: nothing is learned twice"
            ) from None

    def _learned(self, request: Request, batch: Transitions, result: LearnResult, single: bool) -> Response:
        problem = gap(batch, result)
        status = 200 if problem is None else 409
        if self._wants(request, NPZ):
            arrays = {"status": result.status, "td_errors": result.td_errors, "expected": result.expected}
            return Response(write_npz(arrays), status, {"x-version": str(result.version)}, NPZ)
        known = np.isfinite(result.td_errors).all(axis=1).tolist()
        errors = [row if fine else None for row, fine in zip(result.td_errors.tolist(), known, strict=True)]
        names = [STATUS_NAMES[code] for code in result.status.tolist()]
        expected = [None if number < 0 else number for number in result.expected.tolist()]
        content: dict[str, Any] = {}
        if problem is not None:
            field = "sequence" if single else f"transitions[{problem.index}].sequence"
            content["error"] = {"type": "Gap", "field": field, "message": problem.message}
        if single:
            content |= {"status": names[0], "td_errors": errors[0], "expected": expected[0]}
        else:
            for name in ("learned", "duplicates", "rejected", "diverged"):
                content[name] = getattr(result, name)
            content |= {"status": names, "td_errors": errors, "expected": expected}
        return self._json({**content, "version": result.version}, status)

    async def get_weights(self, request: Request) -> Response:
        """The weights: JSON, or an npz file if `accept` says application/x-npz."""
        self._options(request)
        weights = self.service.weights()
        if NPZ in _accept(request):
            arrays = {"w": weights.w, "version": np.array(weights.version)}
            for name, (start, shape) in weights.blocks.items():
                block = weights.w[:, start : start + math.prod(shape)]
                arrays[f"block/{name}"] = block.reshape(len(weights.w), *shape)
            return Response(write_npz(arrays), 200, {"x-version": str(weights.version)}, NPZ)
        blocks = {name: [start, list(shape)] for name, (start, shape) in weights.blocks.items()}
        return self._json(
            {"w": weights.w.tolist(), "blocks": blocks, "net": weights.net, "names": list(weights.names),
             "version": weights.version}
        )  # fmt: skip

    async def put_weights(self, request: Request) -> Response:
        """Go on with other weights: an npy array (P,), or (m, P) with one row per network. Traces are cut."""
        self._options(request)
        if self.service.settings.read_only and self.token is None:
            raise ReadOnly(
                "this service only answers; its weights can be replaced by whoever has its token, if it has one"
            )
        body = await self._body(request)
        named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if named != NPY:
            raise BodyError(415, "content-type", f"is {named[:80]!r}; {NPY} is wanted")
        m, size = self.service.weights().w.shape
        array = read_npy(body, "w")
        array = numbers("w", array[None] if array.ndim == 1 else array, self.net.dtype, (m, size))
        loop = asyncio.get_running_loop()
        try:
            version = await loop.run_in_executor(None, self.service.load_weights, array)
        except ValueError as error:
            raise BodyError(422, "w", str(error).removeprefix("weights ")) from None
        return self._json({"version": version})

    async def norms(self, request: Request) -> Response:
        """Euclidean norm of each layer's weights."""
        self._options(request)
        norms, version = self.service.norms()
        return self._json({"norms": dict(norms), "version": version})

    async def about(self, request: Request) -> Response:
        """What is served, and the limits of a request."""
        self._options(request)
        settings = self.service.settings
        return self._json(
            {
                "inputs": self.service.n_inputs,
                "predictions": list(self.service.names),
                "discounts": list(settings.discounts),
                "lams": list(settings.lams),
                "network": self.net.as_dict(),
                "separate": settings.separate,
                "read_only": settings.read_only,
                "durability": settings.durability,
                "on_gap": settings.on_gap,
                "max_batch": settings.max_batch,
                "max_states": self.limits.max_states,
                "max_body": self.limits.max_body,
                "version": self.service.version,
            }
        )

    async def health(self, request: Request) -> Response:
        """Everything that the service knows of its own state."""
        self._options(request)
        health = await self._health()
        return self._json(health, version=int(health.get("version", self.service.version)))

    async def _health(self) -> dict[str, Any]:
        """In another thread, since the service may be elsewhere."""
        return await asyncio.get_running_loop().run_in_executor(None, self.service.health)

    async def healthz(self, request: Request) -> Response:
        """Whether the process answers."""
        self._options(request)
        return self._json({"status": "ok", "version": self.service.version})

    async def readyz(self, request: Request) -> Response:
        """Whether values are served; 503 if not."""
        self._options(request)
        health = await self._health()
        answer = {
            "ready": bool(health.get("ready")),
            "learning": bool(health.get("learning")),
            "reason": health.get("reason") or None,
            "version": self.service.version,
        }
        return self._json(answer, 200 if answer["ready"] else 503)

    async def metrics_page(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        self._options(request)
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(None, generate_latest, self.metrics.registry)
        return Response(text, 200, media_type=CONTENT_TYPE_LATEST)

    async def page(self, request: Request) -> Response:
        """What this is, as a page with a form to try each request; it loads nothing from elsewhere."""
        self._options(request)
        return Response(PAGE.read_bytes(), 200, media_type="text/html; charset=utf-8")

    def _routes(self) -> None:
        refused = dict.fromkeys((400, 408, 413, 415, 422, 429), Error)

        def add(
            method: str,
            path: str,
            handler: Callable[[Request], Awaitable[Response]],
            answers: Mapping[int, Any],
            extra: dict[str, Any] | None = None,
        ) -> None:
            responses: dict[int | str, dict[str, Any]] = {}
            answers = {500: Error, **answers} | ({401: Error} if self._guarded(path) else {})
            if self.token is None:
                answers = {403: Error, **answers}
            for status, answer in sorted(answers.items()):
                content = {"content": answer} if isinstance(answer, dict) else {"model": answer}
                responses[status] = {"description": MEANING[status], **content}
            summary, _, description = (handler.__doc__ or "").partition("\n\n")
            self.app.add_api_route(
                path, handler, methods=[method], responses=responses, openapi_extra=extra, response_class=Response,
                operation_id=handler.__name__, summary=summary, description=" ".join(description.split()) or summary,
            )  # fmt: skip
            # Handlers take the request as it is: FastAPI's injection of parameters has nothing to do, and costs as much
            # as everything else together.
            self.app.routes[-1].app = request_response(self._settled(handler))  # type: ignore[attr-defined]
            if method == "GET":  # probes ask so; the body is left out by who sends the answer
                self.app.add_route(path, handler, methods=["HEAD"], include_in_schema=False)

        npy = {NPY: {"schema": {"type": "string", "format": "npy"}}}
        npz = {NPZ: {"schema": {"type": "string", "format": "npz"}}}
        states_npy = {"description": f"JSON, or npy: one array (n, {self.service.n_inputs}), answered by an npy array"}
        output = {
            "name": "output", "in": "query", "required": False, "description": "which prediction",
            "schema": {"type": "integer", "minimum": 0, "maximum": self.requests.k - 1},
        }  # fmt: skip
        content = lambda name: {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}  # noqa: E731
        some = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Transition", "Transitions")]}
        body = lambda media, **more: {"requestBody": {"required": True, "content": media, **more}}  # noqa: E731
        add("GET", "/v1", self.about, {200: About, 422: Error})
        add("POST", "/v1/values", self.values, refused | {200: {**_json_of(ValuesAnswer), **npy}},
            body(content("States") | npy, **states_npy))  # fmt: skip
        add("POST", "/v1/gradients", self.gradients, refused | {200: {**_json_of(GradientsAnswer), **npy}},
            body(content("States") | npy, **states_npy) | {"parameters": [output]})  # fmt: skip
        learned = {**_json_of(OneLearned, ManyLearned), **npz}
        add("POST", "/v1/transitions", self.learn,
            refused | {200: learned, 403: Error, 409: learned, 503: Error},
            body({JSON: {"schema": some}, **npz}, description=f"JSON, or: {ARRAYS_TEXT}"))  # fmt: skip
        add("GET", "/v1/weights", self.get_weights, {200: {**_json_of(WeightsAnswer), **npz}, 422: Error})
        add("PUT", "/v1/weights", self.put_weights, refused | {200: VersionAnswer, 403: Error, 503: Error}, body(npy))
        add("GET", "/v1/norms", self.norms, {200: NormsAnswer, 422: Error})
        add("GET", "/v1/health", self.health, {200: {JSON: {"schema": {"type": "object"}}}, 422: Error})
        add("GET", "/healthz", self.healthz, {200: Alive, 422: Error})
        add("GET", "/readyz", self.readyz, {200: Ready, 422: Error, 503: Ready})
        add("GET", "/metrics", self.metrics_page, {200: {"text/plain": {"schema": {"type": "string"}}}, 422: Error})
        self.app.add_route("/docs", self.page, methods=["GET", "HEAD"], include_in_schema=False)

    def _guarded(self, path: str) -> bool:
        return self.token is not None and path not in OPEN

    def _describe(self) -> None:
        """Complete the description: the models of requests, those of answers with two forms, and the token."""
        plain = self.app.openapi

        def openapi() -> dict[str, Any]:
            if self.app.openapi_schema is not None:
                return self.app.openapi_schema
            schema = plain()
            models = schema.setdefault("components", {}).setdefault("schemas", {})
            models.update(self.requests.components())
            for model in (ValuesAnswer, GradientsAnswer, WeightsAnswer, OneLearned, ManyLearned):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                models.update(own.pop("$defs", {}))
                models[model.__name__] = own
            if self.token is not None:
                schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values() if self._guarded(path) else ():
                        operation["security"] = [{"token": []}]
            self.app.openapi_schema = schema
            return schema

        self.app.openapi = openapi  # type: ignore[method-assign]


def _json_of(*models: type[BaseModel]) -> dict[str, Any]:
    parts = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    return {JSON: {"schema": parts[0] if len(parts) == 1 else {"oneOf": parts}}}


def _choice(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
