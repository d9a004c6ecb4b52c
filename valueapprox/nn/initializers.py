"""Initial weights of one layer, W (n_in, n_out), drawn from a generator. Biases start at zero.

n_in inputs, n_out outputs. LeCun 1998 keeps a unit's variance with linear activations, Glorot & Bengio 2010 that of
values and gradients together, He et al. 2015 accounts for ReLU cutting half of it away.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["INITIALISERS"]

Initialiser = Callable[[np.random.Generator, int, int], np.ndarray]


def _normal(std: Callable[[int, int], float]) -> Initialiser:
    return lambda rng, n_in, n_out: rng.normal(0.0, std(n_in, n_out), (n_in, n_out))


def _uniform(bound: Callable[[int, int], float]) -> Initialiser:
    return lambda rng, n_in, n_out: rng.uniform(-bound(n_in, n_out), bound(n_in, n_out), (n_in, n_out))


def zeros(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """All zero: right for a linear network, and keeps a deeper one from learning, since its units stay alike."""
    return np.zeros((n_in, n_out))


def orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """Orthonormal rows or columns, whichever are fewer (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.normal(size=(max(n_in, n_out), min(n_in, n_out))))
    q = q * np.sign(np.diagonal(r))  # without the signs the distribution would not be uniform
    return q if n_in >= n_out else q.T


def sparse(rng: np.random.Generator, n_in: int, n_out: int, least: int = 1) -> np.ndarray:
    """Uniform on +-1/sqrt(n_in), with nine tenths of every unit's inputs set to zero, but at least one kept."""
    bound = 1.0 / math.sqrt(n_in)
    weights = rng.uniform(-bound, bound, (n_in, n_out))
    n_zero = min(math.ceil(0.9 * n_in), n_in - least)
    for j in range(n_out):
        weights[rng.permutation(n_in)[:n_zero], j] = 0.0
    return weights


def sparse_published(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    """`sparse` as Elsayed et al. 2024 have it: ceil(0.9 n_in) zeros, which for n_in < 10 are all: a layer of zeros."""
    return sparse(rng, n_in, n_out, least=0)


INITIALISERS: dict[str, Initialiser] = {
    "zeros": zeros,
    "normal": _normal(lambda n_in, n_out: 0.01),
    "uniform": _uniform(lambda n_in, n_out: 0.01),
    "lecun_normal": _normal(lambda n_in, n_out: math.sqrt(1 / n_in)),
    "lecun_uniform": _uniform(lambda n_in, n_out: math.sqrt(3 / n_in)),
    "glorot_normal": _normal(lambda n_in, n_out: math.sqrt(2 / (n_in + n_out))),
    "glorot_uniform": _uniform(lambda n_in, n_out: math.sqrt(6 / (n_in + n_out))),
    "he_normal": _normal(lambda n_in, n_out: math.sqrt(2 / n_in)),
    "he_uniform": _uniform(lambda n_in, n_out: math.sqrt(6 / n_in)),
    "orthogonal": orthogonal,
    "sparse": sparse,
    "sparse_published": sparse_published,
}
# The names that people also know them by.
for _alias, _name in {
    "lecun": "lecun_normal",
    "he": "he_normal",
    "glorot": "glorot_uniform",
    "xavier": "glorot_uniform",
    "xavier_normal": "glorot_normal",
    "xavier_uniform": "glorot_uniform",
}.items():
    INITIALISERS[_alias] = INITIALISERS[_name]
