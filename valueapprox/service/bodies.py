"""What travels over HTTP: arrays as npy and npz, read without trust, and answers in JSON."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np

from valueapprox.checkpoint import read_array, read_members
from valueapprox.service.errors import InvalidRequestError

__all__ = ["JSON", "NPY", "NPZ", "read_npy", "read_npz", "write_npy", "write_npz"]

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"
MAX_MEMBERS = 64


def write_npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
    return file.getvalue()


def read_npy(data: bytes, field: str | None = None) -> np.ndarray:
    """The array in the bytes of a .npy file of numbers, booleans or text; read-only.

    Raises
    ------
    InvalidRequestError
        400 with `field`, if the bytes are no such file, or fewer or more than its header says.
    """
    try:
        return read_array(data)
    except ValueError as error:
        raise InvalidRequestError(field, str(error), status=400) from None


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
    InvalidRequestError
        400, if the bytes are no such file, are damaged, or hold anything else.
    """
    n_members = data.count(b"PK\1\2")  # each has an entry in the directory, which the reader reads as a whole
    if n_members > MAX_MEMBERS:
        raise InvalidRequestError(
            None, f"the npz file has {n_members:,} members; expected at most {MAX_MEMBERS}", status=400
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            texts = read_members(file, len(data))
    except ValueError as error:
        raise InvalidRequestError(None, f"the npz file is refused: {error}", status=400) from None
    except Exception:  # noqa: BLE001  (what is damaged can make the reader raise anything)
        raise InvalidRequestError(None, "the body is not in NumPy's npz format, or is damaged", status=400) from None
    for name in texts:
        if not name.endswith(".npy"):
            raise InvalidRequestError(
                None, f"the npz file holds {name[:80]!r}; expected only arrays, NAME.npy", status=400
            )
    return {name.removesuffix(".npy"): read_npy(text, name.removesuffix(".npy")[:80]) for name, text in texts.items()}
