"""What is said of a run: its episodes, how far it is, and how it ended."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valueapprox import Network

if TYPE_CHECKING:
    from valueapprox.agents.evaluation import MonteCarlo, Returns

__all__ = [
    "EPISODES_FILE",
    "LAST_EPISODES",
    "Episodes",
    "Report",
    "Status",
    "lost_wrappers",
    "read_episodes",
    "weights_of",
]

EPISODES_FILE = "episodes.jsonl"
LAST_EPISODES = 100  # whose mean return is shown, and compared with a target


def read_episodes(folder: str | Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The run's episodes that ended by a step, in order: {"step": ..., "return": ..., "length": ...}."""
    path = Path(folder) / EPISODES_FILE
    if not path.exists():
        return []
    # a crash may have left half a line at the end
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [episode for episode in map(json.loads, lines) if episode["step"] <= last_step]


def lost_wrappers(env: str, names: list[str]) -> str:
    """What is said of wrappers that nobody can save."""
    what = ", ".join(names)
    return f"what the wrapper{'s' * (len(names) > 1)} {what} of {env} kept, such as running statistics, was not saved"


def weights_of(name: str, net: Network, w: np.ndarray) -> dict[str, np.ndarray]:
    """The weights of each layer of a network, by tag."""
    layers = zip(net.layer_names, net.bounds, net.bounds[1:], strict=False)
    return {f"{name}/weights/{layer}": w[start:stop] for layer, start, stop in layers}


@dataclass(frozen=True)
class Status:
    """What a progress bar shows."""

    step: int
    steps: int
    steps_per_second: float
    shown: dict[str, float]  # by the words before them
    episodes: tuple[int, int] | None = None  # of an evaluation that is going on: how many are done, of how many


@dataclass(frozen=True)
class Report:
    """How a run ended."""

    folder: Path
    step: int
    interrupted: int  # by which signal; 0: not
    stopped: str  # why a callback ended it, or ""
    seconds: float
    steps_per_second: float
    first_step_after: float  # seconds; NaN if nothing was learned
    n_episodes: int | None  # in all of the run's steps; None where episodes are not listed
    mean_return: float | None  # of the last `LAST_EPISODES`
    value_error: float | None  # where the true values are known
    evaluation: Mapping[str, Returns | MonteCarlo]  # at the end, by how actions were chosen; "" of a fixed policy


class Episodes:
    """Undiscounted return and length of running episodes, and what the log wants of finished ones."""

    def __init__(self, n: int = 1) -> None:
        self.running = np.zeros((n, 2))
        self.finished = np.zeros(3)  # since the last log: number, sum of returns, sum of lengths
        self.last_returns: deque[float] = deque(maxlen=LAST_EPISODES)

    def add(self, total: float, length: float) -> None:
        """Count an episode that has ended."""
        self.finished += 1.0, total, length
        self.last_returns.append(total)

    def add_all(self, totals: Sequence[float], lengths: Sequence[float]) -> None:
        """Count several, in order: the same as `add` for each."""
        number, returns, steps = map(float, self.finished)
        for total, length in zip(totals, lengths, strict=True):
            returns += total
            steps += length
        self.finished[:] = number + len(totals), returns, steps
        self.last_returns.extend(totals)

    def mean_return(self) -> float | None:
        """Mean return of the last episodes."""
        return sum(self.last_returns) / len(self.last_returns) if self.last_returns else None

    def take(self) -> dict[str, float]:
        """Their means since the last log, by tag."""
        number, returns, lengths = map(float, self.finished)
        self.finished[:] = 0.0
        return {"episode/return": returns / number, "episode/length": lengths / number} if number > 0 else {}
