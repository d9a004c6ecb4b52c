"""The border: arrays as kernels want them, and errors that say what was given and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

MOST_NAMES = 25
CACHE_LINE = 16  # float32 numbers; float64 numbers fill two

#: What Python, NumPy and environments hand out as one number. Converting such a scalar costs a twentieth of making an
#: array of it, which `as_floats` does to find out what it is.
SCALARS = frozenset({int, float, bool, *(t for t in np.sctypeDict.values() if np.dtype(t).kind in "fiub")})

__all__ = [
    "CACHE_LINE", "aligned_zeros", "as_float", "as_floats", "as_numbers", "divergence_advice", "one_of", "positive",
    "python_settings", "python_value", "unit_interval",
]  # fmt: skip


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    """`value`, if it is allowed; otherwise an error that suggests the nearest."""
    names = list(allowed)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    if near:
        raise ValueError(f"{name} is {value!r}; did you mean {near[0]!r}?" + _known(names, " Known: "))
    raise ValueError(f"{name} is {value!r}; expected " + (_known(names, "one of ") or "another"))


def _known(names: list[str], lead: str) -> str:
    """The names, unless they are too many to read."""
    return lead + ", ".join(names) if len(names) <= MOST_NAMES else ""


def unit_interval(name: str, value: float) -> float:
    """`value`, if it lies in [0, 1]."""
    if not (_is_real(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name} is {value}; expected a number in [0, 1]")
    return float(value)


def positive(name: str, value: int, at_least: int = 1) -> int:
    """`value`, if it is a whole number not below `at_least`."""
    if not (_is_real(value) and value % 1 == 0 and value >= at_least):
        raise ValueError(f"{name} is {value}; expected a whole number of at least {at_least}")
    return int(value)


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def python_settings(settings: Any) -> None:
    """Give a frozen dataclass Python's own numbers, texts and tuples where it was given NumPy's: JSON knows no others.

    A whole number for a field that is an int by default, such as 1e5 or np.float64(200), is an int.
    """
    for f in fields(settings):
        value = python_value(getattr(settings, f.name))
        if type(f.default) is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        object.__setattr__(settings, f.name, value)


def python_value(value: Any) -> Any:
    """A NumPy number or array as Python's own, also inside of lists and dictionaries; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
        return float(value) if isinstance(value, np.longdouble) else value  # which NumPy gives back as it is
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(map(python_value, value))
    if isinstance(value, dict):
        return {python_value(name): python_value(entry) for name, entry in value.items()}
    return value


def as_numbers(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as an array of real numbers, whatever its shape."""
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} is a list whose rows differ in length; expected an array of numbers") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} holds {array.dtype}; expected real numbers")
    return array


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Zeros whose first entry, and whose rows if they are a multiple of `CACHE_LINE` long, start at a cache line.

    Wide vector loads that split two lines take twice as long, and NumPy promises 16 bytes only.
    """
    size, line = int(np.prod(shape)) * dtype.itemsize, 64
    raw = np.zeros(size + line, np.uint8)
    start = -raw.ctypes.data % line
    return raw[start : start + size].view(dtype).reshape(shape)


def as_float(name: str, value: Any) -> float:
    """`value` as a Python number; errors as those of `as_floats`."""
    if type(value) in SCALARS:
        return float(value)
    return float(as_floats(name, value, np.dtype(np.float64), ()))


def as_floats(name: str, value: ArrayLike, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> np.ndarray:
    """`value` as an array that kernels take as it is, of `dtype` and `shape`, where None stands for any length.

    Raises
    ------
    TypeError
        If it holds no real numbers.
    ValueError
        If it has another shape.
    """
    array = as_numbers(name, value)
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        wanted = "(" + ", ".join("n" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} has shape {array.shape}; expected {wanted}")
    # Writeable too: a read-only array is another type to Numba, for which every kernel would be compiled anew.
    return array if array.dtype == dtype and array.flags.carray else np.array(array, dtype, order="C")


def divergence_advice(*weights: np.ndarray) -> str:
    """The end of a message about a number that is infinite or NaN: what helps, as far as the weights tell."""
    largest = max(float(np.abs(w).max()) for w in weights)
    if np.isnan(largest):
        return ": a weight is NaN, as after learning has diverged; start afresh, or from a checkpoint"
    if largest > 1e6:
        return ": learning has diverged; a smaller step size helps"
    return ": the weights are moderate, so that observations or rewards must be too large; scale them"
