"""What an agent that acts can be exported as: its normalisers, networks, values in the rewards' unit, its action."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from valueapprox.agents import layout
from valueapprox.agents.base import MULTI, ControlAgent, Learner
from valueapprox.agents.spaces import Decoder, by_index, continuous, factors
from valueapprox.agents.td import StreamTD
from valueapprox.export.graph import (
    Affine,
    ArgMax,
    Clip,
    Forward,
    Graph,
    Output,
    Rows,
    Slice,
    Softmax,
    Softplus,
    Standardise,
    Step,
)
from valueapprox.nn.scaling import Scaling

__all__ = ["describe_agent", "normalisation"]

EPSILON = 1e-8  # added to a variance, see `stream.perceive`
NO_UPDATE = "an agent that acts is exported as it acts; what goes on learning is a value function"


def normalisation(agent: ControlAgent) -> tuple[Scaling, float]:
    """The frozen normalisers of an agent: of the networks' inputs (d,), and what values are multiplied with.

    With a time feature the last input is the number of steps since the episode's start, which becomes the time from
    -0.5 to 0.5. Values are of rewards as they come once they are multiplied.
    """
    settings, memory, d = agent.settings, agent.memory, agent.encode.size
    inputs = Scaling.none(agent.first.net.n_inputs)
    if settings[layout.NORMALISE]:
        n, start = memory[layout.OBSERVATIONS_SEEN], layout.STATISTICS
        spread = memory[start + d : start + 2 * d]
        inputs.mean[:d] = memory[start : start + d]
        inputs.scale[:d] = np.sqrt((spread / (n - 1.0) if n > 1.0 else np.ones(d)) + EPSILON)
    if settings[layout.TIME_STEP] > 0.0:
        inputs.mean[d], inputs.scale[d] = 0.5 / settings[layout.TIME_STEP], 1.0 / settings[layout.TIME_STEP]
    return inputs, float(memory[layout.REWARD_SCALE]) or 1.0


def describe_agent(agent: ControlAgent) -> Graph:
    """What can be exported of an agent: outputs in the environment's own units, from observations as they come.

    Agents of action values have `action_values` (n,), and `action`, the best one. Actor-critics have `value`, and of
    discrete actions `action_probabilities` and `action`, the likeliest; of continuous ones `action_mean` and
    `action_std`, before actions are cut off at their bounds, and `action`, the mean within them. `StreamTD` has
    `value`. A Discrete observation is one-hot; any other is flat, row by row.
    """
    scaling, unit = normalisation(agent)
    seen = (Standardise(scaling),)
    first = (*seen, _forward(agent.first, agent.name))
    n = agent.first.net.n_outputs
    in_unit = (*first, Affine(np.zeros(n), np.full(n, unit)))
    if isinstance(agent, StreamTD):
        outputs = [Output("value", "v(s), the expected discounted sum of rewards", in_unit)]
    elif agent.learns_policy:
        outputs = [Output("value", "v(s), the critic's expected discounted sum of rewards", in_unit)]
        outputs += _policy(agent, (*seen, _forward(agent.second, agent.second_name)))
    else:
        actions = by_index(agent.action_space)
        assert actions is not None, "agents of action values take no other space"
        each = tuple(str(row) for row in _table(actions).tolist())
        outputs = [
            Output("action_values", "q(s, a), the expected discounted sum of rewards of each action", in_unit, each)
        ]
        outputs.append(Output("action", "the action of the highest value", (*first, *_chosen(actions))))
    about = f"{type(agent).__name__} after {agent.n_steps:,} steps"
    if agent.settings[layout.TIME_STEP] > 0.0:
        about += "; the last entry of observation is the number of steps since the episode's start"
    return Graph(agent.first.net.n_inputs, tuple(outputs), about, no_update=NO_UPDATE)


def _forward(learner: Learner, name: str) -> Forward:
    return Forward(name, learner.net, learner.w.copy())


def _table(actions: Decoder) -> np.ndarray:
    """The actions of a space by their number, (n, entries)."""
    rows = [actions.decode(index, np.zeros(0)) for index in range(actions.n_outputs)]
    return np.array(rows, np.int64).reshape(len(rows), -1)


def _chosen(actions: Decoder) -> tuple[Step, ...]:
    """From the values of all actions to the action."""
    table, n = _table(actions), actions.n_outputs
    if table.shape[1] == 1 and np.array_equal(table[:, 0], table[0, 0] + np.arange(n)):
        return (ArgMax((n,), (int(table[0, 0]),)),)
    return ArgMax((n,), (0,)), Rows(table)


def _policy(agent: ControlAgent, actor: tuple[Step, ...]) -> list[Output]:
    """The outputs of an actor."""
    space = agent.action_space
    if isinstance(space, spaces.Box):
        entries = continuous(space).layout.reshape(-1, layout.N_OF_ENTRY)
        origin, unit, k = entries[:, layout.ORIGIN], entries[:, layout.UNIT], len(entries)
        mean = (*actor, Slice(0, k), Affine(origin, unit))
        std = (*actor, Slice(k, 2 * k), Softplus(), Affine(np.zeros(k), unit))
        within = Clip(entries[:, layout.LOW], entries[:, layout.HIGH], entries[:, layout.WHOLE] != 0.0)
        return [
            Output("action_mean", "mean of the Gaussian from which actions are drawn", mean),
            Output("action_std", "standard deviation of that Gaussian, of each entry by itself", std),
            Output("action", "the mean, within the bounds of actions", (*mean, within)),
        ]
    if isinstance(space, spaces.Discrete):
        sizes, first = (int(space.n),), (int(space.start),)
    else:
        assert isinstance(space, MULTI), "actor-critics take no other space"
        sizes, first = (tuple(part.ravel().tolist()) for part in factors(space))
    each = [f"action[{j}]" if len(sizes) > 1 else "action" for j in range(len(sizes))]
    names = tuple(f"{each[j]} = {first[j] + i}" for j in range(len(sizes)) for i in range(sizes[j]))
    return [
        Output("action_probabilities", "pi(a|s), the policy", (*actor, Softmax(sizes)), names),
        Output("action", "the likeliest action", (*actor, ArgMax(sizes, first))),
    ]
