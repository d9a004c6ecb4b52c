"""Environments with known experience. Gymnasium imports this by itself: `make("scripted_envs:Scripted-v0")`."""

import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Scripted(gym.Env):
    """Episodes of 3 steps; an observation is (environment, episode, step), and says all that there is to know.

    Step t of episode e pays 10 e + t. Episode 0 terminates, 1 is truncated, 2 is both, and so on in turn.
    With `reuse`, every observation is the same array, written anew.
    """

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0.0, 1e4, (3,))

    def __init__(self, reuse=False):
        self.reuse, self.buffer = reuse, np.zeros(3, np.float32)
        self.name, self.episode = 0, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.name = seed % 1000
        self.episode, self.t = self.episode + 1, 0
        return self.observation(), {}

    def step(self, action):
        self.t += 1
        last, kind = self.t == 3, self.episode % 3
        reward = 10.0 * self.episode + self.t
        return self.observation(), reward, last and kind in (0, 2), last and kind in (1, 2), {}

    def observation(self):
        self.buffer[:] = self.name, self.episode, self.t
        return self.buffer if self.reuse else self.buffer.copy()


class Rewards(gym.Env):
    """Pays `rewards` one after the other; an observation is the step.

    Then the episode is terminated, or truncated by the environment itself, or ("never") goes on with the last reward.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, rewards=(1.0, 2.0, 4.0), ending="terminated"):
        self.rewards, self.ending = rewards, ending
        self.observation_space = spaces.Discrete(len(rewards) + 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        reward = self.rewards[min(self.t, len(self.rewards) - 1)]
        self.t += 1
        last = self.t == len(self.rewards)
        ends = last and self.ending == "terminated", last and self.ending == "truncated"
        return min(self.t, len(self.rewards)), reward, *ends, {}


class Entropy(gym.Env):
    """Not a function of its generator: what it shows comes from the operating system. Never ends."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0.0, 1.0, (1,))

    def draw(self):
        return np.frombuffer(os.urandom(4), np.uint32).astype(np.float32) / np.float32(2**32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action):
        return self.draw(), 1.0, False, False, {}


class Faulty(gym.Env):
    """A random stream in which step `at` goes wrong: `what` is nan, inf, raise, die, or die-once (leaves a file)."""

    action_space = spaces.Discrete(2)

    def __init__(self, what="nan", at=100, mark="", dtype="float64"):
        self.what, self.at, self.mark, self.t = what, int(at), mark, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.dtype(dtype).type)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(1).astype(self.observation_space.dtype), {}

    def step(self, action):
        self.t += 1
        observation, reward = self.np_random.random(1).astype(self.observation_space.dtype), 1.0
        if self.t == self.at:
            if self.what == "raise":
                raise RuntimeError("the arm fell off")
            if self.what == "die" or (self.what == "die-once" and not Path(self.mark).exists()):
                if self.mark:
                    Path(self.mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            observation = np.full_like(observation, np.inf) if self.what == "inf" else observation
            reward = np.nan if self.what == "nan" else reward
        return observation, reward, False, False, {}


class Structured(gym.Env):
    """Observations in a `Dict` or a `Tuple` of a number 0 ... 2 and a vector of two; episodes of 2 steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, kind="dict"):
        parts = {"colour": spaces.Discrete(3), "place": spaces.Box(0.0, 9.0, (2,))}
        self.kind = kind
        self.observation_space = spaces.Dict(parts) if kind == "dict" else spaces.Tuple(parts.values())

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation(), {}

    def step(self, action):
        self.t += 1
        return self.observation(), 1.0, self.t == 2, False, {}

    def observation(self):
        parts = {"colour": self.t, "place": np.array([self.t, 7.0], np.float32)}
        return parts if self.kind == "dict" else tuple(parts.values())


class Spoken(gym.Env):
    """Actions that are no array; episodes of seven steps. The reward says how long the action is, written out."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Dict(say=spaces.Text(3), both=spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(0, 1))))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        reward = float(len(str(action)))
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), reward, self.t == 7, False, {}


class Scaler(gym.ObservationWrapper):
    """A user's own running mean."""

    def __init__(self, env):
        super().__init__(env)
        self.mean, self.n = 0.0, 0

    def observation(self, observation):
        self.n += 1
        self.mean += (observation - self.mean) / self.n
        return (observation - self.mean).astype(np.float32)


def wrapped(kind="known", **arguments):
    """`known`: CartPole in Gymnasium's statistics; `own`: in a user's; `unknown`: noise in Gymnasium's."""
    if kind == "own":
        return Scaler(gym.make("CartPole-v1", **arguments))
    inner = gym.make("CartPole-v1", **arguments) if kind == "known" else Entropy()
    return gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(inner))


gym.register("Wrapped-v0", wrapped, disable_env_checker=True)
for _class in (Scripted, Rewards, Entropy, Faulty, Structured, Spoken):
    if f"{_class.__name__}-v0" not in gym.registry:
        gym.register(f"{_class.__name__}-v0", _class, disable_env_checker=True)
