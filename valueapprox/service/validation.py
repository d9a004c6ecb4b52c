"""The border of a service: what requests hold is checked here, once, whichever way they came.

Errors are `InvalidRequestError`: the field, then "is VALUE; expected WANTED".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, as_numbers
from valueapprox.nn.network import Network
from valueapprox.service.errors import InvalidRequestError

__all__ = ["check", "check_flags", "check_floats", "check_states", "check_weights", "check_whole", "numbers"]


def numbers(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as an array of real numbers, whatever its shape."""
    try:
        return as_numbers(name, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(name, str(error).removeprefix(f"{name} ")) from None


def check(fine: np.ndarray, name: str, array: np.ndarray, expected: str) -> None:
    """Raise if an entry of `array` is not fine, and say which."""
    if not fine.all():
        at = tuple(map(int, np.argwhere(~fine)[0]))
        raise InvalidRequestError(name, f"is {array[at]}; expected {expected}", at)


def check_floats(
    name: str,
    value: ArrayLike,
    dtype: Any,
    shape: tuple[int | None, ...],
    limit: float | None = None,
    *,
    copy: bool = True,
) -> np.ndarray:
    """`value` as finite numbers of `dtype` and `shape`, where None is any length.

    `limit` is the largest magnitude that an entry may have; None for that of `dtype`. With `copy`, the caller may
    use its array again.
    """
    dtype = np.dtype(dtype)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and is refused as that
            array = as_floats(name, value, dtype, shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(name, str(error).removeprefix(f"{name} ")) from None
    fine = np.isfinite(array) if limit is None else np.abs(array) <= limit
    if not fine.all():
        what = f"a finite number of {dtype}" if limit is None else f"a number of at most {limit:.3g} in magnitude"
        check(fine, name, np.asarray(value), what)
    return array.copy() if copy and array is value else array


def check_whole(name: str, value: ArrayLike, n: int, maximum: int) -> np.ndarray:
    """`value` as n whole numbers from 0 to `maximum`."""
    array = np.asarray(value)
    # Python's own integers that fit no 64 bits are left to the bounds below.
    if array.dtype.kind != "O" or not all(type(entry) is int for entry in array.flat):
        array = numbers(name, array)
    check_length(name, array, n)
    kind = array.dtype.kind
    with np.errstate(invalid="ignore"):
        if kind == "b" or (kind == "f" and not (array % 1 == 0).all()):
            raise InvalidRequestError(name, f"holds {array.dtype}; expected whole numbers")
    bound = min(maximum, 2**53) if kind == "f" else maximum  # beyond, a float64 may not be what was meant
    check(((array >= 0) & (array <= bound)).astype(np.bool_), name, array, f"a whole number from 0 to {bound}")
    return np.array(array, np.int64)


def check_flags(name: str, value: ArrayLike, n: int) -> np.ndarray:
    """`value` as n booleans, which may be given as 0 and 1."""
    array = numbers(name, value)
    check_length(name, array, n)
    if array.dtype != np.bool_:
        check((array == 0) | (array == 1), name, array, "a boolean")
    return array.astype(np.bool_)


def check_length(name: str, array: np.ndarray, n: int) -> None:
    """Raise unless `array` has shape (n,)."""
    if array.shape != (n,):
        raise InvalidRequestError(name, f"has shape {array.shape}; expected ({n},)")


def check_states(states: ArrayLike, net: Network) -> np.ndarray:
    """States (n, d) for a forward pass."""
    return check_floats("states", states, net.dtype, (None, net.n_inputs), copy=False)


def check_weights(weights: ArrayLike, like: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Weights (m, P), or (P,) for one network, as `like` is; a copy."""
    array = numbers("weights", weights)
    return check_floats("weights", array[None] if array.ndim == 1 else array, like.dtype, like.shape, limit)
