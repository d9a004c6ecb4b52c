"""Checkpoints: named arrays and a JSON description in one file, written whole or not at all, and without pickle.

The file is NumPy's npz: a zip whose members carry checksums. It is written beside its target, forced to disk and
renamed over it, so a crash at any moment leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Checkpoint", "CheckpointError", "load", "save", "write_whole"]

FORMAT = "valueapprox-checkpoint"
VERSION = 1
META = "meta.json"


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or not one of ours."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def write_whole(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, force it to disk, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays and JSON-able `meta` to `path`, replacing what was there only once all is on disk."""
    path = Path(path)
    document = json.dumps({"format": FORMAT, "version": VERSION, **meta}, allow_nan=False)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only numbers are saved")
    text = np.frombuffer(document.encode(), dtype=np.uint8)
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **{META: text}, **arrays))


def load(path: str | Path) -> Checkpoint:
    """Read what `save` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind or from a newer version.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
        meta = json.loads(members.pop(META).tobytes())
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint file") from None
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of valueapprox ({error})") from None
    if not isinstance(meta, dict) or meta.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of valueapprox")
    version = meta.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{path} has format version {version}; this valueapprox reads version {VERSION}")
    return Checkpoint(members, meta)
