"""What losses share: targets, the check of a network's output, the registry, and the kernel that each puts its rule in.

An example's loss l(yhat, y) is summed over its outputs; the risk of many examples is the mean of their losses, or the
sum, as the loss's `reduction` says. log is the natural logarithm.

A loss is one file: a frozen dataclass with `@register`, whose fields are settings such as Huber's delta, and its rule,

    rule(yhat, y, d, a, b, k, loss)

a kernel, compiled with `@kernel(inline=True, exact=True)`, that returns the loss of one example of k outputs and puts
its derivative dl/dyhat into d. yhat and d begin at index a, y at index b. The loss's own settings, in the order of the
fields, are loss[OWN], loss[OWN + 1], ... Arithmetic is as written: regrouping sums costs small losses their digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import as_floats, as_numbers, one_of
from valueapprox.compiling import interpreted, placeholder, specialise, template
from valueapprox.registry import Registry

if TYPE_CHECKING:
    from valueapprox.nn.network import Network

__all__ = ["LOSSES", "OWN", "Custom", "Loss", "get", "losses_and_derivatives", "register"]

# Positions in the kernels' vector of settings: whether the loss is that at theta, then the loss's own.
AT_THETA, OWN = range(2)

Function = Callable[[np.ndarray, np.ndarray], ArrayLike]

loss_rule = placeholder("loss_rule")


@template(exact=True)
def losses_and_derivatives(yhat, y, d, losses, start, n, k, loss):
    """The losses (n,) of n examples, and d_rj = dl/dyhat_rj; yhat and d at index start + r k + j, y at r k + j."""
    for r in range(n):
        losses[r] = loss_rule(yhat, y, d, start + r * k, r * k, k, loss)


@dataclass(frozen=True)
class Loss:
    """What all losses share.

    Parameters
    ----------
    reduction
        Whether the risk is the "mean" of the examples' losses or their "sum".

    Examples
    --------
    >>> loss = get("squared")
    >>> loss.value([3.0], [1.0]), loss.derivative([3.0], [1.0])
    (array([4.]), array([[4.]]))
    >>> loss.total().reduction
    'sum'
    """

    reduction: str = field(default="mean", kw_only=True)

    #: In files and on the command line.
    name: ClassVar[str] = "custom"
    #: The kernel: see the head of this file.
    rule: ClassVar[Any] = None
    #: Any numbers; labels 0 and 1, each output on its own; or classes, by number or as probabilities.
    targets_are: ClassVar[Literal["numbers", "labels", "classes"]] = "numbers"
    #: The activation that the network's output must have, if there is only one.
    output: ClassVar[str | None] = None
    #: The activation that the loss applies itself: behind it, outputs are probabilities.
    applies: ClassVar[str | None] = None
    #: The loss that gives the same behind `output` from theta, where nothing rounds to 0 or 1: dl/dtheta = yhat - y.
    from_theta: ClassVar[type[Loss] | None] = None
    #: Whether the mean is over outputs too, and not over examples alone.
    over_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("reduction", self.reduction, ("mean", "sum"))

    @property
    def own_settings(self) -> list[float]:
        """The settings that this loss alone has, in the order of its fields."""
        return [float(getattr(self, f.name)) for f in fields(self) if f.name != "reduction"]

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return {"name": self.name, **asdict(self)}

    def value(self, yhat: ArrayLike, y: ArrayLike) -> np.ndarray:
        """The loss of each example (n,). yhat (n, k) or (n,); y the same, or for nll the classes (n,)."""
        return self._both(yhat, y)[0]

    def derivative(self, yhat: ArrayLike, y: ArrayLike) -> np.ndarray:
        """dl / dyhat (n, k) of each example."""
        return self._both(yhat, y)[1]

    def _both(self, yhat: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        outputs = as_numbers("yhat", yhat)
        outputs = np.ascontiguousarray(outputs, outputs.dtype if outputs.dtype == np.float32 else np.float64)
        if outputs.ndim == 1:
            outputs = outputs[:, None]
        if outputs.ndim != 2:
            raise ValueError(f"yhat has shape {outputs.shape}; expected (n, k) or (n,)")
        return self.evaluate(outputs, self.targets(y, len(outputs), outputs.shape[1], outputs.dtype))

    def evaluate(self, yhat: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The losses (n,) and derivatives (n, k) of checked arrays (n, k)."""
        losses, derivatives = np.empty(len(yhat), yhat.dtype), np.empty_like(yhat)
        settings = np.array([False, *self.own_settings])
        run = specialise(losses_and_derivatives, loss_rule=self.rule)
        run(yhat.ravel(), y.ravel(), derivatives.ravel(), losses, 0, *yhat.shape, settings)
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
        """The targets as an array (n, k); classes (n,) become unit vectors. Errors say what is wrong."""
        array = as_numbers("y", y)
        if self.targets_are == "classes" and array.shape in ((n,), (n, 1)) and k > 1:
            labels = array.reshape(n)
            wrong = ~np.isin(labels, np.arange(k))
            if wrong.any():
                raise ValueError(f"y holds {labels[wrong][0]:g}; expected classes 0 to {k - 1} for {self.name}")
            one_hot = np.zeros((n, k), dtype)
            one_hot[np.arange(n), labels.astype(np.int64)] = 1
            return one_hot
        if k == 1 and array.shape == (n,):
            array = array[:, None]
        array = as_floats("y", array, dtype, (n, k))
        if not np.isfinite(array).all():
            row = int(np.argmax(~np.isfinite(array).all(axis=1)))
            raise ValueError(f"y[{row}] is {array[row].tolist()}; expected finite numbers")
        if self.targets_are != "numbers":
            if not ((array >= 0) & (array <= 1)).all():
                outside = array[(array < 0) | (array > 1)][0]
                raise ValueError(f"y holds {outside:g}; expected labels or probabilities in [0, 1] for {self.name}")
            if self.targets_are == "classes" and not np.allclose(array.sum(axis=1), 1, atol=1e-5):
                raise ValueError(f"rows of y do not sum to 1; expected classes or their probabilities for {self.name}")
        return array

    def check(self, net: Network) -> None:
        """Raise if the network's output layer makes no sense with this loss."""
        if net.output == "softmax" and net.n_outputs == 1:
            raise ValueError("output is softmax for one unit, which is always 1; expected sigmoid")
        if self.output not in (None, net.output):
            why = f"loss {self.name} applies the {self.applies} itself"
            if self.applies is None:
                own = "classes" if self.targets_are == "classes" else "each output on its own (for classes: nll)"
                why = f"loss {self.name} takes probabilities of {own}"
            raise ValueError(f"output is {net.output}; expected {self.output}, as {why}")
        if self.targets_are == "classes" and net.n_outputs == 1:
            raise ValueError(
                f"the network has 1 output; expected one for each class, as loss {self.name} is of classes (for one "
                "output: log_loss)"
            )


@dataclass(frozen=True)
class Custom(Loss):
    """A pair (value, derivative) of functions of yhat and y (n, k), which runs in Python."""

    functions: tuple[Function, Function]

    @property
    def own_settings(self) -> list[float]:
        """None that a file could hold."""
        return []

    def as_dict(self) -> dict[str, Any]:
        """Its functions are not in it."""
        return {"name": self.name, "reduction": self.reduction}

    def evaluate(self, yhat: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the functions return, checked."""
        value, derivative = self.functions
        losses = as_numbers("the value of the loss", value(yhat, y))
        if losses.shape not in ((len(yhat),), yhat.shape):
            raise ValueError(f"the value of the loss has shape {losses.shape}; expected ({len(yhat)},) or {yhat.shape}")
        derivatives = as_floats("the derivative of the loss", derivative(yhat, y), yhat.dtype, yhat.shape)
        return losses if losses.ndim == 1 else losses.sum(axis=1), derivatives


# --- the registry ---------------------------------------------------------------------------------------------------

#: Every loss, by its name in files and on the command line.
LOSSES = Registry("rule", "valueapprox.supervised.losses", lambda cls: _try_class(cls))
register = LOSSES.register


def _try_class(cls: type[Loss]) -> None:
    one_of("targets_are", cls.targets_are, ("numbers", "labels", "classes"))
    _try_rule(cls())


def _try_rule(loss: Loss) -> None:
    """Run the rule as plain Python and compare its derivative with central differences."""
    rule, settings = interpreted(type(loss).rule), np.array([False, *loss.own_settings])
    rng, h, k = np.random.default_rng(0), 1e-6, 3
    for _ in range(8):
        y, yhat = rng.normal(0, 2, k), rng.normal(0, 2, k)
        if loss.targets_are != "numbers":
            y = np.array([0.0, 0.75, 0.25])
        if loss.output in ("sigmoid", "softmax"):
            yhat = rng.uniform(0.1, 0.9, k)

        def run(yhat: np.ndarray, y: np.ndarray = y) -> tuple[float, np.ndarray]:
            # The example stands in the middle of NaN, which spoil everything if they are read.
            around = [np.pad(part, (before, 2), constant_values=np.nan) for part, before in ((yhat, 2), (y, 1))]
            d = np.full(k + 4, np.nan)
            return float(rule(*around, d, 2, 1, k, settings)), d[2 : 2 + k]

        derivative = run(yhat)[1]
        numeric = [(run(yhat + step)[0] - run(yhat - step)[0]) / (2 * h) for step in h * np.eye(k)]
        if not np.allclose(derivative, numeric, rtol=1e-5, atol=1e-6):
            raise ValueError(
                f"its derivative at yhat = {yhat.round(3).tolist()}, y = {y.round(3).tolist()} is "
                f"{derivative.round(6).tolist()}; expected that of its value, {np.round(numeric, 6).tolist()}"
            )


def get(loss: str | Loss | Sequence[Function]) -> Loss:
    """A loss by its name in `LOSSES`, a pair (value, derivative) of functions, or as it is.

    A pair gets yhat and y, both (n, k): value returns (n,), or (n, k) to be summed over k; derivative (n, k).
    Behind their own activation, log_loss and nll are computed from theta and lose no digits there.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        return LOSSES[one_of("loss", loss, LOSSES)]()
    if isinstance(loss, tuple | list) and len(loss) == 2:
        value, derivative = loss
        if callable(value) and callable(derivative):
            return Custom((value, derivative))
    raise ValueError(f"loss is {loss!r}; expected a name, a Loss, or a pair of functions (value, derivative)")


def stored(settings: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """What a file of a fit says of its loss, as `Loss.as_dict` says it."""
    if isinstance(settings, Mapping):
        return dict(settings)
    name, reduction, parameter = settings  # of versions 0.1 and 0.2, where every loss had a parameter
    return {"name": name, "reduction": reduction, **({"delta": parameter} if name == "huber" else {})}
