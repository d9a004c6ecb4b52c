"""The empirical risk R(w) = 1/n sum_i l(yhat(s_i; w), y_i) + Omega(w), its gradient, and the descent along minibatches.

Note 001: collect pairs, pick the form of the prediction, pick a loss, minimise. A mean becomes a sum where the loss
says so. `valueapprox.fit` is what a person calls to minimise it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, as_numbers
from valueapprox.compiling import kernel, placeholder, specialise, template
from valueapprox.nn import batch
from valueapprox.nn.backprop import LAYERS, PSI, SIZES, ZERO, D, X, first_unit, layer_size
from valueapprox.nn.batch import backward_batch, forward_batch, load_batch, mixed
from valueapprox.nn.network import Network
from valueapprox.optim import SGD, Optimizer, OptimizerState
from valueapprox.optim.base import ALPHA, SCHEDULE, SCHEDULE_FINAL, SCHEDULE_STEPS, norm
from valueapprox.optim.schedules import schedule_factor
from valueapprox.seeding import sequence
from valueapprox.supervised import losses
from valueapprox.supervised.losses import Loss, loss_kernel
from valueapprox.supervised.regularizers import (
    L1,
    L2,
    ElasticNet,
    Regularizer,
    SupportsPenalty,
    add_penalty_gradient,
    shrink_to_zero,
)

__all__ = ["Data", "Descent", "as_data", "dropout_rates", "minibatch_weights", "risk", "risk_gradient"]

ROOMS = 1024  # examples that are in memory at once, unless batch normalisation needs more
NORMS_EVERY = 8  # minibatches of an epoch between two whose gradient norms are measured
N_EXAMPLES, LOSS_SUM, N_NORMED, NORMS = range(4)  # positions in the sums over an epoch


class Data:
    """Pairs (S, Y) as kernels want them: states (N, d) and targets (N, k) in the network's dtype."""

    def __init__(self, states: np.ndarray, targets: np.ndarray) -> None:
        self.states, self.targets = states, targets

    def __len__(self) -> int:
        return len(self.states)

    def checksums(self) -> list[int]:
        """Of states and targets: whether data are those of before."""
        return [zlib.crc32(array.data) for array in (self.states, self.targets)]


def as_data(net: Network, S: ArrayLike, Y: ArrayLike, loss: Loss, name: str = "") -> Data:
    """Check the pairs. `name` goes before S and Y in errors.

    Raises
    ------
    ValueError
        If there are none, if shapes do not fit, if a number is NaN or infinite, or a target senseless for the loss.
    """
    states = as_floats(f"{name}S", S, np.dtype(net.dtype), (None, net.n_inputs))
    if len(states) == 0:
        raise ValueError(f"{name}S has no rows; at least one example is wanted")
    finite = np.isfinite(states)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name}S[{row}, {column}] is {states[row, column]}; finite numbers are wanted")
    try:
        targets = loss.targets(Y, len(states), net.n_outputs, states.dtype)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}{'Y' if str(error).startswith('y') else ''}{str(error).removeprefix('y')}") from None
    return Data(states, targets)


def minibatch_weights(loss: Loss, counts: np.ndarray, k: int) -> np.ndarray:
    """What each minibatch's sum of losses, and what the penalty there, is multiplied by, (2, number of minibatches).

    Risks that are means take the mean of a minibatch and all of Omega. Risks that are sums take the sum, and of Omega
    the minibatch's share of the examples: either way the expected step is along the gradient of the risk.
    """
    sizes, which = np.unique(counts, return_inverse=True)
    weights = np.array([loss.weight(int(n), k) for n in sizes])[which]
    shares = counts / counts.sum() if loss.reduction == "sum" else np.ones(len(counts))
    return np.stack([weights, shares])


def dropout_rates(net: Network, dropout: float | Sequence[float]) -> np.ndarray:
    """The rates (L,) of the inputs and of each hidden layer.

    One number is the rate of every hidden layer; L - 1 numbers are theirs; L numbers begin with that of the inputs.
    """
    given = np.atleast_1d(as_numbers("dropout", dropout).astype(np.float64))
    if given.ndim != 1 or not ((given >= 0) & (given < 1)).all():
        raise ValueError(f"dropout is {dropout}; rates in [0, 1) are wanted")
    hidden = net.n_layers - 1
    if np.ndim(dropout) == 0:
        if hidden == 0 and given[0] > 0:
            raise ValueError(f"dropout is {dropout}, but there is no hidden layer; (rate,) drops inputs")
        return np.array([0.0] + [given[0]] * hidden)
    if given.size == hidden:
        return np.concatenate([[0.0], given])
    if given.size == hidden + 1:
        return given
    raise ValueError(
        f"dropout has {given.size} rates; a number is wanted, {hidden} for the hidden layers, or {hidden + 1} with "
        "that of the inputs in front"
    )


step = placeholder("step")  # of the optimizer


# --- kernels --------------------------------------------------------------------------------------------------------


@kernel
def scale_outputs(d, start, n, weight):
    """Multiply the n derivatives at d[start] by the weight of an example in the risk."""
    for k in range(start, start + n):
        d[k] *= weight


@kernel
def add(total, part):
    """total += part."""
    for p in range(total.size):
        total[p] += part[p]


@kernel(inline=True)
def load_targets(y, targets, order, first, n):
    """Put the targets of examples order[first], ... behind each other."""
    k = ZERO
    for r in range(first, first + n):
        t = order[r]
        for j in range(targets.shape[1]):
            y[k] = targets[t, j]
            k += np.uint64(1)


@kernel(blas=True)
def forward_examples(w, spec, scratch, rooms, states, order, first, n, training, rates, key):
    """`forward_batch` of the examples order[first], ..., order[first + n - 1]."""
    load_batch(scratch, states, order, first, n)
    forward_batch(w, spec, scratch, rooms, n, training, rates, key)


@kernel(blas=True)
def batch_gradient(
    w, spec, scratch, rooms, states, targets, y, values, order, first, n, training, rates, key, loss, weight,
    gradient, part,
):  # fmt: skip
    """The sum of n examples' losses; `weight` times its gradient into `gradient` (P,), unless that has length 0.

    The examples are order[first], ...; at most `rooms` go through the network at a time, and each such part has masks
    of its own. loss (3,): the loss's code and parameter, and whether its derivatives are those at theta.
    y (rooms k), values (rooms,) and part (P,) are scratch.
    """
    n_layers = spec[LAYERS]
    k = spec[SIZES + n_layers]
    outputs = np.int64(first_unit(spec, n_layers)) * rooms
    total = 0.0
    done = 0
    number = ZERO
    while done < n:
        m = min(rooms, n - done)
        forward_examples(w, spec, scratch, rooms, states, order, first + done, m, training, rates, mixed(key, number))
        load_targets(y, targets, order, first + done, m)
        yhat = scratch[PSI] if loss[2] != 0.0 else scratch[X]
        loss_kernel(int(loss[0]), loss[1], yhat, y, scratch[D], values, outputs, m, k)
        for r in range(m):
            total += np.float64(values[r])
        if gradient.size > 0:
            scale_outputs(scratch[D], np.uint64(outputs), np.uint64(m * k), w.dtype.type(weight))
            target = gradient if done == 0 else part
            backward_batch(w, spec, scratch, rooms, m, training, rates, target, loss[2] != 0.0, False)
            if done > 0:
                add(gradient, part)
        done += m
        number += np.uint64(1)
    return total


@template
def take_step(w, spec, moments, scalars, count, hyper, gradient, penalty, share):
    """One descent step: move against the gradient by the optimizer, shrink what is proximal."""
    factor = share * schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    step(w, gradient, w.dtype.type(-1), spec, moments, scalars, count, hyper)
    shrink_to_zero(w, spec, penalty, moments, count, hyper, factor)


@kernel
def add_norms(gradient, spec, sums):
    """Add each layer's gradient norm to the sums of the epoch."""
    sums[N_NORMED] += 1.0
    stop = ZERO
    for layer in range(spec[LAYERS]):
        start = stop
        stop += layer_size(spec, layer)
        sums[NORMS + layer] += norm(gradient, start, stop)


@template(blas=True)
def descend(
    w, spec, moments, scalars, count, hyper, penalty, states, targets, order, ends, begin, end, scratch, rooms, y,
    values, rates, key, loss, weights, gradient, part, sums,
):  # fmt: skip
    """Learn from the minibatches begin, ..., end - 1; minibatch i is order[ends[i]], ..., order[ends[i + 1] - 1].

    weights (2, number of minibatches): what its loss and what the penalty are multiplied by, see `minibatch_weights`.

    Returns the number of minibatches done, fewer if a loss is NaN or infinite; that one changed no weight.
    """
    n_parameters = 0
    for layer in range(spec[LAYERS]):
        n_parameters += int(layer_size(spec, layer))
    for i in range(begin, end):
        first, n = ends[i], ends[i + 1] - ends[i]
        step_key = mixed(key, np.uint64(count[0]))
        for p in range(n_parameters, w.size):  # running statistics, which the forward pass renews
            part[p] = w[p]
        total = batch_gradient(
            w, spec, scratch, rooms, states, targets, y, values, order, first, n, True, rates, step_key, loss,
            weights[0, i], gradient, part,
        )  # fmt: skip
        if not abs(total) < np.inf:
            for p in range(n_parameters, w.size):
                w[p] = part[p]
            return i - begin
        add_penalty_gradient(w, gradient, spec, penalty, weights[1, i])
        sums[N_EXAMPLES] += n
        sums[LOSS_SUM] += total
        if i % NORMS_EVERY == 0:
            add_norms(gradient, spec, sums)
        take_step(w, spec, moments, scalars, count, hyper, gradient, penalty, weights[1, i])
    return end - begin


# --- for a person ---------------------------------------------------------------------------------------------------


class Descent:
    """Everything that descending along minibatches needs, put together once: settings, checks, buffers."""

    def __init__(
        self,
        net: Network,
        loss: Loss,
        optimizer: Optimizer,
        regularizer: Regularizer | SupportsPenalty | None,
        dropout: float | Sequence[float],
        batch_size: int,
        seed: int,
    ) -> None:
        loss.check(net)
        if optimizer.needs_gradient:
            raise ValueError(f"{type(optimizer).__name__} needs an eligibility trace; it is for learning from a stream")
        if getattr(regularizer, "proximal", False) and optimizer.divisor is None:
            raise ValueError(f"L1 is proximal, which {type(optimizer).__name__} has no step size for; Adam and SGD do")
        if regularizer is not None and (
            isinstance(regularizer, type) or not isinstance(regularizer, Regularizer | SupportsPenalty)
        ):
            raise ValueError(
                f"regularizer is {regularizer!r}; regularizers.L2(strength), L1, ElasticNet or an object with "
                "value(net, w) and gradient(net, w) is wanted"
            )
        self.net, self.loss, self.optimizer = net, loss, optimizer
        self.regularizer = Regularizer() if regularizer is None else regularizer
        # A subclass of one's own may mean something else than its strengths say.
        own = type(self.regularizer) in (Regularizer, L1, L2, ElasticNet)
        self.builtin = self.regularizer if own and isinstance(self.regularizer, Regularizer) else None
        self.penalty = (self.builtin or Regularizer()).settings(net)
        self.compiled = own and loss.functions is None
        self.rates = dropout_rates(net, dropout)
        self.hyper = optimizer.hyper(net.layer_names)
        kernels = optimizer.kernels()
        self.take_step, self.run_minibatches = specialise(take_step, **kernels), specialise(descend, **kernels)
        self.key = np.uint64(sequence(seed, "dropout").generate_state(1, np.uint64)[0])
        code, at_theta = loss.stable()
        self.loss_settings = np.array([code, loss.parameter, at_theta], dtype=np.float64)
        self.rooms = batch_size if net.batch_norm else min(batch_size, ROOMS)
        self.scratch = batch.scratch(net.starts[-1], self.rooms, net.dtype)
        self.y = np.zeros(self.rooms * net.n_outputs, net.dtype)
        self.values = np.zeros(self.rooms, net.dtype)
        self.gradient, self.part = np.zeros(net.size, net.dtype), np.zeros(net.size, net.dtype)
        self.nothing = np.zeros(0, net.dtype)

    def total(
        self,
        w: np.ndarray,
        data: Data,
        order: np.ndarray,
        first: int,
        n: int,
        training: bool,
        key: np.uint64,
        weight: float,
        gradient: np.ndarray,
    ) -> float:
        """The sum of n losses, and `weight` times its gradient into `gradient` unless that has length 0."""
        net = self.net
        if self.loss.functions is None:
            return float(
                batch_gradient(
                    *(w, net.spec, self.scratch, self.rooms, data.states, data.targets, self.y, self.values, order),
                    *(first, n, training, self.rates, key, self.loss_settings, weight, gradient, self.part),
                )
            )
        total, k = 0.0, net.n_outputs
        for number, start in enumerate(range(first, first + n, self.rooms)):
            m = min(self.rooms, first + n - start)
            part_key = np.uint64(mixed(key, np.uint64(number)))
            forward_examples(
                w, net.spec, self.scratch, self.rooms, data.states, order, start, m, training, self.rates, part_key
            )
            place = slice(net.starts[-2] * self.rooms, net.starts[-2] * self.rooms + m * k)
            yhat, y = self.scratch[X, place].reshape(m, k).copy(), data.targets[order[start : start + m]]
            values, derivatives = losses.call(self.loss.functions, yhat, y)
            total += float(values.sum(dtype=np.float64))
            if gradient.size > 0:
                self.scratch[D, place] = (weight * derivatives).ravel()
                into = gradient if number == 0 else self.part
                backward_batch(w, net.spec, self.scratch, self.rooms, m, training, self.rates, into, False, False)
                if number > 0:
                    gradient += self.part
        return total

    def descend(
        self,
        w: np.ndarray,
        state: OptimizerState,
        data: Data,
        order: np.ndarray,
        ends: np.ndarray,
        weights: np.ndarray,
        begin: int,
        end: int,
        factor: float,
        sums: np.ndarray,
    ) -> int:
        """Learn from minibatches, whose losses have these weights, with every step size times `factor`: the kernel."""
        net = self.net
        hyper = self.hyper.copy()
        hyper[ALPHA:] *= factor
        if self.compiled:
            return int(
                self.run_minibatches(
                    *(w, net.spec, state.moments, state.scalars, state.n_updates, hyper, self.penalty),
                    *(data.states, data.targets),
                    *(order, ends, begin, end, self.scratch, self.rooms, self.y, self.values, self.rates, self.key),
                    *(self.loss_settings, weights, self.gradient, self.part, sums),
                )
            )
        state_arrays = (state.moments, state.scalars, state.n_updates)
        for i in range(begin, end):
            key = np.uint64(mixed(self.key, np.uint64(state.n_updates[0])))
            statistics = w[net.n_parameters :].copy()
            first, n = int(ends[i]), int(ends[i + 1] - ends[i])
            share = float(weights[1, i])
            total = math.nan
            try:
                total = self.total(w, data, order, first, n, True, key, float(weights[0, i]), self.gradient)
            finally:
                if not abs(total) < np.inf:
                    w[net.n_parameters :] = statistics
            if not abs(total) < np.inf:
                return i - begin
            self.add_penalty(w, self.gradient, share)
            sums[N_EXAMPLES] += n
            sums[LOSS_SUM] += total
            if i % NORMS_EVERY == 0:
                add_norms(self.gradient, net.spec, sums)
            self.take_step(w, net.spec, *state_arrays, hyper, self.gradient, self.penalty, share)
        return end - begin

    def add_penalty(self, w: np.ndarray, gradient: np.ndarray, share: float) -> None:
        """gradient += share d Omega / dw, without the part of a proximal L1, and of parameters only."""
        if self.builtin is not None:
            add_penalty_gradient(w, gradient, self.net.spec, self.penalty, share)
        else:
            self.add_whole_penalty(w, gradient, share)

    def add_whole_penalty(self, w: np.ndarray, gradient: np.ndarray, share: float = 1.0) -> None:
        """gradient += share d Omega / dw; running statistics are no parameters."""
        own = as_floats("the regularizer's gradient", self.regularizer.gradient(self.net, w), w.dtype, w.shape)
        gradient[: self.net.n_parameters] += w.dtype.type(share) * own[: self.net.n_parameters]

    def risk(self, w: np.ndarray, data: Data) -> float:
        """The risk without the penalty, as predictions have it: no dropout, running statistics."""
        n = len(data)
        total = self.total(w, data, np.arange(n), 0, n, False, np.uint64(0), 0.0, self.nothing)
        return total * self.loss.weight(n, self.net.n_outputs)


def risk(
    net: Network,
    w: ArrayLike,
    S: ArrayLike,
    Y: ArrayLike,
    loss: str | Loss = "half_squared",
    regularizer: Regularizer | SupportsPenalty | None = None,
) -> float:
    """R(w), as predictions have it: without dropout, and with the running statistics of batch normalisation."""
    loss = losses.get(loss)
    loss.check(net)
    data = as_data(net, S, Y, loss)
    own = as_floats("w", w, np.dtype(net.dtype), (net.size,))
    descent = Descent(net, loss, SGD(), regularizer, 0.0, min(len(data), ROOMS), 0)
    return descent.risk(own, data) + float(descent.regularizer.value(net, own))


def risk_gradient(
    net: Network,
    w: ArrayLike,
    S: ArrayLike,
    Y: ArrayLike,
    loss: str | Loss = "half_squared",
    regularizer: Regularizer | SupportsPenalty | None = None,
    *,
    training: bool = False,
    dropout: float | Sequence[float] = 0.0,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """R(w) and its gradient, shaped like w: 1/n sum_i dl/dyhat grad yhat + grad Omega. (Note 001: chain rule.)

    `training` makes both what the first update of `fit` with this seed sees of this minibatch: batch normalisation
    over the examples, and with `dropout` its masks.

    Examples
    --------
    One example, by hand: yhat = 3, y = 1, half squared. R = 1/2 2^2 and dR/dw = 2 s.

    >>> risk_gradient(Network((1, 1), bias=False, dtype="float64"), [1.5], [[2.0]], [1.0])
    (2.0, array([4.]))
    """
    loss = losses.get(loss)
    loss.check(net)
    data = as_data(net, S, Y, loss)
    n = len(data)
    if training and net.batch_norm and n < 2:
        raise ValueError("one example was given; batch normalisation in training needs at least 2")
    own = as_floats("w", w, np.dtype(net.dtype), (net.size,)).copy()
    rooms = n if training else min(n, ROOMS)
    descent = Descent(net, loss, SGD(), regularizer, dropout if training else 0.0, rooms, seed)
    key = np.uint64(mixed(descent.key, ZERO))
    weight = loss.weight(n, net.n_outputs)
    gradient = np.zeros_like(own)
    total = descent.total(own, data, np.arange(n), 0, n, training, key, weight, gradient)
    descent.add_whole_penalty(own, gradient)
    return total * weight + float(descent.regularizer.value(net, own)), gradient
