"""A comparison as ``comparison.json``, ``comparison.csv`` and tables on the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cil.compare.classes import best, listed, worst
from cil.compare.comparison import (
    CONVENTIONS,
    FEW_SHOT,
    METRICS,
    Comparison,
    Row,
    Section,
    Spread,
    difference,
    short,
    shown,
)
from cil.compare.fairness import Finding, machine_text, seed_text
from cil.compare.runs import CATEGORIES, Run
from cil.shown import cell, plain
from cil.units import MIB, mib

# What tells a comparison from any other JSON file.
MARK = "class-incremental comparison"
SCHEMA = 1


def as_json(comparison: Comparison, findings: list[Finding]) -> dict[str, Any]:
    """All that was computed, as JSON values: fractions, bytes, seconds; undefined is null. See ``docs/compare.md``."""
    return {
        "report": MARK,
        "schema": SCHEMA,
        "evaluator": comparison.evaluator,
        "findings": [asdict(finding) for finding in findings],
        "left_out": [asdict(item) for item in comparison.left_out],
        "methods": comparison.labels,
        "scenarios": [_scenario(section) for section in comparison.sections],
    }


def _scenario(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "fingerprint": section.fingerprint,
        "task_sizes": section.task_sizes,
        "convention": section.convention,
        "settings": [{**asdict(setting), "text": setting.text} for setting in section.settings],
        "rows": [_row(row, section.metrics) for row in section.rows],
        "differences": [{**asdict(pair), "verdict": pair.verdict} for pair in section.pairs],
        "curves": [
            {
                "method": curve.label,
                "rows": list(curve.rows),
                "measures": {k: asdict(m) for k, m in curve.measures.items()},
            }
            for curve in section.curves
        ],
    }


def _row(row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "id": row.id,
        "method": row.label,
        "name": row.first.name,
        "strategy": row.first.content["strategy"],
        "evaluator": row.evaluator,
        "setting": {**asdict(row.setting), "text": row.setting.text},
        "codec": row.first.codec,
        "differing_options": row.differing,
        "options": row.first.options,
        "upper_bound": row.upper_bound,
        "exemplar_free": row.first.exemplar_free,
        "seeds": [seed_text(run) for run in row.runs],
        **{metric: asdict(row.metric(metric)) for metric in metrics},
        "seconds": asdict(row.seconds),
        "exemplars": row.exemplars,
        "bytes": row.task_bytes[-1],
        "training_bytes": row.cost("training_bytes"),
        "inference_bytes": row.cost("inference_bytes"),
        "costs": row.costs,
        "tasks": {
            "classes_seen": row.classes_seen,
            "seen_accuracy": [asdict(spread) for spread in row.seen_accuracy],
            "bytes": row.task_bytes,
        },
        "task_confusion": row.confusion,
        "class_accuracy": _classes(row),
        "runs": [_run(row, run, index, metrics) for index, run in enumerate(row.runs)],
    }


def _classes(row: Row) -> dict[str, list[Any]] | None:
    """Names, means and deviations in order of appearance; None if untold."""
    names, spreads = list(row.class_accuracy), row.class_accuracy.values()
    means, deviations = [one.mean for one in spreads], [one.deviation for one in spreads]
    return {"names": names, "mean": means, "deviation": deviations} if names else None


def _run(row: Row, run: Run, index: int, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "file": run.file,
        **{key: run.content.get(key) for key in ("command", "seeds", "versions", "machine", "started", "finished")},
        **{metric: row.values(metric)[index] for metric in metrics},
        "seconds": run.seconds,
        "bytes": run.task_bytes[-1],
    }


# --- CSV --------------------------------------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """A line for each row of the comparison; fractions, bytes, MiB and seconds as the column names say."""
    lines = [_line(section, row) for section in comparison.sections for row in section.rows]
    file = io.StringIO()
    columns = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in line.items()} for line in lines)
    return file.getvalue()


def _line(section: Section, row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": row.id,
        "scenario": section.name,
        "fingerprint": section.fingerprint,
        "method": row.label,
        "evaluator": row.evaluator,
        "memory": row.setting.text,
        "budget_bytes": row.setting.number if row.setting.kind == "budget" else None,
        "codec": row.first.codec,
        "differing_options": options_text(row),
        "upper_bound": str(row.upper_bound).lower(),
        "seeds": " ".join(seed_text(run) for run in row.runs),
        "n_seeds": len(row.runs),
    }
    for metric in section.metrics:
        spread = row.metric(metric)
        line |= {f"{metric}_mean": spread.mean, f"{metric}_std": spread.deviation}
    for convention in CONVENTIONS:
        size = row.final_bytes(convention)
        line |= {f"{convention}_bytes": size, f"{convention}_mib": size / MIB}
    line |= {f"{category}_bytes": row.task_bytes[-1].get(category, 0) for category in CATEGORIES}
    line |= {"exemplars": row.exemplars, "seconds_mean": row.seconds.mean, "seconds_std": row.seconds.deviation}
    accuracy = row.class_means
    for which, names in (("best", best(accuracy)), ("worst", worst(accuracy))):
        first = names[0] if names else ""
        line |= {f"{which}_class": first or None, f"{which}_class_accuracy": accuracy.get(first)}
    return line


def options_text(row: Row) -> str:
    """``temperature=3; head_bias=false``: the options in which rows of one name differ."""
    keys = list(row.differing)
    return "; ".join(f"{short(key, keys)}={shown(value)}" for key, value in row.differing.items())


# --- words ------------------------------------------------------------------------------------------------------------


def percent(spread: Spread) -> str:
    """Mean and deviation of fractions in percent, ``35.9 ± 0.9``; a dash where it is undefined."""
    if spread.mean is None:
        return "-"
    return f"{100 * spread.mean:.1f}" + (f" ± {100 * spread.deviation:.1f}" if spread.deviation is not None else "")


def count(number: float) -> str:
    """A number of exemplars, with a digit where the mean over seeds is none."""
    return f"{number:.0f}" if number == int(number) else f"{number:.1f}"


def points(number: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "-" if number is None else f"{100 * number:+.1f}"


# --- terminal ---------------------------------------------------------------------------------------------------------


def terminal(comparison: Comparison, findings: list[Finding]) -> Group:
    """What ``tools/compare.py`` prints: findings, then the tables of each scenario."""
    parts: list[RenderableType] = [*_found(findings)]
    for section in comparison.sections:
        parts += ["", _results(section)]
        if section.few_shot:
            parts += ["", _base_and_new(section)]
        classes = _best_and_worst(section)
        if classes.row_count:
            parts += ["", classes]
        areas = _areas(section)
        if areas.row_count:
            parts += ["", areas]
        pairs = _differences(section)
        if pairs.row_count:
            parts += ["", pairs]
    return Group(*parts)


def _found(findings: list[Finding]) -> Iterator[Text]:
    if not findings:
        yield Text("the checks of fairness found nothing", style="green")
    for finding in findings:
        where = f"{finding.scenario}: " if finding.scenario else ""
        text = Text(f"{finding.level} ", style="bold red" if finding.level == "problem" else "bold cyan")
        text.append(f"{finding.id} ", style="bold")
        text.append(plain(f"{where}{finding.text} "), style="none")
        text.append(finding.advice, style="dim")
        yield text


def _results(section: Section) -> Table:
    title = Text(plain(f"{section.name}, fingerprint {section.fingerprint[:8]}; n seeds"))
    table = Table(title=title, padding=(0, 1, 0, 0), box=None)
    table.add_column("method", overflow="fold", min_width=14)
    for name in (
        "average\n%",
        "last\n%",
        "forget-\nting %",
        "strict\nMiB",
        "paper\nMiB",
        "exem-\nplars",
        "sec-\nonds",
        "n",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for number, setting in enumerate(section.settings):
        if number:
            table.add_row()
        table.add_row(Text(setting.text, style="bold"))
        for row in section.at(setting):
            scores = [percent(row.metric(metric)) for metric in METRICS]
            sizes = [mib(row.final_bytes(convention)) for convention in CONVENTIONS]
            name = row.label + " (upper bound)" * row.upper_bound
            seconds = f"{row.seconds.mean:.0f}" if row.seconds.mean is not None else "-"
            table.add_row(Text(plain(name)), *scores, *sizes, count(row.exemplars), seconds, str(len(row.runs)))
    return table


def _base_and_new(section: Section) -> Table:
    """Few-shot scenarios: base and new classes after the last session, and the best row's differences to the others."""
    table = Table(title="after the last session, %", padding=(0, 1, 0, 0), box=None)
    table.add_column("method", overflow="fold", min_width=16)
    for name in ("base", "new", "harmonic\nmean", "drop", "best\nminus it"):
        table.add_column(name, justify="right", no_wrap=True)
    for setting in section.settings:
        rows = sorted(section.at(setting), key=lambda row: -(row.metric("harmonic_mean").mean or 0))
        for row in rows:
            pair = difference(rows[0], row, "harmonic_mean")
            interval = "" if pair.low is None else f"\n{points(pair.low)} to {points(pair.high)}"
            against = points(pair.mean) + interval if row is not rows[0] else ""
            name = row.label if setting.kind == "none" else row.title
            table.add_row(Text(plain(name)), *(percent(row.metric(metric)) for metric in FEW_SHOT), against)
    table.caption = "differences of the harmonic mean, in points, 95 % intervals"
    return table


def _best_and_worst(section: Section) -> Table:
    """The best and the worst class of each row; more are on the page, all in the files."""
    table = Table(title="classes after the last task, accuracy in %", padding=(0, 1, 0, 0), box=None)
    for name in ("method", "best class", "worst class"):
        table.add_column(name, overflow="fold", min_width=14)
    for setting in section.settings:
        for row in section.at(setting):
            if accuracy := row.class_means:
                name = row.label if len(section.settings) == 1 else row.title
                cells = (name, listed(best(accuracy, 1), accuracy), listed(worst(accuracy, 1), accuracy))
                table.add_row(*(Text(plain(text)) for text in cells))
    return table


def _areas(section: Section) -> Table:
    """Curves with two points or more."""
    table = Table(title=f"accuracy over memory, MiB {section.convention}", padding=(0, 1, 0, 0), box=None)
    table.add_column("method", overflow="fold", min_width=16)
    for name in ("from", "to MiB", "AUC-A", "AUC-L", "mean A %", "mean L %", "APM-S", "APM-E"):
        table.add_column(name, justify="right", no_wrap=True)
    for curve in section.curves:
        own = curve.measures[section.convention]
        if own.area_average is None:
            continue
        mark = " *" * bool(own.not_comparable)
        cells = [f"{number:.2f}" for number in (own.low, own.high)]
        cells += [_number(own.area_average), _number(own.area_last)]
        cells += [_number(number, 100, 1) for number in (own.normalised_average, own.normalised_last)]
        table.add_row(Text(plain(curve.label + mark)), *cells, _number(own.apm_start), _number(own.apm_end))
        if mark:
            table.caption = "* another range of memory: areas are not comparable"
    return table


def _number(value: float | None, factor: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _differences(section: Section) -> Table:
    """The best of each memory against the others; all pairs are in the files."""
    table = Table(
        title="best average minus the others, percentage points, 95 % intervals", padding=(0, 1, 0, 0), box=None
    )
    for name in ("difference", "memory"):
        table.add_column(name, overflow="fold")
    for name in ("average", "interval", "pairs"):
        table.add_column(name, justify="right", no_wrap=True)
    best = {setting: section.at(setting)[0].id for setting in section.settings}
    for pair in section.pairs:
        first, second = section.row(pair.first), section.row(pair.second)
        if pair.metric != METRICS[0] or first.id != best[first.setting]:
            continue
        interval = pair.verdict if pair.low is None else f"{points(pair.low)} to {points(pair.high)}"
        names = Text(plain(f"{first.label} - {second.label}"))
        table.add_row(names, Text(first.setting.text), points(pair.mean), interval, str(pair.n))
    return table


def run_facts(run: Run) -> dict[str, str]:
    """Where a run comes from: seeds, commit, torch, machine, file."""
    versions = run.content["versions"]
    return {
        "seeds": seed_text(run),
        "commit": str(versions.get("commit")),
        "torch": str(versions.get("torch")),
        "machine": machine_text(run),
        "file": run.file,
    }
