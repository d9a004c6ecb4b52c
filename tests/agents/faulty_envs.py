"""Environments of a user's that are wrong in one way: `make("faulty_envs:Wrong-v0", gives="none")`."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SPACES = {
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "pixels": spaces.Box(0, 255, (3,), np.uint8),
    "discrete": spaces.Discrete(5, start=1),
}
OBSERVATIONS = {
    "wide": np.zeros(4, np.float32),
    "row": np.zeros((1, 3), np.float32),
    "nothing": None,
    "text": "left",
    "objects": np.array([0.0, None, 1.0]),
    "complex": np.zeros(3, np.complex64),
    "nan": np.array([0.0, np.nan, 1.0], np.float32),
    "half pixels": np.array([0.5, 1.0, 2.0]),
    "bright pixels": np.array([0, 256, 3]),
    "state 6": 6,
    "state 1.5": 1.5,
    "list": [0.0, 0.5, 1.0],
    "float64": np.array([0.0, 0.5, 1.0]),
    "dark pixels": np.array([0, 200, 3]),
}
REWARDS = {
    "array": np.array([1.0]), "none": None, "word": "1.0", "nan": float("nan"), "infinite": np.float32("inf"),
    "complex": 1j, "0-d array": np.array(1.0), "bool": True, "float16": np.float16(1.0),
}  # fmt: skip
ANSWERS = {"four": 4, "six": 6, "nothing": None}


class Faulty(gym.Env):
    """Episodes of 10 steps of reward 1. `gives` is what goes wrong, at the 5th step of every episode but the first."""

    action_space = spaces.Discrete(2)

    def __init__(self, gives="", space="box", first=5):
        self.gives, self.first, self.episode = gives, first, 0
        self.observation_space = SPACES[space]
        self.kind, _, self.what = gives.partition(" ")
        self.right = {"box": np.zeros(3, np.float32), "pixels": np.zeros(3, np.uint8), "discrete": 1}[space]
        if gives == "no constructor":
            raise OSError("no simulator is running")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        if self.gives == "reset alone":
            return self.right
        if self.gives == "reset list info":
            return self.right, []
        if self.kind == "start":
            return OBSERVATIONS[self.what], {}
        if self.gives == "reset bug":
            raise RuntimeError("the track is blocked")
        return self.right, {}

    def step(self, action):
        self.t += 1
        answer = [self.right, 1.0, self.t >= 10, False, {}]
        if self.t == self.first and self.episode == 2:
            if self.kind == "observation":
                answer[0] = OBSERVATIONS[self.what]
            elif self.kind == "reward":
                answer[1] = REWARDS[self.what]
            elif self.kind == "terminated":
                answer[2] = {"none": None, "word": "False", "number": 0, "array": np.array([False])}[self.what]
            elif self.kind == "truncated":
                answer[3] = {"none": None, "number": 0.0}[self.what]
            elif self.kind == "info":
                answer[4] = {"none": None, "list": []}[self.what]
            elif self.kind == "answer":
                return {"four": tuple(answer[:4]), "six": (*answer, 0), "none": None}[self.what]
            elif self.kind == "bug":
                answer[1] = float("not a number")
        return tuple(answer)


class Closing(gym.Wrapper):
    """Cannot be closed."""

    def close(self):
        raise RuntimeError("the viewer is gone")


gym.register("Wrong-v0", entry_point=Faulty)
gym.register("WrongLimited-v0", entry_point=Faulty, max_episode_steps=50)
gym.register("Closing-v0", entry_point=lambda: Closing(gym.make("CartPole-v1").unwrapped), max_episode_steps=500)


def bad_policy(observation, rng):
    """A policy with a bug."""
    return {}["push"]
