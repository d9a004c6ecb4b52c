"""Predictions: one of them is ValueFunction bit for bit; several agree with NumPy, by hand and with each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    RMSProp,
    ValueFunction,
    VarianceAdjusted,
)
from valueapprox.service import Service, ServiceSettings, Transitions
from valueapprox.td import base as td
from valueapprox.td.predictions import Predictions

EVERY_OPTIMIZER = [
    SGD((0.01, 0.02), schedule=LinearDecay(80)),
    SGD(0.01, clip_norm=0.5, clip_layer_norm=0.3),
    Momentum(0.001),
    RMSProp({"A": 1e-3, "B": 1e-4}),
    Adam(),
    DecayedMax(),
    ObGD(),
    AdaptiveObGD(),
    Intentional(),
    VarianceAdjusted(),
]


def experience(n, k=1, streams=1, seed=0, d=3):
    """stream (n,), s (n, d), c (n, k), s' (n, d), terminated, truncated (n,); one in five ends, some in both ways."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, n)) < 0.1
    return (
        rng.integers(0, streams, n),
        *(rng.normal(size=shape) for shape in ((n, d), (n, k), (n, d))),
        terminated,
        truncated,
    )


# --- one prediction is a value function -------------------------------------------------------------------------------


def in_float32(optimizer, *dtype):
    """An optimizer is compiled for each type of the weights: in float32 three kinds of memory, and in full all."""
    few = isinstance(optimizer, (SGD, Adam, Intentional))
    return pytest.param(optimizer, *dtype, marks=() if few else pytest.mark.full)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [pair for o in EVERY_OPTIMIZER for pair in ((o, "float64"), in_float32(o, "float32"))],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_one_prediction_learns_as_a_value_function_does_bit_for_bit(optimizer, dtype, separate):
    net = Network((3, 8, 1), "tanh", layer_norm=True, dtype=dtype)
    v = ValueFunction(net, optimizer, 0.9, 0.8, seed=3, streams=2)
    p = Predictions(net, optimizer, (0.9,), 0.8, separate=separate, seed=3, streams=2)
    v.norms_every = p.norms_every = 7
    stream, s, c, s_next, terminated, truncated = experience(120, streams=2)
    errors = [
        v.learn(s[t], c[t, 0], s_next[t], bool(terminated[t]), bool(truncated[t]), stream=int(stream[t]))
        for t in range(120)
    ]
    learned = p.learn(stream, s, c, s_next, terminated, truncated)
    assert p.w.dtype == dtype
    np.testing.assert_array_equal(p.w[0], v.w)
    np.testing.assert_array_equal(p.traces[:, 0], v.traces)
    np.testing.assert_array_equal(learned.td_errors[:, 0], errors)
    np.testing.assert_array_equal(p.predict(s)[:, 0], v.predict(s))
    assert (learned.status == td.LEARNED).all()
    assert p.n_transitions == v.n_transitions == 120
    assert p.diagnostics() == pytest.approx(v.diagnostics())


def test_separate_networks_are_so_many_value_functions():
    net, gammas, lams = Network((3, 8, 1), dtype="float64"), (0.0, 0.9, 0.99), (0.0, 0.5, 1.0)
    p = Predictions(net, Intentional(), gammas, lams, separate=True, seed=5)
    rng = np.random.default_rng(5)  # the networks are drawn one after the other
    values = [ValueFunction(net, Intentional(), g, l, seed=rng) for g, l in zip(gammas, lams, strict=True)]
    stream, s, c, s_next, terminated, truncated = experience(100, 3)
    p.learn(stream, s, c, s_next, terminated, truncated)
    for i, v in enumerate(values):
        v.learn_stream(s, c[:, i], s_next, terminated, truncated)
        np.testing.assert_array_equal(p.w[i], v.w)
        np.testing.assert_array_equal(p.traces[0, i], v.trace)
        np.testing.assert_array_equal(p.predict(s)[:, i], v.predict(s))


# --- several of one network -------------------------------------------------------------------------------------------


def twin(net, w, optimizer, lams, gamma, stream, s, c, s_next, terminated, truncated, discounts, cut):
    """The same in NumPy, with gradients from `Network.backpropagate`; gamma (k,) before a stream's first transition."""
    k = len(lams)
    traces, inward = np.zeros((max(stream) + 1, k, net.size)), np.tile(gamma, (max(stream) + 1, 1))
    state, errors = optimizer.init(w), []
    for t, i in enumerate(stream):
        if cut[t]:
            traces[i] = 0
        v_next = np.zeros(k) if terminated[t] else net.forward(w, s_next[t])
        delta = c[t] + discounts[t] * v_next - net.forward(w, s[t])
        for o in range(k):
            gradient = net.pack([(layer.dH_dW, layer.dH_db) for layer in net.backpropagate(w, s[t], o)])
            traces[i, o] = inward[i, o] * lams[o] * traces[i, o] + gradient
        optimizer.step(net, w, delta @ traces[i], state)
        inward[i] = discounts[t]
        if terminated[t] or truncated[t]:
            traces[i] = 0
        errors.append(delta)
    return traces, errors


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER[:6], ids=lambda optimizer: type(optimizer).__name__)
def test_several_predictions_of_one_network_agree_with_numpy(optimizer):
    net, gamma, lams = Network((3, 6, 4), dtype="float64"), (0.0, 0.5, 0.9, 1.0), (0.3, 0.0, 0.9, 1.0)
    given = experience(60, 4, streams=3)
    rng = np.random.default_rng(1)
    discounts, cut = rng.choice([0.0, 0.7, 0.95], (60, 4)), rng.random(60) < 0.1
    p = Predictions(net, optimizer, gamma, lams, streams=3)
    w = p.w[0].copy()
    learned = p.learn(*given, discounts=discounts, cut=cut)
    traces, errors = twin(net, w, optimizer, lams, gamma, *given, discounts, cut)
    np.testing.assert_allclose(p.w[0], w, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(p.traces, traces, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(learned.td_errors, errors, rtol=1e-10, atol=1e-12)


def test_two_horizons_of_one_linear_network_by_hand():
    # v_i(s) = w_i . s, alpha = 0.5, gamma lambda = (0.25, 0.5). From w = 0:
    # s = (1, 0), c = (2, 4):   delta = (2, 4),  z = e_0 for both,      w_1 = (1, 0),  w_2 = (2, 0)
    # s = (0, 1), c = (1, 1), s' = (1, 0): delta = (1 + 0.5 * 1, 1 + 1 * 2) = (1.5, 3);
    #   z_1 = (0.25, 1), z_2 = (0.5, 1):  w_1 = (1 + 0.1875, 0.75), w_2 = (2 + 0.75, 1.5)
    p = Predictions(Network((2, 2), bias=False, dtype="float64"), SGD(0.5), (0.5, 1.0), 0.5, init="zeros")
    learned = p.learn(0, np.eye(2), [[2, 4], [1, 1]], [[0, 1], [1, 0]])
    np.testing.assert_allclose(learned.td_errors, [[2, 4], [1.5, 3]])
    # W[i, j] leads from input i to prediction j
    np.testing.assert_allclose(p.w[0].reshape(2, 2), [[1.1875, 2.75], [0.75, 1.5]])


@pytest.mark.parametrize("separate", [False, True])
def test_a_trace_decays_with_the_discount_of_the_transition_into_the_state(separate):
    # lambda = 1, discounts 0.25 then 0.5: at the second transition z = 0.25 e_0 + e_1, and at the third
    # z = 0.5 (0.25 e_0 + e_1) + e_2.
    net = Network((3, 1 if separate else 2), bias=False, dtype="float64")
    p = Predictions(net, SGD(0.0), (0.9, 0.9), 1.0, separate=separate)
    s = np.eye(3)
    p.learn(0, s, np.zeros((3, 2)), np.roll(s, -1, axis=0), discounts=[[0.25, 1.0], [0.5, 0.0], [0.7, 0.7]])
    first = p.traces[0, 0] if separate else p.traces[0, 0].reshape(3, 2)[:, 0]
    second = p.traces[0, 1] if separate else p.traces[0, 1].reshape(3, 2)[:, 1]
    np.testing.assert_allclose(first, [0.125, 0.5, 1])
    np.testing.assert_allclose(second, [0, 0, 1])  # the discount 0 ended this prediction, not the stream


def test_an_episode_after_a_terminal_discount_of_zero_decays_as_a_first_one():
    # The episode ends with discount 0; in the next one gamma lambda = 0.9 * 0.5 decays from its second state on.
    p = Predictions(Network((2, 1), bias=False, dtype="float64"), SGD(0.0), (0.9,), 0.5)
    p.learn(0, [[1, 1]], [[1]], [[0, 0]], True, discounts=[[0.0]])
    assert (p.traces == 0).all()
    p.learn(0, np.eye(2), [[0], [0]], np.eye(2))
    np.testing.assert_allclose(p.traces[0, 0], [0.45, 1])


def test_streams_do_not_touch_each_others_traces():
    p = Predictions(Network((2, 1), bias=False, dtype="float64"), SGD(0.0), (0.5,), 1.0, streams=2)
    p.learn([0, 1, 0], [[1, 0], [5, 5], [0, 1]], [[0]] * 3, [[0, 0]] * 3)
    np.testing.assert_allclose(p.traces[:, 0], [[0.5, 1], [5, 5]])
    p.cut_traces(1)
    np.testing.assert_allclose(p.traces[:, 0], [[0.5, 1], [0, 0]])


def test_a_constant_signal_is_predicted_by_its_horizon():
    # c = 1 for ever: v = 1 / (1 - gamma) = 1, 2, 10
    p = Predictions(Network((1, 3), bias=False, dtype="float64"), SGD(0.1), (0.0, 0.5, 0.9), 0.0)
    p.learn(0, np.ones((2000, 1)), np.ones((2000, 3)), np.ones((2000, 1)))
    np.testing.assert_allclose(p.predict([1.0]), [1, 2, 10], rtol=1e-6)


def test_all_at_once_is_one_after_the_other():
    net = Network((3, 6, 2), dtype="float64")
    given = experience(40, 2, streams=3)
    at_once, one_by_one = (Predictions(net, Adam(), (0.5, 0.9), 0.8, streams=3) for _ in range(2))
    at_once.learn(*given)
    for t in range(40):
        one_by_one.learn(*(array[t : t + 1] for array in given))
    np.testing.assert_array_equal(at_once.w, one_by_one.w)
    np.testing.assert_array_equal(at_once.traces, one_by_one.traces)


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "cumulant", "state"),
    [
        (SGD(0.1), 3e38, 3e38),  # delta v(s') overflows
        (SGD(0.1), 1e30, 1.0),  # a finite TD error, but weights of 1e29 would give infinite values
        (Adam(), 1e25, 1.0),  # the square of the TD error overflows in Adam's second moment
    ],
)
def test_an_update_that_overflows_is_refused_and_changes_only_the_streams_trace(optimizer, cumulant, state):
    p = Predictions(Network((3, 8, 2)), optimizer, (0.9, 0.5), 0.9, streams=2)
    given = experience(20, 2, streams=2)
    p.learn(*given)
    arrays = {name: array.copy() for name, array in p.state_dict()[0].items()}
    learned = p.learn(1, [[state, 0, 0]], [[cumulant, 1.0]], [[0, 0, 0]])
    assert learned.status.tolist() == [td.DIVERGED]
    assert np.isnan(learned.td_errors).all()
    after, _ = p.state_dict()
    assert (arrays["traces"][1] != 0).any()
    arrays["traces"][1], arrays["inward"][1] = 0, (0.9, 0.5)
    for name, array in arrays.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    assert (p.learn(*given).status == td.LEARNED).all()


@pytest.mark.parametrize("reason", ["TD error", "weight", "moment"])
@pytest.mark.parametrize(
    "optimizer", [*map(in_float32, EVERY_OPTIMIZER)], ids=lambda optimizer: type(optimizer).__name__
)
def test_a_refused_update_leaves_everything_as_it_was_but_the_trace(optimizer, reason):
    # Separate networks: the first one has learned when the second one's update is found to overflow.
    p, twin = (Predictions(Network((3, 8, 1)), optimizer, (0.9, 0.5), 0.9, separate=True, streams=2) for _ in range(2))
    for learner in (p, twin):
        learner.norms_every = 1
        learner.learn(*experience(30, 2, streams=2))
    if reason == "weight":  # not this update, but the weights after it are beyond the limit
        p.w[1, -1] = twin.w[1, -1] = 1.1 * p.limit
    before = {name: array.copy() for name, array in p.state_dict()[0].items()}
    assert (before["traces"][1] != 0).any()
    if "Intentional" in type(optimizer).__name__:
        assert (before["scalars"][:, :2] != [0, 1]).all()
    # 1e25: its square overflows in float32 where there is a second moment; a bounded step learns from it
    cumulant = {"TD error": 3e38, "weight": 1.0, "moment": 1e25}[reason]
    given = (1, [[0.3 if reason != "TD error" else 3e38, 0, 0]], [[1.0, cumulant]], [[0, 0, 0]])
    learned = p.learn(*given)
    if learned.status.tolist() != [td.DIVERGED]:
        assert reason == "moment"
        assert all(np.isfinite(array).all() for array in p.state_dict()[0].values())
        return
    before["traces"][1], before["inward"][1] = 0, (0.9, 0.5)
    for name, array in before.items():
        np.testing.assert_array_equal(p.state_dict()[0][name], array, err_msg=name)
    if reason != "weight":
        twin.cut_traces(1)
        again = experience(30, 2, streams=2, seed=1)
        np.testing.assert_array_equal(p.learn(*again).td_errors, twin.learn(*again).td_errors)
        for name, array in twin.state_dict()[0].items():
            np.testing.assert_array_equal(p.state_dict()[0][name], array, err_msg=name)


def test_the_rest_of_a_batch_goes_on_after_a_divergence():
    p = Predictions(Network((1, 1), bias=False), SGD(0.5), (0.0,), init="zeros")
    learned = p.learn(0, [[1], [1], [1]], [[1], [1e30], [1]], [[0]] * 3)
    assert learned.status.tolist() == [td.LEARNED, td.DIVERGED, td.LEARNED]
    assert p.w[0, 0] == 0.75  # 0 -> 0.5 -> 0.75
    assert p.n_transitions == 2


# --- gradients, norms, files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
def test_input_gradients_are_those_of_the_network(separate):
    net = Network((3, 6, 1 if separate else 2), "tanh", dtype="float64")
    p = Predictions(net, discounts=(0.5, 0.9), separate=separate)
    s = np.random.default_rng(0).normal(size=(5, 3))
    for o in range(2):
        w, output = (p.w[o], 0) if separate else (p.w[0], o)
        expected = [net.input_gradient(w, row, output) for row in s]
        np.testing.assert_array_equal(p.input_gradients(s, o), expected)
    with pytest.raises(ValueError, match="output is 2; expected a prediction from 0 to 1"):
        p.input_gradients(s, 2)


def test_diagnostics_are_taken_over_all_predictions():
    # One linear layer, s = (3, 4): grad v_i = s in the column of i, so sqrt(2 * 25); the trace is that gradient.
    # delta = (1, 2), alpha = 0.1: dw = 0.1 * 5 * (1, 2) -> ||dw|| = 0.5 sqrt(5) = ||w||, from w = 0.
    net = Network((2, 2), bias=False, dtype="float64")
    p = Predictions(net, SGD(0.1), (0.5, 0.9), names=("soon", "late"), init="zeros")
    p.norms_every = 1
    p.learn(0, [[3, 4]], [[1, 2]], [[0, 0]])
    expected = {
        "td_error/mean/soon": 1,
        "td_error/rms/soon": 1,
        "td_error/mean/late": 2,
        "td_error/rms/late": 2,
        "grad_norm/W1": 50**0.5,
        "trace_norm/W1": 50**0.5,
        "update_ratio/W1": 1,
        "weight_norm/W1": 0.5 * 5**0.5,
    }
    assert p.diagnostics() == pytest.approx(expected)
    assert p.diagnostics().keys() == {"weight_norm/W1"}


@pytest.mark.parametrize("separate", [False, True])
def test_learning_goes_on_from_a_state_bit_for_bit(separate):
    net = Network((3, 6, 1 if separate else 2), dtype="float64")
    p = Predictions(net, Adam(), (0.5, 0.9), 0.8, names=("a", "b"), separate=separate, streams=4)
    p.norms_every = 3
    p.learn(*experience(30, 2, streams=3))
    arrays, settings = p.state_dict(streams=3)  # the fourth was never used
    again = Predictions.from_state({name: array.copy() for name, array in arrays.items()}, settings)
    more = experience(30, 2, streams=4, seed=1)
    np.testing.assert_array_equal(p.learn(*more).td_errors, again.learn(*more).td_errors)
    for name, array in p.state_dict()[0].items():
        np.testing.assert_array_equal(again.state_dict()[0][name], array, err_msg=name)
    assert p.diagnostics() == again.diagnostics()
    with pytest.raises(ValueError, match=r"w is float64 \(1, 1\); expected float64 \("):
        Predictions.from_state({**arrays, "w": np.zeros((1, 1))}, settings)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("room", [2, 3, 7])
def test_streams_of_different_discounts_survive_a_resize(separate, room):
    # The discount of the transition into a stream's state decays its trace: 0.2 for one, 0.7 for the other, not 0.9.
    net = Network((3, 6, 1 if separate else 2), dtype="float64")
    p = Predictions(net, SGD(0.01), (0.9, 0.5), 1.0, separate=separate, streams=3)
    stream, s, c, s_next, _, _ = experience(30, 2, streams=2)
    own = np.array([[0.2, 0.3], [0.7, 1.0]])
    p.learn(stream, s, c, s_next, discounts=own[stream])
    arrays, settings = p.state_dict(streams=2)
    other = Predictions.from_state(arrays, {**settings, "streams": room})
    np.testing.assert_array_equal(other.state_dict()[0]["inward"][:2], own)
    more = experience(30, 2, streams=2, seed=1)
    np.testing.assert_array_equal(p.learn(*more).td_errors, other.learn(*more).td_errors)
    np.testing.assert_array_equal(p.w, other.w)
    np.testing.assert_array_equal(p.traces[:2], other.traces[:2])
    np.testing.assert_array_equal(other.state_dict()[0]["inward"][2:], np.tile([0.9, 0.5], (room - 2, 1)))


@pytest.mark.parametrize("room", [2, 7])
def test_a_service_with_other_room_goes_on_with_each_streams_discounts(tmp_path, room):
    # The oldest of the three streams, "a", has to go where there is room for two; the rows of the others then move.
    kept = {"net": Network((3, 6, 2), dtype="float64"), "discounts": (0.9, 0.5), "lams": (1.0, 1.0)}
    rng = np.random.default_rng(0)
    own = {"a": [0.1, 0.1], "b": [0.2, 0.3], "c": [0.7, 1.0]}

    def batch(name, first):
        s, c = rng.normal(size=(6, 3)), rng.normal(size=(5, 2))
        return Transitions.of(name, first, s[:-1], c, s[1:], discounts=np.tile(own[name], (5, 1)))

    early, late = ([batch(name, first) for name in names] for names, first in (("abc", 0), ("bc", 5)))
    with Service(ServiceSettings(**kept, max_streams=3), tmp_path / "one") as service:
        expected = [service.learn(given).td_errors for given in (*early, *late)][3:]
    with Service(ServiceSettings(**kept, max_streams=3), tmp_path / "two") as service:
        for given in early:
            service.learn(given)
    with Service(ServiceSettings(**kept, max_streams=room), tmp_path / "two") as service:
        for given, errors in zip(late, expected, strict=True):
            np.testing.assert_array_equal(service.learn(given).td_errors, errors)


def test_a_restart_is_a_new_learner_at_other_weights():
    net = Network((3, 6, 2), dtype="float64")
    p, fresh = (Predictions(net, Adam(), (0.5, 0.9), 0.8, streams=2) for _ in range(2))
    w = np.random.default_rng(0).normal(size=p.w.shape)
    p.learn(*experience(30, 2, streams=2))
    p.restart(w)
    fresh.w = w
    given = experience(30, 2, streams=2, seed=1)
    p.learn(*given)
    fresh.learn(*given)
    np.testing.assert_array_equal(p.w, fresh.w)
    np.testing.assert_array_equal(p.traces, fresh.traces)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", EVERY_OPTIMIZER[6:], ids=lambda optimizer: type(optimizer).__name__)
def test_an_optimizer_of_one_td_error_wants_separate_networks(optimizer):
    with pytest.raises(ValueError, match=f"{type(optimizer).__name__}, whose step .* separate=True"):
        Predictions(Network((3, 8, 2)), optimizer, (0.5, 0.9))
    Predictions(Network((3, 8, 1)), optimizer, (0.5, 0.9), separate=True)


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (Network((3, 2)), {"discounts": (0.5,)}, "net has 2 outputs; expected 1, one for each prediction"),
        (
            Network((3, 2)),
            {"discounts": (0.5, 0.9), "separate": True},
            "net has 2 outputs; expected 1, as each",
        ),
        (Network((3, 2)), {"discounts": (0.5, 1.1)}, r"discounts\[1\] is 1.1; expected a number in \[0, 1\]"),
        (Network((3, 2)), {"discounts": (0.5, 0.9), "lams": (0, 0, 0)}, "lams has 3 entries; discounts has 2"),
        (Network((3, 2)), {"discounts": (0.5, 0.9), "names": ("a", "a")}, "expected 2 different ones"),
        (Network((3, 2), output="softmax"), {"discounts": (0.5, 0.9)}, "softmax"),
        (Network((3, 4, 1), batch_norm=True), {}, "batch normalisation"),
        (Network((3, 1)), {"streams": 10**15}, "streams is 10{15}; their traces would take .* GiB"),
    ],
)
def test_settings_that_do_not_fit_are_refused(net, settings, message):
    with pytest.raises(ValueError, match=message):
        Predictions(net, **settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"s": [[1, np.nan, 0]]}, r"s\[0, 1\] is nan; expected a finite number"),
        ({"s_next": [[1, 0, -np.inf]]}, r"s_next\[0, 2\] is -inf"),
        ({"c": [[np.inf, 0]]}, r"c\[0, 0\] is inf"),
        ({"c": [[1]]}, r"c has shape \(1, 1\); expected \(1, 2\)"),
        ({"s": [[1, 0]]}, r"s has shape \(1, 2\); expected \(n, 3\)"),
        ({"discounts": [[0.5, -0.1]]}, r"discounts\[0, 1\] is -0.1; expected a number in \[0, 1\]"),
        ({"stream": 3}, "stream is 3; expected a stream from 0 to 2"),
        ({"terminated": [2]}, "terminated holds 2; expected booleans"),
    ],
)
def test_transitions_that_do_not_fit_are_refused_and_nothing_is_learned(changed, message):
    p = Predictions(Network((3, 8, 2), dtype="float64"), discounts=(0.5, 0.9), streams=3)
    w = p.w.copy()
    with pytest.raises(ValueError, match=message):
        p.learn(**{"stream": 0, "s": [[0, 0, 0]], "c": [[1, 1]], "s_next": [[0, 0, 0]], **changed})
    np.testing.assert_array_equal(p.w, w)


SCRIPT = """
import numpy as np
from valueapprox import Adam, Network
from valueapprox.td.predictions import Predictions
values = []
rng = np.random.default_rng(0)
s, c, s_next = rng.normal(size=(10, 3)), rng.normal(size=(10, 2)), rng.normal(size=(10, 3))
for separate in (False, True):
    net = Network((3, 4, 1 if separate else 2), dtype="float64")
    p = Predictions(net, Adam(), (0.5, 0.9), 0.8, separate=separate, streams=2)
    p.norms_every = 2
    p.learn([0, 1] * 5, s, c, s_next, [0, 0, 0, 1, 0] * 2, [0, 0, 1, 0, 0] * 2)
    values += [*p.w.ravel(), *p.diagnostics().values(), *p.input_gradients(np.eye(3), 1).ravel()]
"""


def test_interpreted_equals_compiled():
    interpreted = subprocess.run(
        [sys.executable, "-c", SCRIPT + "print(*map(float.hex, map(float, values)))"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert interpreted.returncode == 0, interpreted.stderr
    compiled = {}
    exec(SCRIPT, compiled)
    np.testing.assert_allclose(
        compiled["values"], [float.fromhex(x) for x in interpreted.stdout.split()], rtol=1e-12, atol=1e-14
    )
