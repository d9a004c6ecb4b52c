"""Callbacks of a run: plain functions that are called at every point of its log, and may log, evaluate and stop it.

A callback takes a `Point`. What it returns ends the run if it is true; a text is the reason that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from valueapprox.agents.report import LAST_EPISODES
from valueapprox.checks import positive

if TYPE_CHECKING:
    from valueapprox.agents.evaluation import MonteCarlo, Returns
    from valueapprox.agents.run import Run

__all__ = ["Callback", "Point", "stop_after", "stop_at_return", "stop_without_progress"]


@dataclass(frozen=True)
class Point:
    """A point of a run's log.

    Attributes
    ----------
    run
        The run itself; its agent or value function must not be changed.
    values
        What is logged here, by tag (see the tags of the log). What a callback adds is logged too.
    evaluation
        The evaluation that fell due here (`eval_every`), if one did.
    """

    run: Run[Any]
    values: dict[str, float]
    evaluation: Returns | MonteCarlo | None = None

    @property
    def step(self) -> int:
        """Transitions learned from."""
        return self.run.step

    @property
    def steps(self) -> int:
        """Transitions that the run is to learn from."""
        return self.run.settings.steps

    @property
    def seconds(self) -> float:
        """Time of learning since the run began, or was continued, without evaluations."""
        return self.run.seconds

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last 100 episodes while learning; None before the first one has ended."""
        return self.run.episodes.mean_return()

    @property
    def score(self) -> float | None:
        """How good it is, more being better; None where that is not known here.

        With `eval_every`, that of an evaluation: its mean return, or minus its value error. Without, the mean return of
        the last 100 episodes, once there are as many; for a prediction run minus the error against the true values,
        or minus the root mean square TD error.
        """
        if self.evaluation is not None or self.run.settings.eval_every:
            return None if self.evaluation is None else self.evaluation.score
        if self.run.lists_episodes:
            return self.mean_return if len(self.run.episodes.last_returns) == LAST_EPISODES else None
        error = self.values.get("value/error/rmsve", self.values.get("value/td_error/rms"))
        return None if error is None else -error

    def evaluate(self, n_episodes: int = 20) -> Returns | MonteCarlo:
        """Evaluate what is learned so far in fresh episodes. It changes nothing in what is learned."""
        return self.run.evaluate(n_episodes)


Callback: TypeAlias = Callable[[Point], object]


def stop_at_return(target: float) -> Callback:
    """Stop once the mean return reaches a target: that of an evaluation, or else of the last 100 episodes."""

    def stop(point: Point) -> str:
        reached = point.score is not None and point.score >= target
        return f"the mean return of {point.score:.5g} has reached {target:g}" if reached else ""

    return stop


def stop_without_progress(n_points: int = 10) -> Callback:
    """Stop once so many scores in a row (see `Point.score`) have not been above the best one before them."""
    positive("n_points", n_points)
    best, since = -math.inf, 0

    def stop(point: Point) -> str:
        nonlocal best, since
        if point.score is None:
            return ""
        best, since = (point.score, 0) if point.score > best else (best, since + 1)
        return f"there was no progress in the last {since} points" if since >= n_points else ""

    return stop


def stop_after(seconds: float) -> Callback:
    """Stop at the first point after so many seconds of learning."""

    def stop(point: Point) -> str:
        return f"{seconds:g} s are over" if point.seconds >= seconds else ""

    return stop
