"""The empirical risk R(w) = 1/n sum_i l(yhat(s_i; w), y_i) + Omega(w), its gradient, and the descent along minibatches.

Note 001: collect pairs, pick the form of the prediction, pick a loss, minimise. A mean becomes a sum where the loss
says so. `valueapprox.fit` minimises it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

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
from valueapprox.supervised.losses.base import AT_THETA, Custom, Loss, losses_and_derivatives
from valueapprox.supervised.regularizers import (
    L1,
    L2,
    ElasticNet,
    Regularizer,
    SupportsPenalty,
    add_penalty_gradient,
    shrink_to_zero,
)

__all__ = ["Data", "Minibatches", "Objective", "as_data", "dropout_rates", "minibatch_weights", "risk", "risk_gradient"]

CAPACITY = 1024  # examples that are in memory at once, unless batch normalisation needs more
NORMS_EVERY = 8  # minibatches of an epoch between two whose gradient norms are measured
N_EXAMPLES, LOSS_SUM, N_NORMED, NORMS = range(4)  # positions in the sums over an epoch


class Data(NamedTuple):
    """Pairs (S, Y) as kernels want them: states (n, d) and targets (n, k) in the network's dtype."""

    states: np.ndarray
    targets: np.ndarray

    @property
    def n(self) -> int:
        """How many."""
        return len(self.states)

    def checksums(self) -> list[int]:
        """Of states and targets: whether data are those of before."""
        return [zlib.crc32(array.data) for array in self]


class Minibatches(NamedTuple):
    """Minibatch i is the examples order[ends[i]], ..., order[ends[i + 1] - 1].

    weights (2, number of minibatches): what its loss and what the penalty are multiplied by, see `minibatch_weights`.
    """

    order: np.ndarray
    ends: np.ndarray
    weights: np.ndarray


class Work(NamedTuple):
    """Scratch of `batch` for `capacity` examples, and of theirs y (capacity k,) and losses (capacity,).

    gradient (P,), and part (P,) that is added to it; rates of dropout (L,), and the settings of the loss.
    """

    scratch: np.ndarray
    y: np.ndarray
    losses: np.ndarray
    gradient: np.ndarray
    part: np.ndarray
    rates: np.ndarray
    loss: np.ndarray
    capacity: int


def as_data(net: Network, S: ArrayLike, Y: ArrayLike, loss: Loss, name: str = "") -> Data:
    """Check the pairs. `name` goes before S and Y in errors.

    Raises
    ------
    ValueError
        If there are none, if shapes do not fit, if a number is NaN or infinite, or a target senseless for the loss.
    """
    states = as_floats(f"{name}S", S, np.dtype(net.dtype), (None, net.n_inputs))
    if len(states) == 0:
        raise ValueError(f"{name}S has no rows; expected at least one example")
    finite = np.isfinite(states)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name}S[{row}, {column}] is {states[row, column]}; expected finite numbers")
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
    rates = np.atleast_1d(as_numbers("dropout", dropout).astype(np.float64))
    if rates.ndim != 1 or not ((rates >= 0) & (rates < 1)).all():
        raise ValueError(f"dropout is {dropout}; expected rates in [0, 1)")
    hidden = net.n_layers - 1
    if np.ndim(dropout) == 0:
        if hidden == 0 and rates[0] > 0:
            raise ValueError(f"dropout is {dropout}; expected 0, as there is no hidden layer ((rate,) drops inputs)")
        return np.array([0.0] + [rates[0]] * hidden)
    if rates.size == hidden:
        return np.concatenate([[0.0], rates])
    if rates.size == hidden + 1:
        return rates
    raise ValueError(
        f"dropout has {rates.size} rates; expected a number, {hidden} for the hidden layers, or {hidden + 1} with that "
        "of the inputs in front"
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
    """Put the targets of the examples order[first], ..., order[first + n - 1] one after another."""
    k = ZERO
    for r in range(first, first + n):
        t = order[r]
        for j in range(targets.shape[1]):
            y[k] = targets[t, j]
            k += np.uint64(1)


@kernel(blas=True)
def forward_examples(w, spec, work, states, order, first, n, training, key):
    """`forward_batch` of the examples order[first], ..., order[first + n - 1]."""
    load_batch(work.scratch, states, order, first, n)
    forward_batch(w, spec, work.scratch, work.capacity, n, training, work.rates, key)


@template
def add_losses(total, spec, work, targets, order, first, n, weight):
    """total + the losses of the examples order[first], ...; their derivatives times `weight` go to the scratch's D."""
    n_layers = spec[LAYERS]
    k = spec[SIZES + n_layers]
    start = np.int64(first_unit(spec, n_layers)) * work.capacity
    load_targets(work.y, targets, order, first, n)
    yhat = work.scratch[PSI] if work.loss[AT_THETA] != 0.0 else work.scratch[X]
    losses_and_derivatives(yhat, work.y, work.scratch[D], work.losses, start, n, k, work.loss)
    for r in range(n):
        total += np.float64(work.losses[r])
    scale_outputs(work.scratch[D], np.uint64(start), np.uint64(n * k), work.scratch.dtype.type(weight))
    return total


@kernel(blas=True)
def backward_examples(w, spec, work, n, training, is_first):
    """Put the gradient of n examples into work.gradient, or add it if they are not the first part."""
    target = work.gradient if is_first else work.part
    at_theta = work.loss[AT_THETA] != 0.0
    backward_batch(w, spec, work.scratch, work.capacity, n, training, work.rates, target, at_theta, False)
    if not is_first:
        add(work.gradient, work.part)


@template(blas=True)
def minibatch_gradient(w, spec, work, data, order, first, n, key, weight):
    """The sum of the losses of the examples order[first], ...; `weight` times its gradient goes to work.gradient.

    At most `capacity` go through the network at a time, and each such part has masks of its own.
    """
    total = 0.0
    done = 0
    number = ZERO
    while done < n:
        m = min(work.capacity, n - done)
        forward_examples(w, spec, work, data.states, order, first + done, m, True, mixed(key, number))
        total = add_losses(total, spec, work, data.targets, order, first + done, m, weight)
        backward_examples(w, spec, work, m, True, done == 0)
        done += m
        number += np.uint64(1)
    return total


@template
def take_step(w, spec, state, hyper, gradient, penalty, share):
    """One descent step: move against the gradient by the optimizer, shrink what is proximal."""
    count = state.n_updates
    factor = share * schedule_factor(int(hyper[SCHEDULE]), hyper[SCHEDULE_FINAL], hyper[SCHEDULE_STEPS], count[0])
    step(w, gradient, w.dtype.type(-1), spec, state.moments, state.scalars, count, hyper)
    shrink_to_zero(w, spec, penalty, state.moments, count, hyper, factor)


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
def descend(w, spec, state, hyper, penalty, data, minibatches, begin, end, work, key, sums):
    """Learn from the minibatches begin, ..., end - 1.

    Returns the number of minibatches done, fewer if a loss is NaN or infinite; that one changed no weight.
    """
    n_parameters = 0
    for layer in range(spec[LAYERS]):
        n_parameters += int(layer_size(spec, layer))
    for i in range(begin, end):
        first, n = minibatches.ends[i], minibatches.ends[i + 1] - minibatches.ends[i]
        step_key = mixed(key, np.uint64(state.n_updates[0]))
        for p in range(n_parameters, w.size):  # running statistics, which the forward pass renews
            work.part[p] = w[p]
        total = minibatch_gradient(
            w, spec, work, data, minibatches.order, first, n, step_key, minibatches.weights[0, i]
        )
        if not abs(total) < np.inf:
            for p in range(n_parameters, w.size):
                w[p] = work.part[p]
            return i - begin
        share = minibatches.weights[1, i]
        add_penalty_gradient(w, work.gradient, spec, penalty, share)
        sums[N_EXAMPLES] += n
        sums[LOSS_SUM] += total
        if i % NORMS_EVERY == 0:
            add_norms(work.gradient, spec, sums)
        take_step(w, spec, state, hyper, work.gradient, penalty, share)
    return end - begin


# --- from Python ----------------------------------------------------------------------------------------------------


class Objective:
    """Risk and penalty of a network as a function of its weights, and all that descending it needs, put together once.

    Parameters
    ----------
    net, loss, regularizer
        What it is made of.
    optimizer, dropout, seed
        Of the descent.
    batch_size
        Examples of the largest minibatch.
    """

    def __init__(
        self,
        net: Network,
        loss: Loss,
        regularizer: Regularizer | SupportsPenalty | None = None,
        *,
        optimizer: Optimizer | None = None,
        dropout: float | Sequence[float] = 0.0,
        batch_size: int = CAPACITY,
        seed: int = 0,
    ) -> None:
        optimizer = SGD() if optimizer is None else optimizer
        loss.check(net)
        if optimizer.needs_gradient:
            raise ValueError(f"{type(optimizer).__name__} needs an eligibility trace; it is for learning from a stream")
        if getattr(regularizer, "proximal", False) and optimizer.divisor is None:
            raise ValueError(f"L1 is proximal, which {type(optimizer).__name__} has no step size for; Adam and SGD do")
        if regularizer is not None and (
            isinstance(regularizer, type) or not isinstance(regularizer, Regularizer | SupportsPenalty)
        ):
            raise ValueError(
                f"regularizer is {regularizer!r}; expected regularizers.L2(strength), L1, ElasticNet or an object with "
                "value(net, w) and gradient(net, w)"
            )
        self.net, self.loss = net, loss
        self.regularizer = Regularizer() if regularizer is None else regularizer
        # A user's subclass may mean something else than its strengths say.
        known = type(self.regularizer) in (Regularizer, L1, L2, ElasticNet)
        self.builtin = self.regularizer if known and isinstance(self.regularizer, Regularizer) else None
        self.penalty = (self.builtin or Regularizer()).settings(net)
        self.hyper = optimizer.hyper(net.layer_names)
        self.key = np.uint64(sequence(seed, "dropout").generate_state(1, np.uint64)[0])
        kernels = optimizer.kernels()
        self.take_step = specialise(take_step, **kernels)
        if not isinstance(loss, Custom):
            kernels = {**kernels, "loss_rule": (loss.from_theta or type(loss)).rule}
            self.add_losses, self.run_minibatches = specialise(add_losses, **kernels), specialise(descend, **kernels)
        capacity = batch_size if net.batch_norm else min(batch_size, CAPACITY)
        self.work = Work(
            batch.scratch(net.starts[-1], capacity, net.dtype),
            np.zeros(capacity * net.n_outputs, net.dtype),
            np.zeros(capacity, net.dtype),
            np.zeros(net.size, net.dtype),
            np.zeros(net.size, net.dtype),
            dropout_rates(net, dropout),
            np.array([loss.from_theta is not None, *loss.own_settings], dtype=np.float64),
            capacity,
        )

    @property
    def compiled(self) -> bool:
        """Whether whole minibatches can be compiled: neither loss nor regularizer is a user's Python."""
        return self.builtin is not None and not isinstance(self.loss, Custom)

    def total(
        self,
        w: np.ndarray,
        data: Data,
        order: np.ndarray,
        first: int,
        n: int,
        *,
        training: bool = False,
        key: np.uint64 = ZERO,
        weight: float | None = None,
    ) -> float:
        """The sum of n losses; `weight` times its gradient goes to `work.gradient`, if there is a weight."""
        spec, work, total = self.net.spec, self.work, 0.0
        for start in range(first, first + n, work.capacity):
            m = min(work.capacity, first + n - start)
            part_key = np.uint64(mixed(key, np.uint64((start - first) // work.capacity))) if training else key
            forward_examples(w, spec, work, data.states, order, start, m, training, part_key)
            if isinstance(self.loss, Custom):
                total += self._add_custom_losses(data.targets[order[start : start + m]], weight or 0.0)
            else:
                total = self.add_losses(total, spec, work, data.targets, order, start, m, weight or 0.0)
            if weight is not None:
                backward_examples(w, spec, work, m, training, start == first)
        return float(total)

    def _add_custom_losses(self, y: np.ndarray, weight: float) -> float:
        """As `add_losses` does it, by the functions of a custom loss."""
        start = self.net.starts[-2] * self.work.capacity
        outputs = slice(start, start + y.size)
        losses, derivatives = self.loss.evaluate(self.work.scratch[X, outputs].reshape(y.shape).copy(), y)
        self.work.scratch[D, outputs] = (weight * derivatives).ravel()
        return float(losses.sum(dtype=np.float64))

    def descend(
        self,
        w: np.ndarray,
        state: OptimizerState,
        data: Data,
        minibatches: Minibatches,
        begin: int,
        end: int,
        *,
        factor: float,
        sums: np.ndarray,
    ) -> int:
        """Learn from minibatches with every step size times `factor`: the kernel `descend`, or the same in Python."""
        net, work = self.net, self.work
        hyper = self.hyper.copy()
        hyper[ALPHA:] *= factor
        if self.compiled:
            run = self.run_minibatches
            return int(
                run(w, net.spec, state, hyper, self.penalty, data, minibatches, begin, end, work, self.key, sums)
            )
        order, ends, weights = minibatches
        for i in range(begin, end):
            key = np.uint64(mixed(self.key, np.uint64(state.n_updates[0])))
            statistics = w[net.n_parameters :].copy()
            first, n = int(ends[i]), int(ends[i + 1] - ends[i])
            weight, share = weights[:, i].tolist()
            total = math.nan
            try:
                total = self.total(w, data, order, first, n, training=True, key=key, weight=weight)
            finally:
                if not abs(total) < np.inf:
                    w[net.n_parameters :] = statistics
            if not abs(total) < np.inf:
                return i - begin
            self.add_penalty(w, work.gradient, share)
            sums[N_EXAMPLES] += n
            sums[LOSS_SUM] += total
            if i % NORMS_EVERY == 0:
                add_norms(work.gradient, net.spec, sums)
            self.take_step(w, net.spec, state, hyper, work.gradient, self.penalty, share)
        return end - begin

    def add_penalty(self, w: np.ndarray, gradient: np.ndarray, share: float) -> None:
        """gradient += share d Omega / dw, without the part of a proximal L1, and of parameters only."""
        if self.builtin is not None:
            add_penalty_gradient(w, gradient, self.net.spec, self.penalty, share)
        else:
            self.add_whole_penalty(w, gradient, share)

    def add_whole_penalty(self, w: np.ndarray, gradient: np.ndarray, share: float = 1.0) -> None:
        """gradient += share d Omega / dw; running statistics are no parameters."""
        own = as_floats("gradient of the regularizer", self.regularizer.gradient(self.net, w), w.dtype, w.shape)
        gradient[: self.net.n_parameters] += w.dtype.type(share) * own[: self.net.n_parameters]

    def risk(self, w: np.ndarray, data: Data) -> float:
        """The risk without the penalty, as predictions have it: no dropout, running statistics."""
        return self.total(w, data, np.arange(data.n), 0, data.n) * self.loss.weight(data.n, self.net.n_outputs)

    def gradient(self, w: np.ndarray, data: Data, *, training: bool = False, key: np.uint64 = ZERO) -> float:
        """Put the gradient of the risk of all data into `work.gradient`, without the penalty's; returns the risk."""
        weight = self.loss.weight(data.n, self.net.n_outputs)
        total = self.total(w, data, np.arange(data.n), 0, data.n, training=training, key=key, weight=weight)
        return total * weight


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
    objective = Objective(net, loss, regularizer, batch_size=min(data.n, CAPACITY))
    return objective.risk(own, data) + float(objective.regularizer.value(net, own))


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
    if training and net.batch_norm and data.n < 2:
        raise ValueError("S has 1 row; expected at least 2, as batch normalisation needs them in training")
    own = as_floats("w", w, np.dtype(net.dtype), (net.size,)).copy()
    size = data.n if training else min(data.n, CAPACITY)
    objective = Objective(net, loss, regularizer, dropout=dropout if training else 0.0, batch_size=size, seed=seed)
    value = objective.gradient(own, data, training=training, key=np.uint64(mixed(objective.key, ZERO)))
    gradient = objective.work.gradient
    objective.add_whole_penalty(own, gradient)
    return value + float(objective.regularizer.value(net, own)), gradient
