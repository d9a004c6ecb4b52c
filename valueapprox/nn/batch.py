"""The forward and backward pass of many examples at once: matrix products through BLAS, and between them loops.

The same network, spec and weights as in `valueapprox.nn.backprop`, and what one example cannot have: batch
normalisation and dropout. An array of scratch has `capacity` slots for every unit; n <= capacity examples fill it, so
that layer l is a matrix (n, m) that starts at first_unit(l) * capacity. Rows of scratch: X (outputs of units), PSI
(what the activation sees), HAT (normalised), D (derivatives), INV (1 / sigma: one per example with LayerNorm, per unit
with batch normalisation), MASK and DROPPED (X times its mask, where the layer has dropout).
"""

from __future__ import annotations

import numpy as np

from valueapprox.checks import aligned_zeros
from valueapprox.compiling import kernel
from valueapprox.nn.activations import activate, times_derivative
from valueapprox.nn.backprop import (
    BATCH_NORM,
    BIAS,
    EPSILON,
    FOUR,
    HAT,
    HIDDEN_CODE,
    INV,
    LAYER_NORM,
    LAYERS,
    NORM,
    ONE,
    OUTPUT_CODE,
    PSI,
    SIZES,
    ZERO,
    D,
    X,
    first_unit,
    layer_size,
    normalise,
    normalise_backward,
)

__all__ = ["MOMENTUM", "backward_batch", "forward_batch", "load_batch", "one_gradient", "predict", "scratch", "uniform"]

FEW_INPUTS = 8
MASK, DROPPED = 5, 6
BATCH_ROWS = 7
#: Share of the newest minibatch in the running statistics of batch normalisation, as PyTorch has it.
MOMENTUM = 0.1

GOLDEN: np.uint64 = np.uint64(0x9E3779B97F4A7C15)
MIX_1: np.uint64 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2: np.uint64 = np.uint64(0x94D049BB133111EB)
SHIFT_1: np.uint64 = np.uint64(30)
SHIFT_2: np.uint64 = np.uint64(27)
SHIFT_3: np.uint64 = np.uint64(31)
TO_24_BITS: np.uint64 = np.uint64(40)


def scratch(row: int, capacity: int, dtype: str) -> np.ndarray:
    """A buffer for passes of up to `capacity` examples; `row` is the length of a row for one (`Network.starts[-1]`)."""
    return aligned_zeros((BATCH_ROWS, capacity * row), np.dtype(dtype))


@kernel(inline=True)
def mixed(key, number):
    """Output `number` of the generator SplitMix64 that was seeded with `key` (Steele, Lea & Flood 2014)."""
    z = key + (number + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> SHIFT_1)) * MIX_1
    z = (z ^ (z >> SHIFT_2)) * MIX_2
    return z ^ (z >> SHIFT_3)


@kernel(inline=True)
def uniform(key, number):
    """A number in [0, 1) with 24 bits, the same whenever it is asked for: no generator to save, or to disturb."""
    return np.float32(mixed(key, number) >> TO_24_BITS) * np.float32(2.0**-24)


@kernel
def drop(x, mask, dropped, rate, key, unit, start, stop):
    """Inverted dropout: mask_j = 0 with probability `rate`, else 1 / (1 - rate);  dropped_j = x_j mask_j.

    The mean of dropped is x, so that predicting needs no factor (Srivastava et al. 2014, section 10). `rate` < 1.
    `unit`, where a layer starts, gives each layer random numbers of its own, whatever the size of scratch.
    """
    key = mixed(key, unit)
    kept = x.dtype.type(1.0 / (1.0 - rate))
    bound = np.float32(rate)
    for j in range(start, stop):
        mask[j] = kept if uniform(key, j - start) >= bound else x.dtype.type(0)
        dropped[j] = x[j] * mask[j]


@kernel
def add_bias(psi, start, n, w, o, m):
    """psi_rj += b_j for n examples; b (m,) lies at w[o]."""
    row = start
    for _ in range(n):
        for j in range(m):
            psi[row + j] += w[o + j]
        row += m


@kernel
def sum_rows(d, start, n, gradient, o, m):
    """dL/db_j = sum_r d_rj. Four rows at once: sums are loaded and stored a quarter as often."""
    for j in range(m):
        gradient[o + j] = gradient.dtype.type(0)
    row, r = start, ZERO
    while r + FOUR <= n:
        row_1 = row + m
        row_2 = row_1 + m
        row_3 = row_2 + m
        for j in range(m):
            gradient[o + j] += (d[row + j] + d[row_1 + j]) + (d[row_2 + j] + d[row_3 + j])
        row = row_3 + m
        r += FOUR
    while r < n:
        for j in range(m):
            gradient[o + j] += d[row + j]
        row += m
        r += ONE


@kernel
def sum_outer_products(x, a, n_in, d, b, m, n, gradient, o):
    """dL/dW_ij = sum_r x_ri d_rj, where there are few inputs: BLAS takes several times as long."""
    for k in range(n_in * m):
        gradient[o + k] = gradient.dtype.type(0)
    row, at = b, a
    for _ in range(n):
        to = o
        for i in range(n_in):
            x_i = x[at + i]
            for j in range(m):
                gradient[to + j] += x_i * d[row + j]
            to += m
        row += m
        at += n_in


@kernel
def batch_normalise(psi, hat, inv, start, n, m, w, o, stats, training):
    """hat = (psi - mean) / sqrt(variance + 1e-5);  psi <- scale hat + shift. (Ioffe & Szegedy 2015, algorithm 1.)

    In training, mean and biased variance are those of the n examples, and the running ones, at w[stats], take a tenth
    of them (of the unbiased variance, n / (n - 1) times the biased); in predicting the running ones are used.
    Shift lies at w[o], scale behind it. Keeps 1 / sigma; what is computed for each unit on the way lies behind it.
    Row by row, as memory lies.
    """
    dtype = psi.dtype.type
    zero, one, epsilon, share = dtype(0), dtype(1), dtype(EPSILON), dtype(MOMENTUM)
    size = dtype(n)
    sigma, mean, scale = start, start + m, o + m
    if training:
        for j in range(m + m):
            inv[start + j] = zero
        for r in range(n):
            for j in range(m):
                inv[mean + j] += psi[start + r * m + j]
        for j in range(m):
            inv[mean + j] /= size
        for r in range(n):
            for j in range(m):
                centred = psi[start + r * m + j] - inv[mean + j]
                hat[start + r * m + j] = centred
                inv[sigma + j] += centred * centred
        for j in range(m):
            variance = inv[sigma + j] / size
            w[stats + j] += share * (inv[mean + j] - w[stats + j])
            w[stats + m + j] += share * (variance * size / (size - one) - w[stats + m + j])
            inv[sigma + j] = one / np.sqrt(variance + epsilon)
    else:
        for j in range(m):
            inv[sigma + j] = one / np.sqrt(w[stats + m + j] + epsilon)
        for r in range(n):
            for j in range(m):
                hat[start + r * m + j] = psi[start + r * m + j] - w[stats + j]
    for r in range(n):
        for j in range(m):
            k = start + r * m + j
            hat[k] *= inv[sigma + j]
            psi[k] = w[scale + j] * hat[k] + w[o + j]


@kernel
def batch_normalise_backward(hat, inv, d, start, n, m, w, o, gradient, training):
    """From dL/dpsi, behind scale and shift, to dL/d(s W), and the gradients of both. (Ioffe & Szegedy 2015, section 3.)

    dL/dshift = sum_r d_r;  dL/dscale = sum_r d_r hat_r
    d <- scale / sigma (d - mean(d) - hat mean(d hat)) in training, where mean and variance depend on the examples;
    d <- scale / sigma d in predicting, where they are constants.
    """
    dtype = d.dtype.type
    scale = o + m
    for j in range(m + m):
        gradient[o + j] = dtype(0)
    for r in range(n):
        for j in range(m):
            k = start + r * m + j
            gradient[o + j] += d[k]
            gradient[scale + j] += d[k] * hat[k]
    share = dtype(1) / dtype(n) if training else dtype(0)
    for r in range(n):
        for j in range(m):
            k = start + r * m + j
            centred = d[k] - share * gradient[o + j] - share * hat[k] * gradient[scale + j]
            d[k] = w[scale + j] * inv[start + j] * centred


@kernel
def output_rows(code, psi, x, d, start, n, k, backward):
    """`activate` or `times_derivative` of the output layer, example by example: softmax couples an example's units."""
    row = start
    for _ in range(n):
        if backward:
            times_derivative(code, psi, x, d, row, row + k)
        else:
            activate(code, psi, x, row, row + k)
        row += k


@kernel(inline=True, blas=True)
def matrix(flat, start, n, m):
    """The n x m matrix at flat[start]."""
    return flat[start : start + n * m].reshape(np.int64(n), np.int64(m))


@kernel(inline=True)
def load_batch(scratch, states, order, first, n):
    """Put the states of n examples, numbers order[first], ..., at the network's inputs."""
    k = ZERO
    for r in range(first, first + n):
        t = order[r]
        for i in range(states.shape[1]):
            scratch[X, k] = states[t, i]
            k += np.uint64(1)


@kernel(blas=True)
def forward_batch(w, spec, scratch, capacity, n, training, rates, key):
    """Run the network on the n examples whose inputs lie at the start of scratch[X].

    rates (L,) are the dropout rates of the inputs and of each hidden layer; they and `key`, from which the masks come,
    count in training only. With batch normalisation, training renews the running statistics in w.
    """
    x, psi, hat, inv, d = scratch[X], scratch[PSI], scratch[HAT], scratch[INV], scratch[D]
    mask, dropped = scratch[MASK], scratch[DROPPED]
    n_layers, norm = spec[LAYERS], spec[NORM]
    capacity, n = np.uint64(capacity), np.uint64(n)
    stats = ZERO
    for layer in range(n_layers):
        stats += layer_size(spec, layer)
    o = a = ZERO
    for layer in range(n_layers):
        n_in, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        b = first_unit(spec, layer + 1) * capacity
        stop = b + n * m
        inputs = x
        if training and rates[layer] > 0.0:
            drop(x, mask, dropped, rates[layer], key, first_unit(spec, layer), a, a + n * n_in)
            inputs = dropped
        np.dot(matrix(inputs, a, n, n_in), matrix(w, o, n_in, m), matrix(psi, b, n, m))
        hidden = layer < n_layers - 1
        behind = o + n_in * m
        if hidden and norm == BATCH_NORM:
            batch_normalise(psi, hat, inv, b, n, m, w, behind, stats, training)
            stats += m + m
        elif spec[BIAS]:
            add_bias(psi, b, n, w, behind, m)
        if not hidden:
            code = spec[OUTPUT_CODE]
            output_rows(code, psi, x, d, b, n, m, False)
        elif norm == LAYER_NORM:
            for r in range(n):
                normalise(psi, hat, inv[b:], r, b + r * m, m)
            activate(spec[HIDDEN_CODE], hat, x, b, stop)
        else:
            activate(spec[HIDDEN_CODE], psi, x, b, stop)
        o += layer_size(spec, layer)
        a = b


@kernel(blas=True)
def backward_batch(w, spec, scratch, capacity, n, training, rates, gradient, at_theta, to_input):
    """From derivatives at the outputs, in scratch[D], to the gradient (P,), summed over the n examples.

    Before: scratch[D] holds dL/dyhat at the output units, or dL/dtheta if `at_theta`. `training` and `rates` as in the
    forward pass, whose masks are used again. After: it holds dL/d(x W + b) of every layer, and dL/ds if `to_input`.
    dL/dW = x^T d;  dL/dx = d W^T. Entries of the gradient that belong to running statistics are left alone.
    """
    x, psi, hat, inv, d = scratch[X], scratch[PSI], scratch[HAT], scratch[INV], scratch[D]
    mask, dropped = scratch[MASK], scratch[DROPPED]
    n_layers, norm = spec[LAYERS], spec[NORM]
    capacity, n = np.uint64(capacity), np.uint64(n)
    m = np.uint64(spec[SIZES + n_layers])
    b = first_unit(spec, n_layers) * capacity
    if not at_theta:
        output_rows(spec[OUTPUT_CODE], psi, x, d, b, n, m, True)
    o = ZERO
    for layer in range(n_layers):
        o += layer_size(spec, layer)
    for layer in range(n_layers - 1, -1, -1):
        n_in, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        a = first_unit(spec, layer) * capacity
        o -= layer_size(spec, layer)
        behind = o + n_in * m
        if layer < n_layers - 1:
            if norm == LAYER_NORM:
                times_derivative(spec[HIDDEN_CODE], hat, x, d, b, b + n * m)
                for r in range(n):
                    normalise_backward(hat, inv[b:], r, d, b + r * m, m)
            else:
                times_derivative(spec[HIDDEN_CODE], psi, x, d, b, b + n * m)
                if norm == BATCH_NORM:
                    batch_normalise_backward(hat, inv, d, b, n, m, w, behind, gradient, training)
        if spec[BIAS] and not (norm == BATCH_NORM and layer < n_layers - 1):
            sum_rows(d, b, n, gradient, behind, m)
        masked = training and rates[layer] > 0.0
        inputs = dropped if masked else x
        if n_in <= FEW_INPUTS and m > ONE:
            sum_outer_products(inputs, a, n_in, d, b, m, n, gradient, o)
        else:
            np.dot(matrix(inputs, a, n, n_in).T, matrix(d, b, n, m), matrix(gradient, o, n_in, m))
        if layer > 0 or to_input:
            np.dot(matrix(d, b, n, m), matrix(w, o, n_in, m).T, matrix(d, a, n, n_in))
            if masked:
                for k in range(a, a + n * n_in):
                    d[k] *= mask[k]
        b = a


@kernel(blas=True)
def predict_kernel(w, spec, scratch, capacity, states, order, rates, yhat):
    """The outputs yhat (N, k) at states (N, d), `capacity` at a time."""
    n_layers = spec[LAYERS]
    k = spec[SIZES + n_layers]
    b = np.uint64(first_unit(spec, n_layers) * np.uint64(capacity))
    first = 0
    while first < len(states):
        n = min(capacity, len(states) - first)
        load_batch(scratch, states, order, first, n)
        forward_batch(w, spec, scratch, capacity, n, False, rates, ZERO)
        for r in range(n):
            for j in range(k):
                yhat[first + r, j] = scratch[X, b + np.uint64(r * k + j)]
        first += n


@kernel(blas=True)
def one_gradient_kernel(w, spec, scratch, s, order, rates, output, gradient, input_gradient):
    """`backprop.gradient_kernel` for a network with batch normalisation, whose running statistics are constants."""
    load_batch(scratch, s, order, 0, 1)
    forward_batch(w, spec, scratch, 1, 1, False, rates, ZERO)
    first = first_unit(spec, spec[LAYERS])
    for k in range(spec[SIZES + spec[LAYERS]]):
        scratch[D, first + np.uint64(k)] = w.dtype.type(1) if k == output else w.dtype.type(0)
    backward_batch(w, spec, scratch, 1, 1, False, rates, gradient, False, True)
    for i in range(input_gradient.size):
        input_gradient[i] = scratch[D, i]


def predict(w: np.ndarray, spec: np.ndarray, states: np.ndarray, k: int, row: int, capacity: int) -> np.ndarray:
    """The outputs (N, k) at states (N, d); see `Network.forward`."""
    yhat = np.empty((len(states), k), w.dtype)
    capacity = max(1, min(capacity, len(states)))
    buffer = scratch(row, capacity, w.dtype.name)
    predict_kernel(w, spec, buffer, capacity, states, np.arange(len(states)), np.zeros(int(spec[LAYERS])), yhat)
    return yhat


def one_gradient(
    w: np.ndarray,
    spec: np.ndarray,
    buffer: np.ndarray,
    s: np.ndarray,
    output: int,
    gradient: np.ndarray,
    input_gradient: np.ndarray,
) -> None:
    """d yhat_output / dw into `gradient` and d yhat_output / ds into `input_gradient`; see `Network.gradient`."""
    rates = np.zeros(int(spec[LAYERS]))
    one_gradient_kernel(w, spec, buffer, s[None], np.zeros(1, np.int64), rates, output, gradient, input_gradient)
