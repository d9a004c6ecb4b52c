"""The network: its gradient against central differences and by hand, its layout, its initial weights, its errors."""

import itertools

import numpy as np
import pytest

from valueapprox import Network, ValueFunction
from valueapprox.nn.activations import HIDDEN, OUTPUT
from valueapprox.nn.initializers import INITIALISERS

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


def with_outputs(depth, hidden):
    """A case with each activation of the output; unless in full, each of them with each depth and each activation."""
    for i, output in enumerate(OUTPUT):
        some = depth == 0 or (i + depth + list(HIDDEN).index(hidden)) % 4 == 0
        yield pytest.param(depth, hidden, output, marks=() if some else pytest.mark.full)


ALL = [case for depth, hidden in CASES for case in with_outputs(depth, hidden)]


@pytest.mark.parametrize(("depth", "hidden", "output"), ALL)
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


@pytest.mark.parametrize(("depth", "hidden", "output"), ALL)
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


def test_the_exercise_of_note_001_by_its_own_names():
    # The numbers of above, as backpropagate gives them: every z, a, dH/da, dH/dz, dH/dW and dH/db.
    net = Network((2, 2, 2, 1), hidden="relu", dtype="float64")
    w = net.pack([([[2, -3], [2, 1]], [0, 0]), ([[2, 1], [0, 1]], [0, 0]), ([[3], [-2]], [0])])
    first, second, last = ({k: v.tolist() for k, v in p._asdict().items()} for p in net.backpropagate(w, [2, 1]))
    assert first == {
        "z": [6, -5],
        "a": [6, 0],
        "dH_da": [4, -2],
        "dH_dz": [4, 0],
        "dH_dW": [[8, 0], [4, 0]],
        "dH_db": [4, 0],
    }
    assert second == {
        "z": [12, 6],
        "a": [12, 6],
        "dH_da": [3, -2],
        "dH_dz": [3, -2],
        "dH_dW": [[18, -12], [0, 0]],
        "dH_db": [3, -2],
    }
    assert last == {"z": [24], "a": [24], "dH_da": [1], "dH_dz": [1], "dH_dW": [[12], [6]], "dH_db": [1]}


NUMPY = {
    "linear": lambda z: z,
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(0.0, z),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(),
}


def onward(net, w, l, z):
    """What follows from the pre-activations z of layer l (0 is the first): (a of that layer, outputs), in NumPy."""
    layers, first = net.unpack(w), None
    for last in range(l, net.n_layers):
        hidden = last < net.n_layers - 1
        seen = (z - z.mean()) / np.sqrt(z.var() + 1e-5) if hidden and net.layer_norm else z
        a = NUMPY[net.hidden if hidden else net.output](seen)
        first = a if first is None else first
        if hidden:
            W, b = layers[last + 1]
            z = a @ W if b is None else a @ W + b
    return first, a


@pytest.mark.parametrize(("bias", "layer_norm"), OPTIONS)
@pytest.mark.parametrize(("hidden", "output"), [("tanh", "linear"), ("softplus", "sigmoid"), ("tanh", "softmax")])
@pytest.mark.parametrize("sizes", [(2, 3), (3, 4, 2), (2, 4, 3, 5, 3)])
def test_backpropagate_equals_central_differences_at_every_node(sizes, hidden, output, bias, layer_norm):
    net = Network(sizes, hidden, output, bias, layer_norm, "float64")
    rng = np.random.default_rng(len(sizes))
    w, s = rng.normal(size=net.size), rng.normal(size=net.n_inputs)
    for k in range(net.n_outputs):
        passes = net.backpropagate(w, s, k)
        np.testing.assert_array_equal(
            np.concatenate([part.ravel() for p in passes for part in ((p.dH_dW, p.dH_db) if bias else (p.dH_dW,))]),
            net.gradient(w, s, k),
        )
        before = s
        for l, p in enumerate(passes):
            W, b = net.unpack(w)[l]
            np.testing.assert_allclose(p.z, before @ W + (0 if b is None else b), rtol=1e-12, atol=1e-14)
            a, yhat = onward(net, w, l, p.z)
            np.testing.assert_allclose(p.a, a, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(net.forward(w, s), yhat, rtol=1e-12, atol=1e-14)
            by_z = central_differences(lambda z: onward(net, w, l, z)[1], p.z)[k]  # noqa: B023
            np.testing.assert_allclose(p.dH_dz, by_z, rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(p.dH_dW, np.outer(before, by_z), rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(p.dH_db, by_z, rtol=1e-7, atol=1e-10)
            if l < net.n_layers - 1:
                W, b = net.unpack(w)[l + 1]
                by_a = central_differences(lambda a: onward(net, w, l + 1, a @ W + (0 if b is None else b))[1], p.a)[k]  # noqa: B023
                np.testing.assert_allclose(p.dH_da, by_a, rtol=1e-7, atol=1e-10)
            else:
                assert p.dH_da.tolist() == np.eye(net.n_outputs)[k].tolist()
            before = p.a


def test_what_backpropagate_gives_is_its_own():
    # Writing into it changes neither w nor what the next call gives.
    net = Network((2, 3, 1), dtype="float64")
    w = net.init(0)
    before = w.copy()
    expected = [[part.tolist() for part in p] for p in net.backpropagate(w, [1, 2])]
    for p in net.backpropagate(w, [1, 2]):
        for part in p:
            part[...] = 99.0
    np.testing.assert_array_equal(w, before)
    assert [[part.tolist() for part in p] for p in net.backpropagate(w, [1, 2])] == expected


# --- batch normalisation --------------------------------------------------------------------------------------------


def with_statistics(sizes, hidden="tanh", output="linear", dtype="float64", seed=0):
    """A network with batch normalisation, and weights, scales, shifts and statistics that are none of them 0 or 1."""
    net = Network(sizes, hidden, output, dtype=dtype, batch_norm=True)
    rng = np.random.default_rng(seed)
    w = rng.normal(size=net.size).astype(dtype)
    for norm in net.batch_norms(w):
        norm.variance[:] = rng.uniform(0.5, 3.0, norm.variance.size)
    return net, w


def test_batch_normalisation_by_hand():
    # s A = (3, -2): psi_hat = (3 - 1) / sqrt(4 + 1e-5), (-2 - 0) / sqrt(1 + 1e-5), or (1, -2) but for 1e-5;
    # psi = (10 psi_hat_1 + 1, -psi_hat_2 - 5) = (11, -3); relu; yhat = 2 * 11.
    net = Network((1, 2, 1), batch_norm=True, dtype="float64")
    w = net.pack([([[3, -2]], [1, -5]), ([[2], [7]], [0])])
    (norm,) = net.batch_norms(w)
    norm.scale[:], norm.mean[:], norm.variance[:] = [10, -1], [1, 0], [4, 1]
    psi_hat = np.array([2, -2]) / np.sqrt(np.array([4, 1]) + 1e-5)
    seen = net.trace(w, [1.0])
    assert list(seen) == ["s", "psi", "psi_hat", "x", "theta", "yhat"]
    np.testing.assert_allclose(seen["psi_hat"], psi_hat, rtol=1e-14)
    np.testing.assert_allclose(seen["psi"], [10 * psi_hat[0] + 1, -psi_hat[1] - 5], rtol=1e-14)
    np.testing.assert_allclose(seen["x"], [seen["psi"][0], 0])
    np.testing.assert_allclose(seen["yhat"], [22], rtol=1e-5)
    np.testing.assert_array_equal(net.forward(w, [1.0]), seen["yhat"])


@pytest.mark.parametrize("output", ["linear", "sigmoid", "softmax"])
@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 2), (2, 5, 3, 4, 2)])
def test_gradients_with_running_statistics_equal_central_differences(sizes, output):
    net, w = with_statistics(sizes, output=output)
    s = np.random.default_rng(1).normal(size=net.n_inputs)
    before = w.copy()
    by_w = central_differences(lambda u: net.forward(u, s), w)
    by_s = central_differences(lambda t: net.forward(w, t), s)
    for k in range(net.n_outputs):
        gradient = net.gradient(w, s, k)
        np.testing.assert_allclose(gradient[: net.n_parameters], by_w[k, : net.n_parameters], rtol=1e-7, atol=1e-9)
        assert not gradient[net.n_parameters :].any()  # statistics are not learned by gradient
        np.testing.assert_allclose(net.input_gradient(w, s, k), by_s[k], rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 2), (2, 5, 3, 4, 2)])
def test_folding_keeps_predictions(sizes, dtype):
    net, w = with_statistics(sizes, dtype=dtype)
    before = w.copy()
    plain, v = net.fold(w)
    assert not plain.batch_norm
    assert (plain.sizes, plain.hidden, plain.output, plain.dtype) == (net.sizes, "tanh", "linear", dtype)
    assert v.dtype == dtype
    assert v.shape == (plain.n_parameters,)
    S = np.random.default_rng(2).normal(size=(20, net.n_inputs)).astype(dtype)
    tolerance = {"float64": 1e-12, "float32": 3e-5}[dtype]
    np.testing.assert_allclose(plain.forward(v, S), net.forward(w, S), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(plain.forward(v, S[0]), net.forward(w, S[0]), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(w, before)
    v[:] = 0  # no view of w
    np.testing.assert_array_equal(w, before)


def test_folding_by_hand_and_what_has_nothing_to_fold():
    # sd = sqrt(variance + 1e-5) = 2: W' = W 6 / 2, b' = 1 - 0.5 * 6 / 2.
    net = Network((2, 1, 1), batch_norm=True, dtype="float64")
    w = net.pack([([[1], [2]], [1]), ([[5]], [7])])
    (norm,) = net.batch_norms(w)
    norm.scale[:], norm.mean[:], norm.variance[:] = 6, 0.5, 4 - 1e-5
    np.testing.assert_allclose(net.fold(w)[1], [3, 6, -0.5, 5, 7], rtol=1e-14)
    plain = Network((2, 3, 1), bias=False, layer_norm=True)
    same, v = plain.fold(plain.init(0))
    assert same == plain
    np.testing.assert_array_equal(v, plain.init(0))
    assert not np.shares_memory(plain.fold(v)[1], v)


def test_a_value_function_goes_on_from_what_is_folded_and_from_nothing_else():
    net, w = with_statistics((2, 3, 1))
    plain, v = net.fold(w)
    values = ValueFunction(plain, seed=0)
    values.w[:] = v
    assert values.predict([0.5, -1.0]) == pytest.approx(net.forward(w, [0.5, -1.0])[0], rel=1e-12)
    with pytest.raises(ValueError, match=r"net has batch normalisation, .* net.fold\(w\)"):
        ValueFunction(net)


def test_backpropagate_with_batch_normalisation_equals_central_differences():
    # z is psi, behind scale and shift, so that dH/dz = dH/da g'(z) = dH/db as without; W and what comes before it are
    # on the other side: psi_j = r_j (x W)_j + ..., with r = scale / sd, and dH/dW_ij = dH/dz_j r_j x_i.
    net, w = with_statistics((2, 3, 4, 2))
    s = np.array([0.3, -0.6])
    norms = net.batch_norms(w)
    ratios = [norm.scale / np.sqrt(norm.variance + 1e-5) for norm in norms] + [np.ones(2)]
    shifts = [norm.shift - ratio * norm.mean for norm, ratio in zip(norms, ratios, strict=False)]
    shifts.append(net.block(w, "b3"))

    def following(l, z):
        """The outputs that follow from the pre-activations z of layer l."""
        for last in range(l + 1, 3):
            z = ratios[last] * (np.tanh(z) @ net.unpack(w)[last][0]) + shifts[last]
        return z

    for k in range(2):
        x = s
        for l, p in enumerate(net.backpropagate(w, s, k)):
            np.testing.assert_allclose(p.z, ratios[l] * (x @ net.unpack(w)[l][0]) + shifts[l], rtol=1e-12)
            by_z = central_differences(lambda z: following(l, z), p.z)[k]  # noqa: B023
            np.testing.assert_allclose(p.dH_dz, by_z, rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(p.dH_db, by_z, rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(p.dH_dW, np.outer(x, by_z * ratios[l]), rtol=1e-7, atol=1e-10)
            np.testing.assert_allclose(p.dH_da * (1 - p.a**2 if l < 2 else 1), by_z, rtol=1e-7, atol=1e-10)
            x = p.a


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


# --- blocks, entries and their names --------------------------------------------------------------------------------

DEEP = (2, 3, 2, 4, 1)


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Network((2, 3)), ["W1", "b1"]),
        (Network((2, 3), bias=False), ["W1"]),
        (Network((2, 3, 1)), ["A", "b_A", "B", "b_B"]),
        (Network((2, 3, 1), bias=False), ["A", "B"]),
        (Network((2, 3, 2, 1)), ["W1", "b1", "W2", "b2", "W3", "b3"]),
        (Network((2, 3, 2, 1), bias=False, layer_norm=True), ["W1", "W2", "W3"]),
        (Network((2, 3), batch_norm=True), ["W1", "b1"]),
        (Network((2, 3, 1), batch_norm=True), ["A", "b_A", "scale1", "B", "b_B", "mean1", "variance1"]),
        (
            Network((2, 3, 2, 1), batch_norm=True),
            [*("W1", "b1", "scale1", "W2", "b2", "scale2", "W3", "b3"), *("mean1", "variance1", "mean2", "variance2")],
        ),
    ],
    ids=str,
)
def test_blocks_have_the_notes_names_and_fill_w(net, names):
    assert list(net.blocks) == names
    place = 0
    for start, shape in net.blocks.values():
        assert start == place
        place += int(np.prod(shape))
    assert place == net.size


def test_sizes_with_batch_normalisation_by_hand():
    # W1 6 + b1 3 + scale1 3, W2 6 + b2 2 + scale2 2, W3 2 + b3 1: P = 25, and mean and variance of 5 hidden units.
    net = Network((2, 3, 2, 1), batch_norm=True)
    assert net.bounds == (0, 12, 22, 25)
    assert net.n_parameters == 25
    assert net.size == 35
    w = net.init(0)
    assert w.shape == (35,)
    for norm, m in zip(net.batch_norms(w), (3, 2), strict=True):
        assert [part.tolist() for part in norm] == [[1.0] * m, [0.0] * m, [0.0] * m, [1.0] * m]
    # Without hidden layers there is nothing to normalise.
    assert Network((2, 1), batch_norm=True).size == 3
    assert Network((2, 1), batch_norm=True).batch_norms(np.zeros(3)) == []
    assert Network((2, 3, 1)).batch_norms(np.zeros(13)) == []


NAMED = [
    Network(sizes, bias=bias, batch_norm=batch_norm, dtype="float64")
    for sizes in ((1, 1), (3, 2), (1, 1, 1), (2, 3, 1), (3, 12, 11, 2), DEEP)
    for bias, batch_norm in ((True, False), (False, False), (True, True))
]


@pytest.mark.parametrize("net", NAMED, ids=str)
def test_every_entry_has_a_name_that_finds_it(net):
    w = np.arange(float(net.size))
    names = [net.name(p) for p in range(net.size)]
    assert len(set(names)) == net.size
    assert [net.index(name) for name in names] == list(range(net.size))
    # A name addresses its block: block[i, j] holds the number of the entry, here its value.
    for name, (_, shape) in net.blocks.items():
        block = net.block(w, name)
        assert np.shares_memory(block, w)
        for place in np.ndindex(shape):
            entry = f"{name}[{', '.join(map(str, place))}]"
            assert net.index(entry) == block[place]
            assert names[int(block[place])] == entry
    # W1, b1, ... work whatever the layers are called, and are the layers of unpack.
    for l, (W, b) in enumerate(net.unpack(w), start=1):
        np.testing.assert_array_equal(net.block(w, f"W{l}"), W)
        assert net.index(f"W{l}[0, 0]") == W[0, 0]
        if b is not None:
            np.testing.assert_array_equal(net.block(w, f"b{l}"), b)
            assert net.index(f"b{l}[{b.size - 1}]") == b[-1]
    for l, norm in enumerate(net.batch_norms(w), start=1):
        for block, name in zip(norm, ("scale", "b", "mean", "variance"), strict=True):
            np.testing.assert_array_equal(block, net.block(w, f"{name}{l}"))
            assert np.shares_memory(block, w)


def test_spaces_in_a_name_do_not_matter():
    net = Network((2, 3, 1))
    assert {net.index(entry) for entry in ("A[1,2]", " A [ 1 , 2 ] ", "A[1, 2]", "W1[01, 2]")} == {5}


@pytest.mark.parametrize("sizes", [(3, 4), (2, 3, 2), DEEP])
def test_w_i_j_leads_from_i_to_j(sizes):
    # All linear: unit i of layer l - 1 sends x_i W_ij to unit j of layer l alone, so psi_j moves by x_i and no other.
    net = Network(sizes, hidden="linear", dtype="float64")
    rng = np.random.default_rng(0)
    w, s = rng.normal(size=net.size), rng.normal(size=net.n_inputs)
    for l, (n, m) in enumerate(itertools.pairwise(sizes), start=1):
        seen = net.backpropagate(w, s)
        x = s if l == 1 else seen[l - 2].a
        for i, j in np.ndindex(n, m):
            other = w.copy()
            other[net.index(f"W{l}[{i}, {j}]")] += 1.0
            np.testing.assert_allclose(
                net.backpropagate(other, s)[l - 1].z - seen[l - 1].z, x[i] * np.eye(m)[j], atol=1e-12
            )
        for j in range(m):
            other = w.copy()
            other[net.index(f"b{l}[{j}]")] += 1.0
            np.testing.assert_allclose(net.backpropagate(other, s)[l - 1].z - seen[l - 1].z, np.eye(m)[j], atol=1e-12)


def test_a_block_of_a_gradient_is_read_and_of_w_is_written():
    net = Network((2, 3, 1), hidden="linear", bias=False, dtype="float64")
    w = np.zeros(9)
    net.block(w, "B")[:] = [[1], [2], [3]]
    assert w.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3]
    # yhat = s A B: dyhat/dA_ij = s_i B_j
    assert net.block(net.gradient(w, [5, 7]), "A").tolist() == [[5, 10, 15], [7, 14, 21]]


def test_a_network_is_rebuilt_from_its_settings():
    for net in (Network((4, 8, 1), "tanh", "sigmoid", False, True, "float64"), Network((4, 8, 1), batch_norm=True)):
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


@pytest.mark.parametrize(("init", "variance"), VARIANCES.items())
def test_initial_weights_have_their_variance(init, variance):
    # 120 000 draws: the standard error of the variance is sqrt(2 / 120 000) = 0.4 %, of the mean 0.3 % of std.
    W, b = Network((N_IN, N_OUT), dtype="float64").unpack(Network((N_IN, N_OUT), dtype="float64").init(0, init))[0]
    assert W.var() == pytest.approx(variance, rel=0.02)
    assert abs(W.mean()) < 0.015 * np.sqrt(variance)
    assert not b.any()
    bound = np.sqrt(3 * variance)
    if init.endswith("uniform"):
        assert 0.999 * bound < np.abs(W).max() <= bound
    else:  # a normal distribution leaves 8.3 % outside of that bound
        assert (np.abs(W) > bound).mean() == pytest.approx(0.0833, abs=0.005)


@pytest.mark.parametrize(
    ("alias", "init"),
    [
        ("xavier_normal", "glorot_normal"),
        ("xavier_uniform", "glorot_uniform"),
        ("xavier", "glorot_uniform"),
        ("glorot", "glorot_uniform"),
        ("he", "he_normal"),
        ("lecun", "lecun_normal"),
    ],
)
def test_other_names_of_initialisers(alias, init):
    net = Network((5, 4, 1))
    np.testing.assert_array_equal(net.init(1, alias), net.init(1, init))


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


@pytest.mark.parametrize("init", INITIALISERS)
def test_a_seed_fixes_the_weights_and_numpys_generator_is_left_alone(init):
    net = Network((12, 7, 3))
    before = repr(np.random.get_state())  # noqa: NPY002
    w = net.init(3, init)
    np.testing.assert_array_equal(w, net.init(np.random.default_rng(3), init))
    assert init == "zeros" or not np.array_equal(w, net.init(4, init))
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
        ({"batch_norm": True, "layer_norm": True}, "layer_norm and batch_norm are both set"),
        ({"batch_norm": True, "bias": False}, "batch_norm is set without bias"),
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
        (lambda: NET.forward(W0[1:], [1, 2]), ValueError, r"w has shape \(16,\); expected \(17,\)"),
        (lambda: NET.forward(W0, [1, 2, 3]), ValueError, r"s has shape \(3,\); expected \(2,\)"),
        (lambda: NET.forward(W0, 1.0), ValueError, r"s has shape \(\)"),
        (lambda: NET.forward(W0, [[1, 2, 3]]), ValueError, r"s has shape \(1, 3\); expected \(n, 2\)"),
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
        (lambda: NET.backpropagate(W0, [1, 2], output=2), ValueError, "output is 2; .* 0 to 1"),
        (lambda: NET.backpropagate(W0, [1, 2, 3]), ValueError, r"s has shape \(3,\)"),
        (lambda: NET.trace(W0, [[1, 2]]), ValueError, r"s has shape \(1, 2\)"),
        (lambda: NET.block(W0, "C"), ValueError, "block is 'C'; expected one of A, b_A, B, b_B"),
        (lambda: NET.block(W0, "b_AA"), ValueError, "block is 'b_AA'; did you mean 'b_A'"),
        (lambda: NET.block(W0, "W3"), ValueError, "block is 'W3'"),
        (lambda: NET.block(W0[1:], "A"), ValueError, r"w has shape \(16,\); expected \(17,\)"),
        (lambda: Network((2, 3)).block(np.zeros(9), "A"), ValueError, "block is 'A'.* W1, b1"),
        (lambda: Network((2, 3), bias=False).block(np.zeros(6), "b1"), ValueError, "block is 'b1'.* W1"),
        (lambda: NET.index("A[2, 0]"), ValueError, r"entry is 'A\[2, 0\]'; A has shape \(2, 3\), .* from 0"),
        (lambda: NET.index("A[0, 3]"), ValueError, r"A has shape \(2, 3\)"),
        (lambda: NET.index("A[0]"), ValueError, r"A has shape \(2, 3\)"),
        (lambda: NET.index("b_A[0, 0]"), ValueError, r"b_A has shape \(3,\)"),
        (lambda: NET.index("A[-1, 0]"), ValueError, r"entry is 'A\[-1, 0\]'; expected a name and its indices"),
        (lambda: NET.index("A[0, 1, 2]"), ValueError, "a name and its indices"),
        (lambda: NET.index("A[]"), ValueError, "a name and its indices"),
        (lambda: NET.index("A"), ValueError, "a name and its indices"),
        (lambda: NET.index(""), ValueError, "a name and its indices"),
        (lambda: NET.index("A[0, 0]; B[0, 0]"), ValueError, "a name and its indices"),
        (lambda: NET.index("C[0, 0]"), ValueError, "block is 'C'"),
        (lambda: NET.name(17), ValueError, "index is 17; w has entries 0 to 16"),
        (lambda: NET.name(-1), ValueError, "index is -1"),
        (lambda: NET.name(0.5), ValueError, "index is 0.5"),
        (lambda: NET.fold(W0[1:]), ValueError, r"w has shape \(16,\)"),
        (lambda: NET.init(0, "he_norml"), ValueError, "init is 'he_norml'; did you mean 'he_normal'"),
    ],
)
def test_errors_name_the_argument_and_what_is_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
