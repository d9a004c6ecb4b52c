"""What travels over HTTP: arrays as npy and npz, read without trust, and answers in JSON.

A reader checks what a header claims against the bytes that came before anything is allocated, takes numbers and text
only, and refuses compressed members, so that neither a small body nor an object in one can do harm.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["JSON", "NPY", "NPZ", "BodyError", "numbers", "read_npy", "read_npz", "write_npy", "write_npz"]

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
MOST_MEMBERS = 64
MOST_DIMENSIONS = 4
KINDS = {"f": "numbers", "i": "numbers", "u": "numbers", "b": "booleans", "U": "text"}


class BodyError(Exception):
    """A body that cannot be taken: the HTTP status, the field that is wrong (None for the whole), and why."""

    def __init__(self, status: int, field: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.field, self.message = status, field, message


def write_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
    return file.getvalue()


def read_npy(data: bytes, field: str | None = None) -> np.ndarray:
    """The array in the bytes of a .npy file of numbers, booleans or text; read-only.

    Raises
    ------
    BodyError
        400 with `field`, if the bytes are no such file, or fewer or more than its header says.
    """
    file = io.BytesIO(data)
    try:
        major = np.lib.format.read_magic(file)[0]
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[major]
        shape, fortran_order, dtype = read_header(file)
    except Exception:  # noqa: BLE001  (NumPy's reader of headers can raise anything)
        raise BodyError(400, field, "is not in NumPy's npy format, version 1 or 2") from None
    if dtype.kind not in KINDS or dtype.itemsize == 0:
        raise BodyError(400, field, f"holds {dtype}; numbers are wanted")
    if len(shape) > MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise BodyError(400, field, f"has shape {shape}, which no array here has")
    start, count = file.tell(), math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise BodyError(
            400, field, f"says it holds {dtype} {shape}, {count * dtype.itemsize} bytes; {len(data) - start} came"
        )
    flat = np.frombuffer(data, dtype, count, start) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def write_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as the bytes of an uncompressed .npz file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as members:
        for name, array in arrays.items():
            members.writestr(f"{name}.npy", write_npy(array))
    return file.getvalue()


def read_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in the bytes of an uncompressed .npz file, by name; read-only.

    Raises
    ------
    BodyError
        400, if the bytes are no such file, are damaged, or hold anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
            refused = _refused(members, len(data))
            texts = {} if refused else {member.filename: file.read(member) for member in members}  # checks checksums
    except Exception:  # noqa: BLE001  (what is damaged can make the reader raise anything)
        refused = "is not in NumPy's npz format, or is damaged"
    if refused:
        raise BodyError(400, None, f"the body {refused}")
    if len(texts) != len(members):
        raise BodyError(400, None, "the npz file holds two arrays of one name")
    for name in texts:
        if not name.endswith(".npy"):
            raise BodyError(400, None, f"the npz file holds {name[:80]!r}; only arrays, NAME.npy, are taken")
    return {name.removesuffix(".npy"): read_npy(text, name.removesuffix(".npy")) for name, text in texts.items()}


def _refused(members: list[zipfile.ZipInfo], size: int) -> str | None:
    """Why the members of an npz file of `size` bytes are not read."""
    if len(members) > MOST_MEMBERS:
        return f"has {len(members)} members; at most {MOST_MEMBERS} are taken"
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return "is compressed; write it with np.savez"
    if sum(member.file_size for member in members) > size:
        return "claims to hold more bytes than came"
    return None


def numbers(field: str, array: np.ndarray, dtype: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """`array` as finite numbers of `dtype` and `shape`, where None is any length; a new array, C order, writeable.

    Raises
    ------
    BodyError
        422 with `field`, if it is no array of numbers of that shape, or an entry is infinite, NaN, or too large.
    """
    if array.dtype.kind not in "fiub":
        raise BodyError(422, field, f"holds {array.dtype}; numbers are wanted")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = "(" + ", ".join("n" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise BodyError(422, field, f"has shape {array.shape}; {wanted} is wanted")
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.array(array, dtype, order="C")
    if result.dtype.kind == "f":
        wrong = ~np.isfinite(result)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            entry = "".join(f"[{i}]" for i in place)
            raise BodyError(422, f"{field}{entry}", f"is {array[place]}; a finite {result.dtype} number is wanted")
    return result
