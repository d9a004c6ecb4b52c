"""Checkpoints: named arrays and a JSON description in one file, written whole or not at all, and without pickle.

The file is NumPy's npz, a zip of .npy members with checksums, and a JSON member that also lists their names. It is
written beside its target, forced to disk and renamed over it: a crash at any moment leaves the previous one as it was.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from valueapprox.checks import python_value

__all__ = ["Checkpoint", "CheckpointError", "load", "save", "sync_folder", "write_whole"]

FORMAT = "valueapprox-checkpoint"
VERSION = 1
META = "meta.json"  # arrays lie beside it as NAME.npy


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or not one of ours."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # it may be written to and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def save(path: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays and JSON-able `meta` to `path`, replacing what was there only once all is on disk."""
    header = {"format": FORMAT, "version": VERSION, "arrays": list(arrays)}
    document = json.dumps({**header, "meta": python_value(dict(meta))}, allow_nan=False)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only numbers are saved")

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as members:
            members.writestr(META, document)
            for name, array in arrays.items():
                with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, (1, 0), allow_pickle=False)

    write_whole(Path(path), write)


def load(path: str | Path) -> Checkpoint:
    """Read what `save` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, of another kind or from a newer version.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            # read() goes to a member's end, where its checksum is compared; only then is it looked at.
            members = {name: file.read(name) for name in file.namelist()}
        header = json.loads(members.pop(META))
        arrays = {name.removesuffix(".npy"): _array(data) for name, data in members.items()}
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint file") from None
    except PermissionError:
        raise CheckpointError(f"{path} may not be read") from None
    except Exception as error:  # noqa: BLE001  (what is damaged can make the readers raise anything)
        raise CheckpointError(f"{path} is damaged or not a checkpoint of valueapprox ({error!r})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of valueapprox")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {header.get('version')}; this valueapprox reads version {VERSION}"
        )
    if header.get("arrays") != list(arrays) or not isinstance(header.get("meta"), dict):
        raise CheckpointError(f"{path} is damaged: it does not hold the arrays that it lists")
    return Checkpoint(arrays, header["meta"])


def _array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("an array is followed by something else")
    return array
