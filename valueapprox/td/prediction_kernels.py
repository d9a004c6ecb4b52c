"""Learning several predictions at once by semi-gradient TD(lambda), over many streams, as kernels.

A learner of k predictions over S streams has m networks: one with k outputs, or k with one output each. Its arrays:

w (m, P), moments (m, q, P), scalars (m, 5)   weights and the optimizer's state, one row per network
count (m, 2)        updates of each network; in count[0, 1] the transitions learned
traces (S, k, P)    one for each stream and prediction
inward (S, k)       discounts of the transition that led into the stream's present state; at a start gamma_i
hyper (13 + L + 2 + 2 k,)  the optimizer's hyper-parameters, then NORMS_EVERY and LIMIT, then lambda_i, then gamma_i
stats (4, max(4, L)) and errors (2, k)   sums since the last log: rows as in `valueapprox.td.base`; delta and delta^2
scratch (m, 5, N), v_next (k,), delta (k,), along (P,), squares (L,)   may be lost
w_before, moments_before, scalars_before   as w, moments, scalars: what to return to if an update overflows
"""

from __future__ import annotations

import math

import numpy as np

from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn.backprop import (
    LAYERS,
    SIZES,
    ZERO,
    D,
    X,
    accumulate,
    backward,
    first_unit,
    forward,
    layer_size,
    seed_output,
)
from valueapprox.optim.base import ALPHA
from valueapprox.td.base import (
    DIVERGED,
    GRADIENT,
    LEARNED,
    N_SAMPLED,
    N_TRANSITIONS,
    TOTALS,
    TRACE,
    TRANSITIONS,
    UPDATE,
    UPDATES,
    finite,
    load_row,
    squared_gradient_norm,
    td_error,
)

NORMS_EVERY, LIMIT, FIRST_LAMBDA = range(3)  # entries of hyper behind those of the optimizer

# Of the optimizer.
step, accumulate_and_step = placeholder("step"), placeholder("accumulate_and_step")


@kernel
def copy(source, target):
    """target <- source, matrices."""
    for i in range(source.shape[0]):
        for p in range(source.shape[1]):
            target[i, p] = source[i, p]


@kernel
def all_below(array, limit):
    """Whether all of a matrix is below a limit in size, and no NaN. Counts, as a loop that may end early is scalar."""
    wrong = 0
    for i in range(array.shape[0]):
        for p in range(array.shape[1]):
            wrong += 0 if abs(array[i, p]) < limit else 1
    return wrong == 0


# Functions of their own, so that the passes through the network are compiled once and not at every call.


@kernel
def evaluate(w, spec, scratch, states, t):
    """`forward` of states[t]; False if an entry of it is NaN or infinite."""
    fine = load_row(scratch, states, t)
    forward(w, spec, scratch)
    return fine


@kernel
def differentiate(w, spec, scratch, output, to_input):
    """`backward` for one output, after `evaluate`."""
    seed_output(scratch, spec, output)
    backward(w, spec, scratch, to_input)


@kernel
def add_squares(spec, scratch, squares):
    """squares[l] += ||grad_l v||^2, for the gradient that `backward` left."""
    for layer in range(spec[LAYERS]):
        squares[layer] += squared_gradient_norm(spec, scratch, layer)


@kernel
def sample_norms(w, w_before, z, spec, squares, stats):
    """Add this update's norms, layer by layer over all networks and predictions, to the sums since the last log.

    sqrt(sum_i ||grad v_i||^2), sqrt(sum_i ||z_i||^2), and ||dw|| / ||w||, w after the update.
    """
    stats[TOTALS, N_SAMPLED] += 1.0
    stop = ZERO
    for layer in range(spec[LAYERS]):
        start = stop
        stop += layer_size(spec, layer)
        trace, change, length = 0.0, 0.0, 0.0
        for i in range(z.shape[0]):
            for p in range(start, stop):
                trace += np.float64(z[i, p]) ** 2
        for j in range(w.shape[0]):
            for p in range(start, stop):
                change += (np.float64(w[j, p]) - np.float64(w_before[j, p])) ** 2
                length += np.float64(w[j, p]) ** 2
        stats[GRADIENT, layer] += math.sqrt(squares[layer])
        stats[TRACE, layer] += math.sqrt(trace)
        if length > 0.0:
            stats[UPDATE, layer] += math.sqrt(change / length)
        squares[layer] = 0.0


@kernel(inline=True)
def td_errors(w, scratch, spec, v_next, delta, t, s, c, s_next, terminated, gamma):
    """delta_i = c_i + gamma_i v_i(s') - v_i(s), v_i(s') = 0 if s' is terminal; False if one is NaN or infinite.

    `forward` of s runs last, so every network's scratch holds it.
    """
    dtype = w.dtype.type
    outputs = spec[SIZES + spec[LAYERS]]
    first = first_unit(spec, spec[LAYERS])
    fine = True
    for j in range(w.shape[0]):
        if not terminated[t]:
            fine &= evaluate(w[j], spec, scratch[j], s_next, t)
        for o in range(outputs):
            v_next[j * outputs + o] = dtype(0) if terminated[t] else scratch[j, X, first + np.uint64(o)]
        fine &= evaluate(w[j], spec, scratch[j], s, t)
        for o in range(outputs):
            i = j * outputs + o
            v = scratch[j, X, first + np.uint64(o)]
            delta[i] = td_error(dtype(c[t, i]), dtype(gamma[i]), v_next[i], v)
            fine &= finite(delta[i])
    return fine


@template
def learn_predictions(
    w, traces, inward, moments, scalars, count, spec, hyper, stats, errors,
    scratch, v_next, delta, along, squares, w_before, moments_before, scalars_before,
    stream, cut, s, c, s_next, terminated, truncated, discounts, td_error, status,
):  # fmt: skip
    """Learn from n transitions in their order, each of k predictions.

    delta_i = c_i + gamma_i v_i(s') - v_i(s);  z_i <- (gamma_i lambda_i) z_i + grad v_i(s), where this gamma_i is that
    of the transition into s;  w <- w + step(sum_i delta_i z_i), or each network by its own delta_i z_i. The traces of
    the stream are cut after the update if it ended, and before it where `cut` says so. Sutton & Barto 2018, sec. 12.8.

    stream (n,) which traces; cut, terminated, truncated (n,); s, s_next (n, d); c (n, k); discounts (n, k), or (1, k)
    for all. Writes td_error (n, k) and status (n,): LEARNED, or DIVERGED where delta is not finite or a weight would
    leave the limit. Then td_error is NaN and nothing has changed, but that the stream's traces are cut: a gradient is
    missing in them.
    """
    dtype = w.dtype.type
    k, networks = traces.shape[1], w.shape[0]
    first_own = ALPHA + spec[LAYERS]
    first_lam = first_own + FIRST_LAMBDA
    every = int(hyper[first_own + NORMS_EVERY])
    for t in range(stream.size):
        place = stream[t]
        z = traces[place]
        if cut[t]:
            for i in range(k):
                inward[place, i] = hyper[first_lam + k + i]
                for p in range(z.shape[1]):
                    z[i, p] = dtype(0)
        gamma = discounts[t if discounts.shape[0] > 1 else 0]
        fine = td_errors(w, scratch, spec, v_next, delta, t, s, c, s_next, terminated, gamma)
        if fine:
            copy(w, w_before)
            copy(scalars, scalars_before)
            for j in range(networks):
                copy(moments[j], moments_before[j])
            sampled = every > 0 and count[0, TRANSITIONS] % every == 0
            if networks == k:
                for i in range(k):
                    differentiate(w[i], spec, scratch[i], 0, False)
                    if sampled:
                        add_squares(spec, scratch[i], squares)
                    decay = dtype(inward[place, i] * hyper[first_lam + i])
                    accumulate_and_step(
                        w[i], z[i], delta[i], decay, spec, scratch[i], moments[i], scalars[i],
                        count[i, : TRANSITIONS], hyper,
                    )  # fmt: skip
            else:
                for p in range(along.size):
                    along[p] = dtype(0)
                for i in range(k):
                    differentiate(w[0], spec, scratch[0], i, False)
                    if sampled:
                        add_squares(spec, scratch[0], squares)
                    accumulate(z[i], spec, scratch[0], dtype(inward[place, i] * hyper[first_lam + i]))
                    for p in range(along.size):
                        along[p] += delta[i] * z[i, p]
                step(w[0], along, dtype(1), spec, moments[0], scalars[0], count[0, :TRANSITIONS], hyper)
            fine = all_below(w, dtype(hyper[first_own + LIMIT])) and all_below(scalars, np.inf)
            for j in range(networks):
                fine = fine and all_below(moments[j], dtype(np.inf))
            if not fine:
                copy(w_before, w)
                copy(scalars_before, scalars)
                for j in range(networks):
                    copy(moments_before[j], moments[j])
                    count[j, UPDATES] -= 1
            elif sampled:
                sample_norms(w, w_before, z, spec, squares, stats)
        ended = terminated[t] or truncated[t]
        for i in range(k):
            inward[place, i] = gamma[i]
            if ended or not fine:
                inward[place, i] = hyper[first_lam + k + i]
                for p in range(z.shape[1]):
                    z[i, p] = dtype(0)
            td_error[t, i] = np.float64(delta[i]) if fine else np.nan
        status[t] = LEARNED if fine else DIVERGED
        if not fine:
            for layer in range(squares.size):
                squares[layer] = 0.0
            continue
        count[0, TRANSITIONS] += 1
        stats[TOTALS, N_TRANSITIONS] += 1.0
        for i in range(k):
            errors[0, i] += td_error[t, i]
            errors[1, i] += td_error[t, i] ** 2


@kernel
def input_gradients(w, spec, scratch, states, output, gradients):
    """dv_output / ds of every state, states and gradients (n, d), w (P,) one network, scratch (5, N)."""
    for t in range(states.shape[0]):
        evaluate(w, spec, scratch, states, t)
        differentiate(w, spec, scratch, output, True)
        for i in range(states.shape[1]):
            gradients[t, i] = scratch[D, i]
