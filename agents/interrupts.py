"""Ctrl-C that asks first: a run ends where it can be continued, and only a second Ctrl-C interrupts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["interruptible"]


@contextlib.contextmanager
def interruptible(notice: str = "") -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, with a notice on stderr; the second one interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)
        if notice:
            os.write(2, f"\n{notice}\n".encode())

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
