"""Agents as arrays and as files: what every agent has that says what it has learned."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from valueapprox import checkpoint

__all__ = ["Stored"]


class Stored:
    """The base of agents: saving and loading, from `state_dict`."""

    #: What its files are called inside.
    file_kind: ClassVar[str]

    @abstractmethod
    def state_dict(self) -> dict[str, np.ndarray]:
        """All that was learned, as arrays (views): an agent made with the same arguments goes on from it exactly."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state_dict` gave, of an agent that was made with the same arguments."""
        own = self.state_dict()
        for name, array in own.items():
            stored = arrays[name]
            if stored.shape != array.shape or stored.dtype != array.dtype:
                raise ValueError(f"{name} is {stored.dtype} {stored.shape}; expected {array.dtype} {array.shape}")
        checkpoint.must_be_finite({name: arrays[name] for name in own})
        for name, array in own.items():
            array[...] = arrays[name]

    def save(self, path: str | Path) -> None:
        """Write what was learned to one file, whole or not at all, without pickle."""
        checkpoint.save(path, self.state_dict(), {"kind": self.file_kind, "agent": type(self).__name__})

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote, of an agent that was made with the same arguments.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or of another agent.
        """
        arrays, meta = checkpoint.load(path)
        if meta.get("agent") != type(self).__name__:
            raise checkpoint.CheckpointError(f"{path} holds no {type(self).__name__}, but {meta.get('agent')}")
        try:
            self.restore(arrays)
        except (KeyError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path} does not fit this agent ({error})") from None
