"""Records of the journal as bytes: transitions to be learned, or weights that replace the present ones.

A payload begins with its kind, the bytes per number of the network, whether discounts follow, and 0; then n, d, k and
the length of the names, or, for weights, the numbers m and P.
"""

from __future__ import annotations

import json
import struct
from typing import NamedTuple, TypeAlias

import numpy as np

from valueapprox.service.messages import Transitions

__all__ = ["Change", "Plan", "decode", "encode"]

TRANSITIONS, WEIGHTS = 1, 2
HEAD = struct.Struct("<BBBBIIII")
TERMINATED, TRUNCATED, CUT = 1, 2, 4  # flags of a transition


class Plan(NamedTuple):
    """What is to be learned by one record of the journal: transitions whose numbers are in order."""

    batch: Transitions
    cut: np.ndarray  # (n,) whether the stream's trace is cut before, since transitions are missing


Change: TypeAlias = Plan | np.ndarray  # or weights (m, P) that replace the present ones


def encode(change: Change) -> bytes:
    """A payload: head, then sequence, discounts, cumulants, state, next_state, stream, flags, names; or weights."""
    if isinstance(change, np.ndarray):
        head, names = HEAD.pack(WEIGHTS, change.itemsize, 0, 0, *change.shape, 0, 0), b""
        parts = [(change, change.dtype.newbyteorder("<").str)]
    else:
        batch, cut = change
        gammas, names, floats = (
            batch.discounts,
            json.dumps(batch.names).encode(),
            batch.state.dtype.newbyteorder("<").str,
        )
        (n, d), k = batch.state.shape, batch.cumulants.shape[1]
        head = HEAD.pack(TRANSITIONS, batch.state.itemsize, gammas is not None, 0, n, d, k, len(names))
        flags = batch.terminated * TERMINATED | batch.truncated * TRUNCATED | cut * CUT
        parts = [(batch.sequence, "<i8"), *([] if gammas is None else [(gammas, "<f8")]), (batch.cumulants, "<f8")]
        parts += [(batch.state, floats), (batch.next_state, floats), (batch.stream, "<u4"), (flags, "u1")]
    return b"".join([head, *(array.astype(dtype, copy=False).tobytes() for array, dtype in parts), names])


def decode(payload: bytes) -> Change:
    """What `encode` wrote.

    Raises
    ------
    ValueError
        If it is something else: the record was written by another version.
    """
    kind, itemsize, discounted, _, n, d, k, n_names = HEAD.unpack_from(payload)
    if kind not in (TRANSITIONS, WEIGHTS) or itemsize not in (4, 8):
        raise ValueError(f"a record of kind {kind} with numbers of {itemsize} bytes is not known here")
    offset = HEAD.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal offset
        size = int(np.prod(shape))
        array = np.frombuffer(payload, dtype, size, offset).reshape(shape)
        offset += array.nbytes
        return array.astype(array.dtype.newbyteorder("="))  # a copy, which may be written to

    floats = f"<f{itemsize}"
    if kind == WEIGHTS:
        return take(floats, n, d)
    sequence = take("<i8", n)
    gammas = take("<f8", n, k) if discounted else None
    cumulants, states, next_states = take("<f8", n, k), take(floats, n, d), take(floats, n, d)
    stream, flags = take("<u4", n).astype(np.int64), take("u1", n)
    names = json.loads(payload[offset : offset + n_names])
    terminated, truncated, cut = (flags & bit != 0 for bit in (TERMINATED, TRUNCATED, CUT))
    batch = Transitions(tuple(names), stream, sequence, states, cumulants, next_states, terminated, truncated, gammas)
    return Plan(batch, cut)
