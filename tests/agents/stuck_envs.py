"""Environments that hang, in ways that differ in what brings them back, or raise; each leaves a file when it does."""

import contextlib
import hashlib
import itertools
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LONG = 1000


def swallow():
    """A loop that no KeyboardInterrupt ends."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(LONG)


def fall_off():
    raise RuntimeError("the arm fell off")


HANG = {
    "sleep": lambda: time.sleep(LONG),
    "swallow": swallow,
    "c": lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1),  # other threads of Python run meanwhile
    "gil": lambda: sum(itertools.repeat(0)),  # nothing of Python runs
    "raise": fall_off,
    "slow": lambda: time.sleep(1.0),
}


class Stuck(gym.Env):
    """Pays 1 a step in episodes of 10. Goes wrong at step `at` since it was made, or in the reset before it."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, how="sleep", at=100, mark="", where="step"):
        self.how, self.at, self.mark, self.where, self.t = how, at, mark, where, 0

    def go_wrong(self):
        if self.mark:
            Path(self.mark).touch()
        HANG[self.how]()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.where == "reset" and self.t >= self.at - 1:
            self.go_wrong()
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        if self.where == "step" and (self.t == self.at or (self.how == "slow" and self.t > self.at)):
            self.go_wrong()
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, self.t % 10 == 0, False, {}


if "Stuck-v0" not in gym.registry:
    gym.register("Stuck-v0", Stuck, disable_env_checker=True)
