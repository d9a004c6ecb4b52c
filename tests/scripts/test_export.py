"""scripts/export.py as a person starts it: of a run, a fit, a service and a file, to a model and to a header."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from exported import CC, needs_compiler, needs_onnx

from valueapprox import SGD, Network, ValueFunction, fit
from valueapprox.agents.control_run import ControlRun, ControlSettings
from valueapprox.agents.prediction_run import PredictionRun, PredictionSettings
from valueapprox.cli.terminal import command_line, errors_in_one_line
from valueapprox.commands import export as script
from valueapprox.supervised.models import load_model

HERE = Path(__file__).parent
FIT = HERE / "fits" / "version-0.2"
SERVICE = HERE.parent / "valueapprox" / "service" / "folders" / "version-0.2"


@pytest.fixture
def export(capsys, monkeypatch):
    """As in a process of its own, but here, which saves the seconds that a start takes."""

    def run(*options, cwd="."):
        monkeypatch.chdir(cwd)
        try:
            with errors_in_one_line():
                code = script.main(command_line(script.Export, [str(o) for o in options]))
        except SystemExit as error:
            code = error.code
        return subprocess.CompletedProcess(options, code, *capsys.readouterr())

    return run


def test_as_a_person_starts_it(start_script, sources, tmp_path):
    result = start_script("export.py", sources["value function"][0], "v.h", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\n  value (1,)  v(s), the expected discounted sum of rewards\n" in result.stdout
    assert "v_learn(" in (tmp_path / "v.h").read_text()
    wrong = start_script("export.py", "nowhere", "v.h", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "error: there is no checkpoint at nowhere\n")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What can be exported, by name: its place, and the outputs that it has."""
    folder = tmp_path_factory.mktemp("sources")
    walk = PredictionSettings("valueapprox/RandomWalk-v0", {"n_states": "5"}, steps=300, envs=1, block=50, gamma=0.9)
    PredictionRun(walk, folder / "walk").train(0)
    ControlRun(ControlSettings("valueapprox/CartPole-v1", steps=300), folder / "pole").train()
    ValueFunction(Network((2, 3, 1)), SGD(0.5)).save(folder / "v.npz")
    net = Network((2, 3, 1))
    examples = np.random.default_rng(0).normal(size=(20, 3))
    fit(net, net.init(0), examples[:, :2], examples[:, 2:], epochs=1, progress=False).save(folder / "history.npz")
    return {
        "prediction run": (folder / "walk", ["value"]),
        "its checkpoint": (folder / "walk" / "checkpoint.npz", ["value"]),
        "control run": (folder / "pole", ["value", "action_probabilities", "action"]),
        "value function": (folder / "v.npz", ["value"]),
        "fit": (FIT, ["probabilities"]),
        "fit's checkpoint": (FIT / "fit.npz", ["probabilities"]),
        "fit in Python": (folder / "history.npz", ["value"]),
        "service": (SERVICE, None),
    }


NAMES = [
    "prediction run",
    "its checkpoint",
    "control run",
    "value function",
    "fit",
    "fit's checkpoint",
    "fit in Python",
    "service",
]


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_header_compiles_and_what_is_in_it_is_said(export, sources, name, tmp_path):
    place, outputs = sources[name]
    result = export(place, "my-net.h", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    text = (tmp_path / "my-net.h").read_text(encoding="ascii")
    assert result.stdout.startswith("my-net.h: ")
    for output in outputs or []:
        assert f"\n  {output} (" in result.stdout
        assert f" my_net_{output}(" in text
    learns = name != "control run" and not name.startswith("fit")
    if outputs is not None:
        assert (" my_net_learn(" in text) == learns
        assert ("note: there is no update in it: an agent that acts" in result.stdout) == (name == "control run")
    (tmp_path / "main.c").write_text('#include "my-net.h"\nint main(void) { return 0; }\n')
    subprocess.run([CC, "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "main.c"], cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.out", "main.c", "my-net.h"]


@needs_onnx
@pytest.mark.parametrize("name", NAMES)
def test_a_model_can_be_run(export, sources, name, tmp_path):
    import onnxruntime

    place, outputs = sources[name]
    result = export(place, tmp_path / "net.onnx")
    assert (result.returncode, result.stderr) == (0, "")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    names = [output.name for output in session.get_outputs()]
    assert outputs is None or names == outputs
    (given,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[given.type]
    found = session.run(None, {"observation": np.ones((2, given.shape[1]), dtype)})
    assert all(np.isfinite(values).all() for values in found)
    if name.startswith("fit") and place != sources["fit in Python"][0]:
        S = np.ones((2, given.shape[1]))
        np.testing.assert_allclose(found[0], load_model(FIT).predict(S), rtol=1e-12)


def test_a_file_that_is_there_is_replaced_and_a_name_can_be_given(export, sources, tmp_path):
    target = tmp_path / "net.h"
    target.write_text("old")
    result = export(sources["value function"][0], target, "--name", "critic")
    assert result.returncode == 0
    assert "critic_learn(" in target.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["net.h"]


BAD = {
    "suffix": (("{v}", "net.pt"), "the file to write is net.pt; expected a name that ends in .onnx or .h"),
    "folder": (("{v}", "nowhere/net.h"), "there is no folder nowhere"),
    "source": (("nothing", "net.h"), "there is no checkpoint at"),
    "name": (
        ("{v}", "net.h", "--name", "2 nets"),
        "name is '2 nets'; expected a name that C allows, such as 'n2_nets'",
    ),
    "damaged": (("{damaged}", "net.h"), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(export, sources, tmp_path, name):
    options, says = BAD[name]
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(sources["value function"][0].read_bytes()[:300])
    places = {"v": sources["value function"][0], "damaged": damaged}
    result = export(*(str(o).format(**places) for o in options), cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.npz"]
