"""What holds for every request over HTTP: token, names, metrics, the version of the weights, the form of an error."""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pydantic_core
from fastapi import Response

from valueapprox.service.bodies import JSON
from valueapprox.service.errors import InvalidRequestError, ServiceError
from valueapprox.service.metrics import Metrics
from valueapprox.service.schemas import Served

__all__ = ["LOOPBACK", "OPEN", "Gate", "error_answer", "service_error_answer"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")  # without a token: pages, probes, the description
ONCE = frozenset(  # headers that would say two things if they came twice
    (b"host", b"origin", b"authorization", b"content-type", b"content-length", b"content-encoding", b"expect")
)
MAX_LOGGED_PATH = 300  # characters of an address in the log
log = logging.getLogger("valueapprox.service")


def error_answer(
    status: int, kind: str, field: str | None, message: str, version: int, headers: Mapping[str, str] | None = None
) -> Response:
    """The body of an error, which is the same everywhere."""
    content = pydantic_core.to_json({"error": {"type": kind, "field": field, "message": message}, "version": version})
    return Response(content, status, {"x-version": str(version), **(headers or {})}, JSON)


def service_error_answer(error: ServiceError, version: int) -> Response:
    """The answer to a request by which a service raised an error."""
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    field, message = (error.path, error.message) if isinstance(error, InvalidRequestError) else (None, str(error))
    return error_answer(error.status, type(error).__name__, field, message, version, headers)


class Gate:
    """ASGI: who is let in, and what every answer carries.

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
        began, status, path = time.perf_counter(), 0, scope["path"][:MAX_LOGGED_PATH]

        async def tell(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                if not any(name == b"x-version" for name, _ in headers):
                    headers.append((b"x-version", b"%d" % self.service.version))
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, receive, tell)
        except Exception:
            log.exception("a request failed", extra={"path": path})
            if status:  # too late for an answer
                raise
            answer = error_answer(500, "Failure", None, "the service failed; see its log", self.service.version)
            await answer(scope, receive, tell)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.observe(scope["path"], scope["method"], status, seconds)
            if self.log_requests:
                facts = {"path": path, "method": scope["method"], "status": status, "seconds": seconds}
                log.info("request", extra=facts)

    def _refusal(self, scope: Any) -> Response | None:
        """The answer to somebody who is not let in."""

        def refuse(status: int, kind: str, field: str, message: str, headers: Any = None) -> Response:
            return error_answer(status, kind, field, message, self.service.version, headers)

        headers = dict(scope["headers"])
        if len(headers) != len(scope["headers"]):
            names = [name for name, _ in scope["headers"]]
            for name in ONCE.intersection(names):
                if (count := names.count(name)) > 1:
                    return refuse(400, "InvalidRequestError", name.decode(), f"is given {count} times; expected once")
        if self.token is not None and scope["path"] not in OPEN:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self.token):
                message = "is missing or wrong; expected 'Bearer TOKEN' with this service's token"
                return refuse(401, "Unauthorized", "authorization", message, {"www-authenticate": "Bearer"})
        if self.hosts is not None:
            if (host := _host(headers.get(b"host", b""))) not in self.hosts:
                message = f"is {host[:80]!r}; expected one of {', '.join(self.hosts)}, or a service with a token"
                return refuse(403, "Forbidden", "host", message)
            origin = headers.get(b"origin")
            if origin is not None and _host(origin.rpartition(b"//")[2]) not in self.hosts:
                return refuse(403, "Forbidden", "origin", "is a page of another site; expected one of this machine")
        return None


def _host(netloc: bytes) -> str:
    """The name in host:port."""
    try:
        return urlsplit(f"//{netloc.decode('ascii')}").hostname or ""
    except ValueError:
        return ""
