"""Runs that learn the values of a fixed policy, from blocks of experience that Ray workers collect."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from valueapprox import DivergenceError, Network, Optimizer, ValueFunction, checkpoint
from valueapprox.agents import evaluation
from valueapprox.agents.checked import Checked, close, guarded, image_note, is_image
from valueapprox.agents.policies import make_policy, resolve
from valueapprox.agents.report import lost_wrappers, weights_of
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
from valueapprox.agents.run import CHECKPOINT_FILE, LEARNED_CHARTS, NORMS_EVERY, Run
from valueapprox.agents.settings import RunSettings
from valueapprox.agents.spaces import encoder
from valueapprox.checks import one_of, positive
from valueapprox.cluster import LocalWorker, RayWorker, Worker, cluster
from valueapprox.envs import compiled_world, unknown_wrappers
from valueapprox.interrupts import Stopped, watched
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
from valueapprox.td import METHODS
from valueapprox.telemetry import network_charts

__all__ = ["PredictionRun", "PredictionSettings"]

if TYPE_CHECKING:
    MethodName: TypeAlias = str
    OptimizerName: TypeAlias = str
else:  # what is registered is what the command line knows
    MethodName, OptimizerName = Literal[tuple(METHODS)], Literal[tuple(OPTIMIZERS)]


@dataclass(frozen=True, eq=False)
class PredictionSettings(RunSettings):
    """Everything that decides what a run learns. Two runs with equal settings end with equal weights, bit for bit."""

    agent: MethodName = "td"
    """How values are learned: TD(lambda), n-step TD, or gradient Monte Carlo."""
    policy: str = "auto"
    """The policy whose values are learned: auto, random, heuristic, or module:function taking (observation, rng)."""
    noise: float | None = None
    """Probability of a random action instead of the policy's; 0.1 for a heuristic if not given."""
    optimizer: OptimizerName = "adam"
    """Turns delta times the trace into an update."""
    alpha: tuple[float, ...] = (3e-3,)
    """Step size: one, or one per layer."""
    schedule: Literal["constant", "linear", "inverse-time", "cosine"] = "linear"
    """Of the step size: linear and cosine end at a hundredth; inverse-time is halved after a tenth of the run."""
    clip_norm: float | None = None
    """Maximum norm of an update direction; longer ones are scaled down."""
    output: str = "linear"
    """Activation of the value itself."""
    bias: bool = True
    """Whether layers have biases."""
    envs: int = 8
    """Environments, each a stream of experience with a trace of its own."""
    block: int = 512
    """Transitions that a worker collects of each environment before it sends them."""
    autoreset: Literal["same-step", "next-step", "disabled"] = "same-step"
    """How Gymnasium's vector environment starts episodes; changes nothing in what is learned."""

    kind = "prediction"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "alpha", tuple(float(a) for a in np.atleast_1d(self.alpha)))

    @staticmethod
    def agents() -> Mapping[str, Any]:
        """The methods of learning values."""
        return METHODS

    @classmethod
    def own_of(cls, agent: str) -> type[Any]:
        """The method: lam of TD(lambda), n of n-step TD."""
        return METHODS[one_of("agent", agent, METHODS)]

    def check(self) -> None:
        """Raise ValueError for a number out of range that nobody else would notice."""
        super().check()
        for name in ("envs", "block"):
            positive(name, getattr(self, name))
        one_of("autoreset", self.autoreset, AUTORESET)

    def planned(self) -> tuple[str, str] | None:
        """What is planned for `horizon` steps, and what it does afterwards; None if nothing is."""
        if self.schedule == "constant":
            return None
        afterwards = "goes on falling" if self.schedule == "inverse-time" else "stays at its last value, 0.01 alpha"
        return f"the {self.schedule} schedule of the step size", afterwards

    def chosen(self) -> PredictionSettings:
        """The same with what was left open: the environment's version, the policy and its noise, the plan."""
        found = super().chosen()
        with contextlib.suppress(ValueError):  # which `task` raises
            policy, noise = resolve(self.policy, self.noise, found.env)
            return replace(found, policy=policy, noise=noise)
        return found

    def task(self) -> Task:
        """What workers follow."""
        env = resolved_id(self.env)
        policy, noise = resolve(self.policy, self.noise, env)
        return Task(env, policy, noise, self.arguments(), self.seed, self.dtype, self.flatten, self.autoreset)

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
            init=self.init,
            streams=self.envs,
            **self.own(),
        )
        value_function.norms_every = NORMS_EVERY
        return value_function


#: The length of states of the tasks that were tried in this process: cells of a sweep try each but once.
_tried: dict[str, int] = {}


class PredictionRun(Run[PredictionSettings]):
    """A run that learns the values of a policy from many environments, block by block."""

    Settings = PredictionSettings
    #: What brings experience in this process.
    make_rollout: Callable[[Task, list[int]], Any] = staticmethod(make_rollout)

    @property
    def n_envs(self) -> int:
        """How many environments it learns from."""
        return self.settings.envs

    def _prepare(
        self, stored: PredictionSettings | None, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> None:
        settings = self.settings
        self.task = settings.task()
        key = repr(replace(self.task, seed=0))
        if not self.in_memory or key not in _tried:
            _tried[key] = self._try_environment()
        n_inputs = _tried[key]
        self.known = evaluation.truth(self.task, settings.gamma)
        if stored is None:
            self.value_function = settings.make_value_function(n_inputs)
            self.snapshots: list[Any] = [None] * settings.envs
        else:
            try:
                self._restore(stored, arrays, meta)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise self._damaged(self.folder / CHECKPOINT_FILE, error) from None
            if self.unknown_wrappers and self.step < settings.steps:
                self._remark(lost_wrappers(settings.env, self.unknown_wrappers))
        self._measure()

    def _measure(self) -> None:
        if self.known is not None:
            self.value_error = evaluation.rmsve(self.value_function, self.known)

    def _restore(self, stored: PredictionSettings, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        value = {name.removeprefix("value/"): a for name, a in arrays.items() if name.startswith("value/")}
        checkpoint.must_be_finite(value)
        description = dict(meta["value_function"])
        if self.settings.horizon != stored.horizon:
            description["optimizer"] = self.settings.make_optimizer().as_dict()
        self.value_function = ValueFunction.from_state(value, description)
        self.snapshots = []
        for i, plain in enumerate(meta["streams"]):
            prefix = f"stream_{i}/"
            own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            self.snapshots.append({**plain, **own} or None)

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
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
        return named, {"prefix": "value/", "value_function": description, "streams": streams}

    # --- learning -----------------------------------------------------------------------------------------------------

    def _connect(self, stack: contextlib.ExitStack, n_workers: int, ray_address: str | None) -> None:
        positive("workers", n_workers, at_least=0)
        if n_workers > self.settings.envs:
            raise ValueError(
                f"workers is {n_workers}; expected at most {self.settings.envs}, as each needs an environment"
            )
        self._n_workers = n_workers
        if self.step < self.settings.steps and not self.in_memory:  # whose time nobody takes
            self._load_kernels(n_workers)
        if n_workers > 0:
            stack.enter_context(cluster(ray_address, n_workers))

    def _begin(self, stack: contextlib.ExitStack) -> None:
        workers = self._start_workers(self._n_workers)
        for worker in workers:
            stack.callback(close, worker, self.task.env, self.notice)
        self._in_block = False
        # First result before the first file: a policy or environment that fails leaves no empty run behind.
        self._blocks_to_come = self._blocks(workers)
        try:
            self._next = next(self._blocks_to_come, None)
        except Stopped:
            raise KeyboardInterrupt from None  # there is nothing to save

    def _advance(self, limit: int) -> dict[str, float]:
        found, self._next = self._next or next(self._blocks_to_come), None
        block, snapshots, lengths = found
        self._refuse_bad_numbers(block, lengths)
        self._in_block = True
        td_error = self._learn_block(block, lengths)
        self.snapshots = snapshots
        self._in_block = False
        return {"TD error": td_error} | ({} if self.value_error is None else {"RMSVE": self.value_error})

    @property
    def _whole(self) -> bool:
        return not self._in_block

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

    def _load_kernels(self, n_workers: int) -> None:
        """Compile or load what learning needs: before the workers, who would each do it, and before time is taken."""
        trial = self.settings.make_value_function(self.value_function.net.sizes[0])
        s = np.zeros((1, trial.net.sizes[0]))
        trial.learn_stream(s, np.zeros(1), s, np.ones(1, np.bool_), np.zeros(1, np.bool_))
        trial.predict(s)
        if n_workers > 0:
            load_kernels(self.task)

    def _start_workers(self, n_workers: int) -> list[Worker]:
        shares = np.array_split(np.arange(self.settings.envs), max(1, n_workers))
        workers: list[Worker] = []
        for share in shares:
            numbers = [int(i) for i in share]
            snapshots = [self.snapshots[i] for i in numbers]
            start = None if snapshots[0] is None else snapshots
            if n_workers == 0:
                # Compiled worlds do not hang, and in a sweep of short runs each watch counts.
                compiled = self.in_memory and compiled_world(self.task.env, **self.task.env_args) is not None
                with contextlib.nullcontext() if compiled else watched(self.task.env, self.patience):
                    workers.append(LocalWorker(self.make_rollout, self.task, numbers, snapshot=start))
            else:
                workers.append(
                    RayWorker(
                        make_rollout, self.task, numbers, snapshot=start, on_death=self.notice, patience=self.patience
                    )
                )
        return workers

    def _blocks(self, workers: list[Worker]) -> Iterator[tuple[Block, list[Any], list[int]]]:
        """Blocks with their snapshots and how many transitions each stream has in them, one ahead of the learner."""
        settings, step = self.settings, self.step
        asked = deque[list[int]]()
        while asked or step < settings.steps:
            while len(asked) < 2 and step < settings.steps:
                asked.append(_part(step, settings))
                step += sum(asked[-1])
                for worker, share in zip(workers, np.array_split(asked[-1], len(workers)), strict=True):
                    worker.submit("collect", [int(length) for length in share])
            lengths = asked.popleft()
            # Compiled worlds do not hang, but may be compiled only now.
            foreign = isinstance(workers[0], LocalWorker) and isinstance(workers[0].object, GymnasiumRollout)
            with watched(self.task.env, self.patience) if foreign else contextlib.nullcontext():
                results = [worker.result() for worker in workers]
            yield Block.join([block for block, _ in results]), [s for _, part in results for s in part], lengths

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
            self._count_episodes(i, block.rewards[i, :length], (block.terminated | block.truncated)[i, :length])
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

    def _count_episodes(self, i: int, rewards: np.ndarray, ended: np.ndarray) -> None:
        running, stops = self.episodes.running[i], np.flatnonzero(ended) + 1
        if len(stops):
            starts = np.zeros_like(stops)
            starts[1:] = stops[:-1]
            totals, lengths = np.add.reduceat(rewards[: stops[-1]], starts).tolist(), (stops - starts).tolist()
            totals[0] += float(running[0])
            lengths[0] += float(running[1])
            self.episodes.add_all(totals, lengths)
            running[:] = 0.0
            rewards = rewards[stops[-1] :]
        running += rewards.sum(), len(rewards)

    def _diagnostics(self) -> dict[str, float]:
        values = {f"value/{tag}": number for tag, number in self.value_function.diagnostics().items()}
        self._measure()
        return values if self.value_error is None else {**values, "value/error/rmsve": self.value_error}

    def _weights(self) -> dict[str, np.ndarray]:
        return weights_of("value", self.value_function.net, self.value_function.w)

    def _evaluate(
        self,
        way: str,
        n_episodes: int,
        seed: int,
        recording: evaluation.Recording | None,
        progress: Callable[[int], None],
    ) -> evaluation.MonteCarlo:
        return evaluation.monte_carlo(
            self.value_function, self.task, n_episodes, seed, progress=progress, notice=self.notice
        )

    def _charts(self) -> dict[str, dict[str, list[str]]]:
        learned = dict(LEARNED_CHARTS)
        if self.known is not None or self.settings.eval_every:
            learned = {"value error": ["value/error/rmsve", "evaluation/value_error"], **learned}
        traces = ["trace_norm"] if METHODS[self.settings.agent].has_trace else []
        network = network_charts("value", "grad_norm", *traces, "update_ratio", "weight_norm")
        return {"Did it learn?": learned, "Value": network}


def _part(step: int, settings: PredictionSettings) -> list[int]:
    """How many transitions of each stream come next: the rest of the block that holds this step, up to the last step.

    A block is learned stream by stream. A run that ends inside one has learned its first streams, as a longer run has
    by then; so what a run learns up to a step does not depend on how many steps it has.
    """
    begin = step % (settings.envs * settings.block)
    end = begin + settings.steps - step
    bounds = np.arange(settings.envs + 1) * settings.block
    return [int(n) for n in np.diff(np.clip(bounds, begin, end))]
