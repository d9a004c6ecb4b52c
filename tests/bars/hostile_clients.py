"""Hostile clients and a rightful one: the server's memory stays as it is, and nobody is locked out.

A server with a token is attacked by clients that have none, each in a way of its own: trailers and chunk extensions
without end, slots held by a byte now and then, answers that nobody reads, floods of requests and connections, absurd
heads and arrays. Without a token (--open) they also send bodies. Meanwhile a rightful client asks for values and sends
transitions. Resident memory of the server must stay within --megabytes of what it was after a fifth of the time, and
no answer to the rightful client may take longer than --patience.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox.service import Client
from valueapprox.service.bodies import write_npy

SERVE = Path(__file__).parents[2] / "scripts" / "serve.py"
TOKEN = "0123456789abcdef" * 4
HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /v1/values HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
STATES = b'{"states": [[0.1, 0.2, 0.3, 0.4]]}'


def request(method: bytes, path: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    """A request as bytes."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%s %s HTTP/1.1\r\n%s%s\r\n%s" % (method, path, HOST + b"".join(headers), length, body)


VALUES, WEIGHTS = request(b"POST", b"/v1/values", body=STATES), request(b"GET", b"/v1/weights")
PAGES = request(b"GET", b"/docs") + request(b"GET", b"/openapi.json")
PROBES = request(b"GET", b"/healthz") + request(b"GET", b"/readyz")
NPY = b"Content-Type: application/x-npy\r\n"
ABSURD = b"{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1000000000000000000000000000000), }"


class Hostile(threading.Thread):
    """One hostile client."""

    def __init__(self, port: int, attack: Callable[[Hostile], None], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.attack, self.over = port, attack, stop
        self.n_sent = self.n_connections = 0

    def run(self) -> None:
        """Attack until it is over."""
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                self.attack(self)

    def connect(self, buffer: int | None = None) -> socket.socket:
        """A connection."""
        one = socket.socket()
        if buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.settimeout(3)
        one.connect(("127.0.0.1", self.port))
        self.n_connections += 1
        return one

    def flood(self, start: bytes, more: bytes, seconds: float = 5.0, pause: float = 0.0, buffer: int = 0) -> None:
        """Send `start`, then `more` again and again, and read nothing."""
        with self.connect(buffer) as one:
            self.n_sent += one.send(start)
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self.over.is_set():
                self.n_sent += one.send(more)
                self.over.wait(pause)

    def hold(self, start: bytes, n: int = 40, more: bytes = b"x", pause: float = 1.0, seconds: float = 15.0) -> None:
        """Hold `n` connections with a byte now and then."""
        with contextlib.ExitStack() as stack:
            crowd = []
            for _ in range(n):
                crowd.append(stack.enter_context(self.connect()))
                crowd[-1].sendall(start)
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self.over.wait(pause):
                for one in crowd:
                    with contextlib.suppress(OSError):
                        self.n_sent += one.send(more)

    def ask(self, what: bytes) -> None:
        """Send a whole request and read what comes."""
        with self.connect() as one:
            one.sendall(what)
            self.n_sent += len(what)
            one.recv(2**16)


def npy(header: bytes) -> bytes:
    """An npy file of nothing but a header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


ATTACKS: dict[str, Callable[[Hostile], None]] = {
    "a trailer without end": lambda c: c.flood(CHUNKED + b"0\r\nX: ", b"x" * 2**16),
    "trailers without end": lambda c: c.flood(CHUNKED + b"0\r\n", b"Name: value\r\n" * 5000),
    "a chunk extension without end": lambda c: c.flood(CHUNKED + b"1;", b"x" * 2**16),
    "a header without end": lambda c: c.flood(b"GET /healthz HTTP/1.1\r\nX: ", b"x" * 2**16),
    "headers without end": lambda c: c.flood(b"GET /healthz HTTP/1.1\r\n", b"a:\r\n" * 10_000),
    "a body without end": lambda c: c.flood(CHUNKED, b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
    "chunks of a byte": lambda c: c.flood(CHUNKED, b"1\r\n \r\n" * 20_000),
    "a probe's body without end": lambda c: c.flood(request(b"GET", b"/healthz", b"Content-Length: 99999999999\r\n"),
                                                    b"x" * 2**16),
    "slots: 401 and a byte now and then": lambda c: c.hold(CHUNKED),
    "slots: a probe and a byte now and then": lambda c: c.hold(request(b"GET", b"/healthz", b"Content-Length: 99\r\n")),
    "slots: half a head": lambda c: c.hold(b"GET /healthz HTTP/1.1\r\nX: "),
    "slots: blank lines": lambda c: c.hold(b"\r\n", more=b"\r\n"),
    "slots: idle": lambda c: c.hold(request(b"GET", b"/healthz"), more=b"\r\n"),
    "slots: silent": lambda c: c.hold(b"", n=200, more=b"", seconds=5.0),
    "connections": lambda c: c.hold(b"", n=50, seconds=0.1, pause=0.1),
    "answers unread": lambda c: c.flood(PAGES * 100, PAGES * 100, 20.0, 0.05, 4096),
    "answers unread, then silence": lambda c: c.flood(PAGES * 8, b"", 30.0, 1.0, 4096),
    "probes unread": lambda c: c.flood(PROBES * 5000, PROBES * 5000, 10.0, 0.1, 4096),
    "requests in a row": lambda c: c.flood(PROBES * 5000, PROBES * 5000),
    "forged log lines": lambda c: c.ask(request(b"GET", b"/%0aforged%1b[2J" + b"%0a" * random.randrange(3000))),
    "no HTTP": lambda c: c.ask(random.randbytes(random.randrange(1, 50_000))),
    "unknown methods": lambda c: c.ask(random.choice((b"BREW", b"CONNECT", b"get", b"PRI")) + b" * HTTP/1.1\r\n\r\n"),
    "two lengths": lambda c: c.ask(request(b"POST", b"/v1", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
    "upgrades": lambda c: c.ask(request(b"GET", b"/healthz", b"Connection: Upgrade\r\nUpgrade: websocket\r\n") * 50),
    "absolute addresses": lambda c: c.ask(b"GET http://elsewhere:1/%s HTTP/1.1\r\n\r\n" % (b"x" * 20_000)),
    "HEAD and OPTIONS": lambda c: c.ask(request(b"HEAD", b"/docs") + request(b"OPTIONS", b"*")),
    "100-continue": lambda c: c.hold(request(b"POST", b"/v1/values", b"Expect: 100-continue\r\nContent-Length: 9\r\n")),
    "wrong tokens": lambda c: c.ask(request(b"GET", b"/v1", b"Authorization: Bearer " + b"x" * 5000 + b"\r\n")),
    "an absurd npy": lambda c: c.ask(request(b"POST", b"/v1/values", NPY, body=npy(ABSURD))),
    "disconnects": lambda c: c.flood(CHUNKED + b"ff\r\n", b" ", 0.05, 0.01),
}  # fmt: skip
OPEN_ATTACKS: dict[str, Callable[[Hostile], None]] = {  # of those who need no token
    "values unread": lambda c: c.flood(VALUES * 5000, VALUES * 5000, 10.0, 0.1, 4096),
    "weights unread": lambda c: c.flood(WEIGHTS * 50, WEIGHTS * 50, 20.0, 1.0, 4096),
    "a large npy": lambda c: c.ask(request(b"POST", b"/v1/values", NPY, body=write_npy(np.zeros((5000, 4))))),
}


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, "Linux says it"
    return int(found[1]) / 1024


@contextlib.contextmanager
def served(folder: Path, token: bool) -> Iterator[tuple[int, int]]:
    """serve.py in a process of its own: its port, its pid."""
    options = ["--new", "--inputs", "4", "--port", "0", "--log-json", "--log-requests", "--log-every", "0"]
    if token:
        path = folder / "token"
        path.write_text(TOKEN)
        path.chmod(0o600)
        options += ["--token-file", str(path)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SERVE), *options, "--data", str(folder / "service")],
            stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        try:
            while not (found := re.search(r'"port": (\d+)', (folder / "log").read_text())):
                if process.poll() is not None:
                    raise RuntimeError((folder / "log").read_text())
                time.sleep(0.05)
            yield int(found[1]), process.pid
        finally:
            process.terminate()
            process.wait(60)


def attack(port: int, token: bool, n_clients: int, stop: Any, counts: Any) -> None:
    """Attack in a process of its own until told to stop; says how many connections and bytes that were."""
    os.nice(5)  # in life they have machines of their own
    attacks = list((ATTACKS if token else ATTACKS | OPEN_ATTACKS).values())
    over = threading.Event()
    hostile = [Hostile(port, attacks[i % len(attacks)], over) for i in range(n_clients)]
    for one in hostile:
        one.start()
    counts.put(None)
    stop.wait()
    over.set()
    for one in hostile:
        one.join(10)
    counts.put((sum(one.n_connections for one in hostile), sum(one.n_sent for one in hostile)))


def run(
    seconds: float, n_clients: int, token: bool, say: Callable[[str], None] = lambda text: print(text, flush=True)
) -> dict[str, float]:
    """Attack: the growth of memory in MB, the longest wait, and counts."""
    with tempfile.TemporaryDirectory() as name, served(Path(name), token) as (port, pid):
        client = Client(f"http://127.0.0.1:{port}", token=TOKEN if token else None, timeout=60.0)
        rng = np.random.default_rng(0)
        state = rng.normal(size=(64, 4))
        for _ in range(20):
            client.values(state)
        spawn = multiprocessing.get_context("spawn")
        stop, counts = spawn.Event(), spawn.Queue()
        crowd = spawn.Process(target=attack, args=(port, token, n_clients, stop, counts), daemon=True)
        crowd.start()
        counts.get()  # they are there
        began, sequence = time.monotonic(), itertools.count()
        waits, memory, settled = [], [], 0.0
        longest: dict[str, float] = {}
        try:
            while (now := time.monotonic() - began) < seconds:
                one = {"sequence": next(sequence), "state": state[0], "cumulants": 1.0, "next_state": state[1]}
                for kind, what in {
                    "values": lambda: client.values(state[:1]),
                    "learn": lambda one=one: client.learn(stream="rightful", **one),
                    "health": lambda: client.health(),
                    "connect": lambda: Client(client.url, token=client._token, timeout=60.0).version,
                }.items():
                    start = time.monotonic()
                    what()
                    waits.append(time.monotonic() - start)
                    longest[kind] = max(longest.get(kind, 0.0), waits[-1])
                memory.append(megabytes(pid))
                if now > seconds / 5 and not settled:
                    settled = max(memory)
                if int(now / seconds * 12) != int((now - 0.1) / seconds * 12):
                    say(f"{now:6.1f} s  {memory[-1]:7.1f} MB  longest wait {max(waits):.3f} s  {len(waits):,} answers")
                time.sleep(0.02)
        finally:
            stop.set()
        n_connections, n_sent = counts.get(timeout=60)
        crowd.join(30)
        errors = [
            line for line in (Path(name) / "log").read_text().splitlines()
            if json.loads(line)["level"] not in ("info", "warning")
        ]  # fmt: skip
        return {
            "growth": max(memory) - settled,
            "peak": max(memory),
            "wait": max(waits),
            **{f"wait, {kind}": wait for kind, wait in longest.items()},
            "median": float(np.median(waits)),
            "p99": float(np.quantile(waits, 0.99)),
            "answers": len(waits),
            "connections": n_connections,
            "gigabytes": n_sent / 1e9,
            "errors": len(errors),
        }


def main() -> int:
    """Attack and judge; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--open", action="store_true", help="a server without a token")
    parser.add_argument("--megabytes", type=float, default=50.0)
    parser.add_argument("--patience", type=float, default=1.0, help="seconds")
    options = parser.parse_args()
    found = run(options.seconds, options.clients, not options.open)
    print("  ".join(f"{name} {number:.4g}" for name, number in found.items()))
    fine = found["growth"] <= options.megabytes and found["wait"] <= options.patience and not found["errors"]
    print("passed" if fine else "FAILED")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
