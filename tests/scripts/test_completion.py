"""What `valueapprox completion` prints completes the commands in a shell."""

import subprocess
import sys

import pytest

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_tyro_valueapprox && echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    words = [sys.executable, "-m", "valueapprox", "completion", "bash"]
    run = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False, timeout=250)
    assert (run.returncode, run.stderr) == (0, "")
    path = tmp_path_factory.mktemp("completion") / "valueapprox"
    path.write_text(run.stdout)
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", "train"),
        ("train n", "n-step"),
        ("train stream-ac --opt", "--optimizer"),
        ("train stream-ac --optimizer ob", "obgd"),
        ("train stream-q --eps", "--epsilon"),
        ("train stream-ac --eps", ""),
        ("fit --los", "--loss"),
    ],
)
def test_bash_completes_commands_agents_options_and_values(printed, typed, offered):
    words = ["bash", "-c", ASK, "bash", str(printed), "valueapprox", *typed.split()]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, offered), run.stderr
