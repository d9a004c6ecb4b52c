"""The forward and backward pass of one example, as kernels on flat arrays.

A network is described to a kernel by `spec` (int64): the number of layers L, the options, the L + 1 layer sizes, and
where in a row of scratch each of these layers starts.
Batch normalisation has no place here, where a batch is one example: see `valueapprox.nn.batch`.
Its weights are one vector `w` in which layer after layer lies as W, row by row, then b; so b is one more row of W whose
input is always 1 (note 003: a_0 = 1). What a pass computes lies in `scratch` (5, N), with room for the units of all
layers, inputs included: rows X (outputs of units), PSI (pre-activations), HAT (PSI after LayerNorm), D (derivatives)
and INV (1 / sigma of LayerNorm, at index l for layer l).

Offsets are unsigned: a signed index could be negative, and the test for it keeps the loops from vectorising.
A Python literal in float32 arithmetic would promote it to float64; constants are taken from the arrays' dtype.
"""

from __future__ import annotations

import numpy as np

from valueapprox.compiling import kernel
from valueapprox.nn.activations import activate, times_derivative

LAYERS, BIAS, NORM, HIDDEN_CODE, OUTPUT_CODE, SIZES = range(6)  # positions in spec
NO_NORM, LAYER_NORM, BATCH_NORM = range(3)  # what NORM says
X, PSI, HAT, D, INV = range(5)  # rows of scratch
ROWS = 5
EPSILON = 1e-5  # inside LayerNorm's root, as everywhere in the field

ZERO: np.uint64 = np.uint64(0)
ONE: np.uint64 = np.uint64(1)
FOUR: np.uint64 = np.uint64(4)


@kernel(inline=True)
def first_unit(spec, layer):
    """Where in a row of scratch the units of a layer start, 0 the inputs: at a cache line, so that loads split none."""
    return np.uint64(spec[SIZES + spec[LAYERS] + 1 + layer])


@kernel(inline=True)
def layer_size(spec, layer):
    """Number of parameters of a layer: W is (n, m), b (m,), and with batch normalisation the scale (m,)."""
    n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
    size = n * m + m if spec[BIAS] else n * m
    return size + m if spec[NORM] == BATCH_NORM and layer < spec[LAYERS] - 1 else size


@kernel(inline=True)
def affine(w, o, bias, x, a, n, psi, b, m):
    """psi = x W + b for the layer whose W starts at w[o]: n inputs at x[a], m outputs at psi[b].

    Row by row of W, so that memory is read in order; a single output is a dot product instead.
    """
    if m == ONE:
        total = w[o + n] if bias else w.dtype.type(0)
        for i in range(n):
            total += x[a + i] * w[o + i]
        psi[b] = total
        return
    row = o + n * m
    for j in range(m):
        psi[b + j] = w[row + j] if bias else w.dtype.type(0)
    row, k = o, ZERO
    while k + FOUR <= n:  # four rows at once: psi is loaded and stored a quarter as often
        c = a + k
        x_0, x_1, x_2, x_3 = x[c], x[c + ONE], x[c + ONE + ONE], x[c + FOUR - ONE]
        row_1 = row + m
        row_2 = row_1 + m
        row_3 = row_2 + m
        for j in range(m):
            psi[b + j] += x_0 * w[row + j] + x_1 * w[row_1 + j] + x_2 * w[row_2 + j] + x_3 * w[row_3 + j]
        row = row_3 + m
        k += FOUR
    while k < n:
        x_0 = x[a + k]
        for j in range(m):
            psi[b + j] += x_0 * w[row + j]
        row += m
        k += ONE


@kernel(inline=True)
def affine_transpose(w, o, d, a, n, b, m):
    """d_i = sum_j W_ij d_j: derivatives at a layer's m outputs d[b] become those at its n inputs d[a]."""
    if m == ONE:
        d_b = d[b]
        for i in range(n):
            d[a + i] = w[o + i] * d_b
        return
    row = o
    for i in range(n):
        total = w.dtype.type(0)
        for j in range(m):
            total += w[row + j] * d[b + j]
        d[a + i] = total
        row += m


@kernel
def normalise(psi, hat, inv, layer, b, m):
    """LayerNorm without affine parameters: hat = (psi - mu) / sigma, sigma = sqrt(var + 1e-5), var biased.

    Ba, Kiros & Hinton 2016, eq. 3. Keeps 1 / sigma for the backward pass.
    """
    size = psi.dtype.type(m)
    mean = psi.dtype.type(0)
    for j in range(m):
        mean += psi[b + j]
    mean /= size
    variance = psi.dtype.type(0)
    for j in range(m):
        centred = psi[b + j] - mean
        variance += centred * centred
    scale = psi.dtype.type(1) / np.sqrt(variance / size + psi.dtype.type(EPSILON))
    inv[layer] = scale
    for j in range(m):
        hat[b + j] = (psi[b + j] - mean) * scale


@kernel
def normalise_backward(hat, inv, layer, d, b, m):
    """d <- (d - mean(d) - hat mean(d hat)) / sigma: from derivatives at hat to derivatives at psi."""
    size = hat.dtype.type(m)
    mean = hat.dtype.type(0)
    mean_hat = hat.dtype.type(0)
    for j in range(m):
        mean += d[b + j]
        mean_hat += d[b + j] * hat[b + j]
    mean /= size
    mean_hat /= size
    scale = inv[layer]
    for j in range(m):
        d[b + j] = scale * (d[b + j] - mean - hat[b + j] * mean_hat)


@kernel(inline=True)
def forward(w, spec, scratch):
    """Run the network on the input at the start of scratch[X]; returns the first output.

    Fills x, psi and, with LayerNorm, hat and 1 / sigma of every layer.
    """
    x, psi, hat, inv = scratch[X], scratch[PSI], scratch[HAT], scratch[INV]
    n_layers, bias = spec[LAYERS], spec[BIAS]
    o, a = ZERO, first_unit(spec, 0)  # start of the layer's weights in w; of its inputs in x
    b = a
    for layer in range(n_layers):
        n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        b = first_unit(spec, layer + 1)
        affine(w, o, bias, x, a, n, psi, b, m)
        if layer == n_layers - 1:
            activate(spec[OUTPUT_CODE], psi, x, b, b + m)
        elif spec[NORM] == LAYER_NORM:
            normalise(psi, hat, inv, layer, b, m)
            activate(spec[HIDDEN_CODE], hat, x, b, b + m)
        else:
            activate(spec[HIDDEN_CODE], psi, x, b, b + m)
        o += layer_size(spec, layer)
        a = b
    return x[b]


@kernel(inline=True)
def backward(w, spec, scratch, to_input):
    """From derivatives at the outputs, in scratch[D], to those at every pre-activation, from last layer to first.

    Before: scratch[D] holds dL/dyhat at the output units, or a unit vector for the gradient of one output.
    After: it holds dL/dpsi of every layer (delta^A, delta^B in note 002), and dL/ds at the inputs if `to_input`.
    dL/dx_j = sum_k W_jk dL/dpsi_k (next layer);  dL/dpsi_j = dL/dx_j f'(psi_j).  (Note 001, general formulas.)
    """
    x, psi, hat, d, inv = scratch[X], scratch[PSI], scratch[HAT], scratch[D], scratch[INV]
    n_layers = spec[LAYERS]
    m = np.uint64(spec[SIZES + n_layers])
    b = first_unit(spec, n_layers)
    o = np.uint64(w.size)
    times_derivative(spec[OUTPUT_CODE], psi, x, d, b, b + m)
    for layer in range(n_layers - 1, -1, -1):
        n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        a = first_unit(spec, layer)
        o -= layer_size(spec, layer)
        if layer > 0:
            affine_transpose(w, o, d, a, n, b, m)
            if spec[NORM] == LAYER_NORM:
                times_derivative(spec[HIDDEN_CODE], hat, x, d, a, a + n)
                normalise_backward(hat, inv, layer - 1, d, a, n)
            else:
                times_derivative(spec[HIDDEN_CODE], psi, x, d, a, a + n)
        elif to_input:
            affine_transpose(w, o, d, a, n, b, m)
        b = a


@kernel(inline=True)
def seed_output(scratch, spec, output):
    """Put the unit vector of `output` at the output units of scratch[D]: what `backward` turns into its gradient."""
    first = spec[SIZES + spec[LAYERS] + 1 + spec[LAYERS]]
    for k in range(spec[SIZES + spec[LAYERS]]):
        scratch[D, first + k] = scratch.dtype.type(1) if k == output else scratch.dtype.type(0)


@kernel
def accumulate(z, spec, scratch, decay):
    """Decay a vector and add the newest gradient, layer by layer as outer products: z <- decay z + x^T d.

    z (P,) overwritten; decay = gamma lambda for an accumulating trace (Sutton & Barto 2018, eq. 12.5); decay = 1 sums
    gradients. The gradient itself is never stored.
    """
    x, d = scratch[X], scratch[D]
    o, a = ZERO, first_unit(spec, 0)
    for layer in range(spec[LAYERS]):
        n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        b = first_unit(spec, layer + 1)
        if m == ONE:
            d_b = d[b]
            for i in range(n):
                z[o + i] = decay * z[o + i] + x[a + i] * d_b
            o += n
        else:
            for i in range(n):
                x_i = x[a + i]
                for j in range(m):
                    z[o + j] = decay * z[o + j] + x_i * d[b + j]
                o += m
        if spec[BIAS]:
            for j in range(m):
                z[o + j] = decay * z[o + j] + d[b + j]
            o += m
        a = b


@kernel
def store_gradient(gradient, spec, scratch):
    """Write the gradient that `backward` found: dL/dW_ij = x_i d_j, dL/db_j = d_j."""
    for p in range(gradient.size):
        gradient[p] = gradient.dtype.type(0)
    accumulate(gradient, spec, scratch, gradient.dtype.type(1))


@kernel
def output_kernel(w, spec, scratch, s, yhat):
    """Forward pass of one input s (d,) into yhat (k,)."""
    for i in range(s.size):
        scratch[X, i] = s[i]
    forward(w, spec, scratch)
    first = spec[SIZES + spec[LAYERS] + 1 + spec[LAYERS]]
    for k in range(yhat.size):
        yhat[k] = scratch[X, first + k]


@kernel
def gradient_kernel(w, spec, scratch, s, output, gradient, input_gradient):
    """d yhat_output / dw into `gradient` (P,) and d yhat_output / ds into `input_gradient` (d,)."""
    for i in range(s.size):
        scratch[X, i] = s[i]
    forward(w, spec, scratch)
    seed_output(scratch, spec, output)
    backward(w, spec, scratch, True)
    store_gradient(gradient, spec, scratch)
    for i in range(s.size):
        input_gradient[i] = scratch[D, i]
