"""The HTTP interface: a FastAPI application over a Service, or over anything with its methods.

Bodies are parsed by models that are made from the network's own shapes, so that the OpenAPI description says exactly
what is taken; what they hold is checked by the service. Value requests that arrive in one turn of the event loop share
one forward pass. What holds for every request (token, limits, metrics, the version of the weights) stands in `gate`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import numpy as np
import pydantic_core
from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import request_response

from valueapprox import __version__
from valueapprox.service import schemas
from valueapprox.service.batcher import Batcher
from valueapprox.service.bodies import JSON, NPY, NPZ, read_npy, read_npz, write_npy, write_npz
from valueapprox.service.errors import InvalidRequestError, QueueFullError, ReadOnlyError, ServiceError
from valueapprox.service.gate import LOOPBACK, OPEN, Gate, error_answer, service_error_answer
from valueapprox.service.messages import MAX_SEQUENCE, STATUS_NAMES, LearnResult, Transitions, gap
from valueapprox.service.metrics import Metrics
from valueapprox.service.pages import page
from valueapprox.service.recent import MAX_PREDICTIONS
from valueapprox.service.schemas import Error, Limits, Requests, Served, parse, transitions_from

__all__ = ["create_app"]

MEANING = {
    200: "done",
    400: "the body cannot be read",
    401: "the token is missing or wrong",
    403: "not allowed: a name that is not this machine's, or a service that does not learn",
    408: "the body took too long",
    409: "sequence numbers are missing in a stream; `expected` says which one is due",
    413: "the body is too large",
    415: "the content type is not one that is taken here",
    422: "a field is wrong; `field` names it",
    429: "the queue is full; try again after as many seconds as retry-after says",
    500: "a fault of the service",
    503: "not now: nothing can be kept, or the service is closing",
}
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
AS_JSON = ("", JSON, "application/x-www-form-urlencoded")  # the last is curl's default for `-d`
PARSED_IN_LOOP = 2**18  # bytes of JSON that are parsed in the event loop


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
        Every request must carry it, except for probes, pages and the description of the API.
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
        self.net = service.settings.net
        self.requests = Requests(service, limits)
        d, k = service.n_inputs, service.n_predictions
        self.batcher = Batcher(service)
        self.reading = 0
        # One thread: a parser holds the interpreter's lock, and with more of them the event loop would wait for each.
        self.parser = ThreadPoolExecutor(1, "parser")
        self.app = FastAPI(
            title="Value service", version="1", docs_url=None, redoc_url=None, redirect_slashes=False,
            summary=f"{k} prediction{'s' * (k > 1)} from states of {d} number{'s' * (d > 1)}, network {self.net}",
            description="The header x-version of every answer is the version of the weights.",
        )  # fmt: skip
        self._routes()
        paths = tuple(route.path for route in self.app.routes if hasattr(route, "path"))
        self.metrics = Metrics(service, paths)
        self.app.add_middleware(
            Gate, service=service, metrics=self.metrics, token=token, hosts=hosts, log_requests=log_requests
        )
        self.app.add_exception_handler(ServiceError, lambda _, error: service_error_answer(error, service.version))
        self.app.add_exception_handler(HTTPException, self._on_http_error)
        self._describe()

    # --- errors ---

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
        kind, message = "InvalidRequestError", str(error.detail)
        if error.status_code == 404:
            kind, message = "NotFound", f"the path is {path}; expected one of those that /docs lists"
        return error_answer(error.status_code, kind, None, message, version, headers)

    # --- requests ---

    async def _body(self, request: Request) -> bytes:
        """The body, unless it is too large, too slow, or too many are being read or worked on."""
        limits, declared = self.limits, request.headers.get("content-length")
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise InvalidRequestError("content-encoding", f"is {encoding[:80]!r}; expected none", status=415)
        if declared is not None and declared.isdecimal() and int(declared) > limits.max_body:
            raise self._too_large(int(declared))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_seconds):  # for all of it: a byte now and then does not help
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise InvalidRequestError(
                            None, "the connection was closed before the body had arrived", status=400
                        )
                    part = message.get("body", b"")
                    size += len(part)
                    self.reading += len(part)
                    request.scope["reading"] = size  # until the answer is there, see `_route`
                    if size > limits.max_body:
                        raise self._too_large(size)
                    if self.reading > limits.max_reading:
                        raise QueueFullError("too many bodies are being read; try again later", 1.0)
                    parts.append(part)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            late = f"the body did not arrive within {limits.body_seconds:g} s"
            raise InvalidRequestError(None, late, status=408) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _route(self, handler: Handler, known: Mapping[str, range]) -> Handler:
        """The handler of a request whose query has known options and values.

        The bytes that it has read are free again when it ends, however it ends.
        """

        async def handle(request: Request) -> Response:
            try:
                _check_options(request, known)
                return await handler(request)
            finally:
                self.reading -= request.scope.pop("reading", 0)

        return handle

    def _too_large(self, size: int) -> InvalidRequestError:
        message = f"the body has {size:,} bytes or more; expected at most {self.limits.max_body:,}"
        return InvalidRequestError(None, message, status=413)

    async def _in_thread(self, body: bytes, read: Callable[[], Any]) -> Any:
        """`read()`, in another thread if the body is large, so that others are answered meanwhile."""
        if len(body) <= PARSED_IN_LOOP:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self.parser, read)

    def _kind(self, request: Request, *kinds: str) -> str:
        """The content type, which is one of those that this route takes."""
        named = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        kind = JSON if named in AS_JSON and JSON in kinds else named
        if kind not in kinds:
            raise InvalidRequestError("content-type", f"is {named[:80]!r}; expected {' or '.join(kinds)}", status=415)
        return kind

    async def _states(self, request: Request) -> np.ndarray:
        """The states (n, d) in a body, as JSON or npy."""
        body = await self._body(request)
        if self._kind(request, JSON, NPY) == JSON:
            states = await self._in_thread(body, lambda: np.array(parse(self.requests.states, body).states, np.float64))
        else:
            states = await self._in_thread(body, lambda: read_npy(body, "states"))
        n, limit = len(states) if states.ndim else 0, self.limits.max_states
        if not 1 <= n <= limit:
            raise InvalidRequestError("states", f"has {n} rows; expected 1 to {limit}")
        return states

    # --- answers ---

    def _json(self, content: dict[str, Any], status: int = 200) -> Response:
        body = pydantic_core.to_json(content, inf_nan_mode="null")
        return Response(body, status, {"x-version": str(content["version"])}, JSON)

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
        states = await self._states(request)
        values, version = await self.batcher.values(states)
        return self._array(request, "values", values, version)

    async def gradients(self, request: Request) -> Response:
        """Why a state is worth that: how a prediction changes with each input, d v / d s."""
        states, output = await self._states(request), int(request.query_params.get("output", 0))
        if len(states) <= min(16, self.batcher.max_states):
            gradients, version = self.service.gradients(states, output)
        else:
            gradients, version = await asyncio.to_thread(self.service.gradients, states, output)
        return self._array(request, "gradients", gradients, version)

    async def learn(self, request: Request) -> Response:
        """Learn from transitions: one, or {"transitions": [...]}, in this order.

        The answer comes once they are kept. A transition whose number was seen before is not learned again, so
        whoever gets no answer may send it again. 409: numbers are missing in a stream, and from there on nothing of it
        was learned; other streams were.
        """
        body = await self._body(request)
        is_json = self._kind(request, JSON, NPZ) == JSON
        read = self._from_json if is_json else lambda body: (False, transitions_from(read_npz(body)))
        single, batch = await self._in_thread(body, lambda: read(body))
        if not len(batch):
            raise InvalidRequestError("transitions", "is empty; expected at least one transition")
        seconds = self.limits.answer_seconds
        try:
            # Shielded: what is waiting is learned although nobody waits for the answer any more.
            result = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self.service.submit(batch))), seconds)
        except InvalidRequestError as error:
            raise (self.requests.in_json(error, single) if is_json else error) from None
        except TimeoutError:
            late = f"the transitions were not acknowledged within {seconds:g} s; send them again, which is safe"
            raise ServiceError(late) from None
        return self._learned(request, batch, result, single)

    def _from_json(self, body: bytes) -> tuple[bool, Transitions]:
        """Whether a body is a single transition, and the transitions in it."""
        single = self.requests.is_single(body)
        parsed = parse(self.requests.transition if single else self.requests.transitions, body)
        return single, self.requests.arrays([parsed] if single else parsed.transitions)

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
            content["error"] = {"type": type(problem).__name__, "field": field, "message": problem.message}
        if single:
            content |= {"status": names[0], "td_errors": errors[0], "expected": expected[0]}
        else:
            for name in ("learned", "duplicates", "rejected", "diverged"):
                content[name] = getattr(result, name)
            content |= {"status": names, "td_errors": errors, "expected": expected}
        return self._json({**content, "version": result.version}, status)

    async def get_weights(self, request: Request) -> Response:
        """The weights: JSON, or an npz file if `accept` says application/x-npz."""
        weights = self.service.weights()
        if NPZ in _accept(request):
            arrays = {"w": weights.w, "version": np.array(weights.version)}
            for name in weights.blocks:
                arrays[f"block/{name}"] = np.stack([weights.block(name, i) for i in range(len(weights.w))])
            return Response(write_npz(arrays), 200, {"x-version": str(weights.version)}, NPZ)
        blocks = {name: [start, list(shape)] for name, (start, shape) in weights.blocks.items()}
        return self._json(
            {"w": weights.w.tolist(), "blocks": blocks, "net": weights.net, "names": list(weights.names),
             "version": weights.version}
        )  # fmt: skip

    async def put_weights(self, request: Request) -> Response:
        """Continue with other weights: an npy array (P,), or (m, P) with one row per network. Traces are cut."""
        if self.service.settings.read_only and self.token is None:
            raise ReadOnlyError("this service is read-only; its weights can be replaced only if it has a token")
        body = await self._body(request)
        self._kind(request, NPY)
        return self._json({"version": await asyncio.to_thread(self.service.load_weights, read_npy(body, "weights"))})

    async def norms(self, request: Request) -> Response:
        """Euclidean norm of each layer's weights."""
        norms, version = self.service.norms()
        return self._json({"norms": dict(norms), "version": version})

    async def about(self, request: Request) -> Response:
        """What is served, and the limits of a request."""
        settings, limits = self.service.settings, self.limits
        copied = ("discounts", "lams", "separate", "read_only", "durability", "on_gap", "max_batch")
        return self._json(
            {
                "inputs": self.service.n_inputs,
                "predictions": list(self.service.names),
                "network": self.net.as_dict(),
                "optimizer": settings.optimizer.as_dict(),
                **{name: getattr(settings, name) for name in copied},
                "max_states": limits.max_states,
                "max_body": limits.max_body,
                "valueapprox": __version__,
                "version": self.service.version,
            }
        )

    async def health(self, request: Request) -> Response:
        """Everything that the service knows of its own state."""
        return self._json(await asyncio.to_thread(self.service.health))

    async def recent(self, request: Request) -> Response:
        """Predictions and TD errors of the last minutes, and the state of the service: what its page shows.

        A few streams are followed, with two points a second each at most. With `after`, only points whose id is larger.
        """
        after = int(request.query_params.get("after", 0))
        points = await asyncio.to_thread(self.service.recent, after)
        health = await asyncio.to_thread(self.service.health)
        names = list(self.service.names[:MAX_PREDICTIONS])
        content = {"predictions": names, "points": points, "requests": self.metrics.by_class, "health": health}
        return self._json({**content, "version": self.service.version})

    async def healthz(self, request: Request) -> Response:
        """Whether the process answers."""
        return self._json({"status": "ok", "version": self.service.version})

    async def readyz(self, request: Request) -> Response:
        """Whether values are served; 503 if not."""
        health = await asyncio.to_thread(self.service.health)  # since the service may be elsewhere
        answer = {
            "ready": bool(health.get("ready")),
            "learning": bool(health.get("learning")),
            "reason": health.get("reason") or None,
            "version": self.service.version,
        }
        return self._json(answer, 200 if answer["ready"] else 503)

    async def metrics_page(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        text = await asyncio.to_thread(generate_latest, self.metrics.registry)
        return Response(text, 200, media_type=CONTENT_TYPE_LATEST)

    def _routes(self) -> None:
        refused: dict[int, Any] = dict.fromkeys((400, 408, 413, 415, 422, 429), Error)

        def add(
            method: str, path: str, handler: Handler, answers: Mapping[int, Any], extra: dict[str, Any] | None = None,
            **options: range,
        ) -> None:  # fmt: skip
            responses: dict[int | str, dict[str, Any]] = {}
            answers = {500: Error, **answers} | ({401: Error} if self._guarded(path) else {})
            if self.token is None:
                answers = {403: Error, **answers}
            for status, answer in sorted(answers.items()):
                model, media = answer if isinstance(answer, tuple) else (answer, {})
                responses[status] = {"description": MEANING[status], "model": model, "content": {**media}}
            summary, _, description = (handler.__doc__ or "").partition("\n\n")
            self.app.add_api_route(
                path, handler, methods=[method], responses=responses, openapi_extra=extra, response_class=Response,
                operation_id=handler.__name__, summary=summary, description=" ".join(description.split()) or summary,
            )  # fmt: skip
            # Handlers take the request as it is: FastAPI's injection of parameters has nothing to do, and costs as much
            # as everything else together.
            self.app.routes[-1].app = request_response(self._route(handler, options))  # type: ignore[attr-defined]
            if method == "GET":  # probes ask so; the body is left out by who sends the answer
                self.app.add_route(path, self._route(handler, options), methods=["HEAD"], include_in_schema=False)

        npy = {NPY: {"schema": {"type": "string", "format": "npy"}}}
        npz = {NPZ: {"schema": {"type": "string", "format": "npz"}}}
        states_npy = f"JSON, or npy: one array (n, {self.service.n_inputs}), answered by an npy array"
        output, after = range(self.requests.k), range(MAX_SEQUENCE + 1)

        def query(name: str, known: range, description: str) -> dict[str, Any]:
            """The description of an option: one of the numbers that are known."""
            schema = {"type": "integer", "minimum": known[0], "maximum": known[-1]}
            described = {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
            return {"parameters": [described]}

        def body(media: dict[str, Any], description: str, *names: str) -> dict[str, Any]:
            """The description of a body: models by name, if it may be JSON, and other media."""
            models = [{"$ref": f"#/components/schemas/{name}"} for name in names]
            if models:
                media = {JSON: {"schema": models[0] if len(models) == 1 else {"oneOf": models}}, **media}
            return {"requestBody": {"required": True, "content": media, "description": description}}

        states, learned = body(npy, states_npy, "States"), (schemas.OneLearned | schemas.ManyLearned, npz)
        arrays = f"JSON, or: {schemas.ARRAYS_TEXT}"
        get: dict[int, Any] = {422: Error}
        add("GET", "/v1", self.about, get | {200: schemas.About})
        add("POST", "/v1/values", self.values, refused | {200: (schemas.ValuesAnswer, npy)}, states)
        add("POST", "/v1/gradients", self.gradients, refused | {200: (schemas.GradientsAnswer, npy)},
            states | query("output", output, "which prediction"), output=output)  # fmt: skip
        add("POST", "/v1/transitions", self.learn, refused | {200: learned, 403: Error, 409: learned, 503: Error},
            body(npz, arrays, "Transition", "Transitions"))  # fmt: skip
        add("GET", "/v1/weights", self.get_weights, get | {200: (schemas.WeightsAnswer, npz)})
        add("PUT", "/v1/weights", self.put_weights, refused | {200: schemas.VersionAnswer, 403: Error, 503: Error},
            body(npy, "npy: one array (P,), or (m, P)"))  # fmt: skip
        add("GET", "/v1/norms", self.norms, get | {200: schemas.NormsAnswer})
        add("GET", "/v1/health", self.health, get | {200: dict[str, Any]})
        add("GET", "/v1/recent", self.recent, get | {200: schemas.RecentAnswer},
            query("after", after, "id of the last point that is known already"), after=after)  # fmt: skip
        add("GET", "/healthz", self.healthz, get | {200: schemas.Alive})
        add("GET", "/readyz", self.readyz, get | {200: schemas.Ready, 503: schemas.Ready})
        add("GET", "/metrics", self.metrics_page, get | {200: (None, {"text/plain": {"schema": {"type": "string"}}})})
        for path, name in (("/", "page.html"), ("/docs", "requests.html")):
            self.app.add_route(path, self._route(page(name), {}), methods=["GET", "HEAD"], include_in_schema=False)

    def _guarded(self, path: str) -> bool:
        return self.token is not None and path not in OPEN

    def _describe(self) -> None:
        """Complete the description: the models of requests, and the token."""
        plain = self.app.openapi

        def openapi() -> dict[str, Any]:
            if self.app.openapi_schema is not None:
                return self.app.openapi_schema
            schema = plain()
            models = schema.setdefault("components", {}).setdefault("schemas", {})
            models.update(self.requests.components())
            if self.token is not None:
                schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values() if self._guarded(path) else ():
                        operation["security"] = [{"token": []}]
            self.app.openapi_schema = schema
            return schema

        self.app.openapi = openapi  # type: ignore[method-assign]


def _check_options(request: Request, known: Mapping[str, range]) -> None:
    """Each option in the query is one of the known numbers, and is there once."""
    seen = set()
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name not in known or name in seen:
            message = f"is given twice, or not known; expected {', '.join(known) or 'no options'}"
            raise InvalidRequestError(name[:80], message)
        number = int(value) if value.isdecimal() and len(value) < 20 else -1
        if number not in known[name] or str(number) != value:
            choice = " to ".join(dict.fromkeys((str(known[name][0]), str(known[name][-1]))))
            raise InvalidRequestError(name, f"is {value[:80]!r}; expected {choice}")
        seen.add(name)


def _accept(request: Request) -> str:
    return ", ".join(request.headers.getlist("accept"))
