"""Checkpoints: named arrays and a JSON description in one file, written whole or not at all, and without pickle.

The file is NumPy's npz, a zip of .npy members with checksums, and a JSON member that also lists their names. It is
written beside its target, forced to disk and renamed over it: a crash at any moment leaves the previous one as it was.

Files are read without trust, here and in what comes over HTTP: what a header claims is compared with the bytes that are
there before anything is allocated, and compressed members are refused, so that no small file becomes a large array.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from valueapprox.checks import python_value

__all__ = [
    "Checkpoint", "CheckpointError", "load", "must_be_finite", "read_array", "read_members", "save", "sync_folder",
    "under_new_names", "write_whole",
]  # fmt: skip

FORMAT = "valueapprox-checkpoint"
VERSION = 1
META = "meta.json"  # arrays lie beside it as NAME.npy
MAX_DIMENSIONS = 4
MAX_TEXT = 1024  # characters of an entry
KINDS = "fiubU"  # numbers, booleans and text


#: Settings whose names have changed since version 0.1, in which older files have them.
RENAMED = {"scheme": "init", "sample_every": "norms_every", "keep_values": "rescale_outputs"}


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or not one of ours."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def write_whole(path: Path, write: Callable[[BinaryIO], Any], *, private: bool = False) -> None:
    """Call `write(file)` on a temporary file beside `path`, force it to disk, and rename it to `path`.

    A private file can be opened by its owner alone (mode 0600).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=_private if private else None) as file:
            if private:
                os.fchmod(file.fileno(), 0o600)  # one of a process that was killed may have been there
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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def save(path: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, private: bool = False) -> None:
    """Write arrays and JSON-able `meta` to `path`, replacing what was there only once all is on disk.

    Its owner alone can open a private file.
    """
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

    write_whole(Path(path), write, private=private)


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
            members = read_members(file, path.stat().st_size)
        header = json.loads(members.pop(META))
        arrays = {name.removesuffix(".npy"): read_array(data).copy("K") for name, data in members.items()}
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


def read_members(file: zipfile.ZipFile, size: int | None) -> dict[str, bytes]:
    """What the members of an uncompressed zip file of `size` bytes hold, by name; None trusts a user's own file.

    Raises
    ------
    ValueError
        If one is compressed, or together they claim to be larger than the file; also if a checksum is wrong.
    """
    members = file.infolist()
    if size is not None and any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed; expected what np.savez writes")
    if size is not None and sum(member.file_size for member in members) > size:
        raise ValueError("it claims to hold more bytes than are there")
    # read() goes to a member's end, where its checksum is compared; only then is it looked at.
    found = {member.filename: file.read(member) for member in members}
    if len(found) != len(members):
        raise ValueError("it holds two members of one name")
    return found


def read_array(data: bytes, kinds: str = KINDS) -> np.ndarray:
    """The array in the bytes of a .npy file whose dtype is of these kinds: numbers, booleans or text; read-only.

    Raises
    ------
    ValueError
        If the bytes are no such file, or fewer or more than its header says.
    """
    file = io.BytesIO(data)
    try:
        major = np.lib.format.read_magic(file)[0]
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[major]
        shape, fortran_order, dtype = read_header(file)
    except Exception:  # noqa: BLE001  (NumPy's reader of headers can raise anything)
        raise ValueError("is not in NumPy's npy format, version 1 or 2") from None
    if dtype.kind not in kinds or dtype.itemsize == 0:
        raise ValueError(f"holds {_shown(dtype)}; expected numbers")
    if dtype.kind == "U" and dtype.itemsize > 4 * MAX_TEXT:
        raise ValueError(f"holds text of {dtype.itemsize // 4:,} characters; expected at most {MAX_TEXT:,}")
    # What NumPy asks of the shape of an empty array, too.
    largest = dtype.itemsize * math.prod(max(n, 1) for n in shape) if _are_counts(shape) else math.inf
    if largest > 2**63 - 1:
        raise ValueError(f"has a shape that no array has here; expected up to {MAX_DIMENSIONS} numbers from 0")
    start, count = file.tell(), math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise ValueError(
            f"says it holds {dtype} {shape}, {count * dtype.itemsize} bytes; {len(data) - start} are there"
        )
    flat = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    if dtype.kind == "b" and count and flat.view(np.uint8).max() > 1:
        raise ValueError("holds booleans that are neither 0 nor 1")
    if dtype.kind == "U" and count:
        codes = flat.view(f"{dtype.str[0]}u4")
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError("holds text with a code that is no character")
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _are_counts(shape: Any) -> bool:
    return len(shape) <= MAX_DIMENSIONS and all(type(n) is int and 0 <= n < 2**63 for n in shape)


def _shown(dtype: np.dtype[Any]) -> str:
    text = str(dtype)
    return text if len(text) <= 60 else f"{text[:60]}..."


def under_new_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are called today, of a file of any version."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def must_be_finite(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse learned numbers that no learner can have.

    Raises
    ------
    ValueError
        With the first entry that is infinite or NaN.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not (fine := np.isfinite(array)).all():
            place = tuple(int(i) for i in np.argwhere(~fine)[0])
            raise ValueError(f"{name}{list(place)} is {array[place]}; expected a finite number")
