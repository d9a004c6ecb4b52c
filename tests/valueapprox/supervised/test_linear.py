"""Linear models: the closed form beside NumPy's, the notes' rules by hand, logistic and softmax beside SciPy."""

import doctest

import numpy as np
import pytest
from scipy import optimize, special

from valueapprox import SGD, FitError, ValueFunction, linear, regularizers
from valueapprox import risk as network_risk

# Four points: mean of s 1.5, of y 4; sum (s - 1.5)(y - 4) = 4.5 + 0.5 + 0 + 6 = 11, sum (s - 1.5)^2 = 5.
# So w_1 = 11 / 5 = 2.2 and w_0 = 4 - 2.2 * 1.5 = 0.7.
POINTS = np.array([[0.0], [1.0], [2.0], [3.0]])
VALUES = np.array([1.0, 3.0, 4.0, 8.0])


def drawn(n, d, k=None, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)[:1] if k is None else (n, k))


def central_differences(f, w, h=1e-5):
    numeric = np.zeros_like(w)
    for at in np.ndindex(w.shape):
        change = np.zeros_like(w)
        change[at] = h
        numeric[at] = (f(w + change) - f(w - change)) / (2 * h)
    return numeric


def test_the_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(linear)
    assert attempted > 15
    assert failed == 0


# The model and its risk -----------------------------------------------------------------------------------------------


def test_augment_is_the_gradient_of_the_linear_model():
    s = np.array([2.0, -3.0])
    assert linear.augment(s).tolist() == [1, 2, -3]
    w = np.array([0.5, 1.0, 2.0])
    numeric = central_differences(lambda w: float(linear.predict(w, [s])[0]), w)
    np.testing.assert_allclose(linear.augment(s), numeric, rtol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_the_gradient_of_the_risk_equals_central_differences(k, ridge):
    S, y = drawn(20, 4, k)
    w = np.random.default_rng(1).normal(size=(5,) if k is None else (5, k))
    ours = linear.risk_gradient(w, S, y, ridge)
    assert ours.shape == w.shape
    numeric = central_differences(lambda w: linear.risk(w, S, y, ridge), w)
    assert np.linalg.norm(numeric - ours) < 1e-7 * np.linalg.norm(ours)


def test_the_gradient_of_one_example_is_that_of_the_note():
    # h = 0.5 + 2 * 3 = 6.5, y = 4: dLoss/dw0 = -2 (4 - 6.5) = 5, dLoss/dw1 = -2 (4 - 6.5) 3 = 15.
    assert linear.risk_gradient([0.5, 2.0], [[3.0]], [4.0]).tolist() == [5, 15]


def test_the_risk_is_that_of_the_network_with_the_same_weights():
    for k in (None, 3):
        S, y = drawn(20, 4, k)
        w = linear.least_squares(S, y + 1.0)
        net, packed = linear.to_network(w)
        assert network_risk(net, packed, S, y, "squared") == pytest.approx(linear.risk(w, S, y), rel=1e-13)


# Closed form ----------------------------------------------------------------------------------------------------------


def test_least_squares_by_hand():
    np.testing.assert_allclose(linear.least_squares(POINTS, VALUES), [0.7, 2.2], rtol=1e-14)


@pytest.mark.parametrize(("n", "d"), [(50, 4), (5, 4), (3, 4), (1, 2)])  # the last two leave w undetermined
@pytest.mark.parametrize("k", [None, 2])
def test_least_squares_is_the_pseudo_inverse_times_y(n, d, k):
    S, y = drawn(n, d, k)
    w = linear.least_squares(S, y)
    assert w.shape == (d + 1, *y.shape[1:])
    np.testing.assert_allclose(w, np.linalg.pinv(np.column_stack([np.ones(n), S])) @ y, rtol=1e-9, atol=1e-12)


def test_inputs_that_depend_on_each_other_share_the_weight_in_the_solution_of_least_norm():
    # s_2 = s_1 = (-1, 1) and y = 4 s_1: of all w_1 + w_2 = 4, (2, 2) is shortest.
    w = linear.least_squares([[-1.0, -1.0], [1.0, 1.0]], [-4.0, 4.0])
    np.testing.assert_allclose(w, [0, 2, 2], atol=1e-14)


def test_least_squares_survives_what_the_normal_equations_do_not():
    # Columns 1, e and 1, -e: Aug^T Aug has condition 1e18, beyond float64; singular values lose half as many digits.
    e = 1e-9
    S = np.array([[1.0 + e], [1.0 - e], [1.0 + 3 * e]])
    w = linear.least_squares(S, 2.0 * S[:, 0] - 1.0)
    np.testing.assert_allclose(linear.predict(w, S), 2.0 * S[:, 0] - 1.0, rtol=1e-14)
    assert np.linalg.cond(linear.augment(S)) ** 2 > 1e17


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize(("n", "d"), [(50, 4), (3, 4)])
def test_ridge_is_where_the_gradient_vanishes(n, d, k):
    S, y = drawn(n, d, k)
    w = linear.least_squares(S, y, ridge=0.3)
    np.testing.assert_allclose(linear.risk_gradient(w, S, y, ridge=0.3), 0, atol=1e-13)
    assert np.linalg.norm(w[1:]) < np.linalg.norm(linear.least_squares(S, y)[1:])


def test_ridge_by_hand_leaves_the_constant_alone():
    # s = (-1, 1), y = (2, 6): w_0 = 4, and 1/2 ((w - 2)^2 + (w - 2)^2) + ridge w^2 is least at w = 2 / (1 + ridge).
    np.testing.assert_allclose(linear.least_squares([[-1.0], [1.0]], [2.0, 6.0], ridge=3.0), [4, 0.5], rtol=1e-14)


# The rules ------------------------------------------------------------------------------------------------------------


def test_one_step_of_every_rule_by_hand():
    # w = (1, 2), alpha = 0.1. h(1) = 3, h(2) = 5 and y = (4, 9): errors 1 and 4.
    S, y, w = [[1.0], [2.0]], [4.0, 9.0], [1.0, 2.0]
    # One example: (1 + 0.1 * 1, 2 + 0.1 * 1 * 1).
    np.testing.assert_allclose(linear.per_example_rule(w, S[0], y[0], 0.1), [1.1, 2.1])
    # All: 1 + 0.1 (1 + 4), 2 + 0.1 (1 * 1 + 4 * 2).
    np.testing.assert_allclose(linear.batch_rule(w, S, y, 0.1), [1.5, 2.9])
    np.testing.assert_allclose(linear.gradient_descent(S, y, 0.1, max_iterations=1, start=w).w, [1.5, 2.9])
    # One after the other: from (1.1, 2.1), h(2) = 5.3, error 3.7: (1.1 + 0.37, 2.1 + 0.74).
    end = linear.gradient_descent(S, y, 0.1, "per-example", max_iterations=1, start=w)
    np.testing.assert_allclose(end.w, [1.47, 2.84])
    # In the other order: (1.4, 2.8) after the second example, h(1) = 4.2, error -0.2: (1.38, 2.78).
    ends = {
        tuple(linear.gradient_descent(S, y, 0.1, "stochastic", max_iterations=1, start=w, seed=seed).w.round(9))
        for seed in range(20)
    }
    assert ends == {(1.47, 2.84), (1.38, 2.78)}


def test_several_outputs_are_learned_as_each_on_its_own():
    S, Y = drawn(20, 3, 2)
    for rule in ("batch", "per-example", "stochastic"):
        both = linear.gradient_descent(S, Y, 0.01, rule, max_iterations=5).w
        for k in range(2):
            alone = linear.gradient_descent(S, Y[:, k], 0.01, rule, max_iterations=5).w
            np.testing.assert_allclose(both[:, k], alone, rtol=1e-12)


def test_the_batch_rule_is_half_the_gradient_of_the_notes_loss():
    # Loss = n R, and the factor 2 is in alpha: w - alpha / 2 n grad R.
    S, y = drawn(20, 3)
    w = np.array([0.5, -1.0, 2.0, 0.1])
    stepped = w - 0.01 / 2 * 20 * linear.risk_gradient(w, S, y)
    np.testing.assert_allclose(linear.batch_rule(w, S, y, 0.01), stepped, rtol=1e-13)


def test_the_batch_rule_converges_to_the_closed_form():
    w, values, converged = linear.gradient_descent(POINTS, VALUES, 0.1, tolerance=1e-14)
    assert converged
    assert len(values) < 1001
    np.testing.assert_allclose(w, [0.7, 2.2], rtol=1e-12)
    # At w = 0 the loss is the mean of y^2: (1 + 9 + 16 + 64) / 4. At the end the errors are 0.3, 0.1, -1.1, 0.7.
    assert values[0] == 22.5
    assert values[-1] == pytest.approx((0.09 + 0.01 + 1.21 + 0.49) / 4)
    assert (np.diff(values) <= 1e-15).all()


@pytest.mark.parametrize("rule", ["per-example", "stochastic"])
def test_the_rules_of_one_example_converge_where_the_data_have_no_noise_and_come_near_where_they_have(rule):
    exact = linear.gradient_descent(POINTS, 0.7 + 2.2 * POINTS[:, 0], 0.1, rule, tolerance=1e-13)
    assert exact.converged
    np.testing.assert_allclose(exact.w, [0.7, 2.2], rtol=1e-10)
    far, near = (
        np.linalg.norm(linear.gradient_descent(POINTS, VALUES, alpha, rule, 4000).w - [0.7, 2.2])
        for alpha in (0.05, 0.002)
    )
    assert 0 < near < 0.01
    assert near < 0.2 * far  # in proportion to alpha, but for chance


def test_descents_depend_on_the_seed_alone():
    runs = [linear.gradient_descent(POINTS, VALUES, 0.05, "stochastic", 10, seed=seed) for seed in (3, 3, 4)]
    assert runs[0].w.tobytes() == runs[1].w.tobytes() != runs[2].w.tobytes()
    assert runs[0].losses.tobytes() == runs[1].losses.tobytes()


def test_the_bound_on_alpha_that_divergence_names_is_the_bound():
    # Aug^T Aug = [[4, 6], [6, 14]]: its largest eigenvalue is 9 + sqrt(61), so alpha < 2 / 16.8102 = 0.118975.
    for alpha, finite in ((0.1189, True), (0.1191, False)):
        values = linear.gradient_descent(POINTS, VALUES, alpha, max_iterations=3000).losses
        assert (values[-1] < values[0]) == finite
    with pytest.raises(FitError, match=r"after iteration \d+: alpha is 1; with these data the batch .* below 0\.119"):
        linear.gradient_descent(POINTS, VALUES, 1.0)
    # |Aug(s)|^2 is at most 1 + 3^2.
    with pytest.raises(FitError, match=r"the per-example rule is stable below 0\.2"):
        linear.gradient_descent(POINTS, VALUES, 1.0, "per-example")


def test_minimise_is_the_notes_algorithm():
    # f = theta_1^2 + 2 theta_2^2 with eta = 0.1: each step multiplies by 1 - 0.2 and 1 - 0.4.
    theta = np.array([1.0, 1.0])
    end = linear.minimise(lambda t: np.array([2.0, 4.0]) * t, theta, 0.1, 7, loss=lambda t: t[0] ** 2 + 2 * t[1] ** 2)
    np.testing.assert_allclose(end.w, [0.8**7, 0.6**7], rtol=1e-14)
    np.testing.assert_allclose(end.losses, 0.64 ** np.arange(8) + 2 * 0.36 ** np.arange(8), rtol=1e-14)
    assert not end.converged
    assert theta.tolist() == [1, 1]
    # A step is 0.2 * 0.8^t in theta_1; it is at most 0.001 from t = 24 on (0.2 * 0.8^24 = 0.00094), the 25th step.
    end = linear.minimise(lambda t: np.array([2.0, 4.0]) * t, theta, 0.1, tolerance=0.001)
    assert end.converged
    np.testing.assert_allclose(end.w[0], 0.8**25, rtol=1e-13)
    calls = []
    linear.minimise(lambda t: calls.append(1) or t, theta, 0.1)
    assert len(calls) == 1000


def test_minimise_says_when_it_diverges():
    with pytest.raises(FitError, match="eta is 3; a smaller one helps"):
        linear.minimise(lambda theta: 2 * theta, [1.0], 3.0, 10_000)
    with pytest.raises(FitError, match="after iteration 2"):  # 1 - 1 = 0, then a gradient without value
        linear.minimise(lambda theta: np.where(theta > 0, theta, np.nan), [1.0], 1.0)


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 2])
def test_a_linear_fit_becomes_a_value_function(k):
    S, y = drawn(30, 3, k)
    w = linear.least_squares(S, y)
    net, packed = linear.to_network(w)
    np.testing.assert_allclose(net.forward(packed, S).reshape(y.shape), linear.predict(w, S), rtol=1e-12, atol=1e-14)
    assert net.block(packed, "b1").tolist() == np.atleast_1d(w[0]).tolist()
    if k is None:
        v = ValueFunction(net, SGD(0.1))
        v.w[:] = packed
        assert v.predict(S[0]) == pytest.approx(linear.predict(w, S[:1])[0], rel=1e-12)


def labelled(k, seed=0):
    """120 states and classes that overlap, drawn from a softmax of known weights."""
    rng = np.random.default_rng(seed)
    S = rng.normal(size=(120, 3))
    z = S @ rng.normal(size=(3, k)) + rng.normal(size=k)
    return S, (z + rng.gumbel(size=z.shape)).argmax(axis=1)


@pytest.mark.parametrize("strength", [0.0, 0.05])
def test_logistic_regression_finds_scipys_minimum(strength):
    S, y = labelled(2)

    def objective(v):  # w_0 first; log(1 + exp(z)) - y z
        z = v[0] + S @ v[1:]
        return np.mean(np.logaddexp(0, z) - y * z) + strength * v[1:] @ v[1:]

    best = optimize.minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    net, w, history = linear.logistic_regression(S, y, regularizers.L2(strength), gradient_tolerance=1e-9)
    assert history.reason.startswith("converged: the gradient's norm")
    np.testing.assert_allclose(np.roll(w, 1), best.x, atol=1e-6)  # ours has the bias last
    assert network_risk(net, w, S, y, "log_loss", regularizers.L2(strength)) == pytest.approx(best.fun, rel=1e-12)
    np.testing.assert_allclose(net.forward(w, S)[:, 0], special.expit(best.x[0] + S @ best.x[1:]), atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.05])
def test_softmax_regression_finds_scipys_minimum(strength):
    S, y = labelled(3)

    def objective(v):
        v = v.reshape(4, 3)
        f = special.log_softmax(v[0] + S @ v[1:], axis=1)
        return -f[np.arange(len(y)), y].mean() + strength * (v[1:] ** 2).sum()

    best = optimize.minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-8}).x.reshape(4, 3)
    _, w, history = linear.softmax_regression(S, y, regularizers.L2(strength), gradient_tolerance=1e-9)
    assert history.reason.startswith("converged")
    best -= best.mean(axis=1, keepdims=True)  # adding a vector to every class's weights changes nothing
    np.testing.assert_allclose(w.reshape(4, 3), np.vstack([best[1:], best[:1]]), atol=2e-6)
    np.testing.assert_allclose(w.reshape(4, 3).sum(axis=1), 0, atol=1e-12)


def test_two_classes_by_softmax_are_logistic_regression():
    # softmax of (z_0, z_1) is sigmoid of z_1 - z_0; without penalty the minimum is the same.
    S, y = labelled(2)
    _, one, _ = linear.logistic_regression(S, y, gradient_tolerance=1e-9)
    _, two, _ = linear.softmax_regression(S, y, gradient_tolerance=1e-9)
    np.testing.assert_allclose(two.reshape(4, 2) @ [-1, 1], one, atol=1e-6)


def test_several_labels_are_as_many_logistic_regressions():
    S, y = labelled(3)
    Y = np.column_stack([y == 0, y == 2])
    together = linear.logistic_regression(S, Y, gradient_tolerance=1e-8)[1].reshape(4, 2)
    for k in range(2):
        alone = linear.logistic_regression(S, Y[:, k], gradient_tolerance=1e-8)[1]
        np.testing.assert_allclose(together[:, k], alone, atol=1e-5)


def test_proximal_l1_removes_the_input_that_does_not_matter():
    # Optimality of the lasso: |dR/dw_i| <= strength where w_i = 0, and dR/dw_i = -strength sign(w_i) elsewhere.
    S, y = labelled(2)
    S = np.column_stack([S, np.random.default_rng(5).normal(size=len(S))])
    _, w, history = linear.logistic_regression(S, y, regularizers.L1(0.05, proximal=True))
    assert history.reason.startswith("converged")
    gradient = (special.expit(S @ w[:4] + w[4]) - y) @ S / len(S)
    assert w[3] == 0.0
    assert abs(gradient[3]) < 0.05
    on = w[:4] != 0
    assert on.any()
    np.testing.assert_allclose(gradient[on], -0.05 * np.sign(w[:4][on]), atol=2e-6)


def test_options_are_those_of_fit():
    S, y = labelled(2)
    net, w, history = linear.logistic_regression(S, y, optimizer=SGD(0.1), batch_size=30, max_iterations=None, epochs=3)
    assert history.n_updates == 12
    assert history.reason == "3 epochs done"
    assert (net.sizes, net.output, w.dtype) == ((3, 1), "sigmoid", np.float64)
    S, y = labelled(3)
    net, _, _ = linear.softmax_regression(S, y, n_classes=5, max_iterations=2)
    assert (net.sizes, net.output) == ((3, 5), "softmax")


def test_classes_may_be_probabilities():
    # One input that is always 0: the best f is the mean of the given probabilities, (0.4, 0.3, 0.3).
    net, w, _ = linear.softmax_regression(np.zeros((2, 1)), [[0.6, 0.2, 0.2], [0.2, 0.4, 0.4]], gradient_tolerance=1e-9)
    np.testing.assert_allclose(net.forward(w, [0.0]), [0.4, 0.3, 0.3], atol=1e-8)


# Bad input ------------------------------------------------------------------------------------------------------------

EMPTY, NAN = np.zeros((0, 1)), np.array([[0.0], [np.nan], [2.0], [3.0]])
FITTERS = {
    "least squares": linear.least_squares,
    "gradient descent": lambda S, y: linear.gradient_descent(S, y, 0.1),
    "batch rule": lambda S, y: linear.batch_rule([0.0, 0.0], S, y, 0.1),
    "risk": lambda S, y: linear.risk([0.0, 0.0], S, y),
    "gradient of the risk": lambda S, y: linear.risk_gradient([0.0, 0.0], S, y),
    "logistic regression": lambda S, y: linear.logistic_regression(S, np.asarray(y) / 8),
    "softmax regression": lambda S, y: linear.softmax_regression(S, np.asarray(y), n_classes=9),
}


@pytest.mark.parametrize("fitter", FITTERS)
def test_bad_examples_are_clear_errors(fitter):
    fitter = FITTERS[fitter]
    fitter(POINTS, VALUES)
    with pytest.raises(ValueError, match="S has no rows; expected at least one example"):
        fitter(EMPTY, [])
    with pytest.raises(ValueError, match=r"S\[1, 0\] is nan; expected finite numbers"):
        fitter(NAN, VALUES)
    with pytest.raises(ValueError, match=r"^Y.*inf"):
        fitter(POINTS, [1.0, np.inf, 4.0, 8.0])
    with pytest.raises(ValueError, match=r"S has shape \(4,\); expected \(n, d\)"):
        fitter(POINTS[:, 0], VALUES)
    with pytest.raises(ValueError, match=r"Y has shape \(3,\)"):
        fitter(POINTS, VALUES[:3])
    with pytest.raises(TypeError, match="S holds <U1; expected real numbers"):
        fitter([["a"]], [1.0])


BAD = {
    "weights": (lambda: linear.risk([1.0], POINTS, VALUES), r"w has shape \(1,\); expected \(2,\)"),
    "weights of several outputs": (lambda: linear.predict(np.ones((3, 2)), POINTS), r"expected \(2, 2\)"),
    "weights not finite": (lambda: linear.predict([np.nan, 1.0], POINTS), "w holds nan"),
    "weights for a network": (lambda: linear.to_network([1.0]), r"w has shape \(1,\); expected \(d \+ 1,\)"),
    "alpha": (lambda: linear.gradient_descent(POINTS, VALUES, -0.1), "alpha is -0.1"),
    "alpha not finite": (lambda: linear.batch_rule([0.0, 0.0], POINTS, VALUES, np.nan), "alpha is nan"),
    "eta": (lambda: linear.minimise(lambda t: t, [1.0], np.inf), "eta is inf"),
    "gradient's shape": (lambda: linear.minimise(lambda t: [1.0, 2.0], [1.0], 0.1), r"the gradient has shape \(2,\)"),
    "theta": (lambda: linear.minimise(lambda t: t, [np.nan], 0.1), "theta holds nan"),
    "ridge": (lambda: linear.least_squares(POINTS, VALUES, ridge=-1.0), "ridge is -1.0"),
    "tolerance": (lambda: linear.gradient_descent(POINTS, VALUES, 0.1, tolerance=-1.0), "tolerance is -1.0"),
    "iterations": (lambda: linear.gradient_descent(POINTS, VALUES, 0.1, max_iterations=0), "max_iterations is 0"),
    "rule": (lambda: linear.gradient_descent(POINTS, VALUES, 0.1, "bach"), "did you mean 'batch'"),
    "seed": (lambda: linear.gradient_descent(POINTS, VALUES, 0.1, seed=-1), "seed is -1"),
    "a batch as one example": (lambda: linear.per_example_rule([0.0, 0.0], POINTS, 1.0, 0.1), r"s has shape \(4, 1\)"),
    "one label": (lambda: linear.logistic_regression(POINTS, [0, 1, 2, 1]), "Y holds 2; expected labels"),
    "a gap in the classes": (lambda: linear.softmax_regression(POINTS, [0, 1, 7, 1]), "3 different classes"),
    "a class below 0": (lambda: linear.softmax_regression(POINTS, [0, 1, -1, 1]), "-1"),
    "half a class": (lambda: linear.softmax_regression(POINTS, [0, 1, 0.5, 1]), "0.5"),
    "number of classes": (lambda: linear.softmax_regression(POINTS, [0, 1, 2, 1], n_classes=2), "2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_clear_errors(name):
    call, says = BAD[name]
    with pytest.raises(ValueError, match=says):
        call()


def test_nothing_given_is_changed():
    S, y, w = POINTS.copy(), VALUES.copy(), np.array([1.0, 2.0])
    linear.batch_rule(w, S, y, 0.1)
    linear.gradient_descent(S, y, 0.1, start=w)
    linear.least_squares(S, y, ridge=0.1)
    linear.risk_gradient(w, S, y, 0.1)
    assert (S.tobytes(), y.tobytes(), w.tolist()) == (POINTS.tobytes(), VALUES.tobytes(), [1, 2])
