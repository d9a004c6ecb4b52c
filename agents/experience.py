"""Where agents of many environments get their rollouts: compiled worlds or Gymnasium, in this process or on a worker.

Each environment is a stream of its own, with its own random numbers, and an action is computed for each by itself. So
it does not matter how environments are dealt out to workers, or that a worker died and another went on from its
snapshots.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium.utils import seeding

from valueapprox.agents.acting import ACTED, LARGEST, Acting, Rollout, act_row
from valueapprox.agents.checked import Checked, fault_of
from valueapprox.agents.choosing import in_space
from valueapprox.agents.kernels import DRAWS, ELAPSED, N_ACTIONS, advance, facts_of, restart, world_observe
from valueapprox.agents.rollout import Recorder, brought_back, make_environment
from valueapprox.compiling import specialise, template
from valueapprox.envs import World, wrapper_states
from valueapprox.interrupts import Stopped, tick
from valueapprox.seeding import generator_from, generator_state, seed_for

if TYPE_CHECKING:
    from valueapprox.agents.batched import BatchAgent

__all__ = ["CompiledExperience", "Experience", "GymnasiumExperience"]


class Worlds(NamedTuple):
    """n copies of a world. Uniform numbers are drawn as `WorldEnv` does, so that experience is the same."""

    facts: np.ndarray
    params: np.ndarray
    states: np.ndarray  # (n, n_state)  goes on from call to call
    counts: np.ndarray  # (n, 2)  uniform numbers used, steps since the episode began
    uniforms: np.ndarray  # (n, m)


class Actors(NamedTuple):
    """What acts in them: see `act_row`."""

    policy: np.ndarray
    sizes: np.ndarray
    spec: np.ndarray
    scratch: np.ndarray
    head: np.ndarray
    to_space: np.ndarray  # of continuous actions, from the policy's unit
    keys: np.ndarray
    draws: np.ndarray
    greedy: bool


@template(exact=True)
def live(worlds, actors, rollout):
    """Fill a rollout of T steps in each of n copies of a world; returns (status, environment, step)."""
    facts, params, states, counts, uniforms = worlds
    observations, after, actions = rollout.observations, rollout.next_observations, rollout.actions
    for i in range(len(states)):
        world_observe(params, states[i], observations[0, i])
        for t in range(len(actions)):
            rollout.log_probs[t, i], status = act_row(
                *(observations[t, i], actors.policy, actors.sizes, actors.spec, actors.scratch, actors.head),
                *(actors.keys[i], actors.draws[i], actors.greedy, actions[t, i]),
            )
            if status != ACTED:
                return status, i, t
            if facts[N_ACTIONS] > 0.0:
                taken = float(actions[t, i, 0])
            else:
                taken = np.float64(np.float32(in_space(actors.to_space, 0, np.float64(actions[t, i, 0]))))
            reward, terminal, limit_reached = advance(facts, params, states[i], taken, uniforms[i], counts[i])
            world_observe(params, states[i], after[t, i])
            rollout.rewards[t, i] = reward
            rollout.terminated[t, i] = terminal
            rollout.truncated[t, i] = limit_reached
            if terminal or limit_reached:
                restart(facts, params, states[i], uniforms[i], counts[i])
                world_observe(params, states[i], observations[t + 1, i])
            else:
                for j in range(observations.shape[2]):
                    observations[t + 1, i, j] = after[t, i, j]
    return ACTED, 0, 0


class Experience(ABC):
    """What brings rollouts, of the environments with some numbers."""

    ended = 0.0  # when the last rollout was ready

    @abstractmethod
    def gather(self, n_steps: int, policy: np.ndarray) -> Rollout:
        """The next T steps of each environment, acted on with `policy` (see `BatchAgent.policy`)."""

    @abstractmethod
    def snapshot(self) -> list[dict[str, Any]]:
        """Where each environment stood at the end of the last rollout."""

    @abstractmethod
    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Go to where `snapshot` was taken; what cannot starts a new episode, and the next rollout says so."""

    def collect(self, n_steps: int, policy: np.ndarray) -> tuple[Rollout, list[dict[str, Any]]]:
        """`gather`, and a snapshot from which the next rollout follows."""
        return self.gather(n_steps, policy), self.snapshot()

    def collect_timed(
        self, n_steps: int, policy: np.ndarray
    ) -> tuple[tuple[Rollout, float, float], list[dict[str, Any]]]:
        """`collect`, with the seconds that it took and those that nothing was asked of it before."""
        begun = time.monotonic()
        waited, rollout = begun - (self.ended or begun), self.gather(n_steps, policy)
        self.ended = time.monotonic()
        return (rollout, self.ended - begun, waited), self.snapshot()

    def close(self) -> None:  # noqa: B027  (most have nothing to let go of)
        """Let go of the environments."""


class CompiledExperience(Experience):
    """Environments that are compiled worlds: a rollout in all of them, with the policy, is one compiled call."""

    def __init__(self, agent: BatchAgent, numbers: Sequence[int], seed: int, world: World, limit: int) -> None:
        self.world, self.params, self.facts = world, world.params, facts_of(world, limit)
        self.acting, self.dtype = Acting(agent, numbers, seed), agent.dtype
        self.rngs = [seeding.np_random(seed_for(seed, "environment", number))[0] for number in numbers]
        self.states = np.zeros((len(numbers), world.n_state))
        self.elapsed = np.zeros(len(numbers), np.int64)
        for state, rng in zip(self.states, self.rngs, strict=True):
            type(world).reset(self.params, rng.random(world.n_reset_uniforms), state)
        self._live = specialise(live, **self.acting.kernels, **world.kernels())

    def gather(self, n_steps: int, policy: np.ndarray, greedy: bool = False) -> Rollout:
        """The next T steps of each environment; `greedy` takes the best action instead of drawing one."""
        n, world, acting = len(self.rngs), self.world, self.acting
        rollout = Rollout.zeros(n_steps, n, world.n_observation, acting.head.n_values, self.dtype)
        if self.dtype != "float32":  # observations of worlds are float32
            seen = {name: getattr(rollout, name).astype(np.float32) for name in ("observations", "next_observations")}
            rollout = rollout._replace(**seen)
        kept = (self.states, self.elapsed, acting.draws)
        before, generators = [array.copy() for array in kept], [rng.bit_generator.state for rng in self.rngs]
        try:
            self._live_through(rollout, policy, greedy)
        except BaseException:  # a snapshot is then that of the last rollout
            for array, values in zip(kept, before, strict=True):
                array[:] = values
            for rng, state in zip(self.rngs, generators, strict=True):
                rng.bit_generator.state = state
            raise
        return rollout

    def _live_through(self, rollout: Rollout, policy: np.ndarray, greedy: bool) -> None:
        n, n_steps, world, acting = len(self.rngs), len(rollout.rewards), self.world, self.acting
        # Drawn ahead, as many as could be used, then set back to what was.
        uniforms = np.empty((n, n_steps * (world.n_step_uniforms + world.n_reset_uniforms) + 1))
        for row, rng in zip(uniforms, self.rngs, strict=True):
            rng.random(out=row)
        counts = np.zeros((n, 2), np.int64)
        counts[:, ELAPSED] = self.elapsed
        worlds = Worlds(self.facts, self.params, self.states, counts, uniforms)
        actors = Actors(
            *(policy, acting.sizes, acting.spec, acting.scratch, acting.head.layout, acting.head.to_space),
            *(acting.keys, acting.draws, greedy),
        )
        status, i, t = self._live(worlds, actors, rollout)
        if status != ACTED:
            acting.fail(status, i, rollout.observations[t, i])
        self._must_be_finite(rollout)
        self.elapsed[:] = counts[:, ELAPSED]
        for rng, used in zip(self.rngs, counts[:, DRAWS], strict=True):
            rng.bit_generator.advance(int(used) - uniforms.shape[1])  # type: ignore[attr-defined]

    def _must_be_finite(self, rollout: Rollout) -> None:
        """Raise for what nobody has acted on, but learning would read."""
        for rows in (rollout.rewards[..., None], rollout.next_observations, rollout.observations[-1:]):
            if math.isfinite(rows.sum()):  # the quick test: NaN and infinity stay in a sum
                continue
            for t, i in np.argwhere(~np.isfinite(rows).all(axis=2)).tolist():
                what = "reward" if rows.base is rollout.rewards else "observation"
                raise ValueError(
                    f"the {what} of environment {self.acting.numbers[i]} is {rows[t, i]} in step {t + 1} of a rollout; "
                    "expected finite numbers"
                )

    def snapshot(self) -> list[dict[str, Any]]:
        """Where each environment stands."""
        rows = zip(self.states, self.elapsed, self.rngs, self.acting.draws, strict=True)
        return [
            {"state": state.copy(), "elapsed": int(at), "environment": generator_state(rng), "draws": int(draws[0])}
            for state, at, rng, draws in rows
        ]

    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Go to where `snapshot` was taken, exactly."""
        for i, snapshot in enumerate(snapshots):
            self.states[i] = snapshot["state"]
            self.elapsed[i], self.acting.draws[i, 0] = int(snapshot["elapsed"]), int(snapshot["draws"])
            self.rngs[i] = generator_from(snapshot["environment"])


class GymnasiumExperience(Experience):
    """Any Gymnasium environment, several in this process, one after the other."""

    def __init__(
        self, agent: BatchAgent, numbers: Sequence[int], seed: int, env: str, env_args: Mapping[str, Any] | None = None
    ) -> None:
        self.name, self.seed, self.encode, self.decode = env, seed, agent.encode, agent.decoded
        self.acting, self.dtype = Acting(agent, numbers, seed), agent.dtype
        self.envs: list[Recorder] = []
        try:
            for _ in numbers:
                self.envs.append(Recorder(Checked(make_environment(env, **(env_args or {})), env)))
            self.current = np.zeros((len(self.envs), agent.encode.size), agent.dtype)
            for i, number in enumerate(numbers):
                self.current[i] = self.encode(self.envs[i].reset(seed=seed_for(seed, "environment", number))[0])
        except BaseException:
            self.close()
            raise
        self.restarted = np.zeros(len(self.envs), np.bool_)
        self.keeps = any(wrapper_states(env.env) for env in self.envs)  # whether wrappers have statistics
        self._mark()

    def gather(self, n_steps: int, policy: np.ndarray) -> Rollout:
        """The next T steps of each environment.

        Raises
        ------
        Stopped
            If the process is asked to end; the snapshot is then that of the last rollout.
        """
        n, encode, acting = len(self.envs), self.encode, self.acting
        rollout = Rollout.zeros(n_steps, n, self.current.shape[1], acting.head.n_values, self.dtype)
        rollout = rollout._replace(restarted=self.restarted)
        self.restarted = np.zeros(n, np.bool_)
        rollout.observations[0] = self.current
        for t in range(n_steps):
            if tick():
                raise Stopped
            now, after, next_row = rollout.observations[t], rollout.next_observations[t], rollout.observations[t + 1]
            rewards, i = rollout.rewards[t], 0
            try:
                acting.choose(now, policy, rollout.actions[t], rollout.log_probs[t])
            except ValueError:
                self._must_be_finite(now)  # says in which step
                raise
            try:
                for env, action in zip(self.envs, self.decode(rollout.actions[t]), strict=True):
                    observation, reward, terminated, truncated, _ = env.step(action)
                    after[i], rewards[i] = encode(observation), reward
                    if terminated or truncated:
                        self._must_be_finite(after[i : i + 1], i)
                        rollout.terminated[t, i], rollout.truncated[t, i] = terminated, truncated
                        next_row[i] = encode(env.reset()[0])
                    else:
                        next_row[i] = after[i]
                    i += 1
            except ValueError as error:
                checked: Any = self.envs[i].env
                raise error if fault_of(error) is not None else checked.named(error) from error
        self._must_be_finite(rollout.observations[-1])
        self.current[:] = rollout.observations[-1]
        self._mark()
        return rollout

    def _must_be_finite(self, newest: np.ndarray, first: int = 0) -> None:
        """Raise for what environments number first, ... have shown last, if it cannot be learned from."""
        if (np.abs(newest) <= LARGEST).all():
            return
        for env, observation in zip(self.envs[first:], newest, strict=False):
            if not (np.abs(observation) <= LARGEST).all():
                checked: Any = env.env
                raise checked.not_finite(observation, LARGEST)

    def _mark(self) -> None:
        """Where the environments stand now; a snapshot once the lists of actions are copied."""
        self.marks = [
            {
                "origin": env.origin,
                "actions": env.actions,
                "n_actions": len(env.actions),
                "observation": self.current[i].copy(),
                "draws": int(self.acting.draws[i, 0]),
                "wrappers": wrapper_states(env.env) if self.keeps else [],
            }
            for i, env in enumerate(self.envs)
        ]

    def snapshot(self) -> list[dict[str, Any]]:
        """Where each environment stood at the end of the last rollout."""
        space: Any = self.envs[0].action_space
        return [
            {**mark, "actions": np.array(mark["actions"][: mark["n_actions"]], space.dtype).reshape(-1, *space.shape)}
            for mark in self.marks
        ]

    def restore(self, snapshots: list[dict[str, Any]]) -> None:
        """Go to where `snapshot` was taken, by replaying the running episodes: see `brought_back`."""
        for i, snapshot in enumerate(snapshots):
            draws = int(snapshot["draws"])
            seed = seed_for(self.seed, "restart", self.acting.numbers[i], draws)
            observation, exact = brought_back(self.envs[i], snapshot, self._as_kept, seed)
            self.restarted[i] = not exact
            self.current[i] = self.encode(observation)
            self.acting.draws[i, 0] = draws
        self._mark()

    def _as_kept(self, observation: Any) -> np.ndarray:
        """As in `current`, whose dtype may be narrower than the environment's."""
        return np.asarray(self.encode(observation), self.dtype)

    def close(self) -> None:
        """Close the environments, each of them; the first that cannot be raises its error at the end."""
        with ExitStack() as stack:
            for env in self.envs:
                stack.callback(env.close)
