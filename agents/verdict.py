"""What the numbers of a run mean, in words: is that good, was it still getting better, what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from valueapprox.agents.evaluation import MonteCarlo, Returns
from valueapprox.agents.settings import RunSettings

__all__ = ["of_returns", "of_values"]

FEW = 10  # episodes, or points of the log, from which no trend is read
SURE = 2.0  # standard errors by which two means must differ
FALLING = 0.02  # share by which an error must have fallen to be called falling
CLOSE, GOOD = 0.9, 0.6  # of what a value function could explain


def of_values(result: MonteCarlo | None, metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """What an evaluation of values means, and the errors that were logged on the way."""
    sentences, share = [], math.nan
    if result is not None and result.explained_variance is not None:
        explained = result.explained_variance.value
        if result.value_error is None:
            sentences.append(
                f"The values explain {explained:.0%} of the variance of returns (1 is perfect, 0 no better than a "
                "constant); how much of it is chance, which no value function explains, is not known here."
            )
        else:
            chance = max(0.0, result.rmse.value**2 - result.value_error.value**2) / result.spread**2
            possible = max(0.0, explained, 1.0 - chance)  # both are estimates
            share = explained / possible if possible > 0.01 else math.nan
            sentences.append(
                f"The values explain {max(explained, 0.0):.0%} of the variance of returns, of at most about "
                f"{possible:.0%}: the rest is chance, which no value function explains.{_grade(share)}"
            )
        if result.bias.low > 0 or result.bias.high < 0:
            low = "high" if result.bias.value > 0 else "low"
            if abs(result.bias.value) > 0.1 * result.spread:
                sentences.append(f"On average they are too {low}, by {abs(result.bias.value):.3g}.")
    errors = [line["value/td_error/rms"] for line in metrics if "value/td_error/rms" in line]
    if share >= CLOSE:
        return sentences
    if len(errors) >= FEW and _fall(errors) > FALLING:
        sentences.append(
            f"The TD error was still falling, by {_fall(errors):.0%} over the last fifth: take more steps."
        )
    elif share < GOOD:
        sentences.append("The TD error no longer falls: try a larger network (--hidden), another --lam or --alpha.")
    return sentences


def _grade(share: float) -> str:
    if math.isnan(share):
        return ""
    if share >= CLOSE:
        return " That is about as good as it can be."
    return " That is good, and could be better." if share >= GOOD else " That is far from what is possible."


def _fall(errors: Sequence[float]) -> float:
    """By which share the last fifth lies below the fifth before it."""
    n = max(1, len(errors) // 5)
    before, last = float(np.mean(errors[-2 * n : -n])), float(np.mean(errors[-n:]))
    return 1.0 - last / before if before > 0 else 0.0


def of_returns(
    settings: RunSettings, steps: int, episodes: Sequence[Mapping[str, Any]], results: Mapping[str, Returns]
) -> list[str]:
    """What the returns of a run's episodes, and of its evaluation, mean."""
    sentences = []
    ends, returns = np.array([(e["step"], e["return"]) for e in episodes], np.float64).reshape(-1, 2).T
    fifths = [returns[(ends > steps * k / 5) & (ends <= steps * (k + 1) / 5)] for k in range(5)]
    first, before, last = fifths[0], fifths[3], fifths[4]
    if len(returns) >= FEW and np.ptp(returns) == 0.0:
        sentences.append(
            f"Every episode had the return {returns[0]:g}: nothing was reached that could be learned from. Take more "
            "steps, or another agent."
        )
    elif min(map(len, (first, before, last))) >= 2:
        if _differ(first, last) > SURE:
            verb = "rose"
        else:
            verb = "fell" if _differ(last, first) > SURE else "went"
        sentences.append(
            f"While it learned, the return {verb} from {first.mean():.4g} in the first fifth of the steps to "
            f"{last.mean():.4g} in the last."
        )
        if _differ(before, last) > SURE:
            sentences.append("It was still rising: take more steps.")
        elif _differ(last, before) > SURE:
            sentences.append(
                f"It was {before.mean():.4g} before that: keep the best with --eval-every, or try a smaller --alpha."
            )
        elif verb != "rose":
            sentences.append("It did not get better: try other seeds, more steps, or another agent.")
    best = results.get("greedy")
    if best is not None:
        target = _threshold(settings.env)
        if target is not None:
            mean = f"{best.mean.value:.4g} ({best.mean.low:.4g} to {best.mean.high:.4g})"
            word = "reaches" if best.mean.value >= target else "does not reach"
            sentences.append(f"The greedy policy {word} {target:g}, at which Gymnasium calls it solved: {mean}.")
        sampled = results.get("sampled")
        if sampled is not None and best.mean.high < sampled.mean.low:
            sentences.append("Acting greedily is worse than sampling: this policy needs its randomness.")
    return sentences


def _differ(a: np.ndarray, b: np.ndarray) -> float:
    """By how many standard errors the mean of b lies above that of a; infinite if neither varies."""
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    difference = float(b.mean() - a.mean())
    return difference / error if error > 0 else math.copysign(math.inf, difference) if difference else 0.0


def _threshold(env: str) -> float | None:
    """The mean return at which an environment counts as solved: a compiled world's is that of its namesake."""
    for name in (env, env.removeprefix("valueapprox/")):
        spec = gym.registry.get(name.rpartition(":")[2])
        if spec is not None and spec.reward_threshold is not None:
            return float(spec.reward_threshold)
    return None
