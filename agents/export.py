"""What an agent that acts can be exported as: its normalisers, networks, values in the rewards' unit, its action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox.agents import layout
from valueapprox.agents.acting import CLIP
from valueapprox.agents.base import MULTI, ControlAgent, Learner
from valueapprox.agents.batched import BatchAgent
from valueapprox.agents.policy_gradient import PolicyGradient
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
from valueapprox.nn.network import Network
from valueapprox.nn.scaling import Scaling

__all__ = ["describe_agent", "describe_batch_agent", "normalisation", "scaling_of", "value_network"]

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
        k = int(np.prod(space.shape))
        return _gaussian(space, (*actor, Slice(0, k)), (*actor, Slice(k, 2 * k), Softplus()))
    return _categories(space, actor)


def _gaussian(space: spaces.Box, mean: tuple[Step, ...], std: tuple[Step, ...]) -> list[Output]:
    """A Gaussian policy, from steps to its mean and its standard deviation in the policy's own unit."""
    entries = continuous(space).layout.reshape(-1, layout.N_OF_ENTRY)
    origin, unit, k = entries[:, layout.ORIGIN], entries[:, layout.UNIT], len(entries)
    mean, std = (*mean, Affine(origin, unit)), (*std, Affine(np.zeros(k), unit))
    within = Clip(entries[:, layout.LOW], entries[:, layout.HIGH], entries[:, layout.WHOLE] != 0.0)
    return [
        Output("action_mean", "mean of the Gaussian from which actions are drawn", mean),
        Output("action_std", "standard deviation of that Gaussian, of each entry by itself", std),
        Output("action", "the mean, within the bounds of actions", (*mean, within)),
    ]


def _categories(space: gym.Space[Any], actor: tuple[Step, ...]) -> list[Output]:
    """A policy that chooses each entry by a softmax, from steps to its logits."""
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


# --- agents of many environments ----------------------------------------------------------------------------------


def scaling_of(agent: BatchAgent) -> Scaling:
    """The frozen normaliser of an agent's observations."""
    scaling = Scaling.none(agent.encode.size)
    if agent.normalises and agent.observed[0] > 1.0:
        n, d = agent.observed[0], agent.encode.size
        scaling.mean[:] = agent.observed[1 : 1 + d]
        scaling.scale[:] = np.sqrt(agent.observed[1 + d :] / n + EPSILON)
    return scaling


def value_network(agent: BatchAgent) -> tuple[Network, np.ndarray]:
    """The network of an agent's values, v or q, without what a shared one has beside them, and its weights."""
    if not isinstance(agent, PolicyGradient):
        return agent.actor_network, agent.learners["value"].w
    learner = agent.critic_learner
    if not agent.own.shared:
        return learner.net, learner.w
    net = Network(
        (*learner.net.sizes[:-1], 1), learner.net.hidden, layer_norm=learner.net.layer_norm, dtype=learner.net.dtype
    )
    w = np.zeros(net.size, net.dtype)
    blocks = zip((*net.unpack(w),), (*learner.net.unpack(learner.w),), strict=True)
    for to, full in ((to, full) for pair in blocks for to, full in zip(*pair, strict=True)):
        if to is not None and full is not None:
            to[...] = full[..., -to.shape[-1] :]  # the values' column is the last one
    return net, w


def describe_batch_agent(agent: BatchAgent) -> Graph:
    """The same of an agent of many environments: `value` and the policy, or `action_values` and the best action."""
    d = agent.encode.size
    seen: tuple[Step, ...] = (Standardise(scaling_of(agent)),)
    if agent.normalises:
        seen = (*seen, Clip(np.full(d, -CLIP), np.full(d, CLIP), np.zeros(d, np.bool_)))
    net, w = value_network(agent)
    values = (*seen, Forward("value", net, w.copy()))
    k = net.n_outputs
    in_unit = (*values, Affine(np.zeros(k), np.full(k, agent.reward_scale)))
    if not isinstance(agent, PolicyGradient):
        actions = by_index(agent.action_space)
        assert actions is not None, "agents of action values take no other space"
        each = tuple(str(row) for row in _table(actions).tolist())
        outputs = [
            Output("action_values", "q(s, a), the expected discounted sum of rewards of each action", in_unit, each)
        ]
        outputs.append(Output("action", "the action of the highest value", (*values, *_chosen(actions))))
    else:
        outputs = [Output("value", "v(s), the critic's expected discounted sum of rewards", in_unit)]
        actor = (*seen, Forward("actor", agent.actor_network, agent.actor_learner.w.copy()))
        n, space = agent.head.n_outputs, agent.action_space
        actor = (*actor, Slice(0, n)) if agent.own.shared else actor
        if isinstance(space, spaces.Box):
            std = (*actor, Affine(np.exp(agent.spread.w.astype(np.float64)), np.zeros(n)))
            outputs += _gaussian(space, actor, std)
        else:
            outputs += _categories(space, actor)
    about = f"{type(agent).__name__} after {agent.n_steps:,} transitions"
    return Graph(d, tuple(outputs), about, no_update=NO_UPDATE)
