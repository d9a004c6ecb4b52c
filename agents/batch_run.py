"""Runs of agents that learn how to act from many environments, rollout by rollout."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import tyro
from threadpoolctl import threadpool_limits

from valueapprox import Optimizer, envs
from valueapprox.agents.acting import Rollout
from valueapprox.agents.acting_run import ActingRun
from valueapprox.agents.batch_catalogue import BATCH_AGENTS, BatchAgent
from valueapprox.agents.checked import close, image_note, is_image
from valueapprox.agents.experience import CompiledExperience, Experience, GymnasiumExperience
from valueapprox.agents.report import lost_wrappers
from valueapprox.agents.rollout import make_environment
from valueapprox.agents.run import CHECKPOINT_FILE, LEARNED_CHARTS
from valueapprox.agents.settings import RunSettings
from valueapprox.agents.spaces import encoder
from valueapprox.checks import one_of, positive
from valueapprox.cluster import RayWorker, cluster, share
from valueapprox.envs import unknown_wrappers
from valueapprox.interrupts import Stopped, watched
from valueapprox.optim import OPTIMIZERS
from valueapprox.telemetry import network_charts

__all__ = ["BatchRun", "BatchSettings"]

AHEAD = 2  # rollouts that an asynchronous worker is asked for: while one travels it collects the next
CHUNK_SECONDS = 0.1  # of learning between two looks at the clock

if TYPE_CHECKING:
    AgentName: TypeAlias = str
    OptimizerName: TypeAlias = str
else:  # what is registered is what the command line knows
    AgentName, OptimizerName = Literal[tuple(BATCH_AGENTS)], Literal[("auto", *OPTIMIZERS)]


@dataclass(frozen=True, eq=False)
class BatchSettings(RunSettings):
    """Everything that decides what a run learns. Two runs with equal settings end with equal weights, bit for bit."""

    agent: AgentName = "ppo"
    """Who learns."""
    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, of each network; none for linear ones."""
    activation: str = "tanh"
    """Activation of hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    init: str = "orthogonal"
    """How weights are drawn: orthogonal (gain sqrt 2 in hidden layers), sparse, zeros, lecun_..., glorot_..., he_..."""
    envs: int = 8
    """Environments."""
    optimizer: OptimizerName = "auto"
    """Optimizer; auto is the agent's own."""
    alpha: float | None = None
    """Step size; the optimizer's own if not given."""
    schedule: Literal["constant", "linear"] = "linear"
    """Of the step size: linear falls to 0 over the run."""
    normalise_observations: bool = True
    """Bring observations to mean 0 and variance 1 by the statistics of the rollouts before."""
    scale_rewards: bool = True
    """Divide rewards by the running standard deviation of their discounted sum."""
    asynchronous: Annotated[bool, tyro.conf.arg(name="async")] = False
    """Learn from each worker's rollout as soon as it arrives; results are then not reproducible bit for bit."""
    stop_at: float | None = None
    """End the run once the mean return reaches this: of an evaluation, or without any, of the last 100 episodes."""

    kind = "batch run"

    @staticmethod
    def agents() -> Mapping[str, Any]:
        """The agents that learn from many environments."""
        return BATCH_AGENTS

    @classmethod
    def own_of(cls, agent: str) -> type[Any]:
        """What the agent's class says."""
        return BATCH_AGENTS[one_of("agent", agent, BATCH_AGENTS)].Settings

    @classmethod
    def defaults_of(cls, agent: str) -> Mapping[str, Any]:
        """What the agent's class says."""
        return BATCH_AGENTS[one_of("agent", agent, BATCH_AGENTS)].defaults

    def check(self) -> None:
        """Raise ValueError for what nobody else would notice."""
        super().check()
        positive("envs", self.envs)
        one_of("optimizer", self.optimizer, ("auto", *OPTIMIZERS))
        one_of("schedule", self.schedule, ("constant", "linear"))
        if self.stop_at is not None and not math.isfinite(self.stop_at):
            raise ValueError(f"stop_at is {self.stop_at}; expected a return, a finite number")
        if self.asynchronous and not BATCH_AGENTS[self.agent].bears_lag:
            those = ", ".join(name for name, cls in BATCH_AGENTS.items() if cls.bears_lag)
            raise ValueError(
                f"async is True; expected False for {self.agent}, whose rollouts must be those of its newest policy "
                f"({those} bear older ones)"
            )
        self.make_optimizer()

    def planned(self) -> tuple[str, str] | None:
        """What is planned for `horizon` steps, and what it does afterwards; None if nothing is."""
        return None if self.schedule == "constant" else ("the fall of the step size", "stays at 0")

    @property
    def round(self) -> int:
        """Transitions of one rollout in all environments."""
        return self.envs * int(getattr(self, "rollout", 1))

    def chosen(self) -> BatchSettings:
        """The same with what was left open, and as many steps as fill whole rollouts."""
        size = max(1, self.round)
        whole = replace(self, steps=-(-self.steps // size) * size) if self.steps > 0 else self
        made: BatchSettings = super(BatchSettings, whole).chosen()
        return made

    def make_optimizer(self) -> Optimizer:
        """The optimizer of all networks."""
        cls = BATCH_AGENTS[self.agent]
        found = cls.default_optimizer if self.optimizer == "auto" else OPTIMIZERS[self.optimizer]()
        return found if self.alpha is None else replace(found, alpha=self.alpha)

    def make_agent(self, env: gym.Env[Any, Any]) -> BatchAgent:
        """A fresh agent for an environment."""
        return BATCH_AGENTS[self.agent](
            env.observation_space,
            env.action_space,
            self.envs,
            self.hidden,
            self.make_optimizer(),
            self.gamma,
            normalise_observations=self.normalise_observations,
            scale_rewards=self.scale_rewards,
            horizon=self.horizon,
            schedule=self.schedule,
            activation=self.activation,
            layer_norm=self.layer_norm,
            init=self.init,
            dtype=self.dtype,
            flatten=self.flatten,
            seed=self.seed,
            **self.own(),
        )


def make_experience(settings: BatchSettings, numbers: list[int], compiled: bool = True) -> Experience:
    """What brings rollouts of the environments with these numbers: compiled worlds where they are, else Gymnasium."""
    arguments = settings.arguments()
    env = make_environment(settings.env, **arguments)
    try:
        agent = settings.make_agent(env)
        size = encoder(env.observation_space, settings.flatten).size
    finally:
        close(env, settings.env)
    found = envs.compiled_world(settings.env, **arguments) if compiled else None
    if found is not None and size == found[0].n_observation:
        return CompiledExperience(agent, numbers, settings.seed, *found)
    return GymnasiumExperience(agent, numbers, settings.seed, settings.env, arguments)


class BatchRun(ActingRun[BatchSettings]):
    """A run of one agent in many environments, in this process or on Ray workers: the weights do not depend on it.

    Resumed, it goes on bit for bit where environments are functions of their generator and actions; others begin new
    episodes.
    """

    Settings = BatchSettings

    @property
    def n_envs(self) -> int:
        """How many environments it learns from."""
        return self.settings.envs

    def _prepare(self, stored: BatchSettings | None, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        settings = self.settings
        with watched(settings.env):
            self.env = make_environment(settings.env, **settings.arguments())
        try:
            self.agent = settings.make_agent(self.env)
            space = self.env.observation_space
            lost = unknown_wrappers(self.env)
            if stored is None and is_image(space):
                self.notice(image_note(settings.env, space, self.agent.encode.size, settings.hidden))
            self.snapshots: list[dict[str, Any]] | None = None
            if stored is not None:
                try:
                    self._restore(arrays, meta)
                except (KeyError, ValueError, TypeError) as error:
                    raise self._damaged(self.folder / CHECKPOINT_FILE, error) from None
                if lost and self.step < settings.steps:
                    self._remark(lost_wrappers(settings.env, lost))
        finally:
            close(self.env, settings.env, self.notice)
        self.experience: Experience | None = None
        self.workers: list[RayWorker] = []
        self._numbers: dict[RayWorker, list[int]] = {}  # of each worker's environments
        #: For which rollouts a worker was asked that have not come: the version of the policy, and the policy.
        self._asked: dict[RayWorker, deque[tuple[int, np.ndarray]]] = {}
        self._version, self._lags, self._waits = 0, list[int](), dict[int, list[float]]()
        self._first: tuple[np.ndarray, Rollout, list[dict[str, Any]] | None] | None = None
        self._last_learning = math.inf  # seconds
        self._learning, self._seconds_learning, self._logged_at = False, 0.0, time.monotonic()

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {f"agent/{name}": array for name, array in self.agent.state_dict().items()}
        if self.experience is not None:
            self.snapshots = self.experience.snapshot()
        streams = []
        for i, snapshot in enumerate(self.snapshots or []):
            arrays |= {f"stream_{i}/{n}": value for n, value in snapshot.items() if isinstance(value, np.ndarray)}
            streams.append({n: value for n, value in snapshot.items() if not isinstance(value, np.ndarray)})
        return arrays, {"streams": streams}

    def _restore(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        self._restore_agent(self.agent, arrays, self.folder / CHECKPOINT_FILE)
        streams = [{**plain, **_under(f"stream_{i}/", arrays)} for i, plain in enumerate(meta["streams"])]
        if len(streams) not in (0, self.settings.envs):
            raise ValueError(f"streams is of length {len(streams)}; expected {self.settings.envs}")
        self.snapshots = streams or None

    # --- learning -----------------------------------------------------------------------------------------------------

    def _connect(self, stack: contextlib.ExitStack, n_workers: int, ray_address: str | None) -> None:
        if positive("workers", n_workers, at_least=0) > self.settings.envs:
            raise ValueError(
                f"workers is {n_workers}; expected at most {self.settings.envs}, as each needs an environment"
            )
        if self.settings.asynchronous and n_workers == 0:
            raise ValueError("workers is 0; expected at least 1 with --async, which learns while they collect")
        if self.settings.asynchronous and self.resumed:
            self.notice("with --async a resumed run goes on, but not bit for bit")
        self._n_workers = n_workers
        if self.step < self.settings.steps:
            self._load_kernels()
        import scipy.linalg.cython_blas  # noqa: F401  (Numba's products come from its BLAS: loaded before it is limited)

        stack.enter_context(threadpool_limits(1, "blas"))
        if n_workers > 0:
            stack.enter_context(cluster(ray_address, n_workers))

    def _load_kernels(self) -> None:
        """Compile or load what learning needs: before the workers, who would each do it, and before time is taken."""
        space, settings = self.env, self.settings
        trial = replace(settings, **self.agent.small(settings))
        agent = trial.make_agent(space)
        if (found := envs.compiled_world(settings.env, **settings.arguments())) is not None and self.compiled:
            if agent.encode.size == found[0].n_observation:
                rollout = CompiledExperience(agent, range(trial.envs), 0, *found).gather(
                    agent.rollout_steps, agent.policy()
                )
                agent.learn(rollout, agent.policy())
                return
        d = agent.encode.size
        rollout = Rollout.zeros(agent.rollout_steps, trial.envs, d, agent.head.n_values, agent.dtype)
        agent.acting.choose(rollout.observations[0], agent.policy(), rollout.actions[0], rollout.log_probs[0])
        agent.learn(rollout, agent.policy())

    def _begin(self, stack: contextlib.ExitStack) -> None:
        settings = self.settings
        shares = np.array_split(np.arange(settings.envs), max(1, self._n_workers))
        numbers = [[int(i) for i in share] for share in shares]
        if self._n_workers == 0:
            with watched(settings.env, self.patience):
                self.experience = make_experience(settings, numbers[0], self.compiled)
                stack.callback(self._put_away)
                if self.snapshots is not None:
                    self.experience.restore(self.snapshots)
            return
        for own in numbers:
            snapshots = [self.snapshots[i] for i in own] if self.snapshots else []
            worker = RayWorker(
                make_experience,
                *(settings, own, self.compiled),
                snapshot=snapshots if all(snapshots) and snapshots else None,
                on_death=self.notice,
                patience=self.patience,
            )
            self.workers.append(worker)
            self._numbers[worker], self._asked[worker] = own, deque()
            stack.callback(close, worker, settings.env, self.notice)
        # First rollout before the first file: an environment that fails leaves no empty run behind.
        if self.step < settings.steps and not settings.asynchronous:
            try:
                self._first = self._gathered(self.agent.policy())
            except Stopped:
                raise KeyboardInterrupt from None  # there is nothing to save

    def _put_away(self) -> None:
        """End the experience, whose last snapshot goes into checkpoints from now on."""
        if self.experience is not None:
            self.snapshots = self.experience.snapshot()
            close(self.experience, self.settings.env, self.notice)
            self.experience = None

    def _advance(self, limit: int) -> dict[str, float]:
        if self.settings.asynchronous:
            self._advance_by_one_worker()
        else:
            self._advance_all(limit)
        mean = self.episodes.mean_return()
        return {} if mean is None else {"return": mean}

    def _advance_by_one_worker(self) -> None:
        """Learn from whichever rollout comes first, and ask that worker for the next with the newest policy."""
        for worker in self.workers:
            while len(self._asked[worker]) < AHEAD:
                self._ask(worker)
        worker = RayWorker.first_ready(self.workers)
        (rollout, collected, waited), snapshots = worker.result()
        version, policy = self._asked[worker].popleft()
        if self.step + rollout.rewards.size < self.settings.steps:
            self._ask(worker)  # before learning, so that it does not wait
        numbers = self._numbers[worker]
        self._learned(Rollout.join([rollout]), policy, numbers)
        if self.snapshots is None:
            self.snapshots = [{} for _ in range(self.settings.envs)]
        for i, snapshot in zip(numbers, snapshots, strict=True):
            self.snapshots[i] = snapshot
        self._lags.append(self._version - version)
        self._version += 1
        idle = waited / max(waited + collected, 1e-9)
        self._waits.setdefault(self.workers.index(worker), []).append(idle)

    def _ask(self, worker: RayWorker) -> None:
        policy = self.agent.policy()
        self._asked[worker].append((self._version, policy))
        worker.submit("collect_timed", self.agent.rollout_steps, policy)

    def _learned(self, rollout: Rollout, policy: np.ndarray, numbers: list[int] | None = None) -> None:
        self._learning = True
        begun = time.monotonic()
        self.agent.learn(rollout, policy, numbers)
        self._last_learning = time.monotonic() - begun
        self._seconds_learning += self._last_learning
        self._note(rollout, list(range(self.settings.envs)) if numbers is None else numbers)
        self._learning = False

    def _advance_all(self, limit: int) -> None:
        """Rollouts of all environments, each learned from before the next is collected."""
        begun, size = time.monotonic(), self.settings.round
        # The watch waits for environments, not for learning, which could not come back in its time.
        slow = self._last_learning > CHUNK_SECONDS
        with contextlib.ExitStack() as watch:
            if self.experience is not None:  # once for all: it costs as much as some steps of a quick environment
                watch.enter_context(watched(self.settings.env, self.patience))
            for done in range(size, max(limit, size) + 1, size):
                policy, rollout, snapshots = self._first or self._gathered(self.agent.policy())
                self._first = None
                if slow:
                    watch.close()
                self._learned(rollout, policy)
                self.snapshots = snapshots
                if slow or time.monotonic() - begun > CHUNK_SECONDS or done + size > limit:
                    break

    def _gathered(self, policy: np.ndarray) -> tuple[np.ndarray, Rollout, list[dict[str, Any]] | None]:
        """The policy, the next rollout with it, and from workers where the environments stand after it."""
        n_steps = self.agent.rollout_steps
        if self.experience is not None:
            return policy, self.experience.gather(n_steps, policy), None
        shared = share(policy)
        for worker in self.workers:
            worker.submit("collect", n_steps, shared)
        results = [worker.result() for worker in self.workers]
        snapshots = [snapshot for _, part in results for snapshot in part]
        return policy, Rollout.join([rollout for rollout, _ in results]), snapshots

    @property
    def _whole(self) -> bool:
        return not self._learning

    def _note(self, rollout: Rollout, numbers: list[int]) -> None:
        """Count transitions and episodes, in the order of time and then of environments."""
        running, n = self.episodes.running, len(numbers)
        for i in np.flatnonzero(rollout.restarted).tolist():
            running[numbers[i]] = 0.0
            self.notice(
                f"environment {numbers[i]} cannot be brought back to where it was; it went on with a new episode "
                f"at step {self.step}"
            )
        ended = rollout.terminated | rollout.truncated
        start = np.zeros(n, np.int64)
        for t, i in np.argwhere(ended).tolist():
            own = running[numbers[i]]
            own += rollout.rewards[start[i] : t + 1, i].sum(), t + 1 - start[i]
            self._add_episode(self.step + t * n + i + 1, float(own[0]), float(own[1]))
            own[:] = 0.0
            start[i] = t + 1
        for i in range(n):
            running[numbers[i]] += rollout.rewards[start[i] :, i].sum(), len(ended) - start[i]
        self.step += ended.size

    # --- what is said of it -------------------------------------------------------------------------------------------

    def _diagnostics(self) -> dict[str, float]:
        values = self.agent.diagnostics()
        now = time.monotonic()
        values["time/share_learning"] = self._seconds_learning / max(now - self._logged_at, 1e-9)
        self._seconds_learning, self._logged_at = 0.0, now
        if self._lags:
            values |= {"async/lag_mean": float(np.mean(self._lags)), "async/lag_max": float(max(self._lags))}
            values |= {f"async/waiting/worker_{i}": float(np.mean(s)) for i, s in sorted(self._waits.items())}
            self._lags.clear()
            self._waits.clear()
        return values

    def _document(self) -> dict[str, Any]:
        values = asdict(self.settings)
        if self.settings.optimizer == "auto":
            values["optimizer"] = self.settings.make_optimizer().as_dict()
        return values

    def _charts(self) -> dict[str, dict[str, list[str]]]:
        charts = {"Did it learn?": {"return": LEARNED_CHARTS["return"], **self.agent.charts}}
        charts["Did it learn?"]["steps per second"] = LEARNED_CHARTS["steps per second"]
        for name in self.agent.networks():
            tags = ("grad_norm", "clipped_grad_norm", "update_ratio", "weight_norm")
            charts[name.capitalize()] = network_charts(name, *tags)
        return charts


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
