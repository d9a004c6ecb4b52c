"""Random streams by name: a tree of NumPy seed sequences, one leaf per (run seed, purpose, index)."""

from __future__ import annotations

import zlib
from typing import Any, cast

import numpy as np

__all__ = ["generator_from", "generator_state", "seed_for", "sequence"]


def sequence(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    """The seed sequence of one purpose in a run, e.g. ``sequence(seed, "policy", environment)``.

    Different names and indices give independent streams; the same ones give the same stream in every process.
    """
    return np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(purpose.encode()), *index))


def seed_for(seed: int, purpose: str, *index: int) -> int:
    """A 32-bit seed from the same tree, for what takes a number: an environment's `reset`."""
    return int(sequence(seed, purpose, *index).generate_state(1)[0])


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Where a PCG64 generator stands, as JSON-able values."""
    return dict(rng.bit_generator.state)


def generator_from(state: dict[str, Any]) -> np.random.Generator:
    """A generator that stands where `generator_state` found it."""
    bits = np.random.PCG64()
    bits.state = cast(Any, state)
    return np.random.Generator(bits)
