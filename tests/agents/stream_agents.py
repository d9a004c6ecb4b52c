"""What the tests of control agents share: the agents, their lives, a second implementation."""

import math

import numpy as np
from gymnasium import spaces
from scipy import stats

from valueapprox.agents import QRC, ExpectedSarsa, Sarsa, StreamAC, StreamQ, StreamTD
from valueapprox.agents import layout as kernels

SPACE = spaces.Box(-10.0, 10.0, (3,), np.float64)


#: For states that are one of six, `np.eye(6)[state]`: of the networks' dtype, where Discrete(6) gives float32.
SIX = spaces.Box(0.0, 1.0, (6,), np.float64)


THREE = spaces.Discrete(3)


PAIRS = spaces.MultiDiscrete([3, 2], start=[1, -1])


PLANE = spaces.Box(-np.inf, np.inf, (2,), np.float64)


PLAIN = {"normalise_observations": False, "scale_rewards": False, "layer_norm": False, "activation": "tanh"}


def wander(observation, rng):
    """A policy on the plane. A whole number takes half of 64 random bits; the generator keeps the other half."""
    return rng.normal(size=2) + rng.integers(3)


#: Every agent: its class, its space of actions, its own settings.
AGENTS = {
    "actor-critic": (StreamAC, THREE, {"entropy": 0.1}),
    "gaussian": (StreamAC, PLANE, {"entropy": 0.1}),
    "factored": (StreamAC, PAIRS, {"entropy": 0.1}),
    "q": (StreamQ, THREE, {"epsilon": (0.5, 0.5, 0)}),
    "q, cut before": (StreamQ, THREE, {"epsilon": (0.5, 0.5, 0), "cut": "before"}),
    "q, softmax": (StreamQ, THREE, {"temperature": 0.3}),
    "q, limits are terminal": (StreamQ, THREE, {"epsilon": (0.2, 0.2, 0), "bootstrap_at_limit": False}),
    "sarsa": (Sarsa, THREE, {"epsilon": (0.9, 0.1, 60)}),
    "expected sarsa": (ExpectedSarsa, THREE, {"epsilon": (0.9, 0.1, 60)}),
    "expected sarsa, softmax": (ExpectedSarsa, THREE, {"temperature": 0.3}),
    "qrc": (QRC, THREE, {"epsilon": (0.5, 0.5, 0)}),
    "qrc, cut before": (QRC, THREE, {"epsilon": (0.5, 0.5, 0), "cut": "before", "regularise": 0.3}),
    "differential sarsa": (Sarsa, THREE, {"epsilon": (0.2, 0.2, 0), "average_reward": 0.02, "gamma": 1.0}),
    "differential actor-critic": (StreamAC, THREE, {"average_reward": 0.02, "gamma": 1.0}),
    "td": (StreamTD, THREE, {}),
    "differential td, a policy": (StreamTD, PLANE, {"policy": wander, "average_reward": 0.02, "gamma": 1.0}),
}


#: One of each algorithm.
ALGORITHMS = ("actor-critic", "gaussian", "q", "sarsa", "expected sarsa", "qrc", "td")


VALUE_BASED = ("q", "sarsa", "expected sarsa", "qrc")


ACTORS = ("actor-critic", "gaussian")


STATE_VALUES = (*ACTORS, "td")


def make(name, observations=SPACE, **settings):
    kind, actions, own = AGENTS[name]
    settings = {"hidden": (5,), "gamma": 0.9, "lam": 0.8, "dtype": "float64", "init": "lecun_normal"} | own | settings
    return kind(observations, settings.pop("actions", actions), **settings)


def life(n_steps, seed=0, ends=0.1, n_inputs=3, dtype=np.float64):
    """Calls of an agent: episodes of `n_steps` random transitions in all, some terminated, some cut.

    An agent is compiled for each type of its weights and of its observations: where these do not matter, tests give it
    observations of the type that its weights have.
    """
    rng = np.random.default_rng(seed)

    def observed(offset, scale):
        return (offset + scale * rng.normal(size=n_inputs)).astype(dtype)

    calls = [("start", observed(0.0, 1.0))]
    for _ in range(n_steps):
        reward, observation, u = float(rng.normal()), observed(1.0, 2.0), rng.random()
        if u < 2 * ends:
            calls.append(("end", reward, observation, bool(u < ends)))
            calls.append(("start", observed(0.0, 1.0)))
        else:
            calls.append(("step", reward, observation))
    return calls


def live(agent, calls):
    """What the agent answers to each call."""
    return [getattr(agent, name)(*arguments) for name, *arguments in calls]


def snapshot(agent):
    """A copy of all that was learned."""
    return {name: array.copy() for name, array in agent.state_dict().items()}


def assert_same(a, b, but=()):
    assert a.keys() == b.keys()
    for name in a.keys() - set(but):
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def last_delta(agent, *call):
    """The TD error of one call."""
    agent.sums[:] = 0.0
    live(agent, [call])
    assert agent.sums[kernels.N_LEARNED] == 1
    return agent.sums[kernels.SUM_DELTA]


def inputs(agent):
    """The state in which the agent is about to act, as its network sees it."""
    return agent.first.scratch[0, : agent.first.net.n_inputs].copy()


def log_policy(outputs, action, gaussian):
    """Log pi(action); works for complex outputs too."""
    if gaussian:
        mean, spread = outputs[: action.size], np.log(1 + np.exp(outputs[action.size :]))
        return (-((action - mean) ** 2) / (2 * spread**2) - np.log(spread) - 0.5 * math.log(2 * math.pi)).sum()
    if np.ndim(action):  # entries chosen each by itself, of three and of two values
        return sum(log_policy(o, int(a), False) for o, a in zip(np.split(outputs, [3]), action, strict=True))
    return (outputs - np.log(np.exp(outputs).sum()))[action]


def entropy_of(outputs, gaussian, several=False):
    if several:
        return sum(entropy_of(o, False) for o in np.split(outputs, [3]))
    if gaussian:
        return (np.log(np.log(1 + np.exp(outputs[outputs.size // 2 :]))) + 0.5 * math.log(2 * math.pi * math.e)).sum()
    log_p = outputs - np.log(np.exp(outputs).sum())
    return -(np.exp(log_p) * log_p).sum()


def policy(values, settings, n_steps):
    """The probabilities of acting by these action values."""
    if settings.get("temperature"):
        weights = np.exp(values / settings["temperature"])
        return weights / weights.sum()
    first, last, steps = settings["epsilon"]
    epsilon = first + (last - first) * min(1.0, n_steps / steps) if steps else last
    greedy = values == values.max()
    return epsilon / values.size + (1 - epsilon) * greedy / greedy.sum()


def frequencies(agent, n=6000, s=(0.0, 0.0, 0.0)):
    """How often each action was chosen at one state."""
    s = np.array(s)
    return np.bincount([agent.start(s) for _ in range(n)], minlength=3)


def assert_frequencies(counts, probabilities):
    probabilities = np.asarray(probabilities)
    possible = probabilities > 0
    assert not counts[~possible].any()
    if np.count_nonzero(possible) > 1:
        assert stats.chisquare(counts[possible], counts.sum() * probabilities[possible]).pvalue > 1e-4
