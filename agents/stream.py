"""Learning from a stream, one compiled call per environment step: learn from the transition, choose the action.

The recipe that all agents share. What an agent does with a transition, and how it chooses, are its own kernels, which
`specialise` puts in the places of `update`, `choose` and `choose_next`: see `StreamQ` for a short one.

What is fixed about endings: a terminal state is worth 0; at a time limit the value of the last state is bootstrapped;
after the update either ending clears the traces.
"""

from __future__ import annotations

import math

import numpy as np

from valueapprox.agents.choosing import outputs
from valueapprox.agents.layout import (
    ACTION,
    AVERAGE_REWARD,
    BAD_INPUT,
    DISCOUNTED,
    DIVERGED,
    DRAWS,
    EXPLORING,
    GAMMA,
    LAMBDA,
    LARGEST,
    LEARNED,
    LIMIT_IS_TERMINAL,
    MEAN_REWARD,
    MOST_ALIVE,
    N_LEARNED,
    NO_EPISODE,
    NORMALISE,
    NORMS_EVERY,
    OBSERVATIONS_SEEN,
    RESCALE_OUTPUTS,
    REWARD_MEAN,
    REWARD_SCALE,
    REWARD_SPREAD,
    REWARDS_SEEN,
    RUNNING,
    SCALAR_TRACE,
    SCALE,
    STATISTICS,
    STEPS,
    SUM_DELTA,
    SUM_DELTA_SQUARED,
    TIME,
    TIME_STEP,
    WATCH_EVERY,
    Agent,
    Frozen,
    Transition,
)
from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn.activations import SIGMOID, TANH
from valueapprox.nn.backprop import (
    HAT,
    HIDDEN_CODE,
    LAYER_NORM,
    LAYERS,
    NORM,
    PSI,
    SIZES,
    X,
    first_unit,
    forward,
    layer_size,
    seed_output,
)
from valueapprox.td.base import Net, clear, finite

improve_first = placeholder("improve_first")  # `improve` with the first network's optimizer
update = placeholder("update")  # update(agent, first, second, transition, bootstraps, work) -> (delta, persist)
choose = placeholder("choose")  # choose(agent, first, second, greedy) -> status
choose_next = placeholder("choose_next")  # choose_next(agent, first, second, persist) -> status, after an update

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
    """values[first : first + n] *= factor."""
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


# --- learning -------------------------------------------------------------------------------------------------------


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


@kernel(inline=True)
def value(net, output, unit):
    """The value of s at an output, in the present unit of rewards."""
    first, _ = outputs(net.spec)
    return np.float64(net.w.dtype.type(unit) * net.scratch[X, first + output])


@kernel(inline=True)
def rescale(net, unit):
    """Bring the values of a network to the present unit of rewards: those of s, and the weights. The trace stays."""
    if unit != 1.0:
        first, n = outputs(net.spec)
        multiply(net.scratch[X], first, n, net.w.dtype.type(unit))
        stretch_last_layer(net.w, net.spec, unit)


@template(inline=True)
def learn_from(net, output, t, delta):
    """z <- gamma lambda z + gradient of an output at s;  w <- w + step(delta z), if delta is finite. First network."""
    if finite(net.w.dtype.type(delta)):
        rescale(net, t.unit)
        seed_output(net.scratch, net.spec, output)
        improve_first(net, t.decay, delta, t.sampled)


@template(inline=True)
def arrive(observation, agent, first, second, greedy, learning):
    """Perceive a state and choose the action there: the start of an episode, or acting without learning."""
    perceive(observation, agent.settings, agent.memory, first.scratch, learning)
    forward(first.w, first.spec, first.scratch)
    return choose(agent, first, second, greedy)


@template(inline=True)
def learn(observation, reward, terminated, truncated, agent, first, second, work):
    """One step of the recipe: see `step`."""
    settings, memory, counts, sums = agent.settings, agent.memory, agent.counts, agent.sums
    if counts[RUNNING] == 0:
        return NO_EPISODE
    if not (usable(observation) and abs(reward) <= LARGEST):
        return BAD_INPUT
    dtype = first.w.dtype.type
    ended = terminated or truncated
    old_scale, draws, taken, exploring = memory[REWARD_SCALE], counts[DRAWS], counts[ACTION], counts[EXPLORING]
    copy_memory(memory, settings, 0, memory.size // 2)
    r = scale_reward(reward, ended, settings, memory)
    memory[TIME] += settings[TIME_STEP]
    perceive(observation, settings, memory, first.scratch_next, True)

    # A change of the reward's unit leaves values in the rewards' own as they are. The weights follow once delta is
    # known to be finite; the trace does not: it forgets faster than the unit changes.
    unit = 1.0
    if settings[RESCALE_OUTPUTS] != 0.0 and old_scale > 0.0:
        unit = old_scale / memory[REWARD_SCALE]
        memory[MEAN_REWARD] *= unit
        memory[SCALAR_TRACE] *= unit

    # The values of the next state, at the weights before the update.
    no_future = terminated or (truncated and settings[LIMIT_IS_TERMINAL] != 0.0)
    if not no_future:
        forward(first.w, first.spec, first.scratch_next)
        start, n = outputs(first.spec)
        multiply(first.scratch_next[X], start, n, dtype(unit))

    discount = 0.0 if no_future else settings[GAMMA]
    every = int(settings[NORMS_EVERY])
    sampled = every > 0 and counts[STEPS] % every == 0
    decay = settings[GAMMA] * settings[LAMBDA]
    transition = Transition(r - memory[MEAN_REWARD], reward, discount, decay, unit, taken, exploring, sampled)
    delta, persist = update(agent, first, second, transition, not no_future, work)
    if not finite(dtype(delta)):
        copy_memory(memory, settings, memory.size // 2, 0)
        counts[DRAWS], counts[ACTION], counts[EXPLORING] = draws, taken, exploring
        return DIVERGED

    if counts[STEPS] % WATCH_EVERY == 0:
        remember_units(first.spec, first.scratch)
        remember_units(second.spec, second.scratch)
    memory[MEAN_REWARD] += settings[AVERAGE_REWARD] * delta
    counts[STEPS] += 1
    sums[N_LEARNED] += 1.0
    sums[SUM_DELTA] += delta
    sums[SUM_DELTA_SQUARED] += delta * delta
    if ended:
        clear(first.z)
        clear(second.z)
        memory[SCALAR_TRACE] = 0.0
        counts[RUNNING] = 0
        return LEARNED

    # The next action, and what learning from it needs, at the weights after the update.
    for i in range(first.spec[SIZES]):
        first.scratch[X, i] = first.scratch_next[X, i]
    forward(first.w, first.spec, first.scratch)
    return choose_next(agent, first, second, persist)


# --- what Python calls ----------------------------------------------------------------------------------------------


@template
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
    agent = Agent(settings, memory, counts, key, action, sums)
    return arrive(observation, agent, Frozen(w, spec, here), Frozen(w_2, spec_2, here_2), False, True)


@template
def step(
    observation, reward, terminated, truncated, settings, memory, counts, key, action, sums,
    w, z, moments, scalars, count, hyper, spec, here, there, before, stats,
    w_2, z_2, moments_2, scalars_2, count_2, hyper_2, spec_2, here_2, there_2, before_2, stats_2, work,
):  # fmt: skip
    """Learn from the transition into `observation`, and choose the next action unless the episode ended.

    If the unit of scaled rewards has changed, all values are brought to the new one first.
    Returns a status. On BAD_INPUT nothing has changed; DIVERGED says that delta is not finite, and then nothing has
    changed either, or that the actor's outputs are not, after learning.
    """
    agent = Agent(settings, memory, counts, key, action, sums)
    first = Net(w, z, moments, scalars, count, hyper, spec, here, there, before, stats)
    second = Net(w_2, z_2, moments_2, scalars_2, count_2, hyper_2, spec_2, here_2, there_2, before_2, stats_2)
    return learn(observation, reward, terminated, truncated, agent, first, second, work)


@template
def act(
    observation, greedy, settings, memory, counts, key, action, sums,
    w, spec, here, w_2, spec_2, here_2,
):  # fmt: skip
    """Choose an action without learning: for evaluation, with scratch, counts and memory of its own."""
    if not usable(observation):
        return BAD_INPUT
    agent = Agent(settings, memory, counts, key, action, sums)
    return arrive(observation, agent, Frozen(w, spec, here), Frozen(w_2, spec_2, here_2), greedy, False)
