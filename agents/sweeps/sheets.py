"""Tables of results, for the terminal and for a page: settings with intervals, comparisons, what went wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from valueapprox.agents.sweeps.cells import EVALUATION, TUNING
from valueapprox.agents.sweeps.store import DIVERGED, DONE, FAILED
from valueapprox.agents.sweeps.table import Group, Table, best, names_of, problem_of, renamed, value_text
from valueapprox.cli.charts import new_table, print_wide
from valueapprox.cli.terminal import console, plain
from valueapprox.statistics import (
    Estimate,
    choose_across,
    effective_dimension,
    estimate,
    paired_difference,
    probability_of_improvement,
    seeds_to_decide,
    sensitivity,
)

__all__ = [
    "Sheet",
    "across",
    "differences",
    "failures",
    "interval",
    "number",
    "overview",
    "provenance_sheet",
    "show",
    "words_for",
]

FEW_SEEDS = 5
#: What numbers are called where a person reads them.
WORDS = {
    "return": "return while learning",
    "return_area": "return, mean over the steps",
    "evaluation_return": "return of the last evaluation",
    "value_error": "value error",
    "rmse": "error against returns",
    "td_error": "TD error",
    "validation_loss": "validation loss",
    "loss": "loss",
}


@dataclass(frozen=True)
class Sheet:
    """A table: a title, columns of words and then of numbers, rows of text, and what is to be said of it."""

    title: str
    words: Sequence[str]
    numbers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def headings(self) -> list[str]:
        """Of all columns."""
        return [*self.words, *self.numbers]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.headings, ["---"] * len(self.words) + ["---:"] * len(self.numbers), *self.rows]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", *body, "", *(f"{note}\n" for note in self.notes)])

    def latex(self) -> str:
        """As a LaTeX table, which needs booktabs."""
        columns = "l" * len(self.words) + "r" * len(self.numbers)
        lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (self.headings, *self.rows)]
        body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        caption = " ".join([f"{self.title}.", *self.notes])
        inner = [rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", rf"\caption{{{_escaped(caption)}}}"]
        return "\n".join([r"\begin{table}", r"\centering", *inner, r"\end{table}"])


def _escaped(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def show(sheet: Sheet) -> None:
    """Print a table in full, however narrow the terminal is."""
    table = new_table(plain(sheet.title), [plain(h) for h in sheet.words], sheet.numbers)
    for row in sheet.rows:
        table.add_row(*map(plain, row))
    print_wide(table)
    for note in sheet.notes:
        console.print(plain(note))


def number(value: float) -> str:
    """A number with four digits; a sign for what there is none of."""
    if math.isnan(value):
        return ""
    return f"{value:,.4g}"  # inf, where a cell is lost


def interval(found: Estimate, sign: float = 1.0) -> str:
    """A number with its interval."""
    low, high = sorted((sign * found.low, sign * found.high))
    if math.isnan(found.low):
        return number(sign * found.value)
    return f"{number(sign * found.value)} ({number(low)} to {number(high)})"


def words_for(name: str) -> str:
    """What a number is called where a person reads it."""
    return WORDS.get(name, name.replace("_", " "))


# --- the tables -------------------------------------------------------------------------------------------------------


def overview(table: Table, max_rows: int = 0) -> list[Sheet]:
    """The settings of each agent on each problem, best first; then how good the chosen ones are on fresh seeds."""
    found = []
    evaluated = {group.setting: group for group in table.groups(EVALUATION)}
    for groups in table.competitors().values():
        found.append(_settings(groups, evaluated, max_rows))
    if evaluated:
        found.insert(0, _chosen(table, evaluated))
    return found


def _order(group: Group) -> tuple[float, float]:
    scores = group.scores
    mean = group.mean.value
    return (-math.inf if math.isnan(mean) else mean, float(np.median(scores)) if len(scores) else -math.inf)


def _cells(group: Group) -> list[str]:
    """Mean, IQM and worst seed of a setting, and how many of its cells went wrong."""
    sign = -1.0 if group.least_is_best else 1.0
    scores = group.scores
    mean = "" if not len(scores) else interval(group.mean, sign) if np.isfinite(scores).all() else "not printed"
    middle = "" if not len(scores) else interval(estimate(scores, "iqm"), sign)
    worst = "" if not len(scores) else number(group.worst) if math.isfinite(group.worst) else "lost"
    wrong = [f"{n} {what}" for what in (DIVERGED, FAILED) if (n := group.count(what))]
    done = sum(row.result is not None and row.result.status == DONE for row in group.rows)
    if without := done - int(np.isfinite(scores).sum()):
        wrong.append(f"{without} without a number")
    if missing := len(group.rows) - len(scores):
        wrong.append(f"{missing} not run")
    return [str(len(scores)), mean, middle, worst, ", ".join(wrong)]


def _settings(groups: Sequence[Group], evaluated: dict[str, Group], max_rows: int) -> Sheet:
    groups = renamed(groups)
    ranked = sorted(groups, key=_order, reverse=True)
    shown = ranked[:max_rows] if max_rows else ranked
    settings = groups[0].settings
    who = ", ".join(str(settings[name]) for name in ("env", "data", "agent") if name in settings)
    notes = []
    if len(shown) < len(ranked):
        notes.append(f"{len(ranked) - len(shown)} more settings are in the report.")
    tuning = groups[0].stage == TUNING
    if len(groups) > 1 and tuning:
        chosen = best(groups)
        end = "upper" if groups[0].least_is_best else "lower"
        notes.append(f"Chosen by the {end} end of its interval: {chosen.name}.")
        if chosen.setting not in evaluated:
            notes.append("A number that chose a setting looks better than it is: --then-evaluate 30 runs it afresh.")
    if min(len(group.rows) for group in groups) < FEW_SEEDS:
        notes.append(f"Fewer than {FEW_SEEDS} seeds: such intervals are rarely right.")
    if any(group.count(DIVERGED) + group.count(FAILED) for group in groups):
        notes.append(
            "Cells that diverged or failed count as the worst in IQM and worst seed; a mean over them is not printed."
        )
    title = f"{who}: {words_for(groups[0].number)} by setting{', tuning seeds' * tuning} (95 % intervals over seeds)"
    rows = [[group.name, *_cells(group)] for group in shown]
    return Sheet(title, ["setting"], ["seeds", "mean", "IQM", "worst seed", "went wrong"], rows, notes)


def _chosen(table: Table, evaluated: dict[str, Group]) -> Sheet:
    tuned = {group.setting: group for group in table.groups(TUNING)}
    rows = []
    for setting, group in evaluated.items():
        before = tuned.get(setting)
        sign = -1.0 if group.least_is_best else 1.0
        cells = _cells(group)
        rows.append([group.name, "" if before is None else interval(before.mean, sign), *cells])
    notes = ["The result is that of fresh seeds; the tuning number chose the setting, and is no result."]
    if min(len(group.rows) for group in evaluated.values()) < FEW_SEEDS:
        notes.append(f"Fewer than {FEW_SEEDS} seeds: such intervals are rarely right.")
    title = f"Result: {words_for(table.number)} of the chosen setting on seeds that did not choose it (95 % intervals)"
    columns = ["tuning (no result)", "seeds", "mean", "IQM", "worst seed", "went wrong"]
    return Sheet(title, ["setting"], columns, rows, notes)


def differences(groups: Sequence[Group]) -> Sheet | None:
    """The best of some settings against each other one, seed by seed where they have seeds in common."""
    ranked = sorted((g for g in renamed(groups) if len(g.scores)), key=_order, reverse=True)
    if len(ranked) < 2:
        return None
    first, rows = ranked[0], []
    sign = -1.0 if first.least_is_best else 1.0
    for other in ranked[1:]:
        common = [(a, b) for a, b in _paired(first, other) if math.isfinite(a) and math.isfinite(b)]
        better = interval(probability_of_improvement(first.scores, other.scores))
        if len(common) < 2:
            rows.append([other.name, str(len(common)), "", better, ""])
            continue
        x, y = sign * np.array(common).T
        difference = paired_difference(x, y)
        more = seeds_to_decide(x, y)
        rows.append(
            [other.name, str(len(common)), interval(difference), better, "decided" if more == 0 else f"{more:,}"]
        )
    where = str(first.settings.get("env", first.settings.get("data", "")))
    lost = any(not np.isfinite(group.scores).all() for group in ranked)
    return Sheet(
        f"{where}: {first.name} against each other one",
        ["the other"],
        ["seeds in common", "by how much it is better", "probability that it is better", "seeds more to decide"],
        rows,
        ["Differences are taken seed by seed. An interval that holds 0 decides nothing; the last column says how many "
         "further common seeds would decide it with probability 0.8, if the difference is as it looks now.",
         *(["A pair with a lost cell has no difference; in the probability a lost cell is the worst."] * lost),
         *(["These are numbers of tuning seeds, which chose the settings."] * (first.stage == TUNING))],
    )  # fmt: skip


def _paired(one: Group, other: Group) -> list[tuple[float, float]]:
    theirs = dict(zip(other.seeds.tolist(), other.values.tolist(), strict=True))
    return [
        (value, theirs[seed])
        for seed, value in zip(one.seeds.tolist(), one.values.tolist(), strict=True)
        if seed in theirs
    ]


def across(table: Table) -> list[Sheet]:
    """Of settings that were tried in several environments: one for all of them, and how much that costs.

    Chosen across environments by the mean of what the empirical distribution of each environment's runs makes of a
    number (Patterson, Neumann, White & White 2024); sensitivity and effective dimension after Adkins, Bowling & White
    (2024).
    """
    found = []
    agents: dict[str, dict[str, dict[str, Group]]] = {}
    for group in table.groups(TUNING):
        s = group.settings
        if "env" in s:
            its = problem_of(s)
            own = json.dumps({n: v for n, v in s.items() if n not in its}, sort_keys=True)
            where = json.dumps(its)
            agents.setdefault(s["agent"], {}).setdefault(own, {})[where] = group
    for agent, settings in agents.items():
        problems = sorted({where for own in settings.values() for where in own})
        whole = {own: groups for own, groups in settings.items() if set(groups) == set(problems)}
        n = min((len(g.scores) for groups in whole.values() for g in groups.values()), default=0)
        if len(problems) < 2 or len(whole) < 2 or n == 0:
            continue
        scores = np.array([[groups[w].scores[:n] for w in problems] for groups in whole.values()])
        chosen = choose_across(scores)
        keys = list(whole)
        names = names_of([json.loads(own) for own in keys])
        rows = []
        for where in problems:
            one, own_best = whole[keys[chosen]][where], best(renamed([groups[where] for groups in whole.values()]))
            sign = -1.0 if one.least_is_best else 1.0
            rows.append(
                [json.loads(where)["env"], interval(one.mean, sign), interval(own_best.mean, sign), own_best.name]
            )
        said = ", ".join(f"{name} {value_text(json.loads(keys[chosen]).get(name))}" for name in names)
        middle = np.median(scores, axis=2)
        notes = ["Numbers of tuning seeds, which chose these settings."]
        spread = np.ptp(np.percentile(middle, (5, 95), axis=0), axis=0)
        if np.isfinite(middle).all() and (spread > 0).all():  # or there is nothing to be sensitive to
            grid = [{name: value_text(json.loads(own).get(name)) for name in names} for own in keys]
            notes.append(
                f"Sensitivity {sensitivity(middle).value:.3g}: what tuning each environment by itself would add "
                f"to the normalised score. Effective dimension {effective_dimension(middle, grid)} of {len(names)}: so "
                "many settings must be tuned for each environment to reach 95 % of that."
            )
        columns = ["one setting for all", "the best here", "which is"]
        found.append(
            Sheet(
                f"{agent}: one setting for {len(problems)} environments: {said}", ["environment"], columns, rows, notes
            )
        )
    return found


def failures(table: Table) -> list[tuple[str, str]]:
    """Each cell that failed or diverged, with what was raised."""
    found: list[tuple[str, str]] = []
    for row in table.rows:
        if row.result is not None and row.result.status in (FAILED, DIVERGED):
            name = f"cell {row.number} (seed {row.cell.settings['seed']}): {row.result.status}"
            found.append((name, row.result.error))
    return found


def provenance_sheet(table: Table) -> Sheet:
    """Where the numbers come from: version, commit, machine, and how long the cells took."""
    parts: dict[str, list[Any]] = {}
    for row in table.rows:
        if row.result is not None:
            origin = row.result.origin
            key = ", ".join(f"{name} {value}" for name, value in origin.items() if value is not None)
            parts.setdefault(key or "unknown", []).append(row.result.seconds)
    rows = [[key, str(len(seconds)), f"{sum(seconds):,.1f}"] for key, seconds in parts.items()]
    return Sheet("Where the numbers come from", ["version and machine"], ["cells", "seconds"], rows)
