"""How the gradient fares on its way from the outputs to the inputs: vanishing, exploding; dead and saturated units.

Note 003: a lower layer's gradient is a product of one term for each layer above it. Many small terms vanish, many large
ones explode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, unit_interval
from valueapprox.nn.activations import HIDDEN, times_derivative
from valueapprox.nn.backprop import HAT, PSI, ZERO, D, X
from valueapprox.nn.network import Network
from valueapprox.supervised import losses
from valueapprox.supervised.losses import Loss
from valueapprox.supervised.objective import CAPACITY, Objective, as_data

__all__ = ["Diagnosis", "LayerFlow", "diagnose", "gradient_flow"]

MAX_SLOPE = {"sigmoid": 0.25, "tanh": 1.0, "elu": 1.0, "softplus": 1.0}  # those that can saturate


class LayerFlow(NamedTuple):
    """What one layer gets of the gradient."""

    name: str
    units: int
    #: Euclidean norm of dR/d(W, b) for the layer, scales of batch normalisation included.
    grad_norm: float
    #: Root mean square of dl/dpsi over the layer's units and the examples, l the loss of an example.
    d_psi: float
    #: Share of the units that no example moves: f(psi) = 0 and f'(psi) = 0 for all of them.
    dead: float
    #: Share of the units at whose f'(psi) is tiny for nearly all examples.
    saturated: float

    @property
    def norm(self) -> float:
        """sqrt(units) d_psi: the root mean square over the examples of the Euclidean norm of dl/dpsi."""
        return math.sqrt(self.units) * self.d_psi


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` saw."""

    #: "vanishing", "exploding" or "healthy".
    verdict: str
    #: What a layer multiplies the gradient by, as a geometric mean; NaN where there is no gradient to compare.
    factor: float
    #: The lowest layer's gradient divided by the output layer's.
    total: float
    #: What was seen, in numbers, and what helps.
    sentence: str
    #: Layer by layer, the lowest first.
    layers: tuple[LayerFlow, ...]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.sentence}"


def gradient_flow(
    net: Network,
    w: ArrayLike,
    S: ArrayLike,
    Y: ArrayLike,
    loss: str | Loss = "half_squared",
    *,
    tiny_slope: float = 0.02,
    nearly_all: float = 0.99,
) -> tuple[LayerFlow, ...]:
    """Measure the gradient of the risk layer by layer, the lowest first, with no penalty and no dropout.

    psi is what the activation sees: after LayerNorm or batch normalisation where there is one, so that dl/dpsi depends
    neither on the scale of the inputs nor on that of the weights below. Batch normalisation is that of training, over
    these examples. Nothing here depends on the order of the examples but for rounding.

    Parameters
    ----------
    net, w, S, Y, loss
        As in `risk_gradient`; w is not changed.
    tiny_slope
        A unit saturates for an example where abs(f'(psi)) is less than this share of the largest slope that f has:
        1/4 for sigmoid; 1 for tanh, elu and softplus. The other activations do not saturate.
    nearly_all
        A saturated unit does so for at least this share of the examples.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, or a number is NaN or infinite; with batch normalisation, for a single example.

    Examples
    --------
    Two linear layers of one unit, by hand: yhat = 3 * 2 * 1 = 6, y = 4, dl/dtheta = 2, dl/dpsi = 3 * 2.

    >>> net = Network((1, 1, 1), hidden="linear", bias=False, dtype="float64")
    >>> [(layer.name, layer.d_psi) for layer in gradient_flow(net, [2.0, 3.0], [[1.0]], [4.0])]
    [('A', 6.0), ('B', 2.0)]
    """
    unit_interval("tiny_slope", tiny_slope)
    unit_interval("nearly_all", nearly_all)
    loss = losses.get(loss)
    data = as_data(net, S, Y, loss)
    n = data.n
    if net.batch_norm and n < 2:
        raise ValueError("S has 1 row; expected at least 2, as batch normalisation needs them in training")
    weights = as_floats("w", w, np.dtype(net.dtype), (net.size,)).copy()  # training renews running statistics
    if not np.isfinite(weights).all():
        raise ValueError(f"w[{int(np.argmax(~np.isfinite(weights)))}] is infinite or NaN; expected finite weights")
    objective = Objective(net, loss, batch_size=n if net.batch_norm else min(n, CAPACITY))
    gradient = np.zeros(net.size)
    squares = np.zeros(net.n_layers)
    moved = [np.zeros(m, dtype=bool) for m in net.sizes[1:-1]]
    flat = [np.zeros(m, dtype=np.int64) for m in net.sizes[1:-1]]
    largest = MAX_SLOPE.get(net.hidden, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # an explosion is what we may be looking at
        for first in range(0, n, objective.work.capacity):
            rows = min(objective.work.capacity, n - first)
            objective.total(weights, data, np.arange(n), first, rows, training=True, weight=1.0)
            gradient += objective.work.gradient
            above = _units(objective, D, net.n_layers, rows).astype(np.float64)
            squares[-1] += np.square(above).sum()
            for l in range(net.n_layers - 1, 0, -1):
                seen = _units(objective, HAT if net.layer_norm else PSI, l, rows)
                x = _units(objective, X, l, rows)
                slope = _slope(net, seen, x)
                d_psi = (above @ net.unpack(weights)[l][0].T.astype(np.float64)) * slope
                squares[l - 1] += np.square(d_psi).sum()
                moved[l - 1] |= ((x != 0) | (slope != 0)).any(axis=0)
                flat[l - 1] += (slope < tiny_slope * largest).sum(axis=0)
                # From after the normalisation to before it, where the layer below takes over.
                above = _units(objective, D, l, rows).astype(np.float64)
        gradient *= loss.weight(n, net.n_outputs)
    flows = []
    for l, (name, start, stop) in enumerate(zip(net.layer_names, net.bounds, net.bounds[1:], strict=False)):
        units, hidden = net.sizes[l + 1], l < net.n_layers - 1
        flows.append(
            LayerFlow(
                name,
                units,
                float(np.linalg.norm(gradient[start:stop])),
                math.sqrt(squares[l] / (n * units)),
                float(np.mean(~moved[l])) if hidden else 0.0,
                float(np.mean(flat[l] >= nearly_all * n)) if hidden and largest > 0 else 0.0,
            )
        )
    return tuple(flows)


def _units(objective: Objective, row: int, layer: int, n: int) -> np.ndarray:
    """A row of scratch for a layer, 0 the inputs, as a matrix (n, m)."""
    net, work = objective.net, objective.work
    start = net.starts[layer] * work.capacity
    return work.scratch[row, start : start + n * net.sizes[layer]].reshape(n, -1)


def _slope(net: Network, psi: np.ndarray, x: np.ndarray) -> np.ndarray:
    """f'(psi)."""
    slope = np.ones_like(psi)
    times_derivative(HIDDEN[net.hidden], psi.ravel(), x.ravel(), slope.ravel(), ZERO, np.uint64(psi.size))
    return slope


def diagnose(
    net: Network,
    w: ArrayLike,
    S: ArrayLike,
    Y: ArrayLike,
    loss: str | Loss = "half_squared",
    *,
    factors: tuple[float, float] = (0.75, 1.3),
    totals: tuple[float, float] = (0.01, 300.0),
    max_lost: float = 0.9,
    tiny_slope: float = 0.02,
    nearly_all: float = 0.99,
) -> Diagnosis:
    """Say whether the gradient vanishes or explodes between the outputs and the lowest layer, and what helps.

    total = norm_1 / norm_L over the L layers, and factor = total^(1 / (L - 1)), the geometric mean of the ratios of
    neighbouring layers. Norms, and not means over units, since He's weights keep the norm of dl/dpsi from layer to
    layer, whatever the layers' widths: in expectation, sqrt(2 / n) weights, n units, half of the slopes 1 (He et al.
    2015, section 2.2). Batch normalisation of ReLU has the factor sqrt(pi / (pi - 1)) = 1.21 (Yang et al. 2019).

    Parameters
    ----------
    net, w, S, Y, loss, tiny_slope, nearly_all
        As in `gradient_flow`.
    factors
        Vanishing has a factor below the first, exploding one above the second;
    totals
        and a total below the first, or above the second. Both must hold: neither a shallow network with one small ratio
        nor a deep one with many that are nearly 1 is called ill. Learning itself enlarges weights: a classifier with a
        small loss may well have a total of 100.
    max_lost
        The sentence names the layers of which more than this share of units is dead or saturated. A half is nothing
        unusual: deep in a fresh ReLU network the examples look alike, and a unit is on or off for all of them.

    Examples
    --------
    Twelve linear layers of one unit and weight 1/2: what arrives is 1/2^11.

    >>> net = Network((1,) * 13, hidden="linear", bias=False, dtype="float64")
    >>> found = diagnose(net, [0.5] * 12, [[1.0]], [1.0])
    >>> found.verdict, found.factor, found.total == 0.5**11
    ('vanishing', 0.5, True)
    """
    for name, (low, high) in (("factors", factors), ("totals", totals)):
        if not 0 < low < 1 < high:
            raise ValueError(f"{name} is ({low}, {high}); expected a number between 0 and 1 and one above 1")
    unit_interval("max_lost", max_lost)
    layers = gradient_flow(net, w, S, Y, loss, tiny_slope=tiny_slope, nearly_all=nearly_all)
    factor, total = _factor(layers)
    if total < totals[0] and factor < factors[0]:
        verdict = "vanishing"
    elif total > totals[1] and factor > factors[1]:
        verdict = "exploding"
    else:
        verdict = "healthy"
    dead = [layer for layer in layers if layer.dead > max_lost]
    saturated = [layer for layer in layers if layer.saturated > max_lost]
    sentences = [_seen(net, layers, verdict, factor, total)]
    for lost, what in ((dead, "dead"), (saturated, "saturated")):
        if lost:
            worst = max(lost, key=lambda layer: getattr(layer, what))
            others = f", and more than {max_lost:.0%} in {len(lost) - 1} other layers" if len(lost) > 1 else ""
            sentences.append(f"{getattr(worst, what):.0%} of the units of {worst.name} are {what}{others}.")
    if verdict != "healthy" or dead or saturated:
        cures = _cures(net, verdict, bool(dead), bool(saturated))
        sentences.append(f"What helps: {', '.join(cures)}.")
    return Diagnosis(verdict, factor, total, " ".join(sentences), layers)


def _factor(layers: tuple[LayerFlow, ...]) -> tuple[float, float]:
    """(factor, total); NaN for one layer, and where nothing leaves the outputs."""
    norms = [layer.norm for layer in layers]
    if not np.isfinite(norms).all():
        return math.inf, math.inf
    if len(norms) == 1 or norms[-1] == 0:
        return math.nan, math.nan
    total = norms[0] / norms[-1]
    return total ** (1 / (len(norms) - 1)), total


def _seen(net: Network, layers: tuple[LayerFlow, ...], verdict: str, factor: float, total: float) -> str:
    if len(layers) == 1:
        return f"One layer, {layers[0].name}, gets the gradient as it is; there is nothing to compare."
    if math.isnan(total):
        return "The gradient is zero at the outputs: from these examples there is nothing to learn."
    way = f"from {layers[-1].name} down to {layers[0].name}"
    if math.isinf(total):
        return f"The gradient is too large for {net.dtype} {way}."
    if total == 0:
        return f"No gradient arrives {way}."
    numbers = f"by {factor:.2g} per layer, {total:.2g} in all"
    if verdict == "vanishing":
        return f"The gradient is multiplied {numbers}, {way}, so that the lower layers learn slowly or not at all."
    if verdict == "exploding":
        return f"The gradient is multiplied {numbers}, {way}, so that a step that suits one layer overshoots in others."
    return f"The gradient is multiplied {numbers}, {way}."


def _cures(net: Network, verdict: str, dead: bool, saturated: bool) -> list[str]:
    """Note 003: ReLU against vanishing, batch normalisation and a lower rate against exploding gradients."""
    cures = []
    normalised = net.batch_norm or net.layer_norm
    if verdict == "exploding":
        cures.append(f"smaller initial weights ({'he' if net.hidden == 'relu' else 'lecun'}_normal)")
    elif dead:
        cures += ["other initial weights (he_normal)", "leaky_relu"]
    elif saturated:
        cures.append("smaller initial weights")
    elif net.hidden not in MAX_SLOPE:
        cures.append("larger initial weights (he_normal)")
    if net.hidden in MAX_SLOPE and verdict == "vanishing":
        cures.insert(0, "relu with he_normal weights")
    if not normalised:
        cures.append("batch normalisation")
    if verdict == "exploding" or dead:
        cures.append("a lower rate")
    return cures
