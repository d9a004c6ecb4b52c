"""What scripts print can be read and typed: any name of a folder, options that do not exist, compiling."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from valueapprox.cli import terminal

SCRIPTS = Path(__file__).parents[2] / "scripts"
TD = (
    "--steps",
    64,
    "--hidden",
    4,
    "--episodes",
    0,
    "--workers",
    0,
    "--envs",
    2,
    "--block",
    16,
    "--log-every",
    0,
    "--quiet",
)
CONTROL = ("--agent", "stream-ac", "--steps", 64, "--hidden", 4, "--episodes", 2, "--quiet")
NAMES = [
    "exp[final]",
    "[/x]",
    "[bold]",
    "two words",
    "it's",
    'say "x"',
    "$HOME",
    "`id`",
    ":smile:",
    "größe",
    "-x",
    "a\\",
    "*?",
    "~",
]
STRANGE = ["tab\there", "line\nbreak", "\x1b[31m", "bell\x07", os.fsdecode(b"latin-\xe9")]


@pytest.mark.parametrize("name", [*NAMES, *STRANGE, "\\n'\t"])
def test_a_shell_reads_what_is_typed(tmp_path, name):
    line = terminal.typed("echo", "--data", Path(name))
    assert "\n" not in line
    shown = subprocess.run(["bash", "-c", f"printf %s {terminal.typed(Path(name))}"], capture_output=True, cwd=tmp_path)
    assert os.fsdecode(shown.stdout) in (name, f"./{name}")
    assert os.fsdecode(shown.stdout)[0] != "-"


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(capsys, name):
    terminal.console.print(f"[bold]x[/] {terminal.plain(name)} y")
    assert capsys.readouterr().out == f"x {name} y\n"
    terminal.note(name)
    assert capsys.readouterr().out == f"note: {name}\n"


@pytest.mark.parametrize(
    ("options", "names"),
    [(TD, ["-two\nlines [/x]"]), (CONTROL, ["exp[final]", "[/x] it's", "-two\nlines :smile:"])],
    ids=["td", "control"],
)
def test_a_folder_may_have_any_name_and_the_next_command_can_be_pasted(start_script, tmp_path, options, names):
    for name in names:
        done = start_script("train.py", *options, f"--run-dir={name}", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), name
        assert (tmp_path / name / "checkpoint.npz").exists()
        assert f"Log and checkpoint  {name}\n" in done.stdout
        again = next(line for line in done.stdout.splitlines() if line.startswith("Evaluate again"))
        words = again.removeprefix("Evaluate again").strip()
        # As a shell would read it: the script, and the folder, which is there.
        read = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, text=True, cwd=tmp_path)
        python, script, folder, *rest = read.stdout.split("\0")[:-1]
        assert Path(python).name.startswith("python")
        assert (tmp_path / script).samefile(SCRIPTS / "evaluate.py")
        assert (tmp_path / folder).samefile(tmp_path / name)
        assert rest[0] == "--episodes"
        resumed = start_script("train.py", f"--resume={name}", *("--workers", "0")[: 2 * (options is TD)], cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr


# Options that do not exist -------------------------------------------------------------------------------------------

SUGGESTED = [
    ("train.py", ("--enviroment", "X"), "--env"),
    ("train.py", ("--environment=X",), "--env"),
    ("train.py", ("--lr", "0.1"), "--alpha"),
    ("train.py", ("--learning-rate", "0.1"), "--alpha"),
    ("train.py", ("--learning_rate", "0.1"), "--alpha"),
    ("train.py", ("--total-timesteps", "9"), "--steps"),
    ("train.py", ("--total_timesteps=9",), "--steps"),
    ("train.py", ("--agent", "n-step", "--n-steps", "9"), "--n or --steps"),
    ("train.py", ("--num-envs", "9"), "--envs"),
    ("train.py", ("--stesp", "9"), "--steps"),
    ("train.py", ("--no-bais",), "--no-bias"),
    ("train.py", ("-lr", "9"), "--alpha"),
    ("train.py", ("--agent", "stream-ac", "--num-envs", "9"), "--envs, which goes with --agent td"),
    ("train.py", ("--agent=sarsa", "--ent-coef", "9"), "--entropy, which goes with --agent stream-ac"),
    ("evaluate.py", ("runs/x", "--n-eval-episodes", "9"), "--episodes"),
    ("evaluate.py", ("runs/x", "--video", "a.mp4"), "--gif"),
    ("reproduce.py", ("--num-seeds", "9"), "--seeds"),
    ("serve.py", ("--hidden-sizes", "9"), "--hidden"),
    ("fit.py", ("x.csv", "--n-epochs", "9"), "--epochs"),
    ("demo_separation.py", ("--n-epochs", "9"), "--epochs"),
]


@pytest.mark.parametrize(("script", "options", "suggestion"), SUGGESTED)
def test_an_option_of_another_library_gets_a_suggestion(start_script, tmp_path, script, options, suggestion):
    done = start_script(script, *options, cwd=tmp_path)
    wrong = next(o for o in options if o.startswith("-") and o not in ("--agent", "--agent=sarsa")).partition("=")[0]
    assert done.returncode == 2
    assert done.stderr == f"error: {wrong} is not an option of {script}; did you mean {suggestion}?\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_nothing_resembles_and_what_there_is_none_of(start_script):
    done = start_script("train.py", "--kappa", "3")
    assert done.stderr == "error: --kappa is not an option of train.py; it goes with --agent stream-ac\n"
    done = start_script("train.py", "--device", "cuda")
    assert done.stderr == "error: --device is not an option of train.py: everything runs on the processor\n"
    done = start_script("evaluate.py", "runs/x", "--xyzzy")
    assert done.stderr == "error: --xyzzy is not an option of evaluate.py; --help lists those that there are\n"


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.py") if "main(" in path.read_text()))
def test_every_command_knows_its_own_options(script):
    assert "command_line(" in (SCRIPTS / script).read_text()
    assert "tyro.cli" not in (SCRIPTS / script).read_text() or script == "completion.py"  # which prints what tyro has


# Films, compiling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.mp4", "x", "x.gif.png", "here"])
def test_a_film_is_a_gif_or_is_refused_before_the_run(start_script, tmp_path, name):
    (tmp_path / "here").mkdir()
    start_script("train.py", *CONTROL[:-2], 0, "--quiet", "--run-dir", "run", cwd=tmp_path)
    done = start_script("evaluate.py", "run", "--episodes", 100000, "--gif", name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --gif is {name}; expected a name that ends in .gif")


def test_compiling_is_announced_when_it_begins_and_once():
    program = """
import numba
from valueapprox.cli.terminal import announce_compile
announce_compile()
print("nothing yet")
f = numba.njit(lambda x: x + 1)
f(1), f(1.0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "nothing yet\nCompiling the kernels, once: this takes ten to thirty seconds.\n", done.stderr
