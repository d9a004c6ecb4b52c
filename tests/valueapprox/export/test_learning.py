"""The TD(lambda) update of a C header, beside that of the kernel: the same transitions, the same errors and weights."""

import numpy as np
import pytest
from exported import assert_close, compiled, needs_compiler

from valueapprox import (
    SGD,
    Adam,
    AdaptiveObGD,
    DecayedMax,
    Intentional,
    LinearDecay,
    Momentum,
    Network,
    ObGD,
    Predictions,
    RMSProp,
    ValueFunction,
    VarianceAdjusted,
)
from valueapprox.export import describe, to_c
from valueapprox.export.c import why_no_update

RELATIVE = {"float64": 1e-12, "float32": 1e-5}
N = 1000

NETWORKS = {
    "relu": Network((4, 16, 1)),
    "tanh_norm": Network((4, 16, 8, 1), "tanh", layer_norm=True),
    "leaky_norm": Network((4, 32, 32, 1), "leaky_relu", layer_norm=True),
    "elu": Network((3, 8, 1), "elu"),
    "sigmoid": Network((3, 8, 8, 1), "sigmoid", output="tanh"),
    "softplus": Network((2, 5, 1), "softplus", output="softplus"),
    "linear": Network((6, 1)),
    "no_bias": Network((5, 7, 1), "elu", bias=False, layer_norm=True),
    "linear_layers": Network((3, 4, 1), "linear", layer_norm=True),
    "one": Network((1, 1), bias=False),
}
OPTIMIZERS = {
    "sgd": SGD(0.005),
    "adam": Adam(),
    "momentum": Momentum(0.001),
    "rmsprop": RMSProp(1e-3),
    "decayed_max": DecayedMax(),
    "obgd": ObGD(),
    "adaptive_obgd": AdaptiveObGD(),
    "intentional": Intentional(),
    "intentional_clipped": Intentional(0.05, rms=False, clip=1.5, normalise=True),
    "variance_adjusted": VarianceAdjusted(),
}


def cases():
    """By name: value functions of each network with SGD, and of one network with every other optimizer."""
    found = {}
    for dtype in RELATIVE:
        for name, net in NETWORKS.items():
            own = Network(**{**net.as_dict(), "dtype": dtype})
            found[f"{name}_{dtype}"] = ValueFunction(own, OPTIMIZERS["sgd"], 0.95, 0.8, seed=1)
        # In float32 one of them: each is another kernel to compile.
        for name, optimizer in list(OPTIMIZERS.items())[1 : 2 if dtype == "float32" else None]:
            found[f"{name}_{dtype}"] = ValueFunction(Network((4, 16, 1), "tanh", dtype=dtype), optimizer, 0.95, 0.8)
    found["by_layer"] = ValueFunction(Network((4, 6, 1), dtype="float64"), SGD({"A": 0.02, "B": 0.002}), 1.0, 1.0)
    return found


CASES = cases()


def stream(d, n=N, seed=0):
    """Transitions with terminations and truncations, and both at once; the next state is not always the next row."""
    rng = np.random.default_rng(seed)
    s, r = rng.normal(size=(n + 1, d)), rng.normal(size=n)
    kind = rng.integers(0, 40, n)
    s_next = np.where((kind < 3)[:, None], rng.normal(size=(n, d)), s[1:])
    return s[:-1], r, s_next, np.isin(kind, (0, 2)), np.isin(kind, (1, 2))


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("c"), **CASES)


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_after_1000_updates_errors_weights_and_trace_are_those_of_the_kernel(headers, name):
    v, header = CASES[name], headers[name]
    np.testing.assert_array_equal(header.array("w"), v.w)  # numbers are read back exactly
    transitions = stream(v.net.n_inputs)
    s, _, _, terminated, truncated = transitions
    assert terminated.sum() > 10
    assert (truncated & ~terminated).sum() > 10
    before = v.w.copy()
    deltas = v.learn_stream(*transitions)
    found = [header.learn(*transition) for transition in zip(*transitions, strict=True)]
    relative = RELATIVE[v.net.dtype]
    assert np.abs(v.w - before).max() > 1e-3
    assert np.abs(v.trace).max() > 0
    assert_close(found, deltas, relative)
    assert_close(header.array("w"), v.w, relative)
    assert_close(header.array("z"), v.trace, relative)
    assert_close(header.value(s[:20])[:, 0], v.predict(s[:20]), relative)


@needs_compiler
def test_learning_goes_on_where_it_was_but_for_the_trace(tmp_path):
    learned = {
        name: ValueFunction(Network((4, 16, 1), "tanh", dtype="float64"), optimizer, 0.95, 0.8)
        for name, optimizer in OPTIMIZERS.items()
    }
    for v in learned.values():
        v.learn_stream(*stream(4, 300))
    headers = compiled(tmp_path, **learned)
    for name, v in learned.items():
        v.cut_trace()
        transitions = stream(4, 300, seed=1)
        found = [headers[name].learn(*transition) for transition in zip(*transitions, strict=True)]
        assert_close(found, v.learn_stream(*transitions), 1e-12)
        assert_close(headers[name].array("w"), v.w, 1e-12)


@needs_compiler
def test_what_is_not_finite_is_not_learned(tmp_path):
    v = ValueFunction(Network((2, 3, 1), dtype="float64"), SGD(0.1), 0.9, 0.9)
    header = compiled(tmp_path, v=v)["v"]
    assert np.isfinite(header.learn([1, 2], 1.0, [2, 1], False, False))
    before = header.array("w"), header.array("z")
    for s, r, s_next in [([np.nan, 0], 1, [0, 0]), ([0, 0], np.inf, [0, 0]), ([0, 0], 1, [0, -np.inf])]:
        for terminated in (False, True):
            assert not np.isfinite(header.learn(s, r, s_next, terminated, False))
    np.testing.assert_array_equal(before, (header.array("w"), header.array("z")))


@needs_compiler
def test_a_service_with_one_prediction_goes_on_learning(tmp_path):
    p = Predictions(Network((3, 6, 1), "tanh", dtype="float64"), SGD(0.01), (0.9,), 0.7, names=("heat",))
    header = compiled(tmp_path, p=p)["p"]
    s, r, s_next, terminated, truncated = stream(3, 200)
    errors = p.learn(0, s, r[:, None], s_next, terminated, truncated).td_errors[:, 0]
    found = [header.learn(*t) for t in zip(s, r, s_next, terminated, truncated, strict=True)]
    assert_close(found, errors, 1e-12)
    assert_close(header.array("w"), p.w[0], 1e-12)


@needs_compiler
def test_a_schedule_stays_where_it_is(tmp_path):
    net = Network((2, 3, 1), dtype="float64")
    v = ValueFunction(net, SGD(0.1, schedule=LinearDecay(100)), 0.9, 0.5)
    s, r, s_next, terminated, _ = stream(2, 90)
    v.learn_stream(s[:50], r[:50], s_next[:50], terminated[:50])
    header = compiled(tmp_path, v=v)["v"]
    half = ValueFunction(net, SGD(0.05), 0.9, 0.5)
    half.w = v.w
    found = [header.learn(*t, False) for t in zip(s, r, s_next, terminated, strict=True)]
    assert_close(found, half.learn_stream(s, r, s_next, terminated), 1e-12)
    assert "The step sizes are those that the schedule had come to" in (tmp_path / "v.h").read_text()


class OwnOptimizer(SGD):
    """One that the export does not know."""


NO_UPDATE = {
    "own_optimizer": (lambda net: ValueFunction(net, OwnOptimizer(0.1)), "the optimizer is OwnOptimizer"),
    "n_step": (lambda net: ValueFunction(net, method="n-step", n=3), "the method is n-step"),
    "clipped": (lambda net: ValueFunction(net, SGD(0.1, clip_norm=1.0)), "clip_norm is 1"),
    "several": (lambda net: Predictions(net, discounts=(0.5, 0.9), separate=True), "there are 2 predictions"),
}


@needs_compiler
@pytest.mark.parametrize("name", NO_UPDATE)
def test_without_an_update_there_is_the_forward_pass_and_the_reason(name, tmp_path):
    make, reason = NO_UPDATE[name]
    what = make(Network((2, 3, 1), dtype="float64"))
    assert reason in why_no_update(describe(what))
    header = compiled(tmp_path, it=what)["it"]
    assert not header.learns
    text = (tmp_path / "it.h").read_text()
    assert "_learn" not in text
    assert f"There is no update: {reason}" in " ".join(text.replace("\n *", "").split())
    states = np.random.default_rng(0).normal(size=(5, 2))
    found = [getattr(header, output.name)(states) for output in header.graph.outputs]
    assert_close(np.concatenate(found, axis=1), np.reshape(what.predict(states), (5, -1)), 1e-13)


def test_the_text_is_a_function_of_what_was_learned():
    v = ValueFunction(Network((2, 3, 1)), SGD(0.1))
    text = to_c(v, name="v")
    assert text == to_c(v, name="v")
    v.learn([1, 2], 1.0, [2, 1])
    assert text != to_c(v, name="v")


def test_the_header_says_what_it_is_and_how_it_is_used():
    v = ValueFunction(Network((2, 3, 1), "tanh"), SGD(0.25), 0.9, 0.5)
    text = to_c(v, name="critic")
    words = " ".join(text.replace("\n *", "").split())
    for said in (
        "x1 = tanh(s W1 + b1), yhat = x1 W2 + b2",
        "critic_learn(&v, observation, reward, next_observation, terminated, truncated);",
        "z <- gamma lambda z + grad v(s), w <- w + alpha delta z. (Sutton & Barto 2018, section 12.2; SGD.)",
        "#define CRITIC_GAMMA 0.9",
        "static const double alpha[CRITIC_LAYERS] = {0.25, 0.25};",
    ):
        assert said in words
    assert not any(mark in text for mark in "@$§")
