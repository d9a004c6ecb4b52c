"""The network: its gradient against central differences and by hand, its layout, its initial weights, its errors."""

import itertools

import numpy as np
import pytest

from valueapprox import Network
from valueapprox.activations import HIDDEN, OUTPUT
from valueapprox.initialisers import INITIALISERS

WIDTHS = (3, 5, 4, 5, 4)  # inputs, then up to four hidden layers; three outputs
OPTIONS = list(itertools.product((True, False), (True, False)))  # bias, layer_norm
H = 1e-4


def network(depth, hidden, output, bias, layer_norm, dtype="float64"):
    return Network((*WIDTHS[: depth + 1], 3), hidden, output, bias, layer_norm, dtype)


def draw(net, rng):
    """Weights, biases too, and a state at which no pre-activation lies within 100 h of 0, where relu has its kink."""
    while True:
        w = rng.normal(0.0, 0.7, net.n_parameters).astype(net.dtype)
        s = rng.normal(size=net.n_inputs).astype(net.dtype)
        seen = net.trace(w, s)
        if all(np.abs(value).min() > 100 * H for name, value in seen.items() if name.startswith(("psi", "theta"))):
            return w, s


def central_differences(f, x):
    """d f_k / d x_p as (K, P), off by h^4: [8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))] / 12 h.

    The plain quotient is off by h^2, which is not below 1e-7 where LayerNorm divides by a small sigma; a smaller h
    leaves rounding, 1e-16 / h.
    """
    steps = H * np.eye(x.size)
    return np.transpose([(8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * H) for e in steps])


def gradients(net, w, s):
    """Every output's gradient, layer by layer and at last by the inputs: (ours, by central differences)."""
    by_w = central_differences(lambda u: net.forward(u, s), w)
    by_s = central_differences(lambda t: net.forward(w, t), s)
    cuts = net.bounds[1:-1]
    for k in range(net.n_outputs):
        yield from zip(np.split(net.gradient(w, s, k), cuts), np.split(by_w[k], cuts), strict=True)
        yield net.input_gradient(w, s, k), by_s[k]


# Depth 0 has no hidden layer: there the hidden activation makes no difference, and one is enough.
CASES = [(0, "linear"), *itertools.product((1, 2, 3, 4), HIDDEN)]


@pytest.mark.parametrize("output", OUTPUT)
@pytest.mark.parametrize(("depth", "hidden"), CASES)
def test_gradients_equal_central_differences(depth, hidden, output):
    # ||numeric - ours|| < 1e-7 ||ours|| for each layer on its own. A gradient that is 0 (dead units) must be 0 exactly;
    # where one is nearly 0 (saturated units) only the rounding of f is left, 1e-16 / h, and we draw again.
    rng = np.random.default_rng([depth, *map(ord, hidden + output)])
    for bias, layer_norm in OPTIONS:
        net = network(depth, hidden, output, bias, layer_norm)
        for _ in range(1000):
            pairs = list(gradients(net, *draw(net, rng)))
            lengths = np.array([np.linalg.norm(ours) for ours, _ in pairs])
            if lengths.any() and not (lengths[lengths > 0] < 1e-3).any():
                break
        else:
            pytest.fail("no draw had a gradient to measure")
        errors = np.array([np.linalg.norm(numeric - ours) for ours, numeric in pairs])
        assert (errors <= 1e-7 * lengths).all(), (bias, layer_norm, errors, lengths)


@pytest.mark.parametrize("output", OUTPUT)
@pytest.mark.parametrize(("depth", "hidden"), CASES)
def test_float32_is_float64_to_1e_5_and_one_state_is_a_row_of_a_batch(depth, hidden, output):
    rng = np.random.default_rng(depth)
    for bias, layer_norm in OPTIONS:
        single = network(depth, hidden, output, bias, layer_norm, "float32")
        double = network(depth, hidden, output, bias, layer_norm, "float64")
        w, _ = draw(single, rng)
        states = rng.normal(size=(7, single.n_inputs)).astype(np.float32)
        exact = np.array([double.forward(w, s) for s in states])
        rough = np.array([single.forward(w, s) for s in states])
        assert rough.dtype == np.float32
        assert np.linalg.norm(rough - exact) <= 1e-5 * np.linalg.norm(exact)
        np.testing.assert_allclose(double.forward(w, states), exact, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(single.forward(w, states), rough, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", OUTPUT)
def test_large_pre_activations_overflow_nowhere(output):
    net = Network((1, 2), output=output, bias=False, dtype="float64")
    w, s = np.array([1.0, -1.0]), [1000.0]
    values = [net.forward(w, s), net.forward(w, [s])[0], net.gradient(w, s, 0), net.gradient(w, s, 1)]
    assert np.isfinite(values).all()
    # psi = (1000, -1000): what the definitions give, to the last bit.
    known = {"linear": (1000, -1000), "relu": (1000, 0), "leaky_relu": (1000, -10), "elu": (1000, -1)}
    known |= {"sigmoid": (1, 0), "tanh": (1, -1), "softplus": (1000, 0), "softmax": (1, 0)}
    for value in values[:2]:
        assert tuple(value) == known[output]


# --- by hand --------------------------------------------------------------------------------------------------------


def test_the_exercise_of_note_001_entry_by_entry():
    # z = a W, layer by layer, relu between:
    #   x = (2, 1)   z1 = (2*2 + 1*2, 2*-3 + 1*1) = (6, -5)   a1 = (6, 0)
    #                z2 = (6*2 + 0*0, 6*1 + 0*1) = (12, 6)    a2 = (12, 6)    H = 12*3 + 6*-2 = 24
    net = Network((2, 2, 2, 1), hidden="relu", dtype="float64")
    w = net.pack([([[2, -3], [2, 1]], [0, 0]), ([[2, 1], [0, 1]], [0, 0]), ([[3], [-2]], [0])])
    seen = net.trace(w, [2, 1])
    expected = {"s": [2, 1], "psi1": [6, -5], "x1": [6, 0], "psi2": [12, 6], "x2": [12, 6], "theta": [24], "yhat": [24]}
    assert {name: value.tolist() for name, value in seen.items()} == expected
    assert list(seen) == list(expected)

    (dW1, db1), (dW2, db2), (dW3, db3) = net.unpack(net.gradient(w, [2, 1]))
    # dH/dH = 1:                                                   dW3_i = a2_i,  db3 = 1
    assert dW3.tolist() == [[12], [6]]
    assert db3.tolist() == [1]
    # dH/da2 = (3, -2); both z2 > 0, so dH/dz2 = (3, -2):          dW2_ij = a1_i dz2_j
    assert dW2.tolist() == [[6 * 3, 6 * -2], [0, 0]]
    assert db2.tolist() == [3, -2]
    # dH/da1 = (2*3 + 1*-2, 0*3 + 1*-2) = (4, -2); z1 = (6, -5), so dH/dz1 = (4, 0):   dW1_ij = x_i dz1_j
    assert dW1.tolist() == [[2 * 4, 0], [1 * 4, 0]]
    assert db1.tolist() == [4, 0]
    # dH/dx = (2*4 + -3*0, 2*4 + 1*0)
    assert net.input_gradient(w, [2, 1]).tolist() == [8, 8]


def test_a_dead_relu_has_no_gradient():
    # Note 001: W_11 = -2, W_21 = -5, W_31 = 2 and x = (3, 2, -2): z_1 = -6 - 10 - 4 = -20 < 0, so dH/dW_i1 = 0.
    # The second unit lives: z_2 = 3 + 2 - 2 = 3, and dH/dW_i2 = x_i * 7.
    net = Network((3, 2, 1), dtype="float64")
    w = net.pack([([[-2, 1], [-5, 1], [2, 1]], [0, 0]), ([[1], [7]], [0])])
    (dA, db), (dB, _) = net.unpack(net.gradient(w, [3, 2, -2]))
    assert dA.tolist() == [[0, 21], [0, 14], [0, -14]]
    assert db.tolist() == [0, 7]
    assert dB.tolist() == [[0], [3]]


@pytest.mark.parametrize(("hidden", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("elu", 1.0)])
def test_the_slope_at_the_kink(hidden, slope):
    # s = 0, so psi = 0 exactly; with B = 1 and a bias, d yhat / d b_A = f'(0).
    net = Network((1, 1, 1), hidden=hidden, dtype="float64")
    (_, db), _ = net.unpack(net.gradient(net.pack([([[1]], [0]), ([[1]], [0])]), [0.0]))
    assert db.tolist() == [slope]


def test_layer_norm_by_hand():
    # psi = (1, 2, 6): mean 3, variance (4 + 1 + 9) / 3 = 14/3; psi_hat = (psi - 3) / sqrt(14/3 + 1e-5).
    net = Network((1, 3, 1), hidden="linear", layer_norm=True, bias=False, dtype="float64")
    seen = net.trace(net.pack([([[1, 2, 6]], None), ([[1], [1], [1]], None)]), [1.0])
    assert list(seen) == ["s", "psi", "psi_hat", "x", "theta", "yhat"]
    np.testing.assert_allclose(seen["psi"], [1, 2, 6])
    np.testing.assert_allclose(seen["psi_hat"], np.array([-2, -1, 3]) / np.sqrt(14 / 3 + 1e-5), rtol=1e-14)
    np.testing.assert_allclose(seen["yhat"], [0], atol=1e-14)


# --- layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "names"),
    [((4, 1), ("W1",)), ((4, 8, 1), ("A", "B")), ((4, 8, 8, 1), ("W1", "W2", "W3"))],
)
def test_layers_have_the_notes_names(sizes, names):
    assert Network(sizes).layer_names == names


@pytest.mark.parametrize(("n", "n_layers", "k", "count"), [(3, 3, 2, 32), (4, 5, 3, 95)])
def test_the_parameter_count_of_note_004(n, n_layers, k, count):
    # (L - 1) n^2 + n k + (L - 1) n + k:  18 + 6 + 6 + 2 = 32;  64 + 12 + 16 + 3 = 95
    assert Network((n,) * n_layers + (k,)).n_parameters == count


def test_weights_lie_layer_by_layer_row_by_row_then_biases():
    net = Network((2, 3, 1), dtype="float64")
    w = np.arange(13.0)
    (A, b_A), (B, b_B) = net.unpack(w)
    assert A.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert b_A.tolist() == [6, 7, 8]
    assert B.tolist() == [[9], [10], [11]]
    assert b_B.tolist() == [12]
    A[1, 2] = 50.0  # views: w is written
    b_B[0] = -1.0
    assert w[5] == 50.0
    assert w[12] == -1.0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depth", range(5))
def test_pack_undoes_unpack(depth, bias):
    net = network(depth, "relu", "linear", bias, False)
    w = np.random.default_rng(depth).normal(size=net.n_parameters)
    layers = net.unpack(w)
    assert all((b is None) != bias for _, b in layers)
    np.testing.assert_array_equal(net.pack(layers), w)
    # A layer's norm is that of its W and b together; the squares of all add up to that of w.
    norms = net.layer_norms(w)
    assert tuple(norms) == net.layer_names
    for length, (W, b) in zip(norms.values(), layers, strict=True):
        assert length == pytest.approx(np.sqrt((W**2).sum() + (0 if b is None else (b**2).sum())))


def test_a_network_is_rebuilt_from_its_settings():
    net = Network((4, 8, 1), "tanh", "sigmoid", False, True, "float64")
    assert Network(**net.as_dict()) == net


# --- initial weights ------------------------------------------------------------------------------------------------

N_IN, N_OUT = 400, 300

VARIANCES = {
    "normal": 0.01**2,
    "uniform": 0.01**2 / 3,  # of a uniform distribution on +-c: c^2 / 3
    "lecun_normal": 1 / N_IN,
    "lecun_uniform": 1 / N_IN,
    "glorot_normal": 2 / (N_IN + N_OUT),
    "glorot_uniform": 2 / (N_IN + N_OUT),
    "he_normal": 2 / N_IN,
    "he_uniform": 2 / N_IN,
}


@pytest.mark.parametrize(("scheme", "variance"), VARIANCES.items())
def test_initial_weights_have_their_variance(scheme, variance):
    # 120 000 draws: the standard error of the variance is sqrt(2 / 120 000) = 0.4 %, of the mean 0.3 % of std.
    W, b = Network((N_IN, N_OUT), dtype="float64").unpack(Network((N_IN, N_OUT), dtype="float64").init(0, scheme))[0]
    assert W.var() == pytest.approx(variance, rel=0.02)
    assert abs(W.mean()) < 0.015 * np.sqrt(variance)
    assert not b.any()
    bound = np.sqrt(3 * variance)
    if scheme.endswith("uniform"):
        assert 0.999 * bound < np.abs(W).max() <= bound
    else:  # a normal distribution leaves 8.3 % outside of that bound
        assert (np.abs(W) > bound).mean() == pytest.approx(0.0833, abs=0.005)


@pytest.mark.parametrize(
    ("alias", "scheme"),
    [
        ("xavier_normal", "glorot_normal"),
        ("xavier_uniform", "glorot_uniform"),
        ("xavier", "glorot_uniform"),
        ("glorot", "glorot_uniform"),
        ("he", "he_normal"),
        ("lecun", "lecun_normal"),
    ],
)
def test_other_names_of_initialisers(alias, scheme):
    net = Network((5, 4, 1))
    np.testing.assert_array_equal(net.init(1, alias), net.init(1, scheme))


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 3), (3, 8), (5, 5), (7, 1)])
def test_orthogonal_weights_keep_lengths(n_in, n_out):
    W = INITIALISERS["orthogonal"](np.random.default_rng(0), n_in, n_out)
    gram = W.T @ W if n_in >= n_out else W @ W.T
    np.testing.assert_allclose(gram, np.eye(min(n_in, n_out)), atol=1e-14)


def test_sparse_weights_keep_a_tenth_of_the_inputs_but_never_none():
    # Kept per unit: floor(n_in / 10), or 1 if that is 0; all within 1 / sqrt(n_in).
    for n_in in range(1, 101):
        W = INITIALISERS["sparse"](np.random.default_rng(n_in), n_in, 6)
        assert np.count_nonzero(W, axis=0).tolist() == [max(1, n_in // 10)] * 6, n_in
        assert np.abs(W).max() <= 1 / np.sqrt(n_in)


@pytest.mark.parametrize("scheme", INITIALISERS)
def test_a_seed_fixes_the_weights_and_numpys_generator_is_left_alone(scheme):
    net = Network((12, 7, 3))
    before = repr(np.random.get_state())  # noqa: NPY002
    w = net.init(3, scheme)
    np.testing.assert_array_equal(w, net.init(np.random.default_rng(3), scheme))
    assert scheme == "zeros" or not np.array_equal(w, net.init(4, scheme))
    assert repr(np.random.get_state()) == before  # noqa: NPY002


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (4,)}, "sizes"),
        ({"sizes": 4}, "sizes"),
        ({"sizes": (4, 0, 1)}, "size is 0"),
        ({"sizes": (4, -3, 1)}, "size is -3"),
        ({"sizes": (4, 2.5, 1)}, "size is 2.5"),
        ({"sizes": (4, True, 1)}, "size is True"),
        ({"sizes": (4, "many", 1)}, "size is many"),
        ({"sizes": (4, float("nan"), 1)}, "size is nan"),
        ({"hidden": "rleu"}, "hidden is 'rleu'; did you mean 'relu'"),
        ({"hidden": "softmax"}, "hidden is 'softmax'"),
        ({"output": "softmx"}, "output is 'softmx'; did you mean 'softmax'"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"dtype": np.int32}, "dtype is 'int32'"),
    ],
)
def test_settings_that_make_no_network(settings, message):
    with pytest.raises(ValueError, match=message):
        Network(**{"sizes": (4, 8, 1), **settings})


NET = Network((2, 3, 2), dtype="float64")
W0 = NET.init(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NET.forward(W0[1:], [1, 2]), ValueError, r"w has shape \(16,\); \(17,\) is wanted"),
        (lambda: NET.forward(W0, [1, 2, 3]), ValueError, r"s has shape \(3,\); \(2,\) is wanted"),
        (lambda: NET.forward(W0, 1.0), ValueError, r"s has shape \(\)"),
        (lambda: NET.forward(W0, [[1, 2, 3]]), ValueError, r"s has shape \(1, 3\); \(n, 2\) is wanted"),
        (lambda: NET.forward(W0, ["a", "b"]), TypeError, "s holds"),
        (lambda: NET.forward(W0, [1j, 2]), TypeError, "s holds complex128"),
        (lambda: NET.forward(W0.astype(complex), [1, 2]), TypeError, "w holds complex128"),
        (lambda: NET.forward(W0, [[1, 2], [3]]), ValueError, "^s "),
        (lambda: NET.gradient(W0, [[1, 2]]), ValueError, r"s has shape \(1, 2\)"),
        (lambda: NET.gradient(W0, [1, 2], output=2), ValueError, "output is 2; .* 0 to 1"),
        (lambda: NET.gradient(W0, [1, 2], output=-1), ValueError, "output is -1"),
        (lambda: NET.gradient(W0, [1, 2], output=0.5), ValueError, "output is 0.5"),
        (lambda: NET.unpack(W0[1:]), ValueError, r"w has shape \(16,\)"),
        (lambda: NET.pack([(np.ones((2, 3)), np.ones(3))]), ValueError, "1 layers were given; the network has 2"),
        (lambda: NET.pack([(np.ones((2, 3)), None)] * 2), ValueError, "b of layer A is None"),
        (lambda: NET.pack([(np.ones((3, 2)), np.ones(3))] * 2), ValueError, r"W of layer A has shape \(3, 2\)"),
        (lambda: NET.layer_norms(W0[1:]), ValueError, r"vector has shape \(16,\)"),
        (lambda: NET.init(0, "he_norml"), ValueError, "scheme is 'he_norml'; did you mean 'he_normal'"),
    ],
)
def test_errors_name_the_argument_and_what_is_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
