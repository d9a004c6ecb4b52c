"""What goes into the service and comes out: transitions and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.nn.network import Network
from valueapprox.service.errors import GapError, InvalidRequestError
from valueapprox.service.validation import check, check_flags, check_floats, check_whole, numbers

__all__ = [
    "DIVERGED", "DUPLICATE", "GAP", "LEARNED", "MAX_SEQUENCE", "STATUS_NAMES", "Gradients", "LearnResult", "Norms",
    "Transitions", "Values", "Weights", "gap", "without_gap",
]  # fmt: skip

LEARNED, DUPLICATE, GAP, DIVERGED = range(4)  # what became of a transition
STATUS_NAMES = ("learned", "duplicate", "gap", "diverged")
MAX_NAME_LENGTH = 200
MAX_SEQUENCE = 2**63 - 1


@dataclass(frozen=True)
class Transitions:
    """n transitions of one or more streams, in the order in which they are learned.

    Parameters
    ----------
    names
        The streams that occur.
    stream
        (n,) index into `names`.
    sequence
        (n,) number of each transition in its stream, from 0, rising by 1.
    state, next_state
        (n, d). At an ending next_state is the final observation, never the one after the reset.
    cumulants
        (n, k) the signals that are predicted; the reward, for a value function.
    terminated, truncated
        (n,) booleans.
    discounts
        (n, k) of each transition, in [0, 1]; None for those of the settings.
    """

    names: tuple[str, ...]
    stream: np.ndarray
    sequence: np.ndarray
    state: np.ndarray
    cumulants: np.ndarray
    next_state: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    discounts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    @classmethod
    def of(
        cls,
        stream: str | Sequence[str],
        sequence: int | ArrayLike,
        state: ArrayLike,
        cumulants: ArrayLike,
        next_state: ArrayLike,
        terminated: ArrayLike = False,
        truncated: ArrayLike = False,
        discounts: ArrayLike | None = None,
    ) -> Transitions:
        """Transitions from what is at hand.

        `stream` is one name for all, or n of them; `sequence` the number of the first of them if they are all of one
        stream, or n numbers; `state` and `next_state` (n, d) or, for one transition, (d,); `cumulants` (n, k), or (n,)
        for one prediction, or (k,) or a number for one transition; flags one for all or (n,).
        """
        states = numbers("state", state)
        one = states.ndim < 2

        def columns(array: np.ndarray) -> np.ndarray:
            if array.ndim < 2:
                return array.reshape(1, -1) if one else array.reshape(-1, 1)
            return array

        states, next_states = columns(states), columns(numbers("next_state", next_state))
        n, names = len(states), [stream] if isinstance(stream, str) else list(stream)
        for name in names:
            if not isinstance(name, str):
                raise InvalidRequestError("stream", f"holds {name!r:.50}; expected names")
        slots = {name: i for i, name in enumerate(dict.fromkeys(names))}
        sequences = np.asarray(sequence)
        if sequences.ndim == 0 and sequences.dtype.kind in "iu" and 0 <= sequences <= MAX_SEQUENCE - n:
            if n > 1 and len(slots) > 1:
                raise InvalidRequestError("sequence", f"is one number; expected {n}, since there are several streams")
            sequences = int(sequences) + np.arange(n)
        ends, cuts = (
            np.broadcast_to(array, (n,)) if array.ndim == 0 else array
            for array in (numbers("terminated", terminated), numbers("truncated", truncated))
        )
        return cls(
            tuple(slots),
            np.zeros(n, np.int64) if isinstance(stream, str) else np.array([slots[name] for name in names], np.int64),
            np.atleast_1d(sequences),
            states,
            columns(numbers("cumulants", cumulants)),
            next_states,
            ends,
            cuts,
            None if discounts is None else columns(numbers("discounts", discounts)),
        )

    def checked(self, net: Network, k: int, max_batch: int) -> Transitions:
        """The same with arrays as the kernel takes them, copied, so that the caller may use its own again.

        Raises
        ------
        InvalidRequestError
            If something has the wrong shape or type, or a number is not finite.
        """
        limit = float(np.finfo(net.dtype).max)
        state = check_floats("state", self.state, net.dtype, (None, net.n_inputs))
        n = len(state)
        if n > max_batch:
            raise InvalidRequestError("transitions", f"has {n} entries; expected at most {max_batch}")
        next_state = check_floats("next_state", self.next_state, net.dtype, (n, net.n_inputs))
        cumulants = check_floats("cumulants", self.cumulants, np.float64, (n, k), limit)
        discounts = None
        if self.discounts is not None:
            discounts = check_floats("discounts", self.discounts, np.float64, (n, k))
            check((discounts >= 0) & (discounts <= 1), "discounts", discounts, "a number in [0, 1]")
        terminated, truncated = (check_flags(name, getattr(self, name), n) for name in ("terminated", "truncated"))
        sequence = check_whole("sequence", self.sequence, n, MAX_SEQUENCE)
        if n and not self.names:
            raise InvalidRequestError("names", "is empty; expected the name of each stream")
        stream = check_whole("stream", self.stream, n, len(self.names) - 1)
        for i, name in enumerate(self.names):
            if not (isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()):
                raise InvalidRequestError(
                    "stream",
                    f"is {name!r:.250}; expected a name of 1 to {MAX_NAME_LENGTH} printable characters",
                    tuple(np.flatnonzero(stream == i)[:1].tolist()),
                )
        if len(set(self.names)) != len(self.names):
            raise InvalidRequestError("names", "holds a name twice; expected each stream once")
        return Transitions(self.names, stream, sequence, state, cumulants, next_state, terminated, truncated, discounts)


class LearnResult(NamedTuple):
    """What became of n transitions."""

    version: int  # of the weights after the last of them
    status: np.ndarray  # (n,) uint8: LEARNED, DUPLICATE, GAP or DIVERGED
    td_errors: np.ndarray  # (n, k) float64; NaN where nothing was learned
    expected: np.ndarray  # (n,) int64: the sequence number that a GAP should have had; -1 elsewhere

    @property
    def learned(self) -> int:
        """Number of transitions learned."""
        return int(np.count_nonzero(self.status == LEARNED))

    @property
    def duplicates(self) -> int:
        """Number of transitions that had been seen before."""
        return int(np.count_nonzero(self.status == DUPLICATE))

    @property
    def rejected(self) -> int:
        """Number of transitions refused since others before them are missing."""
        return int(np.count_nonzero(self.status == GAP))

    @property
    def diverged(self) -> int:
        """Number of transitions whose update would have been infinite or NaN; their streams' traces were cut."""
        return int(np.count_nonzero(self.status == DIVERGED))


def gap(batch: Transitions, result: LearnResult) -> GapError | None:
    """The first gap in a batch, if there is one."""
    gaps = np.flatnonzero(result.status == GAP)
    if not len(gaps):
        return None
    i = int(gaps[0])
    stream = batch.names[int(np.asarray(batch.stream)[i])]
    return GapError(stream, int(np.asarray(batch.sequence)[i]), int(result.expected[i]), i, result)


def without_gap(batch: Transitions, result: LearnResult) -> LearnResult:
    """The result, or GapError: how every `learn` ends."""
    error = gap(batch, result)
    if error is not None:
        raise error
    return result


class Values(NamedTuple):
    """Predictions at n states."""

    values: np.ndarray  # (n, k)
    version: int


class Gradients(NamedTuple):
    """How one prediction changes with its input, at n states."""

    gradients: np.ndarray  # (n, d)
    version: int


class Norms(NamedTuple):
    """Euclidean norm of each layer's weights, over all networks."""

    norms: dict[str, float]
    version: int


class Weights(NamedTuple):
    """The weights, and how to read them."""

    w: np.ndarray  # (m, P), one row per network; read-only
    version: int
    blocks: dict[str, tuple[int, tuple[int, ...]]]  # name -> where it starts in a row, and its shape
    net: dict[str, Any]  # settings of `Network`
    names: tuple[str, ...]  # of the predictions

    def block(self, name: str, network: int = 0) -> np.ndarray:
        """One block, by name: A, b_A, B, b_B, or W1, b1, ... of a deeper network."""
        start, shape = self.blocks[name]
        return self.w[network, start : start + int(np.prod(shape))].reshape(shape)
