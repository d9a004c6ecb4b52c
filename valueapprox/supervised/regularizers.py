"""Regularizers Omega(w): what is added to the risk so that weights stay small, or few.

Biases, and scales of batch normalisation, are left out unless asked for: they decide where a unit works and not how
strongly inputs matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn.backprop import LAYERS, SIZES, ZERO, layer_size
from valueapprox.optim.base import ALPHA

if TYPE_CHECKING:
    from valueapprox.nn.network import Network

__all__ = ["L1", "L2", "ElasticNet", "Regularizer", "SupportsPenalty"]

Strength = float | Sequence[float] | Mapping[str, float]

# Positions in the kernel's vector of settings: two flags, then the L strengths of L1 and those of L2.
BIASES, PROXIMAL, STRENGTHS = range(3)

divisor = placeholder("divisor")  # of the optimizer


@runtime_checkable
class SupportsPenalty(Protocol):
    """A regularizer of your own: any object with these two methods."""

    def value(self, net: Network, w: np.ndarray) -> float:
        """Omega(w)."""
        ...

    def gradient(self, net: Network, w: np.ndarray) -> ArrayLike:
        """dOmega / dw, shaped like w."""
        ...


@dataclass(frozen=True)
class Regularizer:
    """Omega(w) = sum over layers of l1 sum |w| + l2 sum w^2; the base of those below, and none itself.

    Parameters of all of them: a strength is one number, or one for each layer as a sequence or by name,
    ``{"B": 1e-3}``, where layers that are not named have none.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name in ("strength", "l1", "l2"):
                object.__setattr__(self, f.name, _checked(getattr(self, f.name)))

    def strengths(self, layers: Sequence[str]) -> tuple[list[float], list[float]]:
        """The strengths of L1 and of L2 in each named layer."""
        return _per_layer(getattr(self, "l1", 0.0), layers), _per_layer(getattr(self, "l2", 0.0), layers)

    def settings(self, net: Network) -> np.ndarray:
        """What kernels read: whether biases count, whether L1 is proximal, then the strengths."""
        l1, l2 = self.strengths(net.layer_names)
        return np.array([getattr(self, "biases", False), getattr(self, "proximal", False), *l1, *l2], dtype=np.float64)

    def value(self, net: Network, w: np.ndarray) -> float:
        """Omega(w)."""
        return float(penalty(w, net.spec, self.settings(net)))

    def gradient(self, net: Network, w: np.ndarray) -> np.ndarray:
        """dOmega / dw = 2 l2 w + l1 sign(w), with sign(0) = 0; also where L1 is proximal and `fit` does not use it."""
        gradient = np.zeros_like(w)
        settings = self.settings(net)
        settings[PROXIMAL] = 0.0
        add_penalty_gradient(w, gradient, net.spec, settings, 1.0)
        return gradient

    def least_gradient(self, net: Network, w: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The subgradient of risk + Omega of least norm, given the risk's gradient: 0 at a minimum, also where w_i = 0.

        Where w_i = 0, |w_i| has every slope in [-1, 1]; the one is taken that brings the sum nearest to 0.
        """
        total = gradient + self.gradient(net, w)
        l1, _ = self.strengths(net.layer_names)
        for start, stop, n, m, strength in zip(net.bounds, net.bounds[1:], net.sizes, net.sizes[1:], l1, strict=False):
            part = slice(start, stop if getattr(self, "biases", False) else start + n * m)
            at_zero = w[part] == 0
            shrunk = np.sign(total[part]) * np.maximum(np.abs(total[part]) - strength, 0)
            total[part] = np.where(at_zero, shrunk, total[part])
        return total


@dataclass(frozen=True)
class L2(Regularizer):
    """Omega = strength sum w^2, derivative 2 strength w: weight decay, ridge. Weights get small and seldom zero."""

    strength: Strength
    biases: bool = False

    @property
    def l2(self) -> Strength:
        """The strength."""
        return self.strength


@dataclass(frozen=True)
class L1(Regularizer):
    """Omega = strength sum |w|, derivative strength sign(w): the lasso. Removes inputs that do not matter.

    proximal
        Instead of following the derivative, which steps over zero and back, shrink every weight towards zero after the
        optimizer's step, w <- sign(w) max(|w| - a strength, 0): weights become exactly zero and stay. a is how far
        the optimizer goes along a steady gradient of 1: alpha for SGD, which is then the proximal gradient method
        (ISTA; Beck & Teboulle 2009), alpha / (1 - beta) for momentum, and for RMSProp and Adam each weight's own.
    """

    strength: Strength
    proximal: bool = False
    biases: bool = False

    @property
    def l1(self) -> Strength:
        """The strength."""
        return self.strength


@dataclass(frozen=True)
class ElasticNet(Regularizer):
    """Omega = l1 sum |w| + l2 sum w^2 (Zou & Hastie 2005); `proximal` as for `L1`."""

    l1: Strength
    l2: Strength
    proximal: bool = False
    biases: bool = False


def _checked(strength: Strength) -> Strength:
    """Plain numbers, so that equal settings compare equal."""
    values = np.atleast_1d(list(strength.values()) if isinstance(strength, Mapping) else strength).tolist()
    if not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"strength is {strength!r}; expected a number that is not negative, or one for each layer")
    if isinstance(strength, Mapping):
        return {name: float(v) for name, v in zip(strength, values, strict=True)}
    return [float(v) for v in values] if np.ndim(strength) else float(values[0])


def _per_layer(strength: Strength, layers: Sequence[str]) -> list[float]:
    if isinstance(strength, Mapping):
        unknown = set(strength) - set(layers)
        if unknown:
            raise ValueError(
                f"strength names the layers {sorted(unknown)}; expected those of the network, {list(layers)}"
            )
        return [float(strength.get(name, 0.0)) for name in layers]
    values = np.atleast_1d(np.asarray(strength, dtype=float))
    if values.size not in (1, len(layers)):
        raise ValueError(
            f"strength has {values.size} numbers; expected one, or {len(layers)} for the layers {list(layers)}"
        )
    return [float(v) for v in np.broadcast_to(values, len(layers))]


@kernel(inline=True)
def n_penalised(spec, settings, layer):
    """How many entries of a layer count: W alone, or all."""
    n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
    return layer_size(spec, layer) if settings[BIASES] != 0.0 else n * m


@kernel
def penalty(w, spec, settings):
    """Omega(w) = sum over layers of l1 sum |w| + l2 sum w^2, in float64."""
    total = 0.0
    start = ZERO
    for layer in range(spec[LAYERS]):
        magnitude, square = 0.0, 0.0
        for p in range(start, start + n_penalised(spec, settings, layer)):
            magnitude += abs(np.float64(w[p]))
            square += np.float64(w[p]) * np.float64(w[p])
        total += settings[STRENGTHS + layer] * magnitude + settings[STRENGTHS + spec[LAYERS] + layer] * square
        start += layer_size(spec, layer)
    return total


@kernel
def add_penalty_gradient(w, gradient, spec, settings, share):
    """gradient += share (2 l2 w + l1 sign(w)); without L1's part if that is proximal."""
    zero = w.dtype.type(0)
    start = ZERO
    for layer in range(spec[LAYERS]):
        l1 = w.dtype.type(share * settings[STRENGTHS + layer])
        l2 = w.dtype.type(2.0 * share * settings[STRENGTHS + spec[LAYERS] + layer])
        stop = start + n_penalised(spec, settings, layer)
        if l2 > zero:
            for p in range(start, stop):
                gradient[p] += l2 * w[p]
        if l1 > zero and settings[PROXIMAL] == 0.0:
            for p in range(start, stop):
                gradient[p] += l1 if w[p] > zero else (-l1 if w[p] < zero else zero)
        start += layer_size(spec, layer)


@template
def shrink_to_zero(w, spec, settings, moments, count, hyper, factor):
    """w <- sign(w) max(|w| - a l1, 0), where L1 is proximal, after an optimizer's step whose schedule gave `factor`.

    a, by which the minimum is that of risk + Omega for every optimizer, is how far that moves a weight along a steady
    gradient of 1: alpha / divisor, with its own `divisor`.
    """
    dtype = w.dtype.type
    zero = dtype(0)
    start = ZERO
    for layer in range(spec[LAYERS]):
        threshold = dtype(hyper[ALPHA + layer] * factor * settings[STRENGTHS + layer])
        if settings[PROXIMAL] != 0.0 and threshold > zero:
            for p in range(start, start + n_penalised(spec, settings, layer)):
                shift = threshold / dtype(divisor(moments, p, count[0], hyper))
                w[p] = max(w[p] - shift, zero) + min(w[p] + shift, zero)
        start += layer_size(spec, layer)
