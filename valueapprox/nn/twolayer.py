"""The two-layer network in the notes' own letters: the specification that every kernel is tested against.

s (d,) -> A (d, h) -> x (h,) -> B (h, k) -> yhat (k,):  psi = s A,  x = f_A(psi),  theta = x B,  yhat = f_B(theta).
"Prediction and Control with Function Approximation", gradient descent for training neural networks. Where the slides
are loose, finite differences decide: delta^A sums over all outputs k, and is formed with the B from before the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Gradients", "Pass", "backward", "forward", "update", "value_gradients"]

Function = Callable[[np.ndarray], np.ndarray]


class Pass(NamedTuple):
    """What the forward pass computes."""

    s: np.ndarray  # (d,)
    psi: np.ndarray  # (h,)
    x: np.ndarray  # (h,)
    theta: np.ndarray  # (k,)
    yhat: np.ndarray  # (k,)


class Gradients(NamedTuple):
    """What the backward pass computes."""

    delta_B: np.ndarray  # (k,)
    grad_B: np.ndarray  # (h, k)
    delta_A: np.ndarray  # (h,)
    grad_A: np.ndarray  # (d, h)


def linear(psi: np.ndarray) -> np.ndarray:
    """f(psi) = psi."""
    return psi


def linear_derivative(psi: np.ndarray) -> np.ndarray:
    """f'(psi) = 1."""
    return np.ones_like(psi)


def relu(psi: np.ndarray) -> np.ndarray:
    """f(psi) = max(psi, 0)."""
    return np.maximum(psi, 0.0)


def relu_derivative(psi: np.ndarray) -> np.ndarray:
    """f'(psi) = 1 for psi > 0, 0 otherwise, also at 0."""
    return (psi > 0.0).astype(psi.dtype)


def forward(s: np.ndarray, A: np.ndarray, B: np.ndarray, f_A: Function = relu, f_B: Function = linear) -> Pass:
    """psi = s A;  x = f_A(psi);  theta = x B;  yhat = f_B(theta)."""
    psi = s @ A
    x = f_A(psi)
    theta = x @ B
    yhat = f_B(theta)
    return Pass(s, psi, x, theta, yhat)


def backward(
    p: Pass,
    B: np.ndarray,
    dL_dyhat: np.ndarray,
    df_A: Function = relu_derivative,
    df_B: Function = linear_derivative,
) -> Gradients:
    """Gradients of L with respect to B and A, output side first.

    delta^B_k = dL/dyhat_k f_B'(theta_k)                    grad_B[j, k] = delta^B_k x_j
    delta^A_j = (sum_k B_jk delta^B_k) f_A'(psi_j)          grad_A[i, j] = delta^A_j s_i
    """
    delta_B = dL_dyhat * df_B(p.theta)
    grad_B = np.outer(p.x, delta_B)
    delta_A = (B @ delta_B) * df_A(p.psi)
    grad_A = np.outer(p.s, delta_A)
    return Gradients(delta_B, grad_B, delta_A, grad_A)


def update(A: np.ndarray, B: np.ndarray, g: Gradients, alpha_A: float, alpha_B: float) -> tuple[np.ndarray, np.ndarray]:
    """A <- A - alpha_A grad_A;  B <- B - alpha_B grad_B. Both gradients were taken before either changes."""
    return A - alpha_A * g.grad_A, B - alpha_B * g.grad_B


def value_gradients(s: np.ndarray, A: np.ndarray, B: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """v(s) and its gradients with respect to A and B, for one linear output: dL/dyhat = 1 gives grad v itself."""
    p = forward(s, A, B)
    g = backward(p, B, np.ones(1))
    return float(p.yhat[0]), g.grad_A, g.grad_B
