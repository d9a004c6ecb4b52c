"""Fit a network to the rows of a CSV or npz file, and predict the rows of another."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import tyro
from rich.markup import escape

from valueapprox import History
from valueapprox.checkpoint import write_whole
from valueapprox.cli.fits import learning_curve, scores_table, still_falling
from valueapprox.cli.terminal import (
    announce_compile,
    command,
    command_line,
    console,
    errors,
    errors_in_one_line,
    note,
    plain,
    typed,
)
from valueapprox.files import folder_for
from valueapprox.supervised import losses
from valueapprox.supervised.examples import TableData, read_examples
from valueapprox.supervised.models import load_model
from valueapprox.supervised.table_fit import HISTORY_FILE, MODEL_FILE, Result, Settings, fit_table, stored, summary
from valueapprox.supervised.tables import read_table

PICTURE_FILE, SUMMARY_FILE = "learning_curve.png", "summary.json"
# On a resume:
MAY_CHANGE = ("epochs", "max_iterations", "schedule_epochs", "tolerance", "gradient_tolerance", "early_stopping")


@dataclass(frozen=True)
class Fit:
    """Fit a network to the rows of a CSV or npz file, or predict with a model that was fitted.

    The file comes first, then the column to predict. Model, log, learning curve and summary go to a folder in runs/.
    A fifth of the rows is held out, to see how well the model does on rows that it has not seen. Ctrl-C saves.

    A number is an optional sign, the digits 0 to 9, a point and an exponent: -12.5e3. Blanks around a cell do not
    count. An empty cell, NA and NaN are missing; anything else is text. Classes are given back as they are written.
    All that keeps a table from being used is said at once, with the options that help: --missing, --one-hot, --dates,
    --ignore. The model remembers them: it takes such tables as they are. A category that it has not seen counts as
    none of those that it knows; with --missing drop, a row with a missing cell gets an empty prediction.

    Like this:
      fit.py houses.csv --target price --hidden 64 64 --early-stopping 20
      fit.py flowers.csv --target species --loss nll
      fit.py flats.csv --target rent --missing median --one-hot district --dates let-since
      fit.py returns.npz                                 arrays S (n, d) and Y (n,) or (n, k)
      fit.py --resume runs/NAME --epochs 500             go on
      fit.py more-houses.csv --model runs/NAME           predictions as CSV, to the terminal or to --out FILE
    """

    data: tyro.conf.Positional[Path | None] = None
    """CSV with a header line, or npz."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    out: Path | None = None
    """Folder of the fit, a new one in runs/ if not given; with --model, the file for the predictions."""
    resume: Path | None = None
    """Go on with the fit in this folder, bit for bit; only the options on when to end may differ."""
    model: Path | None = None
    """Predict the rows of the file with the model in this folder."""
    checkpoint_every: float = 30.0
    """Seconds between two checkpoints."""
    quiet: bool = False
    """No progress bar; the summary only."""


def main(options: Fit) -> int:
    """Fit and report, or predict; returns the exit code."""
    if options.model is not None:
        return predict(options)
    path, settings = data_path(options), options.settings
    settings.check()
    if options.resume is not None:
        check_resume(options.resume, settings)
    with folder_for(options.resume or options.out, f"fit-{path.stem.replace(' ', '-')}") as folder:
        if options.resume is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is not empty; choose another --out, or --resume {folder}")
        data = read_examples(path, settings, note)
        announce_compile()
        if not options.quiet:
            describe(data, path, settings)
        try:
            result = fit_table(
                *(data, path, folder, settings),
                resume=options.resume is not None,
                checkpoint_every=options.checkpoint_every,
                progress=False if options.quiet else None,
                notice=note,
            )
        except KeyboardInterrupt:  # the second Ctrl-C
            if (folder / HISTORY_FILE).exists():
                console.print(f"Go on from the last checkpoint: {plain(command('fit.py', '--resume', folder))}")
            raise
        summarise(result, data, path, folder, settings)
        return 128 + result.interrupted if result.interrupted else 0


def data_path(options: Fit) -> Path:
    """The file that was named, or an error that says how."""
    if options.data is None:
        named = [*options.settings.target, *options.settings.features, *options.settings.ignore]
        swallowed = next((name for name in named if name.lower().endswith((".csv", ".tsv", ".npz"))), None)
        hint = f" ({swallowed} was taken for a column)" if swallowed else ""
        raise ValueError(
            f"no file is named; it comes first{hint}: {command('fit.py', 'DATA.csv', '--target', 'COLUMN')}"
        )
    return options.data


def check_resume(folder: Path, settings: Settings) -> None:
    """Raise ValueError if the fit in the folder was another one, or has done more."""
    _, old = stored(folder)
    for f in fields(Settings):
        before, now = getattr(old, f.name), getattr(settings, f.name)
        if f.name not in MAY_CHANGE and before != now:
            raise ValueError(f"{f.name} is {now!r}; expected {before!r}, with which the fit was started")
    done = History.load(folder / HISTORY_FILE).epoch
    if done > (settings.max_epochs or done):
        raise ValueError(f"epochs is {settings.max_epochs}; expected at least the {done} that {folder} has done")
    if done == settings.max_epochs:
        console.print(f"{escape(str(folder))} has done its {done} epochs; --epochs MORE lets it go on.")


def describe(data: TableData, path: Path, settings: Settings) -> None:
    """What is learned from what, in a few lines."""
    held = 0 if data.validation is None else len(data.validation.S)
    what = ", ".join(data.targets) + (f" ({len(data.classes)} classes)" if data.classes else "")
    names = ", ".join(column.name for column in data.columns[:8]) + ", ..." * (len(data.columns) > 8)
    inputs = "" if len(data.features) == len(data.columns) else f", as {len(data.features)} inputs"
    console.print(
        f"[bold]{escape(str(path))}[/]: {escape(what)} from {len(data.columns)} columns ({escape(names)})"
        f"{inputs}\n"
        f"{len(data.training.S):,} rows to learn from, {held:,} for validation; {settings.loss} by "
        f"{settings.optimizer}\n{settings.make_network(data)}"
    )


def summarise(result: Result, data: TableData, path: Path, folder: Path, settings: Settings) -> None:
    """How good the model is, where everything lies, and what to type next."""
    history, model = result.history, result.model
    scores = {"training": model.scores(data.training, data.training)}
    if data.validation is not None:
        scores["validation"] = model.scores(data.validation, data.training)
    of_numbers = losses.LOSSES[settings.loss].targets_are == "numbers"
    console.print(
        f"{'Interrupted' if result.interrupted else 'Ended'} after {history.epoch:,} epochs, {history.n_updates:,} "
        f"updates, {result.seconds:.1f} s" + ("." if result.interrupted else f": {history.reason}.")
    )
    console.print(scores_table(scores))
    console.print(f"The baseline predicts the {'mean' if of_numbers else 'most frequent class'} of the training rows.")
    best = history.best_epoch
    if (
        best is not None
        and settings.early_stopping is None
        and history["validation_loss"][-1] > 1.05 * history.best_loss
    ):
        console.print(
            f"The validation loss was at its minimum in epoch {best}; the model is of epoch {history.epoch}. "
            "--early-stopping 20 keeps the best."
        )
    if history.epoch == settings.max_epochs and still_falling(history):
        console.print("The training loss was still falling: more --epochs, or a larger --alpha, go on from here.")
    document = json.dumps(summary(result, data, path, scores), indent=2)
    write_whole(folder / SUMMARY_FILE, lambda file: file.write(document.encode()))
    lines = [("Model", plain(folder / MODEL_FILE))]
    if history.rows:
        names = ", ".join(model.targets[:3]) + ", ..." * (len(model.targets) > 3)
        title = f"{path.name}: {names} by {settings.optimizer}, {history.net}"
        scaled = settings.standardise and of_numbers and history.net.output == "linear"
        alphas = settings.make_optimizer(len(data.training.S)).layer_alphas(history.net.layer_names)
        unit = f" ({settings.loss}{', standardised targets' * scaled})"
        learning_curve(history, folder / PICTURE_FILE, title, alphas, unit)
        lines.append(("Learning curve", plain(folder / PICTURE_FILE)))
    else:
        note("no epoch was completed, so there is no learning curve")
    lines += [
        ("Log, checkpoint", plain(folder)),
        ("Look at it", plain(typed("tensorboard", "--logdir", folder.parent))),
        ("Predict", plain(command("fit.py", f"NEW{path.suffix}", "--model", folder))),
    ]
    if result.interrupted or history.epoch == settings.max_epochs:  # converged, or stopped early, it has nowhere to go
        more = () if result.interrupted else ("--epochs", 2 * history.epoch)
        lines.append(("Go on", plain(command("fit.py", "--resume", folder, *more))))
    console.print()
    for what, text in lines:
        console.print(f"{what:<16}{text}")


def predict(options: Fit) -> int:
    """Write the predictions for the rows of a file; returns the exit code."""
    assert options.model is not None, "asked for"
    if options.resume is not None or options.settings != Settings(delimiter=options.settings.delimiter):
        raise ValueError("--model predicts, and takes --delimiter and --out; the other options are for fitting")
    model = load_model(options.model)
    table = read_table(data_path(options), options.settings.delimiter)
    S, notes = model.encode(table, f"a feature of {options.model}")
    header, rows = model.answers(S)
    if n := int(np.isnan(S).any(axis=1).sum()):
        notes.append(f"{n} of {len(S)} rows have a missing cell; their predictions are empty")
    for sentence in notes:
        note(sentence, errors)  # what goes to the standard output may be read by a program
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    if options.out is None:
        sys.stdout.write(text.getvalue())
    else:
        if options.out.exists():
            raise FileExistsError(f"{options.out} exists; choose another --out")
        write_whole(options.out, lambda file: file.write(text.getvalue().encode()))
        console.print(f"{len(rows):,} predictions    {escape(str(options.out))}")
    return 0


def parse(arguments: Sequence[str] | None = None) -> Fit:
    """The command line; on a resume, what it leaves out is what the fit was started with."""
    options = command_line(Fit, arguments)
    if options.resume is None:
        return options
    path, settings = stored(options.resume)
    return command_line(Fit, arguments, default=Fit(data=path, settings=settings))


if __name__ == "__main__":
    with errors_in_one_line():
        sys.exit(main(parse()))
