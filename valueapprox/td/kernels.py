"""Learning state values from transitions: semi-gradient TD(lambda), n-step TD and gradient Monte Carlo, as kernels.

All three ascend delta times a vector: for TD(lambda) the accumulating trace, for the others the gradient at the state
that is updated. A learner's arrays, beside those of its network and optimizer:

z (P,)              the trace; n-step and Monte Carlo put the gradient here
memory (c, d + 1)   n-step and Monte Carlo: the states that await their return, and in the last column their rewards
span (2,)           where the oldest of them lies in memory, and how many they are
count (2,)          updates made; transitions seen
hyper (13 + L + 5,)  the optimizer's hyper-parameters, and behind them the method's settings
before (P,)         scratch
stats (4, m)        sums since the last log, rows TOTALS, GRADIENT, TRACE and UPDATE below
"""

from __future__ import annotations

import math

import numpy as np

from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn.backprop import (
    BIAS,
    LAYERS,
    SIZES,
    ZERO,
    D,
    X,
    backward,
    first_unit,
    forward,
    layer_size,
    seed_output,
)
from valueapprox.optim.base import ALPHA, norm

TD_LAMBDA, N_STEP, MONTE_CARLO = range(3)
METHODS = {"td": TD_LAMBDA, "n-step": N_STEP, "monte-carlo": MONTE_CARLO}

# Behind the optimizer's hyper-parameters lie those of the method: method, gamma, lambda, n, sample_every.
METHOD, GAMMA, LAMBDA, N, SAMPLE_EVERY = range(5)
N_SETTINGS = 5

LEARNED, BAD_INPUT, DIVERGED, MEMORY_FULL = range(4)  # status of a kernel

UPDATES, TRANSITIONS = range(2)  # entries of count
TOTALS, GRADIENT, TRACE, UPDATE = range(4)  # rows of stats
N_TRANSITIONS, SUM_DELTA, SUM_DELTA_SQUARED, N_SAMPLED = range(4)  # entries of stats[TOTALS]

accumulate_and_step = placeholder("accumulate_and_step")  # of the optimizer


@kernel(inline=True)
def setting(spec, hyper, entry):
    """One of the method's settings: METHOD, GAMMA, LAMBDA, N or SAMPLE_EVERY."""
    return hyper[ALPHA + spec[LAYERS] + entry]


@kernel(inline=True)
def is_sampled(number, spec, hyper):
    """Whether the norms of this update are measured."""
    every = int(setting(spec, hyper, SAMPLE_EVERY))
    return every > 0 and number % every == 0


@kernel(inline=True)
def finite(value):
    """Neither NaN nor infinite. (Numba's isfinite tests value - value, which reassociation turns into 0.)"""
    return abs(value) < np.inf


@kernel(inline=True)
def td_error(r, discount, v_next, v):
    """delta = r + gamma v(s') - v(s), in the arguments' dtype."""
    return r + discount * v_next - v


@kernel(inline=True)
def load(scratch, s):
    """Put the state s (d,) at the network's inputs; False if an entry is NaN or infinite."""
    fine = True
    for i in range(s.size):
        scratch[X, i] = s[i]
        fine &= finite(s[i])
    return fine


@kernel(inline=True)
def load_row(scratch, states, t):
    """`load` of states[t]: a row taken as an array would cost a reference count on every step."""
    fine = True
    for i in range(states.shape[1]):
        scratch[X, i] = states[t, i]
        fine &= finite(states[t, i])
    return fine


@kernel
def sample_norms(w, z, before, spec, scratch, stats):
    """Add this update's norms, layer by layer, to the sums since the last log.

    ||grad v(s)||, from the outer product of which it consists: ||x|| ||d||, with the bias's input 1.
    ||z||, after the newest gradient was added; and ||dw|| / ||w||, w after the update.
    """
    stats[TOTALS, N_SAMPLED] += 1.0
    stop = ZERO
    for layer in range(spec[LAYERS]):
        n, m = np.uint64(spec[SIZES + layer]), np.uint64(spec[SIZES + layer + 1])
        inputs = float(spec[BIAS])
        a, b = first_unit(spec, layer), first_unit(spec, layer + 1)
        for i in range(a, a + n):
            inputs += np.float64(scratch[X, i]) ** 2
        derivatives = 0.0
        for j in range(b, b + m):
            derivatives += np.float64(scratch[D, j]) ** 2
        stats[GRADIENT, layer] += math.sqrt(inputs * derivatives)
        start = stop
        stop += layer_size(spec, layer)
        stats[TRACE, layer] += norm(z, start, stop)
        change = 0.0
        for p in range(start, stop):
            change += (np.float64(w[p]) - np.float64(before[p])) ** 2
        length = norm(w, start, stop)
        if length > 0.0:
            stats[UPDATE, layer] += math.sqrt(change) / length


@template(inline=True)
def update(w, z, moments, scalars, count, scratch, before, spec, hyper, stats, decay, delta, sampled):
    """One update, after `forward` of the state it is for: z <- decay z + grad v(s);  w <- w + step(delta z)."""
    seed_output(scratch, spec, 0)
    backward(w, spec, scratch, False)
    if sampled:
        for p in range(w.size):
            before[p] = w[p]
    accumulate_and_step(w, z, delta, decay, spec, scratch, moments, scalars, count, hyper)
    if sampled:
        sample_norms(w, z, before, spec, scratch, stats)


@template(inline=True)
def td_lambda(w, z, moments, scalars, count, scratch, before, spec, hyper, stats, r, v_next, v, ended):
    """delta = r + gamma v(s') - v(s);  z <- gamma lambda z + grad v(s);  w <- w + step(delta z).

    The trace is cut after the update when the episode ended. `forward` of s ran last. Sutton & Barto 2018, sec. 12.2.
    """
    dtype = w.dtype.type
    gamma, lam = setting(spec, hyper, GAMMA), setting(spec, hyper, LAMBDA)
    delta = td_error(dtype(r), dtype(gamma), v_next, v)
    if finite(delta):
        sampled = is_sampled(count[TRANSITIONS], spec, hyper)
        update(w, z, moments, scalars, count, scratch, before, spec, hyper, stats, dtype(gamma * lam), delta, sampled)
        if ended:
            for p in range(z.size):
                z[p] = dtype(0)
    return delta


@template
def n_step(w, z, moments, scalars, count, scratch, before, spec, hyper, stats, r, v_next, memory, span, ended):
    """w <- w + step((G - v(S_t)) grad v(S_t)), G = r_{t+1} + ... + gamma^{n-1} r_{t+n} + gamma^n v(S_{t+n}).

    The newest state is in scratch[X]; it joins the memory, and the one that is n steps old is updated. When the episode
    ended, all that wait are updated, oldest first, with the return up to the end and v_next (0 if terminal) from
    there on. For Monte Carlo n is 0: every state waits for the end. Sutton & Barto 2018, sec. 9.3, 7.1.

    False if an error is NaN or infinite. Then nothing has changed, unless the episode ended: who calls puts it back.
    """
    dtype = w.dtype.type
    zero, gamma = dtype(0), dtype(setting(spec, hyper, GAMMA))
    n = int(setting(spec, hyper, N)) if setting(spec, hyper, METHOD) == N_STEP else 0
    size, d = memory.shape[0], memory.shape[1] - 1
    newest = (span[0] + span[1]) % size
    old_reward = memory[newest, d]
    for i in range(d):
        before[i] = memory[newest, i]  # scratch until the update, and never shorter than a state
        memory[newest, i] = scratch[X, i]
    memory[newest, d] = r
    span[1] += 1
    if not ended and (n == 0 or span[1] < n):
        return True
    # Returns from the end backwards, G <- r + gamma G; at an ending each goes to the place of its reward.
    g = v_next
    for k in range(span[1] - 1, -1, -1):
        row = (span[0] + k) % size
        g = memory[row, d] + gamma * g
        if ended:
            memory[row, d] = g
    while span[1] > 0:
        row = span[0]
        if ended:
            g = memory[row, d]
        for i in range(d):
            scratch[X, i] = memory[row, i]
        error = g - forward(w, spec, scratch)
        if not finite(error):
            if not ended:
                span[1] -= 1
                memory[newest, d] = old_reward
                for i in range(d):
                    memory[newest, i] = before[i]
            return False
        sampled = is_sampled(count[UPDATES], spec, hyper)
        update(w, z, moments, scalars, count, scratch, before, spec, hyper, stats, zero, error, sampled)
        span[0] = (row + 1) % size
        span[1] -= 1
        if not ended:
            break
    for p in range(z.size):
        z[p] = zero
    return True


@template(inline=True)
def learn(
    w, z, moments, scalars, count, scratch, before, spec, hyper, stats, memory, span,
    loaded, r, v_next, terminated, truncated,
):  # fmt: skip
    """Learn from one transition whose state is in scratch[X] and whose v(s') is known; returns (delta, status)."""
    v = forward(w, spec, scratch)
    ended = terminated or truncated
    if not (loaded and finite(r)):
        return w.dtype.type(np.nan), BAD_INPUT
    method = setting(spec, hyper, METHOD)
    if method == TD_LAMBDA:
        delta = td_lambda(w, z, moments, scalars, count, scratch, before, spec, hyper, stats, r, v_next, v, ended)
        fine = finite(delta)
    else:
        if method == MONTE_CARLO and span[1] == memory.shape[0]:
            return w.dtype.type(np.nan), MEMORY_FULL
        delta = td_error(w.dtype.type(r), w.dtype.type(setting(spec, hyper, GAMMA)), v_next, v)
        fine = finite(delta) and n_step(
            w, z, moments, scalars, count, scratch, before, spec, hyper, stats, r, v_next, memory, span, ended
        )
    if not fine:
        return delta, DIVERGED
    count[TRANSITIONS] += 1
    stats[TOTALS, N_TRANSITIONS] += 1.0
    stats[TOTALS, SUM_DELTA] += np.float64(delta)
    stats[TOTALS, SUM_DELTA_SQUARED] += np.float64(delta) ** 2
    return delta, LEARNED


@template
def learn_transition(
    w, z, moments, scalars, count, scratch, before, spec, hyper, stats, memory, span,
    s, r, s_next, terminated, truncated,
):  # fmt: skip
    """Learn from one transition, s and s_next (d,); returns (delta, status). v(s') is 0 where s' is terminal."""
    loaded = load(scratch, s_next)
    v_next = w.dtype.type(0)
    if not terminated:
        v_next = forward(w, spec, scratch)
    loaded &= load(scratch, s)
    return learn(
        w, z, moments, scalars, count, scratch, before, spec, hyper, stats, memory, span,
        loaded, r, v_next, terminated, truncated,
    )  # fmt: skip


@template
def learn_transitions(
    w, z, moments, scalars, count, scratch, before, spec, hyper, stats, memory, span,
    first, s, r, s_next, terminated, truncated, deltas,
):  # fmt: skip
    """Learn from the transitions t >= first, s and s_next (T, d), one after the other, into deltas (T,).

    Returns (t, status): T and LEARNED, or the transition that could not be learned from and why.
    """
    for t in range(first, r.size):
        loaded = load_row(scratch, s_next, t)
        v_next = w.dtype.type(0)
        if not terminated[t]:
            v_next = forward(w, spec, scratch)
        loaded &= load_row(scratch, s, t)
        delta, status = learn(
            w, z, moments, scalars, count, scratch, before, spec, hyper, stats, memory, span,
            loaded, r[t], v_next, terminated[t], truncated[t],
        )  # fmt: skip
        if status != LEARNED:
            return t, status
        deltas[t] = delta
    return r.size, LEARNED
