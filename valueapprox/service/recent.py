"""What a service predicted in the last minutes, for whoever looks at it: a few points of a few streams.

The writer offers every group of transitions after it has learned it. Most are passed over at the cost of one look at
the clock. Of the others the last transition of each stream is kept that has no point of the last half second, with the
predictions at its state, computed by one forward pass.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from valueapprox.service.messages import Transitions

__all__ = ["MAX_PREDICTIONS", "Recent"]

INTERVAL = 0.5  # seconds between two points of a stream, at least
LOOK = 0.02  # seconds between two groups that are looked at, on average
BURST = 8  # groups that are looked at one right after the other, since streams may come in step
SHARE = 200  # and so many times as long as looking took, so that it costs half a percent of the writer's time at most
MAX_STREAMS = 4  # that are followed at a time
QUIET_SECONDS = 30.0  # after which another stream may take the place of one that has sent nothing
MAX_ROWS = 64  # of a group that are looked at, from its end
MAX_POINTS = 1200
MAX_PREDICTIONS = 32  # the first of them; a chart of more shows nothing
MAX_NUMBERS = 40_000  # in all points together


class Recent:
    """A bounded record of predictions and TD errors, written by one thread and read by any.

    Parameters
    ----------
    k
        Number of predictions.
    """

    def __init__(self, k: int) -> None:
        self._k = min(k, MAX_PREDICTIONS)
        self._points: deque[dict[str, Any]] = deque(maxlen=min(MAX_POINTS, MAX_NUMBERS // (2 * self._k)))
        self._followed: dict[str, float] = {}  # stream -> time of its last point
        self._began, self._due, self._last = time.monotonic(), 0.0, 0
        self._cost = 0.001  # seconds that points take; a guess, which comes near the truth by doubling at most
        self._lock = threading.Lock()

    def offer(
        self, batch: Transitions, td_errors: np.ndarray, version: int, predict: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Keep some of the transitions (n) that were learned, with their TD errors (n, k), if it is time for that."""
        now = time.monotonic()
        if now < self._due:
            return
        began = time.thread_time()  # time that other threads take is not ours
        rows = self._rows(batch, now)
        if rows:
            values = predict(batch.state[list(rows.values())])[:, : self._k]
            with self._lock:
                for (stream, row), at_row in zip(rows.items(), values, strict=True):
                    self._last += 1
                    self._points.append(
                        {"id": self._last, "seconds": round(now - self._began, 3), "stream": stream, "version": version,
                         "values": _short(at_row), "td_errors": _short(td_errors[row, : self._k])}
                    )  # fmt: skip
            # At most twice what it was: garbage may be collected in between, which says nothing of the next time.
            self._cost = min(time.thread_time() - began, max(2 * self._cost, 1e-4))
        # By chance, so that no stream comes again and again just when nobody looks.
        pause = max(LOOK * random.uniform(0.5, 1.5), SHARE * self._cost if rows else 0.0)
        self._due = max(self._due, now - BURST * LOOK) + pause

    def _rows(self, batch: Transitions, now: float) -> dict[str, int]:
        """The last transition of each stream that is followed and due, by the stream's name."""
        for stream in [stream for stream, seen in self._followed.items() if now - seen > QUIET_SECONDS]:
            del self._followed[stream]
        rows: dict[str, int] = {}
        n = len(batch)
        for row in range(n - 1, max(-1, n - 1 - MAX_ROWS), -1):
            stream = batch.names[batch.stream[row]]
            last = self._followed.get(stream, -np.inf if len(self._followed) < MAX_STREAMS else np.inf)
            if stream not in rows and now - last >= INTERVAL:
                self._followed[stream], rows[stream] = now, row
        return rows

    def since(self, after: int) -> list[dict[str, Any]]:
        """The points whose id is larger than `after`, oldest first; all, if it is of a service before this one."""
        with self._lock:
            after = after if after <= self._last else 0
            return [point for point in self._points if point["id"] > after]


def _short(numbers: np.ndarray) -> list[float]:
    """Six digits of each: enough for a chart, and a third of the bytes."""
    return [float(f"{number:.6g}") for number in numbers.tolist()]
