"""The forward pass of what is exported, in C and in ONNX Runtime, beside that of the kernels."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from exported import assert_close, compiled, in_onnx_runtime, needs_compiler, needs_onnx

from valueapprox import SGD, Network, Predictions, ValueFunction, fit
from valueapprox.export import describe, to_c, write
from valueapprox.nn import activations
from valueapprox.supervised.models import Model

RELATIVE = {"float64": 1e-13, "float32": 2e-6}
NETWORKS = {
    **{f"hidden_{name}": Network((3, 9, 2), name) for name in activations.HIDDEN},
    **{f"output_{name}": Network((3, 9, 4), output=name) for name in activations.OUTPUT},
    **{f"norm_{name}": Network((3, 7, 5, 2), name, layer_norm=True) for name in activations.HIDDEN},
    "linear": Network((5, 3)),
    "one_input": Network((1, 1), bias=False),
    "no_bias": Network((4, 6, 6, 1), bias=False, layer_norm=True),
    "deep": Network((6, 17, 13, 11, 5, 3), "tanh"),
}
CASES = {
    f"{name}_{dtype}": Network(**{**net.as_dict(), "dtype": dtype})
    for name, net in NETWORKS.items()
    for dtype in RELATIVE
}


def weights(net, seed=0):
    """With biases that are not zero."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=net.size) / np.sqrt(max(net.sizes))).astype(net.dtype)


def states(net, n=50, seed=1):
    return 2 * np.random.default_rng(seed).normal(size=(n, net.n_inputs)).astype(net.dtype)


def name_of(net):
    return "value" if net.n_outputs == 1 else "values"


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("c"), **{name: (net, weights(net)) for name, net in CASES.items()})


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_a_header_computes_what_the_network_does(headers, name):
    net = CASES[name]
    found = getattr(headers[name], name_of(net))(states(net))
    assert_close(found, net.forward(weights(net), states(net)), RELATIVE[net.dtype])


@needs_onnx
@pytest.mark.parametrize("name", CASES)
def test_a_model_computes_what_the_network_does(name):
    net = CASES[name]
    (found,) = in_onnx_runtime((net, weights(net)), states(net)).values()
    assert found.dtype == net.dtype
    assert_close(found, net.forward(weights(net), states(net)), RELATIVE[net.dtype])


def sources():
    """Everything that is no bare network, with its states, and what it should give."""
    rng = np.random.default_rng(2)
    net = Network((3, 8, 1), "tanh", dtype="float64")
    v = ValueFunction(net, SGD(0.1), seed=3)
    s = rng.normal(size=(20, 3))
    shared = Predictions(Network((3, 8, 2), dtype="float64"), discounts=(0.0, 0.9), names=("now", "later"))
    apart = Predictions(net, discounts=(0.5, 0.9), names=("in 2 steps", "in-2-steps"), separate=True, seed=4)
    one = Predictions(net, discounts=(0.5,), names=("heat",), seed=5)
    batch_norm = Network((3, 6, 2), batch_norm=True, dtype="float64")
    w = batch_norm.init(0)
    history = fit(
        batch_norm, w, rng.normal(size=(64, 3)), rng.normal(size=(64, 2)), epochs=3, batch_size=16, progress=False
    )
    classes = Network((3, 4, 3), output="softmax", dtype="float64")
    model = Model(classes, classes.init(1), ("a", "b", "c"), ("kind",), "nll", ("x", "y", "z"))
    return s, {
        "v": (v, {"value": v.predict(s)[:, None]}),
        "shared": (shared, {"values": shared.predict(s)}),
        "apart": (apart, {f"value_in_2_steps{'_2' * i}": apart.predict(s)[:, i : i + 1] for i in (0, 1)}),
        "one": (one, {"value": one.predict(s)}),
        "batch_norm": ((batch_norm, w), {"values": batch_norm.forward(w, s)}),
        "history": (history, {"values": batch_norm.forward(w, s)}),
        "model": (model, {"probabilities": model.predict(s)}),
    }


@needs_compiler
def test_value_functions_predictions_and_fits_in_c(tmp_path):
    s, whole = sources()
    headers = compiled(tmp_path, **{name: what for name, (what, _) in whole.items()})
    for name, (_, outputs) in whole.items():
        assert [output.name for output in headers[name].graph.outputs] == list(outputs)
        for output, expected in outputs.items():
            assert_close(getattr(headers[name], output)(s), expected, 1e-13)


@needs_onnx
def test_value_functions_predictions_and_fits_in_onnx():
    s, whole = sources()
    for what, outputs in whole.values():
        found = in_onnx_runtime(what, s)
        assert list(found) == list(outputs)
        for output, expected in outputs.items():
            assert_close(found[output], expected, 1e-13)


@needs_onnx
def test_a_model_says_what_its_entries_are_and_takes_any_number_of_rows():
    from valueapprox.export import to_onnx

    p = Predictions(Network((2, 3, 2)), discounts=(0.0, 0.9), names=("now", "later"))
    model = to_onnx(p, name="p")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["values entries"] == '["now", "later"]'
    assert "2 predictions, gamma 0, 0.9, of a network 2-3-2" in told["about"]
    assert [v.name for v in model.graph.input] == ["observation"]
    for n in (1, 7):
        (found,) = in_onnx_runtime(p, np.zeros((n, 2))).values()
        assert found.shape == (n, 2)


def test_what_cannot_be_described_is_said():
    net = Network((2, 1))
    with pytest.raises(TypeError, match="w is None"):
        describe(net)
    with pytest.raises(ValueError, match="w has shape"):
        describe(net, np.zeros(4))
    with pytest.raises(ValueError, match=r"w\[1\] is nan; expected a finite number"):
        describe(net, [0.0, np.nan, 0.0])
    with pytest.raises(TypeError, match="what is a int; expected a value function"):
        describe(3)
    with pytest.raises(TypeError, match="w was given with a ValueFunction"):
        describe(ValueFunction(net), [0.0, 0.0, 0.0])


def test_names_that_c_does_not_allow_are_said():
    v = ValueFunction(Network((2, 1)))
    for name, better in {"2nd": "n2nd", "double": "double_", "a-b": "a_b", "": "model", "größe": "gr_e"}.items():
        with pytest.raises(ValueError, match=f"name is '{name}'; expected a name that C allows, such as '{better}'"):
            to_c(v, name=name)


@needs_compiler
def test_names_of_columns_stay_words(tmp_path):
    names = ("*/ int x; /*", "$INPUTS @real §", "größe\nin cm", "what??/", "100%\\")
    net = Network((5, 3, 1), dtype="float64")
    model = Model(net, net.init(0), names, ("/* price */",), "squared")
    found = compiled(tmp_path, model=model)["model"]
    s = states(net)
    assert_close(found.predictions(s), model.predict(s), 1e-13)
    text = (tmp_path / "model.h").read_text()
    assert "$INPUTS @real" in text


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler is installed")
def test_a_header_is_c_plus_plus_too(tmp_path):
    net = Network((3, 4, 1), "elu", layer_norm=True)
    write(ValueFunction(net, SGD(0.1)), tmp_path / "learns.h")
    write(describe(net, weights(net)), tmp_path / "net.h")
    (tmp_path / "main.cpp").write_text('#include "learns.h"\n#include "net.h"\nint main() { return 0; }\n')
    words = ["c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "main.cpp"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_without_onnx_the_extra_is_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package onnx: pip install 'valueapprox\[onnx\]'"):
        write(ValueFunction(Network((2, 1))), tmp_path / "v.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_of_no_format_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"the suffix is '.hh'; did you mean '.h'"):
        write(ValueFunction(Network((2, 1))), tmp_path / "v.hh")
