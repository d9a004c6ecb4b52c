"""Where everything lies in the arrays of an agent that learns from a stream, and what its kernels call them.

An agent is a set of arrays, of which the doors of its kernels get the same list in the same order: settings, memory,
counts, key, action and sums; then those of one or two networks (the second is the actor, or the correction h of QRC).
Inside, they are one `Agent` and two `Net`s. All random numbers of an agent come from key: number i is a function of
(key, i), so that counts says where the generator stands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from valueapprox.nn.backprop import ROWS

# Positions in settings.
(
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
    NORMS_EVERY,
    RESCALE_OUTPUTS,
    PERSISTENCE,
    N_SETTINGS,
) = range(18)

# Behind the settings: what the kernels know of the action space. Of a factored policy, how many values each entry has;
# of a Gaussian one, by entry, the place and size of its unit in the space, the bounds there and in the policy's own
# unit, whether actions are integers, and the spread below which their neighbours would hardly be tried.
ACTIONS = N_SETTINGS
ORIGIN, UNIT, LOW, HIGH, LEAST, MOST, WHOLE, NARROWEST, N_OF_ENTRY = range(9)

# Positions in memory: the reward's scaling (its divisor 0 while there is none), the average reward, QRC's scalar trace,
# the mean size of TD errors before its bias is corrected, the number from which the last action was drawn, the time,
# the mean reward and its mean square of late, before their bias is corrected, then the observation's statistics. Its
# second half is what the first was before the step, to go back to if the step is refused.
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
    RECENT_REWARD,
    RECENT_SQUARE,
    OBSERVATIONS_SEEN,
    STATISTICS,
) = range(14)

# Positions in counts: numbers drawn, steps learned from, the action to be taken, whether it is not the greedy one,
# and whether an episode runs.
DRAWS, STEPS, ACTION, EXPLORING, RUNNING, N_COUNTS = range(6)

# Positions in sums since the last log.
N_LEARNED, SUM_DELTA, SUM_DELTA_SQUARED, SUM_ENTROPY, SUM_SPREAD, N_SUMS = range(6)

LEARNED, BAD_INPUT, DIVERGED, NO_EPISODE = range(4)  # status
LARGEST = 1e30  # observation or reward
UNDECIDED, DECIDED = 0.8, 0.5  # share of the largest entropy at which they persist most, and not at all
MOST_ALIVE = ROWS  # one more row of the scratch for s, see `remember_units`
WATCH_EVERY = 3  # steps; each would cost 1 % in a compiled world


class Agent(NamedTuple):
    """What an agent has beside its networks."""

    settings: np.ndarray
    memory: np.ndarray
    counts: np.ndarray
    key: np.uint64
    action: np.ndarray
    sums: np.ndarray


class Frozen(NamedTuple):
    """A network that only acts."""

    w: np.ndarray
    spec: np.ndarray
    scratch: np.ndarray


class Transition(NamedTuple):
    """What an agent's update is told of the transition, beside s and s' in the networks' scratch."""

    r: float  # scaled, the mean reward taken off
    reward: float  # as it came
    discount: float  # gamma; 0 where s' is terminal and there is nothing to bootstrap
    decay: float  # gamma lambda
    unit: float  # by which all values are to be multiplied, as the unit of rewards has changed
    taken: int  # the action
    exploring: int  # whether it was not the greedy one
    sampled: bool  # whether norms are measured
