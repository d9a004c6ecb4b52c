"""scripts/reproduce.py: what it computes, and the whole for a few steps on real Ray."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valueapprox.agents.sweeps import page
from valueapprox.agents.sweeps.store import Result, Row, Store
from valueapprox.agents.sweeps.table import Group

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import reproduce  # noqa: E402
import train  # noqa: E402


@pytest.mark.parametrize("experiment", [*reproduce.EXPERIMENTS.values(), *reproduce.WORLDS.values()])
def test_the_command_that_is_printed_starts_the_same_run(experiment):
    (cell,) = experiment.cells(range(7, 8))
    group = Group("it", [Row(0, cell, None)], "return")
    words = shlex.split(page.command_for(group))
    options = words[next(n for n, word in enumerate(words) if word.endswith("train.py")) + 1 :]
    assert train.parse(options).settings == replace(experiment.settings, seed=7)


def test_a_result_is_read_where_it_is_marked():
    numbers = {"return": 5.0, "return_at_20": 3.0}
    cells = reproduce.EXPERIMENTS["cartpole"].cells(range(3))
    results = [Result("", "done", numbers, np.zeros((2, 0))), Result("", "diverged", {}, np.zeros((2, 0)))]
    results.append(Result("", "done", {"return": 1.0}, np.zeros((2, 0))))
    rows = [Row(n, cell, result) for n, (cell, result) in enumerate(zip(cells, results, strict=True))]
    group = Group("it", rows, "return")
    np.testing.assert_array_equal(reproduce.returns_at(group, 150_000), [5.0, -np.inf, 1.0])
    np.testing.assert_array_equal(reproduce.returns_at(group, 20), [3.0, -np.inf, np.nan])
    assert reproduce.shown(np.array([5.0, -np.inf])) == ("not printed: 1 of 2 seeds were lost", "lost")
    assert reproduce.shown(np.array([5.0, np.nan]))[0] == "no episode ended there in 1 of 2 seeds"


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
    table = capsys.readouterr().out
    assert "CartPole-v1" in table
    assert "train.py --env valueapprox/CartPole-v1 --agent stream-q --steps 3000 --seed 0" in table
    assert "330" not in table  # what was published is of the full length
    with Store(tmp_path, read_only=True) as store:
        rows = store.rows()
    assert len(rows) == 4
    assert all({"return", "return_at_400", "return_at_1500"} <= set(row.result.numbers) for row in rows[:2])
    assert all(8 < row.result.numbers["return"] <= 500 for row in rows)
    first = (tmp_path / "report.html").read_text()
    assert reproduce.main(options) == 0
    with Store(tmp_path, read_only=True) as store:
        assert [row.result.seconds for row in store.rows()] == [row.result.seconds for row in rows]
    timed = re.compile(r"Written [^<]*|image/png;base64,[^\"]*")
    assert timed.sub("", (tmp_path / "report.html").read_text()) == timed.sub("", first)


def test_an_unknown_experiment_is_named(start_script, tmp_path):
    done = start_script("reproduce.py", "cartpool", "--folder", tmp_path)
    assert done.returncode == 2
    assert "cartpool" in done.stderr
    assert "cartpole" in done.stderr
