"""StreamAC: actor-critic(lambda) for discrete and continuous actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from valueapprox import Intentional, ObGD
from valueapprox.agents.base import MULTI, ControlAgent, register
from valueapprox.agents.choosing import (
    draw_factors,
    draw_gaussian,
    draw_softmax,
    outputs,
    seed_factors,
    seed_gaussian,
    seed_softmax,
)
from valueapprox.agents.layout import (
    DIVERGED,
    ENTROPY,
    ERROR_SIZE,
    LEARNED,
    PERSISTENCE,
    RECENT_REWARD,
    RECENT_SQUARE,
    STEPS,
    SUM_ENTROPY,
    SUM_SPREAD,
)
from valueapprox.agents.spaces import Decoder, by_factor, continuous
from valueapprox.agents.stream import rescale, value
from valueapprox.checks import unit_interval
from valueapprox.compiling import kernel, placeholder, template
from valueapprox.nn.backprop import SIZES, D, X, forward, seed_output
from valueapprox.td.base import finite, td_error

MEAN_DECAY = 0.9998  # means are over about the last 5000 steps
LITTLE_ERROR = 0.05  # in the unit of scaled rewards: below it actions begin to persist
LITTLE_VARIETY = 0.1  # of rewards, their standard deviation over their root mean square: below it, too

improve_first, improve_second = placeholder("improve_first"), placeholder("improve_second")
draw_action = placeholder("draw_action")  # `draw_softmax`, `draw_factors` or `draw_gaussian`
seed_policy = placeholder("seed_policy")  # seed_policy(agent, actor, taken, weight, sign) -> H


@kernel
def monotony(reward, delta, memory, counts):
    """How little there is to learn from: 1 while rewards are all the same and there are no errors; 0 for neither.

    max(0, 1 - mean |delta| / LITTLE_ERROR) max(0, 1 - sd(reward) / (LITTLE_VARIETY rms(reward))), of late.
    """
    unbiased = 1.0 / (1.0 - MEAN_DECAY ** (counts[STEPS] + 1))
    memory[ERROR_SIZE] = MEAN_DECAY * memory[ERROR_SIZE] + (1.0 - MEAN_DECAY) * abs(delta)
    memory[RECENT_REWARD] = MEAN_DECAY * memory[RECENT_REWARD] + (1.0 - MEAN_DECAY) * reward
    memory[RECENT_SQUARE] = MEAN_DECAY * memory[RECENT_SQUARE] + (1.0 - MEAN_DECAY) * reward * reward
    mean, square = memory[RECENT_REWARD] * unbiased, memory[RECENT_SQUARE] * unbiased
    variety = math.sqrt(max(0.0, 1.0 - mean * mean / square)) if square > 0.0 else 0.0
    little_error = max(0.0, 1.0 - memory[ERROR_SIZE] * unbiased / LITTLE_ERROR)
    return little_error * max(0.0, 1.0 - variety / LITTLE_VARIETY)


@template(inline=True)
def update(agent, critic, actor, t, bootstraps, work):
    """The critic's delta, then actor and critic along it; see `StreamAC`.

    Where rewards and deltas tell little, the next action may be drawn from the last one's number.
    """
    settings, memory = agent.settings, agent.memory
    v_next = np.float64(critic.scratch_next[X, outputs(critic.spec)[0]]) if bootstraps else 0.0
    delta = td_error(t.r, t.discount, v_next, value(critic, 0, t.unit))
    persist = 0.0
    if finite(critic.w.dtype.type(delta)):
        rescale(critic, t.unit)
        seed_output(critic.scratch, critic.spec, 0)
        sign = 1.0 if delta > 0.0 else (-1.0 if delta < 0.0 else 0.0)
        agent.sums[SUM_ENTROPY] += seed_policy(agent, actor, t.taken, settings[ENTROPY] * sign, sign)
        persist = settings[PERSISTENCE] * monotony(t.reward, delta, memory, agent.counts)
        improve_second(actor, t.decay, delta, t.sampled)
        improve_first(critic, t.decay, delta, t.sampled)
    return delta, persist


@kernel(inline=True)
def seed_one(agent, actor, taken, weight, sign):
    """Of one discrete action."""
    start, n = outputs(actor.spec)
    return seed_softmax(actor.scratch[X], actor.scratch[D], start, n, taken, weight)


@kernel(inline=True)
def seed_many(agent, actor, taken, weight, sign):
    """Of several discrete entries."""
    start, _ = outputs(actor.spec)
    return seed_factors(actor.scratch[X], actor.scratch[D], start, agent.settings, agent.action, weight)


@kernel(inline=True)
def seed_continuous(agent, actor, taken, weight, sign):
    """Of continuous entries."""
    x, d = actor.scratch[X], actor.scratch[D]
    start, n = outputs(actor.spec)
    entropy, spread = seed_gaussian(x, d, start, n, agent.settings, agent.action, weight, sign)
    agent.sums[SUM_SPREAD] += spread
    return entropy


@template(inline=True)
def draw_from_policy(agent, critic, actor, greedy, persist):
    """An action from the actor, at the state that the critic has seen; DIVERGED if an output is NaN or infinite."""
    for i in range(actor.spec[SIZES]):
        actor.scratch[X, i] = critic.scratch[X, i]
    forward(actor.w, actor.spec, actor.scratch)
    start, n = outputs(actor.spec)
    status = LEARNED
    for j in range(n):
        if not finite(actor.scratch[X, start + j]):
            status = DIVERGED
    if status == LEARNED:
        settings, memory, counts = agent.settings, agent.memory, agent.counts
        draw_action(actor.scratch[X], start, n, settings, memory, counts, agent.key, greedy, persist, agent.action)
    return status


@template(inline=True)
def choose(agent, critic, actor, greedy):
    """Without persistence."""
    return draw_from_policy(agent, critic, actor, greedy, 0.0)


@template(inline=True)
def choose_next(agent, critic, actor, persist):
    """After an update."""
    return draw_from_policy(agent, critic, actor, False, persist)


@dataclass(frozen=True, kw_only=True)
class ActorCriticSettings:
    """Of the actor."""

    entropy: float = 0.01
    """Weight of the policy's entropy, 0 or more."""
    persistence: float = 0.95
    """How likely (0 to 1) an undecided policy repeats itself while all rewards are alike; 0 as published."""

    def __post_init__(self) -> None:
        if not 0 <= self.entropy < np.inf:
            raise ValueError(f"entropy is {self.entropy}; expected a number that is not negative")
        unit_interval("persistence", self.persistence)


@register("stream-ac")
class StreamAC(ControlAgent):
    """Actor-critic(lambda), with a softmax policy for discrete actions and a Gaussian one for continuous ones.

    With each transition:

        delta = r + gamma v(s') - v(s)
        critic: z <- gamma lambda z + grad v(s), and the optimizer's step along delta z
        actor:  z <- gamma lambda z + grad [log pi(a|s) + entropy sign(delta) H(pi(.|s))], and the step along delta z

    By default the critic's values are means (see `Intentional`), and so biased by no skew of the rewards.

    Several discrete entries (MultiDiscrete, MultiBinary) are chosen each by a softmax of its own. The unit of a
    continuous action is half the distance of its bounds, around their middle: see `agents.spaces.continuous`. A mean
    that is more than its spread outside of the bounds gets no gradient that would lead it further out.

    Parameters
    ----------
    entropy
        Weight of the policy's entropy H in the actor's trace.
    persistence
        For discrete actions: the largest probability with which a step draws its action from the same random number u
        as the step before, instead of from a new one. It is

            persistence max(0, 1 - mean |delta| / 0.05) max(0, 1 - sd / (0.1 rms)) clip((H / log n - 0.5) / 0.3, 0, 1)

        with means over about the last 5000 steps, delta in the unit of scaled rewards, sd and rms the standard
        deviation and the root mean square of the rewards as they come, and H the entropy of the policy over n actions.
        So it is for tasks in which all rewards are alike, such as -1 a step until a goal is found. A critic that has
        come to expect failure, in a task whose goal was not found yet, leaves hardly any error to learn from, and a
        policy that is still nearly uniform trembles on the spot; so it holds on to an action for some twenty steps.
        (Exploration by repeated actions: Dabney, Ostrovski & Barreto 2021.) Every action is still taken with
        probability pi(a|s), but actions depend on each other: while they do, the expected update is not the policy
        gradient, and the critic's values are those of this behaviour. Both end as soon as there is something to learn,
        or the policy has made up its mind. 0: independent draws, as published. Gaussian policies, and what `actor`
        returns, draw independently always.
    """

    update, choose, choose_next = update, choose, choose_next
    Settings = ActorCriticSettings
    learns_policy = True
    name, second_name = "critic", "actor"
    default_optimizers = (Intentional(), ObGD(kappa=3.0))

    def _own_settings(self, own: ActorCriticSettings) -> dict[int, float]:
        return {ENTROPY: own.entropy, PERSISTENCE: own.persistence}

    def _actions(self, action_space: gym.Space[Any]) -> Decoder:
        if isinstance(action_space, spaces.Box):
            return continuous(action_space)
        return by_factor(action_space) if isinstance(action_space, MULTI) else super()._actions(action_space)

    def _own_kernels(self, action_space: gym.Space[Any]) -> dict[str, Any]:
        drawn, seeded = draw_softmax, seed_one
        if isinstance(action_space, spaces.Box):
            drawn, seeded = draw_gaussian, seed_continuous
        elif isinstance(action_space, MULTI):
            drawn, seeded = draw_factors, seed_many
        return {"draw_action": drawn, "seed_policy": seeded, **super()._own_kernels(action_space)}

    def _own_diagnostics(self, n_steps: float) -> dict[str, float]:
        values = {"actor/entropy": self.sums[SUM_ENTROPY] / n_steps}
        if isinstance(self.action_space, spaces.Box):
            values["actor/spread"] = self.sums[SUM_SPREAD] / n_steps
        return values
