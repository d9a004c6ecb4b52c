"""Speed of the value service: requests and transitions per second over HTTP, and of the Ray actor, beside the bars."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from valueapprox import Adam, Network
from valueapprox.agents.console import announce_compile, command, command_line, errors_in_one_line, plain
from valueapprox.checks import positive
from valueapprox.service import Client, ServiceSettings, Transitions
from valueapprox.service.bodies import NPY, NPZ, write_npy, write_npz

SERVE = Path(__file__).with_name("serve.py")
AT_ONCE = 64  # calls of the Ray actor that are on their way
WARM = 0.3  # seconds before a timing that are not counted

console = Console(highlight=False)
if not console.is_terminal:
    console.width = 140


@dataclass(frozen=True)
class Benchmark:
    """Time a 4-64-1 value service: one server process, and clients that are connections of this process.

    The clients write prepared bytes and count answers, so that the load costs little beside the server, with which it
    shares the machine. Shown are the median over the rounds and their quartiles, and how they compare with the bar that
    is aimed at.
    """

    seconds: float = 2.0
    """Of a timing."""
    rounds: int = 7
    """How often each is timed, in turns."""
    clients: int = 16
    """Connections at a time."""
    states: int = 4096
    """States in a large request for values."""
    batch: int = 256
    """Transitions in a batch."""
    ray: bool = False
    """The Ray actor too."""
    soak: float = 0.0
    """Instead: minutes of mixed load over 2,000 streams, with the server's resident memory along the way (Linux)."""


@dataclass
class Load:
    """What a timing counted."""

    rate: float  # answers per second
    median: float  # seconds until an answer
    p99: float


class _Connection(asyncio.Protocol):
    """One client: sends the next request as soon as the last is answered."""

    def __init__(self, requests: Iterator[bytes], begin: float, end: float, times: list[float]) -> None:
        self.requests, self.begin, self.end, self.times = requests, begin, end, times
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.wanted = -1

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._next()

    def _next(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.wanted < 0:
            head = self.buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            if not self.buffer.startswith(b"HTTP/1.1 200"):
                self.done.set_exception(RuntimeError(bytes(self.buffer[:2000]).decode("latin-1")))
                self.transport.close()
                return
            length = re.search(rb"content-length: (\d+)", self.buffer)
            assert length is not None, "every answer says how long it is"
            self.wanted = head + 4 + int(length[1])
        if len(self.buffer) < self.wanted:
            return
        now = time.perf_counter()
        if self.begin <= now <= self.end:
            self.times.append(now - self.sent)
        self.buffer.clear()
        self.wanted = -1
        if now < self.end:
            self._next()
        elif not self.done.done():
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server hung up"))


def load(port: int, clients: list[Iterator[bytes]], seconds: float) -> Load:
    """Let clients ask for some seconds."""

    async def run() -> Load:
        times: list[float] = []
        begin = time.perf_counter() + WARM
        loop = asyncio.get_running_loop()
        made = [
            loop.create_connection(lambda c=c: _Connection(c, begin, begin + seconds, times), "127.0.0.1", port)  # type: ignore[misc]
            for c in clients
        ]
        connections = [protocol for _, protocol in await asyncio.gather(*made)]
        await asyncio.gather(*(connection.done for connection in connections))
        return Load(len(times) / seconds, float(np.median(times)), float(np.percentile(times, 99)))

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def request(path: str, body: bytes, kind: str = "application/json") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def server(*options: str) -> Iterator[int]:
    """A server in a process of its own; gives its port."""
    command = [sys.executable, str(SERVE), "--new", "--inputs", "4", "--hidden", "64", "--alpha", "1e-4", *options]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            found = re.search(r"^Serving +http://127.0.0.1:(\d+)", line)
            if found:
                port = int(found[1])
            if line.startswith("Read on"):
                break
        else:
            raise RuntimeError("the server did not start")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def forever(body: bytes) -> Iterator[bytes]:
    """The same request again and again."""
    while True:
        yield body


class Streams:
    """Streams that go on from timing to timing, as learning wants it."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.next: dict[str, int] = {}
        self.state = np.random.default_rng(0).normal(size=(100_001, 4)).astype(np.float32)

    def singles(self, i: int) -> Iterator[bytes]:
        """Requests of one transition each, as JSON."""
        name = f"{self.prefix}{i}"
        rows = [row.tolist() for row in self.state[:1001]]
        while True:
            t = self.next.get(name, 0)
            self.next[name] = t + 1
            row = {"stream": name, "sequence": t, "state": rows[t % 1000], "reward": 1.0}
            row |= {"next_state": rows[t % 1000 + 1], "terminated": t % 100 == 99}
            yield request("/v1/transitions", json.dumps(row).encode())

    def batches(self, i: int, n: int) -> Iterator[bytes]:
        """Requests of n transitions of one stream, as npz."""
        name = f"{self.prefix}batch-{i}"
        while True:
            t = self.next.get(name, 0)
            self.next[name] = t + n
            yield request("/v1/transitions", write_npz({"stream": np.array(name), **self.arrays(t, n)}), NPZ)

    def arrays(self, t: int, n: int) -> dict[str, np.ndarray]:
        """n transitions of a stream."""
        start = t % (100_000 - n)
        return {
            "sequence": np.arange(t, t + n),
            "state": self.state[start : start + n],
            "cumulants": np.ones((n, 1)),
            "next_state": self.state[start + 1 : start + n + 1],
            "terminated": np.arange(t, t + n) % 100 == 99,
        }


@dataclass(frozen=True)
class Row:
    """One thing that is timed."""

    name: str
    unit: str
    per_answer: int
    bar: float  # units per second
    bar_seconds: float | None  # until an answer
    time: Callable[[], Load]


def http_rows(options: Benchmark, batch_port: int, every_port: int) -> list[Row]:
    """What is timed over HTTP."""
    one = request("/v1/values", json.dumps({"states": [[0.1, 0.0, 0.02, 0.0]]}).encode())
    states = np.random.default_rng(1).normal(size=(options.states, 4)).astype(np.float32)
    large = request("/v1/values", write_npy(states), NPY)
    n, seconds = options.clients, options.seconds
    batch, every = Streams("b"), Streams("e")
    client = Client(f"http://127.0.0.1:{batch_port}")

    def python_client() -> Load:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            began = time.perf_counter()
            client.values(states[:1])
            times.append(time.perf_counter() - began)
        return Load(len(times) / sum(times), float(np.median(times)), float(np.percentile(times, 99)))

    def at(port: int, clients: list[Iterator[bytes]]) -> Callable[[], Load]:
        return lambda: load(port, clients, seconds)

    return [
        Row(f"values, {n} clients", "requests", 1, 2000, 0.008, at(batch_port, [forever(one)] * n)),
        Row("values, 1 client", "requests", 1, 0, 0.001, at(batch_port, [forever(one)])),
        Row("values, 1 Python Client", "requests", 1, 0, 0.001, python_client),
        Row(f"values, npy of {options.states}, 2 clients", "values", options.states, 1e6, None,
            at(batch_port, [forever(large)] * 2)),
        Row(f"learn, npz of {options.batch}, 4 clients, batch", "transitions", options.batch, 5000, None,
            at(batch_port, [batch.batches(i, options.batch) for i in range(4)])),
        Row(f"learn, one at a time, {n} clients, batch", "transitions", 1, 0, None,
            at(batch_port, [batch.singles(i) for i in range(n)])),
        Row(f"learn, one at a time, {n} clients, every", "transitions", 1, 300, None,
            at(every_port, [every.singles(i) for i in range(n)])),
        Row("learn, one at a time, 1 client, every", "transitions", 1, 0, None,
            at(every_port, [every.singles(n)])),
    ]  # fmt: skip


@contextmanager
def ray_rows(options: Benchmark, folder: Path) -> Iterator[list[Row]]:
    """What is timed with the Ray actor: calls that do not wait for each other's answers."""
    from valueapprox.cluster import cluster
    from valueapprox.service import start

    n = 4 * options.batch
    streams = Streams("r")
    settings = ServiceSettings(Network((4, 64, 1)), Adam(1e-4), durability="batch")
    with cluster(None, 2):
        actor = start("benchmark", settings, folder)

        def pipelined(submit: Callable[[], Any]) -> Callable[[], Load]:
            def run() -> Load:
                times: list[float] = []
                waiting: deque[tuple[float, Any]] = deque()
                end = time.perf_counter() + options.seconds
                began = time.perf_counter()
                while waiting or time.perf_counter() < end:
                    while len(waiting) < AT_ONCE and time.perf_counter() < end:
                        waiting.append((time.perf_counter(), submit()))
                    sent, future = waiting.popleft()
                    future.result(60)
                    times.append(time.perf_counter() - sent)
                seconds = time.perf_counter() - began
                return Load(len(times) / seconds, float(np.median(times)), float(np.percentile(times, 99)))

            return run

        def batch() -> Any:
            t = streams.next.get("r", 0)
            streams.next["r"] = t + n
            return actor.submit(Transitions.of("r", **streams.arrays(t, n)))

        state = streams.state[:1]
        try:
            yield [
                Row("values, calls that do not wait", "calls", 1, 1500, None,
                    pipelined(lambda: actor.submit_values(state))),
                Row(f"learn, batches of {n}, batch", "transitions", n, 1e5, None, pipelined(batch)),
            ]  # fmt: skip
        finally:
            actor.stop()


def rounds(options: Benchmark, rows: list[Row]) -> list[list[Load]]:
    """Time them in turns."""
    loads: list[list[Load]] = [[] for _ in rows]
    for _ in range(options.rounds):
        for row, found in zip(rows, loads, strict=True):
            found.append(row.time())
    return loads


def soak(options: Benchmark, port: int) -> None:
    """Learn, repeat, ask for values, gradients and metrics, and send nonsense; print the server's memory as it goes."""
    client, streams = Client(f"http://127.0.0.1:{port}"), Streams("soak")
    pid, n, began, shown, round_number = client.health()["pid"], options.batch, time.monotonic(), -1, 0
    table = Table(title="The server's memory under mixed load", title_justify="left", box=SIMPLE_HEAD)
    for column in ("minute", "transitions", "resident MB"):
        table.add_column(column, justify="right")
    while True:
        minutes = (time.monotonic() - began) / 60
        done = minutes >= options.soak
        if int(10 * minutes / options.soak) > shown or done:
            shown = int(10 * minutes / options.soak)
            status = Path(f"/proc/{pid}/status").read_text()
            memory = re.search(r"VmRSS:\s+(\d+) kB", status)
            assert memory is not None, "Linux says it"
            table.add_row(f"{minutes:.2f}", f"{client.health()['version']:,}", f"{int(memory[1]) / 1024:.1f}")
        if done:
            break
        name = f"soak-{round_number % 2000}"
        t = streams.next.get(name, 0)
        streams.next[name] = t + n
        batch = Transitions.of(name, **streams.arrays(t, n))
        client.learn(batch)
        client.learn(batch)  # delivered twice
        client.values(streams.state[:64])
        client.gradients(streams.state[:16])
        if round_number % 10 == 0:
            with contextlib.suppress(ValueError):
                client.values([[1.0, 2.0]])
            client.health()
        round_number += 1
    console.print(table)


def main(options: Benchmark) -> int:
    """Time, print; returns the exit code."""
    for name in ("rounds", "clients", "states", "batch"):
        positive(name, getattr(options, name))
    for name, least in (("seconds", 1e-3), ("soak", 0.0)):
        if not least <= getattr(options, name) < math.inf:
            raise ValueError(f"{name} is {getattr(options, name)}; a number of at least {least:g} is wanted")
    announce_compile()
    if options.soak > 0:
        with tempfile.TemporaryDirectory() as folder, server("--data", folder) as port:
            soak(options, port)
        console.print(f"Command: {plain(command('benchmark_service.py', *sys.argv[1:]))}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        no_log = ("--log-every", "0")
        with (
            server("--data", f"{folder}/batch", "--durability", "batch", *no_log) as batch_port,
            server("--data", f"{folder}/every", "--durability", "every", *no_log) as every_port,
        ):
            rows = http_rows(options, batch_port, every_port)
            show("HTTP, one server process, 4-64-1, float32", rows, rounds(options, rows))
        if options.ray:
            with ray_rows(options, Path(folder) / "ray") as rows:
                show("Ray actor, 4-64-1, float32", rows, rounds(options, rows))
    console.print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    console.print(f"Command: {plain(command('benchmark_service.py', *sys.argv[1:]))}")
    return 0


def show(title: str, rows: list[Row], loads: list[list[Load]]) -> None:
    """The table."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("", "per second (quartiles)", "median ms", "p99 ms", "of the bar"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row, found in zip(rows, loads, strict=True):
        rates = np.array([one.rate for one in found]) * row.per_answer
        low, middle, high = np.percentile(rates, [25, 50, 75])
        median = float(np.median([one.median for one in found]))
        against = [f"{middle / row.bar:.2f} x {row.bar:,.0f}/s"] if row.bar else []
        if row.bar_seconds:
            against.append(f"{median / row.bar_seconds:.2f} x {1e3 * row.bar_seconds:g} ms")
        table.add_row(
            row.name,
            f"{middle:,.0f} ({low:,.0f} to {high:,.0f}) {row.unit}",
            f"{1e3 * median:.2f}",
            f"{1e3 * float(np.median([one.p99 for one in found])):.2f}",
            ", ".join(against),
        )
    console.print(table)


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(command_line(Benchmark)))
