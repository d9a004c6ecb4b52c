"""An environment for sweeps that go wrong: `sweeps_envs:Ends-v0` raises, or ends its process, while a file is there."""

import os
from pathlib import Path

import gymnasium as gym


class Ends(gym.Wrapper):
    """CartPole, which does what a file says once it is stepped: "die" and "raise"; "once" in it removes the file."""

    def __init__(self, file=""):
        super().__init__(gym.make("CartPole-v1").unwrapped)
        self.file = Path(file)

    def step(self, action):
        if self.file.is_file():
            words = self.file.read_text().split()
            if "once" in words:
                self.file.unlink()
            if "die" in words:
                os.kill(os.getpid(), 9)
            raise RuntimeError("the track is blocked")
        return self.env.step(action)


gym.register("Ends-v0", entry_point=Ends, max_episode_steps=100)
