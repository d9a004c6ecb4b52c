"""Following a policy in several environments, and giving back blocks of transitions that can be learned from.

Each environment is one endless stream of transitions: a function of the run's seed and the environment's number alone.
A block is the next T transitions of each stream, so it does not matter how streams are dealt out to workers, which
autoreset mode an environment has, or that a worker died and another went on from its snapshot.
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs import registration
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from valueapprox import envs
from valueapprox.agents import kernels
from valueapprox.agents.checked import Checked, UserCodeError, blame, fault_of, guarded
from valueapprox.agents.policies import make_policy
from valueapprox.agents.spaces import encoder
from valueapprox.checks import one_of
from valueapprox.interrupts import Stopped, tick
from valueapprox.seeding import generator_from, generator_state, seed_for, sequence

__all__ = [
    "Block",
    "CompiledRollout",
    "GymnasiumRollout",
    "Recorder",
    "Task",
    "brought_back",
    "make_environment",
    "make_rollout",
]

AUTORESET = {mode.name.lower().replace("_", "-"): mode for mode in AutoresetMode}  # same-step, next-step, disabled
REPLAY_LIMIT = 200_000  # actions of one episode that are kept so that it can be replayed


class Block(NamedTuple):
    """T transitions of each of n environments, environment by environment."""

    observations: np.ndarray  # (n, T, d)  s
    actions: np.ndarray  # (n, T, ...)
    rewards: np.ndarray  # (n, T)
    next_observations: np.ndarray  # (n, T, d)  s', at an ending the final observation
    terminated: np.ndarray  # (n, T)
    truncated: np.ndarray  # (n, T)
    restarted: np.ndarray  # (n,)  whether the stream broke off before this block and began a new episode

    @staticmethod
    def zeros(n: int, n_steps: int, observation: tuple[int, Any], action: tuple[tuple[int, ...], Any]) -> Block:
        """A block to be filled, of observations and actions of some size or shape and type; nothing restarted."""
        (d, dtype), (shape, action_dtype), flag, all_steps = observation, action, np.bool_, (n, n_steps)
        seen = (*all_steps, d)
        shapes = (seen, (*all_steps, *shape), all_steps, seen, all_steps, all_steps, (n,))
        return Block(*map(np.zeros, shapes, (dtype, action_dtype, np.float64, dtype, flag, flag, flag)))

    @staticmethod
    def join(blocks: list[Block]) -> Block:
        """One block of all environments, in the order given, as long as the longest; shorter ones end in zeros."""
        longest = max(block.rewards.shape[1] for block in blocks)

        def whole(part: np.ndarray) -> np.ndarray:
            missing = 0 if part.ndim == 1 else longest - part.shape[1]
            return np.pad(part, [(0, 0), (0, missing), *[(0, 0)] * (part.ndim - 2)]) if missing else part

        return Block(*(np.concatenate([whole(part) for part in parts]) for parts in zip(*blocks, strict=True)))


@dataclass(frozen=True)
class Task:
    """What is followed where: everything that a worker needs to build its environments, and small."""

    env: str
    policy: str
    noise: float = 0.0
    env_args: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float32"
    flatten: bool = False
    autoreset: str = "same-step"
    compiled: bool = True


def make_environment(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """`gymnasium.make` with errors that help: the nearest id, or the extra that is missing.

    Raises
    ------
    ValueError
        If there is no such environment, or it cannot be built.
    """
    with _helpful(env_id):
        # Gymnasium's checker would warn, and assert, before `Checked` can say what is wrong.
        env = gym.make(env_id, **{"disable_env_checker": True, **kwargs})
    for name in ("observation_space", "action_space"):
        if not isinstance(space := getattr(env, name, None), gym.Space):
            raise UserCodeError(f"{env_id}: its {name} is {space!r}; expected a space of Gymnasium")
    return env


def resolved_id(env_id: str) -> str:
    """The id with the version that `gymnasium.make` takes where none is given; as it is if nothing is known of it."""
    module, colon, name = env_id.rpartition(":")
    try:
        namespace, bare, version = registration.parse_env_id(name)
        if version is not None:
            return env_id
        if module:
            importlib.import_module(module)
        if namespace == "MinAtar":
            _register_minatar(name)
    except Exception:  # noqa: BLE001  # whatever it is, `make_environment` says it better
        return env_id
    version = registration.find_highest_version(namespace, bare)
    return env_id if version is None else f"{module}{colon}{registration.get_env_id(namespace, bare, version)}"


def load_kernels(task: Task) -> None:
    """Compile or load what `CompiledRollout` needs, once and here, before several workers do."""
    rollout = make_rollout(task, [0]) if task.compiled and _compiled(task) is not None else None
    if isinstance(rollout, CompiledRollout):
        rollout.collect(1)


@contextmanager
def _helpful(env_id: str) -> Iterator[None]:
    if env_id.startswith("MinAtar/"):
        _register_minatar(env_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the error says the same
            yield
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(f"{env_id} needs a package that is not installed: {error}") from None
    except gym.error.DeprecatedEnv as error:
        raise ValueError(f"{env_id}: {error}") from None
    except (gym.error.UnregisteredEnv, gym.error.NameNotFound, gym.error.NamespaceNotFound) as error:
        try:
            one_of("env", env_id, sorted(gym.registry))
        except ValueError as unknown:
            hint = "" if ":" in env_id else " (one that a module of yours registers is module:Id)"
            raise ValueError(f"{unknown}{hint}") from None
        raise ValueError(str(error)) from None
    except (gym.error.Error, ModuleNotFoundError, TypeError) as error:
        blame(error, f"{env_id}: building it")
        found = fault_of(error)
        raise UserCodeError(f"{env_id} cannot be built: {error}", found.place if found else "") from None
    except Exception as error:
        if not isinstance(error, ValueError):  # of a world, which says what is wrong with its arguments
            blame(error, f"{env_id}: building it")
        raise


def _register_minatar(env_id: str) -> None:
    """Register MinAtar's environments: Gymnasium, since 1.0, does not look for what packages bring."""
    if "MinAtar/Breakout-v1" in gym.registry:
        return
    try:
        from minatar.gym import register_envs
    except ModuleNotFoundError:
        raise ValueError(f"{env_id} needs a package that is missing: pip install 'valueapprox[minatar]'") from None
    register_envs()


def make_rollout(task: Task, numbers: list[int]) -> CompiledRollout | GymnasiumRollout:
    """The rollout of the environments with these numbers: compiled where world and policy are, else Gymnasium's."""
    found = _compiled(task) if task.compiled else None
    follow = None if found is None else kernels.rollout_kernel(task.policy, found[0])
    if found is None or follow is None:
        return GymnasiumRollout(task, numbers)
    return CompiledRollout(task, numbers, *found, follow)


def _compiled(task: Task) -> tuple[envs.World, int] | None:
    with _helpful(task.env):
        return envs.compiled_world(task.env, **task.env_args)


def _smallest(low: int, high: int) -> np.dtype[Any]:
    """The smallest integers that hold all from low to high: in a cheap world, most of the time goes into sending."""
    return np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high))


def _action_dtype(space: gym.Space[Any]) -> Any:
    if isinstance(space, gym.spaces.Discrete):
        return _smallest(int(space.start), int(space.start + space.n - 1))
    return object if space.shape is None else space.dtype  # Tuple, Dict, Text, ...


def _each(lengths: int | Sequence[int], n: int) -> Sequence[int]:
    return [lengths] * n if isinstance(lengths, int) else lengths


class CompiledRollout:
    """Environments that are compiled worlds: a block of one of them is one compiled call."""

    def __init__(self, task: Task, numbers: list[int], world: envs.World, limit: int, follow: Any) -> None:
        self.world, self.follow, self.params = world, follow, world.params
        self.facts = kernels.facts_of(world, limit, task.noise)
        self.streams = [self._begun(task.seed, number) for number in numbers]

    def _begun(self, seed: int, number: int) -> dict[str, Any]:
        """Where an environment stands: its state, and the generators that Gymnasium's and `make_policy` draw from."""
        rng, _ = seeding.np_random(seed_for(seed, "environment", number))
        state = np.zeros(self.world.n_state)
        type(self.world).reset(self.params, rng.random(self.world.n_reset_uniforms), state)
        own = np.random.default_rng(sequence(seed, "policy", number))
        return {"state": state, "elapsed": 0, "environment": rng, "policy": own}

    def collect(self, lengths: int | Sequence[int]) -> tuple[Block, list[dict[str, Any]]]:
        """The next transitions of each environment, and a snapshot from which the next block follows.

        `lengths`: how many, of all or of each; the block is as long as the longest, and shorter rows end in zeros.
        """
        n, world = len(self.streams), self.world
        lengths = _each(lengths, n)
        action = ((1,), np.float32) if world.continuous else ((), _smallest(0, world.n_actions - 1))
        block = Block.zeros(n, max(lengths), (world.n_observation, np.float32), action)
        for i, stream in enumerate(self.streams):
            counts = np.array([0, stream["elapsed"], 0])
            # Drawn ahead, as many as could be used, then set back to what was.
            most = lengths[i] * (world.n_step_uniforms + world.n_reset_uniforms) + 1
            uniforms, policy_uniforms = stream["environment"].random(most), stream["policy"].random(2 * lengths[i])
            self.follow(
                *(self.facts, self.params, stream["state"], counts, uniforms, policy_uniforms),
                block.observations[i, : lengths[i]],
                block.actions[i, : lengths[i]].reshape(-1),  # a continuous action is an array of one number
                *(part[i, : lengths[i]] for part in block[2:-1]),
            )
            stream["elapsed"] = int(counts[kernels.ELAPSED])
            stream["environment"].bit_generator.advance(int(counts[kernels.DRAWS]) - uniforms.size)
            stream["policy"].bit_generator.advance(int(counts[kernels.POLICY_DRAWS]) - policy_uniforms.size)
        return block, self.snapshot()

    def snapshot(self) -> list[dict[str, Any]]:
        """Where each environment stands."""
        return [
            {**s, "state": s["state"].copy(), **{name: generator_state(s[name]) for name in ("environment", "policy")}}
            for s in self.streams
        ]

    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Go to where `snapshot` was taken, exactly."""
        for stream, snapshot in zip(self.streams, snapshots, strict=True):
            stream["state"][:] = snapshot["state"]
            stream["elapsed"] = int(snapshot["elapsed"])
            for name in ("environment", "policy"):
                stream[name] = generator_from(snapshot[name])

    def close(self) -> None:
        """Nothing is open."""


def _copied(observation: Any) -> Any:
    return observation.copy() if type(observation) is np.ndarray else deepcopy(observation)


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Remembers how the running episode came about, so that it can be replayed: its random origin and its actions.

    Most environments cannot be copied, but nearly all are a function of their generator and the actions since reset.
    Statistics of Gymnasium's wrappers are part of the origin. Observations are copied: an environment may write each
    into the same array, and SAME_STEP resets before it is read.
    """

    origin: dict[str, Any] | None = None
    actions: list[Any]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Note the seed, or where the generator stands, and start the episode."""
        self.origin, self.actions = None if seed is None else {"seed": seed}, []
        bits = None if seed is not None else self.env.unwrapped.np_random.bit_generator
        if isinstance(bits, np.random.PCG64):
            self.origin = {"generator": dict(bits.state)}
        if self.origin is not None and (statistics := envs.wrapper_states(self.env)):
            self.origin["wrappers"] = statistics
        observation, info = self.env.reset(seed=seed, options=options)
        return _copied(observation), info

    def step(self, action: Any) -> Any:
        """Note the action and take it."""
        if len(self.actions) < REPLAY_LIMIT:
            self.actions.append(action)
        else:
            self.origin = None
        observation, reward, terminated, truncated, _ = self.env.step(action)
        # Without info: nobody reads it, and a vector environment would join it, whatever is in it.
        return _copied(observation), reward, terminated, truncated, {}

    def replay(self, origin: dict[str, Any], actions: Iterable[Any]) -> Any:
        """Come back to where an episode stood; returns its last observation."""
        envs.restore_wrappers(self.env, origin.get("wrappers", []))
        if "generator" in origin:
            self.env.unwrapped.np_random = generator_from(origin["generator"])
        observation, _ = self.reset(seed=int(origin["seed"]) if "seed" in origin else None)
        for action in actions:
            tick()  # this may take a while
            observation = self.step(action.item() if isinstance(action, np.generic) else action)[0]
        return observation


def brought_back(recorder: Recorder, snapshot: dict[str, Any], encode: Any, seed: int) -> tuple[Any, bool]:
    """Replay the running episode of a snapshot: (its last observation, whether it is the same as it was).

    Where the replay does not arrive there, the environment is not a function of its generator and actions: it starts a
    new episode, from `seed`.
    """
    if snapshot["origin"] is not None:
        observation = recorder.replay(snapshot["origin"], snapshot["actions"])
        if np.array_equal(encode(observation), snapshot["observation"], equal_nan=True):
            return observation, True
    envs.restore_wrappers(recorder.env, snapshot.get("wrappers", []))
    observation, _ = recorder.reset(seed=seed)
    return observation, False


class GymnasiumRollout:
    """Any Gymnasium environment, several in one vector environment."""

    def __init__(self, task: Task, numbers: list[int]) -> None:
        self.task, self.numbers = task, numbers
        mode = AUTORESET[one_of("autoreset", task.autoreset, AUTORESET)]
        self.same_step, self.next_step = mode is AutoresetMode.SAME_STEP, mode is AutoresetMode.NEXT_STEP
        with _helpful(task.env):
            # "sync": vectorised versions of their own draw all environments from one generator.
            self.vector: Any = gym.make_vec(
                task.env,
                num_envs=len(numbers),
                vectorization_mode="sync",
                wrappers=(lambda env: Recorder(Checked(env, task.env)),),
                vector_kwargs={"autoreset_mode": mode},
                **{"disable_env_checker": True, **task.env_args},
            )
        self.encode = encoder(self.vector.single_observation_space, task.flatten)
        self.space = self.vector.single_action_space
        self.policy = guarded(make_policy(task.policy, task.noise, task.env, self.space), task.policy)
        self.policy_rngs = [np.random.default_rng(sequence(task.seed, "policy", i)) for i in numbers]
        seeds: Any = [seed_for(task.seed, "environment", i) for i in numbers]
        observations, _ = self.vector.reset(seed=seeds)
        self.observations = self._split(observations)
        self.dead = [False] * len(numbers)  # NEXT_STEP: the coming step only resets
        self.actions: list[Any] = [self.space.sample() for _ in numbers]  # what a dead step gets
        self.ahead: list[deque[tuple[Any, dict[str, Any]]]] = [deque() for _ in numbers]
        self.marks: list[dict[str, Any]] = [self._mark(i) for i in range(len(numbers))]
        self.restarted = np.zeros(len(numbers), np.bool_)

    def _split(self, observations: Any) -> list[Any]:
        """One observation per environment, that the vector environment will not overwrite."""
        return list(iterate(self.vector.observation_space, observations))

    def _step(self) -> Iterator[tuple[int, Any]]:
        """Take one step of the vector environment and give the real transitions in it, with their environments."""
        for i, observation in enumerate(self.observations):
            if not self.dead[i]:
                self.actions[i] = self.policy(observation, self.policy_rngs[i])
        before = self.observations
        actions: Any = self.actions
        if self.space.shape is None:
            actions = concatenate(self.space, actions, create_empty_array(self.space, len(actions)))  # type: ignore[arg-type]
        else:
            actions = np.asarray(actions, self.space.dtype)  # as the snapshot will hold them
        arrived, rewards, terminated, truncated, info = self.vector.step(actions)
        self.observations = self._split(arrived)
        was_dead, ended = self.dead, terminated | truncated
        final = info.get("final_obs") if self.same_step else None
        if self.next_step:
            self.dead = ended.tolist()
        after = [final[i] if final is not None and ended[i] else s for i, s in enumerate(self.observations)]
        if ended.any() and not self.same_step and not self.next_step:
            self.observations = self._split(self.vector.reset(options={"reset_mask": ended})[0])
        for i in range(len(ended)):
            if not was_dead[i]:
                s, s_next = self.encode(before[i]), self.encode(after[i])
                yield i, (s, self.actions[i], rewards[i], s_next, terminated[i], truncated[i])

    def collect(self, lengths: int | Sequence[int]) -> tuple[Block, list[dict[str, Any]]]:
        """The next transitions of each environment, and a snapshot from which the next block follows.

        `lengths`: how many, of all or of each; the block is as long as the longest, and shorter rows end in zeros.
        Where a reset takes a step of its own (NEXT_STEP), environments come along at different paces; those ahead are
        kept for the next block.
        """
        n = len(self.numbers)
        lengths = _each(lengths, n)
        action = self.space.shape or (), _action_dtype(self.space)
        block = Block.zeros(n, max(lengths), (self.encode.size, self.task.dtype), action)
        block = block._replace(restarted=self.restarted)
        self.restarted = np.zeros(n, np.bool_)
        filled = [0] * n

        def write(i: int, transition: Any) -> None:
            for part, value in zip(block, transition, strict=False):
                part[i, filled[i]] = value
            filled[i] += 1

        for i in range(n):
            while self.ahead[i] and filled[i] < lengths[i]:
                transition, self.marks[i] = self.ahead[i].popleft()
                write(i, transition)
        while any(have < wanted for have, wanted in zip(filled, lengths, strict=True)):
            if tick():
                raise Stopped
            for i, transition in self._step():
                if filled[i] == lengths[i]:
                    self.ahead[i].append((transition, self._mark(i)))
                    continue
                write(i, transition)
                if filled[i] == lengths[i]:
                    self.marks[i] = self._mark(i)
        return block, self.snapshot()

    def _mark(self, i: int) -> dict[str, Any]:
        """Where stream i stands now; a snapshot once its list of actions is copied."""
        recorder = self.vector.envs[i]
        return {
            "origin": recorder.origin,
            "actions": recorder.actions,
            "n_actions": len(recorder.actions),
            "ended": self.dead[i],
            "observation": self.encode(self.observations[i]),
            "policy": generator_state(self.policy_rngs[i]),
            "wrappers": envs.wrapper_states(recorder.env),
        }

    def snapshot(self) -> list[dict[str, Any]]:
        """Where each stream stood at the end of the last block.

        Actions that are not arrays are not kept: from there a new episode begins.
        """
        space = self.space

        def replayed(mark: dict[str, Any]) -> dict[str, Any]:
            if space.shape is None:
                return {"origin": None, "actions": np.zeros(0)}
            return {"actions": np.array(mark["actions"][: mark["n_actions"]], space.dtype).reshape(-1, *space.shape)}

        return [{**mark, **replayed(mark), "observation": np.array(mark["observation"])} for mark in self.marks]

    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Go to where `snapshot` was taken, by replaying the running episodes: see `brought_back`."""
        self.vector.reset()  # a reset that it owes would swallow a step
        for i, snapshot in enumerate(snapshots):
            recorder: Recorder = self.vector.envs[i]
            self.policy_rngs[i] = generator_from(snapshot["policy"])
            self.ahead[i].clear()
            self.dead[i] = False
            place = zlib.crc32(repr((snapshot["policy"], snapshot["observation"])).encode())
            seed = seed_for(self.task.seed, "restart", self.numbers[i], place)
            observation, exact = brought_back(recorder, snapshot, self.encode, seed)
            if not exact:
                self.restarted[i] = True
            elif snapshot["ended"]:
                observation, _ = recorder.reset()
            self.observations[i] = observation
            self.marks[i] = self._mark(i)

    def close(self) -> None:
        """Close the environments, each of them; the first that cannot be raises its error at the end."""
        self.vector.closed = True
        with ExitStack() as stack:
            for env in self.vector.envs:
                stack.callback(env.close)
