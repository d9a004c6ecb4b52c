"""Objects for workers to hold, in a module that Ray's processes can import."""

import os
import signal
import time


class Counter:
    """Counts up; a snapshot is where it stands. `add` answers (count, snapshot), as workers' objects do."""

    def __init__(self, start, die_at=None):
        self.count, self.die_at = start, die_at

    def restore(self, snapshot):
        self.count = snapshot

    def add(self, amount):
        self.count += amount
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.count, self.count

    def slow(self, amount):
        time.sleep(0.3)
        return self.add(amount)

    def fail(self):
        raise ZeroDivisionError("no way to divide")

    def close(self):
        self.count = None


class Broken:
    def __init__(self):
        raise ValueError("not with me")
