"""The risk and its gradient: against central differences of a second implementation in NumPy and SciPy, and the pieces
of the descent against each other: many examples at once and one by one, compiled kernels and Python's own loop.
"""

import functools
import itertools

import numpy as np
import pytest
from scipy import special

from valueapprox import SGD, Adam, FitError, Momentum, Network, fit, losses, regularizers, risk, risk_gradient
from valueapprox.nn.activations import HIDDEN, OUTPUT
from valueapprox.supervised.objective import CAPACITY, dropout_rates

H = 1e-4
EXAMPLES = 6
DELTA = 0.7  # of Huber's loss

# --- a second implementation: any number of weight vectors at once, in SciPy's functions ----------------------------

ACTIVATIONS = {
    "linear": lambda psi: psi,
    "relu": lambda psi: np.maximum(psi, 0.0),
    "leaky_relu": lambda psi: np.where(psi > 0, psi, 0.01 * psi),
    "elu": lambda psi: np.where(psi > 0, psi, np.expm1(np.minimum(psi, 0.0))),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softplus": lambda psi: np.logaddexp(0.0, psi),
    "softmax": functools.partial(special.softmax, axis=-1),
}
VALUES = {
    "squared": lambda yhat, y: ((yhat - y) ** 2).sum(-1),
    "half_squared": lambda yhat, y: 0.5 * ((yhat - y) ** 2).sum(-1),
    "mse": lambda yhat, y: ((yhat - y) ** 2).mean(-1),
    "huber": lambda yhat, y: special.huber(DELTA, yhat - y).sum(-1),
    "log_loss": lambda yhat, y: -(special.xlogy(y, yhat) + special.xlog1py(1 - y, -yhat)).sum(-1),
    "log_loss_from_logits": lambda yhat, y: (np.logaddexp(0.0, yhat) - y * yhat).sum(-1),
    "nll": lambda yhat, y: -special.xlogy(y, yhat).sum(-1),
    "nll_from_logits": lambda yhat, y: -(y * special.log_softmax(yhat, axis=-1)).sum(-1),
    "custom": lambda yhat, y: np.log(np.cosh(yhat - y)).sum(-1),
}
CUSTOM = (lambda yhat, y: np.log(np.cosh(yhat - y)), lambda yhat, y: np.tanh(yhat - y))
LOSSES = {**{name: name for name in losses.LOSSES}, "huber": losses.Huber(DELTA), "custom": CUSTOM}
OUTPUTS_OF = {"log_loss": ["sigmoid"], "log_loss_from_logits": ["linear"]}
OUTPUTS_OF |= {"nll": ["softmax"], "nll_from_logits": ["linear"]}
PAIRS = [(loss, output) for loss in LOSSES for output in OUTPUTS_OF.get(loss, OUTPUT)]


def parts(net, w):
    """The named blocks of w (..., P), each (..., its shape)."""
    return {
        name: w[..., start : start + int(np.prod(shape))].reshape(*w.shape[:-1], *shape)
        for name, (start, shape) in net.blocks.items()
    }


def reference(net, w, S, Y, loss, training):
    """The risks (Q,) of weights (Q, P), and on which sides of the kinks they work, a list of (Q, ...)."""
    block, sides, x = parts(net, w), [], S
    for l, name in enumerate(net.layer_names, start=1):
        hidden = l < net.n_layers
        psi = x @ block[name]  # (Q, n, m)
        if net.batch_norm and hidden:
            mean, variance = block[f"mean{l}"][:, None], block[f"variance{l}"][:, None]
            if training:
                mean, variance = psi.mean(axis=1, keepdims=True), psi.var(axis=1, keepdims=True)
            psi = (psi - mean) / np.sqrt(variance + 1e-5) * block[f"scale{l}"][:, None]
        if net.bias:
            psi = psi + block[f"b_{name}" if net.n_layers == 2 else f"b{l}"][:, None]
        if net.layer_norm and hidden:
            psi = psi - psi.mean(axis=2, keepdims=True)
            psi = psi / np.sqrt((psi**2).mean(axis=2, keepdims=True) + 1e-5)
        sides.append(psi > 0)
        x = ACTIVATIONS[net.hidden if hidden else net.output](psi)
    if loss == "huber":
        sides.append(abs(x - Y) < DELTA)
    return VALUES[loss](x, Y).mean(axis=1), sides


def penalty(net, w, l1, l2, biases=False):
    """Sum over layers of l1 |w| + l2 w^2, (Q,) for weights (Q, P); l1 and l2 (L,)."""
    total = np.zeros(len(w))
    for l, (n, m, start, stop) in enumerate(
        zip(net.sizes[:-1], net.sizes[1:], net.bounds[:-1], net.bounds[1:], strict=True)
    ):
        entries = w[:, start : stop if biases else start + n * m]
        total += l1[l] * abs(entries).sum(axis=1) + l2[l] * (entries**2).sum(axis=1)
    return total


class Quartic:
    """A regularizer of one's own: sum w^4 over weights and biases."""

    def value(self, net, w):
        return float((w[: net.n_parameters] ** 4).sum())

    def gradient(self, net, w):
        return np.where(np.arange(w.size) < net.n_parameters, 4 * w**3, 0.0)


def penalties(net):
    """(regularizer, its value (Q,) at weights (Q, P)) of every kind."""
    zero, one, first = np.zeros(net.n_layers), np.ones(net.n_layers), np.eye(net.n_layers)[0]
    falling = 0.05 / np.arange(1.0, net.n_layers + 1)

    def is_(l1, l2, biases=False):
        return lambda w: penalty(net, w, l1, l2, biases)

    return [
        (None, is_(zero, zero)),
        (regularizers.L2(0.03), is_(zero, 0.03 * one)),
        (regularizers.L1(0.02), is_(0.02 * one, zero)),
        (regularizers.ElasticNet(0.02, 0.03), is_(0.02 * one, 0.03 * one)),
        (regularizers.ElasticNet(0.02, 0.03, biases=True), is_(0.02 * one, 0.03 * one, True)),
        (regularizers.L2(falling.tolist()), is_(zero, falling)),
        (regularizers.L1({net.layer_names[0]: 0.05}), is_(0.05 * first, zero)),
        (Quartic(), lambda w: (w[:, : net.n_parameters] ** 4).sum(axis=1)),
    ]


# --- the oracle -----------------------------------------------------------------------------------------------------


def neighbours(net, w):
    """w + c h e for c = 3, 2, 1, -1, -2, -3 and every parameter's unit vector e: (6 P, size of w)."""
    steps = H * np.eye(net.n_parameters, w.size)
    return np.concatenate([w + c * steps for c in (3, 2, 1, -1, -2, -3)])


def differences(values):
    """The gradient (P,) from the values (6 P,) at `neighbours`, off by h^6, and off by h^4."""
    f = values.reshape(6, -1)
    one, two, three = (f[2] - f[3]) / H, (f[1] - f[4]) / H, (f[0] - f[5]) / H
    return (45 * one - 9 * two + three) / 60, (8 * one - two) / 12


def networks(loss, output, hiddens=("relu", "tanh", "elu")):
    """Every depth and normalisation, with one output and several; (network, whether it is training)."""
    few = 2 if output == "softmax" or loss.startswith("nll") else 1
    rows = [({}, 3, False), ({"bias": False}, few, True)]
    rows += [({"layer_norm": True}, few, False), ({"layer_norm": True, "bias": False}, 3, True)]
    rows += [({"batch_norm": True}, k, training) for k in (few, 3) for training in (False, True)]
    for depth, (options, k, training) in itertools.product(range(4), rows):
        if depth or not options.keys() & {"layer_norm", "batch_norm"}:  # there is no hidden layer to normalise
            sizes = (3, 4, 3, 5)[: depth + 1]
            yield Network((*sizes, k), hiddens[depth - 1], output, dtype="float64", **options), training


def draw(net, rng, loss):
    """Weights of 0.1 to 1 in magnitude, away from the kink of |w|; states; targets that make sense for the loss."""
    w = rng.uniform(0.1, 1.0, net.size) * rng.choice([-1, 1], net.size)
    w[net.n_parameters :] = abs(w[net.n_parameters :])  # running variances; a mean may have either sign
    S = rng.normal(size=(EXAMPLES, net.n_inputs))
    Y = rng.normal(size=(EXAMPLES, net.n_outputs))
    if loss.startswith("log_loss"):
        Y = rng.choice([0.0, 1.0, 0.3], Y.shape)
    if loss.startswith("nll"):
        Y = np.eye(net.n_outputs)[rng.integers(net.n_outputs, size=EXAMPLES)]
        Y[0] = special.softmax(rng.normal(size=net.n_outputs))
    return w, S, Y


def error(net, gradient, numeric):
    """The largest over the layers of ||numeric - gradient|| / ||gradient||."""
    cuts = net.bounds[1:-1]
    pairs = zip(np.split(gradient, cuts), np.split(numeric, cuts), strict=True)
    return max(np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs)


def usable(net, rng, loss, training):
    """A draw where differences are fit to judge by.

    All neighbours lie on the same side of every kink, no layer's gradient is nearly 0, and two orders of differences
    agree, as they do not where a normalisation divides by a tiny sigma.
    """
    for _ in range(200):
        w, S, Y = draw(net, rng, loss)
        values, sides = reference(net, neighbours(net, w), S, Y, loss, training)
        if all((side == side[0]).all() for side in sides):
            numeric, rougher = differences(values)
            lengths = [np.linalg.norm(part) for part in np.split(numeric, net.bounds[1:-1])]
            if min(lengths) > 1e-3 and error(net, numeric, rougher) < 1e-7:
                return w, S, Y, values
    return pytest.fail(f"no draw for {net} had a gradient to measure")


@pytest.mark.parametrize(("loss", "output"), PAIRS)
def test_gradients_equal_central_differences(loss, output):
    # For every depth, normalisation and regularizer: ||numeric - ours|| < 1e-7 ||ours|| for each layer on its own,
    # where numeric is of the second implementation, whose risk is ours to rounding.
    rng = np.random.default_rng(list(map(ord, loss + output)))
    for net, training in networks(loss, output):
        w, S, Y, values = usable(net, rng, loss, training)
        (value,), _ = reference(net, w[None], S, Y, loss, training)
        around = neighbours(net, w)
        for regularizer, omega in penalties(net):
            what = f"{net}, training {training}, {regularizer}"
            ours, gradient = risk_gradient(net, w, S, Y, LOSSES[loss], regularizer, training=training)
            assert ours == pytest.approx(value + omega(w[None])[0], rel=1e-12), what
            numeric, _ = differences(values + omega(around))
            assert error(net, gradient[: net.n_parameters], numeric) < 1e-7, what
            assert not gradient[net.n_parameters :].any(), what  # running statistics are not learned


@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradients_of_every_hidden_activation_equal_central_differences(hidden):
    rng = np.random.default_rng(list(map(ord, hidden)))
    for net, training in networks("half_squared", "linear", 3 * (hidden,)):
        if net.n_layers > 1:
            w, S, Y, values = usable(net, rng, "half_squared", training)
            _, gradient = risk_gradient(net, w, S, Y, training=training)
            assert error(net, gradient[: net.n_parameters], differences(values)[0]) < 1e-7, (net, training)


RATES = {0: [(0.4,)], 1: [0.5, (0.3, 0.5)], 2: [0.3, (0.5, 0.0), (0.2, 0.5, 0.3)], 3: [0.3, (0.4, 0.2, 0.5, 0.3)]}


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_with_dropout_equal_central_differences(loss):
    # The same seed is the same masks: the risk with dropout is a function of w like any other. Here numbers are
    # differences of our own risk; hidden activations are smooth, for what lies near a kink is not seen from outside.
    rng = np.random.default_rng(list(map(ord, loss)))
    output = OUTPUTS_OF.get(loss, ["linear"])[0]
    for depth, options in itertools.product(range(4), ({}, {"layer_norm": True}, {"batch_norm": True})):
        net = Network((*(3, 2, 3, 2)[: depth + 1], 2), "tanh", output, dtype="float64", **options)
        dropout = RATES[depth][len(options) % len(RATES[depth])]
        settings = {"loss": LOSSES[loss], "regularizer": regularizers.L2(0.03), "training": True, "dropout": dropout}
        for seed in range(100):
            w, S, Y = draw(net, rng, loss)
            values = [risk_gradient(net, v, S, Y, seed=seed, **settings)[0] for v in neighbours(net, w)]
            numeric, rougher = differences(np.array(values))
            lengths = [np.linalg.norm(part) for part in np.split(numeric, net.bounds[1:-1])]
            if min(lengths) > 1e-3 and error(net, numeric, rougher) < 1e-7:
                break
        else:
            pytest.fail(f"no draw for {net} had a gradient to measure")
        value, gradient = risk_gradient(net, w, S, Y, seed=seed, **settings)
        assert error(net, gradient[: net.n_parameters], numeric) < 1e-7, (net, dropout)
        assert value != risk_gradient(net, w, S, Y, seed=seed + 1, **settings)[0]


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"batch_norm": True}])
def test_gradients_of_more_examples_than_fit_in_memory_equal_central_differences(options):
    # Two parts, the second of 7 examples, each with masks of its own; with batch normalisation all is one part.
    # Along a random direction v in each layer: grad . v = dR(w + t v)/dt at t = 0, differences as above.
    rng = np.random.default_rng(0)
    net = Network((3, 4, 3, 2), "tanh", dtype="float64", **options)
    w = draw(net, rng, "squared")[0]
    S, Y = rng.normal(size=(CAPACITY + 7, 3)), rng.normal(size=(CAPACITY + 7, 2))
    _, gradient = risk_gradient(net, w, S, Y, training=True, dropout=(0.2, 0.5, 0.3), seed=1)
    for start, stop in itertools.pairwise(net.bounds):
        v = np.zeros(net.size)
        v[start:stop] = gradient[start:stop] / np.linalg.norm(gradient[start:stop])
        along = [
            risk_gradient(net, w + c * H * v, S, Y, training=True, dropout=(0.2, 0.5, 0.3), seed=1)[0]
            for c in (3, 2, 1, -1, -2, -3)
        ]
        assert differences(np.array(along))[0][0] == pytest.approx(gradient @ v, rel=1e-7)


# --- pieces against each other ----------------------------------------------------------------------------------------

BATCHES = ((1, 2, 7, CAPACITY + 6), (1, 2, 7))  # beyond CAPACITY, in two parts, for the plain network alone


def as_targets(loss, rng, n, k):
    """Targets (n, k) that make sense for a loss."""
    if loss.startswith("nll"):
        return np.eye(k)[rng.integers(k, size=n)]
    return rng.integers(0, 2, size=(n, k)).astype(float) if loss.startswith("log_loss") else rng.normal(size=(n, k))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_a_batch_is_the_mean_of_the_online_kernels_gradients(loss):
    # Note 001: grad R = 1/n sum_i sum_k dl/dyhat_k grad yhat_k, with yhat and grad yhat of one example at a time. So
    # log_loss behind a sigmoid and nll behind a softmax, computed from theta, equal the composition of both.
    rng = np.random.default_rng(0)
    output = OUTPUTS_OF.get(loss, ["linear"])[0]
    plain, own = losses.get(LOSSES[loss]), (2 if loss == "mse" else 1)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        for options in ({}, {"layer_norm": True}, {"batch_norm": True}, {"bias": False}):
            net = Network((3, 6, 5, 2), "tanh", output, dtype=dtype, **options)
            w = net.init(0)
            w[net.n_parameters :] += 0.1
            for n in BATCHES[bool(options)]:
                S, Y = rng.normal(size=(n, 3)).astype(dtype), as_targets(loss, rng, n, 2).astype(dtype)
                yhat = np.array([net.forward(w, s) for s in S])
                slopes = plain.derivative(yhat, Y).astype(np.float64)
                jacobian = np.array([[net.gradient(w, s, k) for k in range(2)] for s in S], dtype=np.float64)
                expected = np.einsum("ik,ikp->p", slopes, jacobian) / (n * own)
                value, gradient = risk_gradient(net, w, S, Y, LOSSES[loss])
                np.testing.assert_allclose(net.forward(w, S), yhat, rtol=0, atol=tolerance)
                assert np.linalg.norm(gradient - expected) <= tolerance * np.linalg.norm(expected), (net, n)
                mean = plain.value(yhat, Y).astype(np.float64).sum() / (n * own)
                assert value == pytest.approx(mean, rel=10 * tolerance)
                assert risk(net, w, S, Y, LOSSES[loss]) == value


@pytest.mark.parametrize(("fused", "output", "from_logits"), [
    ("log_loss", "sigmoid", "log_loss_from_logits"), ("nll", "softmax", "nll_from_logits"),
])  # fmt: skip
def test_a_loss_behind_its_own_activation_is_the_loss_from_logits(fused, output, from_logits):
    # At thetas up to 1000, where a sigmoid is 1 to the last bit: dL/dtheta = yhat - y, and the loss |theta|, not inf.
    S, Y = np.array([[1000.0], [-1000.0], [30.0], [0.1]]), np.array([[0, 1], [0, 1], [1, 0], [0, 1]])
    net = Network((1, 2), output=output, bias=False, dtype="float64")
    w = np.array([1.0, -1.0])
    ours = risk_gradient(net, w, S, Y, fused)
    plain = risk_gradient(Network((1, 2), bias=False, dtype="float64"), w, S, Y, from_logits)
    assert ours[0] == plain[0]
    np.testing.assert_array_equal(ours[1], plain[1])
    # Only the first, wrong by theta_0 - theta_1 = 2000 behind a softmax, and by 1000 in each of two sigmoids.
    value, gradient = risk_gradient(net, w, S[:1], Y[:1], fused)
    assert value == 2000.0
    assert gradient.tolist() == [1000.0, -1000.0]  # (1 - 0) s and (0 - 1) s


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"batch_norm": True}])
def test_the_first_update_of_fit_goes_along_risk_gradient(options):
    # SGD with step size 1: w_1 = w_0 - gradient; with the masks, the penalty and the statistics of that minibatch.
    rng = np.random.default_rng(0)
    net = Network((3, 5, 4, 2), dtype="float64", **options)
    S, Y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    w = net.init(0)
    penalty = regularizers.ElasticNet(0.01, 0.02)
    dropout = (0.1, 0.5, 0.3)
    _, gradient = risk_gradient(net, w, S[:6], Y[:6], "mse", penalty, training=True, dropout=dropout, seed=7)
    moved = w.copy()
    settings = {"loss": "mse", "regularizer": penalty, "dropout": dropout, "seed": 7}
    fit(net, moved, S, Y, batch_size=6, shuffle=False, max_iterations=1, optimizer=SGD(1.0), **settings)
    learned = slice(net.n_parameters)
    np.testing.assert_allclose(moved[learned], (w - gradient)[learned], rtol=0, atol=1e-14)


HALF = (lambda yhat, y: 0.5 * (yhat - y) ** 2, lambda yhat, y: yhat - y)


class Ridge:
    """`regularizers.L2(0.02)`, as someone writes it."""

    def value(self, net, w):
        return 0.02 * sum(float((W**2).sum()) for W, _ in net.unpack(w))

    def gradient(self, net, w):
        gradient = np.zeros_like(w)
        for (to, _), (W, _) in zip(net.unpack(gradient), net.unpack(w), strict=True):
            to[...] = 2 * 0.02 * W
        return gradient


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"batch_norm": True}])
@pytest.mark.parametrize(("loss", "penalty"), [
    (HALF, regularizers.L2(0.02)), ("half_squared", Ridge()), (HALF, Ridge()),
])  # fmt: skip
def test_functions_of_ones_own_fit_as_the_compiled_ones_do(loss, penalty, options):
    # Python's loop and the compiled one: the same minibatches, masks, steps and norms.
    rng = np.random.default_rng(0)
    net = Network((3, 5, 4, 2), dtype="float64", **options)
    S, Y = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    ends = []
    for its_loss, its_penalty in (("half_squared", regularizers.L2(0.02)), (loss, penalty)):
        w = net.init(0)
        settings = {"optimizer": Adam(0.01, clip_norm=0.5), "dropout": (0.1, 0.3, 0.0), "batch_size": 8, "epochs": 4}
        history = fit(net, w, S, Y, loss=its_loss, regularizer=its_penalty, validation=0.2, **settings)
        ends.append((w, history))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=0, atol=1e-12)
    for column in ("loss", "penalty", "validation_loss", *(f"grad_norm/W{l}" for l in (1, 2, 3))):
        np.testing.assert_allclose(ends[0][1][column], ends[1][1][column], rtol=1e-12)


def test_parts_and_their_masks_are_the_same_for_a_custom_loss():
    rng = np.random.default_rng(0)
    net = Network((2, 4, 1), dtype="float64")
    S, Y = rng.normal(size=(2 * CAPACITY + 3, 2)), rng.normal(size=2 * CAPACITY + 3)
    settings = {"training": True, "dropout": (0.2, 0.5), "seed": 1}
    ours, theirs = (risk_gradient(net, net.init(0), S, Y, loss, **settings) for loss in (HALF, "half_squared"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-13)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-10, atol=1e-13)


def test_a_penalty_of_ones_own_on_running_statistics_moves_and_clips_nothing():
    # An object that penalises all of w, running statistics too, which no step may touch: with SGD and clipping, the
    # same weights as with one that leaves them out.
    class All:
        def value(self, net, w):
            return 1e-3 * float((w**2).sum())

        def gradient(self, net, w):
            return 2e-3 * w

    class Learned(All):
        def gradient(self, net, w):
            return np.where(np.arange(w.size) < net.n_parameters, 2e-3 * w, 0.0)

    rng = np.random.default_rng(0)
    net = Network((3, 8, 1), dtype="float64", batch_norm=True)
    S, Y = rng.normal(size=(64, 3)), rng.normal(size=64)
    ends = [net.init(0), net.init(0)]
    for w, penalty in zip(ends, (All(), Learned()), strict=True):
        fit(net, w, S, Y, regularizer=penalty, optimizer=SGD(0.05, clip_norm=0.1), batch_size=8, epochs=5)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


def test_a_minibatch_whose_loss_is_infinite_changes_nothing_of_w():
    # 1e25 squared is beyond float32. FitError: "the weights are those from before that minibatch".
    net = Network((1, 2, 1), dtype="float32", batch_norm=True)
    w = net.init(0)
    before = w.copy()
    with pytest.raises(FitError):
        fit(net, w, [[1e25], [2e25]], [1.0, 2.0], epochs=1)
    np.testing.assert_array_equal(w, before)


def test_nothing_that_was_passed_in_changes():
    rng = np.random.default_rng(0)
    net = Network((2, 3, 1), dtype="float64", batch_norm=True)
    w, S, Y = net.init(0), rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    for array in (w, S, Y):
        array.setflags(write=False)
    kept = [array.copy() for array in (w, S, Y)]
    risk_gradient(net, w, S, Y, "mse", regularizers.L2(0.1), training=True, dropout=0.5)
    risk(net, w, S, Y, HALF)
    for array, before in zip((w, S, Y), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_masks_and_batch_statistics_count_in_training_only():
    rng = np.random.default_rng(0)
    net = Network((2, 30, 1), dtype="float64", batch_norm=True)
    w, S, Y = net.init(0), rng.normal(size=(5, 2)), rng.normal(size=5)
    plain = risk_gradient(net, w, S, Y)
    np.testing.assert_array_equal(plain[1], risk_gradient(net, w, S, Y, dropout=0.5)[1])
    trained = [risk_gradient(net, w, S, Y, training=True, dropout=rate)[0] for rate in (0.0, 0.5)]
    assert len({plain[0], *trained}) == 3


@pytest.mark.parametrize("optimizer", [SGD(0.1, clip_norm=0.3), Momentum(0.1), Adam(0.01, clip_layer_norm=0.2)])
def test_descent_is_the_optimizers_step_along_minus_the_gradient(optimizer):
    # Five updates by `Optimizer.step` on u = -gradient of each minibatch; data in their order.
    rng = np.random.default_rng(0)
    net = Network((3, 4, 2), dtype="float64")
    S, Y = rng.normal(size=(17, 3)), rng.normal(size=(17, 2))
    w, ours = net.init(0), net.init(0)
    state = optimizer.init(w)
    losses_before = []
    for start in (0, 4, 8, 12, 16):  # the last minibatch is one example
        value, gradient = risk_gradient(net, w, S[start : start + 4], Y[start : start + 4], "mse", regularizers.L2(0.1))
        losses_before.append(value - regularizers.L2(0.1).value(net, w))
        optimizer.step(net, w, -gradient, state)
    settings = {"optimizer": optimizer, "batch_size": 4, "epochs": 1, "shuffle": False}
    history = fit(net, ours, S, Y, loss="mse", regularizer=regularizers.L2(0.1), **settings)
    np.testing.assert_allclose(ours, w, rtol=0, atol=1e-13)
    assert history["loss"][0] == pytest.approx(np.average(losses_before, weights=(4, 4, 4, 4, 1)), rel=1e-12)


# --- the border -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "dropout", "rates"), [
    ((2, 3, 3, 1), 0.5, [0, 0.5, 0.5]),
    ((2, 3, 3, 1), (0.5, 0.25), [0, 0.5, 0.25]),
    ((2, 3, 3, 1), [0.1, 0.5, 0.25], [0.1, 0.5, 0.25]),
    ((2, 1), 0.0, [0]),
    ((2, 1), (0.5,), [0.5]),
    ((2, 3, 1), (0.5,), [0, 0.5]),
])  # fmt: skip
def test_rates_of_dropout(sizes, dropout, rates):
    assert dropout_rates(Network(sizes), dropout).tolist() == rates


@pytest.mark.parametrize(("sizes", "dropout", "message"), [
    ((2, 3, 1), 1.0, r"dropout is 1.0; expected rates in \[0, 1\)"),
    ((2, 3, 1), -0.1, "dropout is -0.1; expected rates"),
    ((2, 3, 1), np.nan, "dropout is nan; expected rates"),
    ((2, 3, 1), (0.5, 1.5), r"dropout is \(0.5, 1.5\); expected rates"),
    ((2, 3, 1), [[0.5]], r"dropout is \[\[0.5\]\]; expected rates"),
    ((2, 3, 1), (0.1, 0.2, 0.3), "dropout has 3 rates; .* 1 for the hidden layers, or 2 with that of the inputs"),
    ((2, 1), 0.5, r"dropout is 0.5; expected 0, as there is no hidden layer \(\(rate,\) drops inputs\)"),
])  # fmt: skip
def test_senseless_rates_of_dropout(sizes, dropout, message):
    with pytest.raises(ValueError, match=message):
        dropout_rates(Network(sizes), dropout)


@pytest.mark.parametrize(("S", "Y", "message"), [
    ([[1.0, np.nan]], [1.0], r"S\[0, 1\] is nan; expected finite"),
    ([[1.0, 2.0], [-np.inf, 0.0]], [1.0, 1.0], r"S\[1, 0\] is -inf; expected finite"),
    ([[1.0, 2.0, 3.0]], [1.0], r"S has shape \(1, 3\); expected \(n, 2\)"),
    ([1.0, 2.0], [1.0], r"S has shape \(2,\)"),
    ([[1.0, 2.0], [1.0]], [1.0, 2.0], "S is a list whose rows differ in length"),
    (np.zeros((0, 2)), [], "S has no rows"),
    ([[1.0, 2.0]], [1.0, 2.0], r"Y has shape \(2,\); expected \(1, 1\)"),
    ([[1.0, 2.0]], [[1.0, 2.0]], r"Y has shape \(1, 2\)"),
    ([[1.0, 2.0], [0.0, 0.0]], [1.0, np.nan], r"Y\[1\] is \[nan\]; expected finite"),
    ([[1.0, 2.0]], 1.0, r"Y has shape \(\)"),
])  # fmt: skip
def test_senseless_data(S, Y, message):
    net = Network((2, 1), dtype="float64")
    with pytest.raises(ValueError, match=message):
        risk(net, net.init(0), S, Y)


def test_data_that_are_no_numbers():
    net = Network((1, 1))
    with pytest.raises(TypeError, match="S holds <U1; expected real numbers"):
        risk(net, net.init(0), [["a"]], [1.0])
    with pytest.raises(TypeError, match="Y holds complex128; expected real numbers"):
        risk(net, net.init(0), [[1.0]], [1j])


def test_one_example_has_no_variance():
    net = Network((1, 2, 1), batch_norm=True)
    with pytest.raises(ValueError, match="S has 1 row; expected at least 2"):
        risk_gradient(net, net.init(0), [[1.0]], [1.0], training=True)
    assert np.isfinite(risk(net, net.init(0), [[1.0]], [1.0]))  # predicting does not need it
