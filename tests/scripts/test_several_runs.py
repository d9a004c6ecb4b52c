"""Configuration files, several seeds and comparisons from the command line."""

import json

import numpy as np
import pytest

from valueapprox import checkpoint

SMALL = ("--hidden", "8", "--steps", "2000", "--episodes", "2", "--no-film", "--quiet")
CARTPOLE = ("--env", "valueapprox/CartPole-v1")


def weights(folder):
    return checkpoint.load(folder / "checkpoint.npz").arrays["agent/first/w"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, start_script):
    """Two seeds in one folder, and a run of another setting."""
    folder = tmp_path_factory.mktemp("runs")
    seeds = start_script(
        "train.py", "stream-ac", *CARTPOLE, *SMALL, "--seeds", 2, "--seed", 3, "--workers", 0, "--run-dir", "seeds",
        cwd=folder,
    )  # fmt: skip
    one = start_script("train.py", "stream-q", *CARTPOLE, *SMALL, "--eval-every", 1000, "--run-dir", "one", cwd=folder)
    assert (seeds.returncode, one.returncode) == (0, 0), seeds.stderr + one.stderr
    return folder, seeds, one


def test_seeds_are_runs_of_their_own_in_one_table(runs):
    folder, seeds, _ = runs
    assert sorted(path.name for path in (folder / "seeds").iterdir() if path.is_dir()) == ["seed-3", "seed-4"]
    assert not np.array_equal(weights(folder / "seeds" / "seed-3"), weights(folder / "seeds" / "seed-4"))
    assert "return while learning by setting" in seeds.stdout
    assert "report.py" in seeds.stdout
    assert (folder / "seeds" / "seeds.png").exists()


def test_the_settings_of_a_run_start_it_again(runs, start_script):
    folder, _, _ = runs
    done = start_script(
        "train.py", "--config", "seeds/seed-4/settings.json", "--episodes", 0, "--quiet", "--run-dir", "again",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(weights(folder / "again"), weights(folder / "seeds" / "seed-4"))


def test_options_come_before_the_file(runs, start_script):
    folder, _, _ = runs
    (folder / "mine.toml").write_text(
        'agent = "stream-q"\nenv = "valueapprox/CartPole-v1"\nhidden = [8]\nsteps = 9000\n'
    )
    done = start_script(
        "train.py", "--config", "mine.toml", "--steps", 500, "--episodes", 0, "--quiet", "--run-dir", "mine", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    settings = json.loads((folder / "mine" / "settings.json").read_text())
    assert (settings["agent"], settings["hidden"], settings["steps"]) == ("stream-q", [8], 500)


def test_what_was_typed_is_kept(runs):
    folder, _, _ = runs
    (record,) = json.loads((folder / "one" / "provenance.json").read_text())
    assert "train.py stream-q --env valueapprox/CartPole-v1 --hidden 8" in record["command"]


def test_the_summary_says_what_the_numbers_mean_and_how_to_use_the_run(runs):
    folder, _, one = runs
    verdict = json.loads((folder / "one" / "summary.json").read_text())["verdict"]
    assert any("at which Gymnasium calls it solved" in sentence for sentence in verdict)
    assert all(sentence in one.stdout for sentence in verdict)
    assert "valueapprox.load('one')" in one.stdout


def test_runs_are_compared(runs, start_script):
    folder, _, _ = runs
    done = start_script("report.py", "seeds", "one", "--out", "both", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "valueapprox/CartPole-v1, stream-ac" in done.stdout
    assert "valueapprox/CartPole-v1, stream-q" in done.stdout
    assert "Fewer than 5 seeds" in done.stdout
    page = (folder / "both" / "report.html").read_text()
    assert "stream-q" in page
    assert page.count("data:image/png;base64,") >= 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("report.py",), "no folder is named; expected those of sweeps or runs"),
        (("report.py", "nowhere"), "nowhere holds no run; expected the folder of a run, of several, or of a sweep"),
        (("train.py", "--config", "nowhere.json"), "nowhere.json"),
        (("train.py", "--config", "x.json", "--resume", "one"), "config is x.json; expected nothing with --resume"),
        (("train.py", "--resume", "one", "--seeds", "2"), "resume goes with one run"),
        (("train.py", "--agent", "td", "--stop-at", "3"), "--stop-at"),
        (("train.py", "stream-ac", "--eval-every", "-5"), "eval_every is -5; expected a whole number of at least 0"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(runs, start_script, command, words):
    folder, _, _ = runs
    done = start_script(*command, cwd=folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
