"""What runs have in common whose agent learns how to act: its evaluation, its weights, and its way out of a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valueapprox.agents import evaluation
from valueapprox.agents.checked import close
from valueapprox.agents.report import weights_of
from valueapprox.agents.rollout import make_environment
from valueapprox.agents.run import Run, S
from valueapprox.agents.stored import Stored

if TYPE_CHECKING:
    from valueapprox.agents.evaluation import Recording, Returns

__all__ = ["ActingRun"]


class ActingRun(Run[S]):
    """A run with an `agent`, whose settings have `make_agent`."""

    lists_episodes = True
    ways = ("greedy", "sampled")
    agent: Any

    @classmethod
    def load_agent(cls, path: str | Path, notice: Callable[[str], None] = warnings.warn) -> tuple[Any, S]:
        """The agent of a run's checkpoint file as far as it has learned, and the run's settings."""
        settings: Any
        settings, arrays, _ = cls._read(Path(path))
        env = make_environment(settings.env, **settings.arguments())
        try:
            agent = settings.make_agent(env)
        finally:
            close(env, settings.env, notice)
        cls._restore_agent(agent, arrays, Path(path))
        return agent, settings

    @classmethod
    def _restore_agent(cls, agent: Stored, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        try:
            agent.restore({name.removeprefix("agent/"): a for name, a in arrays.items() if name.startswith("agent/")})
        except (KeyError, ValueError) as error:
            raise cls._damaged(path, error) from None

    def _diagnostics(self) -> dict[str, float]:
        values: dict[str, float] = self.agent.diagnostics()
        return values

    def _weights(self) -> dict[str, np.ndarray]:
        weights: dict[str, np.ndarray] = {}
        for name, learner in self.agent.networks().items():
            weights |= weights_of(name, learner.net, learner.w)
        return weights

    def _evaluate(
        self, way: str, n_episodes: int, seed: int, recording: Recording | None, progress: Callable[[int], None]
    ) -> Returns:
        return evaluation.evaluate(
            self.agent,
            self.settings,
            n_episodes,
            seed,
            greedy=way == "greedy",
            recording=recording,
            progress=progress,
            notice=self.notice,
        )
