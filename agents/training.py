"""A prediction run from start to end: settings, rollouts, learning, log, checkpoints, resume."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from valueapprox import DivergenceError, Network, Optimizer, ValueFunction, checkpoint
from valueapprox.agents import evaluation
from valueapprox.agents.checked import Checked, close, guarded, image_note, is_image
from valueapprox.agents.policies import make_policy, resolve
from valueapprox.agents.rollout import (
    AUTORESET,
    Block,
    GymnasiumRollout,
    Task,
    load_kernels,
    make_environment,
    make_rollout,
    resolved_id,
)
from valueapprox.agents.spaces import encoder
from valueapprox.checks import one_of, positive, python_settings
from valueapprox.cluster import LocalWorker, RayWorker, Worker, cluster
from valueapprox.envs import unknown_wrappers
from valueapprox.files import LOCK_FILE, FolderLock
from valueapprox.interrupts import PATIENCE, Stop, Stopped, interruptible, watched
from valueapprox.optim import (
    OPTIMIZERS,
    STREAM_ADAM,
    Adam,
    Constant,
    CosineDecay,
    InverseTime,
    LinearDecay,
    Schedule,
)
from valueapprox.seeding import sequence
from valueapprox.td.base import settings_of
from valueapprox.telemetry import RunLog, hold

__all__ = ["CHECKPOINT_FILE", "Report", "Run", "Settings", "Status"]

CHECKPOINT_FILE = "checkpoint.npz"
SETTINGS_FILE = "settings.json"
SAMPLE_EVERY = 64  # updates between two whose norms are measured: costs about 1 %
LOG_POINTS = 50  # of a run, by default


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything that decides what a run learns. Two runs with equal settings end with equal weights, bit for bit."""

    env: str = "CartPole-v1"
    """Id of a Gymnasium environment with Box or Discrete observations; module:Id for one that a module registers."""
    env_args: dict[str, str] = field(default_factory=dict)
    """Arguments of the environment, e.g. --env-args n_states 1000 jump 100 features aggregation."""
    agent: Literal["td", "n-step", "monte-carlo"] = "td"
    """How values are learned: TD(lambda), n-step TD, or gradient Monte Carlo."""
    policy: str = "auto"
    """Whose values: auto, random, heuristic, or module:function taking (observation, rng)."""
    noise: float | None = None
    """Probability of a random action instead of the policy's; 0.1 for a heuristic if not given."""
    gamma: float = 0.99
    """Discount, in [0, 1]."""
    lam: float = 0.9
    """Trace decay of TD(lambda), in [0, 1]."""
    n: int = 8
    """Steps of n-step TD."""
    hidden: tuple[int, ...] = (64,)
    """Units of each hidden layer; none for a linear value function."""
    activation: str = "relu"
    """Of the hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    output: str = "linear"
    """Activation of the value itself."""
    bias: bool = True
    """Whether layers have biases."""
    layer_norm: bool = False
    """Normalise the pre-activations of hidden layers."""
    init: str = "he_normal"
    """How weights are drawn: zeros, lecun_..., glorot_..., he_..._normal or _uniform, orthogonal, sparse."""
    optimizer: Literal["sgd", "momentum", "rmsprop", "adam"] = "adam"
    """Turns delta times the trace into an update."""
    alpha: tuple[float, ...] = (3e-3,)
    """Step size: one, or one per layer."""
    schedule: Literal["constant", "linear", "inverse-time", "cosine"] = "linear"
    """Of the step size: linear and cosine end at a hundredth; inverse-time is halved after a tenth of the run."""
    clip_norm: float | None = None
    """Longest update direction; longer ones are scaled down."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and arithmetic."""
    steps: int = 300_000
    """Transitions to learn from."""
    schedule_steps: int = 0
    """Steps for which the schedule is planned; 0 for those of the run. More steps on a resume leave it as planned."""
    envs: int = 8
    """Environments, each a stream of experience with a trace of its own."""
    block: int = 512
    """Transitions that a worker collects of each environment before it sends them."""
    autoreset: Literal["same-step", "next-step", "disabled"] = "same-step"
    """How Gymnasium's vector environment starts episodes; changes nothing in what is learned."""
    flatten: bool = False
    """Flatten observations that are neither Box nor Discrete into one vector."""
    log_every: int = 0
    """Steps between two points of the log; 0 for fifty points a run."""
    seed: int = 0
    """Of everything random in the run."""

    def __post_init__(self) -> None:
        # JSON gives lists; equality wants tuples.
        python_settings(self)
        object.__setattr__(self, "hidden", tuple(int(n) for n in np.atleast_1d(self.hidden)))
        object.__setattr__(self, "alpha", tuple(float(a) for a in np.atleast_1d(self.alpha)))

    @staticmethod
    def of_others(agent: str) -> list[str]:
        """Names of the settings that mean nothing to an agent."""
        return [name for name in ("lam", "n") if name not in settings_of(agent)]

    def check(self) -> None:
        """Raise ValueError for a number out of range that nobody else would notice."""
        for name in ("steps", "envs", "block", "n"):
            positive(name, getattr(self, name))
        for name in ("log_every", "schedule_steps", "seed"):
            positive(name, getattr(self, name), at_least=0)
        one_of("autoreset", self.autoreset, AUTORESET)

    @property
    def horizon(self) -> int:
        """Steps for which the schedule is planned."""
        return self.schedule_steps or self.steps

    def planned(self) -> tuple[str, str] | None:
        """What is planned for `horizon` steps, and what it does afterwards; None if nothing is."""
        if self.schedule == "constant":
            return None
        afterwards = "goes on falling" if self.schedule == "inverse-time" else "stays at its last value, 0.01 alpha"
        return f"the {self.schedule} schedule of the step size", afterwards

    def __eq__(self, other: object) -> bool:
        """Whether they mean the same run: what is left open counts as what is chosen for it."""
        return type(other) is type(self) and asdict(self.chosen()) == asdict(other.chosen())

    __hash__ = None  # type: ignore[assignment]

    def chosen(self) -> Settings:
        """The same with what was left open: the environment's version, the policy and its noise, the plan."""
        env = resolved_id(self.env)
        policy, noise = self.policy, self.noise
        with contextlib.suppress(ValueError):  # which `task` raises
            policy, noise = resolve(policy, noise, env)
        return replace(self, env=env, policy=policy, noise=noise, schedule_steps=self.horizon)

    def task(self) -> Task:
        """What workers follow."""
        env = resolved_id(self.env)
        policy, noise = resolve(self.policy, self.noise, env)
        arguments = {name: parsed_argument(value) for name, value in self.env_args.items()}
        return Task(env, policy, noise, arguments, self.seed, self.dtype, self.flatten, self.autoreset)

    def make_optimizer(self) -> Optimizer:
        """The optimizer, its schedule stretched over the updates that it is planned for."""
        schedules: dict[str, Schedule] = {
            "constant": Constant(),
            "linear": LinearDecay(steps=self.horizon, final=0.01),
            "cosine": CosineDecay(steps=self.horizon, final=0.01),
            "inverse-time": InverseTime(steps=max(1, self.horizon // 10)),
        }
        schedule = schedules[one_of("schedule", self.schedule, schedules)]
        cls = OPTIMIZERS[one_of("optimizer", self.optimizer, OPTIMIZERS)]
        alpha = self.alpha if len(self.alpha) > 1 else self.alpha[0]
        plain = STREAM_ADAM if cls is Adam else cls()
        return replace(plain, alpha=alpha, schedule=schedule, clip_norm=self.clip_norm)

    def make_value_function(self, n_inputs: int) -> ValueFunction:
        """A fresh value function for states of this size."""
        net = Network((n_inputs, *self.hidden, 1), self.activation, self.output, self.bias, self.layer_norm, self.dtype)
        value_function = ValueFunction(
            net,
            self.make_optimizer(),
            self.gamma,
            method=self.agent,
            seed=sequence(self.seed, "weights"),
            scheme=self.init,
            streams=self.envs,
            **{name: getattr(self, name) for name in settings_of(self.agent)},
        )
        value_function.sample_every = SAMPLE_EVERY
        return value_function

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings as a checkpoint holds them."""
        known = {f.name for f in fields(cls)}
        return cls(**moved({name: value for name, value in values.items() if name in known}))


def moved(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run; up to version 0.2 `valueapprox.envs` and `valueapprox.agents` were called `envs`, `agents`."""
    found = {name: settings[name] for name in ("env", "policy") if name in settings}
    return {
        **settings,
        **{n: re.sub(r"^(?=envs:valueapprox/|agents\.policies:)", "valueapprox.", v) for n, v in found.items()},
    }


def check_fresh(folder: Path) -> None:
    """Raise FileExistsError if a fresh run's folder holds something."""
    if folder.exists() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; choose another --run-dir, or --resume {folder}")


def checkpoint_stamp(folder: Path) -> tuple[int, ...]:
    """What tells the checkpoint in a run's folder from any other that takes its place; () if there is none."""
    with contextlib.suppress(OSError):
        status = (folder / CHECKPOINT_FILE).stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return ()


def hold_fresh(folder: Path, notice: Callable[[str], None]) -> FolderLock:
    """Make the folder of a fresh run and hold it, or raise FileExistsError without having changed anything."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = hold(folder, notice)
    try:
        check_fresh(folder)  # another process may have begun a run there since the first look
    except BaseException:
        lock.close()
        raise
    return lock


def hold_again(folder: Path, stamp: tuple[int, ...], notice: Callable[[str], None]) -> FolderLock:
    """Hold the folder of a run whose checkpoint was read at `stamp`, or raise FileExistsError."""
    lock = hold(folder, notice)
    if checkpoint_stamp(folder) != stamp:
        lock.close()
        raise FileExistsError(f"another process has continued the run in {folder} meanwhile; resume it again")
    return lock


def lost_wrappers(env: str, names: list[str]) -> str:
    """What is said of wrappers that nobody can save."""
    what = ", ".join(names)
    return f"what the wrapper{'s' * (len(names) > 1)} {what} of {env} kept, such as running statistics, was not saved"


def save_in_spite_of(error: BaseException, save: Callable[[], Any], run: Any) -> None:
    """Save a run that an error ends, and say how it can go on."""
    try:
        save()
    except OSError as another:
        run.notice(f"what was learned since the last checkpoint cannot be saved ({another})")
    else:
        why = f"{run.settings.env} was left behind" if isinstance(error, KeyboardInterrupt) else "there was an error"
        run.notice(
            f"{why}; what was learned up to step {run.step:,} is saved, and train.py --resume "
            f"{shlex.quote(str(run.folder))} goes on from there"
        )


def resumed_settings(settings: Any, stored: Any, notice: Callable[[str], None]) -> Any:
    """The settings of a resumed run: None for the stored ones, or the same with other steps, or another plan.

    Says what becomes of the plan. Raises ValueError if anything else differs.
    """
    stored = stored.chosen()
    if settings is None:
        return stored
    if not settings.schedule_steps:
        settings = replace(settings, schedule_steps=stored.schedule_steps)
    settings = settings.chosen()
    for f in fields(stored):
        given, old = getattr(settings, f.name), getattr(stored, f.name)
        if f.name not in ("steps", "schedule_steps") and given != old:
            raise ValueError(
                f"the run was started with {f.name} {old!r}, not {given!r}; only steps and schedule_steps can change "
                "on a resume"
            )
    if settings.planned() is not None:
        what, afterwards = settings.planned()
        if settings.horizon != stored.horizon:
            notice(
                f"{what} was planned for {stored.horizon:,} steps, and is now stretched over {settings.horizon:,}: "
                "this is not the run that would have been planned so from the start"
            )
        elif settings.steps > max(stored.steps, settings.horizon):
            notice(f"{what} was planned for {stored.horizon:,} steps; afterwards it {afterwards} (--schedule-steps)")
    return settings


def parsed_argument(value: Any) -> Any:
    """An environment's argument from the command line: a number, true, false or null where it reads as one."""
    with contextlib.suppress(ValueError):
        return json.loads(value) if isinstance(value, str) else value
    return value


@dataclass(frozen=True)
class Status:
    """What a progress bar shows."""

    step: int
    steps: int
    steps_per_second: float
    td_error: float
    value_error: float | None


@dataclass(frozen=True)
class Report:
    """How a run ended."""

    folder: Path
    step: int
    interrupted: int  # by which signal; 0: not
    seconds: float
    first_step_after: float
    value_error: float | None


@dataclass
class _Episodes:
    """Undiscounted return and length of running episodes, and sums of finished ones since the last log."""

    running: np.ndarray  # (n, 2)
    finished: np.ndarray  # (3,): number, sum of returns, sum of lengths

    def add(self, i: int, rewards: np.ndarray, ended: np.ndarray) -> None:
        start = 0
        for stop in [*(np.flatnonzero(ended) + 1), len(rewards)]:
            self.running[i] += rewards[start:stop].sum(), stop - start
            if stop > start and ended[stop - 1]:
                self.finished += (1.0, *self.running[i])
                self.running[i] = 0.0
            start = stop


class Run:
    """One prediction run in a folder.

    Parameters
    ----------
    settings
        What to learn; with `resume`, None for those of the run, or the same ones with more steps: the resumed run is
        then the longer one with the same `schedule_steps`, bit for bit. Other `schedule_steps` change the plan.
    folder
        Where log, settings and checkpoint lie. A fresh run wants a folder without a run in it.
    resume
        Continue from the folder's checkpoint.
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
        settings: Settings | None,
        folder: str | Path,
        *,
        resume: bool = False,
        notice: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.folder, self.notice, self.resumed = Path(folder), notice, resume
        self._stamp = checkpoint_stamp(self.folder)
        if resume:
            self._restore(settings)
        else:
            assert settings is not None, "a fresh run has settings"
            settings.check()
            self.settings = settings.chosen()
            check_fresh(self.folder)
        self.settings.check()
        self.task = self.settings.task()
        n_inputs = self._try_environment()
        self.known = evaluation.truth(self.task, self.settings.gamma)
        if not resume:
            self.value_function = self.settings.make_value_function(n_inputs)
            self.step = self.logged = 0
            self.snapshots: list[Any] = [None] * self.settings.envs
            self.episodes = _Episodes(np.zeros((self.settings.envs, 2)), np.zeros(3))
        if resume and self.unknown_wrappers and self.step < self.settings.steps:
            self.notice(lost_wrappers(self.settings.env, self.unknown_wrappers))
        self.value_error = None if self.known is None else evaluation.rmsve(self.value_function, self.known)

    def _try_environment(self) -> int:
        """Take one action here, so that what cannot work fails before any worker starts; returns the state's length."""
        with watched(self.task.env):
            return self._tried()

    def _tried(self) -> int:
        env = make_environment(self.task.env, **self.task.env_args)
        try:
            self.unknown_wrappers = unknown_wrappers(env)
            n_inputs = encoder(env.observation_space, self.task.flatten).size
            if not self.resumed and is_image(env.observation_space):
                self.notice(image_note(self.task.env, env.observation_space, n_inputs, self.settings.hidden))
            policy = make_policy(self.task.policy, self.task.noise, self.task.env, env.action_space)
            observation, _ = Checked(env, self.task.env).reset(seed=0)
            action = guarded(policy, self.task.policy)(observation, np.random.default_rng(0))
            if not env.action_space.contains(action):
                raise ValueError(
                    f"policy {self.task.policy!r} chose {action!r}; expected an action in {env.action_space}"
                )
        finally:
            close(env, self.task.env, self.notice)
        return n_inputs

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint from which the run goes on bit for bit."""
        arrays, description = self.value_function.state_dict()
        named = {f"value/{name}": array for name, array in arrays.items()}
        streams = []
        for i, snapshot in enumerate(self.snapshots):
            plain = {}
            for name, value in (snapshot or {}).items():
                if isinstance(value, np.ndarray):
                    named[f"stream_{i}/{name}"] = value
                else:
                    plain[name] = value
            streams.append(plain)
        named["episodes/running"], named["episodes/finished"] = self.episodes.running, self.episodes.finished
        meta = {
            "kind": "prediction",
            "prefix": "value/",
            "value_function": description,
            "settings": asdict(self.settings),
            "step": self.step,
            "logged": self.logged,
            "streams": streams,
        }
        checkpoint.save(self.folder / CHECKPOINT_FILE, named, meta)
        self._stamp = checkpoint_stamp(self.folder)

    @staticmethod
    def stored_settings(folder: str | Path) -> Settings:
        """What the run in a folder was started with, or CheckpointError."""
        path = Path(folder) / CHECKPOINT_FILE
        meta = checkpoint.load(path).meta
        try:
            return Settings.from_dict(meta["settings"])
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"{path} is no checkpoint of a prediction run ({error!r})") from None

    def _restore(self, settings: Settings | None) -> None:
        path = self.folder / CHECKPOINT_FILE
        arrays, meta = checkpoint.load(path)
        stored = self.stored_settings(self.folder)
        self.settings = resumed_settings(settings, stored, self.notice)
        try:
            value = {name.removeprefix("value/"): a for name, a in arrays.items() if name.startswith("value/")}
            checkpoint.must_be_finite(value)
            description = dict(meta["value_function"])
            if self.settings.horizon != stored.horizon:
                description["optimizer"] = self.settings.make_optimizer().as_dict()
            self.value_function = ValueFunction.from_state(value, description)
            self.step, self.logged = int(meta["step"]), int(meta["logged"])
            self.snapshots = []
            for i, plain in enumerate(meta["streams"]):
                prefix = f"stream_{i}/"
                own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
                self.snapshots.append({**plain, **own} or None)
            self.episodes = _Episodes(arrays["episodes/running"].copy(), arrays["episodes/finished"].copy())
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise checkpoint.CheckpointError(f"{path} is no checkpoint of a prediction run ({error!r})") from None

    # --- learning ----------------------------------------------------------------------------------------------------

    def train(
        self,
        n_workers: int = 2,
        *,
        ray_address: str | None = None,
        checkpoint_every: float = 30.0,
        patience: float = PATIENCE,
        progress: Callable[[Status], None] = lambda status: None,
    ) -> Report:
        """Learn until the run's steps are done, or until Ctrl-C, SIGTERM or SIGHUP; all end with a checkpoint.

        So does an error of the environment, which is raised once what was learned is saved. Learning that diverges is
        not saved: the last checkpoint stands.

        Parameters
        ----------
        n_workers
            Ray workers that collect experience; 0 collects in this process. The weights do not depend on it.
        ray_address
            Of a Ray cluster; None starts one on this machine.
        checkpoint_every
            Seconds between two checkpoints.
        patience
            Seconds after which an environment, or a Ray worker, that does not answer ends the run; 0 for no limit. A
            worker's first block may take five times as long, others ten times as long as the slowest before.
        progress
            Called after every block.

        Raises
        ------
        TimeoutError
            If an environment hangs, or Ray's workers do not start or do not answer.
        """
        positive("workers", n_workers, at_least=0)
        if n_workers > self.settings.envs:
            raise ValueError(f"{n_workers} workers for {self.settings.envs} environments; each wants at least one")
        started = time.monotonic()
        self.first_step_after = math.nan
        self._in_block = False
        if self.step < self.settings.steps:
            self._load_kernels(n_workers)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(hold_again(self.folder, self._stamp, self.notice)) if self.resumed else None
            if n_workers > 0:
                stack.enter_context(cluster(ray_address, n_workers))
            stop = stack.enter_context(interruptible())
            workers = self._start_workers(n_workers, patience)
            for worker in workers:
                stack.callback(close, worker, self.task.env, self.notice)
            # First result before the first file: a policy or environment that fails leaves no empty run behind.
            blocks = self._blocks(workers, patience)
            try:
                first = next(blocks, None)
            except Stopped:
                raise KeyboardInterrupt from None  # there is nothing to save
            if lock is None:
                lock = stack.enter_context(hold_fresh(self.folder, self.notice))
            log = stack.enter_context(self._open_log(lock))
            try:
                interrupted = self._learn(first, blocks, log, stop, started, checkpoint_every, progress)
            except (Exception, KeyboardInterrupt) as error:
                if self._in_block:  # learned in part: the last checkpoint stands
                    raise
                log.flush()
                save_in_spite_of(error, self.save, self)
                if not (stop.is_set() and isinstance(error, KeyboardInterrupt)):
                    raise
                interrupted = stop.number
            if not interrupted:
                self._log(log)  # an interrupted run logs no point that an uninterrupted one would not have
            log.flush()
            self.save()
        seconds = time.monotonic() - self._clock[0]
        return Report(self.folder, self.step, interrupted, seconds, self.first_step_after, self.value_error)

    def _load_kernels(self, n_workers: int) -> None:
        """Compile or load what learning needs: before the workers, who would each do it, and before time is taken."""
        trial = self.settings.make_value_function(self.value_function.net.sizes[0])
        s = np.zeros((1, trial.net.sizes[0]))
        trial.learn_stream(s, np.zeros(1), s, np.ones(1, np.bool_), np.zeros(1, np.bool_))
        trial.predict(s)
        if n_workers > 0:
            load_kernels(self.task)

    def _start_workers(self, n_workers: int, patience: float) -> list[Worker]:
        shares = np.array_split(np.arange(self.settings.envs), max(1, n_workers))
        workers: list[Worker] = []
        for share in shares:
            numbers = [int(i) for i in share]
            snapshots = [self.snapshots[i] for i in numbers]
            start = None if snapshots[0] is None else snapshots
            if n_workers == 0:
                with watched(self.task.env, patience):
                    workers.append(LocalWorker(make_rollout, self.task, numbers, snapshot=start))
            else:
                workers.append(
                    RayWorker(make_rollout, self.task, numbers, snapshot=start, on_death=self.notice, patience=patience)
                )
        return workers

    def _blocks(self, workers: list[Worker], patience: float) -> Iterator[tuple[Block, list[Any], list[int]]]:
        """Blocks with their snapshots and how many transitions each stream has in them, one ahead of the learner."""
        settings, step = self.settings, self.step
        parts = []
        while step < settings.steps:
            parts.append(_part(step, settings))
            step += sum(parts[-1])
        asked = 0
        for k, lengths in enumerate(parts):
            while asked < min(k + 2, len(parts)):
                shares = np.array_split(parts[asked], len(workers))
                for worker, share in zip(workers, shares, strict=True):
                    worker.submit("collect", [int(length) for length in share])
                asked += 1
            # Compiled worlds do not hang, but may be compiled only now.
            foreign = isinstance(workers[0], LocalWorker) and isinstance(workers[0].object, GymnasiumRollout)
            with watched(self.task.env, patience) if foreign else contextlib.nullcontext():
                results = [worker.result() for worker in workers]
            yield Block.join([block for block, _ in results]), [s for _, part in results for s in part], lengths

    def _open_log(self, lock: FolderLock) -> RunLog:
        settings = json.dumps(asdict(self.settings), indent=2)
        checkpoint.write_whole(self.folder / SETTINGS_FILE, lambda file: file.write(settings.encode()))
        log = RunLog(self.folder, self.logged if self.resumed else None, lock=lock)
        if self.resumed and self.unknown_wrappers:
            log.text(f"resumed at step {self.step}", lost_wrappers(self.settings.env, self.unknown_wrappers), self.step)
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if not self.resumed:
            log.text("settings", f"```json\n{settings}\n```")
            log.layout(
                {
                    "Value function": {
                        "gradient norm per layer": [r"value/grad_norm/.*"],
                        "trace norm per layer": [r"value/trace_norm/.*"],
                        "update / weight norm per layer": [r"value/update_ratio/.*"],
                        "weight norm per layer": [r"value/weight_norm/.*"],
                        "error": [r"value/td_error/rms", r"value/error/rmsve"],
                    }
                }
            )
            self.save()
        return log

    def _learn(
        self,
        first: tuple[Block, list[Any], list[int]] | None,
        blocks: Iterator[tuple[Block, list[Any], list[int]]],
        log: RunLog,
        stop: Stop,
        started: float,
        checkpoint_every: float,
        progress: Callable[[Status], None],
    ) -> int:
        """Returns the signal that ended it too early, or 0."""
        settings, last_save = self.settings, time.monotonic()
        log_every = settings.log_every or max(1, settings.steps // LOG_POINTS)
        self._clock = (time.monotonic(), self.step)
        current = first
        while current is not None:
            if math.isnan(self.first_step_after):
                self.first_step_after = time.monotonic() - started
            block, snapshots, lengths = current
            self._refuse_bad_numbers(block, lengths)
            self._in_block = True
            td_error = self._learn_block(block, lengths)
            self.snapshots = snapshots
            self._in_block = False
            if self.step // log_every > self.logged // log_every:
                self._log(log)
            seconds, step = time.monotonic() - self._clock[0], self.step - self._clock[1]
            if stop.number != signal.SIGHUP:  # then there is no terminal
                progress(Status(self.step, settings.steps, step / max(seconds, 1e-9), td_error, self.value_error))
            if stop.is_set():
                return stop.number if self.step < settings.steps else 0
            if time.monotonic() - last_save > checkpoint_every:
                log.flush()
                self.save()
                last_save = time.monotonic()
            try:
                current = next(blocks, None)
            except Stopped:
                return stop.number
        return 0

    def _refuse_bad_numbers(self, block: Block, lengths: list[int]) -> None:
        """Raise for numbers that cannot be learned from, before other streams are; the last checkpoint stands."""
        for i, length in enumerate(lengths):
            if not all(np.isfinite(part[i, :length]).all() for part in (block[0], block[2], block[3])):
                self._in_block = True  # the rows before the bad one are learned
                self._learn_stream(i, block, length)

    def _learn_block(self, block: Block, lengths: list[int]) -> float:
        """Learn from each stream in turn; returns the root mean square TD error."""
        total = 0.0
        for i in range(self.settings.envs):
            if block.restarted[i]:
                self.value_function.cut_trace(i)
                self.episodes.running[i] = 0.0
                self.notice(
                    f"environment {i} cannot be brought back to where it was; it went on with a new episode "
                    f"at step {self.step}"
                )
            length = lengths[i]
            deltas = self._learn_stream(i, block, length)
            total += float(deltas.astype(np.float64) @ deltas)
            self.episodes.add(i, block.rewards[i, :length], (block.terminated | block.truncated)[i, :length])
            self.step += length
        if not np.isfinite(self.value_function.w).all():
            raise DivergenceError(f"a weight is infinite or NaN at step {self.step}: learning has diverged")
        return math.sqrt(total / sum(lengths))

    def _learn_stream(self, i: int, block: Block, length: int) -> np.ndarray:
        s, _, r, s_next, terminated, truncated = (part[i][:length] for part in block[:-1])
        try:
            return self.value_function.learn_stream(s, r, s_next, terminated, truncated, stream=i)
        except (ValueError, FloatingPointError) as error:
            raise type(error)(f"environment {i} of {self.settings.env}: {error}") from None

    def _log(self, log: RunLog) -> None:
        if self.step == self.logged:
            return
        values = {f"value/{tag}": number for tag, number in self.value_function.diagnostics().items()}
        if self.known is not None:
            self.value_error = evaluation.rmsve(self.value_function, self.known)
            values["value/error/rmsve"] = self.value_error
        number, returns, lengths = self.episodes.finished
        if number > 0:
            values["episode/return"], values["episode/length"] = returns / number, lengths / number
            self.episodes.finished[:] = 0.0
        seconds, steps = time.monotonic() - self._clock[0], self.step - self._clock[1]
        values["time/steps_per_second"] = steps / max(seconds, 1e-9)
        log.scalars(self.step, values)
        self.logged = self.step


def _part(step: int, settings: Settings) -> list[int]:
    """How many transitions of each stream come next: the rest of the block that holds this step, up to the last step.

    A block is learned stream by stream. A run that ends inside one has learned its first streams, as a longer run has
    by then; so what a run learns up to a step does not depend on how many steps it has.
    """
    begin = step % (settings.envs * settings.block)
    end = begin + settings.steps - step
    bounds = np.arange(settings.envs + 1) * settings.block
    return [int(n) for n in np.diff(np.clip(bounds, begin, end))]
