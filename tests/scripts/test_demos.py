"""scripts/demo_gradients.py and scripts/demo_separation.py in short forms: what they print, draw and log."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from valueapprox.telemetry import read_metrics

SCRIPTS = Path(__file__).parents[2] / "scripts"


def pixels(path):
    """A picture (height, width, 3), which is not blank."""
    assert path.read_bytes().startswith(b"\x89PNG")
    picture = imread(path)[..., :3]
    white = np.mean(picture.min(axis=2) > 0.99)
    assert 0.02 < white < 0.98
    return picture


def rows(printed, names):
    """What stands behind each network's name in a printed table."""
    lines = [line.strip() for line in printed.splitlines()]
    return {name: next(line for line in lines if line.startswith(name + " "))[len(name) :].split() for name in names}


# --- gradients --------------------------------------------------------------------------------------------------------

NETWORKS = {
    "sigmoid": "vanishing",
    "ReLU": "healthy",
    "sigmoid, batch norm": "healthy",
    "ReLU, large weights": "exploding",
    "large weights, batch norm": "healthy",
    "large weights, lower rate": "exploding",
}


@pytest.fixture(scope="module")
def gradients(start_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "gradients"
    return folder, start_script("demo_gradients.py", "--epochs", 4, "--quiet", "--out", folder)


def test_each_network_is_named_what_it_was_built_to_be(gradients):
    _, result = gradients
    assert (result.returncode, result.stderr) == (0, "")
    printed = rows(result.stdout, NETWORKS)
    assert {name: printed[name][0] for name in NETWORKS} == NETWORKS
    factors = {name: float(printed[name][1]) for name in NETWORKS}
    assert 0.15 < factors["sigmoid"] < 0.3  # about a quarter
    assert 0.9 < factors["ReLU"] < 1.1  # He's weights: 1
    assert 2 < factors["ReLU, large weights"] < 3  # those, times 2.5
    assert printed["ReLU, large weights"][2:] == ["diverged"]
    assert "What helps: relu with he_normal weights, batch normalisation." in result.stdout


def test_the_picture_of_the_gradients(gradients):
    folder, result = gradients
    assert pixels(folder / "gradients.png").shape == (1080, 1920, 3)
    assert f"Picture      {folder / 'gradients.png'}\n" in result.stdout
    assert f"tensorboard --logdir {folder}\n" in result.stdout


def test_every_network_has_a_log_beside_the_others(gradients):
    folder, _ = gradients
    names = {name.replace(", ", "-").replace(" ", "-"): name for name in NETWORKS}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(names)
    for own, name in names.items():
        events = EventAccumulator(str(folder / own)).Reload()
        tags = events.Tags()["scalars"]
        lengths = [f"flow/norm/W{l}" for l in range(1, 12)]
        assert set(lengths) <= set(tags)
        # The lowest layer's divided by the output layer's, at step 0: the total of the diagnosis.
        first, last = (events.Scalars(lengths[l])[0] for l in (0, -1))
        assert (first.step, last.step) == (0, 0)
        total = first.value / last.value
        assert {"vanishing": total < 0.01, "healthy": 0.01 < total < 300, "exploding": total > 300}[NETWORKS[name]]
        assert "diagnosis at the start" in events.Tags()["tensors"]
        if name == "ReLU, large weights":
            assert "failure" in events.Tags()["tensors"]
        else:
            assert len(events.Scalars("fit/loss")) == 4
            assert [e.step for e in events.Scalars("fit/grad_norm/W1")] == [19, 38, 57, 76]  # 600 / 32 minibatches
            assert [line["step"] for line in read_metrics(folder / own)] == [0, 19, 38, 57, 76, 76]


def test_a_folder_that_holds_a_log_is_left_alone(gradients, start_script):
    folder, _ = gradients
    before = (folder / "gradients.png").read_bytes()
    result = start_script("demo_gradients.py", "--epochs", 1, "--quiet", "--out", folder)
    assert result.returncode == 2
    assert "holds the log of another run" in result.stderr
    assert (folder / "gradients.png").read_bytes() == before


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("demo_gradients.py", ("--hidden-layers", 0), "hidden_layers is 0; expected a whole number of at least 1"),
        ("demo_gradients.py", ("--lower-rate", 0), "lower_rate is 0.0; expected a positive number"),
        ("demo_separation.py", ("--noise", -1), "noise is -1.0; expected a standard deviation, which is not negative"),
        ("demo_separation.py", ("--hidden", 3, 0), "hidden is 0; expected a whole number of at least 1"),
        ("demo_separation.py", ("--l2", -0.1), "l2 is -0.1; expected a strength, which is not negative"),
        ("demo_separation.py", ("--hidden",), "hidden or l2 is empty; expected at least one number each"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(start_script, tmp_path, script, options, message):
    result = start_script(script, *options, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


# --- separation -------------------------------------------------------------------------------------------------------


def shares(printed, names):
    """(training, fresh) of each network, as shares; the columns are parameters, L2, training, fresh, loss."""
    found = rows(printed, names)
    return {name: tuple(float(cell.removesuffix("%")) / 100 for cell in found[name][2:4]) for name in names}


def test_no_line_separates_xor_and_two_layers_do(start_script, tmp_path):
    result = start_script("demo_separation.py", "--epochs", 200, "--quiet", "--out", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    found = shares(result.stdout, ["logistic regression", "two layers, 16 units"])
    # The best line has three of four blobs on its side; the one of least log loss is a guess.
    assert max(found["logistic regression"]) < 0.76
    assert min(found["two layers, 16 units"]) > 0.95
    picture = pixels(tmp_path / "separation.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1000
    assert f"Picture   {tmp_path / 'separation.png'}\n" in result.stdout


def test_a_line_separates_two_blobs(start_script, tmp_path):
    options = ("--data", "linear", "--epochs", 100, "--hidden", 4)
    result = start_script("demo_separation.py", *options, "--quiet", "--out", tmp_path)
    found = shares(result.stdout, ["logistic regression"])
    assert min(found["logistic regression"]) > 0.97  # noise 0.25, distance to the line 0.71: Phi(2.83) = 0.998


def test_under_and_overfitting(start_script, tmp_path):
    data = ("--data", "circles", "--points", 60, "--noise", 0.35, "--epochs", 500)
    result = start_script(
        "demo_separation.py", *data, "--hidden", 1, 128, "--l2", 0, 0.003, "--quiet", "--out", tmp_path
    )
    assert result.returncode == 0, result.stderr
    names = ["two layers, 1 unit", "two layers, 128 units"]
    first, _, second = result.stdout.partition("two layers, 128 units")
    free = shares(first + "two layers, 128 units" + second.partition("\n")[0], names)
    held = shares(second.partition("\n")[2], names)
    few, many = free["two layers, 1 unit"], free["two layers, 128 units"]
    assert few[0] < 0.75  # one unit: too few for a disc
    assert many[0] > 0.9
    assert many[0] - many[1] > 0.05  # learned by heart
    gap = held["two layers, 128 units"]
    assert gap[0] - gap[1] < many[0] - many[1]
    height, width, _ = pixels(tmp_path / "separation.png").shape
    assert (height, width) == (120 * 10, 120 * 15)  # two rows of 4.7 inches and a margin of 0.6; three columns of 4.6


@pytest.mark.parametrize("data", ["xor", "circles", "spiral", "linear"])
def test_the_points(data):
    sample = runpy.run_path(str(SCRIPTS / "demo_separation.py"))["sample"]
    points, y = sample(data, 1000, 0.0, np.random.default_rng(0))
    assert np.bincount(y.astype(int)).tolist() == [500, 500]
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    if data == "xor":
        assert np.array_equal(y == 1, points[:, 0] * points[:, 1] < 0)
        assert len(np.unique(points, axis=0)) == 4
    elif data == "circles":
        assert np.allclose(radius, np.where(y == 1, 0.4, 1.3))
    elif data == "spiral":  # radius 1.5 after a turn and a half, 3 pi; class 1 half a turn further
        assert np.allclose(np.cos(angle - (2 * np.pi * radius + np.pi * y)), 1)
    else:
        assert np.array_equal(y == 1, points.sum(axis=1) > 0)
    again = sample(data, 1000, 0.1, np.random.default_rng(0))[0]
    assert np.array_equal(again, sample(data, 1000, 0.1, np.random.default_rng(0))[0])
    assert np.std(again - points) == pytest.approx(0.1, rel=0.1)


def test_the_same_seed_gives_the_same_picture_and_another_another(start_script, tmp_path):
    def picture(name, seed):
        options = ("--epochs", 1, "--points", 20, "--quiet", "--seed", seed)
        result = start_script("demo_separation.py", *options, "--out", tmp_path / name)
        assert result.returncode == 0, result.stderr
        return (tmp_path / name / "separation.png").read_bytes()

    assert picture("a", 1) == picture("b", 1) != picture("c", 2)


def test_without_a_folder_one_in_runs_is_made(start_script, tmp_path):
    result = start_script("demo_separation.py", "--epochs", 1, "--points", 20, "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("demo-separation-")
    assert [path.name for path in folder.iterdir()] == ["separation.png"]
