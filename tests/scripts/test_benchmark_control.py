"""The benchmark of control checks that PyTorch learns the same, and prints its tables. No timing is asserted."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_control.py"
SMALL = ("--steps", "500", "--rounds", "1", "--hidden", "4")
WITHOUT_TORCH = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""
OTHER_KAPPA = """
from valueapprox.commands import torch_stream_ac
torch_stream_ac.KAPPA_ACTOR = 3.01
"""


def run(*options, prelude=None):
    start = [str(SCRIPT)]
    if prelude is not None:
        path = f"import runpy, sys; sys.argv[0] = {str(SCRIPT)!r}; sys.path.insert(0, {str(SCRIPT.parent)!r})"
        start = ["-c", f"{path}{prelude}runpy.run_path(sys.argv[0], run_name='__main__')"]
    return subprocess.run([sys.executable, *start, *options], capture_output=True, text=True, timeout=250, check=False)


def test_it_prints_the_tables():
    done = run(*SMALL)
    assert done.returncode == 0, done.stderr
    assert "stream-ac, 4, in CartPole-v1" in done.stdout
    assert re.search(r"bare environment +[\d,]+ +1.00 \(1.00 to 1.00\)", done.stdout)  # beside itself
    assert "learning, compiled" in done.stdout
    assert ("stream-ac, 4, in HalfCheetah-v5" in done.stdout) != ("no HalfCheetah-v5" in done.stdout)
    assert ("published, PyTorch" in done.stdout) != ("no PyTorch: pip install torch" in done.stdout)
    assert "at least" not in done.stdout  # the bars are for the default networks


def test_without_pytorch_its_row_is_left_out():
    done = run(*SMALL, "--env", "CartPole-v1", prelude=WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    assert "published" not in done.stdout
    assert "no PyTorch: pip install torch" in done.stdout


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch is not installed")
def test_a_contender_that_learns_something_else_stops_the_benchmark():
    done = run(*SMALL, "--env", "CartPole-v1", prelude=OTHER_KAPPA)
    assert done.returncode == 1
    assert "PyTorch differs from ours in float64" in done.stdout
    assert "steps/s" not in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [(("--env", "CartPool-v1"), "CartPool"), (("--agent", "stream-ca"), "did you mean 'stream-ac'")],
)
def test_what_does_not_exist_is_one_line(options, says):
    done = run(*options)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
