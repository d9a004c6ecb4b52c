"""Is nothing left of a run on Ray workers a minute after its driver was killed by SIGKILL?

python tests/bars/driver_killed.py    about two minutes; exit code 1 if a process is left
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "agents"))
from families import alive, family, wait_for  # noqa: E402

OPTIONS = ("--agent", "ppo", "--env", "CartPole-v1", "--workers", "2", "--steps", "1000000000", "--quiet")
SECONDS = 60.0


def name(pid: int) -> str:
    """What a process is called."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return " ".join(Path(word.decode()).name for word in words[:3])[:60]


def main() -> int:
    """Start, kill, and look who is there."""
    with tempfile.TemporaryDirectory() as folder:
        path, script = Path(folder) / "run" / "metrics.jsonl", TESTS.parent / "scripts" / "train.py"
        command = [sys.executable, str(script), *OPTIONS, "--log-every", "10000", "--run-dir", str(path.parent)]
        driver = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
        started: set[tuple[int, str]] = set()
        try:
            if not wait_for(lambda: path.exists() and path.read_text(), 200):
                print("the run did not begin")
                return 1
            started = family(driver.pid)
            names = {process: name(process[0]) for process in started}
            driver.kill()
            driver.wait()
            killed = time.monotonic()
            left = set(started)
            while left and time.monotonic() - killed < SECONDS:
                time.sleep(0.1)
                for process in left - alive(left):
                    print(f"ended after {time.monotonic() - killed:5.1f} s: {names[process]}", flush=True)
                left = alive(left)
            for process in left:
                print(f"left after {SECONDS:g} s: {names[process]}")
            print(f"{len(started) - len(left)} of {len(started)} processes have ended")
            return 1 if left else 0
        finally:
            driver.kill()
            driver.wait()
            for pid, _ in alive(started):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
