"""What was learned, ready for use: `load` finds it in a run, a checkpoint, a fit or a service's folder."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox import ValueFunction, checkpoint
from valueapprox.agents import evaluation
from valueapprox.agents.batch_run import BatchRun
from valueapprox.agents.checked import close, guarded
from valueapprox.agents.control_run import ControlRun
from valueapprox.agents.evaluation import MonteCarlo, Returns
from valueapprox.agents.policies import make_policy
from valueapprox.agents.prediction_run import PredictionSettings
from valueapprox.agents.report import Report
from valueapprox.agents.rollout import make_environment
from valueapprox.agents.run import CHECKPOINT_FILE
from valueapprox.agents.spaces import encoder
from valueapprox.checkpoint import CheckpointError
from valueapprox.export import Graph, describe
from valueapprox.nn.network import Network
from valueapprox.seeding import sequence
from valueapprox.service.state import State
from valueapprox.service.store import load_service
from valueapprox.supervised.history import History
from valueapprox.supervised.models import Model, load_model

__all__ = ["Trained", "load"]

MODEL_FILE = "model.npz"  # of a fit's folder


class Trained(ABC):
    """What a run, a fit or a service has learned. It learns nothing any more.

    Attributes
    ----------
    path
        The file that it was loaded from.
    learned
        The agent, `ValueFunction`, `Predictions`, `Model` or `History` in it, for what only that can do.
    step
        Transitions learned from; of a fit, 0.
    settings
        Those of the run; None where it was no run.
    report
        How its training ended, after `valueapprox.train`; else None.
    """

    what = "a value function"
    settings: Any = None
    report: Report | None = None

    def __init__(self, path: Path, step: int, learned: Any) -> None:
        self.path, self.step, self.learned = path, step, learned

    @abstractmethod
    def value(self, observation: Any) -> Any:
        """The learned value of an observation as the environment gives it: v(s), or the largest action value.

        In the rewards' own unit. Of a fit: its predictions for a row of numbers. Of a service with several predictions:
        one number for each.
        """

    def act(self, observation: Any, greedy: bool = True) -> Any:
        """The action at an observation: the best one as far as it was learned, or drawn as while it was learned.

        Raises
        ------
        TypeError
            If there is no policy, as in a fit.
        """
        raise TypeError(f"{self.path} holds {self.what}, which has no policy; act() is for what a run has learned")

    def evaluate(self, episodes: int = 50, seed: int = 1) -> Returns | MonteCarlo:
        """How good it is in fresh episodes: their returns, or learned values against the returns of the policy.

        Raises
        ------
        TypeError
            If no environment is known, as in a fit.
        """
        raise TypeError(f"{self.path} holds {self.what}, which knows no environment; evaluate() is for runs")

    def exported(self) -> Graph:
        """What `valueapprox.export` writes of it."""
        return describe(self.learned)

    def __repr__(self) -> str:
        return f"<{self.what}: {self.path}>"


class TrainedAgent(Trained):
    """The agent of a run that learned to act.

    With a time feature, observations are taken as those at an episode's start.
    """

    what = "an agent"

    def __init__(self, path: Path, step: int, kind: type[ControlRun] | type[BatchRun]) -> None:
        self.agent: Any
        self.agent, self.settings = kind.load_agent(path)
        super().__init__(path, step, self.agent)
        self._actors = {greedy: self.agent.actor(self.settings.seed, greedy) for greedy in (True, False)}

    def value(self, observation: Any) -> float:
        """v, or the largest action value."""
        return self.agent.value(observation, elapsed=0)

    def act(self, observation: Any, greedy: bool = True) -> Any:
        """The best action, or one drawn from the policy."""
        return self._actors[bool(greedy)].start(observation)

    def evaluate(self, episodes: int = 50, seed: int = 1) -> Returns:
        """Returns of fresh episodes in which the agent acts greedily."""
        return evaluation.evaluate(self.agent, self.settings, episodes, seed)


class TrainedValues(Trained):
    """The value function of a prediction run, and the policy that it is of."""

    settings: PredictionSettings

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self.value_function = ValueFunction.load(path)
        super().__init__(path, int(meta["step"]), self.value_function)
        self.settings = PredictionSettings.from_dict(meta["settings"])
        self.task = self.settings.task()
        env = make_environment(self.task.env, **self.task.env_args)
        try:
            self._encode, self._actions = encoder(env.observation_space, self.task.flatten), env.action_space
        finally:
            close(env, self.task.env, warnings.warn)
        self._rng = np.random.default_rng(sequence(self.settings.seed, "loaded policy"))
        self._policy: Callable[..., Any] | None = None  # which may be code of the user's: only acting needs it

    def value(self, observation: Any) -> float:
        """v of the run's policy."""
        return float(self.value_function.predict(np.asarray(self._encode(observation), np.float64)))

    def act(self, observation: Any, greedy: bool = True) -> Any:
        """What the policy does, whose values were learned; it has no better action."""
        if self._policy is None:
            task = self.task
            self._policy = guarded(make_policy(task.policy, task.noise, task.env, self._actions), task.policy)
        return self._policy(observation, self._rng)

    def evaluate(self, episodes: int = 50, seed: int = 1) -> MonteCarlo:
        """Learned values against the returns of fresh episodes of the policy."""
        return evaluation.monte_carlo(self.value_function, self.task, episodes, seed)


class TrainedNetworks(Trained):
    """The value function of `ValueFunction.save`, or the predictions of a service as of its last checkpoint.

    `names` are those of the predictions.
    """

    def __init__(
        self, path: Path, step: int, learned: Any, net: Network, w: np.ndarray, names: tuple[str, ...]
    ) -> None:
        super().__init__(path, step, learned)
        self.net, self.w, self.names = net, w, names
        self.what = "a value function" if len(names) == 1 else f"{len(names)} predictions"

    def value(self, observation: Any) -> Any:
        """The values of a state (d,): a number, or of several predictions (m,)."""
        state = np.asarray(observation, np.float64)
        values = np.concatenate([np.atleast_1d(self.net.forward(w, state)) for w in self.w])
        return float(values[0]) if values.size == 1 else values


class TrainedModel(Trained):
    """The network of a fit; `model` has names of columns and classes."""

    what = "a fit"

    def __init__(self, path: Path) -> None:
        self.model: Model = load_model(path)
        super().__init__(path, 0, self.model)

    def value(self, observation: Any) -> Any:
        """Predictions (k,) for a row (d,) of features, or (n, k) for rows (n, d); a number where there is only one."""
        rows = np.asarray(observation, np.float64)
        predictions = self.model.predict(rows)
        found = predictions if rows.ndim == 2 else predictions[0]
        return float(found[0]) if found.shape == (1,) else found


def load(path: str | Path) -> Trained:
    """What was learned, from the folder of a run, a fit or a service, or from one of their files.

    Of a run's folder: as it was at the last checkpoint; `runs/NAME/best.npz` has the best evaluation. Nothing that the
    file says is run, but the environment of a run is made, and a policy that is a function of the user's is imported
    once it is to act.

    Raises
    ------
    CheckpointError
        If nothing of that kind is there, or it is damaged.

    Examples
    --------
    >>> agent = valueapprox.load("runs/NAME")
    >>> agent.act(observation), agent.value(observation)
    >>> agent.evaluate(episodes=50).mean
    """
    path = Path(path)
    if path.is_dir():
        if (path / CHECKPOINT_FILE).exists() or not (path / MODEL_FILE).exists():
            path = path / CHECKPOINT_FILE
        else:
            path = path / MODEL_FILE
    meta = checkpoint.load(path).meta
    kind = meta.get("kind")
    if kind == "model":
        return TrainedModel(path)
    if kind == "service":
        predictions = State.from_arrays(*load_service(path)).learner
        net, w, names = predictions.net, predictions.w, predictions.names
        return TrainedNetworks(path, int(meta["version"]), predictions, net, w, names)
    for run in (ControlRun, BatchRun):
        if kind == run.Settings.kind:
            return TrainedAgent(path, int(meta["step"]), run)
    if kind == PredictionSettings.kind:
        return TrainedValues(path, meta)
    if kind == "fit":
        if (path.parent / MODEL_FILE).exists():  # which takes columns as they are; the history's are standardised
            return TrainedModel(path.parent / MODEL_FILE)
        history = History.load(path)
        return TrainedNetworks(path, 0, history, history.net, history.w[None], ("prediction",))
    if "value_function" in meta:
        v = ValueFunction.load(path)
        return TrainedNetworks(path, v.n_transitions, v, v.net, v.w[None], ("value",))
    raise CheckpointError(
        f"{path} holds {kind or 'something unknown'}; expected what a run, a fit, a service or ValueFunction.save wrote"
    )
