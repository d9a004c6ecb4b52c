"""The benchmark of the service runs and prints its table. No timing is asserted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_service.py"


def test_it_prints_what_was_measured_beside_the_bars():
    options = ("--seconds", "0.2", "--rounds", "1", "--clients", "2", "--states", "64", "--batch", "8")
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ +(values|learn), .*?([\d,]+) \([\d,]+ to [\d,]+\) (\w+)", done.stdout, re.MULTILINE)
    assert [unit for _, _, unit in rows] == ["requests"] * 3 + ["values"] + ["transitions"] * 4
    assert all(int(rate.replace(",", "")) > 0 for _, rate, _ in rows)
    assert re.search(r"Command: \S*python\S* \S*benchmark_service.py --seconds 0.2", done.stdout)


def test_the_soak_shows_the_servers_memory():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--soak", "0.02", "--batch", "8"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ +0\.0\d +([\d,]+) +(\d+\.\d)", done.stdout, re.MULTILINE)
    assert len(rows) >= 2
    learned = [int(n.replace(",", "")) for n, _ in rows]
    assert learned == sorted(learned)
    assert learned[-1] % 8 == 0 < learned[-1]  # what was delivered twice was learned once
    assert all(20 < float(megabytes) < 2000 for _, megabytes in rows)


@pytest.mark.parametrize("option", [("--rounds", "0"), ("--soak", "nan"), ("--soak", "-1"), ("--seconds", "0")])
def test_a_wrong_option_is_one_line(start_script, option):
    done = start_script("benchmark_service.py", *option)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert option[0].removeprefix("--") in done.stderr
