"""What a person sees in TensorBoard: a real server over real runs, its answers, and its pages in a headless browser."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from valueapprox import Network, fit
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.evaluation import Recording
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a TensorBoard over three runs: one that acts, one that predicts, and a fit."""
    folder = tmp_path_factory.mktemp("runs")
    acts = ControlSettings("CartPole-v1", hidden=(8,), steps=4000, eval_every=2000, eval_episodes=2)
    ControlRun(acts, folder / "acts").train(
        episodes=2, recording=Recording(max_frames=5, every=2), command="valueapprox train stream-ac"
    )
    predicts = PredictionSettings("valueapprox/RandomWalk-v0", hidden=(8,), steps=4000, envs=2, block=100)
    PredictionRun(predicts, folder / "predicts").train(episodes=3)
    net = Network((2, 4, 1), dtype="float64")
    S = np.random.default_rng(0).normal(size=(40, 2))
    fit(net, net.init(seed=0), S, S.sum(axis=1), validation=0.25, epochs=5, log=folder / "fit", progress=False)
    with (folder / "log").open("w") as log:
        command = [Path(sys.executable).with_name("tensorboard"), "--logdir", folder, "--host", "127.0.0.1"]
        process = subprocess.Popen([*command, "--port", "0", "--load_fast", "false"], stdout=log, stderr=log)
    try:
        yield _address(folder / "log", process)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _address(log, process):
    """Once it serves all three runs."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        for word in log.read_text().split():
            if word.startswith("http://127.0.0.1"):
                runs = ask(word.rstrip("/"), "runs")
                if len(runs) == 3:
                    return word.rstrip("/")
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def ask(address, what, **query):
    with urllib.request.urlopen(f"{address}/data/{what}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def tags(address):
    """Scalars by run, once they are all read."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = {run: set(known) for run, known in ask(address, "plugin/scalars/tags").items()}
        if "final/greedy/return" in found.get("acts", ()) and "fit/loss" in found.get("fit", ()):
            return found
        time.sleep(0.2)
    raise AssertionError(found)


def test_no_chart_is_empty_and_none_there_twice(server):
    every_tag = set().union(*tags(server).values())
    layout = ask(server, "plugin/custom_scalars/layout")
    categories = {c["title"]: {chart["title"]: chart["multiline"]["tag"] for chart in c["chart"]}
                  for c in layout["category"]}  # fmt: skip
    assert set(categories) == {"Did it learn?", "Critic", "Actor", "Value", "Network"}
    assert all(len(c["chart"]) == len(categories[c["title"]]) for c in layout["category"])
    for title, charts in categories.items():
        for chart, patterns in charts.items():
            assert any(re.fullmatch(p, tag) for p in patterns for tag in every_tag), (title, chart)
    assert list(categories["Did it learn?"])[:1] == ["return"]
    # all layers of a network are in one chart
    (pattern,) = categories["Critic"]["gradient norm per layer"]
    assert {tag for tag in every_tag if re.fullmatch(pattern, tag)} == {"critic/grad_norm/A", "critic/grad_norm/B"}


def test_settings_and_results_are_hyper_parameters(server):
    tags(server)
    found = ask(server, "plugin/hparams/experiment", request="{}")
    names = {info["name"] for info in found["hparamInfos"]}
    assert {"agent", "env", "hidden"} <= names
    metrics = {info["name"]["tag"] for info in found["metricInfos"]}
    assert {"final/greedy/return", "final/value_error", "fit/validation_loss"} <= metrics


def test_a_page_shows_the_return_first(server, browser):
    tags(server)
    with browser.page(f"{server}/#custom_scalars", 1400, 1000) as page:
        shown = page.wait(f"({ALL_TEXT})().includes('Did it learn?') && ({ALL_TEXT})()", 30)
        assert shown.index("Did it learn?") < shown.index("Critic") < shown.index("Actor")
        page.wait(f"{EVERYWHERE}('vz-line-chart2, tf-line-chart-data-loader').length > 0", 30)
        assert page.problems == []


def test_a_page_shows_the_film(server, browser):
    tags(server)
    with browser.page(f"{server}/#images", 1200, 900) as page:
        page.wait(f"{EVERYWHERE}('img').some(image => image.naturalWidth === 600)", 30)
        assert "policy" in page.js(f"({ALL_TEXT})()")


def test_a_page_shows_the_command_and_the_settings(server, browser):
    tags(server)
    with browser.page(f"{server}/#text", 1200, 900) as page:
        shown = page.wait(f"({ALL_TEXT})().includes('valueapprox train stream-ac') && ({ALL_TEXT})()", 30)
        assert "eval_every" in shown


def test_a_page_shows_the_weights(server, browser):
    tags(server)
    with browser.page(f"{server}/#histograms", 1200, 900) as page:
        shown = page.wait(f"({ALL_TEXT})().includes('weights') && ({ALL_TEXT})()", 30)
        assert "critic" in shown


#: Elements of a kind anywhere, also in shadow trees.
EVERYWHERE = """((selector) => {
  const find = (root) => [...root.querySelectorAll(selector),
    ...[...root.querySelectorAll("*")].flatMap((e) => e.shadowRoot ? find(e.shadowRoot) : [])];
  return find(document);
})"""
ALL_TEXT = """(() => {
  const text = (node) => node.nodeType === 3 ? node.textContent
    : ["STYLE", "SCRIPT"].includes(node.nodeName) ? ""
    : [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(text).join(" ");
  return text(document.body);
})"""
