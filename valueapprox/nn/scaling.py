"""Standardising: bringing columns to mean 0 and standard deviation 1, and folding that into a network's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from valueapprox.nn.network import Network

__all__ = ["Scaling", "fold_scaling"]


class Scaling(NamedTuple):
    """What brings columns to mean 0 and standard deviation 1: x -> (x - mean) / scale; both (d,), float64."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def none(cls, d: int) -> Scaling:
        """That which changes nothing."""
        return cls(np.zeros(d), np.ones(d))

    @classmethod
    def of(cls, columns: np.ndarray) -> Scaling:
        """That of these columns (n, d): their mean, and sqrt(1/n sum (x - mean)^2); a constant one has scale 1.

        >>> Scaling.of(np.array([[1.0, 7.0], [5.0, 7.0]]))
        Scaling(mean=array([3., 7.]), scale=array([2., 1.]))
        """
        low, high = columns.min(axis=0), columns.max(axis=0)
        constant = low == high
        mean = np.where(constant, low, columns.mean(axis=0))
        # Divided by the longest distance first: squares of large numbers are infinite, and of small ones zero.
        longest = np.where(constant, 1.0, np.abs(columns - mean).max(axis=0))
        scale = longest * np.sqrt(np.mean(((columns - mean) / longest) ** 2, axis=0))
        return cls(mean, np.where(constant, 1.0, scale))

    def apply(self, columns: np.ndarray) -> np.ndarray:
        """(x - mean) / scale."""
        return (columns - self.mean) / self.scale


def fold_scaling(net: Network, w: np.ndarray, inputs: Scaling, outputs: Scaling) -> tuple[Network, np.ndarray]:
    """A network in float64, and its weights, that takes and gives what net takes and gives standardised.

    (s - mean) / scale W + b = s W' + b - mean W', W' = W / scale by rows;  with batch normalisation in the first layer,
    which takes the mean of s W away, that mean grows by mean W' instead.
    scale (x W + b) + mean = x (W scale) + b scale + mean in the last layer; its activation has to be linear.

    Raises
    ------
    ValueError
        If the network has no biases, or outputs are scaled behind an activation.
    """
    if not net.bias:
        raise ValueError("bias is False; expected a network with biases, to which the means go")
    if net.output != "linear" and not all(map(np.array_equal, outputs, Scaling.none(net.n_outputs))):
        raise ValueError(f"output is {net.output}; expected linear, as the last weights cannot scale another")
    raw = replace(net, dtype="float64")
    folded = np.array(w, dtype=np.float64)
    layers = raw.unpack(folded)
    first, first_bias = layers[0]
    last, last_bias = layers[-1]
    assert first_bias is not None, "checked above"
    assert last_bias is not None, "checked above"
    first /= inputs.scale[:, None]
    moved = inputs.mean @ first
    norms = raw.batch_norms(folded)
    if norms:
        norms[0].mean[...] += moved
    else:
        first_bias -= moved
    last *= outputs.scale
    last_bias *= outputs.scale
    last_bias += outputs.mean
    return raw, folded
