"""The gradient's way through the layers, against single passes, NumPy and closed forms; what is named, and what not."""

import doctest
import itertools
import math

import numpy as np
import pytest

from valueapprox import Adam, Network, fit, gradient_flow, losses, risk_gradient
from valueapprox.nn.activations import HIDDEN
from valueapprox.supervised.gradient_flow import diagnose
from valueapprox.supervised.gradient_flow import gradient_flow as measure

RNG = np.random.default_rng(0)
S, Y = RNG.normal(size=(60, 3)), RNG.normal(size=60)


def rms(values):
    return math.sqrt(np.mean(np.square(values)))


def deep(n_hidden, width, hidden="relu", **options):
    return Network((3, *(width,) * n_hidden, 1), hidden=hidden, **options)


def enlarged(net, w, factor):
    """The hidden layers' weights, times a factor."""
    w = w.copy()
    for W, _ in net.unpack(w)[:-1]:
        W *= factor
    return w


# --- the numbers ------------------------------------------------------------------------------------------------------

PAIRS = {
    "half_squared": ("linear", lambda n: RNG.normal(size=(n, 2))),
    "huber": ("tanh", lambda n: RNG.normal(size=(n, 2))),
    "log_loss": ("sigmoid", lambda n: RNG.integers(0, 2, (n, 2)).astype(float)),
    "nll": ("softmax", lambda n: RNG.integers(0, 2, n)),
}


def by_single_passes(net, w, states, y, loss, derivative_at):
    """dl/dpsi of each layer, (n, m): sum over k of dl/dyhat_k dyhat_k/dpsi, from `Network.backpropagate`."""
    outer = losses.get(loss).derivative(net.forward(w, states), y)
    found = [np.zeros((len(states), m)) for m in net.sizes[1:]]
    for r, k in itertools.product(range(len(states)), range(net.n_outputs)):
        for l, layer in enumerate(net.backpropagate(w, states[r], k)):
            found[l][r] += outer[r, k] * derivative_at(l, layer, states[r])
    return found


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_it_measures_what_single_passes_find(hidden, loss):
    output, draw = PAIRS[loss]
    net = Network((3, 5, 4, 2), hidden, output, dtype="float64")
    w, y = net.init(1), draw(20)
    found = by_single_passes(net, w, S[:20], y, loss, lambda l, layer, s: layer.dH_dz)
    flow = measure(net, w, S[:20], y, loss)
    assert [(layer.name, layer.units) for layer in flow] == [("W1", 5), ("W2", 4), ("W3", 2)]
    assert [layer.d_psi for layer in flow] == pytest.approx([rms(d) for d in found], rel=1e-9)
    assert [layer.norm for layer in flow] == pytest.approx(
        [math.sqrt(np.square(d).sum(axis=1).mean()) for d in found], rel=1e-9
    )


def test_more_examples_than_go_through_the_network_at_once():
    states, y = np.tile(S, (20, 1)), np.tile(Y, 20)  # 1,200 examples, each 20 times: the means are those of 60
    net = deep(2, 6, dtype="float64")
    w = net.init(0)
    few, many = measure(net, w, S, Y), measure(net, w, states, y)
    for a, b in zip(few, many, strict=True):
        assert b[1:] == pytest.approx(a[1:], rel=1e-9)


def test_a_loss_of_ones_own():
    net = deep(2, 6, dtype="float64")
    w = net.init(0)
    own = (lambda yhat, y: 0.5 * (yhat - y) ** 2, lambda yhat, y: yhat - y)
    for a, b in zip(measure(net, w, S, Y, own), measure(net, w, S, Y), strict=True):
        assert a[1:] == pytest.approx(b[1:], rel=1e-9)


def test_with_layernorm_psi_is_what_the_activation_sees():
    net = Network((3, 5, 4, 1), "tanh", layer_norm=True, dtype="float64")
    w = net.init(1)

    def behind_the_norm(l, layer, s):
        return layer.dH_da * (1 - layer.a**2) if l < 2 else layer.dH_dz  # tanh' = 1 - tanh^2

    found = by_single_passes(net, w, S, Y, "half_squared", behind_the_norm)
    assert [layer.d_psi for layer in measure(net, w, S, Y)] == pytest.approx([rms(d) for d in found], rel=1e-9)


def test_batch_normalisation_is_that_of_training():
    # Central differences of the sum of losses, by every entry of every psi, in NumPy.
    net = Network((3, 5, 4, 1), "tanh", batch_norm=True, dtype="float64")
    w = net.init(1)
    for norm in net.batch_norms(w):
        norm.scale[:], norm.shift[:] = RNG.normal(1, 0.3, norm.scale.size), RNG.normal(0, 0.3, norm.shift.size)
    states, y = S[:8], Y[:8]

    def total(nudges):
        x = states
        for (W, _), norm, nudge in zip(net.unpack(w), net.batch_norms(w), nudges, strict=False):
            z = x @ W
            hat = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5)
            x = np.tanh(norm.scale * hat + norm.shift + nudge)
        W, b = net.unpack(w)[-1]
        return np.sum(0.5 * (x @ W + b + nudges[-1] - y[:, None]) ** 2)

    found = []
    for l, m in enumerate(net.sizes[1:]):
        d = np.zeros((8, m))
        for place in np.ndindex(8, m):
            nudges = [np.zeros((8, n)) for n in net.sizes[1:]]
            for side in (1, -1):
                nudges[l][place] = side * 1e-5
                d[place] += side * total(nudges) / 2e-5
        found.append(rms(d))
    before = w.copy()
    assert [layer.d_psi for layer in measure(net, w, states, y)] == pytest.approx(found, rel=1e-7)
    assert np.array_equal(w, before)  # and neither weights nor running statistics have moved


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"batch_norm": True}], ids=str)
@pytest.mark.parametrize("loss", ["mse", losses.HalfSquared().total()], ids=["mean", "sum"])
def test_gradient_norms_are_those_of_the_risk(options, loss):
    net = deep(3, 6, dtype="float64", **options)
    w = net.init(0)
    gradient = risk_gradient(net, w, S, Y, loss, training=True)[1]
    assert {layer.name: layer.grad_norm for layer in measure(net, w, S, Y, loss)} == pytest.approx(
        net.layer_norms(gradient), rel=1e-9
    )


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "weight", "n_layers"),
    [(hidden, w, n) for hidden in ("linear", "relu") for w, n in ((0.5, 12), (1.0, 12), (2.0, 12), (0.9, 3))]
    + [("linear", -1.6, 20)],
)
def test_a_chain_of_linear_units_multiplies_by_its_weight(hidden, weight, n_layers):
    net = Network((1,) * (n_layers + 1), hidden, bias=False, dtype="float64")
    found = diagnose(net, [weight] * n_layers, [[1.0], [2.0]], [0.0, 1.0])
    assert found.factor == pytest.approx(abs(weight))
    assert found.total == pytest.approx(abs(weight) ** (n_layers - 1))
    # dl/dtheta = w^n s - y for the two examples; the gradient of W_l is that times w^(n - 1) s.
    d = [weight**n_layers, 2 * weight**n_layers - 1]
    assert found.layers[-1].d_psi == pytest.approx(rms(d))
    assert [layer.grad_norm for layer in found.layers] == pytest.approx(
        [abs(weight ** (n_layers - 1) * (d[0] * 1 + d[1] * 2) / 2)] * n_layers
    )


@pytest.mark.parametrize("weight", [1.0, 4.0, 8.0])
def test_a_chain_of_sigmoids_at_zero_multiplies_by_a_quarter_of_its_weight(weight):
    # psi = 0 everywhere: x = 1/2, and w/2 + b = 0 with b = -w/2; the first layer sees s = 1/2. f'(0) = 1/4.
    net = Network((1,) * 11, "sigmoid", dtype="float64")
    w = net.pack([([[weight]], [-weight / 2])] * 10)
    found = diagnose(net, w, [[0.5]], [1.0])
    assert found.factor == pytest.approx(weight / 4)
    assert found.verdict == {1.0: "vanishing", 4.0: "healthy", 8.0: "exploding"}[weight]


@pytest.mark.parametrize("sizes", [(3, 256, 32, 256, 32, 1), (3, 64, 128, 256, 1), (3, 256, 128, 64, 1)])
def test_hes_weights_keep_the_length_whatever_the_widths(sizes):
    # E[length^2] = n * 2/n * 1/2 = 1 times that of the layer above; means over units would be off by the widths' ratio.
    net = Network(sizes)
    squares = [diagnose(net, net.init(seed), S, Y).total ** 2 for seed in range(30)]
    assert np.mean(squares) == pytest.approx(1, abs=3 * np.std(squares) / math.sqrt(30))
    assert np.std(squares) < 1


@pytest.mark.parametrize("normalised", ["layer_norm", "batch_norm"])
def test_behind_a_normalisation_the_inputs_scale_makes_no_difference(normalised):
    net = deep(4, 16, dtype="float64", **{normalised: True})
    w = enlarged(net, net.init(0), 10)  # so that the 1e-5 beside the variance is nothing
    small, large = measure(net, w, S, Y), measure(net, w, 1000 * S, Y)
    assert [layer.d_psi for layer in large] == pytest.approx([layer.d_psi for layer in small], rel=1e-4)


# --- dead and saturated units -----------------------------------------------------------------------------------------


def with_biases(hidden, biases):
    """One hidden unit for each bias, whose weights are those of (1, 0, 0): psi = s_1 + b."""
    net = Network((3, len(biases), 1), hidden, dtype="float64")
    A = np.zeros((3, len(biases)))
    A[0] = 1
    return net, net.pack([(A, biases), (np.ones((len(biases), 1)), [0.0])])


def test_dead_units_are_counted_and_a_rarely_active_one_is_not_dead():
    low, high = -S[:, 0].max(), -S[:, 0].min()
    # Active: for all but one example (at psi = 0), for one, for none (two units).
    net, w = with_biases("relu", [high, low + 1e-9, low - 1e-9, -100.0])
    assert np.count_nonzero(S[:, 0] + low + 1e-9 > 0) == 1
    assert measure(net, w, S, Y)[0].dead == 2 / 4
    assert measure(net, w, S, Y)[0].saturated == 0  # a relu with many zeros is what a relu is
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(S))
        assert measure(net, w, S[order], Y[order])[0].dead == 2 / 4
    # So too when the one example comes in another part of the data than the first 1,024.
    states = np.concatenate([np.full((1500, 3), -9.0), S[:1]])
    net, w = with_biases("relu", [-S[0, 0] + 1, -100.0])
    assert measure(net, w, states, np.zeros(1501))[0].dead == 1 / 2


@pytest.mark.parametrize("hidden", sorted(set(HIDDEN) - {"relu"}))
def test_only_a_unit_that_passes_nothing_on_is_dead(hidden):
    net, w = with_biases(hidden, [0.0, -5.0, 3.0])
    assert measure(net, w, S, Y)[0].dead == 0
    net, w = Network((3, 4, 1), hidden, dtype="float64"), np.zeros(21)
    assert measure(net, w, S, Y)[0].dead == 0  # tanh(0) = 0 too, but its slope is 1


@pytest.mark.parametrize(
    ("hidden", "edge"),
    # 1 - tanh^2 < 0.02 from psi = artanh(sqrt(0.98)) on; x (1 - x) < 0.02 / 4 from the logit of 0.995 on; elu and
    # softplus below log(0.02), softplus' = sigmoid.
    [("tanh", math.atanh(math.sqrt(0.98))), ("sigmoid", 5.2883), ("elu", math.log(0.02)), ("softplus", -3.8918)],
)
def test_saturated_units_are_counted(hidden, edge):
    far = math.copysign(1.0, edge)
    states = np.zeros((100, 3))
    net, w = with_biases(hidden, [edge - far * 0.01, edge + far * 0.01, far * 30, 0.0])
    assert measure(net, w, states, np.zeros(100))[0].saturated == 2 / 4
    if hidden in ("tanh", "sigmoid"):  # on the other side too
        net, w = with_biases(hidden, [-edge - 0.01, -edge + 0.01, 0.0, 0.0, 0.0])
        assert measure(net, w, states, np.zeros(100))[0].saturated == 1 / 5
    # For 96 of 100 examples: nearly all, or not, as one asks.
    states[:4, 0] = -far * 1000
    if hidden in ("tanh", "sigmoid"):
        states[:4, 0] = -far * 30
    net, w = with_biases(hidden, [far * 30, 0.0])
    assert measure(net, w, states, np.zeros(100))[0].saturated == 0
    shares = [measure(net, w, states[::step], np.zeros(100), nearly_all=0.96)[0].saturated for step in (1, -1)]
    assert shares == [1 / 2, 1 / 2]
    assert measure(net, w, states, np.zeros(100), nearly_all=0.96, tiny_slope=0.0)[0].saturated == 0


def test_units_that_never_saturate():
    for hidden in ("linear", "relu", "leaky_relu"):
        net, w = with_biases(hidden, [-100.0, 100.0])
        assert measure(net, w, S, Y)[0].saturated == 0


# --- verdicts ---------------------------------------------------------------------------------------------------------

CLEAN = {
    "relu": ({"hidden": "relu"}, "he_normal"),
    "relu, batch norm": ({"hidden": "relu", "batch_norm": True}, "he_normal"),
    "relu, LayerNorm": ({"hidden": "relu", "layer_norm": True}, "he_normal"),
    "tanh": ({"hidden": "tanh"}, "lecun_normal"),
    "sigmoid, batch norm": ({"hidden": "sigmoid", "batch_norm": True}, "glorot_normal"),
    "elu": ({"hidden": "elu"}, "he_normal"),
}


@pytest.mark.parametrize("n_hidden", [1, 2, 5, 10])
@pytest.mark.parametrize("kind", CLEAN)
def test_a_clean_network_raises_no_alarm(kind, n_hidden):
    options, init = CLEAN[kind]
    for width, seed in itertools.product((16, 64), range(15)):
        net = deep(n_hidden, width, **options)
        found = diagnose(net, net.init(seed, init), S, Y)
        assert found.verdict == "healthy", (width, seed, str(found))
        assert "helps" not in found.sentence
        assert "dead" not in found.sentence


@pytest.mark.parametrize("kind", CLEAN)
def test_nor_does_one_that_has_learned(kind):
    options, init = CLEAN[kind]
    states = RNG.uniform(-1, 1, (300, 3))
    y = (np.hypot(states[:, 0], states[:, 1]) > 0.75).astype(float)
    for seed in range(3):
        net = deep(10, 32, output="sigmoid", **options)
        w = net.init(seed, init)
        history = fit(net, w, states, y, loss="log_loss", optimizer=Adam(1e-3), epochs=50, seed=seed)
        assert history["loss"][-1] < 0.5  # 0.69 is chance
        found = diagnose(net, w, states, y, "log_loss")
        assert found.verdict == "healthy", str(found)


def test_deep_sigmoids_vanish_and_their_cures_do_what_they_say():
    for seed in range(10):
        net = deep(10, 32, "sigmoid")
        w = net.init(seed, "glorot_normal")
        found = diagnose(net, w, S, Y)
        assert found.verdict == "vanishing"
        assert 0.15 < found.factor < 0.3  # about 1/4, the slope at 0
        assert "relu with he_normal weights, batch normalisation" in found.sentence
        for cured, init in (
            (deep(10, 32, "relu"), "he_normal"),
            (deep(10, 32, "sigmoid", batch_norm=True), "glorot"),
        ):
            assert diagnose(cured, cured.init(seed, init), S, Y).verdict == "healthy"


def test_large_weights_explode_and_their_cures_do_what_they_say():
    for seed in range(10):
        net = deep(10, 32)
        w = net.init(seed)
        found = diagnose(net, enlarged(net, w, 2.5), S, Y)
        assert found.verdict == "exploding"
        assert 2 < found.factor < 3
        for cure in ("smaller initial weights (he_normal)", "batch normalisation", "a lower rate"):
            assert cure in found.sentence
        assert diagnose(net, w, S, Y).verdict == "healthy"
        normed = deep(10, 32, batch_norm=True)
        assert diagnose(normed, enlarged(normed, normed.init(seed), 2.5), S, Y).verdict == "healthy"


def test_the_sentence_says_the_numbers():
    net = Network((1,) * 13, "linear", bias=False, dtype="float64")
    found = diagnose(net, [0.5] * 12, [[1.0]], [1.0])  # 0.5^11 = 0.000488
    assert str(found) == (
        "vanishing: The gradient is multiplied by 0.5 per layer, 0.00049 in all, from W12 down to W1, so that the "
        "lower layers learn slowly or not at all. What helps: larger initial weights (he_normal), batch normalisation."
    )
    assert str(diagnose(net, [1.0] * 12, [[2.0]], [1.0])) == (
        "healthy: The gradient is multiplied by 1 per layer, 1 in all, from W12 down to W1."
    )


def test_thresholds_are_arguments():
    net = Network((1,) * 7, "linear", bias=False, dtype="float64")
    w, x, y = [0.5] * 6, [[1.0]], [1.0]  # factor 0.5, total 0.5^5 = 0.03
    assert diagnose(net, w, x, y).verdict == "healthy"
    assert diagnose(net, w, x, y, totals=(0.05, 10)).verdict == "vanishing"
    assert diagnose(net, w, x, y, totals=(0.05, 10), factors=(0.4, 2)).verdict == "healthy"
    w = [2.0] * 6  # factor 2, total 32
    assert diagnose(net, w, x, y).verdict == "healthy"
    assert diagnose(net, w, x, y, totals=(0.05, 31)).verdict == "exploding"
    assert diagnose(net, w, x, y, totals=(0.05, 31), factors=(0.4, 2.1)).verdict == "healthy"


def test_a_dead_layer_lets_nothing_through():
    net = deep(3, 8)
    w = net.init(0)
    net.block(w, "b2")[:] = -100
    found = diagnose(net, w, S, Y)
    assert (found.verdict, found.factor, found.total) == ("vanishing", 0, 0)
    assert "No gradient arrives from W4 down to W1. 100% of the units of W2 are dead" in found.sentence
    assert "leaky_relu" in found.sentence
    assert [layer.grad_norm == 0 for layer in found.layers[:3]] == [True, True, True]
    assert found.layers[3].grad_norm > 0


def test_saturated_units_are_named_and_the_share_is_an_argument():
    net, w = with_biases("tanh", [30.0, 30.0, 0.0])
    found = diagnose(net, w, S, Y, max_lost=0.6)
    assert found.verdict == "healthy"  # the third unit passes enough on
    assert "67% of the units of A are saturated. What helps: smaller initial weights" in found.sentence
    assert "saturated" not in diagnose(net, w, S, Y, max_lost=0.7).sentence


def test_where_there_is_nothing_to_compare():
    one = Network((3, 1), dtype="float64")
    found = diagnose(one, one.init(0), S, Y)
    assert found.verdict == "healthy"
    assert math.isnan(found.factor)
    assert "One layer" in found.sentence
    net = deep(3, 8, dtype="float64")
    w = net.init(0)
    found = diagnose(net, w, S, net.forward(w, S))  # the targets are what it predicts
    assert found.verdict == "healthy"
    assert math.isnan(found.total)
    assert "nothing to learn" in found.sentence


def test_numbers_beyond_the_dtype_are_an_explosion():
    net = Network((1,) * 21, "relu", bias=False)
    found = diagnose(net, [1e4] * 20, [[1.0]], [1.0])  # yhat = 1e80
    assert (found.verdict, found.factor) == ("exploding", math.inf)
    assert "too large for float32" in found.sentence


def test_float32_measures_the_same():
    net64, net32 = deep(6, 16, dtype="float64"), deep(6, 16)
    w = net64.init(0)
    for a, b in zip(measure(net64, w, S, Y), measure(net32, w, S, Y), strict=True):
        assert b[1:] == pytest.approx(a[1:], rel=1e-4)


def test_errors_say_what_is_wanted():
    net = deep(2, 4)
    w = net.init(0)
    with pytest.raises(ValueError, match=r"factors is \(1.5, 2\); expected a number between 0 and 1 and one above 1"):
        diagnose(net, w, S, Y, factors=(1.5, 2))
    with pytest.raises(ValueError, match=r"totals is \(0.01, 0.5\)"):
        diagnose(net, w, S, Y, totals=(0.01, 0.5))
    with pytest.raises(ValueError, match="max_lost is 50"):
        diagnose(net, w, S, Y, max_lost=50)
    with pytest.raises(ValueError, match=r"S has shape \(60, 2\); expected \(n, 3\)"):
        measure(net, w, S[:, :2], Y)
    with pytest.raises(ValueError, match="output is linear; expected sigmoid"):
        measure(net, w, S, Y > 0, "log_loss")
    w[5] = np.nan
    with pytest.raises(ValueError, match=r"w\[5\] is infinite or NaN"):
        measure(net, w, S, Y)
    normed = deep(2, 4, batch_norm=True)
    with pytest.raises(ValueError, match="expected at least 2"):
        measure(normed, normed.init(0), S[:1], Y[:1])


def test_examples():
    assert doctest.testmod(gradient_flow) == (0, 5)
