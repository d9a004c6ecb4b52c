"""What a client may send, leave unread and hold: each bound against a client that tries to exceed it, over sockets."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from valueapprox import SGD, Network
from valueapprox.service import Service, ServiceSettings, connection
from valueapprox.service.connection import MAX_CONNECTIONS, MAX_HEAD, MAX_HEADERS, MAX_PIPELINED
from valueapprox.service.schemas import Limits
from valueapprox.service.server import Running

sys.path.append(str(Path(__file__).parents[2] / "bars"))
import hostile_clients

TOKEN = "0123456789abcdef"
KEY = f"Authorization: Bearer {TOKEN}\r\n".encode()
HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /v1/values HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
STATES = b'{"states": [[3, 4]]}'


def request(method, path, *headers, body=b""):
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%s %s HTTP/1.1\r\n%s%s\r\n%s" % (method, path, HOST + b"".join(headers), length, body)


GET = request(b"GET", b"/healthz")
VALUES = request(b"POST", b"/v1/values", body=STATES)


def make(net=None, **changes):
    return Service(ServiceSettings(net or Network((2, 1), bias=False), SGD(0.5), init="zeros", **changes))


@pytest.fixture(scope="module")
def url():
    """A service without a token, v(s) = s_0 + 2 s_1."""
    with make() as service:
        service.load_weights([1.0, 2.0])
        with Running(service, limits=Limits(max_body=200_000, body_seconds=1.0)) as url:
            yield url


@pytest.fixture(scope="module")
def guarded():
    with make() as service, Running(service, token=TOKEN) as url:
        yield url


@pytest.fixture
def hasty(monkeypatch):
    """All times are short."""
    for name in ("HEAD_SECONDS", "KEEP_ALIVE", "LINGER_SECONDS", "UNREAD_SECONDS", "CLOSE_SECONDS"):
        monkeypatch.setattr(connection, name, 0.4)


class Caller(socket.socket):
    """A socket on which several answers can be read, one after another."""

    ahead = b""

    def makefile(self, *_):
        return self

    def flush(self):
        pass

    def read(self, n=-1):
        while n < 0 or len(self.ahead) < n:
            if not (data := self.recv(2**20)):
                n = len(self.ahead)
            self.ahead += data
        data, self.ahead = self.ahead[:n], self.ahead[n:]
        return data

    def readinto(self, buffer):
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self, limit=-1):
        while b"\n" not in self.ahead:
            if not (data := self.recv(2**20)):
                return self.read(len(self.ahead))
            self.ahead += data
        return self.read(self.ahead.index(b"\n") + 1)


class Answer(http.client.HTTPResponse):
    def _close_conn(self):  # the connection goes on
        self.fp = None


def call(url, receive_buffer=None):
    one = Caller()
    if receive_buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(20)
    one.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    return one


def answer(one, method="GET"):
    """Status, headers and body of one answer."""
    response = Answer(one, method=method)
    response.begin()
    return response.status, response.headers, response.read()


def send(url, *parts, method="GET"):
    """What a request is answered that is sent in parts."""
    with call(url) as one:
        for i, part in enumerate(parts):
            if i:
                time.sleep(0.05)
            one.sendall(part)
        return answer(one, method)


def message(answered):
    return json.loads(answered[2])["error"]["message"]


def feed(one, data, seconds):
    """Send `data` again and again until the server hangs up, or time is over: bytes sent, and whether it hung up."""
    sent, end = 0, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            sent += one.send(data)
    except OSError:
        return sent, True
    return sent, False


def ends(one, data=b"", every=0.05, seconds=8.0):
    """Seconds until the server hangs up on a client that sends a byte now and then and reads what comes."""
    began = time.monotonic()
    one.settimeout(every)
    while time.monotonic() - began < seconds:
        with contextlib.suppress(TimeoutError):
            if not one.recv(2**16):
                return time.monotonic() - began
        try:
            one.send(data[:1])
        except OSError:
            return time.monotonic() - began
    return None


# --- what is read ahead -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "more"),
    [(b"0\r\nX: ", b"x" * 4000), (b"0\r\n", b"Name: value\r\n" * 300), (b"1;", b"x" * 4000)],
    ids=["one trailer", "many trailers", "extension"],
)
def test_trailers_and_chunk_extensions_are_counted(url, end, more):
    # Version 0.1 kept all trailers: 280 MB sent, 5.5 GB resident.
    with call(url) as one:
        one.sendall(CHUNKED + end)
        sent, hung_up = feed(one, more, 10)
        assert hung_up
        assert sent < 2**24
    status, _, body = send(url, CHUNKED + end, more * 9)
    assert (status, json.loads(body)["error"]["message"].split(" have")[0]) == (431, "chunk extensions or trailers")


def test_trailers_and_chunk_extensions_within_the_bound_are_read_over(url):
    chunks = b"14;name=value\r\n" + STATES + b"\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n"
    with call(url) as one:
        for _ in range(3):
            one.sendall(CHUNKED + chunks)
            assert json.loads(answer(one)[2])["values"] == [[11.0]]


def test_a_body_in_chunks_of_a_byte_is_a_body(url):
    with call(url) as one:
        one.sendall(CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in STATES + b" " * 100_000) + b"0\r\n\r\n")
        assert json.loads(answer(one)[2])["values"] == [[11.0]]


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"x" * MAX_HEAD + b"\r\n",
        b"".join(b"X%d: %s\r\n" % (i, b"x" * 1000) for i in range(40)),
        b"X: y\r\n" * MAX_HEADERS,
    ],
    ids=["one header", "large headers", "many headers"],
)
def test_a_head_is_bounded_in_bytes_and_in_headers(url, head):
    whole = b"GET /healthz HTTP/1.1\r\n" + HOST + head + b"\r\n"
    for parts in ((whole,), (whole[:20_000], whole[20_000:])):
        status, headers, body = send(url, *parts)
        assert (status, headers["Connection"]) == (431, "close")
        assert "the head of the request has more than" in json.loads(body)["error"]["message"]
    fitting = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: y\r\n" * (MAX_HEADERS - 1) + b"\r\n"
    assert send(url, fitting)[0] == 200


def test_requests_that_wait_behind_others_are_bounded(url):
    # 14,000 requests fit into what is read at once, and each cost 3 kB.
    with call(url) as one:
        one.sendall(GET * 3000)
        n = 0
        with contextlib.suppress(http.client.HTTPException, OSError):
            while answer(one)[0] == 200:
                n += 1
    assert MAX_PIPELINED < n <= 2 * MAX_PIPELINED + 2
    with call(url) as one:
        one.sendall(VALUES * MAX_PIPELINED)
        assert [json.loads(answer(one)[2])["values"] for _ in range(MAX_PIPELINED)] == [[[11.0]]] * MAX_PIPELINED
        one.sendall(VALUES)  # the connection goes on
        assert answer(one)[0] == 200


# --- what is held -----------------------------------------------------------------------------------------------------

EARLY = [  # answered before the body is there
    (401, request(b"POST", b"/v1/values", b"Content-Length: 1000000000\r\n")),
    (401, CHUNKED),
    (200, request(b"GET", b"/healthz", b"Content-Length: 1000000\r\n")),
    (200, request(b"GET", b"/healthz", b"Transfer-Encoding: chunked\r\n")),
    (404, request(b"POST", b"/nothing", KEY, b"Content-Length: 1000\r\n")),
    (405, request(b"PUT", b"/v1/values", KEY, b"Transfer-Encoding: chunked\r\n")),
    (413, request(b"POST", b"/v1/values", KEY, b"Content-Length: 1000000000\r\n")),
    (415, request(b"POST", b"/v1/values", KEY, b"Content-Encoding: gzip\r\nContent-Length: 1000\r\n")),
    (422, request(b"POST", b"/v1/values?a=b", KEY, b"Content-Length: 1000\r\n")),
    (400, request(b"POST", b"/v1/values", KEY, b"Content-Type: a\r\nContent-Type: b\r\nContent-Length: 1000\r\n")),
    (417, request(b"POST", b"/v1/values", KEY, b"Expect: tea\r\nContent-Length: 1000\r\n")),
]


@pytest.mark.parametrize(("status", "head"), EARLY, ids=[f"{s}-{i}" for i, (s, _) in enumerate(EARLY)])
def test_after_an_early_answer_no_byte_keeps_the_connection(guarded, hasty, status, head):
    # Version 0.1 kept it for as long as a byte came now and then, and 512 such connections locked everybody out.
    with call(guarded) as one:
        one.sendall(head)
        found, headers, _ = answer(one)
        assert (found, headers["Connection"]) == (status, "close")
        one.settimeout(0.2)
        assert ends(one, b"x") < 4
    with call(guarded) as one:
        one.sendall(head)
        assert answer(one)[0] == status
        assert feed(one, b"x" * 2**16, 10)[1]


def test_an_early_answer_arrives_although_the_client_sends_on(url):
    # A connection that is closed with bytes unread takes the answer with it.
    large = b"x" * 10_000_000
    for _ in range(5):
        with call(url) as one:
            one.sendall(request(b"POST", b"/v1/values", b"Content-Length: %d\r\n" % len(large)) + large)
            status, _, body = answer(one)
            assert (status, "expected" in body.decode() or "at most" in body.decode()) == (413, True)


@pytest.mark.parametrize(
    ("start", "status"),
    [(b"", 408), (b"GET /he", 408), (GET[:-2], 408), (b"\r\n\r\n", 408), (GET, 200), (GET + b"\r\n", 200)],
    ids=["nothing", "line", "head", "blank lines", "idle", "idle after a blank line"],
)
def test_no_byte_restarts_the_time_of_a_head_or_of_an_idle_connection(url, hasty, start, status):
    with call(url) as one:
        one.sendall(start)
        assert answer(one)[0] == status
        assert ends(one, b"\n" if status == 200 else b"x") < 4


def test_no_byte_restarts_the_time_of_a_body(url, hasty):
    for head in (CHUNKED + b"ff\r\n", request(b"POST", b"/v1/values", b"Content-Length: 1000\r\n")):
        with call(url) as one:
            one.sendall(head)
            began = time.monotonic()
            for _ in range(100):
                with contextlib.suppress(OSError):
                    one.send(b" ")
                time.sleep(0.03)
                if time.monotonic() - began > 1.5:
                    break
            status, headers, _ = answer(one)
            assert (status, headers["Connection"]) == (408, "close")  # after 1 s, see `url`
            assert ends(one, b" ") < 4


HOLDING = [b"", b"GET /", GET, request(b"POST", b"/v1/values", b"Content-Length: 100\r\n"), CHUNKED]


@pytest.mark.parametrize("held", HOLDING, ids=["silent", "head", "idle", "401", "401 chunked"])
def test_whoever_takes_all_connections_locks_nobody_out(guarded, held, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1e6)  # so that only taking their slots can help
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(call(guarded)) for _ in range(MAX_CONNECTIONS + 20)]
        for one in crowd:
            with contextlib.suppress(OSError):
                one.sendall(held)
        for _ in range(5):
            assert send(guarded, request(b"POST", b"/v1/values", KEY, body=STATES))[0] == 200
        open_now = 0
        for one in crowd:
            one.setblocking(False)
            with contextlib.suppress(ConnectionError):
                try:
                    while data := one.recv(2**16):
                        pass
                    open_now += bool(data)
                except BlockingIOError:
                    open_now += 1
        assert open_now <= MAX_CONNECTIONS


# --- what is not read -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide():
    """128,257 weights, 2.7 MB as JSON."""
    with make(Network((1000, 128, 1))) as service, Running(service) as url:
        service.load_weights(np.random.default_rng(0).normal(size=128_257))
        yield url


def test_an_answer_that_nobody_reads_has_a_time(wide, hasty, monkeypatch):
    # Version 0.1 waited for ever: 100 such connections held a gigabyte.
    monkeypatch.setattr(connection, "UNREAD_RATE", 2**30)
    with call(wide, 4096) as one:
        one.sendall(request(b"GET", b"/v1/weights") * MAX_PIPELINED)
        time.sleep(3)
        got = 0
        with contextlib.suppress(OSError):
            while data := one.recv(2**20):
                got += len(data)
        assert 0 < got < 5_000_000  # what the system had taken; the rest is gone
        with call(wide) as other:
            other.sendall(request(b"GET", b"/v1/weights"))
            assert len(json.loads(answer(other)[2])["w"][0]) == 128_257


def test_answers_that_nobody_reads_are_bounded_in_bytes(wide, monkeypatch):
    monkeypatch.setattr(connection, "MAX_UNREAD", 10_000_000)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(call(wide, 4096)) for _ in range(20)]
        for one in crowd:
            one.sendall(request(b"GET", b"/v1/weights") * 3)
        time.sleep(3)
        cut_off = 0
        for one in crowd:  # the system says so at the next byte
            try:
                one.send(b"\r\n")
                time.sleep(0.05)
                one.send(b"\r\n")
            except OSError:
                cut_off += 1
        assert 10 <= cut_off < 20


def test_who_reads_slowly_but_reads_gets_the_answer(wide, hasty, monkeypatch):
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 4.0)
    with call(wide, 4096) as one:
        one.sendall(request(b"GET", b"/v1/weights") * 2)
        response = Answer(one)
        response.begin()
        body = b""
        while len(body) < int(response.headers["Content-Length"]):
            body += response.read(200_000)
            time.sleep(0.05)
        assert len(json.loads(body)["w"][0]) == 128_257


# --- every way to ask -------------------------------------------------------------------------------------------------

ADDRESSES = [
    "/",
    "/v1",
    "/v1/weights",
    "/v1/norms",
    "/v1/health",
    "/v1/recent",
    "/healthz",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
]


@pytest.mark.parametrize("path", ADDRESSES)
def test_head_gives_the_headers_of_get_and_no_body(url, path):
    # Probes ask so; version 0.1 said 405, which they take for "down".
    with call(url) as one:
        one.sendall(request(b"HEAD", path.encode()) + request(b"GET", path.encode()))
        head, full = answer(one, "HEAD"), answer(one)
    assert head[0] == full[0] == 200
    assert head[2] == b""
    assert len(full[2]) > 10
    assert set(head[1]) == set(full[1])
    same = {"date", "content-length"} if path in ("/metrics", "/v1/health", "/v1/recent") else {"date"}
    assert [h for h in head[1].items() if h[0] not in same] == [h for h in full[1].items() if h[0] not in same]


def test_head_says_that_a_service_is_not_ready():
    with make() as service, Running(service) as url:
        service.close()
        status, _, body = send(url, request(b"HEAD", b"/readyz"), method="HEAD")
        assert (status, body) == (503, b"")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/v1/values", "OPTIONS, POST"), ("/v1/weights", "OPTIONS, GET, HEAD, PUT"), ("/", "OPTIONS, GET, HEAD"),
     ("/docs", "OPTIONS, GET, HEAD"), ("/v1/recent", "OPTIONS, GET, HEAD"),
     ("/healthz", "OPTIONS, GET, HEAD"), ("*", "OPTIONS, GET, HEAD, POST, PUT")],
)  # fmt: skip
def test_options_says_what_is_taken(url, path, allowed):
    status, headers, body = send(url, request(b"OPTIONS", path.encode()), method="OPTIONS")
    assert (status, body) == (204, b"")
    assert sorted(headers["Allow"].split(", ")) == sorted(allowed.split(", "))
    assert headers["X-Version"] == "1"
    assert send(url, request(b"OPTIONS", b"/nothing"))[0] == 404


def test_a_body_is_sent_for_once_the_service_wants_it(url, guarded):
    expecting = request(b"POST", b"/v1/values", b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(STATES))
    with call(url) as one:
        one.sendall(expecting)
        assert one.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.sendall(STATES)
        assert json.loads(answer(one)[2])["values"] == [[11.0]]
    with call(guarded) as one:  # no token: nothing is asked for, and nothing can be mistaken for a request
        one.sendall(expecting)
        status, headers, _ = answer(one)
        assert (status, headers["Connection"]) == (401, "close")


def test_an_absolute_address_is_its_path_and_its_host(url):
    port = url.rpartition(":")[2].encode()
    for host in (b"localhost:" + port, b"127.0.0.1", b"[::1]:1"):
        one = b"POST http://%s/v1/values HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 20\r\n\r\n" % host
        assert json.loads(send(url, one + STATES)[2])["values"] == [[11.0]]
    page = send(url, b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n")  # the path is /
    assert (page[0], page[1]["Content-Type"]) == (200, "text/html; charset=utf-8")
    status, _, body = send(url, b"GET http://elsewhere.example/v1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (status, json.loads(body)["error"]["field"]) == (403, "host")


REFUSED = [  # each with a reason
    (b"BREW / HTTP/1.1\r\n\r\n", 501, "method", "is BREW; expected one of GET, HEAD"),
    (b"get / HTTP/1.1\r\n\r\n", 501, "method", "is get"),
    (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "method", "is CONNECT"),
    (b"GET / HTTP/2.0\r\n\r\n", 505, None, "HTTP/2.0; expected HTTP/1.1"),
    (b"GET /\r\n\r\n", 505, None, "HTTP/0.9; expected HTTP/1.1"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, None, "HTTP/2; expected HTTP/1.1"),
    (b"GET * HTTP/1.1\r\n\r\n", 400, None, "the address is '*'; expected one that begins with /"),
    (b"GET ftp://a/ HTTP/1.1\r\n\r\n", 400, None, "the address is 'ftp://a/'"),
    (b"GET http://a:99999/ HTTP/1.1\r\n\r\n", 400, None, "the address is 'http://a:99999/'"),
    (b"GET /\xff HTTP/1.1\r\n\r\n", 400, None, "Invalid char in url path"),
    (b"GET /a b HTTP/1.1\r\n\r\n", 400, None, "not HTTP/1.1 (Expected HTTP/"),
    (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", 400, None, "Invalid header token"),
    (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400, None, "Unexpected whitespace"),
    (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400, None, "Invalid header value char"),
    (request(b"GET", b"/v1", b"Host: localhost\r\n"), 400, "host", "is given 2 times; expected once"),
    (request(b"GET", b"/v1", b"Origin: a\r\nOrigin: a\r\nOrigin: a\r\n"), 400, "origin", "is given 3 times"),
    (request(b"GET", b"/v1", b"Authorization: a\r\nauthorization: b\r\n"), 400, "authorization", "is given 2 times"),
    (request(b"POST", b"/v1/values", b"Content-Length: 1\r\nContent-Length: 1\r\n"), 400, None, "Duplicate"),
    (request(b"POST", b"/v1/values", b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400, None, "can't be"),
    (request(b"POST", b"/v1/values", b"Content-Length: -1\r\n"), 400, None, "Content-Length"),
    (request(b"POST", b"/v1/values", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400, None, "T"),
    (request(b"POST", b"/v1/values", b"Transfer-Encoding: gzip, chunked\r\n"), 501, "transfer-encoding", "chunked"),
    (request(b"POST", b"/v1/values", b"Expect: tea\r\n"), 417, "expect", "is 'tea'; expected 100-continue"),
    (request(b"POST", b"/v1/values", b"Content-Encoding: gzip\r\n", body=b"x"), 415, "content-encoding", "is 'gzip'"),
    (request(b"TRACE", b"/v1"), 405, "method", "is TRACE; expected GET or HEAD at /v1"),
    (request(b"PATCH", b"/v1/weights"), 405, "method", "is PATCH; expected GET or HEAD or PUT"),
]


@pytest.mark.parametrize(("sent", "status", "field", "words"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_unusual_is_refused_with_its_reason(url, sent, status, field, words):
    found, headers, body = send(url, sent)
    error = json.loads(body)["error"]
    assert (found, error["field"]) == (status, field)
    assert words in error["message"]
    assert headers["X-Version"] == "1"


def test_a_request_to_change_the_protocol_is_answered_in_this_one(url):
    for upgrade in (b"h2c", b"websocket"):
        with call(url) as one:
            one.sendall(request(b"GET", b"/healthz", b"Connection: Upgrade\r\nUpgrade: %s\r\n" % upgrade) + GET)
            status, headers, _ = answer(one)
            assert (status, headers["Connection"]) == (200, "close")
            assert one.recv(100) == b""


# --- bodies that are being read ---------------------------------------------------------------------------------------

PARTS = request(b"POST", b"/v1/values", b"Content-Length: 40000\r\n")
PADDED = STATES + b" " * (40_000 - len(STATES))


def test_max_reading_binds_and_is_free_again_after_every_kind_of_end():
    limits = Limits(max_body=50_000, max_reading=60_000, body_seconds=1.0)
    with make() as service, Running(service, limits=limits) as url:

        def hold():
            one = call(url)
            one.sendall(PARTS + PADDED[:39_000])
            return one

        def refused():
            status, headers, body = send(url, request(b"POST", b"/v1/values", body=PADDED))
            assert (status, headers["Retry-After"]) == (429, "1")
            assert json.loads(body)["error"]["type"] == "QueueFullError"

        def free():
            """Room for a body of 40,000, and, beside one of 19,000, for no further one: nothing is counted."""
            assert send(url, request(b"POST", b"/v1/values", body=PADDED))[0] == 200
            with call(url) as beside:
                beside.sendall(PARTS + PADDED[:20_500])
                time.sleep(0.1)
                refused()
            time.sleep(0.1)

        free()
        with hold() as one:  # finished
            time.sleep(0.1)
            refused()
            one.sendall(PADDED[39_000:])
            assert answer(one)[0] == 200
        free()
        with hold():  # disconnected
            time.sleep(0.1)
            refused()
        time.sleep(0.1)
        free()
        with hold() as one:  # too slow
            assert answer(one)[0] == 408
            free()
        with call(url) as one:  # too large, said late
            one.sendall(CHUNKED + b"%x\r\n" % 51_000 + b" " * 51_000)
            assert answer(one)[0] == 413
            free()
        with call(url) as one:  # nonsense in the middle
            one.sendall(CHUNKED + b"%x\r\n" % 39_000 + b" " * 39_000 + b"\r\nzz\r\n")
            assert answer(one)[0] == 400
            free()
        for body, status in ((b"[" * 40_000, 400), (b'{"states": 3}' + b" " * 39_987, 422)):
            assert send(url, request(b"POST", b"/v1/values", body=body))[0] == status
            free()
        service.close()
        row = b'{"stream": "a", "sequence": 0, "state": [1, 2], "reward": 0, "next_state": [1, 2]}'
        assert send(url, request(b"POST", b"/v1/transitions", body=row + b" " * 39_000))[0] == 503
        free()


def test_a_body_counts_until_its_answer_is_there():
    # Bodies that are parsed, or wait for a thread, are in memory as well.
    class Slow(Service):
        def values(self, states):
            time.sleep(0.5)
            return super().values(states)

    settings = ServiceSettings(Network((2, 1), bias=False), init="zeros")
    limits = Limits(max_body=2_000_000, max_reading=2_000_000)
    many = b'{"states": [' + b", ".join([b"[1, 2]"] * 60_000) + b"]}"  # 480 kB
    with Slow(settings) as service, Running(service, limits=limits) as url, \
            concurrent.futures.ThreadPoolExecutor(12) as pool:  # fmt: skip
        asked = [pool.submit(send, url, request(b"POST", b"/v1/values", body=many)) for _ in range(12)]
        statuses = sorted(future.result()[0] for future in asked)
        assert set(statuses) == {200, 429}
        assert send(url, request(b"POST", b"/v1/values", body=STATES))[0] == 200


# --- the log ----------------------------------------------------------------------------------------------------------


def test_no_address_forges_a_line_or_moves_the_cursor(capfd):
    from valueapprox.service import server

    paths = [
        *(b"/%0a12:00:00%20request%20%20path=/x%20%20status=200", b"/%1b%5b2J%1b%5b31m", b"/%e2%80%aeoffo"),
        *(b"/a%20%20status=200", b"/%22%20status=200", b"/" + b"x" * 20_000, b"/%c2%9b31m", b"/%e2%80%a8x"),
    ]
    for as_json in (False, True):
        server.set_up_logs(as_json)
        with make() as service, Running(service, log_requests=True) as url:
            for path in paths:
                assert send(url, request(b"GET", path))[0] == 404
        lines = capfd.readouterr().err.rstrip("\n").split("\n")
        assert len(lines) == len(paths)
        assert all(line.isprintable() and len(line) < 800 for line in lines)
        for line in lines:
            if as_json:
                assert json.loads(line)["status"] == 404
            else:  # outside quotes, each name occurs once
                plain = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
                assert re.findall(r"(\w+)=", plain) == ["path", "method", "status", "seconds"]
                assert "status=404" in plain


def test_thirty_hostile_clients_for_two_seconds():
    # tests/bars/hostile_clients.py does so for three minutes, with a bound of a second on every wait. Here a wait of
    # a minute is an error, which the client raises.
    found = hostile_clients.run(2.0, 30, token=True, say=lambda _: None)
    assert found["growth"] < 50
    assert found["errors"] == 0
    assert found["connections"] > 30


def test_values_are_right_after_all_this(url):
    assert json.loads(send(url, VALUES)[2])["values"] == [[11.0]]
    states = np.random.default_rng(0).normal(size=(500, 2)).round(3)
    body = json.dumps({"states": states.tolist()}).encode()
    found = json.loads(send(url, request(b"POST", b"/v1/values", body=body))[2])["values"]
    np.testing.assert_allclose(found, states @ [[1.0], [2.0]], rtol=1e-5, atol=1e-6)
