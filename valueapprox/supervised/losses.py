"""Losses l(yhat, y): how wrong an output is, and the derivative with respect to yhat that backpropagation starts from.

An example's loss is summed over its outputs; the risk of many examples is the mean of their losses, or the sum, as the
loss's `reduction` says. log is the natural logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, as_numbers, one_of
from valueapprox.compiling import kernel

if TYPE_CHECKING:
    from valueapprox.nn.network import Network

__all__ = [
    "HALF_SQUARED",
    "LOG_LOSS",
    "LOG_LOSS_FROM_LOGITS",
    "LOSSES",
    "MSE",
    "NLL",
    "NLL_FROM_LOGITS",
    "SQUARED",
    "Loss",
    "get",
    "huber",
]

CUSTOM_CODE = -1
SQUARED_CODE, HUBER_CODE, LOG_CODE, LOG_LOGITS_CODE, NLL_CODE, NLL_LOGITS_CODE = range(6)

Function = Callable[[np.ndarray, np.ndarray], ArrayLike]


@dataclass(frozen=True)
class Loss:
    """A loss by name: see the table of `get`.

    Examples
    --------
    >>> SQUARED.value([3.0], [1.0]), SQUARED.derivative([3.0], [1.0])
    (array([4.]), array([[4.]]))
    >>> LOG_LOSS.total().reduction
    'sum'
    """

    name: str
    code: int
    #: What the kernel multiplies by, or Huber's delta.
    parameter: float = 1.0
    reduction: str = "mean"
    #: Whether the mean is over outputs too, and not over examples alone.
    over_outputs: bool = False
    #: Of a custom loss: (value, derivative).
    functions: tuple[Function, Function] | None = None

    def __post_init__(self) -> None:
        if self.code not in range(CUSTOM_CODE, NLL_LOGITS_CODE + 1):
            raise ValueError(f"code is {self.code}; use a loss by its name, or a pair (value, derivative)")
        one_of("reduction", self.reduction, ("mean", "sum"))

    def value(self, yhat: ArrayLike, y: ArrayLike) -> np.ndarray:
        """The loss of each example (n,). yhat (n, k) or (n,); y the same, or for nll the classes (n,)."""
        return self._both(yhat, y)[0]

    def derivative(self, yhat: ArrayLike, y: ArrayLike) -> np.ndarray:
        """D l / d yhat (n, k) of each example."""
        return self._both(yhat, y)[1]

    def _both(self, yhat: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        outputs = as_numbers("yhat", yhat)
        outputs = np.ascontiguousarray(outputs, outputs.dtype if outputs.dtype == np.float32 else np.float64)
        if outputs.ndim == 1:
            outputs = outputs[:, None]
        if outputs.ndim != 2:
            raise ValueError(f"yhat has shape {outputs.shape}; (n, k) or (n,) is wanted")
        y = self.targets(y, len(outputs), outputs.shape[1], outputs.dtype)
        if self.functions is not None:
            return call(self.functions, outputs, y)
        losses, derivatives = np.empty(len(outputs), outputs.dtype), np.empty_like(outputs)
        loss_kernel(
            *(self.code, self.parameter, outputs.ravel(), y.ravel(), derivatives.ravel(), losses),
            *(0, len(outputs), outputs.shape[1]),
        )
        return losses, derivatives

    def total(self) -> Loss:
        """The same loss, summed over the examples."""
        return replace(self, reduction="sum")

    def mean(self) -> Loss:
        """The same loss, averaged over the examples."""
        return replace(self, reduction="mean")

    def weight(self, n: int, k: int) -> float:
        """What the sum of n examples' losses is multiplied by to give the risk."""
        if self.reduction == "sum":
            return 1.0
        return 1.0 / (n * k if self.over_outputs else n)

    def targets(self, y: ArrayLike, n: int, k: int, dtype: np.dtype) -> np.ndarray:
        """The targets as an array (n, k); classes (n,) become unit vectors for nll. Errors say what is wrong."""
        array = as_numbers("y", y)
        classes = self.code in (NLL_CODE, NLL_LOGITS_CODE)
        if classes and array.shape in ((n,), (n, 1)) and k > 1:
            labels = array.reshape(n)
            wrong = ~np.isin(labels, np.arange(k))
            if wrong.any():
                raise ValueError(f"y holds {labels[wrong][0]:g}; for {self.name}, classes 0 to {k - 1} are wanted")
            one_hot = np.zeros((n, k), dtype)
            one_hot[np.arange(n), labels.astype(np.int64)] = 1
            return one_hot
        if k == 1 and array.shape == (n,):
            array = array[:, None]
        array = as_floats("y", array, dtype, (n, k))
        if not np.isfinite(array).all():
            row = int(np.argmax(~np.isfinite(array).all(axis=1)))
            raise ValueError(f"y[{row}] is {array[row].tolist()}; finite numbers are wanted")
        if self.code in (LOG_CODE, LOG_LOGITS_CODE, NLL_CODE, NLL_LOGITS_CODE):
            if not ((array >= 0) & (array <= 1)).all():
                wrong = array[(array < 0) | (array > 1)][0]
                raise ValueError(f"y holds {wrong:g}; for {self.name}, labels or probabilities in [0, 1] are wanted")
            if classes and not np.allclose(array.sum(axis=1), 1, atol=1e-5):
                raise ValueError(f"rows of y do not sum to 1; for {self.name}, classes or probabilities are wanted")
        return array

    def check(self, net: Network) -> None:
        """Raise if the network's output layer makes no sense with this loss."""
        if net.output == "softmax" and net.n_outputs == 1:
            raise ValueError(
                "the network has one softmax output, which is always 1; take output='sigmoid' for one unit"
            )
        wanted = {
            LOG_CODE: ("sigmoid",),
            LOG_LOGITS_CODE: ("linear",),
            NLL_CODE: ("softmax",),
            NLL_LOGITS_CODE: ("linear",),
        }.get(self.code)
        if wanted and net.output not in wanted:
            why = {
                LOG_CODE: "takes probabilities, each output on its own (for one class of several: nll)",
                LOG_LOGITS_CODE: "applies the sigmoid itself",
                NLL_CODE: "takes the probabilities of classes",
                NLL_LOGITS_CODE: "applies the softmax itself",
            }[self.code]
            raise ValueError(
                f"loss {self.name} {why}: the output activation must be {wanted[0]}, and the network's is {net.output}"
            )
        if self.code in (NLL_CODE, NLL_LOGITS_CODE) and net.n_outputs == 1:
            raise ValueError(f"loss {self.name} needs an output for each class; the network has 1. See log_loss")

    def stable(self) -> tuple[int, bool]:
        """The code to use behind the loss's own output activation, and whether derivatives are then those at theta.

        log_loss behind a sigmoid and nll behind a softmax are computed from theta, where nothing rounds to 0 or 1:
        dL/dtheta = yhat - y.
        """
        fused = {LOG_CODE: LOG_LOGITS_CODE, NLL_CODE: NLL_LOGITS_CODE}
        return fused.get(self.code, self.code), self.code in fused


def call(functions: tuple[Function, Function], yhat: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The losses (n,) and derivatives (n, k) that a custom pair gives, checked."""
    value, derivative = functions
    losses = as_numbers("the value of the loss", value(yhat, y))
    if losses.shape not in ((len(yhat),), yhat.shape):
        raise ValueError(f"the loss's value has shape {losses.shape}; ({len(yhat)},) or {yhat.shape} is wanted")
    derivatives = as_floats("the loss's derivative", derivative(yhat, y), yhat.dtype, yhat.shape)
    return losses if losses.ndim == 1 else losses.sum(axis=1), derivatives


SQUARED = Loss("squared", SQUARED_CODE, 1.0)
HALF_SQUARED = Loss("half_squared", SQUARED_CODE, 0.5)
MSE = Loss("mse", SQUARED_CODE, 1.0, over_outputs=True)
LOG_LOSS = Loss("log_loss", LOG_CODE)
LOG_LOSS_FROM_LOGITS = Loss("log_loss_from_logits", LOG_LOGITS_CODE)
NLL = Loss("nll", NLL_CODE)
NLL_FROM_LOGITS = Loss("nll_from_logits", NLL_LOGITS_CODE)


def huber(delta: float = 1.0) -> Loss:
    """1/2 e^2 for |e| <= delta, else delta (|e| - delta / 2), with e = yhat - y (Huber 1964)."""
    if not (isinstance(delta, Real) and math.isfinite(delta) and delta > 0):
        raise ValueError(f"delta is {delta!r}; where Huber's loss turns linear is a positive number")
    return Loss("huber", HUBER_CODE, float(delta))


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (SQUARED, HALF_SQUARED, MSE, LOG_LOSS, LOG_LOSS_FROM_LOGITS, NLL, NLL_FROM_LOGITS, huber())
}


def get(loss: str | Loss | Sequence[Function]) -> Loss:
    """A loss by its name, a pair (value, derivative) of functions, or as it is.

    By name, with the derivative:

        squared               sum_k (yhat_k - y_k)^2                          derivative 2 (yhat - y)
        half_squared          sum_k 1/2 (yhat_k - y_k)^2                      yhat - y
        mse                   squared, whose risk is a mean over the outputs too
        huber                 see `huber`
        log_loss              sum_k -y log yhat - (1 - y) log(1 - yhat)       (yhat - y) / (yhat (1 - yhat))
                              yhat a probability, the output of a sigmoid
        log_loss_from_logits  the same of sigmoid(yhat)                       sigmoid(yhat) - y
        nll                   -sum_k y_k log yhat_k = -log yhat_class         -y / yhat
                              yhat the probabilities of classes, the output of a softmax
        nll_from_logits       the same of softmax(yhat)                       softmax(yhat) - y

    A pair gets yhat and y, both (n, k): value returns (n,), or (n, k) to be summed over k; derivative (n, k).
    Behind their own activation, log_loss and nll are computed from theta and lose no digits there.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        return LOSSES[one_of("loss", loss, LOSSES)]
    if isinstance(loss, tuple | list) and len(loss) == 2:
        value, derivative = loss
        if callable(value) and callable(derivative):
            return Loss("custom", CUSTOM_CODE, functions=(value, derivative))
    raise ValueError(f"loss is {loss!r}; a name, a Loss, or a pair of functions (value, derivative) is wanted")


@kernel(exact=True)
def loss_kernel(code, parameter, yhat, y, d, losses, start, n, k):
    """The losses (n,) of n examples, and d_rj = dl/dyhat_rj, for the codes above.

    yhat and d at index start + r k + j, y at r k + j. In the log losses of probabilities yhat is kept from 0 and 1 by
    the smallest number that changes 1, so that a loss is finite. Arithmetic as written: regrouping the sums of the log
    losses would cost small losses their digits.
    """
    dtype = yhat.dtype.type
    zero, half, one, two = dtype(0), dtype(0.5), dtype(1), dtype(2)
    tiny = dtype(1.1920929e-07) if yhat.itemsize == 4 else dtype(2.220446049250313e-16)
    scale = dtype(parameter)
    for r in range(n):
        loss = zero
        a = start + r * k
        if code == SQUARED_CODE:
            for j in range(k):
                error = yhat[a + j] - y[r * k + j]
                loss += scale * error * error
                d[a + j] = two * scale * error
        elif code == HUBER_CODE:
            for j in range(k):
                error = yhat[a + j] - y[r * k + j]
                if abs(error) > scale:
                    loss += scale * (abs(error) - half * scale)
                    d[a + j] = scale if error > zero else -scale
                else:
                    loss += half * error * error
                    d[a + j] = error
        elif code == LOG_CODE:
            for j in range(k):
                p = min(max(yhat[a + j], tiny), one - tiny)
                t = y[r * k + j]
                loss -= t * dtype(math.log(p)) + (one - t) * dtype(math.log1p(-p))
                d[a + j] = (p - t) / (p * (one - p))
        elif code == LOG_LOGITS_CODE:
            for j in range(k):
                # log(1 + e^theta) - y theta, with the argument of exp never positive.
                theta, t = yhat[a + j], y[r * k + j]
                e = dtype(math.exp(-abs(theta)))
                loss += max(theta, zero) - theta * t + dtype(math.log1p(e))
                d[a + j] = (one / (one + e) if theta >= zero else e / (one + e)) - t
        elif code == NLL_CODE:
            for j in range(k):
                p, t = max(yhat[a + j], tiny), y[r * k + j]
                loss -= t * dtype(math.log(p))
                d[a + j] = -t / p
        else:
            top = yhat[a]
            for j in range(k):
                top = max(top, yhat[a + j])
            total = weight = zero
            for j in range(k):
                d[a + j] = dtype(math.exp(yhat[a + j] - top))
                total += d[a + j]
                weight += y[r * k + j]  # 1, or nearly
            log_total = dtype(math.log(total))
            for j in range(k):
                t = y[r * k + j]
                loss += t * (log_total - (yhat[a + j] - top))
                d[a + j] = weight * d[a + j] / total - t
        losses[r] = loss
