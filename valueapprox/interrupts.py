"""Ctrl-C, SIGTERM and SIGHUP that ask first, and a watch over code that may never come back.

A run ends where it can be continued: the first signal asks, a second one interrupts. Other people's code, such as an
environment, may hang, swallow the interruption, or be C code that keeps Python from running at all. So a small process
of its own watches: it says what is waited for, interrupts after a limit, and then ends the process from outside.
This file is that process's program too, and needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

__all__ = ["PATIENCE", "SAY_AFTER", "Stop", "Stopped", "end_if_killed", "interruptible", "tick", "watched"]

PATIENCE = 120.0  # seconds without an answer after which a run ends
SAY_AFTER = 10.0  # seconds without an answer until that is said
GRACE = 5.0  # seconds that code has to come back when it is asked to end, and again once it is interrupted
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):  # noqa: N818  (no error)
    """Work was given up between two steps since the process is asked to end."""


class Stop:
    """Whether the process is asked to end, and by which signal (0: not)."""

    def __init__(self) -> None:
        self.number = 0

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0


_stop: Stop | None = None  # of the innermost `interruptible`
_watch: watched | None = None


@contextlib.contextmanager
def interruptible(notice: str = "") -> Iterator[Stop]:
    """A `Stop` that the first Ctrl-C, SIGTERM or SIGHUP sets, with a notice on stderr; a second one interrupts."""
    global _stop
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.number or (_watch is not None and _watch.hangs()):
            raise KeyboardInterrupt
        stop.number = number
        if notice:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"\n{notice}\n".encode())

    before = {}
    for number in STOPPING:
        # What is ignored stays ignored, as under nohup; but a shell lets all that it starts with & ignore Ctrl-C.
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    outer, _stop = _stop, stop
    try:
        yield stop
    finally:
        _stop = outer
        for number, handler in before.items():
            signal.signal(number, handler)


def tick() -> bool:
    """Tell the watch, if there is one, that work goes on; returns whether the process is asked to end."""
    return _watch.tick() if _watch is not None else _stop is not None and _stop.is_set()


class watched:  # noqa: N801  (a context manager)
    """Watches over other people's code in the main thread: it may be slow, hang, or not be interruptible.

    Who does not call `tick` for `SAY_AFTER` seconds is named on stderr, and after the limit gets a TimeoutError. Once
    the process is asked to end (see `interruptible`), the code has a few seconds until it gets a KeyboardInterrupt.
    Where neither helps, the process is ended from outside.

    Parameters
    ----------
    name
        What is waited for, in messages.
    limit
        Seconds without a tick; 0 for no limit.
    """

    def __init__(self, name: str, limit: float = PATIENCE) -> None:
        self.name, self.limit = name, limit
        self._last = self._told = time.monotonic()
        self._active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> watched:
        global _watch
        self._active = self._active and _watch is None  # within another watch, that one stays
        if self._active:
            self._last = self._told = time.monotonic()
            _watch = self
            _Watchman.get().watch(self.name, self.limit)
        return self

    def tick(self) -> bool:
        """Work goes on; returns whether the process is asked to end."""
        self._last = time.monotonic()
        if self._last - self._told > 1.0 and self._active:
            self._told = self._last
            _Watchman.get().tell("tick")
        return _stop is not None and _stop.is_set()

    def hangs(self) -> bool:
        """Whether the limit is over."""
        return 0 < self.limit <= time.monotonic() - self._last + 1.0  # the watchman hears of ticks once a second

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _watch
        if not self._active:
            return
        _watch = None
        _Watchman.get().rest()
        if kind is KeyboardInterrupt and self.hangs() and (_stop is None or not _stop.is_set()):
            raise TimeoutError(
                f"{self.name} has not come back for {self.limit:g} s; expected an answer within that time "
                "(--patience SECONDS; 0 waits without end)"
            ) from None


def end_if_killed(processes: list[int]) -> None:
    """Let the watching process end these, if this one is killed before it can, where `/proc` tells who they are."""
    known = [[pid, started] for pid in processes if (started := _started(pid)) is not None]
    _Watchman.get().tell("orphans", known)


def _started(pid: int) -> str | None:
    """When a process began, by which it is known from a later one of the same number; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


class _Watchman:
    """The watching process, started when it is first needed; it ends with this one."""

    _only: _Watchman | None = None

    @staticmethod
    def get() -> _Watchman:
        """The one of this process, also after a fork."""
        if _Watchman._only is None or _Watchman._only.owner != os.getpid():
            _Watchman._only = _Watchman()
        return _Watchman._only

    def __init__(self) -> None:
        self.owner, self._before = os.getpid(), -1
        signals, self._signals = os.pipe()
        orders, self._orders = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(self._orders, False)
        command = [sys.executable, "-I", "-S", __file__, str(signals), str(orders), str(self.owner)]
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # without it there is nobody to watch, and all else works
            self._process = subprocess.Popen(
                command,
                pass_fds=(signals, orders),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        os.close(signals)
        os.close(orders)

    def tell(self, *order: object) -> None:
        """Send an order; a watchman who is gone or overrun is no reason to stop."""
        with contextlib.suppress(OSError):
            os.write(self._orders, json.dumps(order).encode() + b"\n")

    def watch(self, name: str, limit: float) -> None:
        """From now on."""
        self._before = signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        self.tell("watch", name, limit)

    def rest(self) -> None:
        """No more."""
        self.tell("rest")
        signal.set_wakeup_fd(self._before)


# --- the watching process ---------------------------------------------------------------------------------------------


class _Duty:
    """What the watching process knows and does. Times are those of `time.monotonic`."""

    def __init__(self, parent: int) -> None:
        self.parent, self.name, self.limit = parent, "", 0.0
        self.orphans: list[tuple[int, str]] = []
        self.rest()

    def rest(self) -> None:
        """Nothing is watched."""
        self.watching, self.said = False, False
        self.asked: float | None = None
        self.interrupted: float | None = None
        self.own_signals = 0

    def order(self, what: str, *details: object) -> None:
        """What the watched process tells."""
        if what == "watch":
            self.rest()
            self.watching, self.last = True, time.monotonic()
            self.name, self.limit = str(details[0]), float(str(details[1]))
        elif what == "orphans":
            self.orphans = list(*details)
        elif what == "tick":
            self.last, self.said = time.monotonic(), False
        else:
            self.rest()

    def end_orphans(self) -> None:
        """The watched process is gone: end those that it has left."""
        for pid, started in self.orphans:
            if _started(pid) == started:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def signalled(self, number: int) -> None:
        """A signal has reached the watched process."""
        if not self.watching or number not in STOPPING:
            return
        if self.own_signals and number == signal.SIGINT:
            self.own_signals -= 1
        elif self.asked is None:
            self.asked, self.said = time.monotonic(), False
        elif self.interrupted is None:  # a second one is an interruption already
            self.interrupted = time.monotonic()

    def look(self) -> None:
        """Do what it is time for."""
        now = time.monotonic()
        if not self.watching:
            return
        if self.interrupted is not None:
            if now - self.interrupted > GRACE:
                _say(
                    f"{self.name} does not react to being interrupted: the process ends without it. What was saved "
                    "last stands."
                )
                os.kill(self.parent, signal.SIGKILL)
                self.rest()
        elif self.asked is not None:
            if not self.said and now - self.asked > 0.5:
                _say(f"Ending: {self.name} has {GRACE:g} s to come back. Ctrl-C again does not wait for it.")
                self.said = True
            if now - self.asked > GRACE:
                self.interrupt(now)
        else:
            silent = now - self.last
            if not self.said and silent > SAY_AFTER and (not self.limit or self.limit > SAY_AFTER):
                until = f"; the run ends at {self.limit:g} s (--patience)" if self.limit else ""
                _say(f"note: {self.name} has not come back for {silent:.0f} s{until}")
                self.said = True
            if self.limit and silent > self.limit:
                self.interrupt(now)

    def interrupt(self, now: float) -> None:
        self.interrupted = now
        self.own_signals += 1
        os.kill(self.parent, signal.SIGINT)


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{sentence}\n".encode())


def _stand_watch(signals: int, orders: int, parent: int) -> None:
    duty = _Duty(parent)
    _until_alone(duty, signals, orders, parent)
    duty.end_orphans()


def _until_alone(duty: _Duty, signals: int, orders: int, parent: int) -> None:
    rest = b""
    while os.getppid() == parent:
        ready, _, _ = select.select([signals, orders], [], [], 0.25 if duty.watching else 5.0)
        if orders in ready:
            got = os.read(orders, 65536)
            if not got:
                return
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                duty.order(*json.loads(line))
        if signals in ready:
            for number in os.read(signals, 64):
                duty.signalled(number)
        with contextlib.suppress(ProcessLookupError):
            duty.look()


if __name__ == "__main__":
    _stand_watch(*map(int, sys.argv[1:]))
