"""What a service has learned: the learner, and what is known of each stream.

It changes by records of the journal only, in their order, so that the same records give the same weights again, bit
for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import checkpoint
from valueapprox.service.errors import InvalidRequestError
from valueapprox.service.messages import DUPLICATE, GAP, LEARNED, Transitions
from valueapprox.service.records import Change, Plan
from valueapprox.service.settings import ServiceSettings
from valueapprox.service.validation import check_weights
from valueapprox.td import base as td
from valueapprox.td.predictions import Predictions

__all__ = ["State", "join"]

ROWS = ("state", "cumulants", "next_state", "terminated", "truncated")


class Streams:
    """The streams that are known by name: the last sequence number of each, and which has which trace.

    There are `capacity` traces. When a further stream needs one, it takes that of the stream that was used least
    recently, whose trace is zero if it comes back. Which one that is depends only on what was learned before.
    """

    def __init__(self, capacity: int, last: dict[str, int], slots: Mapping[str, int]) -> None:
        self.capacity, self.last = capacity, last
        self.slots = OrderedDict(slots)  # name -> its trace, least recently used first
        taken = set(slots.values())
        self.free = [slot for slot in range(capacity - 1, -1, -1) if slot not in taken]

    def plan(
        self, batch: Transitions, new: dict[str, int], cut_gaps: bool, max_known: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare numbers with those that came before: (status, expected, cut), each (n,).

        LEARNED means: to be learned. `new` holds the last numbers of streams in this group, beside those that are
        known already, and is brought up to date.
        """
        n = len(batch)
        status, expected = np.full(n, LEARNED, np.uint8), np.full(n, -1, np.int64)
        cut = np.zeros(n, np.bool_)
        used = np.zeros(1, np.int64) if len(batch.names) == 1 else np.unique(batch.stream)
        unknown = sum(batch.names[i] not in self.last and batch.names[i] not in new for i in used) if n else 0
        if unknown and len(self.last.keys() | new.keys()) + unknown > max_known:
            raise InvalidRequestError(
                "stream", f"is new; expected one of those that are known, since max_known_streams is {max_known}"
            )
        order = None if len(used) == 1 else np.argsort(batch.stream, kind="stable")
        start = 0
        for i in used if n else ():
            name = batch.names[i]
            if order is None:
                rows = np.arange(n)
            else:
                stop = int(np.searchsorted(batch.stream, i, "right", sorter=order))
                rows, start = order[start:stop], stop
            numbers = batch.sequence[rows]
            last = new.get(name, self.last.get(name))
            first = int(numbers[0])
            if (last is None or first == last + 1) and (np.diff(numbers) == 1).all():
                new[name] = int(numbers[-1])
                continue
            blocked = False
            for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                if last is None or (number == last + 1 and not blocked):
                    last = number
                elif number <= last:
                    status[row] = DUPLICATE
                elif cut_gaps:
                    cut[row], last = True, number
                else:
                    blocked, status[row], expected[row] = True, GAP, last + 1
            if last is not None:
                new[name] = last
        return status, expected, cut

    def take_slots(self, names: list[str]) -> tuple[dict[str, int], set[str]]:
        """Traces for at most `capacity` different streams, and those among them whose trace starts at zero."""
        needed = set(names)
        fresh = needed - self.slots.keys()
        for name in names:
            if name in self.slots:
                self.slots.move_to_end(name)
                continue
            if not self.free:
                oldest = next(other for other in self.slots if other not in needed)
                self.free.append(self.slots.pop(oldest))
            self.slots[name] = self.free.pop()
        return {name: self.slots[name] for name in names}, fresh


class State:
    """The learner, its streams, and how far they are: the version, and the number of the journal's next record."""

    def __init__(
        self, settings: ServiceSettings, learner: Predictions, streams: Streams, version: int, position: int = 0
    ) -> None:
        self.learner, self.streams, self.version, self.position = learner, streams, version, position
        self.discounts = np.array([settings.discounts])

    @classmethod
    def fresh(cls, settings: ServiceSettings, weights: ArrayLike | None, version: int) -> State:
        """Where learning begins: at weights (P,) or (m, P) of a version, or at those of `settings.seed`."""
        learner = settings.learner()
        if weights is not None:
            learner.w = check_weights(weights, learner.w)
        return cls(settings, learner, Streams(settings.max_streams, {}, {}), version)

    # --- records ------------------------------------------------------------------------------------------------------

    def check_fits(self, change: Change) -> None:
        """Refuse what belongs to another service's journal, before the kernel reads it as this one's."""
        (m, size), dtype, d = self.learner.w.shape, self.learner.w.dtype, self.learner.net.n_inputs
        if isinstance(change, Plan):
            batch = change.batch
            found = f"states of {batch.state.shape[1]} {batch.state.dtype}, {batch.cumulants.shape[1]} cumulants"
            expected = f"states of {d} {dtype}, {self.discounts.shape[1]} cumulants"
        else:
            found, expected = f"{change.dtype} weights {change.shape}", f"{dtype} weights {(m, size)}"
        if found != expected:
            raise ValueError(f"it holds {found}; expected {expected}: the journal is of another service")

    def apply(self, change: Change, number: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Learn what record `number` of the journal says: TD errors (n, k), and which transitions diverged (n,).

        Without a journal, `number` is None.
        """
        if isinstance(change, Plan):
            outcome = self._learn(change)
        else:
            self.learner.restart(change)
            self.version += 1
            outcome = np.empty((0, self.discounts.shape[1])), np.empty(0, np.bool_)
        if number is not None:
            self.position = number + 1
        return outcome

    def _learn(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        batch, streams, n = plan.batch, self.streams, len(plan.batch)
        td_errors, status = np.empty((n, self.discounts.shape[1])), np.empty(n, np.uint8)
        start = 0
        while start < n:
            stop = self._stop(batch, start)
            part = slice(start, stop)
            used, first = np.unique(batch.stream[part], return_index=True)
            in_order = used[np.argsort(first)]
            taken, fresh = streams.take_slots([batch.names[i] for i in in_order])
            slots = np.zeros(len(batch.names), np.int64)
            cut = plan.cut[part].copy()
            for i, row in zip(used.tolist(), first.tolist(), strict=True):
                slots[i] = taken[batch.names[i]]
                cut[row] |= batch.names[i] in fresh
            s, c, s_next, ends, truncated = (getattr(batch, name)[part] for name in ROWS)
            gammas = self.discounts if batch.discounts is None else batch.discounts[part]
            td_errors[part], status[part] = self.learner._learn(
                slots[batch.stream[part]], cut, s, c, s_next, ends, truncated, gammas
            )
            start = stop
        for i, number in zip(batch.stream.tolist(), batch.sequence.tolist(), strict=True):
            streams.last[batch.names[i]] = number
        diverged = status == td.DIVERGED
        self.version += n - int(diverged.sum())
        return td_errors, diverged

    def _stop(self, batch: Transitions, start: int) -> int:
        """The row up to which no more streams occur than there are traces."""
        seen: set[int] = set()
        for row in range(start, len(batch)) if len(batch.names) > self.streams.capacity else ():
            seen.add(int(batch.stream[row]))
            if len(seen) > self.streams.capacity:
                return row
        return len(batch)

    # --- in a checkpoint ----------------------------------------------------------------------------------------------

    def as_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The state as arrays and JSON-able values; `from_arrays` is the inverse."""
        streams = self.streams
        arrays, learner = self.learner.state_dict(max(streams.slots.values(), default=-1) + 1)
        index = {name: i for i, name in enumerate(streams.last)}
        return {
            **{f"learner/{name}": array for name, array in arrays.items()},
            "names": np.frombuffer("\n".join(streams.last).encode(), np.uint8),
            "sequences": np.array(list(streams.last.values()), np.int64),
            "places": np.array([(index[name], slot) for name, slot in streams.slots.items()], np.int64).reshape(-1, 2),
        }, {"learner": learner, "version": self.version, "position": self.position}

    @classmethod
    def from_arrays(cls, settings: ServiceSettings, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> State:
        """The state in a checkpoint."""
        own = {name.removeprefix("learner/"): a for name, a in arrays.items() if name.startswith("learner/")}
        checkpoint.must_be_finite(own)
        learner = Predictions.from_state(own, meta["learner"])
        names = arrays["names"].tobytes().decode().split("\n")
        last = dict(zip(names, arrays["sequences"].tolist(), strict=True)) if names[0] else {}
        streams = Streams(learner.streams, last, {names[i]: int(slot) for i, slot in arrays["places"]})
        return cls(settings, learner, streams, int(meta["version"]), int(meta["position"]))

    def resize(self, capacity: int) -> None:
        """Change the number of traces; the least recently used streams lose theirs if there are fewer."""
        slots = self.streams.slots
        kept = list(slots)[-capacity:]
        rows = [slots[name] for name in kept]
        arrays, settings = self.learner.state_dict()
        arrays = {**arrays, "traces": arrays["traces"][rows], "inward": arrays["inward"][rows]}
        self.learner = Predictions.from_state(arrays, {**settings, "streams": capacity})
        self.streams = Streams(capacity, self.streams.last, {name: slot for slot, name in enumerate(kept)})


def join(parts: list[tuple[Transitions, np.ndarray, np.ndarray]], discounts: np.ndarray) -> Plan | None:
    """One batch of the chosen rows of many; None if there are none."""
    parts = [part for part in parts if part[1].any()]
    if not parts:
        return None
    names: dict[str, int] = {}
    streams = []
    for batch, chosen, _ in parts:
        number = np.array([names.setdefault(name, len(names)) for name in batch.names], np.int64)
        streams.append(number[batch.stream[chosen]])

    def rows(name: str) -> np.ndarray:
        return np.concatenate([getattr(batch, name)[chosen] for batch, chosen, _ in parts])

    gammas = None
    if any(batch.discounts is not None for batch, _, _ in parts):
        given = (np.tile(discounts, (len(b), 1)) if b.discounts is None else b.discounts for b, _, _ in parts)
        gammas = np.concatenate([each[chosen] for each, (_, chosen, _) in zip(given, parts, strict=True)])
    arrays = {name: rows(name) for name in ("sequence", *ROWS)}
    batch = Transitions(tuple(names), np.concatenate(streams), **arrays, discounts=gammas)
    return Plan(batch, np.concatenate([cut[chosen] for _, chosen, cut in parts]))
