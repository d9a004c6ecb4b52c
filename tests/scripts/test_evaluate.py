"""scripts/evaluate.py as a person starts it."""

import json

import pytest

from valueapprox import Network, ValueFunction
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings


@pytest.fixture(scope="module")
def evaluate(start_script):
    return lambda *options, cwd=".": start_script("evaluate.py", *options, cwd=cwd)


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The folder of a small run whose true values are known."""
    folder = tmp_path_factory.mktemp("runs") / "walk"
    PredictionRun(
        PredictionSettings("valueapprox/RandomWalk-v0", {"n_states": "5"}, steps=2000, envs=2, block=100, gamma=0.9),
        folder,
    ).train(0)
    return folder


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """The folder of a run in which every return is 1."""
    folder = tmp_path_factory.mktemp("runs") / "constant"
    arguments = {"n_states": "3", "left_reward": "1", "right_reward": "1"}
    PredictionRun(
        PredictionSettings("valueapprox/RandomWalk-v0", arguments, gamma=1.0, steps=100, envs=1, block=50), folder
    ).train(0)
    return folder


def test_what_is_printed_and_what_json_says_are_the_same(evaluate, walk):
    text, parsed = (evaluate(walk, "--episodes", 20, *extra) for extra in ((), ("--json",)))
    assert (text.returncode, parsed.returncode, text.stderr, parsed.stderr) == (0, 0, "", "")
    numbers = json.loads(parsed.stdout, parse_constant=refuse)
    assert numbers["step"] == 2000
    assert numbers["monte_carlo"]["n_episodes"] == 20
    for name in ("value_error", "rmse", "bias", "explained_variance", "mean_return"):
        estimate = numbers["monte_carlo"][name]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert f"{estimate['value']:.4g}" in text.stdout
    assert f"RMSVE {numbers['rmsve']:.4g}" in text.stdout
    assert "after 2,000 transitions" in text.stdout


def test_json_is_json_where_all_returns_are_equal(evaluate, constant):
    result = evaluate(constant, "--episodes", 5, "--json")
    assert result.returncode == 0, result.stderr
    numbers = json.loads(result.stdout, parse_constant=refuse)
    assert numbers["monte_carlo"]["mean_return"]["value"] == 1.0
    assert numbers["monte_carlo"]["spread"] == 0.0


def test_folder_and_checkpoint_and_seed(evaluate, walk):
    options = [(walk,), (walk / "checkpoint.npz",), (walk, "--seed", 2)]
    folder, file, other = (evaluate(*o, "--episodes", 5, "--json").stdout for o in options)
    assert folder == file != other


BAD = {
    "missing folder": (("nowhere",), "there is no checkpoint at"),
    "damaged": (("{damaged}",), "damaged"),
    "not ours": (("{other}",), "not a checkpoint of valueapprox"),
    "no run": (("{bare}",), "no checkpoint of a run"),
    "one episode": (("{walk}", "--episodes", 1), "episodes is 1"),
    "negative seed": (("{walk}", "--seed", -1), "seed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(evaluate, walk, tmp_path, name):
    options, says = BAD[name]
    places = {name: tmp_path / f"{name}.npz" for name in ("damaged", "other", "bare")} | {"walk": walk}
    places["damaged"].write_bytes((walk / "checkpoint.npz").read_bytes()[:1000])
    places["other"].write_text("a shopping list")
    ValueFunction(Network((2, 1))).save(places["bare"])
    result = evaluate(*(str(o).format(**places) for o in options), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert result.stdout.strip() == ""
