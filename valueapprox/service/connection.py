"""One connection: what a client may send, leave unread, and hold, and for how long.

uvicorn's connection has no such bounds. Every state in which the client has to do something ends after a time that no
byte restarts; what is read ahead, what waits to be sent, and what waits in a queue is bounded in bytes; and when all
connections are taken, the one whose client has kept it waiting longest gives way to the next.
"""
# ruff: noqa: D102  (most methods are those of asyncio's and uvicorn's protocols)

from __future__ import annotations

import asyncio
import re
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from valueapprox.service.gate import error_answer
from valueapprox.service.service import Service

__all__ = ["KEEP_ALIVE", "MAX_CONNECTIONS", "MAX_HEAD", "Connection"]

MAX_CONNECTIONS = 512
MAX_HEAD = 32 * 2**10  # bytes of a request's address and headers; also of what lies between two parts of its body
MAX_HEADERS = 100
MAX_PIPELINED = 16  # requests of one connection that wait for those before them
HEAD_SECONDS = 10.0  # until the head has arrived
KEEP_ALIVE = 75.0  # seconds that an idle connection is kept
LINGER_SECONDS = 5.0  # that the rest of a request which was answered early is read and thrown away,
LINGER_BYTES = 32 * 2**20  # so that the answer is not lost, and how much of it;
LINGER_PAUSE = 0.02  # seconds between two looks
LINGER_REFUSED = 2**20  # and of what is no request that is taken
UNREAD_SECONDS = 20.0  # until an answer has been read, and one second more
UNREAD_RATE = 64 * 2**10  # for each so many bytes of it
MAX_UNREAD = 64 * 2**20  # bytes of all answers that wait to be read, unless it is one alone
CLOSE_SECONDS = 10.0  # for the end of an answer on a connection that is being closed
PIECE = 32 * 2**10  # bytes that are parsed at a time: between two pieces, other connections have their turn
METHOD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,30}) \S+ HTTP/")  # a request, if with an unknown method
METHODS = "GET, HEAD, OPTIONS, POST and PUT"
TOO_LARGE = f"the head of the request has more than {MAX_HEAD:,} bytes"


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with bounds."""

    service: Service  # these two are set for all connections of a server, see `serve`
    unread: dict[Connection, None]  # connections whose client does not read its answer, in the order of their coming

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._cycles: list[RequestResponseCycle] = []  # requests whose answer is not complete, and perhaps the last one
        self._rest = memoryview(b"")  # came, and is not parsed yet
        self._parsing_soon = self._lingering = self._last = self._bodyless = False
        self._head_size = self._n_headers = self._between = 0
        self._may_linger = LINGER_BYTES
        self._head_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._refusal: tuple[int, str | None, str] | None = None
        self._start = b""
        self.waiting_since: float | None = self.loop.time()  # for the client; None while the service has to work
        super().connection_made(transport)
        self.timeout_keep_alive = KEEP_ALIVE  # type: ignore[assignment]
        self.flow: _Flow = _Flow(self)
        self._closing = _Closing(self)
        if len(self.connections) > MAX_CONNECTIONS and not self._free_slot():
            self._refuse(503, None, f"{MAX_CONNECTIONS} connections have a request already; try again later")
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        for timer in filter(None, (self._end_timer, self._unread_timer)):
            timer.cancel()
        self._unset_keepalive_if_required()
        self._rest = memoryview(b"")
        self.unread.pop(self, None)
        self._disconnect()
        super().connection_lost(exc)

    def _free_slot(self) -> bool:
        """End the connection whose client has been waited for longest; whether there is one."""
        waiting = [c for c in self.connections if c is not self and c.waiting_since is not None]  # type: ignore[union-attr]
        if not waiting:
            return False
        self._drop(min(waiting, key=lambda connection: connection.waiting_since))  # type: ignore[union-attr]
        return True

    def _drop(self, other: Any) -> None:
        self.connections.discard(other)
        other.transport.abort()

    # --- what comes ---

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._lingering:
            self._may_linger -= len(data)
            if self._may_linger < 0:
                self.transport.abort()
            else:  # there are others who want to be served
                self.flow.pause_reading()
                self.loop.call_later(LINGER_PAUSE, self.flow.read_on)
            return
        if self._rest:
            self._rest = memoryview(bytes(self._rest) + data)
        elif len(data) <= PIECE and not self.flow.read_paused:
            self._parse(data)
            return
        else:
            self._rest = memoryview(data)
        if not self._parsing_soon:
            self._go_on()

    def parse_soon(self) -> None:
        """Parse what has arrived already, in the next turn of the event loop."""
        if self._rest and not self._parsing_soon:
            self._parsing_soon = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._parsing_soon = False
        if self._rest and not self.flow.read_paused and not self._lingering and not self.transport.is_closing():
            piece, self._rest = self._rest[:PIECE], self._rest[PIECE:]
            self._parse(piece)
            if not self.flow.read_paused:
                self.parse_soon()
        self.flow.update()

    def _parse(self, data: bytes | memoryview) -> None:
        waited = self._head_timer is not None
        if waited and not self._head_size:
            self._start = bytes(data[:1000])
        self._between += len(data)  # a part of the body sets it to 0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to what is not spoken here: an answer in HTTP/1.1, and no more
            self._take_no_more()
        except httptools.HttpParserError as error:
            if not self._last:
                self._refuse(*(self._refusal or self._not_http(error)))
        if waited and self._head_timer is not None:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                self._refuse(431, None, TOO_LARGE)
        elif not waited and self._head_timer is None and self._between > MAX_HEAD and self._is_incomplete():
            message = f"chunk extensions or trailers have more than {MAX_HEAD:,} bytes; expected a body, or its end"
            self._refuse(431, None, message)

    def _is_incomplete(self) -> bool:
        """Whether the last request has not come as a whole."""
        return self.cycle is not None and self.cycle.more_body

    def _not_http(self, error: Exception) -> tuple[int, str | None, str]:
        method = METHOD.match(self._start)
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            if method is None:
                return 400, None, "this is not HTTP"
            return 501, "method", f"is {method[1].decode()}; expected one of {METHODS}"
        if "PRI" in str(error):
            return 505, None, "the request is HTTP/2; expected HTTP/1.1"
        return 400, None, f"the request is not HTTP/1.1 ({error})"

    def _refuse_here(self, status: int, field: str | None, message: str) -> NoReturn:
        """Refuse from inside the parser, which ends with any exception."""
        self._refusal = (status, field, message)
        raise ValueError(message)

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        if len(self.pipeline) >= MAX_PIPELINED:
            self._take_no_more()
        if self._last:
            raise ValueError("nothing more is taken")
        if self._head_timer is None:  # a further request on the same connection
            self._expect_head()
        self._n_headers, self._bodyless = 0, False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_HEAD:
            self._refuse_here(431, None, TOO_LARGE)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is None:  # trailers, which mean nothing here
            return
        self._n_headers += 1
        if self._n_headers > MAX_HEADERS:
            self._refuse_here(431, None, f"the head of the request has more than {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_is_here()
        self._unset_keepalive_if_required()
        self._check_head()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        super().on_headers_complete()
        self.cycle.transport = self._closing  # type: ignore[assignment]
        self._cycles.append(self.cycle)
        self._between = 0
        self.waiting_since = self.loop.time()

    def _check_head(self) -> None:
        """Refuse what the parser lets through; bring absolute addresses into the usual form."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        self._bodyless = method == b"HEAD"
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > MAX_HEAD:
            self._refuse_here(431, None, TOO_LARGE)
        if version not in ("1.1", "1.0"):
            self._refuse_here(505, None, f"the request is HTTP/{version}; expected HTTP/1.1")
        if method == b"CONNECT":
            self._refuse_here(501, "method", f"is CONNECT; expected one of {METHODS}")
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                self._refuse_here(501, "transfer-encoding", f"is {value[:80].decode('latin-1')!r}; expected chunked")
            if name == b"expect" and value.lower() != b"100-continue":
                self._refuse_here(417, "expect", f"is {value[:80].decode('latin-1')!r}; expected 100-continue")
        if self.url == b"*" and method == b"OPTIONS":
            self.url = b"/*"
        if not self.url.startswith(b"/"):
            try:
                parts = httptools.parse_url(self.url)
            except httptools.HttpParserInvalidURLError:
                parts = None
            if parts is None or parts.schema not in (b"http", b"https") or not parts.host:
                shown = self.url[:80].decode("latin-1")
                self._refuse_here(400, None, f"the address is {shown!r}; expected one that begins with /")
            host = b"[%s]" % parts.host if b":" in parts.host else parts.host
            if parts.port:
                host += b":%d" % parts.port
            self.url = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
            self.headers[:] = [header for header in self.headers if header[0] != b"host"]  # RFC 9112, section 3.2.2
            self.headers.append((b"host", host))

    def on_body(self, body: bytes) -> None:
        self._between = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.cycle.response_complete:
            self.waiting_since = None
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._head_size = 0
        self.waiting_since = self.loop.time()
        self._head_timer = self.loop.call_later(
            HEAD_SECONDS, self._refuse, 408, None, f"the head of the request did not arrive within {HEAD_SECONDS:g} s"
        )

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _take_no_more(self) -> None:
        """Answer the requests that have arrived, and hang up."""
        self._last, self._rest = True, memoryview(b"")
        if self.cycle is not None:
            self.cycle.keep_alive = False
        self._head_is_here()
        self.flow.pause_reading()

    # --- what goes ---

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        flow = self.flow

        async def bounded(scope: Any, receive: Any, send: Any) -> None:
            if flow.write_paused:  # an answer at a time: the one before is not read yet
                await flow.drain()

            async def early(message: Any) -> None:
                if cycle.more_body and message["type"] == "http.response.start":
                    cycle.keep_alive = False  # nobody will read the rest of the body
                await send(message)

            await app(scope, receive, early)

        super()._start_asgi_task(cycle, bounded)

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        if not self._lingering:
            super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()
        size = self.transport.get_write_buffer_size()
        self.waiting_since = self.loop.time()
        self.unread[self] = None
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS + size / UNREAD_RATE, self.transport.abort)
        total = sum(other.transport.get_write_buffer_size() for other in self.unread)
        for other in list(self.unread):
            if total <= MAX_UNREAD or other is self:
                break
            total -= other.transport.get_write_buffer_size()
            del self.unread[other]
            self._drop(other)

    def resume_writing(self) -> None:
        self.unread.pop(self, None)
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        self.waiting_since = None if any(not cycle.response_complete for cycle in self._cycles) else self.loop.time()
        super().resume_writing()
        if not self._last:
            self.flow.resume_reading()

    # --- the end ---

    def hang_up(self) -> None:
        """Close once the client has the last answer: what it still sends would make the system throw that away."""
        if self._lingering or self.transport.is_closing():
            return
        if not (self._rest or self._last or self._is_incomplete() or self._head_timer is not None):
            self._close()
            return
        self._head_is_here()
        self._lingering, self._rest = True, memoryview(b"")
        self.transport.write_eof()
        self.flow.read_on()
        self._end_timer = self.loop.call_later(LINGER_SECONDS, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._end_timer = self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing() and not self._lingering:
            self._close()

    def shutdown(self) -> None:
        if self._lingering:
            self.transport.abort()
        elif self.cycle is None or self.cycle.response_complete:
            self._close()
        else:
            self.cycle.keep_alive = False

    def _disconnect(self) -> None:
        """Tell the application that nobody waits; uvicorn tells it for the last of several requests only."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _refuse(self, status: int, field: str | None, message: str) -> None:
        """Answer without the application, and hang up."""
        if self._lingering or self.transport.is_closing():
            return
        self._disconnect()
        if any(cycle.response_started and not cycle.response_complete for cycle in self._cycles):
            self._head_is_here()
            self.transport.abort()
            return
        answer = error_answer(
            status, "InvalidRequestError", field, message, self.service.version, {"connection": "close"}
        )
        lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in answer.raw_headers), b"\r\n"]
        self.transport.write(b"".join(lines if self._bodyless else [*lines, bytes(answer.body)]))
        self._last, self._may_linger = True, LINGER_REFUSED
        self.hang_up()


class _Closing:
    """The transport as a request sees it, which closes it too early."""

    def __init__(self, connection: Connection) -> None:
        self.write, self.is_closing = connection.transport.write, connection.transport.is_closing
        self.close = connection.hang_up


class _Flow(FlowControl):
    """Reading is off while requests wait for others or for the client to read, or while there is something to parse."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.transport)
        self._connection = connection
        self._off = False

    def pause_reading(self) -> None:
        self.read_paused = True
        self.update()

    def resume_reading(self) -> None:
        connection = self._connection
        if self.write_paused or connection.pipeline or connection._last:
            return
        self.read_paused = False
        connection.parse_soon()
        self.update()

    def read_on(self) -> None:
        """Read whatever comes: it is thrown away."""
        self.read_paused = False
        self.update()

    def update(self) -> None:
        """Tell the transport."""
        off = self.read_paused or bool(self._connection._rest)
        if off != self._off and not self._transport.is_closing():
            self._off = off
            if off:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
