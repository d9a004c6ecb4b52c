"""scripts/reproduce.py: what it computes, and the whole for a few steps on real Ray."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import reproduce  # noqa: E402
import train  # noqa: E402

EPISODES = [{"step": step, "return": value} for step, value in ((10, 1.0), (86, 5.0), (100, 7.0), (101, 50.0))]


def test_a_result_is_the_mean_of_the_last_fifteen_percent():
    # Steps 86 and 100 lie in (85, 100]; 10 is earlier and 101 later.
    assert reproduce.at(EPISODES, 100) == 6.0
    assert np.isnan(reproduce.at(EPISODES, 50))  # none ended in (42.5, 50]


def test_a_point_of_a_curve_is_the_mean_of_a_twentieth_of_the_run():
    steps = np.array([50.0, 102.0, 200.0])  # windows of 10 steps
    np.testing.assert_array_equal(reproduce.mean_returns(EPISODES, steps), [np.nan, (7.0 + 50.0) / 2, np.nan])


@pytest.mark.parametrize("experiment", [*reproduce.EXPERIMENTS.values(), *reproduce.WORLDS.values()])
def test_the_command_that_is_printed_starts_the_same_run(experiment):
    program, script, *options = shlex.split(experiment.command())
    assert (program, script) == ("python", "scripts/train.py")
    assert train.parse(options).settings == experiment.settings


def test_every_change_changes_a_setting():
    fresh = reproduce.settings_from({"agent": "stream-ac"})
    for name, change in reproduce.CHANGES.items():
        assert all(getattr(fresh, setting) != value for setting, value in change.items()), name


def test_what_was_published_is_of_the_full_length():
    e = reproduce.EXPERIMENTS["cartpole"]
    assert reproduce.shortened(e, 1.0) == e
    short = reproduce.shortened(e, 0.1)
    assert (short.settings.steps, short.marks, short.published) == (15_000, (2000, 7500, 15_000), "")


def test_seeds_are_a_number_or_a_range():
    assert reproduce.seeds_of("") is None
    assert reproduce.seeds_of("30") == range(30)
    assert reproduce.seeds_of("1000:1100") == range(1000, 1100)
    assert len(reproduce.EXPERIMENTS["mountaincar"].seeds) == 30
    assert len(reproduce.EXPERIMENTS["lunarlander"].seeds) == 10
    for text in ("0", "3:3", "a", "-1", "1:2:3", "1:"):
        with pytest.raises(ValueError, match=f"seeds is {text}; expected"):
            reproduce.seeds_of(text)


def test_seeds_that_have_not_found_the_goal_are_counted():
    assert reproduce.n_stuck([-200.0, -199.98, -120.0, -200.0], reproduce.WORLDS["MountainCar"]) == "2 of 4"
    assert reproduce.n_stuck([-500.0, -299.0], reproduce.WORLDS["Acrobot"]) == "1 of 2"


@pytest.mark.ray
def test_what_was_run_is_not_run_again(local_ray, tmp_path, capsys):
    options = reproduce.Reproduce(("cartpole", "cartpole-q"), seeds="2", share=0.02, folder=tmp_path, quiet=True)
    assert reproduce.main(options) == 0
    first = (tmp_path / "results.json").read_text()
    results = json.loads(first)
    assert set(results) == {"cartpole", "cartpole-q"}
    assert set(results["cartpole"]["returns"]) == {"400", "1500", "3000"}
    assert all(8 < value <= 500 for value in results["cartpole"]["returns"]["3000"])
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "CartPole-v1" in table
    assert "python scripts/train.py --env valueapprox/CartPole-v1 --agent stream-q --steps 3000 --seed 0" in table
    assert "330" not in table  # what was published is of the full length
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.npz")}
    assert len(made) == 4
    assert reproduce.main(options) == 0
    assert (tmp_path / "results.json").read_text() == first
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_an_unknown_experiment_is_named(start_script, tmp_path):
    done = start_script("reproduce.py", "cartpool", "--folder", tmp_path)
    assert done.returncode == 2
    assert "cartpool" in done.stderr
    assert "cartpole" in done.stderr
