"""Runs that learn how to act in one environment, step by step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np

from valueapprox import DivergenceError, Optimizer, checkpoint, envs
from valueapprox.agents.acting_run import ActingRun
from valueapprox.agents.base import DEAD_AFTER, ControlAgent
from valueapprox.agents.catalogue import AGENTS
from valueapprox.agents.checked import Checked, close, fault_of, image_note, is_image
from valueapprox.agents.control_loop import Chunk, CompiledLoop
from valueapprox.agents.report import lost_wrappers
from valueapprox.agents.rollout import make_environment
from valueapprox.agents.run import CHECKPOINT_FILE, LEARNED_CHARTS, NORMS_EVERY
from valueapprox.agents.settings import RunSettings
from valueapprox.checks import one_of, unit_interval
from valueapprox.interrupts import watched
from valueapprox.optim import OPTIMIZERS, Intentional
from valueapprox.optim.base import GlobalOptimizer, TraceOptimizer
from valueapprox.seeding import seed_for
from valueapprox.telemetry import network_charts

__all__ = ["AGENTS", "ControlRun", "ControlSettings"]

COMPILED_CHUNK = 10_000  # steps of one compiled call
FIRST_CHUNK = 100
CHUNK_SECONDS = 0.1  # of the Gymnasium loop: how long Ctrl-C and the progress bar wait

if TYPE_CHECKING:
    AgentName: TypeAlias = str
    OptimizerName: TypeAlias = str
else:  # what is registered is what the command line knows
    AgentName, OptimizerName = Literal[tuple(AGENTS)], Literal[("auto", *OPTIMIZERS)]


@dataclass(frozen=True, eq=False)
class ControlSettings(RunSettings):
    """Everything that decides what a run learns. Two runs with equal settings end with equal weights, bit for bit."""

    agent: AgentName = "stream-ac"
    """Who learns: actor-critic(lambda), Q(lambda), Sarsa(lambda), Expected Sarsa(lambda), QRC(lambda)."""
    hidden: tuple[int, ...] = (32, 32)
    """Units of each hidden layer, of each network; none for linear ones."""
    activation: str = "leaky_relu"
    """Activation of hidden layers: linear, relu, leaky_relu, elu, sigmoid, tanh, softplus."""
    layer_norm: bool = True
    """Normalise the pre-activations of hidden layers."""
    init: str = "sparse"
    """How weights are drawn: sparse, sparse_published, zeros, lecun_..., glorot_..., he_..._normal or _uniform, ..."""
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
    epsilon: tuple[float, float, float] = (1.0, 0.01, 0.1)
    """Random actions at first, at last, and the share of the schedule's steps in between (a straight line)."""
    temperature: float | None = None
    """Choose by softmax of q / temperature instead of epsilon-greedily."""
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
    rescale_outputs: bool = True
    """When that divisor changes, rescale the outputs, so that values in the rewards' own unit stay (PopArt)."""
    stop_at: float | None = None
    """End the run once the mean return reaches this: of an evaluation, or without any, of the last 100 episodes."""

    kind = "control run"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "epsilon", tuple(float(e) for e in self.epsilon))

    @staticmethod
    def agents() -> Mapping[str, Any]:
        """The agents that learn from a stream."""
        return AGENTS

    @classmethod
    def own_of(cls, agent: str) -> type[Any]:
        """What the agent's class says."""
        return AGENTS[one_of("agent", agent, AGENTS)].Settings

    @classmethod
    def of_others(cls, agent: str) -> list[str]:
        """Names of the settings that mean nothing to an agent."""
        names = ["schedule_steps", "epsilon", "temperature"] if AGENTS[agent].learns_policy else []
        return names if AGENTS[agent].second_name else [*names, "actor_alpha", "actor_kappa"]

    def check(self) -> None:
        """Raise ValueError for what nobody else would notice."""
        super().check()
        one_of("optimizer", self.optimizer, ("auto", *OPTIMIZERS))
        for name, second in (("kappa", False), ("actor_kappa", True)):
            if getattr(self, name) is not None and not hasattr(self._own_optimizer(second), "kappa"):
                kind = type(self._own_optimizer(second)).__name__
                raise ValueError(f"{name} is {getattr(self, name)}; expected nothing, as {kind} has no kappa")
        if self.stop_at is not None and not math.isfinite(self.stop_at):
            raise ValueError(f"stop_at is {self.stop_at}; expected a return, a finite number")
        if len(self.epsilon) != 3:
            raise ValueError(f"epsilon is {self.epsilon}; expected a first value, a last value and a share of the run")
        unit_interval("epsilon's share of the run", self.epsilon[2])

    def planned(self) -> tuple[str, str] | None:
        """What is planned for `horizon` steps, and what it does afterwards; None if nothing is."""
        if AGENTS[self.agent].learns_policy or self.temperature is not None:
            return None
        return "the fall of epsilon", f"stays at {self.epsilon[1]:g}"

    def document(self, agent: ControlAgent) -> dict[str, Any]:
        """All settings for a person to read; instead of "auto", each network's optimizer with all of its settings."""
        values = asdict(self.chosen())
        if self.optimizer == "auto":
            values["optimizer"] = {name: learner.optimizer.as_dict() for name, learner in agent.networks().items()}
        return values

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
                raise ValueError(f"time_feature is True; expected False, as {self.env} has no time limit")
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
            rescale_outputs=self.rescale_outputs,
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
            **self.own(),
        )
        agent.norms_every = NORMS_EVERY
        return agent


class ControlRun(ActingRun[ControlSettings]):
    """A run of one agent in one environment.

    Resumed, it goes on bit for bit where `envs.env_state` knows the environment; others begin a new episode.
    """

    Settings = ControlSettings

    def _prepare(
        self, stored: ControlSettings | None, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> None:
        settings, notice = self.settings, self.notice
        self.lost = False  # whether the environment stands where no step ended
        with watched(settings.env):
            self.env = make_environment(settings.env, **settings.arguments())
        self.checked = Checked(self.env, settings.env, 0)
        try:
            self.agent = settings.make_agent(self.env)
            space = self.env.observation_space
            if stored is None and is_image(space):
                notice(image_note(settings.env, space, self.agent.encode.size, settings.hidden))
            if stored is None:
                self._begin_episode(seed_for(settings.seed, "environment", 0))
            else:
                self._restore(arrays, meta)
        except BaseException:
            close(self.env, settings.env, notice)
            raise
        self.loop: CompiledLoop | None = None
        found = envs.compiled_world(settings.env, **settings.arguments()) if self.compiled else None
        if found is not None and CompiledLoop.fits(self.agent, self.env, found[0]):
            self.loop = CompiledLoop(self.agent, self.env, *found, self.running)

    @property
    def running(self) -> np.ndarray:
        """Return and length of the running episode (2,)."""
        return self.episodes.running[0]

    def _begin_episode(self, seed: int) -> None:
        """Start an episode in an environment that is seeded anew."""
        with watched(self.settings.env):
            observation, _ = self.checked.reset(seed=seed)
        self.agent.start(observation)
        self.running[:] = 0.0

    def close(self) -> None:
        """Close the environment."""
        close(self.env, self.settings.env, self.notice)

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {f"agent/{name}": array for name, array in self.agent.state_dict().items()}
        where = None if self.lost else envs.env_state(self.env)
        if where is not None:
            arrays["environment/state"] = where["world"].pop("state")
        return arrays, {"environment": where, "wrappers": envs.wrapper_states(self.env)}

    @classmethod
    def _settings_of(cls, path: Path, meta: Mapping[str, Any]) -> ControlSettings:
        if "least_error" in meta.get("settings", ()):
            raise checkpoint.CheckpointError(
                f"{path} was written by version 0.1, whose stream-ac had other state; expected a checkpoint of this "
                "version. Install valueapprox 0.1 to go on with it, or train anew"
            )
        return super()._settings_of(path, meta)

    def _restore(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        path, env = self.folder / CHECKPOINT_FILE, self.settings.env
        self._restore_agent(self.agent, arrays, path)
        try:
            where = meta["environment"]
            if where is not None:
                where["world"]["state"] = arrays["environment/state"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(path, error) from None
        if where is not None:
            envs.restore_env_state(self.env, where)
        elif self.step < self.settings.steps:
            envs.restore_wrappers(self.env, meta.get("wrappers", []))
            self._begin_episode(seed_for(self.settings.seed, "restart", self.step))
            self._remark(
                f"{env} cannot be brought back to where it was; it goes on with a new episode at step {self.step}"
            )
            if lost := envs.unknown_wrappers(self.env):
                self._remark(lost_wrappers(env, lost))

    # --- learning -----------------------------------------------------------------------------------------------------

    def _begin(self, stack: contextlib.ExitStack) -> None:
        stack.callback(self.close)
        self._size, self._warm = 1, False
        if self.loop is None:
            self._compile()

    def _advance(self, limit: int) -> dict[str, float]:
        # Time is taken from the second step on: the first one loads kernels, or compiles them.
        n, begun = min(self._size, limit), time.monotonic()
        self._note(self.loop.run(n) if self.loop is not None else self._gymnasium_chunk(n))
        now = time.monotonic()
        if not self._warm and self.step < self.settings.steps:
            self._clock, self._warm = (now, self.step), True
            self._size = COMPILED_CHUNK if self.loop is not None else FIRST_CHUNK
        elif self.loop is None:
            self._size = max(1, min(COMPILED_CHUNK, int(n * CHUNK_SECONDS / max(now - begun, 1e-9))))
        mean = self.episodes.mean_return()
        return {} if mean is None else {"return": mean}

    @property
    def _whole(self) -> bool:
        return self.step == self.agent.n_steps

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
            self._add_episode(self.step + int(at), total, length)
        self.step += chunk.n_steps
        if not all(np.isfinite(learner.w).all() for learner in (self.agent.first, self.agent.second)):
            raise DivergenceError(f"a weight is infinite or NaN at step {self.step}: learning has diverged")

    def _document(self) -> dict[str, Any]:
        return self.settings.document(self.agent)

    def _charts(self) -> dict[str, dict[str, list[str]]]:
        agent, settings = self.agent, self.settings
        learned = {title: LEARNED_CHARTS[title] for title in ("return", "TD error")}
        if agent.learns_policy:
            learned["entropy of the policy"] = ["actor/entropy"]
        else:
            learned["exploration"] = ["agent/epsilon"]
        charts = {"Did it learn?": learned | {"steps per second": LEARNED_CHARTS["steps per second"]}}
        for name, learner in agent.networks().items():
            tags = ["grad_norm", "trace_norm", "update_ratio", "weight_norm"]
            tags += ["step_size"] if isinstance(learner.optimizer, GlobalOptimizer | TraceOptimizer) else []
            tags += ["dead_units"] if learner.net.n_layers > 1 and settings.steps >= DEAD_AFTER else []
            charts[name.capitalize()] = network_charts(name, *tags)
        return charts


def _chunk(n_steps: int, episodes: list[tuple[int, float, int]]) -> Chunk:
    return Chunk(n_steps, np.array(episodes, np.float64).reshape(-1, 3))
