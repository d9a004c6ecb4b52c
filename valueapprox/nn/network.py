"""The network: layout of its flat weight vector, initialisation, forward pass and gradients for a person to call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from valueapprox.checks import CACHE_LINE, aligned_zeros, as_floats, as_numbers, one_of, positive
from valueapprox.nn import activations, batch
from valueapprox.nn.backprop import (
    BATCH_NORM,
    EPSILON,
    HAT,
    LAYER_NORM,
    NO_NORM,
    PSI,
    ROWS,
    D,
    X,
    gradient_kernel,
    output_kernel,
)
from valueapprox.nn.initializers import INITIALISERS

__all__ = ["BatchNorm", "LayerPass", "Network"]

Layer = tuple[np.ndarray, np.ndarray | None]
ENTRY = re.compile(r"\s*([A-Za-z_]+\d*)\s*\[\s*(\d+)\s*(?:,\s*(\d+)\s*)?\]\s*")
ROWS_AT_ONCE = 1024  # how many examples a forward pass of a batch holds in memory


class BatchNorm(NamedTuple):
    """What batch normalisation keeps for a hidden layer of m units, each (m,): psi = scale (s W - mean) / sd + shift.

    Scale and shift are learned by gradient; mean and variance are running averages that predictions use.
    """

    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class LayerPass(NamedTuple):
    """One layer in a forward and backward pass for an output H, in the letters of note 001."""

    z: np.ndarray  # (m,) pre-activations
    a: np.ndarray  # (m,) outputs of the units
    dH_da: np.ndarray  # (m,)
    dH_dz: np.ndarray  # (m,)
    dH_dW: np.ndarray  # (n, m)
    dH_db: np.ndarray  # (m,)


@dataclass(frozen=True)
class Network:
    """A fully connected network s -> x -> ... -> yhat whose weights are one flat vector w (P,).

    psi = s A + b_A, x = f_A(psi), theta = x B + b_B, yhat = f_B(theta) with one hidden layer; any depth works the same.
    Layers are called A and B in a two-layer network, as in the notes, and W1, ..., WL in any other.

    Parameters
    ----------
    sizes
        Units of each layer, inputs first: ``(4, 64, 1)``. Two sizes make a linear network.
    hidden
        Activation of the hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus.
    output
        Activation of the output layer: those, or softmax.
    bias
        Whether every layer has biases.
    layer_norm
        Whether psi of hidden layers is brought to mean 0 and variance 1 before the activation (no affine parameters).
    batch_norm
        Whether each hidden unit is brought to mean 0 and variance 1 over the examples of a minibatch, then scaled and
        shifted by learned parameters; the shift is the layer's bias. Its running statistics lie at the end of w.
        For `fit` only: one example has no variance.
    dtype
        "float32" or "float64", of weights and of everything computed with them.

    Examples
    --------
    >>> net = Network((2, 3, 1))
    >>> w = net.init(seed=0)
    >>> net.forward(w, [1.0, -1.0]).shape
    (1,)
    >>> net.layer_names
    ('A', 'B')
    """

    sizes: tuple[int, ...]
    hidden: str = "relu"
    output: str = "linear"
    bias: bool = True
    layer_norm: bool = False
    dtype: str = "float32"
    batch_norm: bool = False

    def __post_init__(self) -> None:
        sizes = tuple(self.sizes) if isinstance(self.sizes, Sequence | np.ndarray) else (self.sizes,)
        if len(sizes) < 2:
            raise ValueError(f"sizes is {self.sizes}; expected at least the numbers of inputs and of outputs")
        object.__setattr__(self, "sizes", tuple(positive("a layer's size", n) for n in sizes))
        one_of("hidden", self.hidden, activations.HIDDEN)
        one_of("output", self.output, activations.OUTPUT)
        name = self.dtype if isinstance(self.dtype, str) else np.dtype(self.dtype).name
        object.__setattr__(self, "dtype", one_of("dtype", name, ("float32", "float64")))
        if self.batch_norm and self.layer_norm:
            raise ValueError("layer_norm and batch_norm are both set; a layer has one normalisation")
        if self.batch_norm and not self.bias:
            raise ValueError("batch_norm is set without bias; the layer's bias is its shift, so bias must be True")

    # --- layout -----------------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Number of weight matrices, L."""
        return len(self.sizes) - 1

    @property
    def n_inputs(self) -> int:
        """Length d of a state s."""
        return self.sizes[0]

    @property
    def n_outputs(self) -> int:
        """Length k of yhat."""
        return self.sizes[-1]

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """A and B for two layers; W1, ..., WL otherwise."""
        return ("A", "B") if self.n_layers == 2 else tuple(f"W{l + 1}" for l in range(self.n_layers))

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each layer starts in w, and at last the number of parameters P."""
        counts = [n * m + (m if self.bias else 0) for n, m in zip(self.sizes, self.sizes[1:], strict=False)]
        if self.batch_norm:
            counts = [count + m for count, m in zip(counts[:-1], self.sizes[1:-1], strict=True)] + counts[-1:]
        return (0, *np.cumsum(counts).tolist())

    @property
    def n_parameters(self) -> int:
        """The number P of parameters: over the layers, n m weights, m biases, and m scales with batch normalisation."""
        return self.bounds[-1]

    @property
    def size(self) -> int:
        """Length of w: P, and with batch normalisation the running mean and variance of every hidden unit behind."""
        return self.n_parameters + (2 * sum(self.sizes[1:-1]) if self.batch_norm else 0)

    @cached_property
    def blocks(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Where each named block starts in w, and its shape, in the order of w.

        A, b_A, B, b_B for two layers, W1, b1, ..., WL, bL for any other number; with batch normalisation also scale1,
        ..., and mean1, variance1, ....
        """
        blocks: dict[str, tuple[int, tuple[int, ...]]] = {}
        place = 0

        def add(name: str, *shape: int) -> None:
            nonlocal place
            blocks[name] = (place, shape)
            place += int(np.prod(shape))

        for l, (name, n, m) in enumerate(zip(self.layer_names, self.sizes, self.sizes[1:], strict=False), start=1):
            add(name, n, m)
            if self.bias:
                add(f"b_{name}" if self.n_layers == 2 else f"b{l}", m)
            if self.batch_norm and l < self.n_layers:
                add(f"scale{l}", m)
        for l, m in enumerate(self.sizes[1:-1] if self.batch_norm else (), start=1):
            add(f"mean{l}", m)
            add(f"variance{l}", m)
        return blocks

    def block(self, w: np.ndarray, name: str) -> np.ndarray:
        """The block of w, or of anything shaped like it, that has this name, as a view; W1, b1, ... always work too."""
        if self.n_layers == 2:
            name = {"W1": "A", "b1": "b_A", "W2": "B", "b2": "b_B"}.get(name, name)
        start, shape = self.blocks[one_of("block", name, self.blocks)]
        if not isinstance(w, np.ndarray):
            raise TypeError(f"w is a {type(w).__name__}; expected an array, of which the block is a view")
        if w.shape != (self.size,):
            raise ValueError(f"w has shape {w.shape}; expected ({self.size},)")
        return w[start : start + int(np.prod(shape))].reshape(shape)

    def index(self, entry: str) -> int:
        """Where in w an entry lies that is given by name: ``A[0, 2]``, ``W2[1, 0]``, ``b1[3]``, counted from 0.

        >>> net = Network((2, 3, 1))
        >>> net.index("A[1, 0]"), net.index("W1[1, 0]"), net.index("b_B[0]")
        (3, 3, 12)
        """
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"entry is {entry!r}; expected a name and its indices, like A[0, 2] or b1[3]")
        block = self.block(np.arange(self.size), match[1])
        place = tuple(int(i) for i in match.groups()[1:] if i is not None)
        if len(place) != block.ndim or any(i >= n for i, n in zip(place, block.shape, strict=True)):
            raise ValueError(f"entry is {entry!r}; {match[1]} has shape {block.shape}, and indices count from 0")
        return int(block[place])

    def name(self, index: int) -> str:
        """The name of entry w[index]; `index` is the inverse."""
        index = positive("index", index, at_least=0)
        if index >= self.size:
            raise ValueError(f"index is {index}; w has entries 0 to {self.size - 1}")
        block = max((b for b in self.blocks if self.blocks[b][0] <= index), key=lambda b: self.blocks[b][0])
        start, shape = self.blocks[block]
        return f"{block}[{', '.join(str(int(i)) for i in np.unravel_index(index - start, shape))}]"

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in a row of scratch the units of each layer start, inputs first, and where the row ends."""
        rooms = [-(-size // CACHE_LINE) * CACHE_LINE for size in self.sizes]
        return (0, *np.cumsum(rooms).tolist())

    @cached_property
    def spec(self) -> np.ndarray:
        """The network as kernels read it; see `valueapprox.nn.backprop`."""
        codes = (activations.HIDDEN[self.hidden], activations.OUTPUT[self.output])
        norm = BATCH_NORM if self.batch_norm else LAYER_NORM if self.layer_norm else NO_NORM
        return np.array([self.n_layers, self.bias, norm, *codes, *self.sizes, *self.starts[:-1]], dtype=np.int64)

    def scratch(self) -> np.ndarray:
        """A buffer for one forward and backward pass."""
        return aligned_zeros((ROWS, self.starts[-1]), np.dtype(self.dtype))

    def unpack(self, w: np.ndarray) -> list[Layer]:
        """The layers (W (n, m), b (m,)) as views of w (P,); b is None without biases. W[i, j] leads from i to j."""
        if w.shape != (self.size,):
            raise ValueError(f"w has shape {w.shape}; expected ({self.size},)")
        layers: list[Layer] = []
        for n, m, start in zip(self.sizes, self.sizes[1:], self.bounds, strict=False):
            stop = start + n * m
            layers.append((w[start:stop].reshape(n, m), w[stop : stop + m] if self.bias else None))
        return layers

    def batch_norms(self, w: np.ndarray) -> list[BatchNorm]:
        """What batch normalisation keeps for each hidden layer, as views of w; none without batch normalisation."""
        return [
            BatchNorm(*(self.block(w, f"{name}{l}") for name in ("scale", "b", "mean", "variance")))
            for l in range(1, self.n_layers if self.batch_norm else 1)
        ]

    def fold(self, w: ArrayLike) -> tuple[Network, np.ndarray]:
        """An ordinary network, and weights, that predict the same without batch normalisation.

        With its running statistics, scale (s W - mean) / sd + shift is affine in s: W' = W scale / sd and
        b' = shift - mean scale / sd, sd = sqrt(variance + 1e-5). So `ValueFunction` can go on from what `fit` began.
        """
        own = self._weights(w)
        plain = replace(self, batch_norm=False)
        layers: list[Layer] = [(W.copy(), None if b is None else b.copy()) for W, b in self.unpack(own)]
        for l, norm in enumerate(self.batch_norms(own)):
            ratio = norm.scale / np.sqrt(norm.variance + norm.variance.dtype.type(EPSILON))
            layers[l] = (layers[l][0] * ratio, norm.shift - norm.mean * ratio)
        return plain, plain.pack(layers)

    def _fresh(self) -> np.ndarray:
        """All zero, but for scales and running variances, which are 1."""
        w = np.zeros(self.size, dtype=self.dtype)
        for norm in self.batch_norms(w):
            norm.scale[...] = norm.variance[...] = 1.0
        return w

    def pack(self, layers: Sequence[tuple[ArrayLike, ArrayLike | None]]) -> np.ndarray:
        """One vector w (P,) from the layers' (W, b), or (W, None) without biases.

        Scales and running statistics of batch normalisation start as in `init`; set them through `batch_norms`.
        """
        if len(layers) != self.n_layers:
            raise ValueError(f"{len(layers)} layers were given; the network has {self.n_layers}: {self.layer_names}")
        w = self._fresh()
        for name, (to_weights, to_biases), (weights, biases) in zip(
            self.layer_names, self.unpack(w), layers, strict=True
        ):
            to_weights[...] = as_floats(f"W of layer {name}", weights, w.dtype, to_weights.shape)
            if (biases is None) != (to_biases is None):
                has = "no biases" if to_biases is None else f"biases of shape {to_biases.shape}"
                raise ValueError(f"b of layer {name} is {biases!r}; the network has {has}")
            if to_biases is not None and biases is not None:
                to_biases[...] = as_floats(f"b of layer {name}", biases, w.dtype, to_biases.shape)
        return w

    def init(self, seed: int | np.random.SeedSequence | np.random.Generator, init: str = "he_normal") -> np.ndarray:
        """Fresh weights w (P,) by one of `valueapprox.nn.initializers.INITIALISERS`; biases are zero."""
        draw = INITIALISERS[one_of("init", init, INITIALISERS)]
        rng = np.random.default_rng(seed)
        w = self._fresh()
        for weights, _ in self.unpack(w):
            weights[...] = draw(rng, *weights.shape)
        return w

    def layer_norms(self, vector: ArrayLike) -> dict[str, float]:
        """Euclidean norm of each layer's part of anything shaped like w: weights, a gradient, a trace, an update."""
        # Not np.linalg.norm: for a long part it asks BLAS, whose threads then wait for more in a loop, on all cores.
        squares = np.square(as_floats("vector", vector, np.dtype(np.float64), (self.size,)))
        return {
            name: float(np.sqrt(squares[start:stop].sum()))
            for name, start, stop in zip(self.layer_names, self.bounds, self.bounds[1:], strict=False)
        }

    # --- values and gradients -----------------------------------------------------------------------------------------

    def _weights(self, w: ArrayLike) -> np.ndarray:
        return as_floats("w", w, np.dtype(self.dtype), (self.size,))

    def _state(self, s: ArrayLike) -> np.ndarray:
        return as_floats("s", s, np.dtype(self.dtype), (self.n_inputs,))

    def forward(self, w: ArrayLike, s: ArrayLike) -> np.ndarray:
        """The outputs yhat: s (d,) gives (k,) by the online kernel, s (n, d) gives (n, k) by matrix products.

        Both agree to rounding. Batch normalisation uses its running statistics.
        """
        w = self._weights(w)
        s = as_numbers("s", s)
        if s.ndim == 2:
            states = as_floats("s", s, np.dtype(self.dtype), (None, self.n_inputs))
            return batch.predict(w, self.spec, states, self.n_outputs, self.starts[-1], ROWS_AT_ONCE)
        if self.batch_norm:
            return batch.predict(w, self.spec, self._state(s)[None], self.n_outputs, self.starts[-1], 1)[0]
        yhat = np.empty(self.n_outputs, dtype=self.dtype)
        output_kernel(w, self.spec, self.scratch(), self._state(s), yhat)
        return yhat

    def _gradients(self, w: ArrayLike, s: ArrayLike, output: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """d yhat_output / dw, d yhat_output / ds, and the scratch with everything in between."""
        if output not in range(self.n_outputs):
            raise ValueError(f"output is {output}; the network has outputs 0 to {self.n_outputs - 1}")
        gradient = np.zeros(self.size, dtype=self.dtype)
        input_gradient = np.empty(self.n_inputs, dtype=self.dtype)
        w, state = self._weights(w), self._state(s)
        if self.batch_norm:
            scratch = batch.scratch(self.starts[-1], 1, self.dtype)
            batch.one_gradient(w, self.spec, scratch, state, output, gradient, input_gradient)
        else:
            scratch = self.scratch()
            gradient_kernel(w, self.spec, scratch, state, output, gradient, input_gradient)
        return gradient, input_gradient, scratch

    def gradient(self, w: ArrayLike, s: ArrayLike, output: int = 0) -> np.ndarray:
        """d yhat_output / d w (P,) at the state s (d,), by backpropagation; no loss is involved."""
        return self._gradients(w, s, output)[0]

    def input_gradient(self, w: ArrayLike, s: ArrayLike, output: int = 0) -> np.ndarray:
        """d yhat_output / d s (d,): which inputs the output depends on."""
        return self._gradients(w, s, output)[1]

    def backpropagate(self, w: ArrayLike, s: ArrayLike, output: int = 0) -> list[LayerPass]:
        """All of a forward and backward pass for H = yhat_output at s (d,), layer by layer, inputs' side first.

        dH/da_j = sum_k dH/dz_k W_jk over the next layer;  dH/dz_j = dH/da_j g'(z_j);  dH/dW_ij = dH/dz_j a_i;
        dH/db_j = dH/dz_j. (Note 001, general formulas; a layer's z is psi, or theta at the output, and its a is x.)

        Where a layer is normalised, that stands in between: with LayerNorm g' is taken at psi_hat, and dH/dz behind
        it; with batch normalisation z is psi behind it, dH/dW and dH/da of the layer before are what they are.
        """
        gradient, _, scratch = self._gradients(w, s, output)
        passes: list[LayerPass] = []
        dH_da = np.zeros(self.n_outputs, dtype=self.dtype)
        dH_da[output] = 1
        w = self._weights(w)
        for l in reversed(range(self.n_layers)):
            part = slice(self.starts[l + 1], self.starts[l + 1] + self.sizes[l + 1])
            z, a, behind = (scratch[row, part].copy() for row in (PSI, X, D))  # behind: at s W + b, or s W
            dH_dW, dH_db = self.unpack(gradient)[l]
            if dH_db is None:
                dH_db = behind
            dH_dz = dH_db if self.batch_norm else behind  # batch normalisation's shift adds to psi
            passes.append(LayerPass(z, a, dH_da, dH_dz, dH_dW, dH_db.copy()))
            dH_da = self.unpack(w)[l][0] @ behind
        return passes[::-1]

    def trace(self, w: ArrayLike, s: ArrayLike) -> dict[str, np.ndarray]:
        """Everything that the forward pass of s (d,) computes, by the notes' names, in order.

        s, psi, x, theta, yhat for two layers; psi1, x1, psi2, x2, ... for more. With LayerNorm also psi_hat, what the
        activation sees; with batch normalisation psi_hat is s W normalised, and psi = scale psi_hat + shift.
        """
        state = self._state(s)
        scratch = self._gradients(w, state, 0)[2]
        values = {"s": state.copy()}
        for l, (start, size) in enumerate(zip(self.starts[1:], self.sizes[1:], strict=False)):
            part = slice(start, start + size)
            number = "" if self.n_layers == 2 else str(l + 1)
            if l == self.n_layers - 1:
                values["theta"] = scratch[PSI, part].copy()
                values["yhat"] = scratch[X, part].copy()
            else:
                values[f"psi{number}"] = scratch[PSI, part].copy()
                if self.layer_norm or self.batch_norm:
                    values[f"psi_hat{number}"] = scratch[HAT, part].copy()
                values[f"x{number}"] = scratch[X, part].copy()
        return values

    # --- files --------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values: ``Network(**net.as_dict())`` is the same network."""
        return {**asdict(self), "sizes": list(self.sizes)}

    def __str__(self) -> str:
        sizes = "-".join(map(str, self.sizes))
        options = [self.hidden] * (self.n_layers > 1) + ["LayerNorm"] * self.layer_norm
        options += ["batch norm"] * self.batch_norm + ["no bias"] * (not self.bias)
        return (
            f"{sizes} ({', '.join([*options, f'{self.output} output'])}, {self.n_parameters} parameters, {self.dtype})"
        )
