"""An ONNX model: the forward pass as a graph of standard operators, for any runtime. Needs the package onnx."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

import valueapprox
from valueapprox.export.graph import (
    Affine,
    ArgMax,
    Clip,
    Forward,
    Graph,
    Rows,
    Slice,
    Softmax,
    Softplus,
    Standardise,
    Step,
    describe,
    size_after,
)
from valueapprox.nn.activations import LEAK
from valueapprox.nn.backprop import EPSILON

if TYPE_CHECKING:
    import onnx

__all__ = ["to_onnx"]

OPSET = 17  # of 2022: runtimes on devices are often years behind
IR_VERSION = 8  # that came with it
EXTRA = "writing ONNX needs the package onnx: pip install 'valueapprox[onnx]'"


def to_onnx(what: Any, w: ArrayLike | None = None, *, name: str = "model") -> onnx.ModelProto:
    """The ONNX model: input `observation` (n, d), and outputs (n, k) as `describe` names them, such as `value`.

    n is dynamic; numbers are of the network's dtype, actions that are whole numbers int64. What the entries are called
    stands in the model's metadata. Operators: opset 17 of https://onnx.ai/onnx/operators, of which only those are used
    that ONNX Runtime has in float64 too.

    Parameters
    ----------
    what, w
        As for `describe`.
    name
        Of the graph.

    Raises
    ------
    ModuleNotFoundError
        If the package onnx is not installed.
    TypeError, ValueError
        If it cannot be exported.
    """
    graph = describe(what, w)
    try:
        import onnx
    except ModuleNotFoundError:
        raise ModuleNotFoundError(EXTRA) from None
    model = _Model(graph, name).proto()
    onnx.checker.check_model(model, full_check=True)
    return model


class _Model:
    """Nodes and constants of one model as they come together."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.known: dict[tuple[int, ...], str] = {(): "observation"}  # what chains of steps give
        self.dtype = np.dtype(graph.dtype)

    def proto(self) -> Any:
        """All of it."""
        from onnx import TensorProto, helper

        graph, kind = self.graph, helper.np_dtype_to_tensor_dtype(self.dtype)
        outputs = []
        for output in graph.outputs:
            last = self._chain(output.steps)
            self._add("Identity", [last], output.name)
            shown = TensorProto.INT64 if output.whole else kind
            outputs.append(helper.make_tensor_value_info(output.name, shown, ["n", graph.size(output)]))
        given = helper.make_tensor_value_info("observation", kind, ["n", graph.n_inputs])
        made = helper.make_graph(self.nodes, self.name, [given], outputs, self.constants, doc_string=graph.about)
        model = helper.make_model(
            made,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="valueapprox",
            producer_version=valueapprox.__version__,
        )
        told = {"about": graph.about}
        told |= {"observation entries": json.dumps(graph.inputs)} if graph.inputs else {}
        told |= {output.name: output.meaning for output in graph.outputs}
        told |= {f"{output.name} entries": json.dumps(output.entries) for output in graph.outputs if output.entries}
        helper.set_model_props(model, told)
        return model

    def _chain(self, steps: tuple[Step, ...]) -> str:
        """What the steps give; what other outputs begin with is computed once."""
        key = tuple(map(id, steps))
        if key not in self.known:
            x, n = self._chain(steps[:-1]), self.graph.n_inputs
            for step in steps[:-1]:
                n = size_after(step, n)
            self.known[key] = self._step(steps[-1], x, n)
        return self.known[key]

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _add(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def _constant(self, values: ArrayLike, dtype: Any = None, name: str = "") -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(values, self.dtype if dtype is None else dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _cast(self, x: str, dtype: Any) -> str:
        from onnx import helper

        return self._add("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _slice(self, x: str, start: int, stop: int) -> str:
        bounds = [self._constant(np.array([value]), np.int64) for value in (start, stop, 1)]
        return self._add("Slice", [x, *bounds])

    def _step(self, step: Step, x: str, n: int) -> str:
        match step:
            case Forward():
                return self._network(step, x)
            case Standardise() | Affine():
                return self._in_float64(step, x)
            case Slice():
                return self._slice(x, step.start, step.stop)
            case Softplus():
                return self._activate("softplus", x)
            case Softmax():
                parts = [self._add("Softmax", [part], axis=1) for part in self._groups(x, step.sizes)]
                return parts[0] if len(parts) == 1 else self._add("Concat", parts, axis=1)
            case ArgMax():
                parts = [self._add("ArgMax", [part], axis=1, keepdims=1) for part in self._groups(x, step.sizes)]
                best = parts[0] if len(parts) == 1 else self._add("Concat", parts, axis=1)
                first = np.array([step.first])
                return self._add("Add", [best, self._constant(first, np.int64)]) if first.any() else best
            case Rows():
                flat = self._add("Reshape", [x, self._constant([-1], np.int64)])
                return self._add("Gather", [self._constant(step.table, np.int64), flat], axis=0)
            case Clip():
                if step.whole.any():
                    mixed = self._constant(np.array([step.whole]), np.bool_)
                    x = self._add("Where", [mixed, self._add("Round", [x]), x])
                above = self._add("Max", [x, self._constant(np.array([step.low]))])
                return self._add("Min", [above, self._constant(np.array([step.high]))])

    def _groups(self, x: str, sizes: tuple[int, ...]) -> list[str]:
        if len(sizes) == 1:
            return [x]
        starts = np.cumsum([0, *sizes]).tolist()
        return [self._slice(x, start, stop) for start, stop in itertools.pairwise(starts)]

    def _in_float64(self, step: Standardise | Affine, x: str) -> str:
        double = np.dtype(np.float64)
        x = x if self.dtype == double else self._cast(x, double)
        if isinstance(step, Standardise):
            centred = self._add("Sub", [x, self._constant(step.scaling.mean[None], double)])
            x = self._add("Div", [centred, self._constant(step.scaling.scale[None], double)])
        else:
            x = self._add("Mul", [x, self._constant(step.factor[None], double)])
            x = self._add("Add", [x, self._constant(step.shift[None], double)])
        return x if self.dtype == double else self._cast(x, self.dtype)

    # --- networks -----------------------------------------------------------------------------------------------------

    def _network(self, network: Forward, x: str) -> str:
        net = network.net
        for l, (W, b) in enumerate(net.unpack(network.w), start=1):
            given = [x, self._constant(W, name=f"{network.name}.W{l}")]
            if b is not None:
                given.append(self._constant(b, name=f"{network.name}.b{l}"))
            x = self._add("Gemm", given)
            hidden = l < net.n_layers
            if hidden and net.layer_norm:
                x = self._layer_norm(x)
            x = self._activate(net.hidden if hidden else net.output, x)
        return x

    def _layer_norm(self, x: str) -> str:
        """(psi - mean) / sqrt(variance + 1e-5), in the dtype throughout: LayerNormalization is float32 inside."""
        mean = self._add("ReduceMean", [x], axes=[1], keepdims=1)
        centred = self._add("Sub", [x, mean])
        variance = self._add("ReduceMean", [self._add("Mul", [centred, centred])], axes=[1], keepdims=1)
        sigma = self._add("Sqrt", [self._add("Add", [variance, self._constant([[EPSILON]])])])
        return self._add("Div", [centred, sigma])

    def _activate(self, name: str, x: str) -> str:
        """f(x). Elu, LeakyRelu and Softplus are written out: ONNX Runtime has those operators in float32 alone."""
        add, zero = self._add, lambda: self._constant([[0.0]])
        match name:
            case "relu":
                return add("Relu", [x])
            case "leaky_relu":
                return add("Max", [x, add("Mul", [x, self._constant([[LEAK]])])])
            case "elu":
                below = add("Sub", [add("Exp", [add("Min", [x, zero()])]), self._constant([[1.0]])])
                return add("Add", [add("Max", [x, zero()]), below])
            case "sigmoid":
                return add("Sigmoid", [x])
            case "tanh":
                return add("Tanh", [x])
            case "softplus":
                small = add("Exp", [add("Neg", [add("Abs", [x])])])
                log = add("Log", [add("Add", [small, self._constant([[1.0]])])])
                return add("Add", [add("Max", [x, zero()]), log])
            case "softmax":
                return add("Softmax", [x], axis=1)
        return x
