"""What travels over HTTP: arrays as npy and npz, read without trust, and answers in JSON."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from valueapprox.checkpoint import read_array, read_members

__all__ = ["JSON", "NPY", "NPZ", "BodyError", "numbers", "read_npy", "read_npz", "write_npy", "write_npz"]

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
MAX_MEMBERS = 64


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
    try:
        return read_array(data)
    except ValueError as error:
        raise BodyError(400, field, str(error)) from None


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
    n_members = data.count(b"PK\1\2")  # each has an entry in the directory, which the reader reads as a whole
    if n_members > MAX_MEMBERS:
        raise BodyError(400, None, f"the npz file has {n_members:,} members; expected at most {MAX_MEMBERS}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            texts = read_members(file, len(data))
    except ValueError as error:
        raise BodyError(400, None, f"the npz file is refused: {error}") from None
    except Exception:  # noqa: BLE001  (what is damaged can make the reader raise anything)
        raise BodyError(400, None, "the body is not in NumPy's npz format, or is damaged") from None
    for name in texts:
        if not name.endswith(".npy"):
            raise BodyError(400, None, f"the npz file holds {name[:80]!r}; expected only arrays, NAME.npy")
    return {name.removesuffix(".npy"): read_npy(text, name.removesuffix(".npy")[:80]) for name, text in texts.items()}


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
