"""The benchmark checks that all compute the same numbers, then prints its tables. No timing is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


OTHER_STEP_SIZE = """
import runpy, sys
import valueapprox
from valueapprox.commands import contenders
contenders.SGD = lambda alpha: valueapprox.SGD(1.01 * alpha)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*options, prelude=None):
    start = [str(SCRIPT)]
    if prelude is not None:
        start = [
            "-c",
            f"import sys; sys.argv[0] = {str(SCRIPT)!r}; sys.path.insert(0, {str(SCRIPT.parent)!r}){prelude}",
        ]
    command = [sys.executable, *start, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_all_contenders_agree_and_every_round_is_written(tmp_path):
    path = tmp_path / "benchmark.json"
    done = run("--quick", "--networks", "3-16-1", "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    numpy = "ours, learn() with NumPy's numbers"
    for words in (
        "ours, learn()",
        numpy,
        "ours, learn_stream()",
        "NumPy",
        "us per update",
        "How many times faster ours is",
    ):
        assert words in done.stdout
    results = json.loads(path.read_text())["results"]
    assert {(r["section"], r["dtype"]) for r in results} == {
        (section, dtype) for section in ("updates", "logging") for dtype in ("float32", "float64")
    }
    assert all(us > 0 for r in results for rounds in r["microseconds"].values() for us in rounds)


def test_a_contender_that_learns_something_else_stops_the_benchmark():
    done = run("--quick", "--networks", "3-16-1", "--dtypes", "float64", prelude=OTHER_STEP_SIZE)
    assert done.returncode == 1
    assert "ours, learn() differs from NumPy" in done.stdout
    assert "us per update" not in done.stdout


def test_a_network_that_is_none_is_named():
    done = run("--networks", "4-64-2")
    assert done.returncode != 0
    assert "4-64-2" in done.stderr
