"""The specification in the notes' letters, by hand and against central differences; and that the kernels equal it."""

import numpy as np
import pytest

from valueapprox import SGD, Network, ValueFunction, twolayer

# s = (1, 2)   psi = s A = (1*1 + 2*2, 1*-3 + 2*1) = (5, -1)   x = relu(psi) = (5, 0)
# theta = x B = (5*2 + 0*7, 5*-1 + 0*3) = (10, -5) = yhat
S = np.array([1.0, 2.0])
A = np.array([[1.0, -3.0], [2.0, 1.0]])
B = np.array([[2.0, -1.0], [7.0, 3.0]])
Y = np.array([9.0, -2.0])


def test_the_passes_by_hand():
    p = twolayer.forward(S, A, B)
    assert p.psi.tolist() == [5, -1]
    assert p.x.tolist() == [5, 0]
    assert p.theta.tolist() == p.yhat.tolist() == [10, -5]
    # L = 1/2 sum (yhat - y)^2: dL/dyhat = yhat - y = (1, -3) = delta_B, since the output is linear
    g = twolayer.backward(p, B, p.yhat - Y)
    assert g.delta_B.tolist() == [1, -3]
    assert g.grad_B.tolist() == [[5 * 1, 5 * -3], [0, 0]]  # x_j delta_B_k
    # delta_A_j = (sum_k B_jk delta_B_k) 1[psi_j > 0]: (2*1 + -1*-3, 7*1 + 3*-3) = (5, -2), and unit 2 is off
    assert g.delta_A.tolist() == [5, 0]
    assert g.grad_A.tolist() == [[1 * 5, 0], [2 * 5, 0]]  # s_i delta_A_j
    # alpha_A = 0.1, alpha_B = 0.01
    A_new, B_new = twolayer.update(A, B, g, 0.1, 0.01)
    np.testing.assert_allclose(A_new, [[0.5, -3], [1, 1]])
    np.testing.assert_allclose(B_new, [[1.95, -0.85], [7, 3]])


FUNCTIONS = {  # f, f'(psi)
    "relu": (twolayer.relu, twolayer.relu_derivative),
    "linear": (twolayer.linear, twolayer.linear_derivative),
    "tanh": (np.tanh, lambda psi: 1 - np.tanh(psi) ** 2),
    "sigmoid": (lambda psi: 1 / (1 + np.exp(-psi)), lambda psi: np.exp(-psi) / (1 + np.exp(-psi)) ** 2),
}


def drawn(seed):
    """A, B, s, y of a 4-6-3 network with every |psi| > 0.01, away from relu's kink."""
    rng = np.random.default_rng(seed)
    while True:
        A, B, s, y = (rng.normal(size=shape) for shape in ((4, 6), (6, 3), 4, 3))
        p = twolayer.forward(s, A, B)
        if min(np.abs(p.psi).min(), np.abs(p.theta).min()) > 0.01:
            return A, B, s, y


@pytest.mark.parametrize("f_B", FUNCTIONS)
@pytest.mark.parametrize("f_A", FUNCTIONS)
def test_gradients_equal_central_differences_at_the_weights_before_the_update(f_A, f_B):
    (f, df), (g, dg) = FUNCTIONS[f_A], FUNCTIONS[f_B]
    A, B, s, y = drawn(0)

    def loss(A, B):
        return 0.5 * ((twolayer.forward(s, A, B, f, g).yhat - y) ** 2).sum()

    p = twolayer.forward(s, A, B, f, g)
    ours = twolayer.backward(p, B, p.yhat - y, df, dg)
    h = 1e-5
    for weights, gradient, losses in (
        (A, ours.grad_A, lambda change: loss(A + change, B)),
        (B, ours.grad_B, lambda change: loss(A, B + change)),
    ):
        numeric = np.zeros_like(weights)
        for at in np.ndindex(weights.shape):
            change = np.zeros_like(weights)
            change[at] = h
            numeric[at] = (losses(change) - losses(-change)) / (2 * h)
        assert np.linalg.norm(numeric - gradient) < 1e-7 * np.linalg.norm(gradient)


@pytest.mark.parametrize("f_B", FUNCTIONS)
@pytest.mark.parametrize("f_A", FUNCTIONS)
def test_kernels_equal_the_specification(f_A, f_B):
    (f, df), (g, dg) = FUNCTIONS[f_A], FUNCTIONS[f_B]
    net = Network((4, 6, 3), f_A, f_B, bias=False, dtype="float64")
    for seed in range(10):
        A, B, s, y = drawn(seed)
        w = net.pack([(A, None), (B, None)])
        p = twolayer.forward(s, A, B, f, g)
        np.testing.assert_allclose(net.forward(w, s), p.yhat, rtol=1e-13)
        for name, value in net.trace(w, s).items():
            np.testing.assert_allclose(value, getattr(p, name), rtol=1e-12, err_msg=name)
        for k in range(3):
            expected = twolayer.backward(p, B, np.eye(3)[k], df, dg)
            (grad_A, _), (grad_B, _) = net.unpack(net.gradient(w, s, output=k))
            np.testing.assert_allclose(grad_A, expected.grad_A, rtol=1e-11, atol=1e-14)
            np.testing.assert_allclose(grad_B, expected.grad_B, rtol=1e-11, atol=1e-14)

        # One step down 1/2 ||yhat - y||^2: u = -grad L = sum_k (y_k - yhat_k) grad yhat_k.
        u = sum((y[k] - p.yhat[k]) * net.gradient(w, s, k) for k in range(3))
        optimizer = SGD({"A": 0.03, "B": 0.2})
        optimizer.step(net, w, u, optimizer.init(w))
        A_new, B_new = twolayer.update(A, B, twolayer.backward(p, B, p.yhat - y, df, dg), 0.03, 0.2)
        np.testing.assert_allclose(w, net.pack([(A_new, None), (B_new, None)]), rtol=1e-12, atol=1e-14)


def test_one_transition_moves_the_weights_as_the_specification_does():
    # At a terminal step U = r, and TD's step is that of L = 1/2 (U - yhat)^2: delta_B = -(U - yhat).
    net = Network((4, 6, 1), bias=False, dtype="float64")
    for seed in range(10):
        A, B, s, _ = drawn(seed)
        B = B[:, :1]
        v = ValueFunction(net, SGD((0.03, 0.2)), gamma=0.9)
        v.w[:] = net.pack([(A, None), (B, None)])
        p = twolayer.forward(s, A, B)
        assert v.learn(s, 1.5, s, terminated=True) == pytest.approx(1.5 - p.yhat[0], rel=1e-12)
        A_new, B_new = twolayer.update(A, B, twolayer.backward(p, B, p.yhat - 1.5), 0.03, 0.2)
        np.testing.assert_allclose(v.w, net.pack([(A_new, None), (B_new, None)]), rtol=1e-12, atol=1e-14)


def test_the_gradient_of_the_value_itself():
    # One output, by hand: B = (2, 7), so v = 10, grad_B = x = (5, 0), delta_A = (2, 0), grad_A = s delta_A.
    value, grad_A, grad_B = twolayer.value_gradients(S, A, B[:, :1])
    assert value == 10
    assert grad_A.tolist() == [[2, 0], [4, 0]]
    assert grad_B.tolist() == [[5], [0]]
