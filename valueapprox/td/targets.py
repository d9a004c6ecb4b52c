"""Targets from stretches of experience: n-step and lambda-returns, GAE, V-trace, Retrace; functions on arrays.

Arrays are (T, n): row t - 1 holds the transitions from s_{t-1} to s_t of n environments, at times 1 to T. Names end in
_tm1 for what belongs to s_{t-1} and a_{t-1}, and in _t for what came then:

r_t           rewards
discount_t    gamma, and 0 where s_t is terminal
v_tm1, v_t    values of s_{t-1} and s_t; where an episode was cut, s_t is its final observation
ended_t       whether the episode ended or was cut at s_t: what follows is another one, of which no value comes in

All sums run backwards in one compiled loop, A_{t-1} = x_t + decay_t A_t. After the last row A is 0: a stretch that ends
in mid-episode bootstraps from v_t there, as where a time limit cuts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import positive, unit_interval
from valueapprox.compiling import kernel

__all__ = ["gae", "lambda_returns", "n_step_returns", "retrace", "vtrace"]


@kernel
def accumulate(x, decay, sums):
    """sums[k] = x[k] + decay[k] sums[k + 1], each (T, n)."""
    rows, columns = x.shape
    for i in range(columns):
        sums[rows - 1, i] = x[rows - 1, i]
    for k in range(rows - 2, -1, -1):
        for i in range(columns):
            sums[k, i] = x[k, i] + decay[k, i] * sums[k + 1, i]


@kernel
def n_steps(r_t, discount_t, v_t, ended_t, n, returns):
    """Each return by itself: rewards of at most n steps, until the episode or the stretch ends, and then the value."""
    rows, columns = r_t.shape
    for i in range(columns):
        for k in range(rows):
            last = min(k + n, rows) - 1
            for j in range(k, last):
                if ended_t[j, i]:
                    last = j
                    break
            g = v_t[last, i]
            for j in range(last, k - 1, -1):
                g = r_t[j, i] + discount_t[j, i] * g
            returns[k, i] = g


def _arrays(**given: ArrayLike) -> list[np.ndarray]:
    """The arrays as floats of one dtype and shape (T, n): float32 if all are, otherwise float64."""
    arrays = {name: np.asarray(array) for name, array in given.items()}
    shape = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.ndim != 2 or array.shape != shape or 0 in shape:
            raise ValueError(f"{name} has shape {array.shape}; expected (T, n), the same for all, as {shape}")
    dtype = np.float32 if all(array.dtype == np.float32 for array in arrays.values()) else np.float64
    return [np.ascontiguousarray(array, dtype) for array in arrays.values()]


def _flags(ended_t: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    flags = np.asarray(ended_t)
    if flags.shape != shape or flags.dtype != np.bool_:
        raise ValueError(f"ended_t is {flags.dtype} of shape {flags.shape}; expected booleans of shape {shape}")
    return np.ascontiguousarray(flags)


def _accumulated(x: np.ndarray, decay: np.ndarray, ended: np.ndarray) -> np.ndarray:
    sums = np.empty_like(x)
    accumulate(x, np.where(ended, x.dtype.type(0), decay.astype(x.dtype, copy=False)), sums)
    return sums


def gae(
    r_t: ArrayLike, discount_t: ArrayLike, v_tm1: ArrayLike, v_t: ArrayLike, ended_t: ArrayLike, lam: float
) -> np.ndarray:
    """Generalised advantage estimates (T, n), of Schulman et al. 2016, arXiv 1506.02438, eq. 16.

    A_{t-1} = delta_t + discount_t lam A_t, with delta_t = r_t + discount_t v_t - v_{t-1}; nothing after an ending.

    Raises
    ------
    ValueError
        If shapes differ, or lam is outside [0, 1].
    """
    r, discount, v, v_next = _arrays(r_t=r_t, discount_t=discount_t, v_tm1=v_tm1, v_t=v_t)
    decay = discount * r.dtype.type(unit_interval("lam", lam))
    return _accumulated(r + discount * v_next - v, decay, _flags(ended_t, r.shape))


def lambda_returns(r_t: ArrayLike, discount_t: ArrayLike, v_t: ArrayLike, ended_t: ArrayLike, lam: float) -> np.ndarray:
    """Lambda-returns (T, n): G_{t-1} = r_t + discount_t ((1 - lam) v_t + lam G_t), Sutton & Barto 2018, eq. 12.18.

    At an ending, and in the last row, G_{t-1} = r_t + discount_t v_t. With v_t = max_a q(s_t, a) they are those of
    Peng's Q(lambda), with an expectation under the policy those of Sarsa(lambda).

    Raises
    ------
    ValueError
        If shapes differ, or lam is outside [0, 1].
    """
    r, discount, v_next = _arrays(r_t=r_t, discount_t=discount_t, v_t=v_t)
    ended, share = _flags(ended_t, r.shape).copy(), r.dtype.type(unit_interval("lam", lam))
    ended[-1] = True
    mixed = np.where(ended, v_next, (1 - share) * v_next)
    return _accumulated(r + discount * mixed, discount * share, ended)


def n_step_returns(r_t: ArrayLike, discount_t: ArrayLike, v_t: ArrayLike, ended_t: ArrayLike, n: int) -> np.ndarray:
    """n-step returns (T, n_envs): up to n rewards and then the value, Sutton & Barto 2018, eq. 7.1.

    Fewer rewards where an episode ends before, or the stretch does.

    Raises
    ------
    ValueError
        If shapes differ, or n is not a whole number from 1.
    """
    r, discount, v_next = _arrays(r_t=r_t, discount_t=discount_t, v_t=v_t)
    returns = np.empty_like(r)
    n_steps(r, discount, v_next, _flags(ended_t, r.shape), positive("n", n), returns)
    return returns


def vtrace(
    r_t: ArrayLike,
    discount_t: ArrayLike,
    v_tm1: ArrayLike,
    v_t: ArrayLike,
    ended_t: ArrayLike,
    rho_tm1: ArrayLike,
    lam: float = 1.0,
    max_rho: float = 1.0,
    max_c: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """V-trace targets and advantages, each (T, n), of Espeholt et al. 2018, arXiv 1802.01561, eq. 1.

    vs_{t-1} = v_{t-1} + A_{t-1},  A_{t-1} = rho delta_t + discount_t c A_t,  delta_t = r_t + discount_t v_t - v_{t-1},
    with rho = min(max_rho, rho_{t-1}) and c = lam min(max_c, rho_{t-1}). The advantage of a_{t-1} for the policy's
    gradient is rho (r_t + discount_t vs_t - v_{t-1}), where vs_t is v_t at an ending and in the last row.

    Parameters
    ----------
    rho_tm1
        (T, n) importance ratio pi(a_{t-1} | s_{t-1}) / mu(a_{t-1} | s_{t-1}) of the policy that is learned to the one
        that acted.

    Raises
    ------
    ValueError
        If shapes differ, lam is outside [0, 1], a ratio is negative, or max_rho is less than max_c.
    """
    r, discount, v, v_next, ratio = _arrays(r_t=r_t, discount_t=discount_t, v_tm1=v_tm1, v_t=v_t, rho_tm1=rho_tm1)
    if not max_rho >= max_c > 0:
        raise ValueError(f"max_c is {max_c}; expected a positive number up to max_rho, {max_rho}")
    if (ratio < 0).any():
        raise ValueError(f"rho_tm1 has {ratio.min()}; expected ratios that are not negative")
    ended, kind = _flags(ended_t, r.shape), r.dtype.type
    rho, c = np.minimum(kind(max_rho), ratio), kind(unit_interval("lam", lam)) * np.minimum(kind(max_c), ratio)
    targets = v + _accumulated(rho * (r + discount * v_next - v), discount * c, ended)
    following = np.where(ended[:-1], v_next[:-1], v_next[:-1] + targets[1:] - v[1:])
    return targets, rho * (r + discount * np.concatenate([following, v_next[-1:]]) - v)


def retrace(
    r_t: ArrayLike,
    discount_t: ArrayLike,
    q_tm1: ArrayLike,
    v_t: ArrayLike,
    ended_t: ArrayLike,
    rho_tm1: ArrayLike,
    lam: float,
) -> np.ndarray:
    """Retrace(lambda) targets (T, n) for q(s_{t-1}, a_{t-1}), of Munos et al. 2016, arXiv 1606.02647, eq. 4.

    G_{t-1} = q_{t-1} + A_{t-1},  A_{t-1} = r_t + discount_t v_t - q_{t-1} + discount_t c_t A_t, with c_t = lam min(1,
    rho_t) of the action that was taken in s_t.

    Parameters
    ----------
    q_tm1
        (T, n) q(s_{t-1}, a_{t-1}) of the actions that were taken.
    v_t
        (T, n) expectation of q(s_t, a) under the policy that is learned.
    rho_tm1
        (T, n) its probability of a_{t-1} over that of the policy that acted.

    Raises
    ------
    ValueError
        If shapes differ, lam is outside [0, 1], or a ratio is negative.
    """
    r, discount, q, v_next, ratio = _arrays(r_t=r_t, discount_t=discount_t, q_tm1=q_tm1, v_t=v_t, rho_tm1=rho_tm1)
    if (ratio < 0).any():
        raise ValueError(f"rho_tm1 has {ratio.min()}; expected ratios that are not negative")
    c = r.dtype.type(unit_interval("lam", lam)) * np.minimum(r.dtype.type(1), ratio)
    c_t = np.concatenate([c[1:], np.zeros_like(c[:1])])
    return q + _accumulated(r + discount * v_next - q, discount * c_t, _flags(ended_t, r.shape))
