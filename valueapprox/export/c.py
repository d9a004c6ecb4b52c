"""One header in C99 that needs nothing but math.h: the forward pass, and for a value function the TD(lambda) update.

The code is put together from `c_pieces`; marks in it (@, $ and §) are replaced at the end. Arithmetic is in the
network's dtype and in the order of the formulas, so that results agree with those of the compiled kernels, which sum in
another order, to rounding.
"""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import valueapprox
from valueapprox.export.c_pieces import (
    ACCUMULATE,
    ACTIVATE,
    ACTIVATE_BACK,
    ACTIVATIONS,
    AFFINE,
    ARGMAX,
    LEARN,
    NORMALISE,
    NORMALISE_BACK,
    RULES,
    SOFTMAX,
    STATE,
    TRANSPOSE,
)
from valueapprox.export.graph import (
    Affine,
    ArgMax,
    Clip,
    Forward,
    Graph,
    Output,
    Rows,
    Slice,
    Softmax,
    Softplus,
    Standardise,
    Step,
    Update,
    describe,
    identifier,
    size_after,
)
from valueapprox.nn.network import Network
from valueapprox.optim import Optimizer

__all__ = ["to_c", "why_no_update"]

WIDTH = 116
HIDDEN = {"@": "\ue000", "$": "\ue001"}  # where a person's words have a mark

# --- the header -------------------------------------------------------------------------------------------------------


def why_no_update(graph: Graph) -> str:
    """Why the header of a graph has no update, where somebody might expect one; empty if it has one."""
    if graph.update is None:
        return graph.no_update
    optimizer = graph.update.optimizer
    if type(optimizer) not in RULES:
        known = ", ".join(cls.__name__ for cls in RULES)
        return f"the optimizer is {type(optimizer).__name__}; the update can be exported with {known}"
    for name in ("clip_norm", "clip_layer_norm"):
        if getattr(optimizer, name) is not None:
            return f"{name} is {getattr(optimizer, name):g}; the update can be exported without clipping"
    return ""


def to_c(what: Any, w: ArrayLike | None = None, *, name: str = "model") -> str:
    """The text of a C99 header.

    It has a function for each output, and for a value function that learns by TD(lambda) with one of the optimizers in
    `c_pieces.RULES` also the update, of a struct that holds weights, trace and moments. It goes on where learning
    stood, but with no trace, and with step sizes that stay where the schedule has brought them. A header without an
    update says why.

    Parameters
    ----------
    what, w
        As for `describe`.
    name
        With which every name in the header starts: a C identifier.

    Returns
    -------
    str
        ASCII. Numbers are written so that they are read back exactly.

    Raises
    ------
    TypeError, ValueError
        If it cannot be exported, or the name is none in C.
    """
    if identifier(name) != name:
        raise ValueError(f"name is {name!r}; expected a name that C allows, such as {identifier(name)!r}")
    return _Header(describe(what, w), name).text()


class _Header:
    """One header, piece by piece."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.update = None if graph.update is None or why_no_update(graph) else graph.update
        self.single = graph.dtype == "float32"

    def text(self) -> str:
        """All of it."""
        guard = [f"#ifndef {self.name.upper()}_H", f"#define {self.name.upper()}_H", "", "#include <math.h>", ""]
        pieces = [self._comment(), "\n".join([*guard, *self._macros(), ""]), *self._helpers()]
        for network in self.graph.networks:
            pieces += [self._array("@_real", f"@_{network.name}_w", network.w), self._network(network)]
        if self.update is not None:
            (network,), rule = self.graph.networks, RULES[type(self.update.optimizer)]
            for m, values in zip(rule.moments, self.update.moments, strict=True):
                pieces += [self._array("@_real", f"@_{network.name}_{m}", values)] * (m != "g")
            pieces.append(self._state(self.update))
        pieces += [self._function(output) for output in self.graph.outputs]
        if self.update is not None:
            pieces += self._learning(self.update)
        body = "\n".join(piece.strip("\n") + "\n" for piece in pieces)
        marks = {"@": self.name, "$": self.name.upper(), "§": "f" * self.single}
        for mark, word in (marks | {hidden: mark for mark, hidden in HIDDEN.items()}).items():
            body = body.replace(mark, word)
        return f"{body}\n#endif\n"

    # --- words --------------------------------------------------------------------------------------------------------

    def _comment(self) -> str:
        graph = self.graph
        lines = [f"{self.name}.h: {graph.about}.", f"Written by valueapprox {valueapprox.__version__}.", ""]
        for network in graph.networks:
            sizes = "-".join(map(str, network.net.sizes))
            lines += [f"{network.name} {sizes}: {formula(network)}", ""]
        if any(isinstance(step, Standardise) for output in graph.outputs for step in output.steps):
            lines += ["s = (observation - mean) / scale, with the normaliser's statistics as they were.", ""]
        lines.append(f"observation ({graph.n_inputs},)" + f": {', '.join(graph.inputs)}" * bool(graph.inputs))
        for output in graph.outputs:
            n = graph.size(output)
            entries = f": {', '.join(output.entries)}" if n > 1 and output.entries else ""
            lines.append(f"{output.name} ({n},): {output.meaning}{entries}")
        lines += ["", "Use:", "", *(f"    {line}" for line in self._usage())]
        if self.update is not None:
            rule = RULES[type(self.update.optimizer)].formula
            lines += ["", "The update is TD(lambda): delta = r + gamma v(s') - v(s), z <- gamma lambda z + grad v(s), "]
            lines[-1] += f"{rule}. (Sutton & Barto 2018, section 12.2; {type(self.update.optimizer).__name__}.)"
            if self.update.optimizer.schedule.code:
                lines.append("The step sizes are those that the schedule had come to; here they stay.")
        elif why := why_no_update(graph):
            lines += ["", f"There is no update: {why}."]
        return "\n".join(["/*", *(f" * {line}".rstrip() for text in lines for line in _wrapped(_safe(text))), " */"])

    def _usage(self) -> list[str]:
        real = self.graph.dtype.replace("float32", "float").replace("float64", "double")
        lines = [f'#include "{self.name}.h"', f"{real} observation[{self.graph.n_inputs}] = {{...}};"]
        state = ""
        if self.update is not None:
            lines += [f"static {self.name}_state v;", f"{self.name}_init(&v);"]
            state = "&v, "
        for output in self.graph.outputs:
            n, kind = self.graph.size(output), "int" if output.whole else real
            call = f"{self.name}_{output.name}({state}observation"
            made = f"{kind} {output.name}"
            lines.append(f"{made} = {call});" if n == 1 else f"{made}[{n}]; {call}, {output.name});")
        if self.update is not None:
            lines.append(f"{self.name}_learn(&v, observation, reward, next_observation, terminated, truncated);")
        return lines

    def _macros(self) -> list[str]:
        graph = self.graph
        lines = [f"typedef {'float' if self.single else 'double'} @_real;", "", f"#define $_INPUTS {graph.n_inputs}"]
        lines += [f"#define $_{output.name.upper()}_SIZE {graph.size(output)}" for output in graph.outputs]
        if self.update is not None:
            (network,), optimizer = graph.networks, self.update.optimizer
            numbers = {"GAMMA": self.update.gamma, "LAMBDA": self.update.lam}
            own = zip(_own_names(optimizer), optimizer.own_settings, strict=True)
            numbers |= {name.upper(): number for name, number in own}
            lines += [f"#define $_LAYERS {network.net.n_layers}", f"#define $_PARAMETERS {network.net.size}"]
            lines += [f"#define $_{name} {number!r}" for name, number in numbers.items()]
        return lines

    # --- networks -----------------------------------------------------------------------------------------------------

    def _helpers(self) -> list[str]:
        """The functions that the networks and steps below call, each once."""
        nets = [network.net for network in self.graph.networks]
        steps = [step for output in self.graph.outputs for step in output.steps]
        learns = self.update is not None
        hidden = {net.hidden for net in nets if net.n_layers > 1}
        used = hidden | {net.output for net in nets}
        normalised = any(net.layer_norm and net.n_layers > 1 for net in nets)
        pieces = [AFFINE] + [NORMALISE] * normalised
        for name, (value, slope) in ACTIVATIONS.items():
            wanted = name in used or (name == "softplus" and any(isinstance(step, Softplus) for step in steps))
            pieces += [ACTIVATE.format(name=name, value=value)] * wanted
            pieces += [ACTIVATE_BACK.format(name=name, slope=slope)] * (name in used and learns)
        pieces += [SOFTMAX] * ("softmax" in used or any(isinstance(step, Softmax) for step in steps))
        pieces += [ARGMAX] * any(isinstance(step, ArgMax) for step in steps)
        if learns:
            pieces += [TRANSPOSE] * bool(hidden) + [NORMALISE_BACK] * normalised + [ACCUMULATE]
        return pieces

    def _network(self, network: Forward) -> str:
        net, name = network.net, network.name
        hidden = range(1, net.n_layers)
        fields = [f"x{l}[{net.sizes[l]}]" for l in range(net.n_layers)]
        if net.layer_norm:
            fields += [f"hat{l}[{net.sizes[l]}], inv{l}" for l in hidden]
        lines = [f"    for (int i = 0; i < {net.n_inputs}; i++) p->x0[i] = s[i];"]
        for l, (n, m) in enumerate(zip(net.sizes, net.sizes[1:], strict=False), start=1):
            last = l == net.n_layers
            x = "yhat" if last else f"p->x{l}"
            lines.append(f"    @_affine(w + {net.bounds[l - 1]}, p->x{l - 1}, {n}, {m}, {int(net.bias)}, {x});")
            if net.layer_norm and not last:
                lines.append(f"    p->inv{l} = @_normalise({x}, {m}, p->hat{l});")
            activation = net.output if last else net.hidden
            lines += [f"    @_{activation}({x}, {m});"] * (activation != "linear")
        return "\n".join([
            "/* What a forward pass computes: units' outputs of each layer, inputs first. */",
            f"typedef struct {{\n    @_real {', '.join(fields)};\n}} @_{name}_pass;",
            "",
            f"static inline void @_{name}_forward(const @_real *w, const @_real *s, @_{name}_pass *p, @_real *yhat)",
            "{",
            *lines,
            "}",
        ])  # fmt: skip

    def _array(self, kind: str, name: str, values: np.ndarray) -> str:
        shown = [str(int(v)) for v in values.flat] if kind == "int" else [self._number(v) for v in values.flat]
        body = textwrap.fill(", ".join(shown), WIDTH, initial_indent="    ", subsequent_indent="    ")
        return f"static const {kind} {name}[{values.size}] = {{\n{body}\n}};"

    def _number(self, value: Any) -> str:
        """A constant of the network's dtype: the shortest that is read back exactly."""
        return f"{np.float32(value)!s}f" if self.single else str(np.float64(value))

    # --- outputs ------------------------------------------------------------------------------------------------------

    def _function(self, output: Output) -> str:
        graph, n = self.graph, self.graph.size(output)
        kind = "int" if output.whole else "@_real"
        given = "const @_state *v, const @_real *observation" if self.update else "const @_real *observation"
        answer = (kind, "") if n == 1 else ("void", f", {kind} *out")
        lines = [
            f"/* {output.name}: {_safe(output.meaning)}. */",
            f"static inline {answer[0]} @_{output.name}({given}{answer[1]})",
            "{",
        ]
        x, size = "observation", graph.n_inputs
        for i, step in enumerate(output.steps, start=1):
            before, size, y = size, size_after(step, size), f"y{i}"
            whole = isinstance(step, ArgMax | Rows)
            lines.append(f"    {'int' if whole else '@_real'} {y}[{size}];")
            lines += [f"    {line}" for line in self._step(output, i, step, x, before, y)]
            x = y
        lines.append(f"    return {x}[0];" if n == 1 else f"    for (int j = 0; j < {n}; j++) out[j] = {x}[j];")
        return "\n".join([*lines, "}"])

    def _step(self, output: Output, i: int, step: Step, x: str, n: int, y: str) -> list[str]:
        """Lines that make y, which is there, of the n numbers in x."""
        size = size_after(step, n)
        each = f"for (int j = 0; j < {size}; j++) {y}[j] = "

        def table(name: str, values: np.ndarray, kind: str = "double") -> str:
            shown = [str(int(v)) if kind == "int" else _double(v) for v in values.flat]
            return f"static const {kind} {name}{i}[{values.size}] = {{{', '.join(shown)}}};"

        match step:
            case Standardise():
                constants = [table("mean", step.scaling.mean), table("scale", step.scaling.scale)]
                return [*constants, f"{each}(@_real)(((double){x}[j] - mean{i}[j]) / scale{i}[j]);"]
            case Forward():
                weights = "v->w" if self.update else f"@_{step.name}_w"
                return [f"@_{step.name}_pass p{i};", f"@_{step.name}_forward({weights}, {x}, &p{i}, {y});"]
            case Slice():
                return [f"{each}{x}[{step.start} + j];"]
            case Affine():
                constants = [table("shift", step.shift), table("factor", step.factor)]
                return [*constants, f"{each}(@_real)(shift{i}[j] + factor{i}[j] * (double){x}[j]);"]
            case Softplus():
                return [f"{each}{x}[j];", f"@_softplus({y}, {size});"]
            case Softmax():
                starts = np.cumsum([0, *step.sizes[:-1]]).tolist()
                calls = [f"@_softmax({y} + {start}, {m});" for start, m in zip(starts, step.sizes, strict=True)]
                return [f"{each}{x}[j];", *calls]
            case ArgMax():
                starts = np.cumsum([0, *step.sizes[:-1]]).tolist()
                groups = enumerate(zip(starts, step.sizes, step.first, strict=True))
                return [f"{y}[{e}] = {first} + @_argmax({x} + {start}, {m});" for e, (start, m, first) in groups]
            case Rows():
                return [table("row", step.table, "int"), f"{each}row{i}[{x}[0] * {size} + j];"]
            case Clip():
                lines = [table("low", step.low), table("high", step.high), table("whole", step.whole, "int")]
                lines.append(f"for (int j = 0; j < {size}; j++) {{")
                lines.append(f"    const double a = whole{i}[j] ? rint((double){x}[j]) : (double){x}[j];")
                lines.append(f"    {y}[j] = (@_real)(a < low{i}[j] ? low{i}[j] : a > high{i}[j] ? high{i}[j] : a);")
                return [*lines, "}"]

    # --- learning -----------------------------------------------------------------------------------------------------

    def _state(self, update: Update) -> str:
        (network,) = self.graph.networks
        names = network.net.layer_names
        factor = update.optimizer.schedule.factor(update.n_updates)
        rule, net = RULES[type(update.optimizer)], network.name
        first = {m: "0.0§" if m == "g" else f"@_{net}_{m}[p]" for m in rule.moments}
        numbers = dict(zip(rule.scalars, update.scalars, strict=False))
        return STATE.format(
            net=net,
            moments="".join(f"    @_real {m}[$_PARAMETERS];\n" for m in first),
            moments_of="".join(f"        v->{m}[p] = {value};\n" for m, value in first.items()),
            scalars="".join(f"    double {name};\n" for name in numbers),
            scalars_of="".join(f"    v->{name} = {_double(number)};\n" for name, number in numbers.items()),
            n_updates=min(update.n_updates, 2**32 - 1),  # a long may have 32 bits
            bounds=", ".join(map(str, network.net.bounds)),
            alphas=", ".join(_double(alpha * factor) for alpha in update.optimizer.layer_alphas(names)),
        )

    def _learning(self, update: Update) -> list[str]:
        (network,) = self.graph.networks
        net, L = network.net, network.net.n_layers
        declared = [f"    @_real d{l}[{net.sizes[l]}];" for l in range(1, L)]
        backward = [f"    @_{net.output}_back(&now, d{L}, 1);"] * (net.output != "linear")
        for l in range(L, 1, -1):
            n, m = net.sizes[l - 1], net.sizes[l]
            backward.append(f"    @_transpose(v->w + {net.bounds[l - 1]}, d{l}, {n}, {m}, d{l - 1});")
            if net.hidden != "linear":
                backward.append(f"    @_{net.hidden}_back(p.x{l - 1}, d{l - 1}, {n});")
            if net.layer_norm:
                backward.append(f"    @_normalise_back(p.hat{l - 1}, p.inv{l - 1}, d{l - 1}, {n});")
        kept = "g" in RULES[type(update.optimizer)].moments
        accumulate = []
        if kept:
            accumulate.append("    for (int i = 0; i < $_PARAMETERS; i++) v->g[i] = 0.0§;")
            accumulate += [f"    @_accumulate(v->g + {layer}" for layer in self._layers(net, "1.0§")]
        accumulate.append("    /* z <- gamma lambda z + grad v(s) */")
        accumulate.append("    const @_real decay = (@_real)(v->gamma * v->lambda);")
        accumulate += [f"    @_accumulate(v->z + {layer}" for layer in self._layers(net, "decay")]
        learn = LEARN.format(
            net=network.name,
            derivatives="\n".join([*declared, f"    @_real d{L}[1] = {{1.0§}};"]),
            backward="\n".join(backward) or "    /* There is but one layer, and it is linear. */",
            accumulate="\n".join(accumulate),
        )
        rule = RULES[type(update.optimizer)]
        words = "\n * ".join(_wrapped(f"{rule.formula}."))
        return [f"/* {words} */\n{rule.code.strip()}", learn]

    def _layers(self, net: Network, decay: str) -> list[str]:
        """The rest of the calls of accumulate, layer by layer."""
        return [
            f"{net.bounds[l]}, {decay}, p.x{l}, d{l + 1}, {net.sizes[l]}, {net.sizes[l + 1]}, {int(net.bias)});"
            for l in range(net.n_layers)
        ]


# --- words ------------------------------------------------------------------------------------------------------------


def formula(network: Forward) -> str:
    """What a network computes, in a line."""
    net, parts, x = network.net, [], "s"
    for l in range(1, net.n_layers + 1):
        last = l == net.n_layers
        psi = f"{x} W{l}" + f" + b{l}" * net.bias
        f = net.output if last else net.hidden
        if net.layer_norm and not last:
            psi = f"LayerNorm({psi})"
        x = "yhat" if last else f"x{l}"
        parts.append(f"{x} = {psi if f == 'linear' else f'{f}({psi})'}")
    return ", ".join(parts)


def _own_names(optimizer: Optimizer) -> list[str]:
    shared = {f.name for f in fields(Optimizer)}
    return [f.name for f in fields(optimizer) if f.name not in shared]


def _double(value: Any) -> str:
    """A constant of float64: the shortest that is read back exactly."""
    return str(np.float64(value)).replace("inf", "HUGE_VAL")


def _safe(text: str) -> str:
    """A text that ends no comment and begins none, in ASCII and one line."""
    plain = "".join(c if c.isprintable() else " " for c in text).encode("ascii", "backslashreplace").decode()
    for found, written in (("*/", "* /"), ("/*", "/ *"), ("??", "? ?"), *HIDDEN.items()):
        plain = plain.replace(found, written)
    return plain


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 4) or [""]
