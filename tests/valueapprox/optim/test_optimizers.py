"""Optimizers: each rule against a second implementation in plain NumPy, schedules, clipping, settings, errors."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from valueapprox import (
    SGD,
    Adam,
    Constant,
    CosineDecay,
    ExponentialDecay,
    InverseTime,
    LinearDecay,
    Momentum,
    Network,
    Optimizer,
    RAdam,
    RMSProp,
    StepDecay,
    ValueFunction,
)
from valueapprox.compiling import kernel
from valueapprox.optim import OPTIMIZERS, SCHEDULES, register

NET = Network((3, 4, 2), dtype="float64")  # A: 16 parameters, B: 10
LAYERS = [slice(0, 16), slice(16, 26)]
STEPS = 20

# --- second implementations: the formulas of the papers, one array operation per line -------------------------------


def sgd(w, u, t, alpha, memory):
    return w + alpha * u


def momentum(w, u, t, alpha, memory, beta=0.7):
    memory["v"] = beta * memory.get("v", 0) + u
    return w + alpha * memory["v"]


def rmsprop(w, u, t, alpha, memory, beta=0.9, epsilon=1e-3):
    memory["v"] = beta * memory.get("v", 0) + (1 - beta) * u**2
    return w + alpha * u / (np.sqrt(memory["v"]) + epsilon)


def adam(w, u, t, alpha, memory, beta1=0.8, beta2=0.95, epsilon=1e-3):
    memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * u
    memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * u**2
    m_hat = memory["m"] / (1 - beta1 ** (t + 1))
    v_hat = memory["v"] / (1 - beta2 ** (t + 1))
    return w + alpha * m_hat / (np.sqrt(v_hat) + epsilon)


def radam(w, u, t, alpha, memory, beta1=0.8, beta2=0.95, epsilon=1e-3):
    # Liu et al. 2020, algorithm 2, line by line; of 20 steps the first five are without division.
    t += 1
    memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * u
    memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * u**2
    m_hat = memory["m"] / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    assert (rho > 5) == (t > 5)
    if rho <= 5:
        return w + alpha * m_hat
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return w + alpha * r * m_hat / (np.sqrt(memory["v"] / (1 - beta2**t)) + epsilon)


RULES = {
    "SGD": (SGD, sgd, {}),
    "Momentum": (Momentum, momentum, {"beta": 0.7}),
    "RMSProp": (RMSProp, rmsprop, {"beta": 0.9, "epsilon": 1e-3}),
    "Adam": (Adam, adam, {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}),
    "RAdam": (RAdam, radam, {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}),
}


def test_every_optimizer_is_tested():
    streams = {"ObGD", "AdaptiveObGD", "DecayedMax", "Intentional", "VarianceAdjusted"}  # test_stream_optimizers.py
    assert set(RULES) | streams == {cls.__name__ for cls in OPTIMIZERS.values()}
    assert {type(schedule).__name__ for schedule, _, _ in FACTORS} == set(SCHEDULES)


def run(optimizer, us):
    """Weights after each step along us, from the same start."""
    w = NET.init(0)
    state, seen = optimizer.init(w), []
    for u in us:
        optimizer.step(NET, w, u, state)
        seen.append(w.copy())
    assert state.n_updates.tolist() == [len(us)]
    return np.array(seen)


def directions(n_steps=STEPS):
    return np.random.default_rng(1).normal(size=(n_steps, NET.n_parameters))


ALPHAS = {  # as given, and of A and B
    "one": (0.05, (0.05, 0.05)),
    "sequence": ((0.1, 0.02), (0.1, 0.02)),
    "names": ({"B": 0.02, "A": 0.1}, (0.1, 0.02)),
}


@pytest.mark.parametrize("alphas", ALPHAS)
@pytest.mark.parametrize("rule", RULES)
def test_twenty_steps_equal_a_second_implementation(rule, alphas):
    make, step, settings = RULES[rule]
    given, per_layer = ALPHAS[alphas]
    schedule = InverseTime(4)  # 1, 4/5, 4/6, ...
    w, memory = NET.init(0), {}
    alpha = np.concatenate([np.full(16, per_layer[0]), np.full(10, per_layer[1])])
    learned = run(make(given, schedule=schedule, **settings), directions())
    for t, (u, ours) in enumerate(zip(directions(), learned, strict=True)):
        w = step(w, u, t, alpha * 4 / (4 + t), memory)
        np.testing.assert_allclose(ours, w, rtol=1e-12, atol=1e-14)


def test_the_first_adam_step_is_alpha_in_every_direction():
    # t = 1: m_hat = u, v_hat = u^2, so the step is alpha u / (|u| + epsilon), whatever the size of u.
    u = np.where(np.arange(26) % 2, 1e3, -1e-3)
    moved = run(Adam(0.01), [u])[0] - NET.init(0)
    np.testing.assert_allclose(moved, 0.01 * np.sign(u), rtol=1e-4)


# --- schedules ------------------------------------------------------------------------------------------------------

FACTORS = [
    (Constant(), 0, 1),
    (Constant(), 10**6, 1),
    (LinearDecay(10, final=0.2), 0, 1),
    (LinearDecay(10, final=0.2), 5, 0.6),  # 1 - 0.8 * 5/10
    (LinearDecay(10, final=0.2), 10, 0.2),
    (LinearDecay(10, final=0.2), 99, 0.2),
    (LinearDecay(10), 10, 0),
    (InverseTime(10), 0, 1),
    (InverseTime(10), 10, 1 / 2),
    (InverseTime(10), 90, 1 / 10),
    (CosineDecay(12, final=0.5), 0, 1),
    (CosineDecay(12, final=0.5), 4, 0.875),  # cos(pi/3) = 1/2: 0.5 + 0.5 * (1 + 1/2) / 2
    (CosineDecay(12, final=0.5), 6, 0.75),
    (CosineDecay(12, final=0.5), 12, 0.5),
    (CosineDecay(12, final=0.5), 99, 0.5),
    (StepDecay(10, decay=0.1), 9, 1),
    (StepDecay(10, decay=0.1), 10, 0.1),
    (StepDecay(10, decay=0.1), 29, 0.01),
    (ExponentialDecay(10, decay=0.25), 0, 1),
    (ExponentialDecay(10, decay=0.25), 5, 0.5),
    (ExponentialDecay(10, decay=0.25), 20, 0.0625),
]


@pytest.mark.parametrize(("schedule", "t", "factor"), FACTORS)
def test_schedules_at_known_times(schedule, t, factor):
    assert schedule.factor(t) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize("fused", [True, False])  # learning has a faster path for SGD without clipping
def test_a_schedule_counts_updates_from_zero(fused):
    # s = 0, so v = b: a terminal step with r = 1 moves b by alpha factor(t) (1 - b), and 1 - b, at first 1, is
    # multiplied by 1 - alpha factor(t); alpha = 1/2 and the factors 1 / (1 + t) are 1, 1/2, 1/3.
    v = ValueFunction(
        Network((1, 1), dtype="float64"),
        SGD(0.5, schedule=InverseTime(1), clip_norm=None if fused else 1e30),
        init="zeros",
    )
    left = []
    for _ in range(3):
        v.learn([0.0], 1.0, [0.0], terminated=True)
        left.append(1 - v.w[1])
    # 1 - 0.5 = 1/2;  1/2 (1 - 0.5/2) = 3/8;  3/8 (1 - 0.5/3) = 5/16
    np.testing.assert_allclose(left, [1 / 2, 3 / 8, 5 / 16], rtol=1e-14)


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.1, 0.99, 1.01, 50.0])
def test_the_direction_is_clipped_to_the_norm_and_not_touched_below_it(length):
    u = directions(1)[0]
    u *= length / np.linalg.norm(u)
    moved = run(SGD(1.0, clip_norm=1.0), [u])[0] - NET.init(0)
    np.testing.assert_allclose(moved, u if length < 1 else u / length, rtol=1e-12, atol=1e-14)
    assert np.linalg.norm(moved) == pytest.approx(min(length, 1.0))
    if length < 1:
        np.testing.assert_array_equal(run(SGD(1.0, clip_norm=1.0), [u]), run(SGD(1.0), [u]))


def test_each_layer_is_clipped_on_its_own():
    u = directions(1)[0]
    for part, length in zip(LAYERS, (5.0, 0.5), strict=True):
        u[part] *= length / np.linalg.norm(u[part])
    moved = run(SGD(1.0, clip_layer_norm=2.0), [u])[0] - NET.init(0)
    np.testing.assert_allclose(moved[LAYERS[0]], u[LAYERS[0]] * 2 / 5, rtol=1e-12)
    np.testing.assert_allclose(moved[LAYERS[1]], u[LAYERS[1]], rtol=1e-12, atol=1e-14)


def test_both_clips_the_whole_first_then_the_layers():
    # Layers of length 3 and 4, together 5; to 2.5: 1.5 and 2; then 2 to 1.8.
    u = directions(1)[0]
    for part, length in zip(LAYERS, (3.0, 4.0), strict=True):
        u[part] *= length / np.linalg.norm(u[part])
    moved = run(SGD(1.0, clip_norm=2.5, clip_layer_norm=1.8), [u])[0] - NET.init(0)
    assert [np.linalg.norm(moved[part]) for part in LAYERS] == pytest.approx([1.5, 1.8])


def test_clipping_in_learning_bounds_delta_times_trace():
    # u = delta z with delta = 10, z = grad v = (s, 1) = (3, 4, 1), of length sqrt(26); alpha 1 moves w by u / ||u||.
    v = ValueFunction(Network((2, 1), dtype="float64"), SGD(1.0, clip_norm=1.0), init="zeros")
    v.learn([3.0, 4.0], 10.0, [0.0, 0.0], terminated=True)
    np.testing.assert_allclose(v.w, np.array([3, 4, 1]) / math.sqrt(26), rtol=1e-14)


def test_moments_see_the_clipped_direction():
    u = directions(1)[0]
    clipped = run(Momentum(0.1, clip_norm=0.5), [u, u])
    np.testing.assert_allclose(clipped, run(Momentum(0.1), [u * 0.5 / np.linalg.norm(u)] * 2), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_fused_path_of_sgd_equals_the_unfused(dtype):
    rng = np.random.default_rng(5)
    net = Network((3, 8, 1), dtype=dtype)
    s, r = rng.normal(size=(201, 3)), rng.normal(size=200)
    learned = []
    for clip in (None, 1e30):  # a bound that never binds switches the fused path off
        v = ValueFunction(net, SGD((0.01, 0.02), schedule=LinearDecay(150, 0.1), clip_norm=clip), lam=0.9, seed=1)
        v.learn_stream(s[:-1], r, s[1:], np.arange(200) % 17 == 16)
        learned.append(v.w.copy())
    assert np.abs(learned[0] - net.init(1)).max() > 0.01
    np.testing.assert_allclose(*learned, rtol=1e-4, atol=1e-13 if dtype == "float64" else 1e-6)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(),
        SGD(np.float32(0.5)),
        SGD((0.1, 0.2), clip_norm=3.0),
        SGD(np.array([0.1, 0.2])),
        SGD({"A": 0.1, "B": 0.2}, schedule=LinearDecay(10, 0.5)),
        SGD(schedule=LinearDecay(np.int64(10), np.float32(0.5)), clip_norm=np.float32(2)),
        Momentum(0.1, 0.5, schedule=CosineDecay(7)),
        RMSProp(0.1, 0.9, 1e-5, clip_layer_norm=1.0),
        Adam(0.1, 0.8, 0.9, 1e-3, schedule=InverseTime(3)),
    ],
)
def test_settings_survive_json(optimizer):
    again = Optimizer.from_dict(json.loads(json.dumps(optimizer.as_dict())))
    assert type(again) is type(optimizer)
    assert again.as_dict() == optimizer.as_dict()
    np.testing.assert_array_equal(again.hyper(("A", "B")), optimizer.hyper(("A", "B")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-0.1), "alpha"),
        (lambda: SGD(math.nan), "alpha"),
        (lambda: SGD((0.1, math.inf)), "alpha"),
        (lambda: SGD({"A": -1.0, "B": 0.1}), "alpha"),
        (lambda: SGD("fast"), "alpha"),
        (lambda: SGD(clip_norm=0.0), "clip_norm"),
        (lambda: SGD(clip_norm=math.nan), "clip_norm"),
        (lambda: SGD(clip_layer_norm=-1.0), "clip_layer_norm"),
        (lambda: Momentum(beta=1.0), "beta"),
        (lambda: Adam(beta1=-0.1), "beta1"),
        (lambda: Adam(beta2=1.0), "beta2"),
        (lambda: Adam(beta2=math.nan), "beta2"),
        (lambda: RMSProp(epsilon=0.0), "epsilon"),
        (lambda: LinearDecay(0), "steps"),
        (lambda: LinearDecay(10, -0.5), "final"),
        (lambda: CosineDecay(10, math.nan), "final"),
        (lambda: SGD((0.1, 0.2, 0.3)).layer_alphas(("A", "B")), "3 step sizes; expected one, or 2 for the layers"),
        (lambda: SGD({"A": 0.1}).layer_alphas(("A", "B")), "alpha names the layers"),
        (lambda: SGD({"A": 0.1, "W2": 0.1}).layer_alphas(("A", "B")), "W2"),
        (lambda: ValueFunction(Network((3, 4, 1)), SGD((0.1, 0.2, 0.3))), "3 step sizes"),
        (lambda: SGD().step(NET, NET.init(0), np.ones(5), SGD().init(NET.init(0))), r"u is float64 of shape \(5,\)"),
        (lambda: SGD().step(NET, NET.init(0), np.ones(26, "f4"), SGD().init(NET.init(0))), "u is float32"),
        (lambda: SGD().step(NET, np.ones(52)[::2], np.ones(26), SGD().init(NET.init(0))), "w is float64"),
    ],
)
def test_errors_name_the_setting(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- an optimizer of one's own ----------------------------------------------------------------------------------------


@kernel
def sign(w, z, start, stop, g, alpha, moments, t, hyper):
    step = w.dtype.type(alpha)
    for p in range(start, stop):
        w[p] += step if g * z[p] > 0 else -step


@dataclass(frozen=True)
class Sign(Optimizer):
    """w <- w + alpha sign(u)."""

    rule = sign


def test_an_optimizer_of_one_s_own_that_has_no_moments_is_learned_with():
    # Version 0.1 took every code above 6 for one that has two moments, and wrote them outside of its arrays.
    # (tests/test_adding.py learns with one of a moment in everything that takes an optimizer.)
    v = ValueFunction(Network((3, 1), bias=False, dtype="float64"), Sign(0.25), lam=0.9, init="zeros")
    v.learn([1.0, -2.0, 3.0], 1.0, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(v.w, [0.25, -0.25, 0.25])
    w, state = np.zeros(3), Sign(0.5).init(np.zeros(3))
    Sign(0.5).step(v.net, w, np.array([1.0, -2.0, 3.0]), state)
    np.testing.assert_array_equal(w, [0.5, -0.5, 0.5])


def test_rules_of_one_name_that_were_typed_in_are_not_taken_for_each_other():
    # As in a notebook or at the prompt: no file, one name, and the disk cache between two processes.
    code = """
@kernel(inline=True)
def typed(w, z, start, stop, g, alpha, moments, t, hyper):
    for p in range(start, stop):
        w[p] += w.dtype.type(FACTOR * alpha) * g * z[p]
"""
    for factor in (1.0, 2.0):
        names = {"kernel": kernel, "FACTOR": factor, "__name__": "__main__"}
        exec(compile(code, "<stdin>", "exec"), names)
        own = dataclass(frozen=True)(type("Typed", (Optimizer,), {"rule": names["typed"]}))
        v = ValueFunction(Network((1, 1), bias=False, dtype="float64"), own(0.25), init="zeros")
        v.learn([1.0], 1.0, [0.0], terminated=True)
        assert v.w.tolist() == [0.25 * factor]


def one_moment_short(w, z, start, stop, g, alpha, moments, t, hyper):
    moments[1, 0] = 1.0


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("adam", {"rule": sign}, "name of Twice is 'adam'; Adam is registered as 'adam'"),
        ("twice", {}, "rule of Twice is missing"),
        ("twice", {"rule": one_moment_short, "n_moments": 1}, "Twice cannot be used: index 1 is out of bounds"),
        ("twice", {"rule": lambda w, z: None}, "Twice cannot be used: .* takes 2 positional arguments"),
    ],
)
def test_what_cannot_work_is_an_error_when_it_is_registered(name, members, message):
    known = dict(OPTIMIZERS)
    with pytest.raises(TypeError, match=message):
        register(name)(dataclass(frozen=True)(type("Twice", (Optimizer,), members)))
    assert known == OPTIMIZERS
