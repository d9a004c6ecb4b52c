"""The network: layout of its flat weight vector, initialisation, forward pass and gradients for a person to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from valueapprox import activations
from valueapprox.backprop import EPSILON, HAT, PSI, ROWS, X, gradient_kernel, output_kernel
from valueapprox.checks import CACHE_LINE, aligned_zeros, as_floats, as_numbers, one_of, positive
from valueapprox.initialisers import INITIALISERS

__all__ = ["Network"]

Layer = tuple[np.ndarray, np.ndarray | None]


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

    def __post_init__(self) -> None:
        sizes = tuple(self.sizes) if isinstance(self.sizes, Sequence | np.ndarray) else (self.sizes,)
        if len(sizes) < 2:
            raise ValueError(f"sizes is {self.sizes}; at least the numbers of inputs and of outputs are wanted")
        object.__setattr__(self, "sizes", tuple(positive("a layer's size", n) for n in sizes))
        one_of("hidden", self.hidden, activations.HIDDEN)
        one_of("output", self.output, activations.OUTPUT)
        name = self.dtype if isinstance(self.dtype, str) else np.dtype(self.dtype).name
        object.__setattr__(self, "dtype", one_of("dtype", name, ("float32", "float64")))

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
        return (0, *np.cumsum(counts).tolist())

    @property
    def n_parameters(self) -> int:
        """Length P of w: the sum over layers of n m weights and m biases."""
        return self.bounds[-1]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in a row of scratch the units of each layer start, inputs first, and where the row ends."""
        rooms = [-(-size // CACHE_LINE) * CACHE_LINE for size in self.sizes]
        return (0, *np.cumsum(rooms).tolist())

    @cached_property
    def spec(self) -> np.ndarray:
        """The network as kernels read it; see `valueapprox.backprop`."""
        codes = (activations.HIDDEN[self.hidden], activations.OUTPUT[self.output])
        return np.array(
            [self.n_layers, self.bias, self.layer_norm, *codes, *self.sizes, *self.starts[:-1]], dtype=np.int64
        )

    def scratch(self) -> np.ndarray:
        """A buffer for one forward and backward pass."""
        return aligned_zeros((ROWS, self.starts[-1]), np.dtype(self.dtype))

    def unpack(self, w: np.ndarray) -> list[Layer]:
        """The layers (W (n, m), b (m,)) as views of w (P,); b is None without biases. W[i, j] leads from i to j."""
        if w.shape != (self.n_parameters,):
            raise ValueError(f"w has shape {w.shape}; ({self.n_parameters},) is wanted")
        layers: list[Layer] = []
        for n, m, start, stop in zip(self.sizes, self.sizes[1:], self.bounds, self.bounds[1:], strict=False):
            weights = w[start : start + n * m].reshape(n, m)
            layers.append((weights, w[start + n * m : stop] if self.bias else None))
        return layers

    def pack(self, layers: Sequence[tuple[ArrayLike, ArrayLike | None]]) -> np.ndarray:
        """One vector w (P,) from the layers' (W, b), or (W, None) without biases."""
        if len(layers) != self.n_layers:
            raise ValueError(f"{len(layers)} layers were given; the network has {self.n_layers}: {self.layer_names}")
        w = np.empty(self.n_parameters, dtype=self.dtype)
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

    def init(self, seed: int | np.random.SeedSequence | np.random.Generator, scheme: str = "he_normal") -> np.ndarray:
        """Fresh weights w (P,) by one of `valueapprox.initialisers.INITIALISERS`; biases are zero."""
        draw = INITIALISERS[one_of("scheme", scheme, INITIALISERS)]
        rng = np.random.default_rng(seed)
        w = np.zeros(self.n_parameters, dtype=self.dtype)
        for weights, _ in self.unpack(w):
            weights[...] = draw(rng, *weights.shape)
        return w

    def layer_norms(self, vector: ArrayLike) -> dict[str, float]:
        """Euclidean norm of each layer's part of anything shaped like w: weights, a gradient, a trace, an update."""
        parts = as_floats("vector", vector, np.dtype(np.float64), (self.n_parameters,))
        return {
            name: float(np.linalg.norm(parts[start:stop]))
            for name, start, stop in zip(self.layer_names, self.bounds, self.bounds[1:], strict=False)
        }

    # --- values and gradients -----------------------------------------------------------------------------------------

    def _weights(self, w: ArrayLike) -> np.ndarray:
        return as_floats("w", w, np.dtype(self.dtype), (self.n_parameters,))

    def _state(self, s: ArrayLike) -> np.ndarray:
        return as_floats("s", s, np.dtype(self.dtype), (self.n_inputs,))

    def forward(self, w: ArrayLike, s: ArrayLike) -> np.ndarray:
        """The outputs yhat: s (d,) gives (k,) by the online kernel, s (n, d) gives (n, k) by matrix products.

        Both agree to rounding.
        """
        w = self._weights(w)
        s = as_numbers("s", s)
        if s.ndim != 2:
            yhat = np.empty(self.n_outputs, dtype=self.dtype)
            output_kernel(w, self.spec, self.scratch(), self._state(s), yhat)
            return yhat
        x = as_floats("s", s, np.dtype(self.dtype), (None, self.n_inputs))
        for l, (weights, biases) in enumerate(self.unpack(w)):
            psi = x @ weights if biases is None else x @ weights + biases
            if l == self.n_layers - 1:
                return activations.activate_batch(self.output, psi)
            if self.layer_norm:
                centred = psi - psi.mean(axis=1, keepdims=True)
                psi = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + psi.dtype.type(EPSILON))
            x = activations.activate_batch(self.hidden, psi)
        raise AssertionError("a network has layers")

    def _gradients(self, w: ArrayLike, s: ArrayLike, output: int) -> tuple[np.ndarray, np.ndarray]:
        if output not in range(self.n_outputs):
            raise ValueError(f"output is {output}; the network has outputs 0 to {self.n_outputs - 1}")
        gradient = np.empty(self.n_parameters, dtype=self.dtype)
        input_gradient = np.empty(self.n_inputs, dtype=self.dtype)
        gradient_kernel(self._weights(w), self.spec, self.scratch(), self._state(s), output, gradient, input_gradient)
        return gradient, input_gradient

    def gradient(self, w: ArrayLike, s: ArrayLike, output: int = 0) -> np.ndarray:
        """D yhat_output / d w (P,) at the state s (d,), by backpropagation; no loss is involved."""
        return self._gradients(w, s, output)[0]

    def input_gradient(self, w: ArrayLike, s: ArrayLike, output: int = 0) -> np.ndarray:
        """D yhat_output / d s (d,): which inputs the output hangs on."""
        return self._gradients(w, s, output)[1]

    def trace(self, w: ArrayLike, s: ArrayLike) -> dict[str, np.ndarray]:
        """Everything that the forward pass of s (d,) computes, by the notes' names, in order.

        s, psi, x, theta, yhat for two layers; psi1, x1, psi2, x2, ... for more; with LayerNorm also psi_hat, what the
        activation sees.
        """
        scratch = self.scratch()
        state = self._state(s)
        output_kernel(self._weights(w), self.spec, scratch, state, np.empty(self.n_outputs, dtype=self.dtype))
        values = {"s": state.copy()}
        for l, (start, size) in enumerate(zip(self.starts[1:], self.sizes[1:], strict=False)):
            part = slice(start, start + size)
            number = "" if self.n_layers == 2 else str(l + 1)
            if l == self.n_layers - 1:
                values["theta"] = scratch[PSI, part].copy()
                values["yhat"] = scratch[X, part].copy()
            else:
                values[f"psi{number}"] = scratch[PSI, part].copy()
                if self.layer_norm:
                    values[f"psi_hat{number}"] = scratch[HAT, part].copy()
                values[f"x{number}"] = scratch[X, part].copy()
        return values

    # --- files --------------------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values: ``Network(**net.as_dict())`` is the same network."""
        return {**asdict(self), "sizes": list(self.sizes)}

    def __str__(self) -> str:
        sizes = "-".join(map(str, self.sizes))
        options = [self.hidden] * (self.n_layers > 1) + ["LayerNorm"] * self.layer_norm + ["no bias"] * (not self.bias)
        return (
            f"{sizes} ({', '.join([*options, f'{self.output} output'])}, {self.n_parameters} parameters, {self.dtype})"
        )
