"""Speed of the value service: requests and transitions per second over HTTP, and of the Ray actor, beside the bars."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
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
from valueapprox.checks import positive
from valueapprox.cli.terminal import announce_compile, command, command_line, errors_in_one_line, plain
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
    shares the machine. Shown are the median over the rounds and their quartiles, and how they compare with the bar, the
    project's own goal.
    """

    seconds: float = 2.0
    """Seconds of a timing."""
    rounds: int = 7
    """Number of timings of each, in turns."""
    clients: int = 16
    """Number of connections at a time."""
    states: int = 4096
    """Number of states in a large request for values."""
    batch: int = 256
    """Number of transitions in a batch."""
    ray: bool = False
    """Time the Ray actor too."""
    soak: float = 0.0
    """Instead: minutes of mixed load over 2,000 streams, showing the server's resident memory as it goes (Linux)."""


@dataclass
class Load:
    """What a timing counted."""

    rate: float  # answers per second
    median: float  # seconds until an answer
    p99: float

    @classmethod
    def of(cls, times: list[float], seconds: float) -> Load:
        """From the time that each answer took."""
        return cls(len(times) / seconds, float(np.median(times)), float(np.percentile(times, 99)))


async def client(requests: Iterator[bytes], port: int, begin: float, end: float, times: list[float]) -> None:
    """One client: sends the next request as soon as the last is answered; those since `begin` count."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (sent := time.perf_counter()) < end:
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, "every answer says how long it is"
        body = await reader.readexactly(int(length[1]))
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError((head + body).decode("latin-1"))
        now = time.perf_counter()
        if begin <= now <= end:
            times.append(now - sent)
    writer.close()


def load(port: int, clients: list[Iterator[bytes]], seconds: float) -> Load:
    """Let clients ask for some seconds."""
    import uvloop

    async def run() -> list[float]:
        times: list[float] = []
        begin = time.perf_counter() + WARM
        await asyncio.gather(*(client(each, port, begin, begin + seconds, times) for each in clients))
        return times

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return Load.of(runner.run(run()), seconds)


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


class Streams:
    """Streams that continue from timing to timing."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.next: dict[str, int] = {}
        self.state = np.random.default_rng(0).normal(size=(100_001, 4)).astype(np.float32)

    def take(self, name: str, n: int) -> int:
        """The number of the next transition of a stream; n are taken."""
        self.next[name] = self.next.get(name, 0) + n
        return self.next[name] - n

    def singles(self, i: int) -> Iterator[bytes]:
        """Requests of one transition each, as JSON."""
        name = f"{self.prefix}{i}"
        rows = [row.tolist() for row in self.state[:1001]]
        while True:
            t = self.take(name, 1)
            row = {"stream": name, "sequence": t, "state": rows[t % 1000], "reward": 1.0}
            row |= {"next_state": rows[t % 1000 + 1], "terminated": t % 100 == 99}
            yield request("/v1/transitions", json.dumps(row).encode())

    def batches(self, i: int, n: int) -> Iterator[bytes]:
        """Requests of n transitions of one stream, as npz."""
        name = np.array(f"{self.prefix}batch-{i}")
        while True:
            yield request("/v1/transitions", write_npz({"stream": name, **self.arrays(str(name), n)}), NPZ)

    def arrays(self, name: str, n: int) -> dict[str, np.ndarray]:
        """The next n transitions of a stream."""
        t = self.take(name, n)
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
        return Load.of(times, sum(times))

    def at(port: int, clients: list[Iterator[bytes]]) -> Callable[[], Load]:
        return lambda: load(port, clients, seconds)

    return [
        Row(f"values, {n} clients", "requests", 1, 2000, 0.008, at(batch_port, [itertools.repeat(one)] * n)),
        Row("values, 1 client", "requests", 1, 0, 0.001, at(batch_port, [itertools.repeat(one)])),
        Row("values, 1 Python Client", "requests", 1, 0, 0.001, python_client),
        Row(f"values, npy of {options.states}, 2 clients", "values", options.states, 1e6, None,
            at(batch_port, [itertools.repeat(large)] * 2)),
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
                return Load.of(times, time.perf_counter() - began)

            return run

        def batch() -> Any:
            return actor.submit(Transitions.of("r", **streams.arrays("r", n)))

        state = streams.state[:1]
        try:
            yield [
                Row("values, calls that do not wait", "calls", 1, 1500, None,
                    pipelined(lambda: actor.submit_values(state))),
                Row(f"learn, batches of {n}, batch", "transitions", n, 1e5, None, pipelined(batch)),
            ]  # fmt: skip
        finally:
            actor.stop()


def soak(options: Benchmark, port: int) -> None:
    """Learn, repeat, ask for values, gradients and metrics, and send nonsense; print the server's memory as it goes."""
    client, streams = Client(f"http://127.0.0.1:{port}"), Streams("soak")
    pid, began, shown = client.health()["pid"], time.monotonic(), -1
    table = Table(title="The server's memory under mixed load", title_justify="left", box=SIMPLE_HEAD)
    for column in ("minute", "transitions", "resident MB"):
        table.add_column(column, justify="right")
    for i in itertools.count():
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
        name = f"soak-{i % 2000}"
        batch = Transitions.of(name, **streams.arrays(name, options.batch))
        client.learn(batch)
        client.learn(batch)  # delivered twice
        client.values(streams.state[:64])
        client.gradients(streams.state[:16])
        if i % 10 == 0:
            with contextlib.suppress(ValueError):
                client.values([[1.0, 2.0]])
            client.health()
    console.print(table)


def main(options: Benchmark) -> int:
    """Time, print; returns the exit code."""
    for name in ("rounds", "clients", "states", "batch"):
        positive(name, getattr(options, name))
    for name, minimum in (("seconds", 1e-3), ("soak", 0.0)):
        if not minimum <= getattr(options, name) < math.inf:
            raise ValueError(f"{name} is {getattr(options, name)}; expected a number of at least {minimum:g}")
    announce_compile()
    with tempfile.TemporaryDirectory() as folder:
        if options.soak > 0:
            with server("--data", folder) as port:
                soak(options, port)
        else:
            benchmark(options, folder)
    console.print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    console.print(f"Command: {plain(command('benchmark_service.py', *sys.argv[1:]))}")
    return 0


def benchmark(options: Benchmark, folder: str) -> None:
    """The tables of what is timed over HTTP, and of the Ray actor."""
    no_log = ("--log-every", "0")
    with (
        server("--data", f"{folder}/batch", "--durability", "batch", *no_log) as batch_port,
        server("--data", f"{folder}/every", "--durability", "every", *no_log) as every_port,
    ):
        rows = http_rows(options, batch_port, every_port)
        show("HTTP, one server process, 4-64-1, float32", rows, options.rounds)
    if options.ray:
        with ray_rows(options, Path(folder) / "ray") as rows:
            show("Ray actor, 4-64-1, float32", rows, options.rounds)


def show(title: str, rows: list[Row], rounds: int) -> None:
    """Time the rows in turns, and print the table."""
    loads = list(zip(*([row.time() for row in rows] for _ in range(rounds)), strict=True))
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
