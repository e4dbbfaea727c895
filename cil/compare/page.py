"""A comparison as one HTML page that needs nothing else: tables, charts, and the script that draws them.

Plain values are prepared here; all markup stands in ``templates/``, which escape every value. What the script reads is
escaped as JSON, and by the script once more before plotly, which knows a small HTML of its own, sees it. A content
security policy allows the two scripts of the page, by their hashes, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cil.compare.classes import best, listed, worst
from cil.compare.comparison import CONVENTIONS, FEW_SHOT, METRICS, Comparison, Measures, Pair, Row, Section, Spread
from cil.compare.fairness import Finding, seed_text
from cil.compare.figures import CATEGORY_COLOURS, Style, facets, largest_share, styles
from cil.compare.runs import CATEGORIES
from cil.compare.tables import as_json, count, options_text, percent, points, run_facts
from cil.machine.compute import PHASES
from cil.units import mib

GENERATOR = "class-incremental comparison"
TEMPLATES = Path(__file__).with_name("templates")
TITLES = {
    "results": "Results",
    "differences": "Differences",
    "memory": "Accuracy over memory",
    "tasks": "Accuracy over tasks",
    "ledger": "What the bytes are",
    "costs": "Time and computing",
    "classes": "Accuracy by class",
    "confusion": "Confusion of tasks",
    "runs": "Runs",
}


def page(comparison: Comparison, findings: list[Finding]) -> str:
    """The page as text.

    Args:
        comparison: what it shows.
        findings: of the checks of fairness; they come first.
    """
    looks = styles(comparison)
    scripts = (get_plotlyjs().replace("\r\n", "\n"), _asset("page.js"))
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return (
        templates()
        .get_template("page.html")
        .render(
            generator=GENERATOR,
            policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
            title=f"Comparison on {' and '.join(dict.fromkeys(section.name for section in comparison.sections))}",
            titles=TITLES,
            facts=_facts(comparison),
            areas=any(_has_areas(section) for section in comparison.sections),
            scored=f"all by {comparison.evaluator}" if comparison.evaluator else "each method by its own evaluator",
            evaluator=comparison.evaluator,
            problems=[finding for finding in findings if finding.level == "problem"],
            notes=[finding for finding in findings if finding.level != "problem"],
            scenarios=[_scenario(comparison, section, n, looks) for n, section in enumerate(comparison.sections)],
            data={
                "comparison": as_json(comparison, findings),
                "styles": {label: vars(look) for label, look in looks.items()},
                "categories": {name: _colours(name) for name in CATEGORIES},
                "largest_share": largest_share(comparison),
            },
            # Files of this package and of plotly, and nothing else, are markup as they are.
            style=Markup(_asset("page.css")),
            scripts=[Markup(script) for script in scripts],
        )
    )


def templates() -> Environment:
    """The templates: whatever is put in is escaped, and a name that nothing is put in for is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colours(category: str) -> dict[str, str]:
    return dict(zip(("light", "dark"), CATEGORY_COLOURS[category], strict=True))


# --- tables and choices -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        shown: its text.
        value: what it sorts by; None comes last.
        kind: its class in the style sheet: none for numbers, ``open`` for those that are not clear, ``text``.
        spread: what follows a number behind ±.
        head: whether it names its row.
        look: of the key before it, if any.
        tag: behind it.
    """

    shown: str
    value: float | str | None
    kind: str = ""
    spread: str = ""
    head: bool = False
    look: Style | None = None
    tag: str = ""


@dataclass(frozen=True)
class Line:
    """Cells, and the index of the memory that they belong to, if any."""

    cells: list[Cell]
    setting: int | None = None


@dataclass(frozen=True)
class Table:
    """A table that sorts.

    Args:
        label: what it is, for those who do not see it.
        header: names of the columns, each with whether it holds text.
        rows: its body.
        n: index of its scenario.
        filtered_by: name of the control that picks rows by memory.
    """

    label: str
    header: Sequence[tuple[str, bool]]
    rows: Sequence[Line]
    n: int
    filtered_by: str = ""


@dataclass(frozen=True)
class Choice:
    """A control: ``options`` are values with their text, ``chosen`` is the value at first."""

    n: int
    control: str
    label: str
    options: Sequence[tuple[str, str]]
    chosen: str = ""


def _words(*names: str) -> list[tuple[str, bool]]:
    return [(name, True) for name in names]


def _numbers(*names: str) -> list[tuple[str, bool]]:
    return [(name, False) for name in names]


def _text(text: str, *, wide: bool = False, head: bool = False) -> Cell:
    return Cell(text, text, kind="text wide" if wide else "text", head=head)


def _method(label: str, looks: dict[str, Style], upper_bound: bool = False) -> Cell:
    return Cell(label, label, kind="text", head=True, look=looks[label], tag="upper bound" * upper_bound)


def _memory_cell(section: Section, setting: int) -> Cell:
    """Sorts from the least memory to the most, not by the alphabet."""
    return Cell(section.settings[setting].text, setting, kind="text")


def _value(value: float | None, shown: str, clear: bool = True) -> Cell:
    """A cell that sorts by its number; a difference that is not clear is grey."""
    main, _, rest = shown.partition(" ± ")
    return Cell(main, value, kind="" if clear else "open", spread=rest)


def _spread(spread: Spread) -> Cell:
    return _value(spread.mean, percent(spread))


def _number(value: float | None, factor: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _memories(section: Section, n: int, control: str, chosen: str = "") -> Choice | None:
    """A choice among the memories of a scenario, where there are several."""
    options = [("", "all"), *((str(index), setting.text) for index, setting in enumerate(section.settings))]
    return Choice(n, control, "Memory", options, chosen) if len(section.settings) > 1 else None


def _methods(rows: Sequence[Row], section: Section, n: int, control: str, nth: int = 0) -> Choice:
    """A choice among some rows of a scenario; at first the nth best of the largest memory."""
    settings = [setting for setting in reversed(section.settings) if setting.kind != "all"]
    ranked = [row for setting in settings for row in section.at(setting) if row in rows] or rows
    options = [(row.id, row.title) for row in rows]
    return Choice(n, control, "Method", options, ranked[min(nth, len(ranked) - 1)].id)


def _legend(rows: Sequence[Row], comparison: Comparison, looks: dict[str, Style]) -> list[dict[str, Any]]:
    labels = dict.fromkeys(row.label for row in rows)
    return [{"label": label, "look": looks[label], "index": comparison.labels.index(label)} for label in labels]


# --- parts of the page ------------------------------------------------------------------------------------------------


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    runs = sum(len(row.runs) for row in comparison.rows)
    seeds = sorted({seed_text(run) for row in comparison.rows for run in row.runs}, key=lambda text: (len(text), text))
    settings = {row.setting for row in comparison.rows}
    facts = [
        (str(len(comparison.labels)), "methods" if len(comparison.labels) != 1 else "method"),
        (str(len(settings)), "memories" if len(settings) != 1 else "memory"),
        (str(runs), "runs" if runs != 1 else "run"),
        (str(len(seeds)), f"seeds ({', '.join(seeds[:8])}{', ...' * (len(seeds) > 8)})")
        if len(seeds) != 1
        else ("1", f"seed (number {seeds[0]})"),
    ]
    return facts + [(str(len(comparison.left_out)), "left out")] * bool(comparison.left_out)


def _scenario(comparison: Comparison, section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any]:
    """What ``scenario.html`` shows of one: numbers and words, and a value for each part."""
    several = len(comparison.sections) > 1
    by_class = _classes(section, n, looks)
    return {
        "n": n,
        "several": several,
        "heading": "h3" if several else "h2",
        "parts": [id for id in TITLES if id != "classes" or by_class],
        "name": section.name,
        "short": section.fingerprint[:8],
        "n_tasks": len(section.task_sizes),
        "n_classes": sum(section.task_sizes),
        "results": _results(section, n, looks),
        "differences": _differences(section, n),
        "memory": _memory(comparison, section, n, looks),
        "tasks": _tasks(comparison, section, n, looks),
        "ledger": _ledger(section, n, looks),
        "costs": _costs(section, n, looks),
        "classes": by_class,
        "confusion": [
            _methods(section.rows, section, n, control, nth)
            for nth, control in enumerate(("confusion_left", "confusion_right")[: len(section.rows)])
        ],
        "runs": _runs(section, n, looks),
    }


def _results(section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any]:
    optional = any(row.differing for row in section.rows)
    codecs = len({row.first.codec for row in section.rows}) > 1
    header = _words("method", "memory") + _numbers("average %", "last %", "forgetting %", "MiB\nstrict", "MiB\npaper")
    header += _numbers("exemplars", "seconds", "seeds")
    header += _words("codec") * codecs + _words("options that differ") * optional
    rows = []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        cells = [
            _method(row.label, looks, row.upper_bound),
            _memory_cell(section, setting),
            *(_spread(row.metric(metric)) for metric in METRICS),
            *(_value(row.final_bytes(convention), mib(row.final_bytes(convention))) for convention in CONVENTIONS),
            _value(row.exemplars, count(row.exemplars)),
            _value(row.seconds.mean, _number(row.seconds.mean, 1, 0)),
            _value(len(row.runs), str(len(row.runs))),
            *([_text(row.first.codec)] * codecs),
            *([_text(options_text(row), wide=True)] * optional),
        ]
        rows.append(Line(cells, setting))
    return {
        "memory": _memories(section, n, "results"),
        "table": Table("Results", header, rows, n, "results"),
        "base_and_new": _base_and_new(section, n, looks) if section.few_shot else None,
    }


def _base_and_new(section: Section, n: int, looks: dict[str, Style]) -> Table:
    """Few-shot scenarios: base and new classes after the last session."""
    header = _words("method", "memory") + _numbers("base %", "new %", "harmonic mean %", "drop %")
    rows = []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        cells = [
            _method(row.label, looks),
            _memory_cell(section, setting),
            *(_spread(row.metric(metric)) for metric in FEW_SHOT),
        ]
        rows.append(Line(cells, setting))
    return Table("Base and new classes", header, rows, n, "results")


def _differences(section: Section, n: int) -> dict[str, Any] | None:
    if not section.pairs:
        return None
    header = _words("first", "second", "memory")
    for name in ("average", "last"):
        header += _numbers(f"{name}\npoints", "95 % interval\npoints")
    header += _numbers("pairs")
    by_rows = {(pair.first, pair.second, pair.metric): pair for pair in section.pairs}
    rows = []
    for first, second in dict.fromkeys((pair.first, pair.second) for pair in section.pairs):
        setting = section.settings.index(section.row(first).setting)
        pairs = [by_rows[first, second, metric] for metric in METRICS[:2]]
        cells = [
            _text(section.row(first).label, head=True),
            _text(section.row(second).label),
            _memory_cell(section, setting),
            *(cell for pair in pairs for cell in (_value(pair.mean, points(pair.mean), pair.clear), _interval(pair))),
            _value(pairs[0].n, str(pairs[0].n)),
        ]
        rows.append(Line(cells, setting))
    paired = sorted({row.setting for row in rows if row.setting is not None})
    memories = [("", "all"), *((str(setting), section.settings[setting].text) for setting in paired)]
    choice = Choice(n, "differences", "Memory", memories, memories[-1][0] if len(rows) > 15 else "")
    return {
        "memory": choice if len(paired) > 1 else None,
        "table": Table("Paired differences", header, rows, n, "differences"),
    }


def _interval(pair: Pair) -> Cell:
    if pair.low is None or pair.high is None:
        return _value(None, "too few seeds", clear=False)
    return _value(pair.low, f"{points(pair.low)} to {points(pair.high)}", pair.clear)


def _memory(comparison: Comparison, section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any] | None:
    bounded = [row for row in section.rows if not row.upper_bound]
    if not bounded:
        return None
    order = [section.convention, *(name for name in CONVENTIONS if name != section.convention)]
    return {
        "convention": Choice(n, "convention", "Bytes counted", [(name, name) for name in order], order[0]),
        "methods": _legend(bounded, comparison, looks),
        "areas": [(convention, _areas(section, n, convention, looks)) for convention in order],
    }


def _has_areas(section: Section) -> bool:
    """Whether a method has a curve; with one memory there is none."""
    return any(own.area_average is not None for curve in section.curves for own in curve.measures.values())


def _areas(section: Section, n: int, convention: str, looks: dict[str, Style]) -> Table:
    """What follows from the curves; without any, of what is left of it nothing that tells of areas."""
    areas, several = _has_areas(section), any(len(curve.rows) > 1 for curve in section.curves)
    header = _words("method")
    header += _numbers("points", "from\nMiB", "to\nMiB") if several else _numbers("carried\nMiB")
    if areas:
        header += _numbers("AUC-A\nfraction x MiB", "AUC-L\nfraction x MiB", "AUC-A\n/ range, %", "AUC-L\n/ range, %")
    header += _numbers("APM-S\n% / MiB", "APM-E\n% / MiB") + _words("range") if several else _numbers("APM\n% / MiB")
    rows = []
    for curve in section.curves:
        own = curve.measures[convention]
        cells = [_method(curve.label, looks)]
        if several:
            cells.append(_value(len(curve.rows), str(len(curve.rows))))
        cells += [_value(number, f"{number:.2f}") for number in (own.low, own.high)[: 1 + several]]
        if areas:
            cells += [_value(number, _number(number)) for number in (own.area_average, own.area_last)]
            heights = (own.normalised_average, own.normalised_last)
            cells += [_value(number, _number(number, 100, 1)) for number in heights]
        cells += [_value(number, _number(number)) for number in (own.apm_start, own.apm_end)[: 1 + several]]
        if several:
            cells.append(_text(_range(own, len(curve.rows)), wide=bool(own.not_comparable)))
        rows.append(Line(cells))
    return Table(f"{'Areas under the curves' if areas else 'Accuracy for each MiB'}, {convention}", header, rows, n)


def _range(own: Measures, n_points: int) -> str:
    """Whether areas may be compared."""
    if own.not_comparable:
        named = ", ".join(own.not_comparable[:2]) + ", ..." * (len(own.not_comparable) > 2)
        return f"not that of {named}"
    if own.area_average is None:
        return "one point" if n_points == 1 else "two points at one memory"
    return "common"


def _tasks(comparison: Comparison, section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any]:
    choices = [(str(section.settings.index(setting)), setting.text) for setting in facets(section)]
    others = {row.setting.kind for row in section.rows} & {"none", "all"}
    named = " and ".join(
        text for kind, text in (("none", "methods without exemplars"), ("all", "upper bounds")) if kind in others
    )
    return {
        "beside": named[:1].upper() + named[1:],
        "memory": Choice(n, "facet", "Memory", choices, choices[-1][0]),
        "methods": _legend(section.rows, comparison, looks),
    }


def _ledger(section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any]:
    present = [name for name in CATEGORIES if any(task.get(name) for row in section.rows for task in row.task_bytes)]
    costs = [
        (key, name)
        for key, name in (("training_bytes", "while training\nMiB"), ("inference_bytes", "to predict\nMiB"))
        if any(row.cost(key) is not None for row in section.rows)
    ]
    header = _words("method", "memory") + _numbers(*(f"{name}\nMiB" for name in present))
    header += _numbers("strict\nMiB", "paper\nMiB", *(name for _, name in costs))
    rows = []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        last = row.task_bytes[-1]
        sizes = [last.get(name, 0) for name in present] + [row.final_bytes(name) for name in CONVENTIONS]
        cells = [
            _method(row.label, looks),
            _memory_cell(section, setting),
            *(_value(size, mib(size, 3)) for size in sizes),
            *(_value(row.cost(key), mib(row.cost(key))) for key, _ in costs),
        ]
        rows.append(Line(cells, setting))
    return {
        "while_training": bool(costs),
        "memory": _memories(section, n, "ledger", "" if len(rows) <= 30 else str(len(section.settings) - 1)),
        "categories": [{"name": name, **_colours(name)} for name in present],
        "table": Table("Bytes carried at the end", header, rows, n, "ledger"),
        "method": _methods(section.rows, section, n, "ledger_row"),
    }


def _costs(section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any] | None:
    told = [row for row in section.rows if row.costs]
    if not told:
        return None
    header = _words("method", "memory") + _numbers(*(f"{phase}\ns" for phase in PHASES))
    header += _numbers("images/s", "training\nTFLOP", "an image\nMFLOP")
    peaks = {"process_bytes": "peak\nMiB", "device_bytes": "GPU peak\nMiB"}
    kinds = [kind for kind in peaks if any(row.costs[kind] is not None for row in told if row.costs)]
    header += _numbers(*(peaks[kind] for kind in kinds))
    rows = []
    for row in told:
        own, setting = row.costs or {}, section.settings.index(row.setting)
        rate, training, forward = (own[key] for key in ("images_per_second", "training_flops", "forward_flops"))
        cells = [
            _method(row.label, looks),
            _memory_cell(section, setting),
            *(_value(own[phase], _number(own[phase], 1, 1)) for phase in PHASES),
            _value(rate, _number(rate, 1, 0)),
            _value(training, _number(training, 1e-12, 2)),
            _value(forward, _number(forward, 1e-6, 1)),
            *(_value(own[kind], mib(own[kind], 0)) for kind in kinds),
        ]
        rows.append(Line(cells, setting))
    return {
        "memory": _memories(section, n, "costs"),
        "table": Table("Time and computing", header, rows, n, "costs"),
    }


def _classes(section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any] | None:
    """The best and the worst classes of each row, and a choice of one to see all of its classes; None if none tells."""
    rows = [row for row in section.rows if row.class_means]
    if not rows:
        return None
    lines = []
    for row in rows:
        accuracy, setting = row.class_means, section.settings.index(row.setting)
        ends = [best(accuracy), worst(accuracy)]
        cells = [
            _method(row.label, looks),
            _memory_cell(section, setting),
            *(Cell(listed(names, accuracy), accuracy[names[0]], kind="text wide") for names in ends),
        ]
        lines.append(Line(cells, setting))
    header = _words("method", "memory", "best classes, %", "worst classes, %")
    return {
        "memory": _memories(section, n, "classes"),
        "table": Table("Best and worst classes", header, lines, n, "classes"),
        "method": _methods(rows, section, n, "classes_row"),
    }


def _runs(section: Section, n: int, looks: dict[str, Style]) -> dict[str, Any]:
    header = _words("method", "memory") + _numbers("seed", "average %", "last %", "seconds")
    header += _words("commit", "torch", "machine", "file")
    rows, told = [], []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        for index, run in enumerate(row.runs):
            facts = run_facts(run)
            cells = [
                _method(row.label, looks),
                _memory_cell(section, setting),
                _value(run.seeds[0], facts["seeds"]),
                *(_value(value, _number(value, 100, 1)) for value in (row.values(name)[index] for name in METRICS[:2])),
                _value(run.seconds, f"{run.seconds:.0f}"),
                *(_text(facts[name]) for name in ("commit", "torch", "machine", "file")),
            ]
            rows.append(Line(cells, setting))
        versions = {json.dumps(run.content["versions"]): run.content["versions"] for run in row.runs}
        told.append(
            {
                "title": row.title,
                "versions": [
                    ", ".join(f"{name} {value}" for name, value in item.items() if value is not None)
                    for item in versions.values()
                ],
                "commands": "\n".join(run.content["command"] for run in row.runs),
            }
        )
    return {
        "memory": _memories(section, n, "runs"),
        "table": Table("Runs", header, rows, n, "runs"),
        "rows": told,
    }
