"""Many requests for values, one forward pass."""

from __future__ import annotations

import asyncio

import numpy as np

from valueapprox.service.messages import Values
from valueapprox.service.schemas import Served
from valueapprox.service.service import settle, values_of_each

__all__ = ["Batcher"]

MAX_STATES = 8192  # whose forward pass is short enough for the event loop,
MAX_WORK = 2**24  # if they are no more than this divided by the number of weights: some milliseconds


class Batcher:
    """Value requests of one turn of the event loop, answered by one forward pass with one set of weights."""

    def __init__(self, service: Served) -> None:
        self.service = service
        self.max_states = max(1, min(MAX_STATES, MAX_WORK // service.settings.net.n_parameters))
        self._waiting: list[tuple[np.ndarray, asyncio.Future[Values]]] = []
        self._rows = 0

    async def values(self, states: np.ndarray) -> Values:
        """Predictions (n, k) at states (n, d)."""
        loop = asyncio.get_running_loop()
        if len(states) > self.max_states:
            return await loop.run_in_executor(None, self.service.values, states)
        if self._rows + len(states) > self.max_states:
            self._answer()
        if not self._waiting:
            loop.call_soon(self._answer)
        future: asyncio.Future[Values] = loop.create_future()
        self._waiting.append((states, future))
        self._rows += len(states)
        return await future

    def _answer(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        outcomes = values_of_each(self.service, [states for states, _ in waiting]) if waiting else []
        for (_, future), outcome in zip(waiting, outcomes, strict=True):
            if not future.done():  # otherwise nobody waits any more
                settle(future, outcome)
