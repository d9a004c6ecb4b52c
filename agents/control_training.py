"""A control run from start to end: settings, one environment, learning step by step, log, checkpoints, resume."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np

from valueapprox import DivergenceError, Optimizer, checkpoint, envs
from valueapprox.agents.base import ControlAgent
from valueapprox.agents.catalogue import AGENTS
from valueapprox.agents.checked import Checked, close, fault_of, image_note, is_image
from valueapprox.agents.control_loop import Chunk, CompiledLoop
from valueapprox.agents.rollout import make_environment, resolved_id
from valueapprox.agents.training import (
    CHECKPOINT_FILE,
    LOG_POINTS,
    SAMPLE_EVERY,
    SETTINGS_FILE,
    check_fresh,
    checkpoint_stamp,
    hold_again,
    hold_fresh,
    lost_wrappers,
    moved,
    parsed_argument,
    resumed_settings,
    save_in_spite_of,
)
from valueapprox.checks import one_of, positive, python_settings, unit_interval
from valueapprox.files import FolderLock
from valueapprox.interrupts import PATIENCE, Stop, interruptible, watched
from valueapprox.optim import OPTIMIZERS, Intentional
from valueapprox.seeding import seed_for
from valueapprox.telemetry import RunLog

__all__ = [
    "AGENTS",
    "EPISODES_FILE",
    "KIND",
    "ControlReport",
    "ControlRun",
    "ControlSettings",
    "ControlStatus",
    "complete",
    "read_episodes",
]

EPISODES_FILE = "episodes.jsonl"
KIND = "control run"  # of its checkpoints
LAST_EPISODES = 100  # whose mean return is shown
COMPILED_CHUNK = 10_000  # steps of one compiled call
FIRST_CHUNK = 100
CHUNK_SECONDS = 0.1  # of the Gymnasium loop: how long Ctrl-C and the progress bar wait

if TYPE_CHECKING:
    AgentName: TypeAlias = str
    OptimizerName: TypeAlias = str
else:  # what is registered is what the command line knows
    AgentName, OptimizerName = Literal[tuple(AGENTS)], Literal[("auto", *OPTIMIZERS)]

#: Settings of some agents alone, handed to them by name.
OWN = {"entropy": ("stream-ac",), "persistence": ("stream-ac",), "cut": ("stream-q", "qrc")}


@dataclass(frozen=True, eq=False)
class ControlSettings:
    """Everything that decides what a run learns. Two runs with equal settings end with equal weights, bit for bit."""

    env: str = "CartPole-v1"
    """Id of a Gymnasium environment; module:Id for one that a module registers."""
    env_args: dict[str, str] = field(default_factory=dict)
    """Arguments of the environment, e.g. --env-args max_episode_steps 1000."""
    agent: AgentName = "stream-ac"
    """Who learns: actor-critic(lambda), Q(lambda), Sarsa(lambda), Expected Sarsa(lambda), QRC(lambda)."""
    steps: int = 300_000
    """Transitions to learn from, each once."""
    schedule_steps: int = 0
    """Steps for which epsilon's fall is planned; 0 for those of the run. More steps on a resume leave it as planned."""
    seed: int = 0
    """Of everything random in the run."""
    hidden: tuple[int, ...] = (32, 32)
    """Units of each hidden layer, of each network; none for linear ones."""
    gamma: float = 0.99
    """Discount, in [0, 1]."""
    lam: float = 0.8
    """Trace decay, in [0, 1]."""
    optimizer: OptimizerName = "auto"
    """Turns delta times the trace into an update; auto is the agent's own: obgd; stream-ac's critic intentional."""
    alpha: float | None = None
    """Step size; the optimizer's own if not given."""
    actor_alpha: float | None = None
    """Step size of the actor, or of QRC's h; as alpha if not given, but auto and intentional have their own."""
    kappa: float | None = None
    """Of obgd and adaptive_obgd, which bound a step's change by 1 / kappa; 2 if not given."""
    actor_kappa: float | None = None
    """The same for the actor, or for QRC's h; 3 if not given."""
    entropy: float = 0.01
    """stream-ac: weight of the policy's entropy, 0 or more."""
    persistence: float = 0.95
    """stream-ac: how likely (0 to 1) an undecided policy repeats itself while all rewards are alike; 0 as published."""
    epsilon: tuple[float, float, float] = (1.0, 0.01, 0.1)
    """Others: random actions at first, at last, and the share of the schedule's steps in between (a straight line)."""
    temperature: float | None = None
    """Others: choose by softmax of q / temperature instead of epsilon-greedily."""
    cut: Literal["after", "before"] = "after"
    """stream-q, qrc: cut the trace after the update of an exploring action, as published, or before it, as Watkins."""
    average_reward: float = 0.0
    """Rate, 0 or more, at which the mean reward is learned and taken off (differential learning); 0 for none."""
    time_feature: bool = False
    """Give the agent the time of the episode, from -0.5 to 0.5 at the environment's limit, as one more input."""
    bootstrap_at_limit: bool = True
    """Bootstrap from the last state where a time limit cuts; without it, a limit is an end, as in published code."""
    normalise_observations: bool = True
    """Bring observations to mean 0 and variance 1 by their running statistics."""
    scale_rewards: bool = True
    """Divide rewards by the running standard deviation of their discounted sum."""
    keep_values: bool = True
    """When that divisor changes, keep values in the rewards' own unit as they are."""
    activation: str = "leaky_relu"
    """Of the hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    layer_norm: bool = True
    """Normalise the pre-activations of hidden layers."""
    init: str = "sparse"
    """How weights are drawn: sparse, sparse_published, zeros, lecun_..., glorot_..., he_..._normal or _uniform, ..."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and arithmetic."""
    flatten: bool = False
    """Flatten observations that are neither Box nor Discrete into one vector."""
    log_every: int = 0
    """Steps between two points of the log; 0 for fifty points a run."""

    def __post_init__(self) -> None:
        # JSON gives lists; equality wants tuples.
        python_settings(self)
        object.__setattr__(self, "hidden", tuple(int(n) for n in np.atleast_1d(self.hidden)))
        object.__setattr__(self, "epsilon", tuple(float(e) for e in self.epsilon))

    @staticmethod
    def of_others(agent: str) -> list[str]:
        """Names of the settings that mean nothing to an agent."""
        names = [name for name, owners in OWN.items() if agent not in owners]
        names += ["schedule_steps", "epsilon", "temperature"] if AGENTS[agent].learns_policy else []
        return names if AGENTS[agent].second_name else [*names, "actor_alpha", "actor_kappa"]

    def check(self) -> None:
        """Raise ValueError for what nobody else would notice."""
        positive("steps", self.steps)
        for name in ("log_every", "schedule_steps", "seed"):
            positive(name, getattr(self, name), at_least=0)
        one_of("agent", self.agent, AGENTS)
        one_of("optimizer", self.optimizer, ("auto", *OPTIMIZERS))
        for name, second in (("kappa", False), ("actor_kappa", True)):
            if getattr(self, name) is not None and not hasattr(self._own_optimizer(second), "kappa"):
                kind = type(self._own_optimizer(second)).__name__
                raise ValueError(f"{name} is {getattr(self, name)}, but {kind} has none")
        if len(self.epsilon) != 3:
            raise ValueError(f"epsilon is {self.epsilon}; first value, last value and share of the run are wanted")
        unit_interval("epsilon's share of the run", self.epsilon[2])

    @property
    def horizon(self) -> int:
        """Steps for which epsilon's fall is planned."""
        return self.schedule_steps or self.steps

    def planned(self) -> tuple[str, str] | None:
        """What is planned for `horizon` steps, and what it does afterwards; None if nothing is."""
        if self.agent == "stream-ac" or self.temperature is not None:
            return None
        return "the fall of epsilon", f"stays at {self.epsilon[1]:g}"

    def __eq__(self, other: object) -> bool:
        """Whether they mean the same run: what is left open counts as what is chosen for it."""
        return type(other) is type(self) and asdict(self.chosen()) == asdict(other.chosen())

    __hash__ = None  # type: ignore[assignment]

    def chosen(self) -> ControlSettings:
        """The same with what was left open: the environment's version, and the plan."""
        return replace(self, env=resolved_id(self.env), schedule_steps=self.horizon)

    def document(self, agent: ControlAgent) -> dict[str, Any]:
        """All settings for a person to read; instead of "auto", each network's optimizer with all of its settings."""
        values = asdict(self.chosen())
        if self.optimizer == "auto":
            networks = ((agent.name, agent.first), (agent.second_name, agent.second))
            values["optimizer"] = {name: learner.optimizer.as_dict() for name, learner in networks if name}
        return values

    def arguments(self) -> dict[str, Any]:
        """The environment's arguments, read as numbers, true, false or null where they are."""
        return {name: parsed_argument(value) for name, value in self.env_args.items()}

    def make_optimizer(self, second: bool = False) -> Optimizer:
        """The optimizer of the value network, or of the second one: the actor, or QRC's h."""
        optimizer = self._own_optimizer(second)
        alpha = self.actor_alpha if second else self.alpha
        if second and alpha is None and self.optimizer not in ("auto", "intentional"):
            alpha = self.alpha
        kappa = self.actor_kappa if second else self.kappa
        given: dict[str, Any] = {n: v for n, v in (("alpha", alpha), ("kappa", kappa)) if v is not None}
        return replace(optimizer, **given) if given else optimizer

    def _own_optimizer(self, second: bool) -> Optimizer:
        """The same where neither alpha nor kappa is given."""
        if self.optimizer == "auto":
            return AGENTS[self.agent].default_optimizers[second]
        cls = OPTIMIZERS[self.optimizer]
        if hasattr(cls, "kappa"):
            kappa: dict[str, Any] = {"kappa": 3.0 if second else 2.0}
            return cls(**kappa)
        if cls is Intentional and second and self.agent == "stream-ac":
            # with the published 0.05 policies collapse
            return Intentional(alpha=0.005, epsilon=1e-8, clip=20.0, normalise=True)
        return cls()

    def make_agent(self, env: gym.Env[Any, Any]) -> ControlAgent:
        """A fresh agent for an environment."""
        limit = None
        if self.time_feature:
            limit = env.spec.max_episode_steps if env.spec else None
            if not limit or limit < 0:
                raise ValueError(f"time_feature is set, but {self.env} has no time limit")
        own: dict[str, Any] = {name: getattr(self, name) for name, owners in OWN.items() if self.agent in owners}
        first, last, share = self.epsilon
        agent = AGENTS[self.agent](
            env.observation_space,
            env.action_space,
            self.hidden,
            self.make_optimizer(),
            self.make_optimizer(second=True),
            self.gamma,
            self.lam,
            normalise_observations=self.normalise_observations,
            scale_rewards=self.scale_rewards,
            keep_values=self.keep_values,
            time_limit=limit,
            bootstrap_at_limit=self.bootstrap_at_limit,
            average_reward=self.average_reward,
            epsilon=(first, last, round(share * self.horizon)),
            temperature=self.temperature,
            activation=self.activation,
            layer_norm=self.layer_norm,
            init=self.init,
            dtype=self.dtype,
            flatten=self.flatten,
            seed=self.seed,
            **own,
        )
        agent.sample_every = SAMPLE_EVERY
        return agent

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ControlSettings:
        """Settings as a checkpoint holds them."""
        known = {f.name for f in fields(cls)}
        own = {name: value for name, value in values.items() if name in known}
        if isinstance(own.get("optimizer"), dict):  # as `document` writes those that were chosen
            own["optimizer"] = "auto"
        if "optimizer" in own:
            own["optimizer"] = own["optimizer"].replace("-", "_")  # as version 0.1 spelled them
        return cls(**moved(own))


@dataclass(frozen=True)
class ControlStatus:
    """What a progress bar shows."""

    step: int
    steps: int
    steps_per_second: float
    mean_return: float | None  # of the last episodes


@dataclass(frozen=True)
class ControlReport:
    """How a run ended."""

    folder: Path
    step: int
    interrupted: int  # by which signal; 0: not
    seconds: float
    steps_per_second: float
    n_episodes: int
    mean_return: float | None  # of the last `LAST_EPISODES`


class ControlRun:
    """One control run in a folder: one agent, one environment, one stream of experience.

    Parameters
    ----------
    settings
        What to learn; with `resume`, None for those of the run, or the same ones with more steps: the resumed run is
        then the longer one with the same `schedule_steps`, bit for bit. Other `schedule_steps` change the plan.
    folder
        Where log, settings, episodes and checkpoint lie. A fresh run wants a folder without a run in it.
    resume
        Continue from the folder's checkpoint: bit for bit where `envs.env_state` knows the environment; others begin a
        new episode.
    compiled
        Run a compiled world in the compiled loop. False takes the Gymnasium loop, for comparison: the same bits.
    notice
        Called with a sentence when something noteworthy happens.

    Raises
    ------
    ValueError
        If a setting makes no sense. Nothing has been written then.
    FileExistsError
        If a fresh run's folder holds a run.
    CheckpointError
        If there is nothing to resume, or it is damaged.
    """

    def __init__(
        self,
        settings: ControlSettings | None,
        folder: str | Path,
        *,
        resume: bool = False,
        compiled: bool = True,
        notice: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.folder, self.notice, self.resumed = Path(folder), notice, resume
        self._stamp = checkpoint_stamp(self.folder)
        if resume:
            self.settings: ControlSettings = resumed_settings(settings, self.stored_settings(folder), notice)
        else:
            assert settings is not None, "a fresh run has settings"
            settings.check()
            self.settings = settings.chosen()
            check_fresh(self.folder)
        self.settings.check()
        self.remarks: list[str] = []  # for the log
        self.lost = False  # whether the environment stands where no step ended
        self.patience = PATIENCE
        with watched(self.settings.env):
            self.env = make_environment(self.settings.env, **self.settings.arguments())
        self.checked = Checked(self.env, self.settings.env, 0)
        try:
            self.agent = self.settings.make_agent(self.env)
            space = self.env.observation_space
            if not resume and is_image(space):
                notice(image_note(self.settings.env, space, self.agent.encode.size, self.settings.hidden))
            self.step = self.logged = 0
            self.running = np.zeros(2)  # return and length of the running episode
            self.finished = np.zeros(3)  # since the last log: number of episodes, sum of returns, sum of lengths
            self.last_returns: deque[float] = deque(maxlen=LAST_EPISODES)
            if resume:
                self._restore()
            else:
                self._begin(seed_for(self.settings.seed, "environment", 0))
        except BaseException:
            close(self.env, self.settings.env, self.notice)
            raise
        self.loop: CompiledLoop | None = None
        found = envs.compiled_world(self.settings.env, **self.settings.arguments()) if compiled else None
        if found is not None and CompiledLoop.fits(self.agent, self.env, found[0]):
            self.loop = CompiledLoop(self.agent, self.env, *found, self.running)

    def _begin(self, seed: int) -> None:
        """Start an episode in an environment that is seeded anew."""
        with watched(self.settings.env):
            observation, _ = self.checked.reset(seed=seed)
        self.agent.start(observation)
        self.running[:] = 0.0

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint from which the run goes on bit for bit."""
        arrays = {f"agent/{name}": array for name, array in self.agent.state_dict().items()}
        arrays |= {"episodes/running": self.running, "episodes/finished": self.finished}
        where = None if self.lost else envs.env_state(self.env)
        if where is not None:
            arrays["environment/state"] = where["world"].pop("state")
        meta = {
            "kind": KIND,
            "settings": asdict(self.settings),
            "step": self.step,
            "logged": self.logged,
            "environment": where,
            "wrappers": envs.wrapper_states(self.env),
        }
        checkpoint.save(self.folder / CHECKPOINT_FILE, arrays, meta)
        self._stamp = checkpoint_stamp(self.folder)

    @staticmethod
    def stored_settings(folder: str | Path) -> ControlSettings:
        """What the run in a folder was started with, or CheckpointError."""
        path = Path(folder) / CHECKPOINT_FILE
        return _settings_of(path, checkpoint.load(path).meta)

    @staticmethod
    def load_agent(
        path: str | Path, notice: Callable[[str], None] = warnings.warn
    ) -> tuple[ControlAgent, ControlSettings]:
        """The agent of a run's checkpoint file as far as it has learned, and the run's settings."""
        arrays, meta = checkpoint.load(path)
        settings = _settings_of(Path(path), meta)
        env = make_environment(settings.env, **settings.arguments())
        try:
            agent = settings.make_agent(env)
        finally:
            close(env, settings.env, notice)
        _restore_agent(agent, arrays, Path(path))
        return agent, settings

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        arrays, meta = checkpoint.load(path)
        _restore_agent(self.agent, arrays, path)
        try:
            self.step, self.logged = int(meta["step"]), int(meta["logged"])
            self.running[:], self.finished[:] = arrays["episodes/running"], arrays["episodes/finished"]
            where = meta["environment"]
            if where is not None:
                where["world"]["state"] = arrays["environment/state"]
        except (KeyError, TypeError, ValueError) as error:
            raise _no_run(path, error) from None
        for line in read_episodes(self.folder, self.step)[-LAST_EPISODES:]:
            self.last_returns.append(line["return"])
        if where is not None:
            envs.restore_env_state(self.env, where)
        elif self.step < self.settings.steps:
            envs.restore_wrappers(self.env, meta.get("wrappers", []))
            self._begin(seed_for(self.settings.seed, "restart", self.step))
            self._remark(
                f"{self.settings.env} cannot be brought back to where it was; it goes on with a new episode at step "
                f"{self.step}"
            )
            if lost := envs.unknown_wrappers(self.env):
                self._remark(lost_wrappers(self.settings.env, lost))

    def _remark(self, sentence: str) -> None:
        """Say it, now and in the log."""
        self.notice(sentence)
        self.remarks.append(sentence)

    # --- learning ----------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        checkpoint_every: float = 30.0,
        patience: float = PATIENCE,
        progress: Callable[[ControlStatus], None] = lambda status: None,
    ) -> ControlReport:
        """Learn until the run's steps are done, or until Ctrl-C, SIGTERM or SIGHUP; all end with a checkpoint.

        So does an error of the environment, which is raised once what was learned is saved. Learning that diverges is
        not saved: the last checkpoint stands.

        Parameters
        ----------
        checkpoint_every
            Seconds between two checkpoints.
        patience
            Seconds after which an environment that does not come back from a step ends the run; 0 for no limit.
        progress
            Called some ten times a second.

        Raises
        ------
        TimeoutError
            If the environment hangs.
        """
        self.patience = patience
        with contextlib.ExitStack() as stack:
            stack.callback(close, self.env, self.settings.env, self.notice)
            if self.resumed:
                lock = hold_again(self.folder, self._stamp, self.notice)
            else:
                lock = hold_fresh(self.folder, self.notice)
            log = stack.enter_context(self._open_log(stack.enter_context(lock)))
            self._episodes_file = stack.enter_context((self.folder / EPISODES_FILE).open("a", encoding="utf-8"))
            stop = stack.enter_context(interruptible())
            self._clock = (time.monotonic(), self.step)
            try:
                interrupted = self._learn(log, stop, checkpoint_every, progress)
            except (Exception, KeyboardInterrupt) as error:
                # Not what diverged, nor what an interruption has left half done.
                if isinstance(error, FloatingPointError) or self.step != self.agent.n_steps:
                    raise
                save_in_spite_of(error, lambda: self._save(log), self)
                if not (stop.is_set() and isinstance(error, KeyboardInterrupt)):
                    raise
                interrupted = stop.number
            rate = self._rate()
            if not interrupted:
                self._log(log)  # an interrupted run logs no point that an uninterrupted one would not have
            self._save(log)
        n_episodes = len(read_episodes(self.folder))
        seconds = time.monotonic() - self._clock[0]
        return ControlReport(self.folder, self.step, interrupted, seconds, rate, n_episodes, self._mean_return())

    def _rate(self) -> float:
        """Steps per second since the kernels were loaded."""
        return (self.step - self._clock[1]) / max(time.monotonic() - self._clock[0], 1e-9)

    def _mean_return(self) -> float | None:
        return sum(self.last_returns) / len(self.last_returns) if self.last_returns else None

    def _open_log(self, lock: FolderLock) -> RunLog:
        settings = json.dumps(self.settings.document(self.agent), indent=2)
        checkpoint.write_whole(self.folder / SETTINGS_FILE, lambda file: file.write(settings.encode()))
        log = RunLog(self.folder, self.logged if self.resumed else None, lock=lock)
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        kept = "".join(json.dumps(line) + "\n" for line in read_episodes(self.folder, self.step))
        checkpoint.write_whole(self.folder / EPISODES_FILE, lambda file: file.write(kept.encode()))
        for n, remark in enumerate(self.remarks):
            log.text(f"resumed at step {self.step}/{n}", remark, self.step)
        if not self.resumed:
            log.text("settings", f"```json\n{settings}\n```")
            names = [name for name in (self.agent.name, self.agent.second_name) if name]
            log.layout(
                {
                    name.capitalize(): {
                        "gradient norm per layer": [rf"{name}/grad_norm/.*"],
                        "trace norm per layer": [rf"{name}/trace_norm/.*"],
                        "update / weight norm per layer": [rf"{name}/update_ratio/.*"],
                        "weight norm per layer": [rf"{name}/weight_norm/.*"],
                        "step size": [rf"{name}/step_size"],
                        "dead units per layer": [rf"{name}/dead_units/.*"],
                    }
                    for name in names
                }
            )
            self.save()
        return log

    def _save(self, log: RunLog) -> None:
        log.flush()
        self._episodes_file.flush()
        self.save()

    def _learn(
        self,
        log: RunLog,
        stop: Stop,
        checkpoint_every: float,
        progress: Callable[[ControlStatus], None],
    ) -> int:
        """Returns the signal that ended it too early, or 0."""
        settings = self.settings
        if self.loop is None:
            self._compile()
        last_save = time.monotonic()
        log_every = settings.log_every or max(1, settings.steps // LOG_POINTS)
        size, warm = 1, False  # time is taken from the second step on: the first one loads kernels, or compiles them
        while self.step < settings.steps:
            n = min(size, settings.steps - self.step, log_every - self.step % log_every)
            begun = time.monotonic()
            self._note(self.loop.run(n) if self.loop is not None else self._gymnasium_chunk(n))
            now = time.monotonic()
            if not warm and self.step < settings.steps:
                self._clock, warm = (now, self.step), True
                size = COMPILED_CHUNK if self.loop is not None else FIRST_CHUNK
            elif self.loop is None:
                size = max(1, min(COMPILED_CHUNK, int(n * CHUNK_SECONDS / max(now - begun, 1e-9))))
            if self.step % log_every == 0:
                self._log(log)
            if stop.number != signal.SIGHUP:  # then there is no terminal
                progress(ControlStatus(self.step, settings.steps, self._rate(), self._mean_return()))
            if stop.is_set():
                return stop.number if self.step < settings.steps else 0
            if now - last_save > checkpoint_every:
                self._save(log)
                last_save = now
        return 0

    def _compile(self) -> None:
        """Load or compile what a step calls, on copies, so that nobody takes it for an environment that hangs."""
        state = self.agent._state(self.env.observation_space.sample())
        copies = [np.array(array) if isinstance(array, np.ndarray) else array for array in self.agent.arrays]
        self.agent.learn(state, 0.0, False, False, *copies)

    def _gymnasium_chunk(self, n: int) -> Chunk:
        """Take n steps of the environment, whatever it is; at an ending, the final observation is learned from.

        Fewer if the process is asked to end. What was learned before an error is noted.
        """
        env, agent = self.checked, self.agent
        env.n_steps = self.step
        env_step, learn = env.step, agent.step
        total, length = float(self.running[0]), int(self.running[1])
        before, done, episodes = agent.n_steps, 0, []
        action = agent.action()
        try:
            with watched(self.settings.env, self.patience) as watch:
                for t in range(1, n + 1):
                    observation, reward, terminated, truncated, _ = env_step(action)
                    if terminated or truncated:
                        agent.end(float(reward), observation, bool(terminated))
                        episodes.append((t, total + float(reward), length + 1))
                        total, length = 0.0, 0
                        observation, _ = env.reset()
                        action = agent.start(observation)
                    else:
                        action = learn(reward, observation)
                        total += float(reward)
                        length += 1
                    done = t
                    if watch.tick():
                        break
        except BaseException as error:
            self.lost = True
            self.running[:] = total, length
            self._note(_chunk(agent.n_steps - before, episodes))
            if isinstance(error, ValueError) and fault_of(error) is None:
                raise env.named(error) from error  # an observation that is not a number, or a reward too large
            raise
        self.running[:] = total, length
        return _chunk(done, episodes)

    def _note(self, chunk: Chunk) -> None:
        for at, total, length in chunk.episodes.tolist():
            line = {"step": self.step + int(at), "return": total, "length": int(length)}
            self._episodes_file.write(json.dumps(line) + "\n")
            self.last_returns.append(total)
            self.finished += 1.0, total, length
        self.step += chunk.n_steps
        if not all(np.isfinite(learner.w).all() for learner in (self.agent.first, self.agent.second)):
            raise DivergenceError(f"a weight is infinite or NaN at step {self.step}: learning has diverged")

    def _log(self, log: RunLog) -> None:
        if self.step == self.logged:
            return
        values = {tag: float(number) for tag, number in self.agent.diagnostics().items()}
        number, returns, lengths = self.finished
        if number > 0:
            values["episode/return"], values["episode/length"] = float(returns / number), float(lengths / number)
            self.finished[:] = 0.0
        values["time/steps_per_second"] = self._rate()
        log.scalars(self.step, values)
        self.logged = self.step


def _chunk(n_steps: int, episodes: list[tuple[int, float, int]]) -> Chunk:
    return Chunk(n_steps, np.array(episodes, np.float64).reshape(-1, 3))


def complete(settings: ControlSettings, folder: str | Path) -> list[dict[str, Any]]:
    """The episodes of a run, which is begun, continued or only read, as its folder has it."""
    begun = (Path(folder) / CHECKPOINT_FILE).exists()
    run = ControlRun(settings, folder, resume=begun)
    if run.step < settings.steps:
        run.train()
    else:
        close(run.env, settings.env)
    return read_episodes(folder)


def read_episodes(folder: str | Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The run's episodes that ended by a step, in order: {"step": ..., "return": ..., "length": ...}."""
    path = Path(folder) / EPISODES_FILE
    if not path.exists():
        return []
    # a crash may have left half a line at the end
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [episode for episode in map(json.loads, lines) if episode["step"] <= last_step]


def _no_run(path: Path, error: Exception | str) -> checkpoint.CheckpointError:
    return checkpoint.CheckpointError(f"{path} is no checkpoint of a control run ({error!r})")


def _settings_of(path: Path, meta: Mapping[str, Any]) -> ControlSettings:
    if meta.get("kind") != KIND:
        raise _no_run(path, f"its kind is {meta.get('kind')}")
    if "least_error" in meta.get("settings", ()):
        raise checkpoint.CheckpointError(
            f"{path} was written by version 0.1, whose stream-ac had other state; expected a checkpoint of this "
            "version. Install valueapprox 0.1 to go on with it, or train anew"
        )
    try:
        return ControlSettings.from_dict(meta["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_run(path, error) from None


def _restore_agent(agent: ControlAgent, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    try:
        agent.restore({name.removeprefix("agent/"): a for name, a in arrays.items() if name.startswith("agent/")})
    except (KeyError, ValueError) as error:
        raise _no_run(path, error) from None
