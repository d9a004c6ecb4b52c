"""Many examples at once: the same as one by one; the random numbers and masks of dropout; batch normalisation."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from valueapprox import SGD, Network, fit, regularizers, risk, risk_gradient
from valueapprox.nn.activations import HIDDEN
from valueapprox.nn.batch import mixed, uniform
from valueapprox.nn.network import ROWS_AT_ONCE
from valueapprox.supervised.objective import CAPACITY

ROOT = Path(__file__).parents[3]


class Watch:
    """A loss that is 0 with slope 1 and keeps the outputs yhat (n, k) of every forward pass."""

    def __init__(self):
        self.seen = []
        self.pair = (self.value, lambda yhat, y: np.ones_like(yhat))

    def value(self, yhat, y):
        self.seen.append(yhat.copy())
        return np.zeros(len(yhat))


# --- a batch is its rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 3])
def test_a_batch_of_any_size_is_its_rows(n):
    for options in ({}, {"bias": False}, {"layer_norm": True}, {"batch_norm": True}):
        net = Network((3, 17, 2, 3), "tanh", "softmax", dtype="float64", **options)
        w = net.init(0)
        w[net.n_parameters :] += 0.2
        states = np.random.default_rng(n).normal(size=(n, 3))
        yhat = net.forward(w, states)
        assert yhat.shape == (n, 3)
        rows = np.array([net.forward(w, s) for s in states]).reshape(n, 3)
        np.testing.assert_allclose(yhat, rows, rtol=1e-12, atol=1e-14)


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_mixed_is_splitmix64():
    # The first outputs of the published generator for the seed 1234567 (prng.di.unimi.it/splitmix64.c).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [int(mixed(np.uint64(1234567), np.uint64(i))) for i in range(4)] == expected
    # z = key + (number + 1) golden modulo 2^64, in Python's whole numbers.
    key, number, whole = 2**64 - 1, 2**40 + 3, 2**64
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) % whole
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % whole
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % whole
    assert int(mixed(np.uint64(key), np.uint64(number))) == z ^ (z >> 31)
    assert uniform(np.uint64(key), np.uint64(number)) == ((z ^ (z >> 31)) >> 40) / 2**24


@pytest.mark.parametrize("key", [0, 1, 2**63, 2**64 - 1])
def test_uniform_is_uniform(key):
    # Chi-square over 64 bins; pairs of neighbours over 8 x 8; 24 bits.
    numbers = np.array([uniform(np.uint64(key), np.uint64(i)) for i in range(30_000)], dtype=np.float64)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (numbers * 2**24 % 1 == 0).all()
    assert 1e-4 < stats.chisquare(np.bincount((numbers * 64).astype(int), minlength=64)).pvalue < 1 - 1e-4
    eighths = (numbers * 8).astype(int)
    pairs = np.bincount(8 * eighths[:-1:2] + eighths[1::2], minlength=64)
    assert 1e-4 < stats.chisquare(pairs).pvalue < 1 - 1e-4


# --- dropout ----------------------------------------------------------------------------------------------------------

M, N, STEPS = 40, 50, 10


def masks(dropout, seed=0, n=N, steps=STEPS, m=M, **settings):
    """The masks (steps, n, m) of a minibatch of n ones in each of the first updates of a fit.

    s -> I -> I without activation or biases: yhat is the product of the masks of inputs and hidden units.
    """
    net = Network((m, m, m), "linear", bias=False, dtype="float64")
    w = net.pack([(np.eye(m), None)] * 2)
    watch = Watch()
    options = {"loss": watch.pair, "optimizer": SGD(0.0), "batch_size": n, "epochs": steps, "shuffle": False}
    history = fit(net, w, np.ones((n, m)), np.zeros((n, m)), dropout=dropout, seed=seed, **options, **settings)
    seen = np.array(watch.seen)
    return (seen, history) if settings else seen


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("layer", [0, 1])
def test_each_unit_is_dropped_at_its_rate_and_scaled_if_kept(rate, layer):
    # Counts of dropped units are binomial: mean N rate, variance N rate (1 - rate); five deviations of it, for the
    # layer and for each of its 40 units.
    seen = masks([rate, 0.0] if layer == 0 else [0.0, rate])
    np.testing.assert_allclose(np.unique(seen), [0, 1 / (1 - rate)], rtol=1e-15)
    for dropped, trials in (((seen == 0).sum(), seen.size), ((seen == 0).sum(axis=(0, 1)), N * STEPS)):
        assert (abs(dropped - trials * rate) < 5 * np.sqrt(trials * rate * (1 - rate))).all()


def test_every_layer_has_its_own_rate():
    # Kept by both: 0.8 * 0.5 = 0.4, scaled by 1 / 0.4.
    both = masks([0.2, 0.5])
    np.testing.assert_allclose(np.unique(both), [0, 2.5], rtol=1e-15)
    np.testing.assert_allclose(both, masks([0.2, 0.0]) * masks([0.0, 0.5]), rtol=1e-15)
    assert abs((both > 0).mean() - 0.4) < 5 * np.sqrt(0.4 * 0.6 / both.size)
    np.testing.assert_array_equal(masks(0.5), masks([0.0, 0.5]))  # one rate is that of the hidden layer
    np.testing.assert_array_equal(masks(0.0), 1.0)


def test_masks_of_steps_layers_units_examples_and_seeds_are_uncorrelated():
    # A correlation of K independent pairs is about normal with deviation 1 / sqrt(K); five of them.
    hidden, inputs, other = masks([0, 0.5]), masks([0.5, 0]), masks([0, 0.5], seed=1)

    def correlation(a, b):
        return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * np.sqrt(a.size)

    assert correlation(hidden, inputs) < 5
    assert correlation(hidden, other) < 5
    for lag in (1, 2, 3, 8):
        assert correlation(hidden[lag:], hidden[:-lag]) < 5  # steps
        assert correlation(hidden[:, lag:], hidden[:, :-lag]) < 5  # examples
        assert correlation(hidden[..., lag:], hidden[..., :-lag]) < 5  # units
    assert correlation(hidden[1:], inputs[:-1]) < 5
    between_units = np.corrcoef(hidden.reshape(-1, M), rowvar=False)[np.triu_indices(M, 1)]
    assert abs(between_units).max() < 5 / np.sqrt(N * STEPS)
    between_steps = np.corrcoef(hidden.reshape(STEPS, -1))[np.triu_indices(STEPS, 1)]
    assert abs(between_steps).max() < 5 / np.sqrt(N * M)


def test_seed_and_step_decide_the_masks():
    seen = masks(0.5)
    np.testing.assert_array_equal(masks(0.5), seen)
    np.testing.assert_array_equal(masks(0.5, steps=3), seen[:3])
    first, history = masks(0.5, steps=4, progress=False)
    second, _ = masks(0.5, steps=STEPS, resume=history)
    np.testing.assert_array_equal(np.concatenate([first, second]), seen)
    # All 20 minibatches of two seeds differ.
    several = np.concatenate([seen, masks(0.5, seed=1)]).reshape(2 * STEPS, -1)
    assert len(np.unique(several, axis=0)) == 2 * STEPS


def test_parts_of_a_large_minibatch_have_masks_of_their_own():
    # CAPACITY + 8 examples go through in two parts, and then the last 8 are not masked as the first are.
    net = Network((16, 16), bias=False, dtype="float64")
    watch = Watch()
    n = CAPACITY + 8
    risk_gradient(
        net, np.eye(16).ravel(), np.ones((n, 16)), np.zeros((n, 16)), watch.pair, training=True, dropout=[0.5]
    )
    assert [len(part) for part in watch.seen] == [CAPACITY, 8]
    rows = np.concatenate(watch.seen)
    assert len(np.unique(rows, axis=0)) > n - 40  # of 65536 masks, 1032 drawn: 1032^2 / 2 / 65536 = 8 pairs expected
    assert not (rows[:8] == rows[-8:]).all(axis=1).any()


def test_the_mask_of_the_backward_pass_is_that_of_the_forward_pass():
    # yhat_j = mask_j, dl/dyhat = 1:  dB_ij = mask_i (the hidden unit's output), dA_ij = s_i mask_j sum_k B_jk = mask_j.
    net = Network((M, M, M), "linear", bias=False, dtype="float64")
    w = net.pack([(np.eye(M), None)] * 2)
    for seed in range(3):
        watch = Watch()
        data = np.ones((1, M)), np.zeros((1, M))
        _, gradient = risk_gradient(net, w, *data, watch.pair, training=True, dropout=0.3, seed=seed)
        mask = watch.seen[0][0]
        assert 0 < (mask == 0).sum() < M
        np.testing.assert_array_equal(net.block(gradient, "B"), np.tile(mask[:, None], M))
        np.testing.assert_array_equal(net.block(gradient, "A"), np.tile(mask, (M, 1)))
        # Inputs: yhat_i = mask_i, dA_ij = mask_i sum_k B_jk = mask_i.
        _, gradient = risk_gradient(net, w, *data, watch.pair, training=True, dropout=[0.3, 0.0], seed=seed)
        np.testing.assert_array_equal(net.block(gradient, "A"), np.tile(watch.seen[1][0][:, None], M))


def test_predicting_drops_nothing():
    net = Network((M, M), bias=False, dtype="float64")
    w, watch = np.eye(M).ravel(), Watch()
    ones, zeros = np.ones((8, M)), np.zeros((8, M))
    settings = {"loss": watch.pair, "dropout": [0.5], "optimizer": SGD(0.0), "epochs": 1}
    fit(net, w, ones, zeros, validation=(ones[:3], zeros[:3]), **settings)
    training, validation = watch.seen
    assert (training == 0).any()
    assert (validation == 1).all()
    assert (net.forward(w, np.ones((8, M))) == 1).all()


# --- batch normalisation ----------------------------------------------------------------------------------------------

EPSILON = 1e-5


def test_outputs_have_the_mean_of_the_shift_and_the_deviation_of_the_scale():
    # psi = scale (s - mean) / sqrt(v + 1e-5) + shift over the minibatch: mean shift, variance scale^2 v / (v + 1e-5).
    rng = np.random.default_rng(0)
    net = Network((3, 3, 3), "linear", dtype="float64", batch_norm=True)
    w = net.pack([(np.eye(3), np.zeros(3)), (np.eye(3), np.zeros(3))])
    (norm,) = net.batch_norms(w)
    norm.scale[:], norm.shift[:] = [1.0, -2.0, 0.5], [0.0, 3.0, -1.0]
    norm.mean[:], norm.variance[:] = 7.0, 9.0  # count in predicting only
    S = rng.normal([0.0, 5.0, -300.0], [1.0, 0.003, 40.0], size=(50, 3))
    watch = Watch()
    risk_gradient(net, w, S, np.zeros((50, 3)), watch.pair, training=True)
    variance = S.var(axis=0)
    np.testing.assert_allclose(watch.seen[0].mean(axis=0), norm.shift, rtol=0, atol=1e-12)
    np.testing.assert_allclose(watch.seen[0].var(axis=0), norm.scale**2 * variance / (variance + EPSILON), rtol=1e-11)
    np.testing.assert_allclose(net.forward(w, S), norm.scale * (S - 7) / np.sqrt(9 + EPSILON) + norm.shift, rtol=1e-12)


def test_running_statistics_by_hand():
    # Minibatches (1, 3) and (5, 9): means 2 and 7, variances with n - 1: 2 and 8.
    #   mean      0.9 * 0 + 0.1 * 2 = 0.2     0.9 * 0.2 + 0.1 * 7 = 0.88
    #   variance  0.9 * 1 + 0.1 * 2 = 1.1     0.9 * 1.1 + 0.1 * 8 = 1.79
    for dtype, tolerance in (("float64", 1e-15), ("float32", 1e-6)):
        net = Network((1, 1, 1), "linear", dtype=dtype, batch_norm=True)
        w = net.pack([([[1.0]], [0.0]), ([[1.0]], [0.0])])
        settings = {"optimizer": SGD(0.0), "batch_size": 2, "epochs": 1, "shuffle": False}
        fit(net, w, [[1.0], [3.0], [5.0], [9.0]], np.zeros(4), **settings)
        (norm,) = net.batch_norms(w)
        assert norm.mean[0] == pytest.approx(0.88, rel=tolerance)
        assert norm.variance[0] == pytest.approx(1.79, rel=tolerance)
        assert net.forward(w, [2.0])[0] == pytest.approx((2 - 0.88) / np.sqrt(1.79 + EPSILON), rel=10 * tolerance)


def test_running_statistics_of_deep_networks():
    # Layer by layer in NumPy, over three epochs of minibatches of 7, 7, 7 and 3 whose weights stay.
    rng = np.random.default_rng(0)
    net = Network((3, 4, 5, 2), "tanh", dtype="float64", batch_norm=True)
    w = net.init(0)
    S = rng.normal(size=(24, 3))
    expected = [[np.zeros(m), np.ones(m)] for m in (4, 5)]
    for start in 3 * (0, 7, 14, 21):
        x = S[start : start + 7]
        for (W, _), running, norm in zip(net.unpack(w), expected, net.batch_norms(w), strict=False):
            psi = x @ W
            running[0] = 0.9 * running[0] + 0.1 * psi.mean(axis=0)
            running[1] = 0.9 * running[1] + 0.1 * psi.var(axis=0, ddof=1)
            psi = (psi - psi.mean(axis=0)) / np.sqrt(psi.var(axis=0) + EPSILON)
            x = np.tanh(norm.scale * psi + norm.shift)
    fit(net, w, S, np.zeros((24, 2)), optimizer=SGD(0.0), batch_size=7, epochs=3, shuffle=False)
    for (mean, variance), norm in zip(expected, net.batch_norms(w), strict=True):
        np.testing.assert_allclose(norm.mean, mean, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(norm.variance, variance, rtol=1e-12)


def test_gradients_of_scale_and_shift_by_hand():
    # s = 1, 3 and A = 1: mean 2, variance 1, hat = -q, q with q = 1 / sqrt(1 + 1e-5). Scale 2, shift 1/2, B = 1:
    # yhat = 1/2 - 2q, 1/2 + 2q; y = 0; half squared: d = dR/dyhat = yhat / 2 = 1/4 - q, 1/4 + q.
    #   dR/dshift = sum d = 1/2        dR/dscale = sum d hat = 2 q^2
    #   d <- 2 q (d - 1/4 - hat q^2) = -+ 2 q^2 (1 - q^2)      dR/dA = sum s d = 4 q^2 (1 - q^2)
    net = Network((1, 1, 1), "linear", dtype="float64", batch_norm=True)
    w = net.pack([([[1.0]], [0.5]), ([[1.0]], [0.0])])
    (norm,) = net.batch_norms(w)
    norm.scale[:], norm.mean[:], norm.variance[:] = 2.0, 1.0, 4.0
    _, gradient = risk_gradient(net, w, [[1.0], [3.0]], [0.0, 0.0], training=True)
    q2 = 1 / (1 + EPSILON)
    assert net.block(gradient, "b_A")[0] == pytest.approx(0.5, rel=1e-14)
    assert net.block(gradient, "scale1")[0] == pytest.approx(2 * q2, rel=1e-14)
    assert net.block(gradient, "A")[0, 0] == pytest.approx(4 * q2 * (1 - q2), rel=1e-9)
    # In predicting mean 1 and variance 4 are constants, r = 1 / sqrt(4 + 1e-5): hat = 0, 2r; yhat = 1/2, 1/2 + 4r;
    # d = 1/4, 1/4 + 2r; dR/dshift = 1/2 + 2r; dR/dscale = 2r (1/4 + 2r); dR/dA = 2r (1/4 + 3 (1/4 + 2r)).
    r = 1 / np.sqrt(4 + EPSILON)
    _, gradient = risk_gradient(net, w, [[1.0], [3.0]], [0.0, 0.0])
    assert net.block(gradient, "b_A")[0] == pytest.approx(0.5 + 2 * r, rel=1e-14)
    assert net.block(gradient, "scale1")[0] == pytest.approx(2 * r * (0.25 + 2 * r), rel=1e-14)
    assert net.block(gradient, "A")[0, 0] == pytest.approx(2 * r * (1 + 6 * r), rel=1e-14)
    assert net.block(gradient, "mean1")[0] == net.block(gradient, "variance1")[0] == 0


def test_the_length_of_weights_before_a_normalisation_makes_no_difference():
    # psi is the same for c W as for W, up to the epsilon: so the gradient by W is at a right angle to W, unit by unit.
    rng = np.random.default_rng(0)
    net = Network((3, 4, 2), "tanh", dtype="float64", batch_norm=True)
    w = net.init(0)
    S, Y = 1e3 * rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    value, gradient = risk_gradient(net, w, S, Y, training=True)
    A, dA = net.block(w, "A"), net.block(gradient, "A")
    cosines = (A * dA).sum(axis=0) / np.linalg.norm(A, axis=0) / np.linalg.norm(dA, axis=0)
    assert abs(cosines).max() < 1e-6
    A *= 10.0
    assert risk_gradient(net, w, S, Y, training=True)[0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_folded_network_predicts_the_same(depth, dtype, tolerance):
    rng = np.random.default_rng(depth)
    for hidden in HIDDEN:
        net = Network((3, *(4, 5, 3)[:depth], 2), hidden, "sigmoid", dtype=dtype, batch_norm=True)
        w = net.init(depth)
        S = rng.normal(size=(60, 3))
        fit(net, w, S, rng.uniform(size=(60, 2)), optimizer=SGD(0.3), batch_size=16, epochs=5)
        before = w.copy()
        plain, folded = net.fold(w)
        assert (plain.batch_norm, plain.sizes, plain.dtype) == (False, net.sizes, dtype)
        np.testing.assert_allclose(plain.forward(folded, S), net.forward(w, S), rtol=0, atol=tolerance)
        np.testing.assert_allclose(plain.forward(folded, S[0]), net.forward(w, S[0]), rtol=0, atol=tolerance)
        folded += 1.0
        np.testing.assert_array_equal(w, before)  # not a view


def test_folding_by_hand_and_what_has_nothing_to_fold():
    # scale 3, shift 1, mean 2, variance 4 - 1e-5, so sd = 2: W' = 5 * 3/2, b' = 1 - 2 * 3/2.
    net = Network((1, 1, 1), dtype="float64", batch_norm=True)
    w = net.pack([([[5.0]], [1.0]), ([[7.0]], [11.0])])
    (norm,) = net.batch_norms(w)
    norm.scale[:], norm.mean[:], norm.variance[:] = 3.0, 2.0, 4 - EPSILON
    np.testing.assert_allclose(net.fold(w)[1], [7.5, -2.0, 7.0, 11.0], rtol=1e-15)
    plain = Network((2, 3, 1), dtype="float64")
    w = plain.init(0)
    again, folded = plain.fold(w)
    assert again == plain
    np.testing.assert_array_equal(folded, w)


def test_one_example_is_refused_and_a_left_over_one_joins_its_neighbours():
    net = Network((1, 2, 1), dtype="float64", batch_norm=True)
    S, Y = np.arange(5.0)[:, None], np.arange(5.0)
    w = net.init(0)
    before = w.copy()
    for data, batch_size in (((S, Y), 1), ((S[:1], Y[:1]), 32), ((S[:1], Y[:1]), None)):
        with pytest.raises(ValueError, match="expected at least 2, for batch normalisation"):
            fit(net, w, *data, batch_size=batch_size)
    np.testing.assert_array_equal(w, before)
    # 2 + 3, where an ordinary network learns from 2 + 2 + 1.
    for its_net, n_updates in ((net, 2), (Network((1, 2, 1), dtype="float64"), 3)):
        assert fit(its_net, its_net.init(0), S, Y, batch_size=2, epochs=1).n_updates == n_updates


def test_the_first_update_has_the_masks_of_risk_gradient_where_a_left_over_example_joins():
    rng = np.random.default_rng(0)
    net = Network((2, 4, 1), dtype="float64", batch_norm=True)
    S, Y, w = rng.normal(size=(5, 2)), rng.normal(size=5), net.init(0)
    _, gradient = risk_gradient(net, w, S[:2], Y[:2], training=True, dropout=0.5, seed=3)
    moved = w.copy()
    settings = {"batch_size": 2, "shuffle": False, "max_iterations": 1, "optimizer": SGD(1.0)}
    fit(net, moved, S, Y, dropout=0.5, seed=3, **settings)
    learned = slice(net.n_parameters)
    np.testing.assert_allclose(moved[learned], (w - gradient)[learned], rtol=0, atol=1e-14)


def test_statistics_are_those_of_all_examples_of_a_large_minibatch():
    # CAPACITY + 500 examples, the last of which alone are far off: parts of their own would hide it.
    net = Network((1, 1, 1), "linear", dtype="float64", batch_norm=True)
    w = net.pack([([[1.0]], [0.0]), ([[1.0]], [0.0])])
    S = np.concatenate([np.linspace(-1, 1, CAPACITY), np.full(500, 9.0)])[:, None]
    watch = Watch()
    risk_gradient(net, w, S, np.zeros(len(S)), watch.pair, training=True)
    (yhat,) = watch.seen
    np.testing.assert_allclose(yhat, (S - S.mean()) / np.sqrt(S.var() + EPSILON), rtol=0, atol=1e-12)


def test_a_unit_that_is_the_same_for_all_examples_is_its_shift():
    # Variance 0: hat = 0, and no gradient reaches the weights, where 1 / sigma = 316 multiplies what is left of it.
    net = Network((1, 2, 1), "linear", dtype="float64", batch_norm=True)
    w = net.init(0)
    net.batch_norms(w)[0].shift[:] = [2.0, 3.0]
    _, gradient = risk_gradient(net, w, [[5.0], [5.0], [5.0]], [1.0, 2.0, 3.0], training=True)
    B = net.block(w, "B")[:, 0]
    assert net.block(gradient, "b_A").tolist() == pytest.approx(((2 * B[0] + 3 * B[1]) - 2.0) * B)
    np.testing.assert_allclose(net.block(gradient, "A"), 0.0, atol=1e-12)
    np.testing.assert_allclose(net.block(gradient, "scale1"), 0.0, atol=1e-12)


# --- compiled and interpreted -----------------------------------------------------------------------------------------

BOTH = """
import numpy as np
from valueapprox import Adam, Network, SGD, fit, losses, regularizers, risk_gradient
from valueapprox.nn.batch import uniform

def numbers():
    yield [float(uniform(np.uint64(2**64 - 5), np.uint64(i))) for i in range(20)]
    rng = np.random.default_rng(0)
    S, Y = rng.normal(size=(11, 3)), rng.uniform(size=(11, 2))
    elastic = regularizers.ElasticNet(0.1, 0.01, proximal=True)
    for options, output, loss, optimizer, regularizer in (
        ({}, "linear", losses.Huber(0.5), Adam(0.01, clip_norm=1.0), elastic),
        ({"layer_norm": True}, "sigmoid", "log_loss", SGD(0.1), regularizers.L2(0.1, biases=True)),
        ({"batch_norm": True}, "softmax", "nll", SGD(0.1), None),
        ({"batch_norm": True}, "softmax", "mse", SGD(0.1), regularizers.L1(0.01)),
    ):
        net = Network((3, 4, 3, 2), "elu", output, dtype="float64", **options)
        w, targets = net.init(0), (np.arange(11) % 2 if loss == "nll" else Y)
        settings = dict(loss=loss, regularizer=regularizer, dropout=(0.2, 0.5, 0.3))
        history = fit(net, w, S, targets, optimizer=optimizer, batch_size=4, epochs=2, validation=0.2, **settings)
        value, gradient = risk_gradient(net, w, S, targets, training=True, seed=1, **settings)
        yield [*w, *history["loss"], *history["validation_loss"], value, *gradient, *net.forward(w, S).ravel()]
"""


def test_interpreted_is_compiled():
    here = {}
    exec(BOTH, here)
    code = BOTH + "\nfor line in numbers(): print(*(float(x).hex() for x in line))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],  # in Python, products of uint64 warn that they wrap around
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    lines = [[float.fromhex(word) for word in line.split()] for line in run.stdout.splitlines()]
    uniforms, *rest = here["numbers"]()
    assert lines[0] == uniforms
    for theirs, ours in itertools.zip_longest(lines[1:], rest):
        np.testing.assert_allclose(theirs, ours, rtol=1e-11, atol=1e-13)


def test_kernels_of_a_batch_leave_float32_alone():
    # Weights, gradient and outputs of a float32 network are float32 and near those of float64.
    rng = np.random.default_rng(0)
    S, Y = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    for options in ({}, {"layer_norm": True}, {"batch_norm": True}):
        ends = []
        for dtype in ("float32", "float64"):
            net = Network((3, 8, 8, 2), "tanh", dtype=dtype, **options)
            w = Network((3, 8, 8, 2), "tanh", **options).init(0).astype(dtype)
            settings = {"dropout": (0.2, 0.5, 0.3), "regularizer": regularizers.L2(0.01), "seed": 5}
            value, gradient = risk_gradient(net, w, S, Y, "mse", training=True, **settings)
            fit(net, w, S, Y, loss="mse", optimizer=SGD(0.1), batch_size=8, epochs=3, **settings)
            assert gradient.dtype == net.forward(w, S).dtype == dtype
            ends.append((value, gradient, w, risk(net, w, S, Y)))
        for single, double in zip(*ends, strict=True):
            assert np.linalg.norm(np.subtract(single, double)) <= 1e-5 * np.linalg.norm(double)
