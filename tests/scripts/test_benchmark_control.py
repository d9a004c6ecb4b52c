"""The benchmark of control runs and prints its table. No timing is asserted."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_control.py"


def run(*options):
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=250, check=False)


def test_it_prints_the_table():
    done = run("--steps", "500", "--rounds", "1", "--hidden", "4")
    assert done.returncode == 0, done.stderr
    assert "CartPole-v1, bare" in done.stdout
    assert "1.00 (1.00 to 1.00)" in done.stdout  # the bare environment beside itself


def test_an_environment_that_does_not_exist_is_one_line():
    done = run("--env", "CartPool-v1")
    assert done.returncode == 2
    assert "CartPool" in done.stderr
    assert "Traceback" not in done.stderr
