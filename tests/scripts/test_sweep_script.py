"""scripts/sweep.py and scripts/report.py: what is typed, what is printed, and the page that comes of it."""

import csv
import html.parser
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from valueapprox.agents.sweeps.cells import Range
from valueapprox.agents.sweeps.runs import table_of
from valueapprox.agents.sweeps.store import Store

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import sweep  # noqa: E402

WALK = ("--env", "valueapprox/RandomWalk-v0", "--agent", "td", "--steps", 400, "--optimizer", "sgd", "--schedule",
        "constant", "--envs", 2, "--block", 50)  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory, start_script):
    """A sweep, run in a process of its own, and its report."""
    folder = tmp_path_factory.mktemp("sweeps")
    words = (*WALK, "--alpha", 0.01, 0.1, "1e30", "--lam", 0, 0.9, "--seeds", 5, "--then-evaluate", 6, "--workers", 0)
    done = start_script("sweep.py", *words, "--out", "a sweep", "--points", cwd=folder)
    report = start_script("report.py", "a sweep", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert report.returncode == 0, report.stderr
    return folder / "a sweep", done, report


def test_every_combination_runs_on_every_seed(swept):
    folder, done, _ = swept
    assert "6 settings x 5 seeds = 30 cells" in done.stdout
    with Store(folder, read_only=True) as store:
        rows = store.rows()
    tuning = [row for row in rows if row.cell.stage == "tuning"]
    assert len(tuning) == 30
    assert len(rows) == 36
    assert {tuple(row.cell.settings["alpha"]) for row in tuning} == {(0.01,), (0.1,), (1e30,)}


def test_the_number_that_chose_is_never_the_result(swept):
    folder, done, _ = swept
    table = table_of([folder])
    assert "Result: value error of the chosen setting on seeds that did not choose it" in done.stdout
    (evaluated,) = table.groups("evaluation")
    shown = f"{-evaluated.mean.value:,.4g} ("
    assert shown in done.stdout
    line = next(line for line in done.stdout.splitlines() if shown in line)
    tuned = next(group for group in table.groups("tuning") if group.setting == evaluated.setting)
    assert line.index(f"{-tuned.mean.value:,.4g} (") < line.index(shown)
    assert "tuning (no result)" in done.stdout


def test_lost_cells_are_counted_and_their_mean_is_not_printed(swept):
    _, done, _ = swept
    line = next(line for line in done.stdout.splitlines() if "alpha 1e+30" in line)
    assert "not printed" in line
    assert "5 diverged" in line
    assert "lost" in line


class Page(html.parser.HTMLParser):
    """The texts of a page's headings and cells, its pictures, and the addresses that it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.cells, self.pictures, self.fetched = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img":
            self.pictures.append(given["src"])
            assert given["alt"]
        self.fetched += [given[name] for name in ("src", "href") if name in given]
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_is_whole_and_fetches_nothing(swept):
    folder, _, _ = swept
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert all(address.startswith("data:") for address in page.fetched)
    assert len(page.pictures) == 3
    assert "What went wrong" in page.headings
    assert any("diverged" in cell for cell in page.cells)
    text = (folder / "report.html").read_text()
    assert "sweep.py --env valueapprox/RandomWalk-v0" in text
    assert re.search(r"train\.py --env valueapprox/RandomWalk-v0 --agent td .*--seed 1000000", text)
    assert "numpy" in text


def test_the_other_forms_say_the_same(swept):
    folder, _, _ = swept
    with (folder / "cells.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = table_of([folder])
    assert len(lines) == len(table)
    read = np.array([float(line["value_error"] or "nan") for line in lines])
    assert np.array_equal(read, table["value_error"], equal_nan=True)
    assert [line["status"] for line in lines] == table["status"].tolist()
    with (folder / "settings.csv").open(newline="") as file:
        settings = list(csv.DictReader(file))
    groups = table.groups()
    assert [int(line["diverged"]) for line in settings] == [group.count("diverged") for group in groups]
    for line, group in zip(settings, groups, strict=True):
        if group.count("diverged") == 0:
            low, mean, high = (float(line[name]) for name in ("mean_low", "mean", "mean_high"))
            assert (low, mean, high) == (-group.mean.high, -group.mean.value, -group.mean.low)
            assert low <= mean <= high
        else:
            assert line["mean"] == ""
    markdown, latex = (folder / "report.md").read_text(), (folder / "report.tex").read_text()
    page = Page((folder / "report.html").read_text())
    for cell in page.cells:
        if "|" not in cell and "\\" not in cell:
            assert cell in markdown
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == markdown.count("\n| ---")
    assert "alpha 1e+30" in latex
    assert len(list(folder.glob("report-*.png"))) == 3


def test_tensorboard_gets_bands_over_seeds_of_every_tag(swept):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, _ = swept
    table = table_of([folder], points=True)
    group = table.groups("tuning")[0]
    own = sorted(path for path in (folder / "tensorboard").iterdir() if path.is_dir())[0]
    events = EventAccumulator(str(own)).Reload()
    tags = {tag.rpartition("/")[0] for tag in events.Tags()["scalars"]}
    assert {"value/td_error/rms", "value/grad_norm/A", "value/error/rmsve", "result"} <= tags
    last = events.Scalars("value/error/rmsve/mean")[-1]
    assert last.value == pytest.approx(-group.mean.value, rel=1e-6)
    assert events.Scalars("value/error/rmsve/low")[-1].value == pytest.approx(-group.mean.high, rel=1e-6)


def test_a_folder_of_somebody_else_s_is_not_replaced(swept, start_script, tmp_path):
    folder, _, _ = swept
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "mine").write_text("x")
    done = start_script("report.py", folder, "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "exists and holds something else; choose another --out, or --no-tensorboard" in done.stderr
    assert (tmp_path / "tensorboard" / "mine").read_text() == "x"
    assert start_script("report.py", folder, cwd=tmp_path).returncode == 0  # its own it replaces


def test_the_same_command_does_nothing_more(swept, start_script):
    folder, _, _ = swept
    with Store(folder, read_only=True) as store:
        before = [row.result.seconds for row in store.rows()]
    words = (*WALK, "--alpha", 0.01, 0.1, "1e30", "--lam", 0, 0.9, "--seeds", 5, "--workers", 0)
    done = start_script("sweep.py", *words, "--out", folder, "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    with Store(folder, read_only=True) as store:
        assert [row.result.seconds for row in store.rows()] == before


def test_the_page_is_read_in_a_browser(swept, browser):
    folder, _, _ = swept
    with browser.page(folder.as_uri() + "/report.html") as page:
        assert page.js("document.querySelectorAll('img').length") == 3
        loaded = page.js("[...document.images].every(i => i.complete && i.naturalWidth > 200)")
        assert loaded
        assert page.js("document.documentElement.scrollWidth <= window.innerWidth")


# --- what is typed ----------------------------------------------------------------------------------------------------


def asked(*words):
    return sweep.parse([str(word) for word in words])[1]


def test_values_are_read_as_what_the_setting_is():
    found = asked(*WALK, "--alpha", "0.1", "0.01,0.02", "--hidden", "64,64", "8", "--layer-norm", "true", "false",
                  "--clip-norm", "none", "1", "--env-args", "n_states=7,features=tabular")  # fmt: skip
    assert found.grid == {
        "alpha": [[0.1], [0.01, 0.02]], "hidden": [[64, 64], [8]], "layer_norm": [True, False], "clip_norm": [None, 1]
    }  # fmt: skip
    assert found.fixed["env_args"] == {"n_states": "7", "features": "tabular"}
    assert found.fixed["optimizer"] == "sgd"
    assert found.fixed["steps"] == 400


def test_several_agents_take_the_options_that_each_has():
    found = asked("--env", "CartPole-v1", "Acrobot-v1", "--agent", "sarsa", "stream-ac", "--alpha", 0.1, 1)
    assert found.grid == {"env": ["CartPole-v1", "Acrobot-v1"], "agent": ["sarsa", "stream-ac"], "alpha": [0.1, 1]}


def test_ranges_are_drawn_from():
    found = asked("--env", "CartPole-v1", "--agent", "ppo", "--random", 4, "--alpha", "1e-4..1e-2:log", "--epochs",
                  "1..8", "--activation", "tanh", "relu")  # fmt: skip
    assert found.ranges == {
        "alpha": Range(1e-4, 1e-2, log=True), "epochs": Range(1, 8, whole=True),
        "activation": Range(choices=("tanh", "relu")),
    }  # fmt: skip
    assert len(found.cells()) == 40


def test_a_path_is_no_range(tmp_path):
    found = asked(*WALK, "--env-args", "file=../x", "--policy", "..:f")
    assert (found.fixed["env_args"], found.fixed["policy"]) == ({"file": "../x"}, "..:f")


def test_options_come_before_listed_settings(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('env = "CartPole-v1"\nagent = "sarsa"\n[[settings]]\nlam = 0.5\nalpha = 1.0\n')
    assert asked(path, "--lam", 0.1, 0.2).cells()[10].settings["lam"] == 0.2


def test_options_come_before_the_file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('env = "CartPole-v1"\nagent = "sarsa"\nseeds = 3\n[grid]\nlam = [0.0, 0.9]\n')
    plain = asked(path)
    assert (plain.seeds, dict(plain.grid), plain.fixed["agent"]) == (3, {"lam": [0.0, 0.9]}, "sarsa")
    changed = asked(path, "--seeds", 4, "--lam", 0.5, "--alpha", 1, 2)
    assert (changed.seeds, dict(changed.grid), changed.fixed["lam"]) == (4, {"alpha": [1, 2]}, 0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "env is missing; expected --env with at least one environment"),
        (("--env", "CartPole-v1", "--agent", "sarsaa"), "agent is 'sarsaa'; did you mean 'sarsa'"),
        (("--env", "CartPole-v1", "--agent", "sarsa", "--alfa", 1), "--alfa is not an option of"),
        (("--env", "x", "--alpha", "a..b"), "alpha is 'a..b'; expected LOW..HIGH, or LOW..HIGH:log"),
        (("--env", "x", "--alpha", "0..1", "2", "--random", 3), "alpha is a range and more"),
        (("--env", "x", "--alpha", "0..1"), "random is 0; expected how many settings are drawn"),
        (("--env", "CartPole-v1", "--alpha", "x", "--workers", 0), "alpha is ['x']; expected a list"),
        (("--env", "CartPol-v1", "--workers", 0), "CartPol"),
        (("fit", "--data", "nowhere.csv", "--target", "y", "--workers", 0), "data is"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(start_script, tmp_path, words, said):
    done = start_script("sweep.py", *words, "--quiet", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "sweeps").exists()
