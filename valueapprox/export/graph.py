"""What is exported: outputs, each a chain of steps from the observation, which every format writes in its own words."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checkpoint import must_be_finite
from valueapprox.checks import as_floats
from valueapprox.nn.network import Network
from valueapprox.nn.scaling import Scaling
from valueapprox.optim import Optimizer
from valueapprox.supervised import losses
from valueapprox.supervised.history import History
from valueapprox.supervised.models import Model
from valueapprox.td.predictions import Predictions
from valueapprox.td.value_function import ValueFunction

__all__ = [
    "Affine", "ArgMax", "Clip", "Forward", "Graph", "Output", "Rows", "Slice", "Softmax", "Softplus", "Standardise",
    "Step", "Update", "describe", "identifier", "size_after",
]  # fmt: skip

# --- steps ------------------------------------------------------------------------------------------------------------


class Standardise(NamedTuple):
    """(x - mean) / scale (d,), in float64, then rounded to the network's dtype."""

    scaling: Scaling


@dataclass(frozen=True, eq=False)
class Forward:
    """The outputs yhat (k,) of a network with weights w (P,), without batch normalisation."""

    name: str
    net: Network
    w: np.ndarray


class Slice(NamedTuple):
    """Entries start, ..., stop - 1."""

    start: int
    stop: int


class Affine(NamedTuple):
    """shift + factor x, entry by entry, in float64, then rounded to the network's dtype."""

    shift: np.ndarray
    factor: np.ndarray


class Softplus(NamedTuple):
    """log(1 + e^x), entry by entry."""


class Softmax(NamedTuple):
    """Probabilities from logits, for each group of entries by itself: sizes[0] entries, then sizes[1], ...."""

    sizes: tuple[int, ...]


class ArgMax(NamedTuple):
    """For each group of entries the number of its largest one (of the first such), counted from `first`: integers."""

    sizes: tuple[int, ...]
    first: tuple[int, ...]


class Rows(NamedTuple):
    """Row x of a table of integers (n, k), for one integer x."""

    table: np.ndarray


class Clip(NamedTuple):
    """Each entry brought between its bounds (k,), which may be infinite; rounded before, where it is `whole`."""

    low: np.ndarray
    high: np.ndarray
    whole: np.ndarray


Step = Standardise | Forward | Slice | Affine | Softplus | Softmax | ArgMax | Rows | Clip


def size_after(step: Step, n: int) -> int:
    """How many numbers a step makes of n."""
    match step:
        case Forward():
            return step.net.n_outputs
        case Slice():
            return step.stop - step.start
        case ArgMax():
            return len(step.sizes)
        case Rows():
            return int(step.table.shape[1])
    return n


# --- the whole --------------------------------------------------------------------------------------------------------


class Output(NamedTuple):
    """One output: its name, an identifier; what it says; the steps to it; and names of its entries, if they have any.

    Chains that begin with the same steps share them.
    """

    name: str
    meaning: str
    steps: tuple[Step, ...]
    entries: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it consists of integers."""
        return isinstance(self.steps[-1], ArgMax | Rows)


class Update(NamedTuple):
    """TD(lambda) with accumulating traces for the only output of the only network."""

    optimizer: Optimizer
    n_updates: int  # that the optimizer has made: where its schedule stands
    moments: np.ndarray  # (m, P), what the optimizer remembers
    scalars: np.ndarray  # (5,), of the whole network
    gamma: float
    lam: float


@dataclass(frozen=True, eq=False)
class Graph:
    """What is exported.

    Parameters
    ----------
    n_inputs
        Length d of the observation.
    outputs
        One or more.
    about
        What it is, in a sentence.
    inputs
        Names of the observation's entries, if they have any.
    update
        How it goes on learning, for a format that can; None if it does not.
    no_update
        Why it does not, where somebody might expect it.
    """

    n_inputs: int
    outputs: tuple[Output, ...]
    about: str
    inputs: tuple[str, ...] = ()
    update: Update | None = None
    no_update: str = ""

    def __post_init__(self) -> None:
        for network in self.networks:
            if network.net.batch_norm:
                raise ValueError(f"{network.name} has batch normalisation; expected what Network.fold gives")
            must_be_finite({"w": network.w})

    @property
    def networks(self) -> list[Forward]:
        """Every network once."""
        steps = [step for output in self.outputs for step in output.steps if isinstance(step, Forward)]
        return list(dict.fromkeys(steps))

    @property
    def dtype(self) -> str:
        """Of the observation, and of all outputs but integers."""
        return self.networks[0].net.dtype

    def size(self, output: Output) -> int:
        """How many numbers an output has."""
        n = self.n_inputs
        for step in output.steps:
            n = size_after(step, n)
        return n


def describe(what: Any, w: ArrayLike | None = None) -> Graph:
    """What can be exported of something that was learned.

    Parameters
    ----------
    what
        A `ValueFunction`; `Predictions`; a fitted `Model`; the `History` of a fit; a `Network`, with w; or whatever has
        a method `exported` that says it, as agents have.
    w
        Weights (P,) of a network, nothing else.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If a weight is NaN or infinite, or w has another shape.
    """
    if isinstance(what, Graph):
        return what
    if isinstance(what, Network):
        if w is None:
            raise TypeError("w is None; expected the weights of the network")
        name = "value" if what.n_outputs == 1 else "values"
        net, weights = _plain(what, w)
        output = Output(name, "outputs of the network", (Forward("net", net, weights),))
        return Graph(what.n_inputs, (output,), f"a network {what}")
    if w is not None:
        raise TypeError(f"w was given with a {type(what).__name__}; expected nothing, as it has weights of its own")
    if isinstance(what, ValueFunction):
        return _value_function(what)
    if isinstance(what, Predictions):
        return _predictions(what)
    if isinstance(what, Model):
        return _model(what)
    if isinstance(what, History):
        return describe(what.net, what.w)
    if hasattr(what, "exported"):
        return describe(what.exported())
    raise TypeError(
        f"what is a {type(what).__name__}; expected a value function, predictions, a fitted model, an agent, or a "
        "network and its weights"
    )


def _value_function(v: ValueFunction) -> Graph:
    output = Output("value", "v(s), the expected discounted sum of rewards", (Forward("value", v.net, v.w.copy()),))
    about = f"a value function, gamma {v.gamma:g}, of a network {v.net}"
    if v.method != "td":
        why = f"the method is {v.method}; the update that can be exported is that of td, TD(lambda)"
        return Graph(v.net.n_inputs, (output,), about, no_update=why)
    state = v.state
    update = Update(v.optimizer, int(state.n_updates[0]), state.moments.copy(), state.scalars.copy(), v.gamma, v.lam)
    return Graph(v.net.n_inputs, (output,), about, update=update)


def _predictions(p: Predictions) -> Graph:
    d, k = p.net.n_inputs, p.n_predictions
    about = f"{k} prediction{'s' * (k > 1)}, gamma {', '.join(f'{g:g}' for g in p.discounts)}, of "
    about += f"{f'{k} networks' if len(p.w) > 1 else 'a network'} {p.net}"
    several = f"there are {k} predictions; the update that can be exported is that of one"
    meaning = "the expected discounted sum of "
    if len(p.w) == 1:
        name, what = ("value", p.names[0]) if k == 1 else ("values", "each signal")
        output = Output(name, meaning + what, (Forward("value", p.net, p.w[0].copy()),), p.names)
        if k == 1:
            learned, _ = p.state_dict(0)
            remembered = learned["moments"][0].copy(), learned["scalars"][0].copy()
            update = Update(p.optimizer, int(learned["count"][0, 0]), *remembered, p.discounts[0], p.lams[0])
            return Graph(d, (output,), about, update=update)
        return Graph(d, (output,), about, no_update=several)
    names = identifiers([f"value_{name}" for name in p.names])
    outputs = tuple(
        Output(name, meaning + own, (Forward(f"net_{name}", p.net, row.copy()),), (own,))
        for name, own, row in zip(names, p.names, p.w, strict=True)
    )
    return Graph(d, outputs, about, no_update=several)


def _model(model: Model) -> Graph:
    net, w = _plain(model.net, model.w)
    name = "predictions" if losses.LOSSES[model.loss].targets_are == "numbers" else "probabilities"
    entries = tuple(map(str, model.classes)) or model.targets
    what = " of ".join(["each class"] * bool(model.classes) + [", ".join(model.targets)])
    meaning = what if name == "predictions" else f"probabilities of {what}"
    output = Output(name, meaning, (Forward("model", net, w),), entries)
    about = f"a fit to a table, which minimised {model.loss}, of a network {net}"
    return Graph(net.n_inputs, (output,), about, model.features)


def _plain(net: Network, w: ArrayLike) -> tuple[Network, np.ndarray]:
    """A network without batch normalisation that gives the same, and a copy of its weights."""
    if net.batch_norm:
        return net.fold(w)
    return net, as_floats("w", w, np.dtype(net.dtype), (net.size,)).copy()


# --- names ------------------------------------------------------------------------------------------------------------

#: Words of C and C++ that Python does not know.
C_WORDS = """
auto bool case catch char const default delete do double enum explicit export extern false float friend goto inline int
long main mutable namespace new operator private protected public register restrict short signed sizeof static struct
switch template this throw true typedef typename union unsigned using virtual void volatile
"""


def identifier(text: str) -> str:
    """A text as a name that C, C++ and Python allow: other characters become _, and a digit is not the first.

    >>> identifier("agent-1"), identifier("2nd"), identifier("double")
    ('agent_1', 'n2nd', 'double_')
    """
    name = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", text)).strip("_") or "model"
    name = f"n{name}" if name[0].isdigit() else name
    return f"{name}_" if name in C_WORDS.split() or keyword.iskeyword(name) else name


def identifiers(texts: Sequence[str]) -> list[str]:
    """`identifier` of each, made different by numbers behind them where they would be the same."""
    found: list[str] = []
    for text in texts:
        name = own = identifier(text)
        n = 1
        while name in found:
            n += 1
            name = f"{own}_{n}"
        found.append(name)
    return found
