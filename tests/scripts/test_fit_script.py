"""scripts/fit.py as a person starts it."""

import csv
import importlib.util
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from valueapprox import History, checkpoint
from valueapprox.cli.terminal import errors_in_one_line
from valueapprox.optim import OPTIMIZERS
from valueapprox.supervised.fitting import STOPPED
from valueapprox.supervised.losses import LOSSES
from valueapprox.supervised.models import load_model
from valueapprox.supervised.tables import read_table
from valueapprox.telemetry import read_metrics

SCRIPT = Path(__file__).parents[2] / "scripts" / "fit.py"
SMALL = ("--hidden", 8, "--epochs", 6, "--quiet")


@pytest.fixture(scope="module")
def script():
    """The script as a module, for what needs no process of its own."""
    spec = importlib.util.spec_from_file_location("fit_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # tyro looks up the types of a dataclass there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def start(script, capsys, tmp_path, monkeypatch):
    """`start(*options)` is the script in this process, in tmp_path: exit code, stdout, stderr.

    Its pictures are empty files: drawing takes longer than fitting, and has tests of its own.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "learning_curve", lambda history, path, *_: path.touch())

    def run(*options):
        code = 0
        try:
            with errors_in_one_line():
                code = script.main(script.parse([str(o) for o in options]))
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(options, code, printed.out, printed.err)

    return run


def write(path, header, rows):
    path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def houses(path, n=200):
    """Columns of very different sizes: price = 2000 area - 30 age + 10^6, and an id that says nothing."""
    rng = np.random.default_rng(0)
    area, year = rng.uniform(30, 250, n).round(1), rng.integers(1900, 2024, n)
    price = 2000 * area - 30 * (2024 - year) + 1e6
    rows = zip(range(n), area, year, price.round(2), strict=True)
    return write(path, ("id", "area", "year", "price"), rows)


def flowers(path, n=240):
    """Three species in sectors of a plane."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 2)).round(4)
    kinds = np.array(["rose", "aster", "tulip"])[(np.arctan2(x[:, 1], x[:, 0]) // (2 * np.pi / 3) + 2).astype(int) % 3]
    return write(path, ("u", "v", "kind"), [(*a, b) for a, b in zip(x, kinds, strict=True)])


def outcome(folder):
    """What a fit leaves that does not depend on the clock."""
    fit, model = (checkpoint.load(Path(folder) / name) for name in ("fit.npz", "model.npz"))
    arrays = [{name: array.tobytes() for name, array in file.arrays.items()} for file in (fit, model)]
    return arrays, fit.meta["rows"], fit.meta["numbers"], model.meta, read_metrics(folder)


# A fit ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regression(start_script, tmp_path_factory):
    """A finished fit, made in a process of its own: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("fit")
    houses(folder / "houses.csv")
    options = ("--target", "price", "--ignore", "id", "--hidden", 16, "--epochs", 150, "--alpha", 0.01, "--out", "run")
    return folder / "run", start_script("fit.py", "houses.csv", *options, cwd=folder)


def test_a_fit_leaves_everything_and_says_where(regression):
    folder, result = regression
    assert (result.returncode, result.stderr) == (0, "")
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {
        *("fit.npz", "model.npz", "settings.json", "summary.json", "learning_curve.png", "metrics.jsonl"),
    }
    assert "price from 2 columns (area, year)" in result.stdout
    assert "160 rows to learn from, 40 for validation" in result.stdout
    assert "150 epochs done" in result.stdout
    assert "scripts/fit.py NEW.csv --model run\n" in result.stdout
    assert "scripts/fit.py --resume run --epochs 300\n" in result.stdout


def test_the_scores_are_those_of_the_model_in_original_units(regression):
    folder, result = regression
    model = load_model(folder)
    assert (model.features, model.targets, model.net.dtype) == (("area", "year"), ("price",), "float64")
    table = read_table(folder.parent / "houses.csv")
    S, y = table.numbers(model.features), table.numbers(["price"])[:, 0]
    errors = model.predict(S)[:, 0] - y
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rows"] == {"training": 160, "validation": 40}
    training, validation = (summary["scores"][rows]["price"] for rows in ("training", "validation"))
    # The mean of all squared errors is that of both sets, weighted by their sizes.
    mean_square = (160 * training["RMSE"] ** 2 + 40 * validation["RMSE"] ** 2) / 200
    assert mean_square == pytest.approx(np.mean(errors**2), rel=1e-9)
    assert training["R^2"] > 0.999
    assert validation["R^2"] > 0.999
    # The baseline of the training rows is their standard deviation: R^2 = 1 - RMSE^2 / sd^2.
    assert training["R^2"] == pytest.approx(1 - (training["RMSE"] / training["baseline RMSE"]) ** 2, rel=1e-9)
    assert validation["baseline RMSE"] == pytest.approx(y.std(), rel=0.2)
    for number in (training["RMSE"], validation["baseline RMSE"], validation["R^2"]):
        assert f"{number:.4g}" in result.stdout


def test_the_fit_ran_on_standardised_columns_of_the_training_rows(regression):
    # On those the loss of a constant, the mean, is 1/2; in original units it would be some 10^10.
    history = History.load(regression[0] / "fit.npz")
    assert 0.1 < history["loss"][0] < 2.0
    assert history["validation_loss"][-1] < 1e-3
    assert history.net.dtype == "float32"


def test_the_picture_is_a_real_image(regression):
    from matplotlib.image import imread

    image = imread(regression[0] / "learning_curve.png")
    height, width = image.shape[:2]
    assert width > 2 * height > 400
    colours = {tuple(np.round(c * 255).astype(int)) for c in image[..., :3].reshape(-1, 3)[::7]}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # two curves


def test_the_picture_of_what_is_hard_to_draw(script, regression, tmp_path, recwarn):
    # a step size for each layer, losses that cannot be shown on a log axis, dollars that are no formula
    history = History.load(regression[0] / "fit.npz")
    history.rows = [{**history.rows[0], "loss": 0.0, "validation_loss": 0.0}]
    history.best_epoch, history.best_loss = 1, 0.0
    script.learning_curve(history, tmp_path / "p.png", "from $1 to $2_000", [0.1, 0.01], " (mse)")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_the_event_file_reads_back(regression):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(regression[0])).Reload()
    history = History.load(regression[0] / "fit.npz")
    for tag in ("loss", "validation_loss", "step_size", "grad_norm/A", "grad_norm/B"):
        points = events.Scalars(f"fit/{tag}")
        assert [p.step for p in points] == [int(n) for n in history["updates"]]
        np.testing.assert_allclose([p.value for p in points], history[tag], rtol=1e-6)
    assert read_metrics(regression[0])[-1]["fit/loss"] == history["loss"][-1]


def test_new_rows_are_predicted_by_name_of_column(start, regression, tmp_path):
    # other columns, another order, and no target
    new = write(tmp_path / "new.csv", ("year", "colour", "area"), [(2000, "red", 100), (1950, "blue", 40.5)])
    result = start(new, "--model", regression[0])
    assert (result.returncode, result.stderr) == (0, "")
    header, *rows = csv.reader(io.StringIO(result.stdout))
    assert header == ["price"]
    expected = load_model(regression[0]).predict([[100, 2000], [40.5, 1950]])
    assert [float(cell) for (cell,) in rows] == expected[:, 0].tolist()
    # 2000 area - 30 age + 10^6, by hand: 200000 - 720 + 10^6 and 81000 - 2220 + 10^6
    np.testing.assert_allclose(expected[:, 0], [1_199_280, 1_078_780], rtol=0.02)
    assert start(new, "--model", regression[0], "--out", "p.csv").returncode == 0
    assert (tmp_path / "p.csv").read_text() == result.stdout
    again = start(new, "--model", regression[0], "--out", "p.csv")
    assert (again.returncode, again.stderr) == (2, "error: p.csv exists; choose another --out\n")


def test_without_a_folder_one_in_runs_is_made(start, tmp_path):
    houses(tmp_path / "my houses.csv")
    result = start("my houses.csv", "--target", "price", *SMALL)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("fit-my-houses-")
    assert f"runs/{folder.name}" in result.stdout


def test_help_names_the_choices(start_script):
    result = start_script("fit.py", "--help")
    assert result.returncode == 0
    for word in ("--target", "--resume", "--model", "exponential", "half_squared", "npz"):
        assert word in result.stdout


# Standardising --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--hidden",),
        ("--batch-norm", "--hidden", 8, 4),
        ("--layer-norm",),
        ("--loss", "huber"),
        ("--output", "softplus", "--loss", "mse"),
        ("--no-standardise", "--alpha", 1e-9, "--optimizer", "sgd"),
    ],
    ids=lambda options: " ".join(map(str, options)) or "default",
)
def test_the_model_predicts_from_raw_columns_what_was_fitted(start, tmp_path, options):
    houses(tmp_path / "houses.csv")
    common = ("--target", "price", "--validation", 0, "--dtype", "float64", "--out", "run")
    result = start("houses.csv", *common, *SMALL, *options)
    assert result.returncode == 0, result.stderr
    history, model = History.load("run/fit.npz"), load_model("run")
    table = read_table("houses.csv")
    S, y = table.numbers(["id", "area", "year"]), table.numbers(["price"])
    raw = "--no-standardise" in options
    inputs = S if raw else (S - S.mean(axis=0)) / S.std(axis=0)
    fitted = history.net.forward(history.w, inputs)
    if not raw and history.net.output == "linear":
        fitted = y.std() * fitted + y.mean()
    np.testing.assert_allclose(model.predict(S), fitted, rtol=1e-9)


def test_the_mean_is_that_of_the_training_rows(start, tmp_path):
    # One weight and the proximal L1 that sends it to zero: what is left is the mean of the training targets, 2.
    write(tmp_path / "a.csv", ("x", "y"), [(0, 1), (1, 2), (2, 3)])
    write(tmp_path / "b.csv", ("x", "y"), [(0, 100), (1, 300)])
    options = ("--target", "y", "--validation", "b.csv", "--hidden", "--l1", 1e3, "--proximal", "--init", "zeros")
    result = start("a.csv", *options, "--epochs", 3, "--out", "run", "--quiet")
    assert result.returncode == 0, result.stderr
    assert load_model("run").predict([[7.0]])[0, 0] == pytest.approx(2.0, abs=1e-6)
    scores = json.loads(Path("run/summary.json").read_text())["scores"]
    # training: deviations -1, 0, 1; validation: 98 and 298 from the training mean, 100 from their own
    assert scores["training"]["y"]["baseline RMSE"] == pytest.approx(np.sqrt(2 / 3))
    assert scores["validation"]["y"]["baseline RMSE"] == pytest.approx(np.sqrt((98**2 + 298**2) / 2))
    assert scores["validation"]["y"]["R^2"] == pytest.approx(1 - (98**2 + 298**2) / (2 * 100**2), rel=1e-6)


# Classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["nll", "nll_from_logits"])
def test_classes_by_name(start, tmp_path, loss):
    flowers(tmp_path / "flowers.csv")
    options = ("--target", "kind", "--loss", loss, "--hidden", 16, "--epochs", 60, "--alpha", 0.02, "--out", "run")
    result = start("flowers.csv", *options, "--quiet")
    assert result.returncode == 0, result.stderr
    model = load_model("run")
    assert model.classes == ("aster", "rose", "tulip")
    assert model.net.output == "softmax"
    scores = json.loads(Path("run/summary.json").read_text())["scores"]["training"]["kind"]
    assert scores["accuracy"] > 0.9 > 0.6 > scores["baseline accuracy"]
    assert f"{scores['accuracy']:.1%}" in result.stdout
    # three classes of about equal size: log 3
    assert scores["baseline log loss"] == pytest.approx(np.log(3), abs=0.1)
    predicted = start("flowers.csv", "--model", "run").stdout
    rows = list(csv.DictReader(io.StringIO(predicted)))
    truth = [row["kind"] for row in csv.DictReader(Path("flowers.csv").read_text().splitlines())]
    assert np.mean([row["kind"] == kind for row, kind in zip(rows, truth, strict=True)]) > 0.9
    for row in rows[:20]:
        chances = [float(row[f"P({kind})"]) for kind in model.classes]
        assert sum(chances) == pytest.approx(1.0)
        assert row["kind"] == model.classes[int(np.argmax(chances))]


@pytest.mark.parametrize("loss", ["log_loss", "log_loss_from_logits"])
def test_zeros_and_ones(start, tmp_path, loss):
    # two targets; the second one is 1 in three of four rows
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)).round(4)
    write(tmp_path / "t.csv", ("u", "v", "a", "b"), [(*s, int(s[0] > 0), int(i % 4 > 0)) for i, s in enumerate(x)])
    options = ("--target", "a", "b", "--loss", loss, "--hidden", "--validation", 0, "--epochs", 60, "--alpha", 0.05)
    result = start("t.csv", *options, "--out", "run", "--quiet")
    assert result.returncode == 0, result.stderr
    assert load_model("run").net.output == "sigmoid"
    scores = json.loads(Path("run/summary.json").read_text())["scores"]["training"]
    assert scores["a"]["accuracy"] > 0.95
    assert scores["b"]["baseline accuracy"] == 0.75
    assert scores["b"]["baseline log loss"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    header, first, *_ = csv.reader(io.StringIO(start("t.csv", "--model", "run").stdout))
    assert header == ["a", "b", "P(a=1)", "P(b=1)"]
    assert first[0] == str(int(float(first[2]) > 0.5))


def test_whole_numbers_as_classes_keep_their_values(start, tmp_path):
    rows = [(x, 7 if x > 0 else -1) for x in np.linspace(-1, 1, 40).round(3)]
    write(tmp_path / "t.csv", ("x", "y"), rows)
    result = start(
        "t.csv", "--target", "y", "--loss", "nll", "--epochs", 50, "--alpha", 0.02, "--out", "run", "--quiet"
    )
    assert result.returncode == 0, result.stderr
    assert load_model("run").classes == (-1, 7)
    assert load_model("run").classify([[-0.9], [0.9]]).tolist() == [-1, 7]


# npz ------------------------------------------------------------------------------------------------------------------


def test_arrays(start, tmp_path):
    rng = np.random.default_rng(0)
    S = rng.normal(size=(100, 3))
    np.savez(tmp_path / "t.npz", S=S, Y=S @ rng.normal(size=(3, 2)), other=np.zeros(7))
    options = ("--hidden", "--epochs", 100, "--alpha", 0.05, "--out", "run", "--quiet")
    result = start("t.npz", *options)
    assert result.returncode == 0, result.stderr
    model = load_model("run")
    assert (model.features, model.targets) == (("S[0]", "S[1]", "S[2]"), ("Y[0]", "Y[1]"))
    scores = json.loads(Path("run/summary.json").read_text())["scores"]["validation"]
    assert min(scores["Y[0]"]["R^2"], scores["Y[1]"]["R^2"]) > 0.99
    assert "validation, Y[1]" in result.stdout
    np.savez(tmp_path / "new.npz", S=S[:2])
    header, *rows = csv.reader(io.StringIO(start("new.npz", "--model", "run").stdout))
    assert header == ["Y[0]", "Y[1]"]
    np.testing.assert_array_equal(np.array(rows, float), model.predict(S[:2]))


# Going on -------------------------------------------------------------------------------------------------------------

EVERYTHING = ("--batch-norm", "--dropout", 0.2, "--l2", 1e-4, "--reduce-on-plateau", 1, "--clip-norm", 1, "--seed", 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", ()),
        ("everything", (*EVERYTHING, "--early-stopping", 50, "--batch-size", 31)),
        ("one minibatch", ("--batch-size", 0, "--optimizer", "momentum", "--max-iterations", 1000)),
    ],
)
def test_resumed_equals_run_through_bit_for_bit(start, tmp_path, name, options):
    houses(tmp_path / "houses.csv")
    common = ("houses.csv", "--target", "price", "--hidden", 8, *options, "--quiet")
    assert start(*common, "--epochs", 9, "--out", "through").returncode == 0
    assert start(*common, "--epochs", 4, "--out", "parts").returncode == 0
    assert outcome("parts") != outcome("through")
    result = start("--resume", "parts", "--epochs", 9, "--quiet")
    assert result.returncode == 0, result.stderr
    assert outcome("parts") == outcome("through")
    assert json.loads(Path("parts/settings.json").read_text())["epochs"] == 9


def test_a_resume_that_asks_for_no_more_changes_nothing(start, regression, tmp_path):
    shutil.copytree(regression[0], tmp_path / "run")
    result = start("--resume", "run", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert "run has done its 150 epochs; --epochs MORE lets it go on." in result.stdout
    assert outcome("run") == outcome(regression[0])


def test_more_epochs_leave_a_schedule_as_it_was_planned(start, tmp_path):
    houses(tmp_path / "houses.csv")
    common = ("houses.csv", "--target", "price", "--schedule", "linear", *SMALL)
    assert start(*common, "--out", "run").returncode == 0
    result = start("--resume", "run", "--epochs", 12, "--quiet")
    assert result.returncode == 0, result.stderr
    assert "note: the schedule of the step size stays as it was planned" in result.stdout
    # Linear from 1 to 0.01 over 5 updates an epoch; a row has the factor of its last update: number 4 and 29 of 30,
    # counted from 0. Then it stays.
    steps = History.load("run/fit.npz")["step_size"]
    np.testing.assert_allclose(steps[[0, 5, 6, 11]], [1 - 0.99 * 4 / 30, 1 - 0.99 * 29 / 30, 0.01, 0.01])
    assert start(*common, "--epochs", 12, "--schedule-epochs", 6, "--out", "through").returncode == 0
    assert outcome("run") == outcome("through")


def test_another_plan_of_a_schedule_is_taken_and_said(start, tmp_path):
    houses(tmp_path / "houses.csv")
    common = ("houses.csv", "--target", "price", "--schedule", "linear", *SMALL, "--out", "run")
    assert start(*common).returncode == 0
    result = start("--resume", "run", "--epochs", 12, "--schedule-epochs", 12, "--quiet")
    assert result.returncode == 0, result.stderr
    assert "note: the schedule of the step size is planned anew" in result.stdout
    steps = History.load("run/fit.npz")["step_size"]
    np.testing.assert_allclose(steps[[5, 6, 11]], [1 - 0.99 * 29 / 30, 1 - 0.99 * 34 / 60, 1 - 0.99 * 59 / 60])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse-time", "step", "exponential"])
def test_schedules_run_over_the_whole_fit(script, schedule):
    # 100 rows in minibatches of 30: 4 updates an epoch, 40 in all
    settings = script.Settings(schedule=schedule, epochs=10, batch_size=30)
    factor = settings.make_optimizer(100).schedule.factor
    half, end = {
        "constant": (1, 1),
        "linear": (1 - 0.99 / 2, 0.01),
        "cosine": (0.5 * 1.01, 0.01),
        "inverse-time": (1 / 6, 1 / 11),  # halved after 4 updates
        "step": (1 / 4, 1 / 32),  # halved every 8
        "exponential": (0.1, 0.01),
    }[schedule]
    assert (factor(0), factor(20), factor(40)) == pytest.approx((1, half, end))


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_ctrl_c_saves_and_says_how_to_go_on(start, tmp_path):
    houses(tmp_path / "houses.csv")
    common = ("houses.csv", "--target", "price", "--hidden", 8, "--quiet")
    command = [sys.executable, SCRIPT, *common, "--epochs", 10**8, "--out", "run", "--checkpoint-every", 1e9]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert wait_for(lambda: (tmp_path / "run" / "fit.npz").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert "Ending; Ctrl-C again" in errors
    assert "Traceback" not in errors
    assert "Interrupted after" in output
    assert "scripts/fit.py --resume run\n" in output
    history = History.load(tmp_path / "run" / "fit.npz")
    assert history.reason == STOPPED
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["interrupted"]
    # It was an ordinary part of a fit: gone on with, it is what it would have been.
    epochs = history.epoch + 3
    assert start("--resume", "run", "--epochs", epochs, "--quiet").returncode == 0
    assert start(*common, "--epochs", epochs, "--out", "through").returncode == 0
    assert outcome("run") == outcome("through")


# Names and numbers ----------------------------------------------------------------------------------------------------


def test_what_is_printed_to_type_next_can_be_typed(start_script, tmp_path):
    houses(tmp_path / "my [red] houses.csv")
    folder = "runs/[/x] $a 'b'"
    options = ("my [red] houses.csv", "--target", "price", *SMALL, "--out", folder)
    result = start_script("fit.py", *options, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    typed = {line[:16].strip(): shlex.split(line[16:]) for line in result.stdout.splitlines() if " --" in line}
    assert typed["Predict"][-2:] == ["--model", folder]
    assert typed["Look at it"] == ["tensorboard", "--logdir", "runs/["]
    assert typed["Go on"][-4:] == ["--resume", folder, "--epochs", "12"]
    predicted = start_script("fit.py", "my [red] houses.csv", *typed["Predict"][-2:], cwd=tmp_path)
    assert (predicted.returncode, predicted.stderr) == (0, "")
    assert len(predicted.stdout.splitlines()) == 201
    assert start_script("fit.py", *typed["Go on"][-4:], "--quiet", cwd=tmp_path).returncode == 0


def test_numbers_of_numpy_are_settings(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "learning_curve", lambda history, path, *_: path.touch())
    houses(tmp_path / "houses.csv")
    settings = script.Settings(
        target=("price",), hidden=(np.int64(4),), epochs=np.int64(2), seed=np.uint8(3), l2=np.float32(0.5),
        alpha=(np.float64(0.01),), batch_size=np.int32(16), layer_norm=np.bool_(True), validation=np.float32(0.25),
    )  # fmt: skip
    assert script.main(script.Fit(Path("houses.csv"), settings, out=Path("run"), quiet=True)) == 0
    assert script.stored(Path("run"))[1] == settings


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam", "decayed_max", "obgd", "adaptive_obgd"])
def test_every_optimizer_that_needs_no_trace_fits(start, tmp_path, optimizer):
    houses(tmp_path / "houses.csv")
    result = start("houses.csv", "--target", "price", *SMALL, "--optimizer", optimizer, "--out", "run")
    assert result.returncode == 0, result.stderr
    losses = History.load("run/fit.npz")["loss"]
    assert losses[-1] < losses[0]


# How it ends ----------------------------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_weights(start, tmp_path):
    # Targets are noise: nothing can be learned, and the validation loss soon rises.
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 4)).round(4)
    write(tmp_path / "t.csv", ("a", "b", "c", "y"), rows)
    options = ("--target", "y", "--alpha", 0.01, "--epochs", 500, "--early-stopping", 5, "--out", "run", "--quiet")
    result = start("t.csv", *options)
    assert result.returncode == 0, result.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["epochs"] == summary["best_epoch"] + 5
    assert f"no smaller validation loss since epoch {summary['best_epoch']}" in result.stdout
    assert "--resume" not in result.stdout
    # best loss, half the squared error over the targets' variance in the training rows, is that of the model
    scores = summary["scores"]
    variance = scores["training"]["y"]["baseline RMSE"] ** 2
    assert 0.5 * scores["validation"]["y"]["RMSE"] ** 2 / variance == pytest.approx(
        summary["best_validation_loss"], rel=1e-5
    )


def test_without_early_stopping_the_best_epoch_is_named(start, tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 4)).round(4)
    write(tmp_path / "t.csv", ("a", "b", "c", "y"), rows)
    result = start("t.csv", "--target", "y", "--alpha", 0.01, "--epochs", 60, "--out", "run", "--quiet")
    best = json.loads(Path("run/summary.json").read_text())["best_epoch"]
    assert (
        f"at its minimum in epoch {best}; the model is of epoch 60. --early-stopping 20 keeps the best."
        in result.stdout
    )


def test_an_end_before_the_first_epoch_leaves_no_picture(start, tmp_path):
    houses(tmp_path / "houses.csv")
    result = start("houses.csv", "--target", "price", "--max-iterations", 2, "--out", "run", "--quiet")
    assert result.returncode == 0, result.stderr
    assert "max_iterations 2 reached" in result.stdout
    assert not Path("run/learning_curve.png").exists()
    assert load_model("run").targets == ("price",)
    assert start("--resume", "run", "--max-iterations", 12, "--quiet").returncode == 0
    assert Path("run/learning_curve.png").exists()


def test_a_fit_that_diverges_says_so_and_leaves_nothing(start, tmp_path):
    houses(tmp_path / "houses.csv")
    options = ("--target", "price", "--optimizer", "sgd", "--alpha", 1e12, "--out", "run", "--quiet")
    result = start("houses.csv", *options)
    assert result.returncode == 1
    assert result.stderr.startswith("error: the loss is infinite or NaN in epoch 1")
    assert len(result.stderr.splitlines()) == 1
    assert not Path("run").exists()


# Tables as they are ---------------------------------------------------------------------------------------------------


def flats(path, n=300):
    """Rents with empty cells, a column of four districts, dates, remarks; about one cell in twenty is missing."""
    rng = np.random.default_rng(5)
    extra = {"North": 0, "South": 80, "Old Town": 250, "Harbour": 150}
    rows = []
    for i in range(n):
        area, day, district = rng.uniform(25, 140), int(rng.integers(0, 3000)), str(rng.choice(list(extra)))
        rent = 9 * area + 0.1 * day + extra[district] + rng.normal(0, 5)
        cells = [f"{area:.1f}", district, str(np.datetime64("2015-01-01") + day), f'"remark {i}, ok"', f"{rent:.2f}"]
        gone = rng.random(5) < 0.05
        rows.append(
            [cell if not lost else rng.choice(["", "NA", "nan"]) for cell, lost in zip(cells, gone, strict=True)]
        )
    return write(path, ("area", "district", "since", "remark", "rent"), rows)


def test_one_message_says_all_that_is_wrong_and_its_advice_works(start, tmp_path):
    flats(tmp_path / "flats.csv")
    result = start("flats.csv", "--target", "rent", "--out", "run", *SMALL)
    assert (result.returncode, result.stdout) == (2, "")
    first, *lines, last = result.stderr.splitlines()
    assert first == "error: flats.csv has 5 columns that cannot be used as they are:"
    assert [line.partition("column ")[2].partition(":")[0] for line in lines] == [
        "'area'", "'district'", "'since'", "'remark'", "'rent'",
    ]  # fmt: skip
    assert "300 cells are dates and" in lines[2]
    assert last == "For instance, add: --missing median --one-hot district --dates since --ignore remark"
    assert not Path("run").exists()
    advice = last.partition("add: ")[2].split()
    result = start(
        "flats.csv", "--target", "rent", "--out", "run", "--quiet", *advice, "--epochs", 200, "--alpha", 0.01
    )
    assert result.returncode == 0, result.stderr
    assert "rows of flats.csv are left out: the target is missing" in result.stdout
    scores = json.loads(Path("run/summary.json").read_text())["scores"]
    assert scores["training"]["rent"]["R^2"] > 0.95


def test_the_treatment_goes_with_the_model(start, tmp_path):
    # y = x + 10 where a is "p"; x = 1, 2, 3, 4 has mean 2.5 and median 2.5; with 9 the mean is 3.8 and the median 3
    rows = [(1, "p", "1970-01-02", 11), (2, "q", "1970-01-03", 2), (3, "p", "1970-01-04", 13), (4, "q", "", 4)]
    rows += [("", "q", "1970-01-05", 2), (9, "", "1970-01-06", 9), (5, "p", "1970-01-01", "")]
    write(tmp_path / "t.csv", ("x", "a", "d", "y"), rows)
    options = ("--target", "y", "--missing", "median", "--one-hot", "a", "--dates", "d", "--validation", 0)
    result = start("t.csv", *options, *SMALL, "--out", "run")
    assert result.returncode == 0, result.stderr
    model = load_model("run")
    assert model.features == ("x", "x missing", "a=p", "a=q", "a missing", "d", "d missing")
    # of the six rows with a target: x = 1 2 3 4 9, d = 1 2 3 4 5 days
    write(tmp_path / "new.csv", ("d", "a", "x"), [("1970-01-11", "p", 7), ("NA", "z", "?"), ("", "", "")])
    assert start("new.csv", "--model", "run").stderr == (
        "error: new.csv, line 3, column 'x': '?' is no number; expected a number (1 of 3 cells is text)\n"
    )
    write(tmp_path / "new.csv", ("d", "a", "x"), [("1970-01-11", "p", 7), ("NA", "z", "n/a"), ("", "", "")])
    S, _ = model.encode(read_table("new.csv"))
    np.testing.assert_array_equal(S, [[7, 0, 1, 0, 0, 10, 0], [3, 1, 0, 0, 0, 3, 1], [3, 1, 0, 0, 1, 3, 1]])
    result = start("new.csv", "--model", "run")
    assert result.returncode == 0
    assert result.stderr == (
        "note: new.csv, line 3, column 'a': 'z' was not among the categories that were learned; 1 such cell counts as "
        "none of them\n"
    )
    assert [float(line) for line in result.stdout.split()[1:]] == model.predict(S)[:, 0].tolist()
    # a resume knows it too
    assert start("--resume", "run", "--epochs", 8, "--quiet").returncode == 0
    assert load_model("run").columns == model.columns


@pytest.mark.parametrize(("missing", "fill"), [("mean", 3.8), ("median", 3.0)])
def test_a_missing_cell_is_filled_from_the_rows_that_are_learned_from(start, tmp_path, missing, fill):
    write(tmp_path / "t.csv", ("x", "y"), [(x, i) for i, x in enumerate([1, 2, 3, 4, 9, ""])])
    write(tmp_path / "v.csv", ("x", "y"), [(1000, 1), ("", 2)])
    result = start("t.csv", "--target", "y", "--missing", missing, "--validation", "v.csv", *SMALL, "--out", "run")
    assert result.returncode == 0, result.stderr
    (column,) = load_model("run").columns
    assert (column.fill, column.flag) == (pytest.approx(fill), True)


def test_rows_with_a_missing_cell_can_be_left_out(start, tmp_path):
    write(
        tmp_path / "t.csv",
        ("x", "k", "y"),
        [(1, "a", 1), ("", "a", 2), (3, "", 3), (4, "b", ""), (5, "b", 5), (6, "a", 6)],
    )
    options = ("--target", "y", "--missing", "drop", "--one-hot", "k", "--validation", 0)
    result = start("t.csv", *options, *SMALL, "--out", "run")
    assert result.returncode == 0, result.stderr
    assert "note: 3 of 6 rows of t.csv are left out: a cell is missing" in result.stdout
    assert json.loads(Path("run/summary.json").read_text())["rows"] == {"training": 3, "validation": 0}
    result = start("t.csv", "--model", "run")
    assert result.stderr == "note: 2 of 6 rows have a missing cell; their predictions are empty\n"
    _, *rows = csv.reader(io.StringIO(result.stdout))
    assert [bool(row[0]) for row in rows] == [True, False, False, True, True, True]
    expected = load_model("run").predict([[1, 1, 0], [4, 0, 1]])[:, 0]
    assert [float(rows[0][0]), float(rows[3][0])] == expected.tolist()


def test_refused_is_what_is_missing_at_prediction_if_it_was_refused_at_fitting(start, regression, tmp_path):
    write(tmp_path / "new.csv", ("area", "year"), [(1, 2), ("", 3), (4, "NA")])
    result = start("new.csv", "--model", regression[0])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: new.csv has 2 columns that cannot be used as they are:\n  line 3, column 'area'"
    )


@pytest.mark.parametrize(
    ("form", "cells"),
    [
        ((), ("1970-01-02", "1970-01-03T12:00", "1970-01-04 00:00+01:00")),
        (("--date-format", "%d.%m.%Y %H:%M"), ("02.01.1970 00:00", "3.1.1970 12:00", "03.01.1970 23:00")),
    ],
)
def test_dates_become_days(start, tmp_path, form, cells):
    # 1, 2.5, and an hour before 3: midnight in a zone that is an hour ahead
    write(tmp_path / "t.csv", ("d", "y"), [(cell, i) for i, cell in enumerate(cells)])
    options = ("t.csv", "--target", "y", "--validation", 0, *SMALL)
    refused = start(*options, "--out", "no").stderr
    assert "column 'd'" in refused
    assert "--dates d turns them into days" in refused
    result = start(*options, "--dates", "d", *form, "--out", "run")
    assert result.returncode == 0, result.stderr
    S, _ = load_model("run").encode(read_table("t.csv"))
    np.testing.assert_allclose(S[:, 0], [1, 2.5, 3 - 1 / 24])
    wrong = start(*options, "--dates", "d", "--date-format", "%Y/%m/%d", "--out", "no")
    assert "is no date; expected a date of the form %Y/%m/%d; of 3 cells, 3 are not" in wrong.stderr


def test_a_model_of_version_0_1_predicts(start, regression, tmp_path):
    arrays, meta = checkpoint.load(regression[0] / "model.npz")
    old = {name: value for name, value in meta.items() if name not in ("columns", "treatment")}
    checkpoint.save(tmp_path / "old.npz", arrays, old)
    new = write(tmp_path / "new.csv", ("year", "area"), [(2000, 100), (1950, 40.5)])
    assert start(new, "--model", "old.npz").stdout == start(new, "--model", regression[0]).stdout


@pytest.mark.parametrize(
    "cells", [("007", "042"), ("007", "7"), ("3_1", "31"), ("1.0", "2"), ("NaNo", "inf"), ("\u0661", "1")], ids=str
)
def test_classes_come_back_as_they_are_written(start, tmp_path, cells):
    one, other = cells
    write(tmp_path / "t.csv", ("x", "code"), [(0.1 * i, one if i < 4 else other) for i in range(8)])
    options = ("--target", "code", "--loss", "nll", "--epochs", 200, "--alpha", 0.05, "--validation", 0, "--quiet")
    result = start("t.csv", *options, "--out", "run")
    assert result.returncode == 0, result.stderr
    header, *rows = csv.reader(io.StringIO(start("t.csv", "--model", "run").stdout))
    assert header == ["code", *(f"P({label})" for label in sorted(cells))]
    assert [row[0] for row in rows] == [one] * 4 + [other] * 4


LARGE = 2**63 + 1


@pytest.mark.parametrize("labels", [[False, True], [1.0, 2.0], [0.5, 1.5], [7, 10], ["007", "7"], [LARGE, 3]], ids=str)
def test_classes_of_arrays_come_back_as_they_are(start, tmp_path, labels):
    one, other = labels
    np.savez(
        tmp_path / "t.npz",
        S=np.arange(8.0)[:, None],
        Y=np.array([one] * 4 + [other] * 4, np.uint64 if one == LARGE else None),
    )
    options = ("--loss", "nll", "--epochs", 200, "--alpha", 0.05, "--validation", 0, "--quiet", "--out", "run")
    result = start("t.npz", *options)
    assert result.returncode == 0, result.stderr
    _, *rows = csv.reader(io.StringIO(start("t.npz", "--model", "run").stdout))
    assert [row[0] for row in rows] == [str(one)] * 4 + [str(other)] * 4
    found = load_model("run").classify(np.arange(8.0)[:, None]).tolist()
    assert found == [one] * 4 + [other] * 4
    assert type(found[0]) is type(one)


def test_what_only_python_reads_is_no_number(start, tmp_path):
    write(
        tmp_path / "homes.csv", ("zip", "area", "price"), [("1_2", 50, 100), ("2_1", 60, 110), ("3_0", "\u0661", 120)]
    )
    result = start("homes.csv", "--target", "price", *SMALL, "--out", "m")
    assert result.returncode == 2
    assert "line 2, column 'zip': '1_2' is no number" in result.stderr
    assert "line 4, column 'area': '\u0661' is no number" in result.stderr


# Bad input ------------------------------------------------------------------------------------------------------------

T = ("--target", "y")
#: name: (content of data.csv, options after it, what the line says)
BAD_DATA = {
    "missing column": ("x,price\n1,2\n3,4\n", ("--target", "prise"), "data.csv has no column 'prise' (--target); did"),
    "no target": ("x,y\n1,2\n3,4\n", (), "--target is missing: which column of data.csv to predict; there are x, y"),
    "text": (
        "x,y\n1,2\noops,4\n",
        T,
        "data.csv, line 3, column 'x': 'oops' is no number; expected a number (1 of 2 cells is text: --one-hot x makes",
    ),
    "text target": (
        "x,y\n1,a\n3,b\n",
        T,
        "column 'y': 'a' is no number; expected a number (2 of 2 cells are text, 2 different ones: --loss nll",
    ),
    "empty cell": ("x,y\n1,2\n3,\n", T, "data.csv, line 3, column 'y': the cell is empty; expected a number (1 of 2"),
    "NaN": ("x,y\n1,2\n3,4\nNaN,5\n", T, "line 4, column 'x': the cell is 'NaN', which is missing; expected a num"),
    "ragged": ("x,y\n1,2\n3\n", T, "data.csv, line 3 has 1 cell; the header has 2"),
    "empty": ("", T, "data.csv is empty"),
    "header only": ("x,y\n", T, "data.csv has a header line and no rows"),
    "duplicate": ("x,x,y\n1,2,3\n", T, "data.csv has two columns called 'x'"),
    "constant": ("x,y\n1,5\n2,5\n3,5\n", T, "data.csv: y is 5 in all 3 rows; there is nothing to learn"),
    "one class": (
        "x,y\n1,a\n2,a\n",
        (*T, "--loss", "nll"),
        "data.csv: y is a in all 2 rows; there is nothing to learn",
    ),
    "one row": ("x,y\n1,2\n", (*T, "--validation", 0), "data.csv has 1 row; expected at least 2 to learn from"),
    "two rows": ("x,y\n1,2\n3,4\n", T, "data.csv has 2 rows, and 1 is held out; expected at least 2 to learn from"),
    "neither 0 nor 1": ("x,y\n1,0\n3,2\n", (*T, "--loss", "log_loss"), "line 3, column 'y': 2 is neither 0 nor 1"),
    "no class": ("x,y\n1,0\n3,0.5\n", (*T, "--loss", "nll"), "line 3, column 'y': 0.5 is no class"),
    "one-hot and date": ("x,y\n1,2\n3,4\n", (*T, "--one-hot", "x", "--dates", "x"), "--one-hot and --dates are both x"),
    "one-hot target": ("x,y\n1,2\n3,4\n", (*T, "--one-hot", "y"), "--one-hot is y; expected columns to predict from"),
    "form of no dates": ("x,y\n1,2\n3,4\n", (*T, "--date-format", "%Y"), "date_format is set and dates is empty"),
    "missing class": (
        "x,y\n1,a\n3,\n4,b\n",
        (*T, "--loss", "nll"),
        "line 3, column 'y': the cell is empty; expected a cl",
    ),
    "all missing": (
        "x,y\n1,\n3,2\n,4\n",
        (*T, "--missing", "drop"),
        "data.csv has 3 rows of which 1 can be used, and 1 is",
    ),
    "two columns of classes": (
        "x,y,z\n1,0,1\n",
        ("--target", "y", "z", "--loss", "nll"),
        "--target is y, z; expected one column",
    ),
}
#: name: (options, what the line says); good.csv is fine, bad.npz is not
BAD_OPTIONS = {
    "no file": ((), "fit.py DATA.csv --target COLUMN"),
    "file last": (("--target", "price", "good.csv"), "it comes first (good.csv was taken for a column)"),
    "missing file": (("god.csv",), "there is no file god.csv; did you mean 'good.csv'?"),
    "loss": (("good.csv", "--target", "price", "--loss", "half_square"), "did you mean 'half_squared'"),
    "optimizer": (
        ("good.csv", "--target", "price", "--optimizer", "adma"),
        "optimizer is 'adma'; did you mean 'adam'?",
    ),
    "optimizer of a stream": (
        ("good.csv", "--target", "price", "--optimizer", "variance_adjusted"),
        "optimizer is variance_adjusted, which needs an eligibility trace; expected one of sgd, adam",
    ),
    "option": (("good.csv", "--target", "price", "--early-stoping", 3), "--early-stopping"),
    "activation": (("good.csv", "--target", "price", "--activation", "rely"), "did you mean 'relu'"),
    "output": (
        ("good.csv", "--target", "price", "--loss", "nll", "--output", "tanh", "--ignore", "id"),
        "output is tanh; expected softmax",
    ),
    "share": (
        ("good.csv", "--target", "price", "--validation", 1),
        "validation is 1.0; expected a share in [0, 1), or a file",
    ),
    "validation file": (("good.csv", "--target", "price", "--validation", "god.csv"), "did you mean 'good.csv'?"),
    "nothing to stop by": (
        ("good.csv", "--target", "price", "--validation", 0, "--early-stopping", 3),
        "early_stopping",
    ),
    "proximal": (("good.csv", "--target", "price", "--proximal"), "l1 is 0; expected a positive number"),
    "epochs": (("good.csv", "--target", "price", "--epochs", 0), "epochs is 0; expected a whole number of at least 1"),
    "alpha": (
        ("good.csv", "--target", "price", "--alpha", 1, 2, 3),
        "alpha has 3 step sizes; expected one, or 2 for the layers",
    ),
    "two normalisations": (
        ("good.csv", "--target", "price", "--layer-norm", "--batch-norm"),
        "layer_norm and batch_norm",
    ),
    "folder": (("good.csv", "--target", "price", "--out", "other"), "other exists and is not empty; choose another"),
    "damaged npz": (("bad.npz",), "bad.npz is damaged or no npz file"),
    "npz without arrays": (("xy.npz",), "xy.npz has no array Y, and no --target is named; there are x, y"),
    "npz of objects": (("objects.npz",), "objects.npz: array Y holds object; expected numbers"),
    "resume nowhere": (("--resume", "nowhere"), "there is no fit in nowhere (settings.json is missing)"),
    "resume damaged": (("--resume", "damaged"), "settings.json is damaged"),
    "resume another": (
        ("--resume", "run", "--seed", 4),
        "seed is 4; expected 0, with which the fit was started",
    ),
    "resume with less": (
        ("--resume", "run", "--epochs", 2),
        "epochs is 2; expected at least the 150",
    ),
    "resume other data": (("changed.csv", "--resume", "run", "--epochs", 200), "cannot resume: the data are others"),
    "model nowhere": (("good.csv", "--model", "nowhere"), "there is no checkpoint at nowhere"),
    "model, no feature": (("changed2.csv", "--model", "run"), "changed2.csv has no column 'year' (a feature of run)"),
    "model and fit": (
        ("good.csv", "--model", "run", "--epochs", 3),
        "--model predicts, and takes --delimiter and --out",
    ),
}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def check_one_line(result, says, before, tmp_path):
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_one_line_and_nothing_is_written(start, tmp_path, name):
    content, options, says = BAD_DATA[name]
    (tmp_path / "data.csv").write_text(content)
    before = files(tmp_path)
    check_one_line(start("data.csv", *options), says, before, tmp_path)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_one_line_and_nothing_is_written(start, regression, tmp_path, name):
    options, says = BAD_OPTIONS[name]
    houses(tmp_path / "good.csv")
    houses(tmp_path / "changed.csv", n=199)
    write(tmp_path / "changed2.csv", ("area", "yeer"), [(1, 2)])
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "xy.npz", x=np.zeros(3), y=np.arange(3))
    np.savez(tmp_path / "objects.npz", S=np.zeros((3, 1)), Y=np.array([None, 1, 2]))
    for folder in ("other", "damaged"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "settings.json").write_text("a shopping list")
    shutil.copytree(regression[0], tmp_path / "run")
    before = files(tmp_path)
    check_one_line(start(*options), says, before, tmp_path)


def test_an_error_in_a_process_of_its_own(start_script, tmp_path):
    (tmp_path / "data.csv").write_text("x,y\n1,[b]2\n")
    result = start_script("fit.py", "data.csv", *T, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: data.csv, line 2, column 'y': '[b]2' is no number; expected a number (1 of 1 cells is text: --loss nll "
        "learns classes by name)\n"
    )


def test_an_unknown_class_in_the_validation_file(start, tmp_path):
    write(tmp_path / "a.csv", ("x", "y"), [(0, "red"), (1, "blue"), (2, "red")])
    write(tmp_path / "b.csv", ("y", "x"), [("blue", 1), ("green", 2)])
    result = start("a.csv", *T, "--loss", "nll", "--validation", "b.csv")
    assert result.returncode == 2
    assert "b.csv, line 3, column 'y': class 'green' was not learned; expected one of blue, red" in result.stderr


# What earlier versions have left --------------------------------------------------------------------------------------

FITS = Path(__file__).parent / "fits"


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_a_fit_of_an_earlier_version_predicts_and_goes_on(start, tmp_path, version):
    shutil.copytree(FITS / f"version-{version}", tmp_path / "run")
    shutil.copy(FITS / "examples.csv", tmp_path)
    model, before = load_model("run"), History.load("run/fit.npz")
    assert (model.features, model.classes, model.net.output, before.epoch) == (("a", "b"), ("x", "y"), "softmax", 4)
    assert before.settings["loss"] == {"name": "nll", "reduction": "mean"}
    rows = list(csv.reader(io.StringIO(start("examples.csv", "--model", "run").stdout)))
    assert rows[0] == ["kind", "P(x)", "P(y)"]
    # What both versions printed for the first row.
    np.testing.assert_allclose(np.array(rows[1][1:], float), [0.5676687000573737, 0.43233129994262626], rtol=1e-12)
    result = start("--resume", "run", "--epochs", 8, "--quiet")
    assert result.returncode == 0, result.stderr
    after = History.load("run/fit.npz")
    assert after.epoch == 8
    assert after.rows[:4] == before.rows
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["loss"] == "nll"


# What the registries say ----------------------------------------------------------------------------------------------


def test_the_help_names_every_loss_and_every_optimizer_that_can_fit(start):
    words = set(re.split(r"[^\w]+", start("--help").stdout))
    assert set(LOSSES) <= words
    assert {name for name, cls in OPTIMIZERS.items() if not cls.needs_gradient} <= words
    assert not {name for name, cls in OPTIMIZERS.items() if cls.needs_gradient} & words
