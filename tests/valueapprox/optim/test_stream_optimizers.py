"""Optimizers for streams: each rule against a second implementation in NumPy, its invariants, and numbers by hand."""

import json
import math

import numpy as np
import pytest

from valueapprox import (
    Adam,
    AdaptiveObGD,
    DecayedMax,
    Intentional,
    LinearDecay,
    Network,
    ObGD,
    Optimizer,
    ValueFunction,
    VarianceAdjusted,
    fit,
)
from valueapprox.optim import OPTIMIZERS
from valueapprox.optim.base import N_BOUNDED, SUM_OF_STEPS

GAMMA, LAM = 0.95, 0.8
DECAY = GAMMA * LAM
NET = Network((3, 6, 1), hidden="tanh", dtype="float64")

# --- second implementations: one array operation per line, t = 1 at the first update ---------------------------------


def obgd(w, z, g, delta, t, alpha, m, kappa=2.0):
    bound = alpha * kappa * max(abs(delta), 1.0) * np.abs(z).sum()
    return w + alpha / max(1.0, bound) * delta * z


def adaptive_obgd(w, z, g, delta, t, alpha, m, kappa=2.0, beta2=0.9, epsilon=1e-4):
    m["v"] = beta2 * m.get("v", 0) + (1 - beta2) * (delta * z) ** 2
    scaled = z / np.sqrt(m["v"] / (1 - beta2**t) + epsilon)
    bound = alpha * kappa * max(abs(delta), 1.0) * np.abs(scaled).sum()
    return w + alpha / max(1.0, bound) * delta * scaled


def decayed_max(w, z, g, delta, t, alpha, m, beta=0.9, epsilon=1e-3):
    m["v"] = np.maximum(beta * m.get("v", 0), np.abs(delta * z))
    return w + alpha * delta * z / (m["v"] + epsilon)


def intentional(
    w, z, g, delta, t, alpha, m, beta2=0.999, epsilon=0.1, clip=np.inf, clip_decay=0.9998, rms=True, normalise=False
):
    m["nu"] = beta2 * m.get("nu", 0) + (1 - beta2) * g**2
    D = 1 / (np.sqrt(m["nu"] / (1 - beta2**t)) + epsilon) if rms else np.ones_like(g)
    m["S"] = m.get("S", 0) + (1 - DECAY) * ((g**2 * D).sum() - m.get("S", 0))
    step = alpha / max(math.sqrt(m["S"] / (1 - DECAY**t) * (z**2 * D).sum()), 1e-8)
    m["c"] = clip_decay * m.get("c", 1.0) + (1 - clip_decay) * delta**2
    delta = np.clip(delta, *(np.array([-1, 1]) * clip * math.sqrt(m["c"] / (1 - clip_decay**t))))
    if normalise:
        m["m"] = clip_decay * m.get("m", 0) + (1 - clip_decay) * abs(delta)
        delta /= max(m["m"] / (1 - clip_decay**t), 1e-12)
    return w + step * delta * D * z


def variance_adjusted(w, z, g, delta, t, alpha, m, epsilon=0.1, clip=0.5):
    m["v"] = DECAY * m.get("v", 0) + (1 - DECAY) * g**2
    return w + alpha * np.clip(delta, -clip, clip) * z / (np.sqrt(m["v"] / (1 - DECAY**t)) + epsilon)


RULES = {
    "ObGD": (ObGD, obgd, 1.0, {"kappa": 2.0}),
    "ObGD, seldom bounded": (ObGD, obgd, 0.01, {"kappa": 2.0}),
    "AdaptiveObGD": (AdaptiveObGD, adaptive_obgd, 1.0, {"kappa": 2.0, "beta2": 0.9, "epsilon": 1e-4}),
    "DecayedMax": (DecayedMax, decayed_max, 0.01, {"beta": 0.9, "epsilon": 1e-3}),
    "Intentional, defaults": (Intentional, intentional, 0.3, {}),
    "Intentional": (Intentional, intentional, 0.3, {"beta2": 0.9, "epsilon": 1e-3, "clip": 1.5, "clip_decay": 0.8}),
    "Intentional, no rms": (Intentional, intentional, 0.3, {"clip": 1.5, "clip_decay": 0.8, "rms": False}),
    "Intentional, normalised": (
        *(Intentional, intentional, 0.05),
        {"beta2": 0.9, "epsilon": 1e-3, "clip": 1.5, "clip_decay": 0.8, "normalise": True},
    ),
    "VarianceAdjusted": (VarianceAdjusted, variance_adjusted, 0.01, {"epsilon": 0.1, "clip": 0.5}),
    "VarianceAdjusted, not clipped": (VarianceAdjusted, variance_adjusted, 0.01, {"clip": np.inf}),
}


def stream(n_steps, seed=0):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(n_steps + 1, 3))
    kind = rng.integers(0, 12, n_steps)
    return states[:-1], rng.normal(size=n_steps), states[1:], kind == 0, kind == 1


@pytest.mark.parametrize("schedule", [None, LinearDecay(60, 0.2)], ids=["constant", "linear"])
@pytest.mark.parametrize("rule", RULES)
def test_learning_equals_a_second_implementation(rule, schedule):
    make, step, alpha, settings = RULES[rule]
    given = {name: None if value is np.inf else value for name, value in settings.items()}
    optimizer = make(alpha, **given) if schedule is None else make(alpha, **given, schedule=schedule)
    v = ValueFunction(NET, optimizer, gamma=GAMMA, lam=LAM, seed=1)
    w, z, memory = v.w.copy(), np.zeros_like(v.w), {}
    for t, (s, r, s_next, terminated, truncated) in enumerate(zip(*stream(100), strict=True)):
        v_next = 0.0 if terminated else NET.forward(w, s_next)[0]
        delta = r + GAMMA * v_next - NET.forward(w, s)[0]
        g = NET.gradient(w, s)
        z = DECAY * z + g
        factor = 1.0 if schedule is None else schedule.factor(t)
        w = step(w, z, g, delta, t + 1, alpha * factor, memory, **settings)
        if terminated or truncated:
            z = np.zeros_like(z)
        assert v.learn(s, r, s_next, terminated, truncated) == pytest.approx(delta, rel=1e-9, abs=1e-11)
        np.testing.assert_allclose(v.w, w, rtol=1e-9, atol=1e-11, err_msg=f"update {t}")
    assert np.abs(v.w - NET.init(1)).max() > 0.01


@pytest.mark.parametrize("kappa", [1.5, 2.0, 3.0])
def test_obgd_moves_the_weights_by_no_more_than_one_over_kappa(kappa):
    v = ValueFunction(NET, ObGD(1.0, kappa), gamma=GAMMA, lam=LAM, seed=2)
    s, r, s_next, terminated, truncated = stream(300, seed=3)
    for t in range(300):
        before = v.w.copy()
        v.learn(s[t], 30.0 * r[t], s_next[t], terminated[t], truncated[t])
        assert np.abs(v.w - before).sum() <= 1 / kappa * (1 + 1e-12)


def test_obgd_by_hand():
    # y = 1, x = 10, w = 0, alpha = 0.1, kappa = 2: M = 0.1 * 2 * 1 * 10 = 2, a = 0.05, w = 0.05 * 1 * 10 = 0.5, and the
    # new prediction is 5: the bound does not forbid overshooting.
    v = ValueFunction(Network((1, 1), bias=False, dtype="float64"), ObGD(0.1, 2.0), init="zeros")
    assert v.learn([10.0], 1.0, [0.0], terminated=True) == 1.0
    assert v.predict([10.0]) == pytest.approx(5.0)
    assert v.state.scalars[SUM_OF_STEPS] == pytest.approx(0.05)
    assert v.state.scalars[N_BOUNDED] == 1


def test_decayed_max_by_hand_and_its_bound():
    # v = 2, beta = 0.9, u = 100: v becomes 100 and the step alpha; then u = 1: v = 90 and the step alpha / 90.
    alpha, net = 0.01, Network((1, 1), bias=False, dtype="float64")
    optimizer = DecayedMax(alpha, beta=0.9, epsilon=1e-12)
    w = np.zeros(1)
    state = optimizer.init(w)
    state.moments[0] = 2.0
    optimizer.step(net, w, np.array([100.0]), state)
    assert w[0] == pytest.approx(alpha)
    optimizer.step(net, w, np.array([1.0]), state)
    assert w[0] == pytest.approx(alpha + alpha / 90)
    v = ValueFunction(NET, DecayedMax(alpha), gamma=GAMMA, lam=LAM)
    s, r, s_next, terminated, truncated = stream(200)
    for t in range(200):
        before = v.w.copy()
        v.learn(s[t], 100.0 * r[t], s_next[t], terminated[t], truncated[t])
        assert np.abs(v.w - before).max() < alpha


def test_intentional_updates_of_a_linear_value_are_normalised_lms():
    # w = .5, x = 2, x' = 1, r = 1.5, gamma = .9: delta = 1.5 + .9 * .5 - 1 = .95; the value moves by eta delta = .38,
    # the weight by .38 / 2 = .19.
    net = Network((1, 1), bias=False, dtype="float64")
    v = ValueFunction(net, Intentional(0.4, rms=False), gamma=0.9)
    v.w = [0.5]
    assert v.learn([2.0], 1.5, [1.0]) == pytest.approx(0.95)
    assert v.w[0] == pytest.approx(0.69)
    # Whatever the state's length, v(s) moves by eta delta at lambda 0 in the first update.
    net = Network((4, 1), dtype="float64")
    rng = np.random.default_rng(0)
    for _ in range(10):
        v = ValueFunction(net, Intentional(0.25, rms=False), gamma=0.9, seed=int(rng.integers(99)))
        s, s_next = 10 * rng.normal(size=(2, 4))
        before = v.predict(s)
        delta = v.learn(s, float(rng.normal()), s_next)
        assert v.predict(s) - before == pytest.approx(0.25 * delta)


def test_the_variance_adjusted_step_is_bounded_by_the_clipped_error():
    # One input, gamma lambda = 0: v = g^2, so w moves by alpha clip(delta) g / (|g| + 0.1); for g = 3, delta = 7
    # by alpha 3 / 3.1. The default clips at 1.
    v = ValueFunction(Network((1, 1), bias=False, dtype="float64"), VarianceAdjusted(0.01), init="zeros")
    v.learn([3.0], 7.0, [0.0], terminated=True)
    assert v.w[0] == pytest.approx(0.01 * 3 / 3.1)


# An optimizer is compiled for each type of the weights.
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        *((Intentional, dtype) for dtype in ("float32", "float64")),
        (VarianceAdjusted, "float64"),
        pytest.param(VarianceAdjusted, "float32", marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("decay", [1.0, 1 - 1e-12, 1 - 1e-10, 1 - 1e-8])
def test_undiscounted_monte_carlo_is_the_limit(decay, make, dtype):
    # gamma = 1, lambda = decay: the running mean that forgets by gamma lambda becomes the mean of all t, its newest
    # member's share (1 - k) / (1 - k^t) becomes 1 / t. Between 1 - 1e-8 and 1 nothing changes by more than 1e-5.
    net = Network((3, 6, 1), hidden="tanh", dtype=dtype)
    v, limit = (ValueFunction(net, make(0.01), gamma=1.0, lam=lam, seed=1) for lam in (decay, 1.0))
    s, r, s_next, terminated, truncated = stream(300, seed=5)
    for learner in (v, limit):
        learner.learn_stream(s, r, s_next, terminated, truncated)
    assert np.isfinite(v.w).all()
    assert np.abs(v.w - net.init(1)).max() > 0.01
    np.testing.assert_allclose(v.w, limit.w, rtol=1e-4 if dtype == "float32" else 1e-5, atol=1e-5)


def test_the_mean_of_undiscounted_gradients_by_hand():
    # One input, gamma = lambda = 1: z = 2, then 2 + 4 = 6; S = 4, then (4 + 16) / 2 = 10. With rms=False w moves by
    # alpha delta z / sqrt(S z^2) = alpha delta / sqrt(S): delta = 1 first, then 3 - 4 w.
    v = ValueFunction(
        Network((1, 1), bias=False, dtype="float64"), Intentional(0.1, rms=False), gamma=1.0, lam=1.0, init="zeros"
    )
    v.learn([2.0], 1.0, [0.0])
    assert v.w[0] == pytest.approx(0.1 / 2)
    v.learn([4.0], 3.0, [0.0])
    assert v.w[0] == pytest.approx(0.05 + 0.1 * (3 - 4 * 0.05) / math.sqrt(10))


@pytest.mark.parametrize("optimizer", [Adam(beta1=1 - 1e-12, beta2=1 - 1e-12), AdaptiveObGD(beta2=1 - 1e-12)])
def test_decay_rates_close_to_one_give_finite_steps(optimizer):
    v = ValueFunction(NET, optimizer, gamma=GAMMA, lam=LAM, seed=1)
    v.learn_stream(*stream(50))
    assert np.isfinite(v.w).all()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if dtype == "float64" or name == "intentional" else pytest.mark.full)
        for name in sorted(set(OPTIMIZERS) - {"sgd", "momentum", "rmsprop", "adam"})
        for dtype in ("float32", "float64")
    ],
)
def test_learning_goes_on_after_saving_and_both_forms_agree(name, dtype, tmp_path):
    net = Network((3, 6, 1), layer_norm=True, dtype=dtype)
    data = stream(60)
    whole, parted = (ValueFunction(net, OPTIMIZERS[name](), gamma=GAMMA, lam=LAM, seed=4) for _ in range(2))
    whole.learn_stream(*data)
    for t in range(30):
        parted.learn(*(part[t] for part in data))
    parted.save(tmp_path / "v.npz")
    again = ValueFunction.load(tmp_path / "v.npz")
    again.learn_stream(*(part[30:] for part in data))
    np.testing.assert_array_equal(again.w, whole.w)
    np.testing.assert_array_equal(again.state.scalars, whole.state.scalars)


@pytest.mark.parametrize(
    "optimizer", [ObGD(kappa=3.0), AdaptiveObGD(0.5), DecayedMax(), Intentional(rms=False), VarianceAdjusted()]
)
def test_settings_survive_json(optimizer):
    assert Optimizer.from_dict(json.loads(json.dumps(optimizer.as_dict()))) == optimizer


def test_what_needs_a_trace_is_refused_elsewhere():
    net = Network((1, 1), dtype="float64")
    w = net.init(0)
    for optimizer in (Intentional(), VarianceAdjusted()):
        with pytest.raises(ValueError, match="trace"):
            fit(net, w, [[0.0]], [1.0], optimizer=optimizer, epochs=1)
        with pytest.raises(ValueError, match="trace"):
            optimizer.step(net, w, np.ones(2), optimizer.init(w))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ObGD(kappa=0.0), "kappa"),
        (lambda: AdaptiveObGD(kappa=-1.0), "kappa"),
        (lambda: ObGD(alpha=(0.1, 0.2)), "one step size"),
        (lambda: Intentional(alpha={"A": 0.1, "B": 0.1}), "one step size"),
        (lambda: Intentional(clip=0.0), "clip"),
        (lambda: VarianceAdjusted(clip=math.nan), "clip"),
        (lambda: Intentional(clip_decay=1.0), "clip_decay"),
        (lambda: Optimizer.from_dict(Intentional().as_dict() | {"largest_error": 1.0}), "largest_error"),
        (lambda: VarianceAdjusted(clip_norm=1.0), "clip_norm"),
    ],
)
def test_errors_name_the_setting(make, message):
    with pytest.raises(ValueError, match=message):
        make()
