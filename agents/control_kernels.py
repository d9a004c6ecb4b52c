"""Learning agents for control, one compiled call per environment step: learn from the transition, choose the action.

An agent is a set of arrays, of which kernels get the same list in the same order. Of one or two networks (the second is
the actor, or the correction h of QRC): w, z (P,), moments, scalars, count and hyper as in `valueapprox.optim`,
spec, and scratch twice, for s (here) and for s' (there). Of the agent: settings, memory and counts, by the positions
below, and key, from which all its random numbers come: number i is a function of (key, i), so that counts says where
the generator stands.

What is fixed about endings: a terminal state is worth 0; at a time limit the value of the last state is bootstrapped;
after the update either ending clears the traces.
"""

from __future__ import annotations

import math

import numpy as np

from valueapprox.activations import SIGMOID, TANH
from valueapprox.backprop import (
    HAT,
    HIDDEN_CODE,
    LAYER_NORM,
    LAYERS,
    NORM,
    PSI,
    ROWS,
    SIZES,
    D,
    X,
    backward,
    first_unit,
    forward,
    layer_size,
    seed_output,
    store_gradient,
)
from valueapprox.batch import mixed
from valueapprox.compiling import kernel, placeholder, template
from valueapprox.td import finite, sample_norms

Q, SARSA, EXPECTED_SARSA, ACTOR_CRITIC, GAUSSIAN_ACTOR_CRITIC, FACTORED_ACTOR_CRITIC, QRC, TD = range(8)

# Positions in settings.
(
    ALGORITHM,
    GAMMA,
    LAMBDA,
    ENTROPY,
    CUT_BEFORE,
    EPSILON_FIRST,
    EPSILON_LAST,
    EPSILON_STEPS,
    TEMPERATURE,
    AVERAGE_REWARD,
    NORMALISE,
    SCALE,
    TIME_STEP,
    LIMIT_IS_TERMINAL,
    REGULARISE,
    SAMPLE_EVERY,
    KEEP_VALUES,
    PERSISTENCE,
    N_SETTINGS,
) = range(19)

# Behind the settings: what the kernels know of the action space. Of a factored policy, how many values each entry has;
# of a Gaussian one, by entry, the place and size of its unit in the space, the bounds there and in the policy's own
# unit, whether actions are integers, and the spread below which their neighbours would hardly be tried.
ACTIONS = N_SETTINGS
ORIGIN, UNIT, LOW, HIGH, LEAST, MOST, WHOLE, NARROWEST, N_OF_ENTRY = range(9)

# Positions in memory: the reward's scaling (its divisor 0 while there is none), the average reward, QRC's scalar trace,
# the mean size of TD errors before its bias is corrected, the number from which the last action was drawn, the time,
# then the observation's statistics. Its second half is what the first was before the step, to go back to if the step is
# refused.
(
    DISCOUNTED,
    REWARDS_SEEN,
    REWARD_MEAN,
    REWARD_SPREAD,
    REWARD_SCALE,
    MEAN_REWARD,
    SCALAR_TRACE,
    ERROR_SIZE,
    DRAWN,
    TIME,
    OBSERVATIONS_SEEN,
    STATISTICS,
) = range(12)

# Positions in counts: numbers drawn, steps learned from, the action to be taken, whether it is not the greedy one,
# and whether an episode runs.
DRAWS, STEPS, ACTION, EXPLORING, RUNNING, N_COUNTS = range(6)

# Positions in sums since the last log.
N_LEARNED, SUM_DELTA, SUM_DELTA_SQUARED, SUM_ENTROPY, SUM_SPREAD, N_SUMS = range(6)

LEARNED, BAD_INPUT, DIVERGED, NO_EPISODE = range(4)  # status
LARGEST = 1e30  # observation or reward
ERROR_DECAY = 0.9998  # the mean size of TD errors is over about the last 5000
LITTLE_ERROR = 0.05  # in the unit of scaled rewards: below it a stream-ac's actions begin to persist
UNDECIDED, DECIDED = 0.8, 0.5  # share of the largest entropy at which they persist most, and not at all
MOST_ALIVE = ROWS  # one more row of the scratch for s, see `remember_units`
WATCH_EVERY = 3  # steps; each would cost 1 % in a compiled world
TO_53_BITS: np.uint64 = np.uint64(11)

accumulate_and_step = placeholder("accumulate_and_step")  # of the optimizer of one network
# `improve` and the optimizer's step, for the first network and for the second.
improve_first, improve_second = placeholder("improve_first"), placeholder("improve_second")
step_first, step_second = placeholder("step_first"), placeholder("step_second")


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


# --- observations and rewards ---------------------------------------------------------------------------------------


@kernel
def perceive(observation, settings, memory, scratch, learning):
    """Put the state at a network's inputs: the observation, normalised if asked, and the time feature behind it.

    Welford's running mean and variance in float64, first renewed and then used:
    n += 1;  mean' = mean + (o - mean) / n;  spread += (o - mean)(o - mean');  x = (o - mean') / sqrt(spread / (n - 1)
    + 1e-8), the variance 1 while n < 2. They are frozen unless `learning`.
    """
    d = observation.size
    normalise = settings[NORMALISE] != 0.0
    if normalise and learning:
        memory[OBSERVATIONS_SEEN] += 1.0
    n = memory[OBSERVATIONS_SEEN]
    for i in range(d):
        o = np.float64(observation[i])
        if normalise:
            mean = STATISTICS + i
            spread = STATISTICS + d + i
            if learning:
                before = memory[mean]
                memory[mean] += (o - before) / n
                memory[spread] += (o - before) * (o - memory[mean])
            variance = memory[spread] / (n - 1.0) if n > 1.0 else 1.0
            o = (o - memory[mean]) / math.sqrt(variance + 1e-8)
        scratch[X, i] = o
    if settings[TIME_STEP] > 0.0:
        scratch[X, d] = memory[TIME]


@kernel
def scale_reward(reward, ended, settings, memory):
    """r / sqrt(var(u) + 1e-8), where u <- gamma u + r is the discounted sum of rewards, begun anew at an ending.

    Welford's variance of u; no mean is taken off. While all u are equal r stays as it is. (Stream-x: the trace is cut
    before the last reward of an episode is added.)
    """
    if settings[SCALE] == 0.0:
        return reward
    carried = 0.0 if ended else settings[GAMMA] * memory[DISCOUNTED]
    memory[DISCOUNTED] = carried + reward
    memory[REWARDS_SEEN] += 1.0
    n, before = memory[REWARDS_SEEN], memory[REWARD_MEAN]
    memory[REWARD_MEAN] += (memory[DISCOUNTED] - before) / n
    memory[REWARD_SPREAD] += (memory[DISCOUNTED] - before) * (memory[DISCOUNTED] - memory[REWARD_MEAN])
    if not memory[REWARD_SPREAD] > 0.0:
        return reward
    memory[REWARD_SCALE] = math.sqrt(memory[REWARD_SPREAD] / (n - 1.0) + 1e-8)
    return reward / memory[REWARD_SCALE]


@kernel(inline=True)
def multiply(values, first, n, factor):
    """Values[first : first + n] *= factor."""
    for p in range(first, first + n):
        values[p] *= factor


@kernel
def stretch_last_layer(w, spec, factor):
    """Multiply all outputs of a network by a factor, by its last layer."""
    size = np.int64(layer_size(spec, spec[LAYERS] - 1))
    multiply(w, w.size - size, size, w.dtype.type(factor))


@kernel
def usable(observation):
    """Whether no entry is NaN, infinite, or so large that a variance, or a weight in float32, could overflow."""
    for i in range(observation.size):  # noqa: SIM110  (kernels have no generators)
        if not abs(np.float64(observation[i])) <= LARGEST:
            return False
    return True


# --- choosing actions -----------------------------------------------------------------------------------------------


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


@kernel
def choose_by_policy(algorithm, values, first, n, settings, memory, counts, key, greedy, persist, action):
    """An action from the actor's outputs: softmax of its logits, or a Gaussian of means and pre-spreads.

    `greedy` takes the likeliest. A discrete action is drawn by the inverse of the distribution function, from a number
    that may persist. What has several entries (k,) is written to `action`: the index of each entry's value, or a
    continuous action in the policy's own unit, not cut off at its bounds. Of these nothing persists.
    """
    if algorithm == ACTOR_CRITIC:
        if greedy:
            counts[ACTION] = best_action(values, first, n, key, counts)
            return
        if not (persist > 0.0 and n > 1 and draw(key, counts) < persistence(values, first, n, persist)):
            memory[DRAWN] = draw(key, counts)
        counts[ACTION] = softmax_action(values, first, n, 1.0, memory[DRAWN])
        return
    if algorithm == FACTORED_ACTOR_CRITIC:
        for j in range(action.size):
            n_j = int(settings[ACTIONS + j])
            if greedy:
                action[j] = best_action(values, first, n_j, key, counts)
            else:
                action[j] = softmax_action(values, first, n_j, 1.0, draw(key, counts))
            first += n_j
        return
    k = n // 2
    for j in range(k):
        action[j] = np.float64(values[first + j])
        if not greedy:
            action[j] += softplus(np.float64(values[first + k + j])) * draw_normal(key, counts)


# --- the actor's gradient -------------------------------------------------------------------------------------------


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


# --- learning -------------------------------------------------------------------------------------------------------


@kernel
def clear(z):
    """z <- 0."""
    for p in range(z.size):
        z[p] = z.dtype.type(0)


@kernel
def copy_memory(memory, settings, source, target):
    """Copy one half of memory, from `source` on, onto the other; without statistics if there are none."""
    for i in range(memory.size // 2 if settings[NORMALISE] != 0.0 else STATISTICS):
        memory[target + i] = memory[source + i]


@kernel(inline=True)
def remember_units(spec, scratch):
    """Keep for each hidden unit the pre-activation at which it was most alive; the log says how many never were.

    That is the largest psi, as the activation sees it: behind LayerNorm if there is one. For sigmoid and tanh, which
    are flat on both sides, it is the largest -abs(psi).
    """
    psi = scratch[HAT] if spec[NORM] == LAYER_NORM else scratch[PSI]
    best = scratch[MOST_ALIVE]
    start, stop = first_unit(spec, 1), first_unit(spec, spec[LAYERS])  # with the gaps between layers, where all is 0
    if spec[HIDDEN_CODE] in (SIGMOID, TANH):
        for j in range(start, stop):
            best[j] = max(best[j], -abs(psi[j]))
    else:
        for j in range(start, stop):
            best[j] = max(best[j], psi[j])


@template(inline=True)
def improve(w, z, moments, scalars, count, hyper, spec, scratch, before, stats, decay, delta, sampled):
    """`backward`, then z <- decay z + gradient and the optimizer's step along delta z; norms for the log if asked."""
    backward(w, spec, scratch, False)
    if sampled:
        for p in range(w.size):
            before[p] = w[p]
    accumulate_and_step(w, z, w.dtype.type(delta), w.dtype.type(decay), spec, scratch, moments, scalars, count, hyper)
    if sampled:
        sample_norms(w, z, before, spec, scratch, stats)


@template
def learn_corrected(
    settings, memory, delta, bootstrap, h, action, best_next,
    w, z, moments, scalars, count, hyper, spec, here, there,
    w_h, z_h, moments_h, scalars_h, count_h, hyper_h, spec_h, here_h, before_h, stats_h, work, sampled,
):  # fmt: skip
    """QRC(lambda) with gradient eligibility traces (eqs. 26 to 28 of arXiv 2507.09087), TDRC's form.

    e <- gamma lambda e + h;  z <- gamma lambda z + grad q;  z_h <- gamma lambda z_h + grad h
    w <- w + step(delta z - h grad q - e grad delta),  grad delta = gamma grad max q(s', .) - grad q
    w_h <- w_h + step(delta z_h - h grad h - beta w_h)
    """
    dtype = w.dtype.type
    decay = settings[GAMMA] * settings[LAMBDA]
    g, u, g_next = work[0, : w.size], work[1, : w.size], work[2, : w.size]
    seed_output(here, spec, action)
    backward(w, spec, here, False)
    store_gradient(g, spec, here)
    if bootstrap != 0.0:
        seed_output(there, spec, best_next)
        backward(w, spec, there, False)
        store_gradient(g_next, spec, there)
    else:
        clear(g_next)
    memory[SCALAR_TRACE] = decay * memory[SCALAR_TRACE] + h
    e = dtype(memory[SCALAR_TRACE])
    keep, error, correction, discount = dtype(decay), dtype(delta), dtype(h), dtype(bootstrap)
    for p in range(w.size):
        z[p] = keep * z[p] + g[p]
        u[p] = error * z[p] - correction * g[p] - e * (discount * g_next[p] - g[p])
    step_first(w, u, dtype(1), spec, moments, scalars, count, hyper)
    g_h, u_h = work[0, : w_h.size], work[1, : w_h.size]
    seed_output(here_h, spec_h, action)
    backward(w_h, spec_h, here_h, False)
    store_gradient(g_h, spec_h, here_h)
    beta = dtype(settings[REGULARISE])
    for p in range(w_h.size):
        z_h[p] = keep * z_h[p] + g_h[p]
        u_h[p] = error * z_h[p] - correction * g_h[p] - beta * w_h[p]
    if sampled:
        for p in range(w_h.size):
            before_h[p] = w_h[p]
    step_second(w_h, u_h, dtype(1), spec_h, moments_h, scalars_h, count_h, hyper_h)
    if sampled:
        sample_norms(w_h, z_h, before_h, spec_h, here_h, stats_h)


@kernel
def arrive(observation, settings, memory, counts, key, action, w, spec, here, w_2, spec_2, here_2, greedy, learning):
    """Perceive a state and choose the action there: the start of an episode, or acting without learning."""
    algorithm = int(settings[ALGORITHM])
    perceive(observation, settings, memory, here, learning)
    forward(w, spec, here)
    return choose(algorithm, settings, memory, counts, key, action, spec, here, w_2, spec_2, here_2, greedy, 0.0)


@kernel(inline=True)
def choose(algorithm, settings, memory, counts, key, action, spec, here, w_2, spec_2, here_2, greedy, persist):
    """The action at the state in `here`, whose first network has run; DIVERGED if the actor gives NaN or infinity.

    For TD there is nothing to choose: its actions come from elsewhere.
    """
    status = LEARNED
    if algorithm == TD:
        return status
    if algorithm in (ACTOR_CRITIC, GAUSSIAN_ACTOR_CRITIC, FACTORED_ACTOR_CRITIC):
        for i in range(spec_2[SIZES]):
            here_2[X, i] = here[X, i]
        forward(w_2, spec_2, here_2)
        first, n = outputs(spec_2)
        for j in range(n):
            if not finite(here_2[X, first + j]):
                status = DIVERGED
        if status == LEARNED:
            choose_by_policy(algorithm, here_2[X], first, n, settings, memory, counts, key, greedy, persist, action)
    else:
        first, n = outputs(spec)
        choose_by_value(here[X], first, n, settings, counts, key, greedy)
    return status


@kernel
def begin(
    observation, settings, memory, counts, key, action, sums,
    w, z, moments, scalars, count, hyper, spec, here, there, before, stats,
    w_2, z_2, moments_2, scalars_2, count_2, hyper_2, spec_2, here_2, there_2, before_2, stats_2, work,
):  # fmt: skip
    """Begin an episode and choose its first action; BAD_INPUT, and nothing changed, if the observation is no use."""
    if not usable(observation):
        return BAD_INPUT
    if counts[RUNNING] != 0:  # the last episode was left without an ending
        clear(z)
        clear(z_2)
        memory[SCALAR_TRACE] = memory[DISCOUNTED] = 0.0
    memory[TIME] = -0.5
    counts[RUNNING] = 1
    return arrive(observation, settings, memory, counts, key, action, w, spec, here, w_2, spec_2, here_2, False, True)


@template
def step(
    observation, reward, terminated, truncated, settings, memory, counts, key, action, sums,
    w, z, moments, scalars, count, hyper, spec, here, there, before, stats,
    w_2, z_2, moments_2, scalars_2, count_2, hyper_2, spec_2, here_2, there_2, before_2, stats_2, work,
):  # fmt: skip
    """Learn from the transition into `observation`, and choose the next action unless the episode ended.

    delta = r - rbar + gamma V(s') - v(s), with V(s') = v(s'), max q, q(s', a') or sum pi q by the algorithm.
    If the unit of scaled rewards has changed, all values are brought to the new one first.
    Where the mean |delta| is below LITTLE_ERROR, an actor-critic's next action may be drawn from the last one's number.
    Returns a status. On BAD_INPUT nothing has changed; DIVERGED says that delta is not finite, and then nothing has
    changed either, or that the actor's outputs are not, after learning.
    """
    if counts[RUNNING] == 0:
        return NO_EPISODE
    if not (usable(observation) and abs(reward) <= LARGEST):
        return BAD_INPUT
    dtype = w.dtype.type
    algorithm = int(settings[ALGORITHM])
    policy_based = algorithm in (ACTOR_CRITIC, GAUSSIAN_ACTOR_CRITIC, FACTORED_ACTOR_CRITIC)
    state_value = policy_based or algorithm == TD  # one output, v(s)
    ended = terminated or truncated
    old_scale, draws = memory[REWARD_SCALE], counts[DRAWS]
    copy_memory(memory, settings, 0, memory.size // 2)
    r = scale_reward(reward, ended, settings, memory)
    memory[TIME] += settings[TIME_STEP]
    perceive(observation, settings, memory, there, True)

    # A change of the reward's unit leaves values in the rewards' own as they are. The weights follow once delta is
    # known to be finite; the trace does not: it forgets faster than the unit changes.
    first, n = outputs(spec)
    unit = 1.0
    if settings[KEEP_VALUES] != 0.0 and old_scale > 0.0:
        unit = old_scale / memory[REWARD_SCALE]
        memory[MEAN_REWARD] *= unit
        memory[SCALAR_TRACE] *= unit

    # The value of the next state, at the weights before the update.
    taken, exploring = counts[ACTION], counts[EXPLORING]
    v_next, best_next = 0.0, 0
    no_future = terminated or (truncated and settings[LIMIT_IS_TERMINAL] != 0.0)
    bootstrap = 0.0 if no_future else settings[GAMMA]
    chosen = False
    if not no_future:
        forward(w, spec, there)
        multiply(there[X], first, n, dtype(unit))
        v_next = np.float64(there[X, first])
        if not state_value:
            if algorithm == SARSA:
                choose_by_value(there[X], first, n, settings, counts, key, False)
                chosen = True
                v_next = np.float64(there[X, first + counts[ACTION]])
            elif algorithm == EXPECTED_SARSA:
                v_next = expected_value(there[X], first, n, settings, counts)
            else:
                v_next = np.float64(best_value(there[X], first, n))
                for a in range(n):
                    if there[X, first + a] == dtype(v_next):
                        best_next = a
    v = np.float64(dtype(unit) * (here[X, first] if state_value else here[X, first + taken]))
    delta = r - memory[MEAN_REWARD] + bootstrap * v_next - v
    if not finite(dtype(delta)):
        copy_memory(memory, settings, memory.size // 2, 0)
        counts[DRAWS], counts[ACTION], counts[EXPLORING] = draws, taken, exploring
        return DIVERGED

    # Learn.
    if unit != 1.0:
        multiply(here[X], first, n, dtype(unit))
        stretch_last_layer(w, spec, unit)
        if algorithm == QRC:
            stretch_last_layer(w_2, spec_2, unit)
    watkins = exploring != 0 and algorithm in (Q, QRC)
    if watkins and settings[CUT_BEFORE] != 0.0:
        clear(z)
        clear(z_2)
        memory[SCALAR_TRACE] = 0.0
    decay, persist = settings[GAMMA] * settings[LAMBDA], 0.0
    every = int(settings[SAMPLE_EVERY])
    sampled = every > 0 and counts[STEPS] % every == 0
    if algorithm == QRC:
        for i in range(spec[SIZES]):
            here_2[X, i] = here[X, i]
        forward(w_2, spec_2, here_2)
        h = np.float64(here_2[X, first + taken])
        if sampled:
            for p in range(w.size):
                before[p] = w[p]
        learn_corrected(
            settings, memory, delta, bootstrap, h, taken, best_next,
            w, z, moments, scalars, count, hyper, spec, here, there,
            w_2, z_2, moments_2, scalars_2, count_2, hyper_2, spec_2, here_2, before_2, stats_2, work, sampled,
        )  # fmt: skip
        if sampled:
            sample_norms(w, z, before, spec, here, stats)
    else:
        seed_output(here, spec, 0 if state_value else taken)
        if policy_based:
            first_2, n_2 = outputs(spec_2)
            sign = 1.0 if delta > 0.0 else (-1.0 if delta < 0.0 else 0.0)
            weight = settings[ENTROPY] * sign
            if algorithm == ACTOR_CRITIC:
                entropy = seed_softmax(here_2[X], here_2[D], first_2, n_2, taken, weight)
            elif algorithm == FACTORED_ACTOR_CRITIC:
                entropy = seed_factors(here_2[X], here_2[D], first_2, settings, action, weight)
            else:
                entropy, spread = seed_gaussian(here_2[X], here_2[D], first_2, n_2, settings, action, weight, sign)
                sums[SUM_SPREAD] += spread
            sums[SUM_ENTROPY] += entropy
            memory[ERROR_SIZE] = ERROR_DECAY * memory[ERROR_SIZE] + (1.0 - ERROR_DECAY) * abs(delta)
            mean_error = memory[ERROR_SIZE] / (1.0 - ERROR_DECAY ** (counts[STEPS] + 1))
            persist = settings[PERSISTENCE] * max(0.0, 1.0 - mean_error / LITTLE_ERROR)
            improve_second(
                w_2, z_2, moments_2, scalars_2, count_2, hyper_2, spec_2, here_2, before_2, stats_2,
                decay, delta, sampled,
            )  # fmt: skip
        improve_first(w, z, moments, scalars, count, hyper, spec, here, before, stats, decay, delta, sampled)
    if counts[STEPS] % WATCH_EVERY == 0:
        remember_units(spec, here)
        remember_units(spec_2, here_2)
    memory[MEAN_REWARD] += settings[AVERAGE_REWARD] * delta
    counts[STEPS] += 1
    sums[N_LEARNED] += 1.0
    sums[SUM_DELTA] += delta
    sums[SUM_DELTA_SQUARED] += delta * delta

    # Cut the traces.
    if ended or (watkins and settings[CUT_BEFORE] == 0.0):
        clear(z)
        clear(z_2)
        memory[SCALAR_TRACE] = 0.0
    if ended:
        counts[RUNNING] = 0
        return LEARNED

    # The next action, and what learning from it needs, at the weights after the update.
    for i in range(spec[SIZES]):
        here[X, i] = there[X, i]
    forward(w, spec, here)
    if chosen:
        counts[EXPLORING] = 1 if here[X, first + counts[ACTION]] < best_value(here[X], first, n) else 0
        return LEARNED
    return choose(algorithm, settings, memory, counts, key, action, spec, here, w_2, spec_2, here_2, False, persist)


@kernel
def act(
    observation, greedy, settings, memory, counts, key, action,
    w, spec, here, w_2, spec_2, here_2,
):  # fmt: skip
    """Choose an action without learning: for evaluation, with scratch, counts and memory of its own."""
    if not usable(observation):
        return BAD_INPUT
    return arrive(observation, settings, memory, counts, key, action, w, spec, here, w_2, spec_2, here_2, greedy, False)
