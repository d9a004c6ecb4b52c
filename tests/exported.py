"""What is exported, run as its user would: headers compiled by a C compiler and called, models by ONNX Runtime."""

import ctypes
import shutil
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest

from valueapprox.export import describe, to_c, to_onnx
from valueapprox.export.c import why_no_update

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wdouble-promotion", "-Werror", "-pedantic"]
needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler is installed")
needs_onnx = pytest.mark.skipif(
    not (find_spec("onnx") and find_spec("onnxruntime")),
    reason="onnx and onnxruntime are not installed; pip install 'valueapprox[onnx]' brings both",
)

# Functions of a header are static: a source file that includes it gives them names to be called by.
LEARNS = """
unsigned long {n}__size(void) {{ return sizeof({n}_state); }}
void {n}__init({n}_state *v) {{ {n}_init(v); }}
{n}_real *{n}__w({n}_state *v) {{ return v->w; }}
{n}_real *{n}__z({n}_state *v) {{ return v->z; }}
{n}_real {n}__learn({n}_state *v, const {n}_real *s, {n}_real r, const {n}_real *t, int terminated, int truncated)
{{
    return {n}_learn(v, s, r, t, terminated, truncated);
}}
"""


class Header:
    """One header in a library: `header.value(states)` gives the outputs (n, k) of that name."""

    def __init__(self, library, name, graph):
        self.library, self.name, self.graph = library, name, graph
        self.dtype, self.learns = np.dtype(graph.dtype), graph.update is not None and not why_no_update(graph)
        self.real = ctypes.c_float if graph.dtype == "float32" else ctypes.c_double
        self.state = None
        if self.learns:
            self.of("_size").restype = ctypes.c_ulong
            self.state = ctypes.create_string_buffer(self.of("_size")())
            self.of("_init")(self.state)
            self.of("_learn").restype = self.real

    def of(self, function):
        return getattr(self.library, f"{self.name}_{function}")

    def __getattr__(self, output):
        (found,) = [o for o in self.graph.outputs if o.name == output]

        def call(states):
            states = np.ascontiguousarray(states, self.dtype)
            y = np.zeros((len(states), self.graph.size(found)), np.int32 if found.whole else self.dtype)
            for s, row in zip(states, y, strict=True):
                before = [self.state] if self.learns else []
                self.of(f"_{output}")(*before, s.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p))
            return y

        return call

    def learn(self, s, r, s_next, terminated, truncated):
        places = [np.ascontiguousarray(x, self.dtype) for x in (s, s_next)]
        s, s_next = (x.ctypes.data_as(ctypes.c_void_p) for x in places)
        return self.of("_learn")(self.state, s, self.real(r), s_next, int(terminated), int(truncated))

    def array(self, name):
        """w or z (P,), as a copy."""
        place = self.of(f"_{name}")
        place.restype = ctypes.POINTER(self.real)
        (network,) = self.graph.networks
        return np.ctypeslib.as_array(place(self.state), (network.net.size,)).copy()


def compiled(folder, **what):
    """Headers by name, of what they are made of, all in one library: so they also get on with each other."""
    source = []
    graphs = {name: describe(*w) if isinstance(w, tuple) else describe(w) for name, w in what.items()}
    for name, graph in graphs.items():
        (folder / f"{name}.h").write_text(to_c(graph, name=name), encoding="ascii")
        source += [f'#include "{name}.h"'] * 2  # once and again, as headers are
        learns = graph.update is not None and not why_no_update(graph)
        source += [LEARNS.format(n=name)] * learns
        for output in graph.outputs:
            kind = "int" if output.whole else f"{name}_real"
            given, before = (f"const {name}_state *v, ", "v, ") if learns else ("", "")
            call = f"{name}_{output.name}({before}s"
            body = f"*y = {call});" if graph.size(output) == 1 else f"{call}, y);"
            source.append(f"void {name}__{output.name}({given}const {name}_real *s, {kind} *y) {{ {body} }}")
    (folder / "library.c").write_text("\n".join(source) + "\n")
    words = [CC, *FLAGS, "-shared", "-fPIC", "library.c", "-o", "library.so", "-lm"]
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    library = ctypes.CDLL(str(folder / "library.so"))
    return {name: Header(library, name, graph) for name, graph in graphs.items()}


def in_onnx_runtime(what, states):
    """Outputs by name, of the model as it is read back from its bytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = (to_onnx(*what) if isinstance(what, tuple) else to_onnx(what)).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (given,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[given.type]
    return dict(zip(names, session.run(None, {given.name: np.asarray(states, dtype)}), strict=True))


def assert_close(found, expected, relative):
    """Entries differ by at most so much, as a share of the largest."""
    assert np.shape(found) == np.shape(expected)
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()
