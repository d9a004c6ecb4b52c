"""Regularizers: by hand, and by the closed forms that a fit with an orthonormal design reaches."""

import math

import numpy as np
import pytest
from scipy.linalg import hadamard

from valueapprox import (
    SGD,
    Adam,
    ExponentialDecay,
    Momentum,
    Network,
    RMSProp,
    StepDecay,
    fit,
    regularizers,
    risk,
    risk_gradient,
)
from valueapprox.supervised.losses import HalfSquared
from valueapprox.supervised.regularizers import L1, L2, ElasticNet, Regularizer, SupportsPenalty

NET = Network((2, 2, 1), dtype="float64")
#                        A                      b_A           B                b_B
W = NET.pack([([[1.0, -2.0], [0.0, 3.0]], [5.0, -6.0]), ([[-4.0], [0.5]], [7.0])])


def blocks(net, w):
    """The blocks of w by name, as lists."""
    return {name: net.block(w, name).tolist() for name in net.blocks}


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("regularizer", "value", "A", "B"), [
    # Sum of squares 1 + 4 + 0 + 9 = 14 in A, 16 + 0.25 in B; derivative 2 w.
    (L2(0.5), 0.5 * 30.25, [[1, -2], [0, 3]], [[-4], [0.5]]),
    # Sum of magnitudes 6 in A, 4.5 in B; derivative sign w, 0 at 0.
    (L1(0.5), 0.5 * 10.5, [[0.5, -0.5], [0, 0.5]], [[-0.5], [0.5]]),
    (L1(0.5, proximal=True), 0.5 * 10.5, [[0.5, -0.5], [0, 0.5]], [[-0.5], [0.5]]),
    (ElasticNet(2.0, 0.5), 2 * 10.5 + 0.5 * 30.25, [[3, -4], [0, 5]], [[-6], [2.5]]),
    (L2([0.5, 0.0]), 0.5 * 14, [[1, -2], [0, 3]], [[0], [0]]),
    (L2({"A": 0.5}), 0.5 * 14, [[1, -2], [0, 3]], [[0], [0]]),
    (L1({"B": 2, "A": 1}), 6 + 2 * 4.5, [[1, -1], [0, 1]], [[-2], [2]]),
    (L1(np.array([1.0, 2.0])), 6 + 2 * 4.5, [[1, -1], [0, 1]], [[-2], [2]]),
    (ElasticNet({"A": 1.0}, (0.0, 0.5)), 6 + 0.5 * 16.25, [[1, -1], [0, 1]], [[-4], [0.5]]),
    (L2(0.0), 0.0, [[0, 0], [0, 0]], [[0], [0]]),
    (Regularizer(), 0.0, [[0, 0], [0, 0]], [[0], [0]]),
])  # fmt: skip
def test_by_hand_without_biases(regularizer, value, A, B):
    assert regularizer.value(NET, W) == value
    gradient = regularizer.gradient(NET, W)
    assert blocks(NET, gradient) == {"A": A, "b_A": [0, 0], "B": B, "b_B": [0]}
    # The same through the risk: one example at which yhat = y, so that nothing else is left.
    s = [0.5, 0.25]
    total, gradient_of_risk = risk_gradient(NET, W, [s], [NET.forward(W, s)[0]], regularizer=regularizer)
    assert total == value
    np.testing.assert_array_equal(gradient_of_risk, gradient)


def test_by_hand_with_biases():
    # Squares 25 + 36 + 49 = 110 and magnitudes 5 + 6 + 7 = 18 more.
    assert L2(0.5, biases=True).value(NET, W) == 0.5 * (30.25 + 110)
    assert L1(0.5, biases=True).value(NET, W) == 0.5 * (10.5 + 18)
    assert ElasticNet(1.0, 0.5, biases=True).value(NET, W) == 28.5 + 0.5 * 140.25
    np.testing.assert_array_equal(L2(0.5, biases=True).gradient(NET, W), W)
    np.testing.assert_array_equal(L1(0.5, biases=True).gradient(NET, W), 0.5 * np.sign(W))


def test_layers_of_a_deep_network_are_called_by_their_names():
    net = Network((1, 1, 1, 1), bias=False, dtype="float64")
    assert L2({"W2": 1.0}).value(net, np.array([2.0, 3.0, 5.0])) == 9
    assert L2((1.0, 0.0, 2.0)).gradient(net, np.array([2.0, 3.0, 5.0])).tolist() == [4, 0, 20]


def test_scales_count_as_biases_do_and_running_statistics_never():
    net = Network((1, 2, 1), dtype="float64", batch_norm=True)
    w = np.arange(1.0, net.size + 1)
    parts = {name: net.block(w, name) for name in net.blocks}
    weights = [parts["A"], parts["B"]]
    learned = [*weights, *(parts[name] for name in ("b_A", "scale1", "b_B"))]
    assert L2(1.0).value(net, w) == sum((part**2).sum() for part in weights)
    assert L2(1.0, biases=True).value(net, w) == sum((part**2).sum() for part in learned)
    assert L1(1.0, biases=True).value(net, w) == sum(part.sum() for part in learned)
    gradient = blocks(net, L2(0.5).gradient(net, w))
    assert gradient == {name: part.tolist() if name in "AB" else [0] * part.size for name, part in parts.items()}
    gradient = L2(0.5, biases=True).gradient(net, w)
    assert gradient[: net.n_parameters].tolist() == w[: net.n_parameters].tolist()
    assert not gradient[net.n_parameters :].any()


def test_float32_sums_in_float64():
    # 10001 squares, one of 4096^2 and the rest 1: in float32 16777216 + 1 = 16777216, and ones would not count.
    net = Network((10001, 1), bias=False)
    w = np.ones(net.size, np.float32)
    w[0] = 4096
    assert L2(1.0).value(net, w) == 4096**2 + 10000
    assert L2(1.0).gradient(net, w).dtype == np.float32


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-0.1, np.nan, np.inf, "0.1", None, [0.1, -0.1], {"A": -1.0}, {"A": "x"}, [[0.1]]])
def test_a_strength_is_not_negative(wrong):
    for make in (L2, L1, lambda strength: ElasticNet(strength, 0.1), lambda strength: ElasticNet(0.1, strength)):
        with pytest.raises(ValueError, match=r"strength is .*; expected a number that is not negative"):
            make(wrong)


@pytest.mark.parametrize(("strength", "message"), [
    ((0.1, 0.2, 0.3), r"strength has 3 numbers; expected one, or 2 for the layers \['A', 'B'\]"),
    ([], "strength has 0 numbers"),
    ({"C": 0.1}, r"strength names the layers \['C'\]; expected those of the network"),
    ({"b_A": 0.1}, r"strength names the layers \['b_A'\]"),
])  # fmt: skip
def test_strengths_for_other_layers(strength, message):
    w = W.copy()
    for regularizer in (L2(strength), L1(strength), ElasticNet(strength, 0.1), ElasticNet(0.1, strength)):
        with pytest.raises(ValueError, match=message):
            regularizer.value(NET, w)
        with pytest.raises(ValueError, match=message):
            fit(NET, w, [[1.0, 1.0]], [1.0], regularizer=regularizer)
    np.testing.assert_array_equal(w, W)


def test_numpys_numbers_are_numbers():
    assert L2(np.float32(0.5)).value(NET, W) == L2({"A": np.float32(0.5), "B": np.float32(0.5)}).value(NET, W)
    assert L2({"A": np.int64(1)}).value(NET, W) == 14


@pytest.mark.parametrize("wrong", ["l2", 0.1, L2])
def test_what_is_no_regularizer(wrong):
    for call in (fit, risk):
        with pytest.raises((ValueError, TypeError), match="regularizer is"):
            call(NET, W.copy(), [[1.0, 1.0]], [1.0], regularizer=wrong)


def test_the_gradient_of_an_object_of_ones_own_is_checked():
    class Short:
        def value(self, net, w):
            return 0.0

        def gradient(self, net, w):
            return w[1:]

    assert isinstance(Short(), SupportsPenalty)
    for call in (fit, risk_gradient):
        with pytest.raises(ValueError, match=r"gradient of the regularizer has shape \(8,\)"):
            call(NET, W.copy(), [[1.0, 1.0]], [1.0], regularizer=Short())


# --- closed forms -----------------------------------------------------------------------------------------------------

# Eight examples, whose seven inputs are orthogonal to each other and to 1, with S^T S = 8 I: in
#   R = 1/8 sum 1/2 (s w + b - y)^2 = 1/2 |w - c|^2 + 1/2 (b - mean y)^2 + a constant,   c = S^T y / 8,
# every weight stands alone, and the minimum of R + l1 |w| + l2 w^2 is w = soft(c, l1) / (1 + 2 l2),
# soft(c, l) = sign(c) max(|c| - l, 0); biases are not penalised, b = mean y. (Tibshirani 1996; Zou & Hastie 2005.)
S = hadamard(8)[:, 1:].astype(float)
C = np.array([2.0, -1.0, 0.3, -0.3, 0.1, 0.0, 0.5])
Y = S @ C + 3.0
LINEAR = Network((7, 1), dtype="float64")


def fitted(regularizer, optimizer, epochs=300, dtype="float64", **settings):
    """Weights (7,) and bias after batch gradient descent."""
    net = Network((7, 1), dtype=dtype)
    w = net.init(1)
    fit(net, w, S, Y, regularizer=regularizer, optimizer=optimizer, batch_size=None, epochs=epochs, **settings)
    return w[:7], w[7]


def soft(c, threshold):
    return np.sign(c) * np.maximum(abs(c) - threshold, 0.0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_the_lasso_is_the_soft_threshold_with_exact_zeros(alpha):
    w, b = fitted(L1(0.3000001, proximal=True), SGD(alpha))
    np.testing.assert_allclose(w, soft(C, 0.3000001), rtol=0, atol=1e-12)
    assert np.flatnonzero(w == 0.0).tolist() == [2, 3, 4, 5]  # |c| <= 0.3: zero to the last bit
    assert b == pytest.approx(3.0, abs=1e-12)


def test_the_lasso_in_float32_with_a_falling_step_size():
    w, _ = fitted(L1(0.31, proximal=True), SGD(0.5, schedule=ExponentialDecay(50, 0.9)), dtype="float32")
    assert w.dtype == np.float32
    np.testing.assert_allclose(w, soft(C, 0.31), rtol=0, atol=1e-6)
    assert np.flatnonzero(w == 0.0).tolist() == [2, 3, 4, 5]


def test_l1_by_its_derivative_comes_near_and_is_never_zero():
    # It steps over 0 and back, by alpha * strength at most.
    w, _ = fitted(L1(0.31), SGD(0.01), epochs=3000)
    np.testing.assert_allclose(w, soft(C, 0.31), rtol=0, atol=2 * 0.01 * 0.31)
    assert (w != 0.0).all()


def test_ridge_shrinks_and_is_not_zero():
    w, b = fitted(L2(0.25), SGD(0.5))
    np.testing.assert_allclose(w, C / 1.5, rtol=0, atol=1e-12)
    assert (abs(w[:5]) > 0.05).all()
    assert b == pytest.approx(3.0, abs=1e-12)


def test_ridge_with_the_bias():
    # 1/2 (b - 3)^2 + 0.25 b^2: b = 3 / 1.5.
    assert fitted(L2(0.25, biases=True), SGD(0.5))[1] == pytest.approx(2.0, abs=1e-12)
    # 1/2 (b - 3)^2 + 0.25 |b|: b = 3 - 0.25.
    assert fitted(L1(0.25, biases=True, proximal=True), SGD(0.5))[1] == pytest.approx(2.75, abs=1e-12)


def test_the_elastic_net():
    w, b = fitted(ElasticNet(0.31, 0.25, proximal=True), SGD(0.5))
    np.testing.assert_allclose(w, soft(C, 0.31) / 1.5, rtol=0, atol=1e-12)
    assert np.flatnonzero(w == 0.0).tolist() == [2, 3, 4, 5]
    assert b == pytest.approx(3.0, abs=1e-12)


def test_the_lasso_of_squared_errors_and_of_sums():
    # (e)^2 is twice 1/2 e^2, and a sum of 8 examples eight times their mean: soft(c, l / 2), soft(c, l / 8).
    np.testing.assert_allclose(
        fitted(L1(0.62, proximal=True), SGD(0.2), loss="squared")[0], soft(C, 0.31), rtol=0, atol=1e-12
    )
    w, _ = fitted(L1(8 * 0.31, proximal=True), SGD(0.5 / 8), loss=HalfSquared().total())
    np.testing.assert_allclose(w, soft(C, 0.31), rtol=0, atol=1e-12)


def test_at_the_lasso_no_direction_leads_down():
    # Without a formula: the risk at the solution is not above that of 1000 neighbours.
    w = np.append(soft(C, 0.31), 3.0)
    best = risk(LINEAR, w, S, Y, regularizer=L1(0.31))
    for step in np.random.default_rng(0).normal(0, 1e-3, (1000, 8)):
        assert risk(LINEAR, w + step, S, Y, regularizer=L1(0.31)) > best


class Ridge:
    """0.25 sum of squared weights, without the bias."""

    def value(self, net, w):
        return 0.25 * float((w[:7] ** 2).sum())

    def gradient(self, net, w):
        return np.append(0.5 * w[:7], 0.0).tolist()  # any array-like


def test_an_object_of_ones_own():
    w, b = fitted(Ridge(), SGD(0.5))
    np.testing.assert_allclose(w, C / 1.5, rtol=0, atol=1e-12)
    assert b == pytest.approx(3.0, abs=1e-12)
    at = np.append(C, 3.0)
    assert risk(LINEAR, at, S, Y, regularizer=Ridge()) == pytest.approx(L2(0.25).value(LINEAR, at), rel=1e-13)


# --- steps ------------------------------------------------------------------------------------------------------------


def steps(regularizer, optimizer, n, w, sizes=(1, 1, 1)):
    """Weights after n updates where the data pull at nothing: s = 0, y = 0, no biases."""
    net = Network(sizes, "linear", bias=False, dtype="float64")
    w = np.array(w)
    zero = np.zeros((1, sizes[0])), np.zeros((1, sizes[-1]))
    fit(net, w, *zero, regularizer=regularizer, optimizer=optimizer, epochs=n)
    return w.tolist()


def test_a_proximal_step_is_as_long_as_the_layers_step_size():
    # alpha strength: 0.1 * 2 = 0.2 in A, 0.5 * 1 = 0.5 in B; a weight within that is 0, and no weight changes sign.
    penalty = L1({"A": 2.0, "B": 1.0}, proximal=True)
    assert steps(penalty, SGD({"A": 0.1, "B": 0.5}), 1, [1.0, 1.0]) == [0.8, 0.5]
    assert steps(penalty, SGD({"A": 0.1, "B": 0.5}), 1, [-1.0, 0.4]) == [-0.8, 0.0]
    assert steps(penalty, SGD({"A": 0.1, "B": 0.5}), 9, [0.15, -0.4]) == [0.0, 0.0]


def test_a_proximal_step_follows_the_schedule():
    # Step sizes 0.5, 0.5, 0.25, 0.25, ...: 3 - 0.5 - 0.5 - 0.25 = 1.75 after three.
    optimizer = SGD(0.5, schedule=StepDecay(2, 0.5))
    assert steps(L1(1.0, proximal=True), optimizer, 3, [3.0, -3.0]) == [1.75, -1.75]


def test_l2_is_weight_decay_and_l1_steps_over_zero():
    # w <- w - alpha 2 strength w = 0.8 w.      w <- w - 0.3 sign w: 0.5, 0.2, -0.1, 0.2.
    np.testing.assert_allclose(steps(L2(1.0), SGD(0.1), 3, [1.0, -2.0]), [0.8**3, -2 * 0.8**3], rtol=1e-15)
    np.testing.assert_allclose(steps(L1(3.0), SGD(0.1), 3, [0.5, -0.5]), [0.2, -0.2], rtol=1e-14)
    assert math.copysign(1, steps(L1(3.0), SGD(0.1), 2, [0.5, -0.5])[0]) == -1


def test_the_penalty_is_in_the_history():
    w = np.append(C, 3.0)
    history = fit(LINEAR, w, S, Y, regularizer=L2(0.25), optimizer=SGD(0.0), epochs=2)
    # Squares of C: 4 + 1 + 0.09 + 0.09 + 0.01 + 0.25 = 5.44.
    np.testing.assert_allclose(history["penalty"], 2 * [0.25 * 5.44], rtol=1e-14)
    np.testing.assert_allclose(history["loss"], 0.0, atol=1e-28)
    assert isinstance(regularizers.L2(0.25), Regularizer)


@pytest.mark.parametrize(
    "optimizer", [SGD(0.1), Momentum(0.01, 0.9), RMSProp(0.01), Adam(0.01)], ids=lambda o: type(o).__name__
)
def test_a_proximal_penalty_has_its_minimum_whatever_the_optimizer(optimizer):
    # Orthogonal inputs with mean square 1, least squares (3, 0.1): the lasso takes 0.2 off each, which is (2.8, 0).
    S, y = [[1, 1], [1, -1], [-1, 1], [-1, -1]], [3.1, 2.9, -2.9, -3.1]
    net = Network((2, 1), bias=False, dtype="float64")
    w = np.zeros(2)
    fit(net, w, S, y, optimizer=optimizer, regularizer=L1(0.2, proximal=True), batch_size=None, epochs=4000)
    assert w[0] == pytest.approx(2.8, abs=1e-6)
    assert w[1] == 0.0
