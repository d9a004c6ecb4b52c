"""fit: against loops in NumPy and closed forms; resumed bit for bit; early stopping, history, files, log, errors."""

import itertools
import json
import math
import zipfile

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from valueapprox import (
    SGD,
    Adam,
    CheckpointError,
    CosineDecay,
    ExponentialDecay,
    FitError,
    History,
    InverseTime,
    LinearDecay,
    Momentum,
    Network,
    ReduceOnPlateau,
    RMSProp,
    StepDecay,
    ValueFunction,
    fit,
    losses,
    regularizers,
    risk,
    risk_gradient,
)
from valueapprox.seeding import sequence
from valueapprox.supervised import fitting
from valueapprox.supervised.objective import NORMS_EVERY

N = 23
HALF_SQUARED = (lambda yhat, y: 0.5 * (yhat - y) ** 2, lambda yhat, y: yhat - y)
#: A loss that is always 1 and pulls the output down by 1: each update of a bias is minus the step size.
PULL = (lambda yhat, y: np.ones(len(yhat)), lambda yhat, y: np.ones_like(yhat))
#: No limit, but for a mistake that would keep a test from ending.
ENDLESS = {"epochs": None, "callback": lambda history: history.epoch == 20_000}


def examples(n=N, d=3, k=1, seed=0):
    rng = np.random.default_rng(seed)
    S = rng.normal(size=(n, d))
    return S, np.sin(S @ rng.normal(size=(d, k))) + 0.3 * rng.normal(size=(n, k))


def weights_of(net, seed=1):
    """Random weights, biases too; running statistics and scales as they begin."""
    w = net.init(seed)
    w[: net.n_parameters] += np.random.default_rng(seed).normal(0.0, 0.1, net.n_parameters).astype(net.dtype)
    return w


def tanh_net(*sizes, **options):
    return Network(sizes or (3, 4, 1), "tanh", **{"dtype": "float64", **options})


S0, Y0 = examples()
BN = tanh_net(batch_norm=True)
LINEAR = Network((3, 1), dtype="float64")
SOFTMAX = Network((3, 4, 3), output="softmax", dtype="float64")


def order_of(seed, epoch, n=N):
    order = np.arange(n)
    np.random.default_rng(sequence(seed, "order", epoch)).shuffle(order)
    return order


# --- the same in NumPy ------------------------------------------------------------------------------------------------


def numpy_sgd(alpha):
    return lambda g: -alpha * g


def numpy_momentum(alpha, beta):
    v = 0.0

    def step(g):
        nonlocal v
        v = beta * v - g
        return alpha * v

    return step


def numpy_rmsprop(alpha, beta, epsilon):
    v = 0.0

    def step(g):
        nonlocal v
        v = beta * v + (1 - beta) * g**2
        return -alpha * g / (np.sqrt(v) + epsilon)

    return step


def numpy_adam(alpha, beta1, beta2, epsilon):
    m = v = 0.0
    t = 0

    def step(g):
        nonlocal m, v, t
        t += 1
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        return -alpha * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)

    return step


OPTIMIZERS = {
    "SGD": (SGD(0.05), lambda: numpy_sgd(0.05)),
    "Momentum": (Momentum(0.02, beta=0.8), lambda: numpy_momentum(0.02, 0.8)),
    "RMSProp": (RMSProp(0.01, beta=0.9), lambda: numpy_rmsprop(0.01, 0.9, 1e-8)),
    "Adam": (Adam(0.02, beta1=0.8, beta2=0.95), lambda: numpy_adam(0.02, 0.8, 0.95, 1e-8)),
}


def squared_example(net, w, s, y):
    """Loss and gradient of sum_k (yhat_k - y_k)^2 for one example, through the online kernel's gradients."""
    error = net.forward(w, s) - y
    return error @ error, sum(2 * error[k] * net.gradient(w, s, k) for k in range(net.n_outputs))


def fit_by_hand(net, w, S, Y, step, orders, batch_size, total=False, l2=0.0):
    """Minibatches one example at a time; returns (w, rows). Omega = l2 sum w^2 over weights and biases alike.

    With a sum over the examples, a minibatch has its share of Omega.
    """
    w, rows, n = w.copy(), [], len(S)
    for order in orders:
        seen, norms = 0.0, []
        for i, first in enumerate(range(0, n, batch_size)):
            members = order[first : first + batch_size]
            pairs = [squared_example(net, w, S[t], Y[t]) for t in members]
            seen += sum(loss for loss, _ in pairs)
            share = len(members) / n if total else 1
            g = sum(gradient for _, gradient in pairs) / (1 if total else len(members)) + share * 2 * l2 * w
            if i % NORMS_EVERY == 0:
                norms.append([np.linalg.norm(part) for part in np.split(g, net.bounds[1:-1])])
            w += step(g)
        rows.append(
            {
                "loss": seen / (1 if total else n),
                "penalty": l2 * w @ w,
                **dict(zip((f"grad_norm/{name}" for name in net.layer_names), np.mean(norms, axis=0), strict=True)),
            }
        )
    return w, rows


@pytest.mark.parametrize("batch_size", [None, 1, 7])  # 23 = 7 + 7 + 7 + 2
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_equals_a_loop_over_examples(name, batch_size):
    optimizer, step = OPTIMIZERS[name]
    net = tanh_net(3, 4, 2)
    S, Y = examples(k=2)
    w = weights_of(net)
    expected, rows = fit_by_hand(net, w, S, Y, step(), [order_of(5, e) for e in range(3)], batch_size or N)
    history = fit(net, w, S, Y, loss="squared", optimizer=optimizer, batch_size=batch_size, epochs=3, seed=5)
    np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-12)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    n_updates = math.ceil(N / (batch_size or N))
    assert [row["updates"] for row in history.rows] == [n_updates, 2 * n_updates, 3 * n_updates]
    for column in ("loss", "grad_norm/A", "grad_norm/B"):
        np.testing.assert_allclose(history[column], [row[column] for row in rows], rtol=1e-12)
    assert history.w is w
    assert history.n_updates == 3 * n_updates


@pytest.mark.parametrize("sizes", [(3, 1), (3, 4, 1), (3, 4, 3, 1)])
@pytest.mark.parametrize("total", [False, True])
def test_fit_equals_a_loop_at_any_depth_with_a_penalty_a_sum_and_no_shuffle(sizes, total):
    net = tanh_net(*sizes)
    S, Y = examples()
    w = weights_of(net)
    expected, rows = fit_by_hand(net, w, S, Y, numpy_sgd(0.01), [np.arange(N)] * 2, 5, total, l2=0.1)
    loss = losses.Squared().total() if total else losses.Squared()
    penalty = regularizers.L2(0.1, biases=True)
    history = fit(
        *(net, w, S, Y),
        loss=loss,
        optimizer=SGD(0.01),
        regularizer=penalty,
        batch_size=5,
        epochs=2,
        shuffle=False,
        seed=9,
    )
    np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-12)
    for column in rows[0]:
        np.testing.assert_allclose(history[column], [row[column] for row in rows], rtol=1e-12)


def test_batch_normalisation_equals_a_loop_with_running_statistics_by_hand():
    # 13 examples by 4: the last single one joins the third minibatch, 4 + 4 + 5. Running statistics take a tenth of
    # each minibatch's mean and unbiased variance of psi = s A.
    net = tanh_net(batch_norm=True)
    S, Y = examples(13)
    w = weights_of(net)
    expected, order = w.copy(), order_of(2, 0, 13)
    (norm,) = net.batch_norms(expected)
    for members in (order[:4], order[4:8], order[8:]):
        psi = S[members] @ net.block(expected, "A")
        mean = 0.9 * norm.mean + 0.1 * psi.mean(axis=0)
        variance = 0.9 * norm.variance + 0.1 * psi.var(axis=0, ddof=1)
        gradient = risk_gradient(net, expected, S[members], Y[members], training=True)[1]
        expected[: net.n_parameters] -= 0.1 * gradient[: net.n_parameters]
        norm.mean[:], norm.variance[:] = mean, variance
    fit(net, w, S, Y, optimizer=SGD(0.1), batch_size=4, epochs=1, seed=2)
    np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-12)


def test_the_first_update_with_dropout_is_that_of_risk_gradient():
    net = tanh_net(3, 6, 5, 1)
    S, Y = examples()
    w = weights_of(net)
    options = {"dropout": (0.1, 0.5, 0.3), "seed": 4}
    loss, gradient = risk_gradient(net, w, S, Y, training=True, **options)
    expected = w - 0.1 * gradient
    history = fit(net, w, S, Y, optimizer=SGD(0.1), batch_size=None, shuffle=False, max_iterations=1, **options)
    np.testing.assert_allclose(w, expected, rtol=1e-12, atol=1e-14)
    assert history.rows[0]["loss"] == pytest.approx(loss, rel=1e-12)
    assert loss != risk(net, expected + 0.1 * gradient, S, Y)  # masks were at work


def test_dropout_draws_new_masks_at_every_update_and_keeps_the_mean():
    # yhat = s w + b with s = 1 and dl/dyhat = 1: an update moves w_i by -mask_i, 0 or -1 / (1 - 1/4) = -4/3, and b by
    # -1. 400 inputs x 20 updates: the mean mask is 1, with a standard error of sqrt(1/3 / 8000) = 0.0065.
    net = Network((400, 1), dtype="float64")
    w = np.zeros(401)
    path = [w.copy()]
    fit(
        *(net, w, np.ones((1, 400)), [0.0]),
        loss=PULL,
        optimizer=SGD(1.0),
        dropout=(0.25,),
        epochs=20,
        callback=lambda history: path.append(history.w.copy()),
    )
    masks = -np.diff(path, axis=0)
    assert (masks[:, -1] == 1).all()
    masks = masks[:, :-1]
    assert ((abs(masks) < 1e-12) | (abs(masks - 4 / 3) < 1e-12)).all()
    assert masks.mean() == pytest.approx(1.0, abs=0.03)
    assert len(np.unique(masks.round(6), axis=0)) == 20


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_a_custom_loss_and_regularizer_give_the_built_in_numbers(dropout, batch_norm, summed):
    class Ridge:
        def value(self, net, w):
            return 0.01 * sum((W**2).sum() for W, _ in net.unpack(w))

        def gradient(self, net, w):
            g = np.zeros_like(w)
            for (to, _), (W, _) in zip(net.unpack(g), net.unpack(w), strict=True):
                to[:] = 0.02 * W
            return g

    pair = ((lambda yhat, y: (0.5 * (yhat - y) ** 2).sum(axis=1)), HALF_SQUARED[1]) if summed else HALF_SQUARED
    net = tanh_net(3, 4, 2, batch_norm=batch_norm)
    S, Y = examples(k=2)
    results = []
    for loss, regularizer in itertools.product(("half_squared", pair), (regularizers.L2(0.01), Ridge())):
        w = weights_of(net)
        history = fit(
            *(net, w, S, Y),
            loss=loss,
            regularizer=regularizer,
            dropout=dropout,
            optimizer=SGD(0.1),
            batch_size=7,
            epochs=4,
            validation=examples(5, k=2, seed=1),
        )
        results.append(np.concatenate([w, *(list(row.values()) for row in history.rows)]))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-11, atol=1e-13)


def test_a_custom_gradient_at_running_statistics_is_of_no_consequence():
    class Ridge:
        def __init__(self, stop):
            self.stop = stop

        def value(self, net, w):
            return 0.1 * (w[: net.n_parameters] ** 2).sum()

        def gradient(self, net, w):
            return 0.2 * w * (np.arange(w.size) < self.stop)

    results = []
    for stop in (BN.n_parameters, BN.size):
        w = weights_of(BN)
        fit(BN, w, S0, Y0, optimizer=SGD(0.1, clip_norm=0.5), regularizer=Ridge(stop), batch_size=7, epochs=5)
        results.append(w)
    np.testing.assert_array_equal(*results)


# --- known solutions --------------------------------------------------------------------------------------------------


def test_gradient_descent_converges_to_least_squares():
    S, Y = examples(40)
    exact = np.linalg.lstsq(np.column_stack([S, np.ones(40)]), Y[:, 0], rcond=None)[0]
    net = Network((3, 1), dtype="float64")
    w = net.init(0)
    history = fit(net, w, S, Y, optimizer=SGD(0.3), batch_size=None, gradient_tolerance=1e-10, **ENDLESS)
    np.testing.assert_allclose(w, exact, atol=1e-9)
    assert history.reason.startswith("converged: the gradient's norm is ")
    assert history["grad_norm/W1"][-1] <= 1e-10 < history["grad_norm/W1"][-2]
    # The same bound holds for the whole gradient where minibatches were what it learned from.
    Y = (S @ [1.0, -2.0, 0.5] + 3.0)[:, None]
    w = net.init(0)
    history = fit(net, w, S, Y, optimizer=SGD(0.1), batch_size=7, gradient_tolerance=1e-9, **ENDLESS)
    np.testing.assert_allclose(w, [1.0, -2.0, 0.5, 3.0], atol=1e-8)
    assert np.linalg.norm(risk_gradient(net, w, S, Y)[1]) <= 1e-9


def test_ridge_regression_converges_to_its_closed_form():
    # Without bias, R = 1/n |S w - y|^2 + c |w|^2 is least where (S^T S / n + c) w = S^T y / n.
    S, Y = examples(40)
    exact = np.linalg.solve(S.T @ S / 40 + 0.5 * np.eye(3), S.T @ Y[:, 0] / 40)
    net = Network((3, 1), bias=False, dtype="float64")
    w = net.init(0)
    settings = {"optimizer": SGD(0.1), "regularizer": regularizers.L2(0.5), "batch_size": None, **ENDLESS}
    history = fit(net, w, S, Y, loss="squared", tolerance=1e-13, **settings)
    np.testing.assert_allclose(w, exact, atol=1e-5)
    objective = history["loss"] + history["penalty"]
    changes = abs(np.diff(objective))
    assert changes[-1] <= 1e-13 < changes[:-1].min()
    assert history.reason.startswith("converged: the objective changed by ")


def test_the_proximal_lasso_converges_to_soft_thresholds():
    # One example, s = 1: each output's weight minimises 1/2 (w - y)^2 + 0.1 |w|, at sign(y) max(|y| - 0.1, 0).
    net = Network((1, 4), bias=False, dtype="float64")
    w = np.array([1.0, 1.0, 1.0, -1.0])
    lasso = regularizers.L1(0.1, proximal=True)
    fit(net, w, [[1.0]], [[1.0, -1.0, 0.05, -0.08]], optimizer=SGD(0.5), regularizer=lasso, epochs=100)
    np.testing.assert_allclose(w[:2], [0.9, -0.9], atol=1e-12)
    assert w[2:].tolist() == [0.0, 0.0]


def test_the_proximal_lasso_converges_by_the_gradient_too():
    # At a weight of exactly 0 the smallest gradient that L1 allows counts: here 0 for the last two.
    net = Network((1, 4), bias=False, dtype="float64")
    settings = {"optimizer": SGD(0.5), "regularizer": regularizers.L1(0.1, proximal=True), "batch_size": None}
    w = np.array([1.0, 1.0, 1.0, -1.0])
    history = fit(net, w, [[1.0]], [[1.0, -1.0, 0.05, -0.08]], gradient_tolerance=1e-8, **settings, **ENDLESS)
    assert history.reason.startswith("converged: the gradient's norm is ")
    np.testing.assert_allclose(w, [0.9, -0.9, 0, 0], atol=1e-8)


def test_logistic_regression_finds_the_odds():
    # Inputs are all 0, so the bias alone learns: 3 of 4 labels are 1, and the best logit is log(3/4 / 1/4) = log 3.
    net = Network((1, 1), output="sigmoid", dtype="float64")
    w = net.init(0)
    fit(net, w, np.zeros((4, 1)), [1, 1, 0, 1], loss="log_loss", optimizer=SGD(2.0), batch_size=None, epochs=500)
    assert w[1] == pytest.approx(math.log(3), abs=1e-9)


def test_softmax_regression_finds_the_frequencies():
    net = Network((1, 3), output="softmax", dtype="float64")
    w = net.init(0)
    classes = [0, 1, 1, 2, 2, 2, 2, 2]
    fit(net, w, np.zeros((8, 1)), classes, loss="nll", optimizer=SGD(1.0), batch_size=None, epochs=1000)
    np.testing.assert_allclose(net.forward(w, [0.0]), [1 / 8, 2 / 8, 5 / 8], atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (StepDecay(2, 0.5), [1, 1, 0.5, 0.5, 0.25]),
        (ExponentialDecay(1, 0.1), [1, 0.1, 0.01, 0.001, 0.0001]),
        (LinearDecay(2, 0.5), [1, 0.75, 0.5, 0.5, 0.5]),
        (InverseTime(1), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]),
        (CosineDecay(2), [1, 0.5, 0, 0, 0]),
    ],
)
def test_schedules_count_updates(schedule, factors):
    # One bias, pulled down by 1: update t moves it by -0.5 factor(t). Two examples, one at a time: two per epoch.
    net = Network((1, 1), dtype="float64")
    path = []

    def observe(history):
        path.append(-history.w[1] / 0.5)

    settings = {"loss": PULL, "optimizer": SGD(0.5, schedule=schedule), "batch_size": 1}
    fit(net, np.zeros(2), np.zeros((2, 1)), [0, 0], epochs=2, callback=observe, **settings)
    np.testing.assert_allclose(path, [sum(factors[:2]), sum(factors[:4])], atol=1e-15)


def test_reduce_on_plateau_by_hand():
    # The loss is always 1. Epoch 1 is the best; 2 and 3 are no better, so the factor halves after 3, 5 and 7, and stops
    # at 0.2. A bias that is pulled down by 1 shows each.
    net = Network((1, 1), dtype="float64")
    path = [0.0]
    history = fit(
        *(net, np.zeros(2), [[0.0]], [0.0]),
        loss=PULL,
        optimizer=SGD(1.0),
        epochs=9,
        reduce_on_plateau=ReduceOnPlateau(0.5, patience=2, least=0.2),
        callback=lambda history: path.append(-history.w[1]),
    )
    factors = [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]
    np.testing.assert_allclose(np.diff(path), factors, rtol=1e-12)
    assert history["step_size"].tolist() == factors


def test_reduce_on_plateau_watches_the_validation_loss_if_there_is_one():
    # yhat = b is pulled down by 1 an update, from 0. Validation (b + 2.5)^2 falls at b = -1 and -2. At -3 it is no
    # smaller: the factor halves, and the fourth update ends at -3.5. Training b^2 rises from the second update on.
    pull = (lambda yhat, y: (yhat - y) ** 2), (lambda yhat, y: np.ones_like(yhat))
    net = Network((1, 1), dtype="float64")
    history = fit(
        *(net, np.zeros(2), [[0.0]], [0.0]),
        loss=pull,
        optimizer=SGD(1.0),
        epochs=4,
        reduce_on_plateau=ReduceOnPlateau(0.5, patience=1),
        validation=([[0.0]], [-2.5]),
    )
    assert history["validation_loss"].tolist() == [2.25, 0.25, 0.25, 1.0]
    assert history["step_size"].tolist() == [1, 1, 1, 0.5]


# --- bit for bit ------------------------------------------------------------------------------------------------------

CASES = {
    **{name: {"optimizer": optimizer} for name, (optimizer, _) in OPTIMIZERS.items()},
    **{
        type(schedule).__name__: {"optimizer": Adam(0.05, schedule=schedule)}
        for schedule in (StepDecay(3), ExponentialDecay(9), LinearDecay(20, 0.1), InverseTime(5), CosineDecay(20, 0.1))
    },
    "clipped": {"optimizer": Momentum(0.1, clip_norm=0.5, clip_layer_norm=0.4)},
    "a step size per layer": {"optimizer": SGD({"A": 0.1, "B": 0.2})},
    "plateau": {"optimizer": SGD(0.5), "reduce_on_plateau": ReduceOnPlateau(0.7, patience=1)},
    "dropout": {"dropout": (0.1, 0.5)},
    "batch norm": {"net": {"batch_norm": True}, "batch_size": 11},
    "layer norm": {"net": {"layer_norm": True}},
    "one at a time": {"batch_size": 1, "optimizer": SGD(0.01)},
    "all at once": {"batch_size": None},
    "no shuffle": {"shuffle": False},
    "L1": {"regularizer": regularizers.L1(0.1, proximal=True), "optimizer": SGD(0.1)},
    "elastic net": {"regularizer": regularizers.ElasticNet({"A": 0.01}, 0.02)},
    "validation share": {"validation": 0.3},
    "validation": {"validation": examples(6, seed=2)},
    "custom loss": {"loss": HALF_SQUARED},
    "early stopping": {"validation": 0.3, "early_stopping": 2, "optimizer": Adam(0.3)},
    "tolerances": {"tolerance": 1e-9, "gradient_tolerance": 1e-9},
    "all of it": {
        "net": {"batch_norm": True},
        "optimizer": Adam(0.1, schedule=StepDecay(4, 0.8), clip_norm=1.0),
        "regularizer": regularizers.L2(0.01),
        "dropout": 0.2,
        "validation": 0.2,
        "early_stopping": 6,
        "reduce_on_plateau": ReduceOnPlateau(0.5, patience=1),
    },
}
EPOCHS = 7


def run(case, dtype, w=None, **more):
    options = {"loss": "squared", "optimizer": Adam(0.05), "batch_size": 7, "seed": 3, **CASES[case]}
    net = tanh_net(dtype=dtype, **options.pop("net", {}))
    w = weights_of(net) if w is None else w
    S, Y = examples()
    return fit(net, w, S, Y, **{**options, "epochs": EPOCHS, **more})


def assert_same(one, other):
    """Weights, rows and everything that goes on from here, bit for bit."""
    np.testing.assert_array_equal(one.w, other.w, strict=True)
    assert one.rows == other.rows
    for name in ("last_w", "best_w", "sums"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    for mine, theirs in zip(one.state, other.state, strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)
    for name in ("epoch", "batch", "best_epoch", "best_loss", "plateau_loss", "plateau_epochs", "factor", "reason"):
        assert getattr(one, name) == getattr(other, name), name


def stopped_at_an_epoch(case, dtype, folder):
    return run(case, dtype, epochs=3)


def stopped_within_an_epoch(case, dtype, folder):
    # 4 minibatches of 23 or 2 to 3 of fewer: 5 updates end within an epoch, or with "all at once" at the fifth.
    return run(case, dtype, max_iterations=5)


def stopped_twice(case, dtype, folder):
    first = run(case, dtype, max_iterations=1)
    return run(case, dtype, w=np.zeros_like(first.w), max_iterations=6, resume=first)


def stopped_by_the_callback(case, dtype, folder):
    return run(case, dtype, callback=lambda history: history.epoch == 2)


def stopped_on_demand(case, dtype, folder):
    # Asked after every minibatch, for a compiled call does one; it says yes at the sixth time.
    asked = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "SECONDS_PER_CALL", 0.0)
        half = run(case, dtype, stop=lambda: next(asked) == 6)
    assert half.reason == "stopped on demand"
    return half


def saved_afterwards(case, dtype, folder):
    run(case, dtype, max_iterations=6).save(folder / "history")
    return folder / "history"


def saved_by_the_callback(case, dtype, folder):
    def save(history):
        if history.epoch == 2:
            history.save(folder / "history")

    run(case, dtype, callback=save)
    return folder / "history"


# An optimizer and a loss are compiled for each type of the weights; float32 is the default one.
IN_FLOAT64 = ("Momentum", "RMSProp", "clipped", "custom loss")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, marks=pytest.mark.full if dtype == "float32" and case in IN_FLOAT64 else ())
        for case in CASES
        for dtype in ("float64", "float32")
    ],
)
def test_a_fit_stopped_and_resumed_is_the_fit_run_through(case, dtype, tmp_path):
    through = run(case, dtype)
    assert np.isfinite(through.w).all()
    assert_same(through, run(case, dtype))  # the same seed, the same result
    for stop in (
        stopped_at_an_epoch,
        stopped_within_an_epoch,
        stopped_twice,
        stopped_by_the_callback,
        stopped_on_demand,
        saved_afterwards,
        saved_by_the_callback,
    ):
        half = stop(case, dtype, tmp_path)
        w = np.zeros_like(through.w)
        assert_same(run(case, dtype, w=w, resume=half), through)
        np.testing.assert_array_equal(w, through.w)


def test_the_cases_above_do_what_they_are_named_for():
    # Else resuming them would show little.
    early = run("early stopping", "float64")
    assert early.reason.startswith("early stopping")
    assert 2 < early.epoch < EPOCHS
    assert not np.array_equal(early.w, early.last_w)
    assert run("plateau", "float64").factor < 1
    assert run("all of it", "float64").factor < 1
    assert (run("L1", "float64").w == 0).any()


@pytest.mark.parametrize("case", ["SGD", "dropout", "validation share"])
def test_another_seed_gives_other_weights(case):
    assert not np.array_equal(run(case, "float64").w, run(case, "float64", seed=4).w)


def test_without_shuffling_the_seed_is_of_no_consequence():
    np.testing.assert_array_equal(run("no shuffle", "float64").w, run("no shuffle", "float64", seed=4).w)


def test_where_weights_lie_in_memory_changes_no_bit():
    net = tanh_net(3, 20, 1, dtype="float32")
    S, Y = examples()
    results = []
    for offset in range(6):
        w = np.zeros(net.size + 6, np.float32)[offset : offset + net.size]
        w[:] = weights_of(net)
        fit(net, w, S, Y, batch_size=7, epochs=2)
        results.append(w)
    assert all(np.array_equal(w, results[0]) for w in results)


def test_resuming_leaves_the_old_history_alone():
    old = run("all of it", "float64", epochs=3)
    rows, w, moments = list(old.rows), old.last_w.copy(), old.state.moments.copy()
    run("all of it", "float64", w=weights_of(old.net), resume=old)
    assert (old.rows, old.epoch) == (rows, 3)
    np.testing.assert_array_equal(old.last_w, w)
    np.testing.assert_array_equal(old.state.moments, moments)


def test_resuming_what_has_reached_its_end_does_nothing():
    done = run("Adam", "float64")
    again = run("Adam", "float64", w=np.zeros_like(done.w), resume=done)
    assert_same(again, done)
    stopped = run("early stopping", "float64")
    assert_same(run("early stopping", "float64", w=np.zeros_like(stopped.w), resume=stopped, epochs=99), stopped)


@pytest.mark.parametrize("bound", [{"tolerance": 1e-4}, {"gradient_tolerance": 1e-2}])
def test_resuming_what_has_converged_does_nothing(bound):
    def descend(**more):
        return fit(LINEAR, LINEAR.init(0), S0, Y0, optimizer=SGD(0.1), batch_size=None, **bound, **more)

    through = descend(epochs=500)
    assert through.reason.startswith("converged")
    assert through.epoch < 500
    assert_same(descend(epochs=500, resume=through), through)


@pytest.mark.parametrize("interrupted", [6, 9])
def test_a_history_kept_by_the_callback_can_be_resumed_after_an_interruption(interrupted):
    # 4 minibatches an epoch; Ctrl-C comes within the second or third epoch, after another update or more.
    calls, kept = itertools.count(), []

    def value(yhat, y):
        if next(calls) == interrupted:
            raise KeyboardInterrupt
        return HALF_SQUARED[0](yhat, y)

    net = tanh_net()
    options = {"loss": (value, HALF_SQUARED[1]), "optimizer": Adam(0.1), "batch_size": 7, "epochs": 4}
    through = fit(net, weights_of(net), S0, Y0, **{**options, "loss": HALF_SQUARED})
    with pytest.raises(KeyboardInterrupt):
        fit(net, weights_of(net), S0, Y0, callback=kept.append, **options)
    assert_same(fit(net, weights_of(net), S0, Y0, resume=kept[-1], **options), through)


BASE = {"optimizer": Adam(0.05), "batch_size": 7, "validation": examples(6, seed=2), "early_stopping": 50}
CHANGES = {
    "optimizer": {"optimizer": Adam(0.051)},
    "optimizer is": {"optimizer": Adam(0.05, schedule=StepDecay(10))},
    "loss": {"loss": "squared"},
    "loss is": {"loss": losses.HalfSquared().total()},
    "regularizer": {"regularizer": regularizers.L2(0.1)},
    "dropout": {"dropout": 0.5},
    "batch_size is 8; expected 7": {"batch_size": 8},
    "batch_size is 23; expected 7": {"batch_size": None},
    "shuffle": {"shuffle": False},
    "seed is 1; expected 0": {"seed": 1},
    "reduce_on_plateau": {"reduce_on_plateau": ReduceOnPlateau()},
    "the data are others": {"validation": examples(6, seed=3)},
    "net is .*; expected .* that of the history": {"net": tanh_net(3, 5, 1)},
    "net is .*float32.*; expected .*float64": {"net": tanh_net(dtype="float32")},
}


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("message", CHANGES)
def test_resuming_with_another_setting_is_refused(message, from_file, tmp_path):
    net = tanh_net()
    S, Y = examples()
    old = fit(net, weights_of(net), S, Y, epochs=1, **BASE)
    if from_file:
        old.save(tmp_path / "history")
        old = tmp_path / "history"
    options = {**BASE, "net": net, **CHANGES[message]}
    net = options.pop("net")
    w = weights_of(net, 2)
    before = w.copy()
    with pytest.raises(ValueError, match=message):
        fit(net, w, S, Y, epochs=2, resume=old, **options)
    np.testing.assert_array_equal(w, before)


def test_resuming_with_other_data_is_refused():
    net = tanh_net()
    S, Y = examples()
    old = fit(net, weights_of(net), S, Y, batch_size=7, epochs=1)
    S_other, Y_other = S.copy(), Y.copy()
    S_other[7, 1] = np.nextafter(S[7, 1], 9)
    Y_other[22] += 1
    for pair in ((S_other, Y), (S, Y_other), (S[:-1], Y[:-1]), (S[::-1], Y[::-1])):
        with pytest.raises(ValueError, match="the data are others"):
            fit(net, weights_of(net), *pair, batch_size=7, epochs=2, resume=old)


def test_what_ends_a_fit_may_change_on_a_resume():
    net, w = tanh_net(), weights_of(tanh_net())
    options = {"optimizer": Adam(0.05), "batch_size": 7, "validation": examples(30, seed=2), "epochs": 300}
    impatient = fit(net, w, *examples(12), early_stopping=2, **options)
    assert impatient.epoch < 300
    patient = fit(net, w, *examples(12), early_stopping=50, resume=impatient, **options)
    through = fit(net, weights_of(net), *examples(12), early_stopping=50, **options)
    assert patient.epoch > impatient.epoch
    assert_same(patient, through)


# --- what ends it -----------------------------------------------------------------------------------------------------


def test_early_stopping_returns_the_best_weights_and_names_the_epoch():
    # 12 noisy examples and 30 units: the validation loss falls first and rises then.
    net = tanh_net(3, 30, 1)
    S, Y = examples(12)
    held_out = examples(30, seed=8)
    w = weights_of(net)
    path = []
    history = fit(
        *(net, w, S, Y),
        optimizer=Adam(0.03),
        validation=held_out,
        early_stopping=5,
        epochs=400,
        callback=lambda history: path.append(history.w.copy()),
    )
    losses_seen = history["validation_loss"]
    best = int(losses_seen.argmin())
    assert 0 < best < 390
    assert history.best_epoch == best + 1
    assert history.epoch == history.best_epoch + 5
    assert history.reason == f"early stopping: no smaller validation loss since epoch {best + 1}"
    np.testing.assert_array_equal(w, path[best])
    np.testing.assert_array_equal(history.last_w, path[-1])
    assert history.best_loss == losses_seen[best] == pytest.approx(risk(net, w, *held_out), rel=1e-12)
    for weights, loss in zip(path, losses_seen, strict=True):
        assert loss == pytest.approx(risk(net, weights, *held_out), rel=1e-12)


def test_without_early_stopping_the_last_weights_are_returned_and_the_best_epoch_is_known():
    net = tanh_net(3, 30, 1)
    S, Y = examples(12)
    w = weights_of(net)
    history = fit(net, w, S, Y, optimizer=Adam(0.03), validation=examples(30, seed=8), epochs=80)
    assert history.best_epoch == history["validation_loss"].argmin() + 1 < 80
    np.testing.assert_array_equal(w, history.last_w)
    assert risk(net, history.best_w, *examples(30, seed=8)) == pytest.approx(history.best_loss, rel=1e-12)


def test_an_equal_validation_loss_is_no_smaller_one():
    # Nothing is learned: epoch 1 is the best, and the third after it is the last.
    net = tanh_net()
    S, Y = examples()
    w = weights_of(net)
    before = w.copy()
    history = fit(net, w, S, Y, optimizer=SGD(0.0), validation=(S, Y), early_stopping=3, **ENDLESS)
    assert (history.best_epoch, history.epoch) == (1, 4)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"batch_norm": True}])
def test_the_validation_loss_is_that_of_predictions(options):
    net = tanh_net(batch_norm=options.pop("batch_norm", False))
    S, Y = examples()
    w = weights_of(net)
    history = fit(net, w, S, Y, validation=(S, Y), optimizer=Adam(0.1), epochs=3, **options)
    yhat = np.array([net.forward(w, s) for s in S])
    assert history["validation_loss"][-1] == pytest.approx((0.5 * (yhat - Y) ** 2).mean(), rel=1e-12)


def test_the_held_out_share_is_not_learned_from():
    # 0.3 of 10: three targets can be changed without changing w, and these are the ones that the validation loss sees.
    net = tanh_net()
    S, Y = examples(10)

    def outcome(Y):
        w = weights_of(net)
        history = fit(net, w, S, Y, validation=0.3, batch_size=3, epochs=2)
        return w, history["validation_loss"][0]

    w, loss = outcome(Y)
    held_out = []
    for i in range(10):
        other = Y.copy()
        other[i] += 1.0
        w_other, loss_other = outcome(other)
        if np.array_equal(w, w_other):
            held_out.append(i)
            assert loss_other != loss
    assert len(held_out) == 3
    # 7 examples by 3 are 3 updates an epoch.
    assert fit(net, weights_of(net), S, Y, validation=0.3, batch_size=3, epochs=2).n_updates == 6


def test_max_iterations_counts_updates_and_may_end_within_an_epoch():
    # 23 by 7: 4 updates an epoch.
    net = tanh_net()
    S, Y = examples()
    for most, epochs in ((1, 0), (3, 0), (4, 1), (5, 1), (8, 2), (9, 2)):
        history = fit(net, weights_of(net), S, Y, batch_size=7, epochs=None, max_iterations=most)
        assert (history.n_updates, history.epoch, len(history.rows)) == (most, epochs, epochs)
        assert history.reason == f"max_iterations {most} reached"
    assert fit(net, weights_of(net), S, Y, batch_size=7, epochs=2, max_iterations=99).reason == "2 epochs done"


def test_the_callback_sees_each_epoch_and_can_end_it():
    net = tanh_net()
    S, Y = examples()
    w = weights_of(net)
    seen = []

    def callback(history):
        assert history.w is w
        seen.append((history.epoch, history.n_updates, history.rows[-1]["epoch"], len(history.rows)))
        return history.epoch == 3

    history = fit(net, w, S, Y, batch_size=7, epochs=9, callback=callback)
    assert seen == [(1, 4, 1, 1), (2, 8, 2, 2), (3, 12, 3, 3)]
    assert history.reason == "the callback ended it"


def test_blas_has_the_threads_that_were_asked_for():
    def blas():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    net = tanh_net()
    seen = []
    before = blas()
    for threads in (1, 2):
        fit(net, weights_of(net), *examples(), epochs=1, threads=threads, callback=lambda history: seen.append(blas()))
    assert seen == [{1}, {2}]
    assert blas() == before


def test_classes_may_be_numbers_or_unit_vectors():
    net = Network((3, 4, 3), output="softmax", dtype="float64")
    S, _ = examples()
    classes = np.arange(N) % 3
    one, other = net.init(0), net.init(0)
    fit(net, one, S, classes, loss="nll", optimizer=SGD(0.1), epochs=3)
    fit(net, other, S, np.eye(3)[classes], loss="nll", optimizer=SGD(0.1), epochs=3)
    np.testing.assert_array_equal(one, other)


def test_what_is_given_may_be_lists_of_any_numbers_and_is_left_alone():
    net = tanh_net(2, 3, 1)
    S = np.array([[1, 2], [3, 4], [5, 7]])
    Y = np.array([1, 0, 1])
    w, other = net.init(0), net.init(0)
    fit(net, w, S, Y, epochs=3)
    fit(net, other, np.asfortranarray(S, np.float32).tolist(), [[True], [False], [True]], epochs=3)
    np.testing.assert_array_equal(w, other)
    assert S.tolist() == [[1, 2], [3, 4], [5, 7]]
    S, Y = examples()
    S.flags.writeable = Y.flags.writeable = False
    fit(tanh_net(), weights_of(tanh_net()), S, Y, epochs=1)


def test_half_a_batch_is_a_batch():
    # A batch_size beyond the data is all data.
    net = tanh_net()
    one, other = weights_of(net), weights_of(net)
    fit(net, one, *examples(), batch_size=None, epochs=2)
    fit(net, other, *examples(), batch_size=1000, epochs=2)
    np.testing.assert_array_equal(one, other)


# --- errors -----------------------------------------------------------------------------------------------------------

NAN_S, NAN_Y = S0.copy(), Y0.copy()
NAN_S[4, 2], NAN_Y[9] = np.nan, np.inf

ERRORS = [
    ({"S": NAN_S}, r"S\[4, 2\] is nan; expected finite numbers"),
    ({"Y": NAN_Y}, r"Y\[9\] is \[inf\]; expected finite numbers"),
    ({"S": S0[:, :2]}, r"S has shape \(23, 2\); expected \(n, 3\)"),
    ({"S": S0[:, 0]}, r"S has shape \(23,\); expected \(n, 3\)"),
    ({"S": S0[0]}, r"S has shape \(3,\)"),
    ({"S": S0[:0], "Y": Y0[:0]}, "S has no rows"),
    ({"S": [[1, 2, 3], [1, 2]], "Y": [1, 2]}, "S is a list whose rows differ in length"),
    ({"Y": Y0[1:]}, r"Y has shape \(22, 1\); expected \(23, 1\)"),
    ({"Y": np.zeros((23, 2))}, r"Y has shape \(23, 2\); expected \(23, 1\)"),
    ({"Y": 1.0}, r"Y has shape \(\)"),
    ({"loss": "mes"}, "loss is 'mes'; did you mean 'mse'"),
    ({"loss": (1, 2)}, r"loss is \(1, 2\); expected a name, a Loss, or a pair"),
    ({"loss": None}, "loss is None"),
    ({"loss": "log_loss"}, "output is linear; expected sigmoid"),
    ({"loss": "nll_from_logits"}, "expected one for each class"),
    (
        {"loss": "log_loss_from_logits"},
        r"Y holds .*; expected labels or probabilities in \[0, 1\] for log_loss",
    ),
    ({"net": SOFTMAX, "loss": "nll", "Y": np.full(23, 3)}, "Y holds 3; expected classes 0 to 2 for nll"),
    ({"net": SOFTMAX, "loss": "nll", "Y": np.full((23, 3), 0.5)}, "rows of y do not sum to 1"),
    ({"net": Network((3, 1), output="softmax", dtype="float64")}, "output is softmax for one unit, which is always 1"),
    ({"optimizer": SGD({"A": 0.1})}, r"alpha names the layers \['A'\]"),
    ({"optimizer": SGD((0.1, 0.2, 0.3))}, "alpha has 3 step sizes; expected one, or 2 for the layers"),
    ({"regularizer": regularizers.L2({"W9": 0.1})}, r"strength names the layers \['W9'\]"),
    ({"regularizer": regularizers.L2((0.1, 0.2, 0.3))}, "strength has 3 numbers; expected one, or 2"),
    ({"dropout": 1.0}, r"dropout is 1.0; expected rates in \[0, 1\)"),
    ({"dropout": -0.1}, "dropout is -0.1"),
    ({"dropout": float("nan")}, "dropout is nan"),
    ({"dropout": (0.1, 0.1, 0.1)}, "dropout has 3 rates; expected a number, 1 for the hidden layers, or 2 "),
    ({"net": LINEAR, "dropout": 0.5}, "dropout is 0.5; expected 0, as there is no hidden layer"),
    ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
    ({"batch_size": -1}, "batch_size is -1"),
    ({"batch_size": 2.5}, "batch_size is 2.5"),
    ({"batch_size": "8"}, "batch_size is 8"),
    ({"batch_size": True}, "batch_size is True"),
    ({"net": BN, "batch_size": 1}, "batch_size is 1 for 23 examples; expected at least 2"),
    ({"net": BN, "S": S0[:1], "Y": Y0[:1]}, "batch_size is 32 for 1 examples"),
    (
        {"net": BN, "S": S0[:2], "Y": Y0[:2], "validation": 0.5},
        "for 1 examples; expected at least 2",
    ),
    ({"epochs": 0}, "epochs is 0"),
    ({"epochs": -3}, "epochs is -3"),
    ({"epochs": 1.5}, "epochs is 1.5"),
    ({"max_iterations": 0}, "max_iterations is 0"),
    ({"epochs": None}, "epochs is None; expected max_iterations"),
    ({"epochs": None, "validation": 0.2}, "epochs is None; expected max_iterations"),
    ({"tolerance": -1e-9}, "tolerance is -1e-09"),
    ({"tolerance": float("nan")}, "tolerance is nan"),
    ({"gradient_tolerance": -1.0}, "gradient_tolerance is -1.0"),
    ({"validation": 0.0}, r"validation is 0.0; expected \(S, Y\) or a share in \(0, 1\)"),
    ({"validation": 1.0}, "validation is 1.0"),
    ({"validation": 1}, "validation is 1;"),
    ({"validation": True}, "validation is True;"),
    ({"validation": 0.99}, "validation is 0.99 of 23 examples; expected a share that leaves some"),
    ({"validation": (S0,)}, "validation has 1 parts"),
    ({"validation": (S0, Y0, Y0)}, "validation has 3 parts"),
    ({"validation": (NAN_S, Y0)}, r"validation S\[4, 2\] is nan"),
    ({"validation": (S0, NAN_Y)}, r"validation Y\[9\] is \[inf\]"),
    ({"validation": (S0[:, :2], Y0)}, r"validation S has shape \(23, 2\); expected \(n, 3\)"),
    ({"validation": (S0[:0], Y0[:0])}, "validation S has no rows"),
    ({"early_stopping": 3}, "validation is None; expected"),
    ({"early_stopping": 0, "validation": 0.2}, "early_stopping is 0"),
    ({"early_stopping": 2.5, "validation": 0.2}, "early_stopping is 2.5"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 0.5}, "seed is 0.5"),
    ({"seed": "0"}, "seed is 0"),
    ({"seed": None}, "seed is None"),
    ({"threads": 0}, "threads is 0"),
    ({"threads": 1.5}, "threads is 1.5"),
    ({"w": np.full(21, np.nan)}, r"w\[0\] is nan; expected a finite"),
    ({"w": np.where(np.arange(21) == 5, np.inf, 0.0)}, r"w\[5\] is inf; expected a finite"),
    ({"w": np.zeros(20)}, r"w is float64 of shape \(20,\); .*shape \(21,\)"),
    ({"w": np.zeros((21, 1))}, r"w is float64 of shape \(21, 1\)"),
    ({"w": np.zeros(21, np.float32)}, "w is float32 of shape"),
    ({"w": np.zeros(21, complex)}, "w is complex128"),
    ({"w": np.zeros(42)[::2]}, "a contiguous, writeable float64 array"),
    ({"w": [0.0] * 21}, "w is list"),
    ({"w": None}, "w is NoneType"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors_name_the_argument_and_leave_w_as_it_was(options, message):
    options = {"net": tanh_net(), "S": S0, "Y": Y0, **options}
    net, S, Y = (options.pop(name) for name in ("net", "S", "Y"))
    w = options.pop("w", weights_of(net))
    before = np.array(w)
    with pytest.raises(ValueError, match=message):
        fit(net, w, S, Y, callback=lambda history: pytest.fail("it began"), **options)
    np.testing.assert_array_equal(np.array(w), before)


def test_weights_that_may_not_be_written_are_refused():
    w = weights_of(tanh_net())
    w.flags.writeable = False
    with pytest.raises(ValueError, match="a contiguous, writeable float64 array"):
        fit(tanh_net(), w, S0, Y0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"S": [["a"] * 3] * 23}, "S holds <U1; expected real numbers"),
        ({"S": S0 + 1j}, "S holds complex128"),
        ({"Y": [None] * 23}, "Y holds object"),
        ({"validation": (S0, ["a"] * 23)}, "validation Y holds <U1"),
    ],
)
def test_what_holds_no_numbers_is_a_type_error(options, message):
    w = weights_of(tanh_net())
    before = w.copy()
    with pytest.raises(TypeError, match=message):
        fit(tanh_net(), w, **{"S": S0, "Y": Y0, **options})
    np.testing.assert_array_equal(w, before)


def test_a_number_beyond_float32_is_named():
    with pytest.raises(ValueError, match=r"S\[0, 0\] is inf"), np.errstate(over="ignore"):
        fit(tanh_net(dtype="float32"), weights_of(tanh_net(dtype="float32")), np.full((2, 3), 1e39), [0, 0])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (
            (lambda yhat, y: 0.0, HALF_SQUARED[1]),
            ValueError,
            r"loss has shape \(\); expected \(7,\) or \(7, 1\)",
        ),
        (
            (HALF_SQUARED[0], lambda yhat, y: np.ones(7)),
            ValueError,
            r"of the loss has shape \(7,\); expected \(7, 1\)",
        ),
        ((lambda yhat, y: ["a"] * 7, HALF_SQUARED[1]), TypeError, "the value of the loss holds <U1"),
        ((HALF_SQUARED[0], lambda yhat, y: yhat * 1j), TypeError, "the derivative of the loss holds complex128"),
    ],
)
def test_a_custom_loss_of_another_shape_is_refused_before_the_first_update(loss, error, message):
    w = weights_of(tanh_net())
    before = w.copy()
    with pytest.raises(error, match=message):
        fit(tanh_net(), w, S0, Y0, loss=loss, batch_size=7)
    np.testing.assert_array_equal(w, before)


def test_a_custom_gradient_of_another_shape_is_refused():
    class Short:
        def value(self, net, w):
            return 0.0

        def gradient(self, net, w):
            return w[1:]

    w = weights_of(tanh_net())
    before = w.copy()
    with pytest.raises(ValueError, match=r"gradient of the regularizer has shape \(20,\); expected \(21,\)"):
        fit(tanh_net(), w, S0, Y0, regularizer=Short())
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize(
    "options",
    [
        {"regularizer": "l2"},
        {"regularizer": 0.1},
        {"regularizer": regularizers.L2},
        {"dropout": "a"},
        {"dropout": {}},
        pytest.param({"optimizer": "adam"}),
        pytest.param({"optimizer": Adam}),
        pytest.param({"resume": 5}),
        pytest.param({"callback": 5}),
        pytest.param({"reduce_on_plateau": True}),
    ],
)
def test_things_of_another_type_are_named_before_anything_is_learned(options):
    w = weights_of(tanh_net())
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        fit(tanh_net(), w, S0, Y0, epochs=1, **options)
    np.testing.assert_array_equal(w, weights_of(tanh_net()))


@pytest.mark.parametrize("options", [{"threads": 0}, {"log": "busy"}])
def test_an_error_in_a_resumed_fit_leaves_w_as_it_was(options, tmp_path):
    from valueapprox.telemetry import RunLog

    net = tanh_net()
    old = fit(net, weights_of(net), S0, Y0, epochs=1)
    w = weights_of(net, 2)
    if "log" in options:
        options = {"log": tmp_path}
    with RunLog(tmp_path), pytest.raises((ValueError, FileExistsError)):
        fit(net, w, S0, Y0, epochs=2, resume=old, **options)
    np.testing.assert_array_equal(w, weights_of(net, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "decay is 1.0; expected a factor between 0 and 1"),
        ({"decay": 0.0}, "decay is 0.0"),
        ({"decay": float("nan")}, "decay is nan"),
        ({"patience": 0}, "patience is 0"),
        ({"least": -0.1}, "least is -0.1"),
        ({"least": 1.1}, "least is 1.1"),
    ],
)
def test_settings_that_make_no_plateau(settings, message):
    with pytest.raises(ValueError, match=message):
        ReduceOnPlateau(**settings)


@pytest.mark.parametrize("loss", ["half_squared", HALF_SQUARED])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_divergence_is_an_error_and_keeps_the_weights_from_before(dtype, loss):
    # A linear network, half squared, s = 1: w <- w - alpha (w - y) with alpha = 11 multiplies w - y by -10. From 1 the
    # error is (-10)^t after t updates; its half square, 10^2t / 2, passes 3.4e38 at t = 20 and 1.8e308 at t = 155.
    net = Network((1, 1), bias=False, dtype=dtype)
    w = np.ones(1, dtype)
    t = 20 if dtype == "float32" else 155
    seen = []
    message = rf"epoch {t + 1}, minibatch 1 of 1 .* a smaller step size"
    with pytest.raises(FitError, match=message), np.errstate(over="ignore"):
        fit(
            *(net, w, [[1.0]], [0.0]),
            loss=loss,
            optimizer=SGD(11.0),
            epochs=500,
            callback=lambda history: seen.append(history.w.copy()),
        )
    assert len(seen) == t
    np.testing.assert_array_equal(w, seen[-1])
    assert w[0] == pytest.approx((-10.0) ** t, rel=1e-5)
    assert issubclass(FitError, FloatingPointError)


def test_divergence_within_an_epoch_names_the_minibatch():
    # The third of four minibatches holds a target whose square is beyond float64.
    net = tanh_net()
    Y = Y0.copy()
    Y[15] = 1e200
    w, other = weights_of(net), weights_of(net)
    with pytest.raises(FitError, match="epoch 1, minibatch 3 of 4"):
        fit(net, w, S0, Y, batch_size=7, shuffle=False)
    fit(net, other, S0, Y, batch_size=7, shuffle=False, max_iterations=2)
    np.testing.assert_array_equal(w, other)


def test_weights_that_overflow_in_the_last_update_are_an_error():
    # One update, of a finite loss 1/2 8^2 and the gradient 8 (s, 1): 1e308 * 8 is beyond float64.
    w = np.zeros(2)
    with pytest.raises(FitError, match="a weight is infinite or NaN in epoch 1"):
        fit(Network((1, 1), dtype="float64"), w, [[1.0]], [-8.0], optimizer=SGD(1e308), epochs=1)
    assert w.tolist() == [0, 0]


NAN_DERIVATIVE = (HALF_SQUARED[0], lambda yhat, y: np.full_like(yhat, np.nan))


def test_weights_that_overflow_within_an_epoch_do_not_stay():
    w = weights_of(tanh_net())
    with pytest.raises(FitError):
        fit(tanh_net(), w, S0, 8 * Y0, batch_size=7, epochs=2, loss=NAN_DERIVATIVE)
    np.testing.assert_array_equal(w, weights_of(tanh_net()))
    # The first step goes to 8e308, which is infinite; the second example's loss shows it.
    net, w = Network((1, 1), dtype="float64"), np.zeros(2)
    with pytest.raises(FitError):
        fit(net, w, [[1.0], [1.0]], [8.0, 8.0], optimizer=SGD(1e308), batch_size=1, epochs=1)
    assert w.tolist() == [0, 0]


@pytest.mark.parametrize(
    "loss",
    [
        "half_squared",
        HALF_SQUARED,
        pytest.param((HALF_SQUARED[0], lambda yhat, y: np.ones(3))),
    ],
)
def test_running_statistics_are_those_from_before_an_error_too(loss):
    w = weights_of(BN)
    with pytest.raises((FitError, ValueError)), np.errstate(over="ignore"):
        fit(BN, w, S0, np.full(N, 1e200), loss=loss, batch_size=7)
    np.testing.assert_array_equal(w, weights_of(BN))


def test_running_statistics_that_overflow_are_an_error():
    # The variance of 1e200 s is beyond float64; psi_hat is then 0, and no loss infinite.
    w = weights_of(BN)
    with pytest.raises(FitError):
        fit(BN, w, 1e200 * S0, Y0, batch_size=7, epochs=1)
    np.testing.assert_array_equal(w, weights_of(BN))


def test_an_infinite_validation_loss_is_an_error():
    with pytest.raises(FitError, match="the validation loss is inf after epoch 1"):
        fit(tanh_net(), weights_of(tanh_net()), S0, Y0, validation=(S0, np.full(N, 1e200)))


# --- the history and its file -----------------------------------------------------------------------------------------


def test_the_history_gives_columns_and_says_which_there_are():
    net = tanh_net()
    history = fit(net, weights_of(net), S0, Y0, epochs=3)
    columns = ["epoch", "updates", "loss", "step_size", "grad_norm/A", "grad_norm/B"]
    assert list(history.rows[0]) == columns
    assert [history[column].shape for column in columns] == [(3,)] * 6
    with pytest.raises(KeyError, match="column is 'los'; expected one of epoch, grad_norm/A, "):
        history["los"]
    empty = fit(net, weights_of(net), S0, Y0, batch_size=7, max_iterations=1)
    with pytest.raises(KeyError, match="expected none, as no epoch is complete"):
        empty["loss"]
    assert repr(empty) == "<History: 0 epochs, 1 updates, no epoch complete; max_iterations 1 reached>"
    full = fit(net, weights_of(net), S0, Y0, validation=0.5, regularizer=regularizers.L2(0.1), epochs=1)
    assert list(full.rows[0]) == [*columns[:3], "penalty", "validation_loss", *columns[3:]]
    assert repr(full).startswith("<History: 1 epochs, 1 updates, loss ")


def saved(tmp_path, **options):
    net = tanh_net(**options)
    history = fit(net, weights_of(net), S0, Y0, epochs=2, validation=0.2, regularizer=regularizers.L2({"A": 0.1}))
    history.save(tmp_path / "history")
    return history, tmp_path / "history"


@pytest.mark.parametrize(
    "options",
    [
        {"seed": np.int64(1)},
        {"seed": 1.0},
        {"early_stopping": np.int64(5)},
        {"shuffle": np.True_},
        {"reduce_on_plateau": ReduceOnPlateau(patience=np.int64(2))},
    ],
)
def test_numpy_numbers_are_settings_too(options, tmp_path):
    net = tanh_net()
    history = fit(net, weights_of(net), S0, Y0, epochs=1, validation=0.3, **options)
    history.save(tmp_path / "history")
    assert_same(History.load(tmp_path / "history"), history)


@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"dtype": "float32"}])
def test_a_history_is_read_back_as_it_was(options, tmp_path):
    history, path = saved(tmp_path, **options)
    again = History.load(path)
    assert_same(again, history)
    assert again.net == history.net
    assert json.loads(json.dumps(history.settings)) == again.settings
    again.save(tmp_path / "again")
    assert_same(History.load(tmp_path / "again"), history)


def test_a_truncated_file_is_a_checkpoint_error(tmp_path):
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="history"):
            History.load(path)


def test_a_damaged_file_is_a_checkpoint_error_or_reads_the_same(tmp_path):
    # Bytes that no reader looks at, like a member's date, may change; a number may not.
    history, path = saved(tmp_path)
    whole = path.read_bytes()
    errors = 0
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            assert_same(History.load(path), history)
        except CheckpointError:
            errors += 1
    assert errors > 200


def test_files_of_others_are_refused(tmp_path):
    net = tanh_net()
    ValueFunction(net, seed=0).save(tmp_path / "value function")
    np.savez(tmp_path / "arrays.npz", w=np.zeros(3))
    (tmp_path / "text").write_text("not a history")
    (tmp_path / "folder").mkdir()
    for name in ("value function", "arrays.npz", "text", "folder", "nothing"):
        with pytest.raises(CheckpointError, match=name):
            History.load(tmp_path / name)
        w = weights_of(net)
        with pytest.raises(CheckpointError, match=name):
            fit(net, w, S0, Y0, resume=tmp_path / name)
        np.testing.assert_array_equal(w, weights_of(net))


def rewritten(path, **changes):
    """The file with members replaced, checksums and all."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for name, change in changes.items():
        key = "meta.json" if name == "meta" else f"{name}.npy"
        members[key] = change(members[key])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)


def npy(array, path):
    np.save(path, array, allow_pickle=True)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["w", "last_w", "best_w", "moments", "count", "sums"])
def test_arrays_of_another_shape_or_type_are_refused(name, tmp_path):
    _, path = saved(tmp_path)
    for wrong in (np.zeros(6), np.zeros((2, 21), np.float32), np.zeros(21, np.int32)):
        rewritten(path, **{name: lambda data, wrong=wrong: npy(wrong, tmp_path / "wrong.npy")})
        with pytest.raises(CheckpointError, match=f"holds no fit .*{name}"):
            History.load(path)


@pytest.mark.parametrize("key", ["net", "numbers", "rows", "reason", "settings"])
def test_a_description_that_lacks_something_is_refused(key, tmp_path):
    _, path = saved(tmp_path)

    def without(data):
        document = json.loads(data)
        del document["meta"][key]
        return json.dumps(document)

    rewritten(path, meta=without)
    with pytest.raises(CheckpointError, match=f"holds no fit .*{key}"):
        History.load(path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["w", "moments"])
def test_loading_never_unpickles(name, tmp_path):
    _, path = saved(tmp_path)
    mark = tmp_path / "unpickled"
    data = npy(np.array([Bomb(mark)], dtype=object), tmp_path / "bomb.npy")
    np.load(tmp_path / "bomb.npy", allow_pickle=True)[0].close()  # the bomb works
    mark.unlink()
    rewritten(path, **{name: lambda _: data})
    with pytest.raises(CheckpointError):
        History.load(path)
    assert not mark.exists()


# --- log and progress -------------------------------------------------------------------------------------------------


def test_the_log_holds_each_epoch_once_also_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from valueapprox.telemetry import RunLog, read_metrics

    net = tanh_net(3, 4, 3, 1)
    options = {"batch_size": 7, "validation": examples(6, seed=2), "regularizer": regularizers.L2(0.1)}
    folder = tmp_path / "runs" / "one"  # made if need be
    # Three epochs are logged, at 4, 8 and 12 updates, but the history was saved after the first and a bit.
    fit(net, weights_of(net), S0, Y0, epochs=3, log=folder, **options)
    old = fit(net, weights_of(net), S0, Y0, max_iterations=6, **options)
    history = fit(net, weights_of(net), S0, Y0, epochs=4, log=folder, resume=old, **options)
    lines = read_metrics(folder)
    assert [line.pop("step") for line in lines] == [4, 8, 12, 16]
    for line, row in zip(lines, history.rows, strict=True):
        assert line == {f"fit/{name}": value for name, value in row.items() if name not in ("epoch", "updates")}
    assert {"fit/loss", "fit/validation_loss", "fit/penalty", "fit/step_size"} <= set(lines[0])
    assert {f"fit/grad_norm/W{l}" for l in (1, 2, 3)} <= set(lines[0])
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == set(lines[0])
    for tag in lines[0]:
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [4, 8, 12, 16]
        np.testing.assert_allclose([s.value for s in scalars], [line[tag] for line in lines], rtol=1e-6)

    # An open log takes more than one fit's numbers, and stays open.
    (tmp_path / "two").mkdir()
    with RunLog(tmp_path / "two") as log:
        fit(net, weights_of(net), S0, Y0, epochs=2, log=log)
        log.scalars(99, {"mine": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path / "two")] == [1, 2, 99]


def test_a_folder_that_holds_a_log_is_refused(tmp_path):
    net = tanh_net()
    fit(net, weights_of(net), S0, Y0, epochs=1, log=tmp_path)
    w = weights_of(net)
    with pytest.raises(FileExistsError, match="holds the log of another run"):
        fit(net, w, S0, Y0, epochs=1, log=tmp_path)
    np.testing.assert_array_equal(w, weights_of(net))


@pytest.mark.parametrize("options", [{}, {"epochs": None, "max_iterations": 5}, {"tolerance": 1e-2, **ENDLESS}])
def test_a_progress_bar_is_shown_on_stderr_if_asked(options, capsys):
    net = tanh_net()
    w, quiet = weights_of(net), weights_of(net)
    settings = {"batch_size": 7, "epochs": 3, "validation": 0.2, **options}
    fit(net, w, S0, Y0, progress=True, **settings)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fitting" in err
    assert f"{fit(net, quiet, S0, Y0, progress=False, **settings).n_updates}/" in err.splitlines()[-1]
    quiet = weights_of(net)
    fit(net, quiet, S0, Y0, progress=False, **settings)
    assert capsys.readouterr() == ("", "")
    np.testing.assert_array_equal(w, quiet)


# --- the minimum, whatever the way ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 50, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_minimum_does_not_depend_on_the_size_of_minibatches(reduction, batch_size):
    # Ridge in closed form: with the mean, 1/n sum e^2 + l2 w^2 has (S'S / n + l2) w = S'y / n; with the sum it is
    # the same for n l2. One step size for the whole run would circle around it, so it falls.
    rng = np.random.default_rng(0)
    S = rng.normal(size=(100, 3))
    y = S @ [2.0, -1.0, 0.5]
    strength = 0.4 if reduction == "mean" else 0.4 * 100
    net = Network((3, 1), bias=False, dtype="float64")
    w = np.zeros(3)
    loss = losses.Squared().mean() if reduction == "mean" else losses.Squared().total()
    fit(net, w, S, y, loss=loss, regularizer=regularizers.L2(strength), optimizer=Adam(0.05, schedule=InverseTime(100)),
        batch_size=batch_size, epochs=3000 if batch_size is None else 600)  # fmt: skip
    ridge = np.linalg.solve(S.T @ S / 100 + 0.4 * np.eye(3), S.T @ y / 100)
    np.testing.assert_allclose(w, ridge, atol=0.02)
    assert np.abs(ridge - [2.0, -1.0, 0.5]).max() > 0.1


def test_a_regularizer_that_is_a_subclass_does_what_it_says():
    class Own(regularizers.Regularizer):
        def value(self, net, w):
            return 0.5 * float((w**2).sum())

        def gradient(self, net, w):
            return w

    net = Network((2, 1), bias=False, dtype="float64")
    S, y = [[1.0, 0.0], [0.0, 1.0]], [2.0, 4.0]
    own, builtin = np.zeros(2), np.zeros(2)
    fit(net, own, S, y, regularizer=Own(), optimizer=SGD(0.1), epochs=20)
    fit(net, builtin, S, y, regularizer=regularizers.L2(0.5), optimizer=SGD(0.1), epochs=20)
    np.testing.assert_allclose(own, builtin, rtol=1e-12)


def test_a_failed_fit_leaves_its_history():
    net, w = Network((1, 1), dtype="float64"), np.zeros(2)
    calls = itertools.count()

    def value(yhat, y):
        return np.full(len(yhat), np.nan if next(calls) >= 6 else 1.0)

    loss = (value, lambda yhat, y: yhat - y)
    with pytest.raises(FitError) as error:
        fit(net, w, [[1.0], [2.0]], [1.0, 2.0], loss=loss, batch_size=1, epochs=9)
    assert error.value.history.epoch == 3
    assert len(error.value.history["loss"]) == 3


def test_a_limit_on_the_updates_lifts_that_on_the_epochs():
    net = Network((1, 1), dtype="float64")
    limited = fit(net, np.zeros(2), [[1.0], [2.0]], [1.0, 2.0], batch_size=None, max_iterations=250)
    assert limited.n_updates == limited.epoch == 250
    assert fit(net, np.zeros(2), [[1.0], [2.0]], [1.0, 2.0]).epoch == 100
    with pytest.raises(KeyError, match="expected none, as no epoch is complete"):
        fit(net, np.zeros(2), [[1.0], [2.0]], [1.0, 2.0], batch_size=1, max_iterations=1)["loss"]
