"""One page about a sweep, or about runs: tables, pictures and commands, as HTML, Markdown, LaTeX and CSV."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from valueapprox.agents.settings import RunSettings
from valueapprox.agents.sweeps import figures, sheets
from valueapprox.agents.sweeps.cells import EVALUATION
from valueapprox.agents.sweeps.sheets import Sheet
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED
from valueapprox.agents.sweeps.table import Group, Table, best
from valueapprox.agents.training import kind_for, settings_from
from valueapprox.checkpoint import write_whole
from valueapprox.cli.terminal import command
from valueapprox.statistics import estimate
from valueapprox.supervised.table_fit import Settings as FitSettings

__all__ = ["Part", "parts_of", "write"]

STYLE = """
:root { color-scheme: light dark; --back: #fafafa; --card: #fff; --text: #1d2127; --soft: #5c6570; --line: #d9dde2; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --card: #1c2026; --text: #e4e7eb; --soft: #9aa4b0; --line: #343b44; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 0 1rem 3rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .4rem 1rem .9rem;
  margin: 1rem 0; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; } h3 { font-size: .95rem; margin-bottom: .3rem; }
.soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.word, td.word { text-align: left; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
pre { overflow-x: auto; background: var(--back); border: 1px solid var(--line); border-radius: 6px;
  padding: .5rem .7rem; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    title: str
    text: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()
    pictures: Sequence[tuple[str, bytes]] = ()
    """(what it shows, PNG file)."""
    code: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """(what it is, text to be copied)."""


def parts_of(table: Table, commands: Sequence[str] = ()) -> list[Part]:
    """The sections about results: what came out, curves, sensitivity, comparisons, what went wrong, commands."""
    counts = table.counts
    words = [f"{n:,} {what if what != 'missing' else 'not run'}" for what, n in counts.items() if n]
    parts = [Part("What came out", [f"{len(table):,} cells: {', '.join(words)}."], sheets.overview(table))]
    tuned, evaluated = table.competitors(), table.groups(EVALUATION)
    chosen = [best(groups) for groups in tuned.values()]
    every = evaluated or (table.groups() if len(table.groups()) <= figures.MOST_LINES else chosen)
    pictures = [
        ("Mean over seeds with its 95 % interval, and every seed.", figures.curves(evaluated or table.groups()))
    ]
    pictures.append(
        ("Performance profiles: the share of seeds that reach a number, with 95 % bands.", figures.profiles(every))
    )
    drawn = [(what, figures.png(figure)) for what, figure in pictures if figure is not None]
    if drawn:
        parts.append(Part("Learning curves and profiles", pictures=drawn))
    for groups in tuned.values():
        if (figure := figures.sensitivities(groups)) is not None:
            title = _title("Sensitivity", groups[0], len(tuned) > 1)
            said = [
                "Of each value: the best setting that has it, with its 95 % interval over seeds, and the mean of all."
            ]
            parts.append(Part(title, said, pictures=[(title, figures.png(figure))]))
    parts += _comparisons(table, chosen, evaluated)
    if across := sheets.across(table):
        parts.append(Part("Several environments", sheets=across))
    if failed := sheets.failures(table):
        parts.append(Part("What went wrong", [f"{len(failed)} cells diverged or failed."], code=failed[:20]))
    code = [("This sweep", "\n".join(commands))] if commands else []
    code += [(f"One seed of {group.name}", command_for(group)) for group in (evaluated or chosen)[:12]]
    parts.append(Part("How to get these numbers again", sheets=[sheets.provenance_sheet(table)], code=code))
    return parts


def _title(what: str, group: Group, several: bool) -> str:
    names = [str(group.settings[name]) for name in ("env", "data", "agent") if name in group.settings]
    return f"{what}: {', '.join(names)}" if several else what


def _comparisons(table: Table, chosen: Sequence[Group], evaluated: Sequence[Group]) -> list[Part]:
    """The competitors on each problem against each other; of one agent alone, its settings."""
    found = []
    problems: dict[str, list[Group]] = {}
    for group in evaluated or chosen:
        problems.setdefault(figures.problem_key(group), []).append(group)
    for groups in problems.values():
        if len(groups) > 1:
            found.append(sheets.differences(groups))
        elif not evaluated:
            competitors = next(those for those in table.competitors().values() if groups[0].setting in
                               {group.setting for group in those})  # fmt: skip
            found.append(sheets.differences(competitors))
    there = [sheet for sheet in found if sheet is not None]
    return [Part("Comparisons", sheets=there)] if there else []


def command_for(group: Group) -> str:
    """What runs one seed of a setting by itself."""
    values = {**group.settings, "seed": int(group.seeds[0])}
    if "data" in values:
        usual = json.loads(json.dumps(FitSettings().as_dict()))
        given = {n: v for n, v in values.items() if n in usual and (v != usual[n] or n == "seed")}
        return command("fit.py", values["data"], *(word for n, v in given.items() for word in _option(n, v)))
    return command("train.py", *options_of(settings_from(values)))


def options_of(settings: RunSettings) -> list[str]:
    """The options of train.py that give these settings, without those that are so by default."""
    fresh, words = kind_for(settings.agent).Settings(agent=settings.agent).chosen(), list[str]()
    values, usual = settings.__dict__, fresh.__dict__
    head = ("env", "env_args", "agent", "steps", "seed")
    for name, value in sorted(values.items(), key=lambda item: head.index(item[0]) if item[0] in head else len(head)):
        planned = name == "schedule_steps" and value == values["steps"]
        if planned or (value == usual.get(name) and name not in ("env", "agent", "steps", "seed")):
            continue
        words += _option("async" if name == "asynchronous" else name, value)
    return words


def _option(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if value is None or value == "":
        return []
    if isinstance(value, dict):
        return [option, *(str(word) for pair in value.items() for word in pair)] if value else []
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    return [option, *map(str, value)] if isinstance(value, list | tuple) else [option, str(value)]


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, title: str, table: Table, parts: Sequence[Part]) -> list[Path]:
    """Write report.html, report.md, report.tex, settings.csv and cells.csv into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    every = [sheet for part in parts for sheet in part.sheets]
    texts = {
        "report.html": _html(title, parts),
        "report.md": _markdown(title, parts),
        "report.tex": "% needs \\usepackage{booktabs}\n" + "\n\n".join(sheet.latex() for sheet in every) + "\n",
        "settings.csv": settings_csv(table),
        "cells.csv": cells_csv(table),
    }
    for n, (_, picture) in enumerate((p for part in parts for p in part.pictures), start=1):
        write_whole(folder / f"report-{n}.png", lambda file, picture=picture: file.write(picture))  # type: ignore[misc]
    for name, text in texts.items():
        write_whole(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    return [folder / name for name in texts]


def settings_csv(table: Table) -> str:
    """One line per setting and stage: what was varied, how many cells, and the number that is compared."""
    names, text = table.varied, io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    ends = [f"{what}{end}" for what in ("mean", "iqm") for end in ("", "_low", "_high")]
    lines.writerow([*names, "stage", "number", "cells", "done", "diverged", "failed", *ends, "median", "worst"])
    for group in table.groups():
        sign, scores = (-1.0 if group.least_is_best else 1.0), group.scores
        found = [group.mean, estimate(scores, "iqm") if len(scores) else group.mean]
        numbers = [sign * x for e in found for x in (e.value, *sorted((e.low, e.high), key=lambda end: sign * end))]
        median = sign * float(np.median(scores)) if len(scores) else math.nan
        counts = [group.count(what) for what in (DONE, DIVERGED, FAILED)]
        lines.writerow([*(_csv_cell(group.settings.get(n)) for n in names), group.stage, group.number, len(group.rows),
                        *counts, *("" if math.isnan(x) else x for x in (*numbers, median, group.worst))])  # fmt: skip
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def cells_csv(table: Table) -> str:
    """One line per cell: what was varied, seed, stage, status, and every number that came out."""
    names, numbers = table.varied, table.numbers
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["cell", "digest", *names, "seed", "stage", "status", *numbers, "seconds", "attempts"])
    for row in table.rows:
        settings, result = row.cell.settings, row.result
        found = {} if result is None else result.numbers
        values = [settings.get(name) for name in names]
        lines.writerow(
            [
                *(row.number, row.cell.digest),
                *map(_csv_cell, values),
                *(settings["seed"], row.cell.stage, "" if result is None else result.status),
                *(found.get(name, "") for name in numbers),
                *(("", "") if result is None else (f"{result.seconds:.4g}", result.attempts)),
            ]
        )
    return text.getvalue()


def _markdown(title: str, parts: Sequence[Part]) -> str:
    lines, n = [f"# {title}", ""], 0
    for part in parts:
        lines += [f"## {part.title}", "", *(f"{sentence}\n" for sentence in part.text)]
        lines += [f"{sheet.markdown()}\n" for sheet in part.sheets]
        for what, _ in part.pictures:
            n += 1
            lines += [f"![{what}](report-{n}.png)", ""]
        for what, text in part.code:
            fence = "````" if "```" in text else "```"
            lines += [what, "", fence, text, fence, ""]
    return "\n".join(lines)


def _html(title: str, parts: Sequence[Part]) -> str:
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="soft">Written {time.strftime("%Y-%m-%d %H:%M")}.</p>']
    for part in parts:
        body += ["<section>", f"<h2>{html.escape(part.title)}</h2>"]
        body += [f"<p>{html.escape(sentence)}</p>" for sentence in part.text]
        for sheet in part.sheets:
            body.append(_html_table(sheet))
        for what, picture in part.pictures:
            data = base64.b64encode(picture).decode()
            body.append(f'<p>{html.escape(what)}</p><img alt="{html.escape(what)}" src="data:image/png;base64,{data}">')
        for what, text in part.code:
            body += [f"<h3>{html.escape(what)}</h3>", f"<pre>{html.escape(text)}</pre>"]
        body.append("</section>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    inner = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<title>{html.escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f"<body><main>\n{inner}\n</main></body>\n</html>\n"
    )


def _html_table(sheet: Sheet) -> str:
    n = len(sheet.words)

    def line(tag: str, cells: Sequence[str]) -> str:
        words = [f"<{tag}{' class=word' if i < n else ''}>{html.escape(cell)}</{tag}>" for i, cell in enumerate(cells)]
        return f"<tr>{''.join(words)}</tr>"

    rows = "\n".join(line("td", row) for row in sheet.rows)
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in sheet.notes)
    head = line("th", sheet.headings)
    return f'<h3>{html.escape(sheet.title)}</h3><div class="scroll"><table>{head}\n{rows}</table></div>{notes}'
