"""Activation functions f and their derivatives f', as kernels over a slice of a layer, chosen by a code.

A function passed to a kernel as an argument is compiled anew in every process and never cached, so a kernel gets the
code of an activation and branches once per layer, outside the loop over units.
"""

from __future__ import annotations

import math

from valueapprox.compiling import kernel

__all__ = ["HIDDEN", "OUTPUT", "activate", "times_derivative"]

LINEAR, RELU, LEAKY_RELU, ELU, SIGMOID, TANH, SOFTPLUS, SOFTMAX = range(8)

#: Activations of hidden layers by name.
HIDDEN = {
    "linear": LINEAR,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "elu": ELU,
    "sigmoid": SIGMOID,
    "tanh": TANH,
    "softplus": SOFTPLUS,
}
#: Activations of the output layer by name. Softmax couples the units of its layer; as a hidden layer nobody uses it.
OUTPUT = {**HIDDEN, "softmax": SOFTMAX}

LEAK = 0.01  # slope of leaky ReLU for psi < 0


@kernel(inline=True)
def activate(code, psi, x, start, stop):
    """x_j = f(psi_j) for the units start <= j < stop.

    psi (N,) read, x (N,) written; start, stop unsigned, so that no index can be negative and the loops vectorise.

    linear      psi
    relu        max(psi, 0)
    leaky_relu  psi if psi > 0 else 0.01 psi
    elu         psi if psi > 0 else exp(psi) - 1
    sigmoid     1 / (1 + exp(-psi))
    tanh        tanh(psi)
    softplus    log(1 + exp(psi)), written so that exp cannot overflow
    softmax     exp(psi_j - max psi) / sum_k exp(psi_k - max psi)

    The two that are cheaper than a call are inline; the others are called.
    """
    zero = psi.dtype.type(0)
    if code == RELU:
        for j in range(start, stop):
            x[j] = max(psi[j], zero)
    elif code == LINEAR:
        for j in range(start, stop):
            x[j] = psi[j]
    else:
        activate_other(code, psi, x, start, stop)


@kernel
def activate_other(code, psi, x, start, stop):
    """`activate` for all that is not relu or linear."""
    zero = psi.dtype.type(0)
    one = psi.dtype.type(1)
    if code == LEAKY_RELU:
        leak = psi.dtype.type(LEAK)
        for j in range(start, stop):
            x[j] = psi[j] if psi[j] > zero else leak * psi[j]
    elif code == ELU:
        for j in range(start, stop):
            x[j] = psi[j] if psi[j] > zero else psi.dtype.type(math.expm1(psi[j]))
    elif code == SIGMOID:
        for j in range(start, stop):
            # Both branches keep exp's argument negative.
            e = psi.dtype.type(math.exp(-abs(psi[j])))
            x[j] = one / (one + e) if psi[j] >= zero else e / (one + e)
    elif code == TANH and psi.itemsize == 4:
        tanh_of_float32(psi, x, start, stop)
    elif code == TANH:
        for j in range(start, stop):
            x[j] = math.tanh(psi[j])
    elif code == SOFTPLUS:
        for j in range(start, stop):
            x[j] = max(psi[j], zero) + psi.dtype.type(math.log1p(psi.dtype.type(math.exp(-abs(psi[j])))))
    else:
        top = psi[start]
        for j in range(start, stop):
            top = max(top, psi[j])
        total = zero
        for j in range(start, stop):
            x[j] = math.exp(psi[j] - top)
            total += x[j]
        for j in range(start, stop):
            x[j] /= total


@kernel
def tanh_of_float32(psi, x, start, stop):
    """tanh psi = 2 t / (1 + t^2), t = tanh(psi / 2) by Lambert's continued fraction, u / (1 + u^2 / (3 + u^2 / (5 ...

    Up to its seventh number, as a ratio of polynomials; within 4 units in the last place of float32. A loop without
    calls is compiled for many numbers at once, in a tenth of the time of as many calls of tanh.
    """
    one, two, half, most = psi.dtype.type(1), psi.dtype.type(2), psi.dtype.type(0.5), psi.dtype.type(9)
    a_0, a_1, a_2 = psi.dtype.type(135135), psi.dtype.type(17325), psi.dtype.type(378)
    b_1, b_2, b_3 = psi.dtype.type(62370), psi.dtype.type(3150), psi.dtype.type(28)
    for j in range(start, stop):
        u = psi[j]
        u = half * (most if u > most else (-most if u < -most else u))  # there tanh is 1; NaN stays NaN
        z = u * u
        t = u * (a_0 + z * (a_1 + z * (a_2 + z))) / (a_0 + z * (b_1 + z * (b_2 + b_3 * z)))
        x[j] = two * t / (one + t * t)


@kernel(inline=True)
def times_derivative(code, psi, x, d, start, stop):
    """d_j <- d_j f'(psi_j) for the units start <= j < stop; x = f(psi) saves recomputing exponentials.

    At the kinks: relu'(0) = 0, leaky_relu'(0) = 0.01, elu'(0) = 1. For softmax, whose units depend on each other,
    d <- J^T d with J_jk = x_j (1[j = k] - x_k).
    """
    zero = psi.dtype.type(0)
    if code == RELU:
        for j in range(start, stop):
            d[j] = d[j] if psi[j] > zero else zero
    elif code != LINEAR:
        times_derivative_other(code, psi, x, d, start, stop)


@kernel
def times_derivative_other(code, psi, x, d, start, stop):
    """`times_derivative` for all that is not relu or linear."""
    zero = psi.dtype.type(0)
    one = psi.dtype.type(1)
    if code == LEAKY_RELU:
        leak = psi.dtype.type(LEAK)
        for j in range(start, stop):
            d[j] = d[j] if psi[j] > zero else leak * d[j]
    elif code == ELU:
        for j in range(start, stop):
            d[j] = d[j] if psi[j] > zero else d[j] * (x[j] + one)
    elif code == SIGMOID:
        for j in range(start, stop):
            d[j] *= x[j] * (one - x[j])
    elif code == TANH:
        for j in range(start, stop):
            d[j] *= one - x[j] * x[j]
    elif code == SOFTPLUS:
        for j in range(start, stop):
            # softplus' = sigmoid(psi) = 1 - exp(-softplus(psi))
            d[j] *= -psi.dtype.type(math.expm1(-x[j]))
    else:
        dot = zero
        for j in range(start, stop):
            dot += d[j] * x[j]
        for j in range(start, stop):
            d[j] = x[j] * (d[j] - dot)
