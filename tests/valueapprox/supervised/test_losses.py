"""Losses: by hand, against SciPy, at the ends of the numbers; targets and output layers that make sense, and errors."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import special

from valueapprox import SGD, History, Network, fit, losses, risk, risk_gradient
from valueapprox.compiling import kernel
from valueapprox.nn.activations import OUTPUT
from valueapprox.supervised.losses.base import OWN

LOG2, LOG3 = math.log(2), math.log(3)

# --- values and derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "yhat", "y", "value", "derivative"), [
    # e = (2, -3): 4 + 9; 2 e.
    ("squared", [3.0, 1.0], [1.0, 4.0], 13.0, [4.0, -6.0]),
    # Half of it.
    ("half_squared", [3.0, 1.0], [1.0, 4.0], 6.5, [2.0, -3.0]),
    # |e| = 0.5 <= 1: 1/2 0.25 and e.   |e| = 3 > 1: 1 (3 - 1/2) and -1.
    ("huber", [1.5, 1.0], [1.0, 4.0], 0.125 + 2.5, [0.5, -1.0]),
    # -log(1/2), and -log(1 - 3/4) = log 4; (p - y) / (p (1 - p)) = -1/2 / (1/4) = -2, and 3/4 / (3/16) = 4.
    ("log_loss", [0.5, 0.75], [1.0, 0.0], LOG2 + 2 * LOG2, [-2.0, 4.0]),
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4: the same loss, but p - y.
    ("log_loss_from_logits", [0.0, LOG3], [1.0, 0.0], 3 * LOG2, [-0.5, 0.75]),
    # A label of 0.3: -0.3 log 1/2 - 0.7 log 1/2 = log 2; 1/2 - 0.3.
    ("log_loss_from_logits", [0.0], [0.3], LOG2, [0.2]),
    # -log 1/4; -1 / (1/4) for the class, 0 elsewhere.
    ("nll", [0.25, 0.75], [1.0, 0.0], 2 * LOG2, [-4.0, 0.0]),
    # softmax(0, log 3) = (1/4, 3/4): the same loss, but p - y.
    ("nll_from_logits", [0.0, LOG3], [1.0, 0.0], 2 * LOG2, [-0.75, 0.75]),
    # Half one class, half the other: 1/2 log 4 + 1/2 log 4/3.
    ("nll_from_logits", [0.0, LOG3], [0.5, 0.5], LOG2 + 0.5 * (2 * LOG2 - LOG3), [-0.25, 0.25]),
])  # fmt: skip
def test_by_hand(loss, yhat, y, value, derivative):
    loss = losses.get(loss)
    np.testing.assert_allclose(loss.value([yhat], [y]), [value], rtol=1e-14)
    np.testing.assert_allclose(loss.derivative([yhat], [y]), [derivative], rtol=1e-14, atol=1e-15)


def test_mse_is_a_mean_over_outputs_too_and_squared_is_not():
    # Two examples of two outputs, e = (2, -3), (0, 1): (4 + 9 + 0 + 1) / 4, or / 2, or the sum.
    net = Network((2, 2), bias=False, dtype="float64")
    w, S, Y = np.eye(2).ravel(), [[3.0, 1.0], [5.0, 2.0]], [[1.0, 4.0], [5.0, 1.0]]
    assert risk(net, w, S, Y, "mse") == 3.5
    assert risk(net, w, S, Y, "squared") == 7.0
    assert risk(net, w, S, Y, "half_squared") == 3.5
    assert risk(net, w, S, Y, losses.MSE().total()) == risk(net, w, S, Y, losses.Squared().total()) == 14.0
    assert losses.MSE().total().mean() == losses.MSE()


# --- what every registered loss can do --------------------------------------------------------------------------------


def examples(loss, n, k):
    """Outputs and targets (n, k) that the loss can take."""
    rng = np.random.default_rng(0)
    yhat, y = rng.normal(0, 2, (n, k)), rng.normal(0, 2, (n, k))
    if loss.output == "sigmoid":
        yhat = special.expit(yhat)
    if loss.output == "softmax":
        yhat = special.softmax(yhat, axis=1)
    return yhat, y if loss.targets_are == "numbers" else np.eye(k)[rng.integers(k, size=n)]


def its_derivative_is_that_of_its_value(name):
    loss = losses.get(name)
    yhat, y = examples(loss, 20, 3)
    steps = 1e-6 * np.eye(3)
    numeric = [(loss.value(yhat + h, y) - loss.value(yhat - h, y)) / 2e-6 for h in steps]
    np.testing.assert_allclose(loss.derivative(yhat, y), np.transpose(numeric), rtol=1e-6, atol=1e-6)


def float32_gives_the_same_to_its_digits(name):
    loss = losses.get(name)
    yhat, y = (array.astype(np.float32) for array in examples(loss, 20, 3))
    for ours in (loss.value, loss.derivative):
        assert ours(yhat, y).dtype == np.float32
        np.testing.assert_allclose(ours(yhat, y), ours(yhat.astype(float), y.astype(float)), rtol=2e-5, atol=2e-6)


def one_by_one_is_all_at_once(name):
    loss = losses.get(name)
    yhat, y = examples(loss, 20, 3)
    np.testing.assert_array_equal(
        loss.value(yhat, y), [loss.value(yhat[i : i + 1], y[i : i + 1])[0] for i in range(20)]
    )


def a_nan_is_not_lost(name):
    loss = losses.get(name)
    for row in ([np.nan, 0.5], [0.5, np.nan]):
        assert np.isnan(loss.value([row], [[0.0, 1.0]])[0])


def a_sum_is_n_times_the_mean(name):
    loss = losses.get(name)
    net = Network((3, 4, 2), output=loss.output or "linear", dtype="float64")
    w, S = net.init(0), np.random.default_rng(0).normal(size=(7, 3))
    Y = examples(loss, 7, 2)[1]
    n = 14 if loss.over_outputs else 7
    mean, total = (risk_gradient(net, w, S, Y, kind) for kind in (loss, loss.total()))
    assert total[0] == pytest.approx(n * mean[0], rel=1e-13)
    np.testing.assert_allclose(total[1], n * mean[1], rtol=1e-12, atol=1e-14)


def a_fit_lowers_it_and_goes_on_from_its_file(name, path):
    loss = losses.get(name)
    net = Network((3, 2), output=loss.output or "linear", dtype="float64")
    S, Y = np.random.default_rng(0).normal(size=(16, 3)), examples(loss, 16, 2)[1]
    options = {"loss": name, "batch_size": None, "optimizer": SGD(0.05), "progress": False}
    w, again = net.init(0), net.init(0)
    history = fit(net, w, S, Y, epochs=8, **options)
    assert (np.diff(history["loss"]) < 0).all()
    fit(net, again, S, Y, epochs=3, **options).save(path)
    fit(net, again, S, Y, epochs=8, resume=path, **options)
    np.testing.assert_array_equal(again, w)


CONFORMANCE = (
    its_derivative_is_that_of_its_value, float32_gives_the_same_to_its_digits, one_by_one_is_all_at_once,
    a_nan_is_not_lost, a_sum_is_n_times_the_mean,
)  # fmt: skip


@pytest.mark.parametrize("check", CONFORMANCE)
@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss(name, check):
    check(name)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_can_be_fitted(name, tmp_path):
    a_fit_lowers_it_and_goes_on_from_its_file(name, tmp_path / "fit.npz")


@pytest.fixture
def registry():
    """The registry of losses, which is as before afterwards."""
    known = dict(losses.LOSSES)
    yield losses.LOSSES
    losses.LOSSES.clear()
    losses.LOSSES.update(known)


@kernel(inline=True, exact=True)
def quartic(yhat, y, d, a, b, k, loss):
    total = yhat.dtype.type(0)
    for j in range(k):
        error = yhat[a + j] - y[b + j]
        total += error * error * error * error
        d[a + j] = yhat.dtype.type(4) * error * error * error
    return total


@dataclass(frozen=True)
class Quartic(losses.Loss):
    """sum_k (yhat_k - y_k)^4."""

    rule = quartic


@pytest.mark.usefixtures("registry")
def test_a_loss_is_a_rule_and_a_line(tmp_path):
    losses.register("quartic")(Quartic)
    assert losses.get("quartic").value([3.0], [1.0]).tolist() == [16.0]
    for check in CONFORMANCE:
        check("quartic")
    net = Network((1, 1), bias=False, dtype="float64")
    w = np.zeros(1)
    # e = -1: w = 0 + 0.1 4; then e = -0.6: w = 0.4 + 0.1 4 0.216
    history = fit(net, w, [[1.0]], [1.0], loss="quartic", optimizer=SGD(0.1), epochs=2, progress=False)
    assert history["loss"].tolist() == pytest.approx([1.0, 0.6**4])
    assert w.tolist() == pytest.approx([0.4864])
    history.save(tmp_path / "fit.npz")
    assert History.load(tmp_path / "fit.npz").settings["loss"] == {"name": "quartic", "reduction": "mean"}


@kernel(inline=True, exact=True)
def slope_of_another(yhat, y, d, a, b, k, loss):
    total = yhat.dtype.type(0)
    for j in range(k):
        error = yhat[a + j] - y[b + j]
        total += error * error
        d[a + j] = error
    return total


@kernel(inline=True, exact=True)
def reads_a_wrong_target(yhat, y, d, a, b, k, loss):
    total = yhat.dtype.type(0)
    for j in range(k):
        error = yhat[a + j] - y[a + j]
        total += error * error
        d[a + j] = yhat.dtype.type(2) * error
    return total


@kernel(inline=True, exact=True)
def wants_a_setting(yhat, y, d, a, b, k, loss):
    return loss[OWN] * quartic(yhat, y, d, a, b, k, loss)


@kernel(inline=True, exact=True)
def of_six(yhat, y, d, a, b, k):
    return yhat[a]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(("name", "members", "message"), [
    ("squared", {"rule": quartic}, "name of Toy is 'squared'; Squared is registered as 'squared'"),
    ("toy", {}, "rule of Toy is missing; expected a kernel"),
    ("toy", {"rule": slope_of_another}, "Toy cannot be used: its derivative at .*; expected that of its value"),
    ("toy", {"rule": reads_a_wrong_target}, "Toy cannot be used: its derivative at"),
    ("toy", {"rule": wants_a_setting}, "Toy cannot be used: index 1 is out of bounds"),
    ("toy", {"rule": of_six}, "Toy cannot be used: .*takes 6 positional arguments but 7 were given"),
    ("toy", {"rule": quartic, "targets_are": "words"}, "Toy cannot be used: targets_are is 'words'"),
])  # fmt: skip
def test_what_cannot_work_is_an_error_when_it_is_registered(name, members, message):
    before = dict(losses.LOSSES)
    with pytest.raises(TypeError, match=message):
        losses.register(name)(dataclass(frozen=True)(type("Toy", (losses.Loss,), members)))
    assert before == losses.LOSSES


def test_a_setting_without_default_is_an_error_when_it_is_registered():
    @dataclass(frozen=True)
    class Toy(losses.Loss):
        power: float
        rule = quartic

    with pytest.raises(TypeError, match=r"Toy cannot be used: .*missing 1 required positional argument: 'power'"):
        losses.register("toy")(Toy)


def softplus(x):
    return np.logaddexp(0.0, x)


# Value and derivative in SciPy's functions, entry by entry; to be summed over outputs.
SCIPY = {
    "squared": (lambda a, y: (a - y) ** 2, lambda a, y: 2 * (a - y)),
    "half_squared": (lambda a, y: (a - y) ** 2 / 2, lambda a, y: a - y),
    "huber": (lambda a, y: special.huber(1.0, a - y), lambda a, y: np.clip(a - y, -1, 1)),
    "log_loss": (
        lambda p, y: -special.xlogy(y, p) - special.xlog1py(1 - y, -p),
        lambda p, y: (1 - y) / (1 - p) - y / p,
    ),
    "log_loss_from_logits": (
        lambda a, y: y * softplus(-a) + (1 - y) * softplus(a),
        lambda a, y: special.expit(a) - y,
    ),
    "nll": (lambda p, y: -special.xlogy(y, p), lambda p, y: -y / p),
    "nll_from_logits": (
        lambda a, y: y * (special.logsumexp(a, axis=1, keepdims=True) - a),
        lambda a, y: special.softmax(a, axis=1) - y,
    ),
}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-5)])
@pytest.mark.parametrize("name", SCIPY)
def test_scipy_says_the_same(name, dtype, tolerance, k):
    rng = np.random.default_rng(0)
    yhat, y = rng.normal(0, 3, (200, k)), rng.normal(0, 3, (200, k))
    if name == "log_loss":
        yhat = rng.uniform(0.01, 0.99, (200, k))
    if name.startswith("log_loss"):
        y = rng.choice([0, 1, 0.25], (200, k))
    if name.startswith("nll"):
        y = special.softmax(rng.normal(size=(200, k)), axis=1)
        yhat = special.softmax(yhat, axis=1) if name == "nll" else yhat
    yhat, y = yhat.astype(dtype), y.astype(dtype)
    loss = losses.get(name)
    value, derivative = (f(yhat.astype(float), y.astype(float)) for f in SCIPY[name])
    assert loss.value(yhat, y).dtype == loss.derivative(yhat, y).dtype == dtype
    np.testing.assert_allclose(loss.value(yhat, y), value.sum(axis=1), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loss.derivative(yhat, y), derivative, rtol=tolerance, atol=tolerance)
    if k == 1:  # a column and a plain row of numbers are the same
        np.testing.assert_array_equal(loss.value(yhat[:, 0], y[:, 0]), loss.value(yhat, y))


def test_every_loss_is_tested_against_scipy():
    assert set(SCIPY) | {"mse"} == set(losses.LOSSES)


# --- the ends of the numbers ------------------------------------------------------------------------------------------


def test_logits_of_a_thousand():
    # log(1 + exp(1000)) = 1000 to the last bit, and log(1 + exp(-1000)) = 0.
    loss = losses.LogLossFromLogits()
    for dtype in (np.float32, np.float64):
        yhat = np.array([1000, 1000, -1000, -1000, 1000, -1000], dtype)
        y = np.array([1, 0, 1, 0, 0.25, 0.25], dtype)
        assert loss.value(yhat, y).tolist() == [0, 1000, 1000, 0, 750, 250]
        assert loss.derivative(yhat, y).ravel().tolist() == [0, 1, -1, 0, 0.75, -0.25]


def test_small_losses_keep_their_digits():
    # log(1 + exp(-40)) = exp(-40) - exp(-80) / 2 + ... = 4.248e-18, far below what changes 1.
    for theta, y in ((40.0, 1.0), (-40.0, 0.0)):
        assert losses.LogLossFromLogits().value([theta], [y])[0] == pytest.approx(math.exp(-40), rel=1e-15)
    # derivative sigmoid(-40) - 0
    assert losses.LogLossFromLogits().derivative([-40.0], [0.0])[0, 0] == pytest.approx(math.exp(-40), rel=1e-15)


def test_logits_of_a_thousand_in_classes():
    # log(e^1000 + e^-1000 + e^0) = 1000: the loss is 1000 - theta_class.
    loss = losses.NLLFromLogits()
    for dtype in (np.float32, np.float64):
        yhat = np.array([[1000, -1000, 0]] * 3, dtype)
        assert loss.value(yhat, [0, 1, 2]).tolist() == [0, 2000, 1000]
        assert loss.derivative(yhat, [0, 1, 2]).tolist() == [[0, 0, 0], [1, -1, 0], [1, 0, -1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_keep_the_digits_of_small_losses(dtype):
    # A float32 of 1000 has digits to 6e-5 only: nothing small must be added to it and the 1000 taken off again.
    # (The logarithm of a sum near 1 is good to the 1's last bit.)
    eps = np.finfo(dtype).eps
    value = losses.NLLFromLogits().value(np.array([[-1000, -1000, -1000], [1020, 1000, 1000]], dtype), [2, 0])
    np.testing.assert_allclose(value, [LOG3, math.log1p(2 * math.exp(-20))], rtol=0, atol=4 * eps)
    value = losses.LogLossFromLogits().value(np.array([[10, 1000], [1000, 10]], dtype), np.ones((2, 2)))
    np.testing.assert_allclose(value, 2 * [math.log1p(math.exp(-10))], rtol=4 * eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_of_zero_and_one_are_kept_from_the_ends(dtype):
    # Right: loss 0, slope 1/(1-0) = 1 at p = 0 and -1/1 at p = 1. Wrong: -log(eps), slope 1/eps, eps = 2^-23 or 2^-52.
    eps = np.finfo(dtype).eps
    p, y = np.array([0, 1, 0, 1], dtype), np.array([0, 1, 1, 0], dtype)
    np.testing.assert_allclose(
        losses.LogLoss().value(p, y), [0, 0, -np.log(eps), -np.log(eps)], rtol=1e-6, atol=2 * eps
    )
    np.testing.assert_allclose(losses.LogLoss().derivative(p, y).ravel(), [1, -1, -1 / eps, 1 / eps], rtol=1e-6)
    two = np.array([[0, 1], [1, 0]], dtype)
    np.testing.assert_allclose(losses.NLL().value(two, [0, 0]), [-np.log(eps), 0], rtol=1e-6, atol=2 * eps)
    np.testing.assert_allclose(losses.NLL().derivative(two, [0, 0]), [[-1 / eps, 0], [-1, 0]], rtol=1e-6)


def test_probabilities_next_to_one_keep_their_digits():
    # 1 - p = 2^-40 exactly: -log(1 - p) = 40 log 2.
    p = 1 - 2.0**-40
    assert losses.LogLoss().value([p], [0.0])[0] == pytest.approx(40 * LOG2, rel=1e-15)
    assert losses.LogLoss().value([p], [1.0])[0] == pytest.approx(2.0**-40, rel=1e-12, abs=0)


def test_huge_targets():
    # 1e150 squared is 1e300, below float64's largest; Huber stays linear: 1 (1e300 - 1/2).
    assert losses.Squared().value([0.0], [1e150])[0] == pytest.approx(1e300)
    assert losses.get("huber").value([0.0], [1e300])[0] == pytest.approx(1e300)
    assert losses.get("huber").derivative([0.0], [1e300]).tolist() == [[-1.0]]
    assert np.isinf(losses.Squared().value([0.0], [1e200])[0])  # and says so where it is beyond


def test_a_nan_is_not_lost_in_hubers_slope():
    assert np.isnan(losses.get("huber").derivative([np.nan], [0.0])[0, 0])


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_huber_at_its_border(delta):
    # Both pieces meet: 1/2 delta^2 = delta (delta - delta / 2), slope delta; beyond, the slope stays.
    loss = losses.Huber(delta)
    errors = np.array([delta, -delta, np.nextafter(delta, 9), delta + 1, -delta - 1, 0.0])
    half = delta**2 / 2
    np.testing.assert_allclose(loss.value(errors, np.zeros(6)), [half, half, half, half + delta, half + delta, 0])
    assert loss.derivative(errors, np.zeros(6)).ravel().tolist() == [delta, -delta, delta, delta, -delta, 0]


@pytest.mark.parametrize("delta", [0, -1.0, np.inf, np.nan])
def test_hubers_delta_is_positive(delta):
    with pytest.raises(ValueError, match=rf"delta is {delta}; expected a positive number"):
        losses.Huber(delta)


def test_hubers_delta_is_a_number():
    with pytest.raises(ValueError, match="delta is '1'"):
        losses.Huber("1")


# --- a pair of one's own ----------------------------------------------------------------------------------------------


def test_a_pair_gives_values_by_example_or_by_output():
    def slope(yhat, y):
        return 3 * (yhat - y) ** 2

    by_output = losses.get((lambda yhat, y: (yhat - y) ** 3, slope))
    by_example = losses.get([lambda yhat, y: ((yhat - y) ** 3).sum(axis=1), slope])
    for loss in (by_output, by_example):
        # e = (2, -1), (0, 3): 8 - 1, and 27; 3 e^2.
        assert loss.value([[2.0, 0.0], [1.0, 4.0]], [[0.0, 1.0], [1.0, 1.0]]).tolist() == [7, 27]
        assert loss.derivative([[2.0, 0.0], [1.0, 4.0]], [[0.0, 1.0], [1.0, 1.0]]).tolist() == [[12, 3], [0, 27]]
        net = Network((2, 2), bias=False, dtype="float64")
        S, Y = [[2.0, 0.0], [1.0, 4.0]], [[0.0, 1.0], [1.0, 1.0]]
        assert risk(net, np.eye(2).ravel(), S, Y, loss) == 17.0
        assert risk(net, np.eye(2).ravel(), S, Y, loss.total()) == 34.0
    assert losses.get(by_output) is by_output


GOOD = (lambda yhat, y: yhat[:, 0], lambda yhat, y: np.zeros_like(yhat))


@pytest.mark.parametrize(("value", "derivative", "message"), [
    (lambda yhat, y: yhat.mean(), GOOD[1], r"value of the loss has shape \(\); expected \(5,\) or \(5, 2\)"),
    (lambda yhat, y: yhat[:3, 0], GOOD[1], r"value of the loss has shape \(3,\); expected \(5,\)"),
    (GOOD[0], lambda yhat, y: yhat[:, 0], r"derivative of the loss has shape \(5,\); expected \(5, 2\)"),
    (GOOD[0], lambda yhat, y: 1.0, r"derivative of the loss has shape \(\); expected \(5, 2\)"),
])  # fmt: skip
def test_a_pair_with_wrong_shapes(value, derivative, message):
    net = Network((3, 2), dtype="float64")
    w = net.init(0)
    before = w.copy()
    for call in (fit, risk_gradient):
        with pytest.raises(ValueError, match=message):
            call(net, w, np.ones((5, 3)), np.ones((5, 2)), loss=(value, derivative))
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("wrong", [5, None, (1, 2), (abs,), (abs, abs, abs), ("squared", "mse")])
def test_what_is_no_loss(wrong):
    with pytest.raises(
        ValueError, match=r"loss is .*; expected a name, a Loss, or a pair of functions \(value, derivative\)"
    ):
        losses.get(wrong)


def test_a_misspelt_loss():
    with pytest.raises(ValueError, match="loss is 'logloss'; did you mean 'log_loss'"):
        losses.get("logloss")


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [losses.NLL(), losses.NLLFromLogits()])
@pytest.mark.parametrize("classes", [
    [2, 0, 1, 2], [2.0, 0.0, 1.0, 2.0], [[2], [0], [1], [2]], np.array([2, 0, 1, 2], np.uint8), (2, 0, 1, 2),
])  # fmt: skip
def test_classes_are_unit_vectors(loss, classes):
    probabilities = special.softmax(np.random.default_rng(0).normal(size=(4, 3)), axis=1)
    one_hot = [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(loss.value(probabilities, classes), loss.value(probabilities, one_hot))
    np.testing.assert_array_equal(loss.derivative(probabilities, classes), loss.derivative(probabilities, one_hot))
    assert loss.targets(classes, 4, 3, np.dtype("float32")).tolist() == one_hot


def test_booleans_are_labels():
    assert losses.LogLoss().value([0.5, 0.5], [True, False]).tolist() == [LOG2, LOG2]
    assert losses.NLL().value([[0.5, 0.5]], [True]).tolist() == [LOG2]


@pytest.mark.parametrize(("loss", "y", "k", "message"), [
    ("nll", [0, 3], 3, "y holds 3; expected classes 0 to 2 for nll"),
    ("nll", [-1, 0], 3, "y holds -1; expected classes 0 to 2 for nll"),
    ("nll", [0.5, 1], 3, "y holds 0.5; expected classes 0 to 2 for nll"),
    ("nll", [0, np.nan], 3, "y holds nan; expected classes 0 to 2 for nll"),
    ("nll_from_logits", [0, 3], 3, "y holds 3; expected classes 0 to 2 for nll_from_logits"),
    ("nll", [0, 1, 2], 3, r"y has shape \(3,\); expected \(2, 3\)"),
    ("nll", [[0.5, 0.5], [1, 1]], 2, "rows of y do not sum to 1; expected classes or their probabilities for nll"),
    ("nll", [[0.5, 0.5], [0, 0]], 2, "rows of y do not sum to 1"),
    ("nll", [[1.5, -0.5], [1, 0]], 2, r"y holds 1.5; expected labels or probabilities in \[0, 1\] for nll"),
    ("nll", [[1, 0], [np.nan, 0]], 2, r"y\[1\] is \[nan, 0.0\]; expected finite numbers"),
    ("log_loss", [0, 2], 1, r"y holds 2; expected labels or probabilities in \[0, 1\] for log_loss"),
    ("log_loss_from_logits", [-1, 1], 1, "y holds -1; expected labels"),
    ("log_loss", [0, np.nan], 1, r"y\[1\] is \[nan\]; expected finite"),
    ("log_loss", [0, 1], 3, r"y has shape \(2,\); expected \(2, 3\)"),
    ("squared", [1.0, np.inf], 1, r"y\[1\] is \[inf\]; expected finite"),
    ("squared", [1.0, 2.0, 3.0], 1, r"y has shape \(3,\); expected \(2, 1\)"),
    ("squared", [1.0, 2.0], 2, r"y has shape \(2,\); expected \(2, 2\)"),
    ("squared", [[1.0], [2.0]], 2, r"y has shape \(2, 1\); expected \(2, 2\)"),
    ("squared", [[[1.0]], [[2.0]]], 1, r"y has shape \(2, 1, 1\)"),
    ("squared", [[1.0], [2.0, 3.0]], 1, "y is a list whose rows differ in length"),
])  # fmt: skip
def test_senseless_targets(loss, y, k, message):
    with pytest.raises(ValueError, match=message):
        losses.get(loss).targets(y, 2, k, np.dtype("float64"))
    with pytest.raises(ValueError, match=message):
        losses.get(loss).value(np.full((2, k), 1 / k), y)


@pytest.mark.filterwarnings("error")
def test_an_infinite_class_is_an_error_without_a_warning():
    with pytest.raises(ValueError, match="y holds inf; expected classes 0 to 1 for nll"):
        losses.NLL().value([[0.5, 0.5]], [np.inf])


def test_senseless_outputs():
    with pytest.raises(ValueError, match=r"yhat has shape \(1, 1, 1\); expected \(n, k\) or \(n,\)"):
        losses.Squared().value([[[1.0]]], [1.0])
    with pytest.raises(TypeError, match="yhat holds <U1; expected real numbers"):
        losses.Squared().value(["a"], [1.0])


def test_rounded_probabilities_have_the_gradient_of_their_loss():
    # Thirds to five digits are accepted. l = sum_k y_k (log sum exp theta - theta_k), so dl/dtheta = Y softmax - y with
    # Y = sum y = 0.99999 - or the rows are brought to sum 1 at the border, and l with them.
    y, theta = np.array([[0.33333, 0.33333, 0.33333]]), np.array([[0.3, 0.2, 0.0]])
    h = 1e-5 * np.eye(3)
    loss = losses.NLLFromLogits()
    numeric = [(loss.value(theta + e, y) - loss.value(theta - e, y))[0] / 2e-5 for e in h]
    np.testing.assert_allclose(loss.derivative(theta, y)[0], numeric, rtol=0, atol=1e-9)


# --- losses and output layers -----------------------------------------------------------------------------------------

WANTED = {"log_loss": "sigmoid", "log_loss_from_logits": "linear", "nll": "softmax", "nll_from_logits": "linear"}
WHY = {
    "log_loss": "takes probabilities of each output on its own",
    "log_loss_from_logits": "applies the sigmoid itself",
    "nll": "takes probabilities of classes",
    "nll_from_logits": "applies the softmax itself",
}


@pytest.mark.parametrize("loss", [*losses.LOSSES, "custom"])
def test_each_loss_takes_the_output_layers_that_make_sense(loss):
    chosen = losses.get(GOOD if loss == "custom" else loss)
    for output, k in itertools.product(OUTPUT, (1, 3)):
        net = Network((2, k), output=output, dtype="float64")
        w, S = net.init(0), np.ones((2, 2))
        Y = np.eye(k)[[0, 0]]
        if output == "softmax" and k == 1:
            message = "output is softmax for one unit, which is always 1; expected sigmoid"
        elif output != WANTED.get(loss, output):
            wanted = WANTED[loss]
            message = f"output is {output}; expected {wanted}, as loss {loss} {WHY[loss]}"
        elif loss.startswith("nll") and k == 1:
            message = f"the network has 1 output; expected one for each class, as loss {loss} is of classes"
        else:
            chosen.check(net)
            assert np.isfinite(risk(net, w, S, Y, chosen)), (output, k)
            continue
        for call in (risk, risk_gradient, fit):
            with pytest.raises(ValueError, match=message):
                call(net, w, S, Y, loss=chosen)


def test_classes_for_one_output_are_told_of_the_output():
    net = Network((2, 1))
    with pytest.raises(ValueError, match="the network has 1 output; expected one for each class"):
        risk(net, net.init(0), np.ones((3, 2)), [0, 1, 2], "nll_from_logits")
