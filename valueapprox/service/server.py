"""The process that serves: a socket, limits on connections, logs, an orderly end; and the same under Ray Serve.

SIGTERM and Ctrl-C end it in order: new connections are refused, requests that have arrived are answered, the service
writes its checkpoint. A second Ctrl-C does not wait for requests.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from valueapprox.service.api import create_app
from valueapprox.service.connection import MAX_CONNECTIONS, Connection
from valueapprox.service.gate import LOOPBACK
from valueapprox.service.schemas import Limits
from valueapprox.service.service import Service

__all__ = ["Repeating", "Running", "TelemetryLog", "listen", "read_token", "serve", "set_up_logs"]

END_SECONDS = 30  # that requests have to be finished when the process is asked to end
MIN_TOKEN = 16
ACCEPTORS = 32  # connections that are accepted in a turn of the event loop
SEND_BUFFER = 2**19  # bytes of an answer that the system keeps for each connection; by itself it may take megabytes
MAX_TOKEN_FILE = 2**15  # bytes that are looked at
WATCH_SECONDS = 1.0
log = logging.getLogger("valueapprox.service")


# --- before it starts -------------------------------------------------------------------------------------------------


def read_token(path: str | Path) -> str:
    """The token in a file: one line of at least 16 printable characters without blanks.

    Raises
    ------
    ValueError
        If it is not.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_TOKEN_FILE).strip()
            others = os.fstat(file.fileno()).st_mode & 0o077
    except FileNotFoundError:
        raise FileNotFoundError(f"the token file {path} does not exist") from None
    if len(text) < MIN_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(
            f"the token in {path} is not valid; expected one line of at least {MIN_TOKEN} letters, digits or signs, "
            "such as `openssl rand -hex 32` prints"
        )
    if others:
        log.warning("other users of this machine can open the token file", extra={"help": f"chmod 600 {path}"})
    return text


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises
    ------
    ConnectionError
        If the address is taken, or not one of this machine.
    """
    if not 0 <= port <= 65535:  # getaddrinfo would take what is left of it after 65536
        raise ConnectionError(f"port is {port}; expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise ConnectionError(f"the address is {host}:{port}; expected one of this machine ({error})") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # its connections have it from here
        listener.bind(address)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise ConnectionError(f"cannot listen on {host}:{port} ({error.strerror}); try another --port") from None
    return listener


def acceptors(listener: socket.socket) -> list[socket.socket]:
    """The listener, several times: the event loop accepts one connection for each of them in a turn.

    With one, whoever opens connections faster than that makes everybody else wait for seconds.
    """
    return [listener, *(listener.dup() for _ in range(ACCEPTORS - 1))]


def is_loopback(host: str) -> bool:
    """Whether only this machine can call the address."""
    return host in LOOPBACK or host.startswith("127.")


# --- logs -------------------------------------------------------------------------------------------------------------

PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class _Lines(logging.Formatter):
    """One line per event: JSON for programs, or text for people."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        facts = {n: v for n, v in vars(record).items() if n not in PLAIN and not n.startswith("_")}  # Ray adds one
        trace = self.formatException(record.exc_info) if record.exc_info else None
        if self.as_json:
            when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            event = {"time": when, "level": record.levelname.lower(), "event": record.getMessage(), **facts}
            if trace:
                event["trace"] = trace
            return json.dumps(event, default=str)
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f" {record.levelname.lower()}:"
        words = "".join(f"  {n}={v:.4g}" if isinstance(v, float) else f"  {n}={_word(v)}" for n, v in facts.items())
        trace = "" if trace is None else "\n" + _escaped(trace, "\n")
        return f"{when}{level} {_escaped(record.getMessage())}{words}{trace}"


def _escaped(text: str, keep: str = "") -> str:
    """Without what moves the cursor, colours, or begins a line that looks like another event."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _word(value: Any) -> str:
    """A value that cannot be taken for a further name=value: in quotes if need be."""
    text = str(value)
    if text.isprintable() and not any(c in text for c in ' "=\\'):
        return text
    return _escaped(json.dumps(text, ensure_ascii=False))


def set_up_logs(as_json: bool) -> None:
    """Write what happens to stderr, one line per event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json))
    for name, level in (("valueapprox.service", logging.INFO), ("uvicorn", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class Repeating:
    """Calls a function every so many seconds, in a thread of its own, until it is closed."""

    def __init__(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        self._seconds, self._function = seconds, function
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._function()

    def close(self) -> None:
        """Call it no more."""
        self._stop.set()
        self._thread.join()


class TelemetryLog:
    """A service's diagnostics in TensorBoard's event files and as JSON Lines, at an interval, by a thread of its own.

    The x axis is the version, the number of transitions learned. It lies in a folder of its own, which a restart
    continues.
    """

    def __init__(self, service: Service, folder: Path, seconds: float) -> None:
        from valueapprox.telemetry import METRICS_FILE, RunLog, network_charts

        folder.mkdir(parents=True, exist_ok=True)
        self.service = service
        known = (folder / METRICS_FILE).exists()
        self._log = RunLog(folder, resume_step=service.version if known else None)
        if not known:
            errors = {"TD error": ["value/td_error/rms(/.*)?"]}
            norms = network_charts("value", "grad_norm", "trace_norm", "update_ratio", "weight_norm")
            self._log.layout({"Does it learn?": errors, "Value function": norms})
        self._version, self._when, self._known = service.version, time.monotonic(), service.diagnostics()
        self._writer = Repeating("telemetry", seconds, self._try)

    def _try(self) -> None:
        try:
            self.write()
        except OSError as error:  # a full disk must not end the thread: there may be space again
            log.warning("the diagnostics could not be logged", extra={"reason": str(error)})

    def write(self) -> None:
        """Log where the service is, if it has learned something since the last time, or knows more of what it learned.

        What it learned last is known up to a second later (`Service.diagnostics`).
        """
        health, now = self.service.health(), time.monotonic()
        version = int(health["version"])
        diagnostics = self.service.diagnostics()
        values = {f"value/{tag}": number for tag, number in diagnostics.items() if number != self._known.get(tag)}
        if version == self._version and not values:
            return
        if version != self._version:
            values = {f"value/{tag}": number for tag, number in diagnostics.items()}
            values["time/steps_per_second"] = (version - self._version) / max(now - self._when, 1e-9)
            values |= {f"service/{name}": float(health[name]) for name in ("queued", "n_streams", "journal_bytes")}
        self._log.scalars(version, values)
        self._log.flush()
        self._version, self._when, self._known = version, now, diagnostics

    def close(self) -> None:
        """Log the last values and close the files."""
        self._writer.close()
        try:
            self.write()
        finally:
            self._log.close()


def watch(service: Service) -> Repeating:
    """Log when learning stops, and when it resumes: a full disk, a checkpoint that cannot be written."""
    names = {"reason": "learning", "checkpoint_error": "checkpoints"}
    seen = {name: service.health()[name] for name in names}

    def look() -> None:
        health = service.health()
        for name, what in names.items():
            if health[name] and health[name] != seen[name]:
                log.error(f"{what} stopped", extra={"reason": health[name]})
            elif seen[name] and not health[name]:
                log.info(f"{what} resumed")
            seen[name] = health[name]

    return Repeating("watch", WATCH_SECONDS, look)


# --- the process ------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with its own exit code after a signal instead of dying of it once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Running:
    """An application being served by a thread of this process: for tests, notebooks, and scripts that do other things.

    >>> with Running(service) as url:  # doctest: +SKIP
    ...     Client(url).values(states)
    """

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
        self._listener = listen(host, port)
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        self._server = _server(service, host, options)
        self._thread = threading.Thread(
            target=self._server.run, args=(acceptors(self._listener),), name="http", daemon=True
        )

    def __enter__(self) -> str:
        """Start; gives the address."""
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def _server(service: Service, host: str, options: dict[str, Any]) -> _Server:
    app = create_app(service, **options)
    config = uvicorn.Config(
        app, http=type("_Connection", (Connection,), {"service": service, "unread": {}}), ws="none", lifespan="off",
        log_config=None, access_log=False, server_header=False, proxy_headers=False, backlog=MAX_CONNECTIONS,
        timeout_graceful_shutdown=END_SECONDS,
    )  # fmt: skip
    return _Server(config)


def serve(
    service: Service,
    listener: socket.socket,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    log_requests: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes, then answer the requests that have arrived. The service stays open.

    Parameters
    ----------
    service
        What is served.
    listener
        From `listen`.
    token
        That requests must carry. Required if others than this machine can call.
    limits, log_requests
        See `create_app`.
    on_start
        Called before the first request.

    Raises
    ------
    ValueError
        If other machines can call and there is no token.
    """
    host, port = listener.getsockname()[:2]
    if token is None and not is_loopback(host):
        raise ValueError(f"host is {host}, which other machines can reach; expected a --token-file with it")
    server = _server(service, host, {"token": token, "limits": limits, "log_requests": log_requests})
    on_start()
    log.info("serving", extra={"host": host, "port": port, "version": service.version})
    with contextlib.closing(watch(service)):
        server.run(acceptors(listener))
    log.info("stopped", extra={"version": service.version})
