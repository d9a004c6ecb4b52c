"""Choosing actions from action values, or from an actor's outputs, and the gradient of log pi there, as kernels."""

from __future__ import annotations

import math

import numpy as np

from valueapprox.agents.layout import (
    ACTION,
    ACTIONS,
    DECIDED,
    DRAWN,
    DRAWS,
    EPSILON_FIRST,
    EPSILON_LAST,
    EPSILON_STEPS,
    EXPLORING,
    HIGH,
    LEAST,
    LOW,
    MOST,
    N_OF_ENTRY,
    NARROWEST,
    ORIGIN,
    STEPS,
    TEMPERATURE,
    UNDECIDED,
    UNIT,
    WHOLE,
)
from valueapprox.compiling import kernel
from valueapprox.nn.backprop import LAYERS, SIZES, first_unit
from valueapprox.nn.batch import mixed

TO_53_BITS: np.uint64 = np.uint64(11)


@kernel
def draw(key, counts):
    """The next uniform number in [0, 1), with 53 bits."""
    counts[DRAWS] += 1
    return float(mixed(key, np.uint64(counts[DRAWS])) >> TO_53_BITS) * 2.0**-53


@kernel
def draw_normal(key, counts):
    """The next standard normal number (Box & Muller 1958)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - draw(key, counts)))
    return radius * math.cos(2.0 * math.pi * draw(key, counts))


@kernel(inline=True)
def outputs(spec):
    """Where the output units lie in a row of scratch, and how many they are."""
    return np.int64(first_unit(spec, spec[LAYERS])), spec[SIZES + spec[LAYERS]]


@kernel
def best_value(values, first, n):
    """max_a q(a)."""
    best = values[first]
    for a in range(1, n):
        best = max(best, values[first + a])
    return best


@kernel
def best_action(values, first, n, key, counts):
    """argmax_a q(a), ties broken at random."""
    best = best_value(values, first, n)
    ties = 0
    for a in range(n):
        ties += 1 if values[first + a] == best else 0
    chosen = int(draw(key, counts) * ties) if ties > 1 else 0
    for a in range(n):
        if values[first + a] == best:
            if chosen == 0:
                return a
            chosen -= 1
    return 0


@kernel
def softmax_action(values, first, n, temperature, u):
    """An action with probability proportional to exp(value / temperature), from u, uniform in [0, 1)."""
    best = best_value(values, first, n)
    total = 0.0
    for a in range(n):
        total += math.exp((np.float64(values[first + a]) - best) / temperature)
    left = u * total
    for a in range(n - 1):
        left -= math.exp((np.float64(values[first + a]) - best) / temperature)
        if left < 0.0:
            return a
    return n - 1


@kernel
def epsilon_now(settings, counts):
    """Epsilon: from its first value in a straight line to its last."""
    share = min(1.0, counts[STEPS] / settings[EPSILON_STEPS]) if settings[EPSILON_STEPS] > 0.0 else 1.0
    return settings[EPSILON_FIRST] + share * (settings[EPSILON_LAST] - settings[EPSILON_FIRST])


@kernel
def choose_by_value(values, first, n, settings, counts, key, greedy):
    """An action epsilon-greedily, or by softmax with a temperature; writes it, and whether it is not a greedy one."""
    if greedy:
        counts[ACTION] = best_action(values, first, n, key, counts)
    elif settings[TEMPERATURE] > 0.0:
        counts[ACTION] = softmax_action(values, first, n, settings[TEMPERATURE], draw(key, counts))
    elif draw(key, counts) < epsilon_now(settings, counts):
        counts[ACTION] = int(draw(key, counts) * n)
    else:
        counts[ACTION] = best_action(values, first, n, key, counts)
    counts[EXPLORING] = 1 if values[first + counts[ACTION]] < best_value(values, first, n) else 0


@kernel
def expected_value(values, first, n, settings, counts):
    """sum_a pi(a) q(a) for the policy that acts."""
    best = np.float64(best_value(values, first, n))
    total, weights = 0.0, 0.0
    if settings[TEMPERATURE] > 0.0:
        for a in range(n):
            weight = math.exp((np.float64(values[first + a]) - best) / settings[TEMPERATURE])
            total += weight * np.float64(values[first + a])
            weights += weight
        return total / weights
    for a in range(n):
        total += np.float64(values[first + a])
    epsilon = epsilon_now(settings, counts)
    return epsilon * total / n + (1.0 - epsilon) * best


@kernel
def softplus(p):
    """log(1 + e^p)."""
    return max(p, 0.0) + math.log1p(math.exp(-abs(p)))


@kernel(exact=True)
def in_space(layout, j, value):
    """Entry j of a continuous action, from the policy's unit to the environment's, within its bounds."""
    entry = j * N_OF_ENTRY
    a = layout[entry + ORIGIN] + layout[entry + UNIT] * value
    if layout[entry + WHOLE] != 0.0:
        a = np.rint(a)
    return min(max(a, layout[entry + LOW]), layout[entry + HIGH])


@kernel(exact=True)
def to_space(layout, values, action):
    """A continuous action (k,), from the policy's unit to the environment's."""
    for j in range(values.size):
        action[j] = in_space(layout, j, values[j])


@kernel
def softmax_entropy(values, first, n):
    """(H, log sum exp) of the softmax of n values: H = - sum p log p."""
    best = np.float64(best_value(values, first, n))
    total = 0.0
    for j in range(n):
        total += math.exp(np.float64(values[first + j]) - best)
    log_total = math.log(total) + best
    entropy = 0.0
    for j in range(n):
        log_p = np.float64(values[first + j]) - log_total
        entropy -= math.exp(log_p) * log_p
    return entropy, log_total


@kernel
def persistence(values, first, n, persist):
    """Probability of drawing the next action from the same number: `persist` where the policy is undecided.

    It falls in a straight line to 0 as the entropy falls from UNDECIDED to DECIDED times the largest, log n.
    """
    share = softmax_entropy(values, first, n)[0] / math.log(float(n))
    return persist * min(max((share - DECIDED) / (UNDECIDED - DECIDED), 0.0), 1.0)


# --- the actor's policies ------------------------------------------------------------------------------------------


@kernel
def draw_softmax(values, first, n, settings, memory, counts, key, greedy, persist, action):
    """One action by the softmax of n logits; `greedy` takes the likeliest.

    It is drawn by the inverse of the distribution function, from a number that may persist.
    """
    if greedy:
        counts[ACTION] = best_action(values, first, n, key, counts)
        return
    if not (persist > 0.0 and n > 1 and draw(key, counts) < persistence(values, first, n, persist)):
        memory[DRAWN] = draw(key, counts)
    counts[ACTION] = softmax_action(values, first, n, 1.0, memory[DRAWN])


@kernel
def draw_factors(values, first, n, settings, memory, counts, key, greedy, persist, action):
    """The index of each entry's value into action (k,), each by a softmax of its own. Nothing persists."""
    for j in range(action.size):
        n_j = int(settings[ACTIONS + j])
        if greedy:
            action[j] = best_action(values, first, n_j, key, counts)
        else:
            action[j] = softmax_action(values, first, n_j, 1.0, draw(key, counts))
        first += n_j


@kernel
def draw_gaussian(values, first, n, settings, memory, counts, key, greedy, persist, action):
    """A continuous action (k,) from means and pre-spreads, in the policy's own unit, not cut off at its bounds."""
    k = n // 2
    for j in range(k):
        action[j] = np.float64(values[first + j])
        if not greedy:
            action[j] += softplus(np.float64(values[first + k + j])) * draw_normal(key, counts)


@kernel
def seed_softmax(x, d, first, n, action, weight):
    """d/dlogit_j of log pi(action) + weight H(pi), and H: 1[j = a] - pi_j - weight pi_j (log pi_j + H)."""
    entropy, log_total = softmax_entropy(x, first, n)
    for j in range(n):
        log_p = np.float64(x[first + j]) - log_total
        p = math.exp(log_p)
        d[first + j] = (1.0 if j == action else 0.0) - p - weight * p * (log_p + entropy)
    return entropy


@kernel
def seed_factors(x, d, first, settings, action, weight):
    """The same for entries that are chosen each by itself: log pi and H are sums over them."""
    entropy = 0.0
    for j in range(action.size):
        n_j = int(settings[ACTIONS + j])
        entropy += seed_softmax(x, d, first, n_j, int(action[j]), weight)
        first += n_j
    return entropy


@kernel
def seed_gaussian(x, d, first, n, settings, action, weight, sign):
    """The same for a diagonal Gaussian: outputs mu (k,) and p (k,), sigma = softplus(p). Returns (H, mean sigma).

    d log pi / d mu = (a - mu) / sigma^2;  d log pi / d sigma = ((a - mu)^2 - sigma^2) / sigma^3;
    d sigma / d p = sigmoid(p);  dH / d sigma = 1 / sigma;  H = sum log sigma + 1/2 log(2 pi e).

    Where actions are cut off at a bound, or rounded to one integer, all earn the same: no reward would call a policy
    back from there, and noise would lead it on. So a mean more than sigma, or half the distance of the bounds, outside
    of them (among integers, any that is outside) gets no gradient that would lead it, by the sign of delta, further
    out. Nor does a spread below the narrowest get one that would make it narrower, or a spread of more than half the
    distance of the bounds one that would make it wider. Elsewhere nothing changes.
    """
    k = n // 2
    entropy, spread = 0.0, 0.0
    for j in range(k):
        p = np.float64(x[first + k + j])
        sigma = softplus(p)
        slope = 1.0 / (1.0 + math.exp(-p))
        mu = np.float64(x[first + j])
        error = action[j] - mu
        move = error / (sigma * sigma)
        widen = slope * ((error * error - sigma * sigma) / (sigma * sigma * sigma) + weight / sigma)
        entry = ACTIONS + j * N_OF_ENTRY
        widest = 0.5 * (settings[entry + MOST] - settings[entry + LEAST])
        slack = 0.0 if settings[entry + WHOLE] != 0.0 else min(sigma, widest)
        above = mu > settings[entry + MOST] + slack and sign * move > 0.0
        below = mu < settings[entry + LEAST] - slack and sign * move < 0.0
        d[first + j] = 0.0 if above or below else move
        narrow = sigma < settings[entry + NARROWEST] and sign * widen < 0.0
        wide = sigma > widest and sign * widen > 0.0
        d[first + k + j] = 0.0 if narrow or wide else widen
        entropy += math.log(sigma) + 0.5 * math.log(2.0 * math.pi * math.e)
        spread += sigma
    return entropy, spread / k
