"""A comparison as one HTML page that needs nothing else: tables, charts, and the script that draws them.

Every text that comes from a result file is escaped: in the markup, in the data that the script reads, and by the script
before plotly, which knows a small HTML of its own, sees it. A content security policy allows the two scripts of the
page, by their hashes, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from cil.compare.comparison import CONVENTIONS, FEW_SHOT, METRICS, Comparison, Measures, Pair, Row, Section, Spread
from cil.compare.fairness import Finding, seed_text
from cil.compare.figures import CATEGORY_COLOURS, Style, facets, largest_share, styles
from cil.compare.runs import CATEGORIES
from cil.compare.tables import as_json, count, options_text, percent, points, run_facts
from cil.machine.compute import PHASES
from cil.units import mib

GENERATOR = "class-incremental comparison"
# In a box of 12 x 12 around (13, 6); plotly's names.
MARKS = {
    "circle": '<circle cx="13" cy="6" r="3.6"/>',
    "square": '<rect x="9.6" y="2.6" width="6.8" height="6.8"/>',
    "diamond": '<path d="M13 1.4 17.6 6 13 10.6 8.4 6z"/>',
    "triangle-up": '<path d="M13 1.6 17.4 9.4H8.6z"/>',
    "triangle-down": '<path d="M13 10.4 17.4 2.6H8.6z"/>',
    "cross": '<path d="M11.4 1.6h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2V7.6H8.6V4.4h2.8z"/>',
    "x": '<path d="m10 1.8 3 3 3-3 1.6 1.6-2.8 2.6 2.8 2.6-1.6 1.6-3-3-3 3-1.6-1.6L11.2 6 8.4 3.4z"/>',
    "star": '<path d="m13 .8 1.3 3.5 3.7.1-2.9 2.3 1 3.6-3.1-2-3.1 2 1-3.6L8 4.4l3.7-.1z"/>',
}
STROKES = {"solid": "", "dash": "5 3", "dashdot": "6 2 1.5 2", "dot": "1.5 2.5"}


def page(comparison: Comparison, findings: list[Finding]) -> str:
    """The page as text.

    Args:
        comparison: what it shows.
        findings: of the checks of fairness; they come first.
    """
    looks = styles(comparison)
    data = {
        "comparison": as_json(comparison, findings),
        "styles": {label: vars(look) for label, look in looks.items()},
        "categories": {name: dict(zip(("light", "dark"), CATEGORY_COLOURS[name], strict=True)) for name in CATEGORIES},
        "largest_share": largest_share(comparison),
    }
    plotly, own = get_plotlyjs().replace("\r\n", "\n"), _asset("page.js")
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (plotly, own))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    title = f"Comparison on {' and '.join(dict.fromkeys(section.name for section in comparison.sections))}"
    sections = [_section(comparison, section, n, looks) for n, section in enumerate(comparison.sections)]
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="{GENERATOR}">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{_e(title)}</title>",
            f"<style>{_asset('page.css')}</style>",
            "</head>",
            "<body>",
            '<div class="layout">',
            _contents(comparison),
            "<main>",
            f"<h1>{_e(title)}</h1>",
            _facts(comparison),
            "<noscript><p>Tables can be read as they are; charts and sorting need JavaScript.</p></noscript>",
            _findings(findings),
            *sections,
            _reading(comparison),
            "</main>",
            "</div>",
            f'<script type="application/json" id="data">{_script_json(data)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{own}</script>",
            "</body>",
            "</html>",
            "",
        )
    )


# --- text -------------------------------------------------------------------------------------------------------------


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _e(text: Any) -> str:
    return html.escape(str(text))


def _script_json(data: Any) -> str:
    """JSON that no text in it can end early; browsers read it as data."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _table(
    header: Sequence[tuple[str, bool]],
    rows: Sequence[tuple[Sequence[str], int | None]],
    label: str,
    n: int = 0,
    filtered_by: str = "",
) -> str:
    """A table that sorts.

    Args:
        header: names of the columns, each with whether it holds text.
        rows: cells as markup, from ``_text`` and ``_value``, each row with the index of its memory.
        label: what the table is, for those who do not see it.
        n: index of its scenario.
        filtered_by: name of the control that picks rows by memory.
    """
    heads = "".join(
        f'<th scope="col" aria-sort="none"{" class=text" * text}><button type="button">{_e(name)}</button></th>'
        for name, text in header
    )
    lines = "".join(
        f"<tr{f' data-setting={setting}' if setting is not None else ''}>{''.join(cells)}</tr>"
        for cells, setting in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_e(label)}">'
        f'<table class="sortable" data-scenario="{n}" data-filter="{filtered_by}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _text(text: str, *, key: str = "", tag: str = "", wide: bool = False, head: bool = False) -> str:
    """A cell of text, with a key before it and a tag behind it."""
    name = "th scope=row" if head else "td"
    tagged = f'<span class="tag">{_e(tag)}</span>' if tag else ""
    kind = "text wide" if wide else "text"
    return f'<{name} class="{kind}" data-value="{_e(text)}">{key}{_e(text)}{tagged}</{name.split()[0]}>'


def _value(value: float | None, shown: str, clear: bool = True) -> str:
    """A cell that sorts by its number; a difference that is not clear is grey."""
    main, sign, rest = shown.partition(" ± ")
    text = _e(main) + (f'<span class="spread"> ± {_e(rest)}</span>' if sign else "")
    grey = "" if clear else ' class="open"'
    return f'<td data-value="{"" if value is None else repr(value)}"{grey}>{text}</td>'


def _spread(spread: Spread) -> str:
    return _value(spread.mean, percent(spread))


def _key(look: Style) -> str:
    """The line and marker of a method; its colours follow the scheme."""
    return (
        f'<svg class="key" style="--light:{look.light};--dark:{look.dark}" viewBox="0 0 26 12" aria-hidden="true" '
        f'fill="currentColor"><path d="M0 6h26" fill="none" stroke="currentColor" stroke-width="2" '
        f'stroke-dasharray="{STROKES[look.dash]}"/>{MARKS[look.marker]}</svg>'
    )


def _select(n: int, control: str, label: str, options: Sequence[tuple[str, str]], chosen: str = "") -> str:
    choices = "".join(
        f'<option value="{_e(value)}"{" selected" * (value == chosen)}>{_e(text)}</option>' for value, text in options
    )
    return f'<label>{_e(label)} <select data-scenario="{n}" data-control="{control}">{choices}</select></label>'


def _controls(*controls: str) -> str:
    return f'<div class="controls">{"".join(controls)}</div>'


def _figure(n: int, chart: str, title: str, *, kind: str = "", **data: str) -> str:
    more = "".join(f' data-{key}="{_e(value)}"' for key, value in data.items())
    return (
        f'<figure data-chart="{chart}" data-scenario="{n}"{more}><figcaption><h4>{title}</h4></figcaption>'
        f'<div class="plot {kind}"></div></figure>'
    )


# --- parts of the page ------------------------------------------------------------------------------------------------

PARTS = (
    ("results", "Results"),
    ("differences", "Differences"),
    ("memory", "Accuracy over memory"),
    ("tasks", "Accuracy over tasks"),
    ("ledger", "What the bytes are"),
    ("costs", "Time and computing"),
    ("confusion", "Confusion of tasks"),
    ("runs", "Runs"),
)


def _contents(comparison: Comparison) -> str:
    several = len(comparison.sections) > 1
    entries = ['<li><a href="#findings">Findings</a></li>']
    for n, section in enumerate(comparison.sections):
        parts = "".join(f'<li><a href="#{id}-{n}">{name}</a></li>' for id, name in PARTS)
        title = f"{section.name} ({section.fingerprint[:8]})"
        entries.append(f'<li><a href="#scenario-{n}">{_e(title)}</a><ol>{parts}</ol></li>' if several else parts)
    entries.append('<li><a href="#reading">How to read this</a></li>')
    return f'<nav aria-label="Contents"><strong>Contents</strong><ol>{"".join(entries)}</ol></nav>'


def _facts(comparison: Comparison) -> str:
    runs = sum(len(row.runs) for row in comparison.rows)
    seeds = sorted({seed_text(run) for row in comparison.rows for run in row.runs}, key=lambda text: (len(text), text))
    settings = {row.setting for row in comparison.rows}
    facts = [
        (str(len(comparison.labels)), "methods" if len(comparison.labels) != 1 else "method"),
        (str(len(settings)), "memories" if len(settings) != 1 else "memory"),
        (str(runs), "runs" if runs != 1 else "run"),
        (", ".join(seeds[:8]) + ", ..." * (len(seeds) > 8), "seeds" if len(seeds) != 1 else "seed"),
    ]
    if comparison.left_out:
        facts.append((str(len(comparison.left_out)), "left out"))
    listed = "".join(f"<li><b>{_e(a)}</b> <span>{b}</span></li>" for a, b in facts)
    scored = f"all by {comparison.evaluator}" if comparison.evaluator else "each method by its own evaluator"
    return f'<ul class="facts">{listed}<li><span>scored</span> {_e(scored)}</li></ul>'


def _findings(findings: list[Finding]) -> str:
    problems = [finding for finding in findings if finding.level == "problem"]
    notes = [finding for finding in findings if finding.level != "problem"]
    if not findings:
        body = "<p>The checks of fairness found nothing.</p>"
    else:
        head = f"{len(problems)} problem{'s' * (len(problems) != 1)}, {len(notes)} note{'s' * (len(notes) != 1)}."
        body = f'<p class="soft">{head} A problem may explain a difference in accuracy; a note is good to know.</p>'
    if problems:
        body += f'<ul class="findings">{"".join(map(_finding, problems))}</ul>'
    if notes:
        listed = f'<ul class="findings">{"".join(map(_finding, notes))}</ul>'
        opened = " open" if len(notes) <= 3 else ""
        body += f"<details{opened}><summary>Notes ({len(notes)})</summary>{listed}</details>"
    return f'<section id="findings"><h2>Findings</h2>{body}</section>'


def _finding(finding: Finding) -> str:
    where = f'<span class="where">{_e(finding.scenario)}</span>' if finding.scenario else ""
    return (
        f'<li class="{finding.level}"><span class="level">{finding.level}</span><code>{_e(finding.id)}</code>{where}'
        f'<p>{_e(finding.text)}</p><p class="advice">{_e(finding.advice)}</p></li>'
    )


def _section(comparison: Comparison, section: Section, n: int, looks: dict[str, Style]) -> str:
    parts = [
        _results(section, n, looks),
        _differences(section, n),
        _memory(comparison, section, n, looks),
        _tasks(comparison, section, n, looks),
        _bytes(section, n, looks),
        _costs(section, n, looks),
        _confusion(section, n),
        _runs(section, n, looks),
    ]
    if len(comparison.sections) == 1:
        return "\n".join(parts)
    title = f'{_e(section.name)} <span class="soft">({_e(section.fingerprint[:8])})</span>'
    return f'<section id="scenario-{n}"><h2>{title}</h2>{"".join(_lower(part) for part in parts)}</section>'


def _lower(part: str) -> str:
    """The part with its heading one level down, below that of the scenario."""
    return part.replace("<h2>", "<h3>").replace("</h2>", "</h3>")


def _part(id: str, n: int, *body: str) -> str:
    return f'<section id="{id}-{n}"><h2>{dict(PARTS)[id]}</h2>{"".join(body)}</section>'


def _memories(section: Section) -> list[tuple[str, str]]:
    return [("", "all"), *((str(index), setting.text) for index, setting in enumerate(section.settings))]


def _results(section: Section, n: int, looks: dict[str, Style]) -> str:
    optional = any(row.differing for row in section.rows)
    codecs = len({row.first.codec for row in section.rows}) > 1
    header = [("method", True), ("memory", True), ("average %", False), ("last %", False), ("forgetting %", False)]
    header += [
        ("MiB\nstrict", False),
        ("MiB\npaper", False),
        ("exemplars", False),
        ("seconds", False),
        ("seeds", False),
    ]
    header += [("codec", True)] * codecs + [("options that differ", True)] * optional
    rows = []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        seconds = row.seconds.mean
        cells = [
            _text(row.label, key=_key(looks[row.label]), tag="upper bound" * row.upper_bound, head=True),
            # Sorts from the least memory to the most, not by the alphabet.
            f'<td class="text" data-value="{setting}">{_e(row.setting.text)}</td>',
            *(_spread(row.metric(metric)) for metric in METRICS),
            *(_value(row.final_bytes(convention), mib(row.final_bytes(convention))) for convention in CONVENTIONS),
            _value(row.exemplars, count(row.exemplars)),
            _value(seconds, "-" if seconds is None else f"{seconds:.0f}"),
            _value(len(row.runs), str(len(row.runs))),
            *([_text(row.first.codec)] * codecs),
            *([_text(options_text(row), wide=True)] * optional),
        ]
        rows.append((cells, setting))
    images = (
        f"{len(section.task_sizes)} tasks, {sum(section.task_sizes)} classes, fingerprint {section.fingerprint[:8]}"
    )
    return _part(
        "results",
        n,
        f'<p class="soft">{_e(section.name)}: {images}. Mean ± sample standard deviation over seeds; MiB are carried '
        "at the end.</p>",
        _controls(_select(n, "results", "Memory", _memories(section))) if len(section.settings) > 1 else "",
        _table(header, rows, "Results", n, "results"),
        _base_and_new(section, n, looks) if section.few_shot else "",
    )


def _base_and_new(section: Section, n: int, looks: dict[str, Style]) -> str:
    """Few-shot scenarios: base and new classes after the last session."""
    header = [("method", True), ("memory", True), ("base %", False), ("new %", False), ("harmonic mean %", False)]
    rows = []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        cells = [
            _text(row.label, key=_key(looks[row.label]), head=True),
            f'<td class="text" data-value="{setting}">{_e(row.setting.text)}</td>',
            *(_spread(row.metric(metric)) for metric in FEW_SHOT),
        ]
        rows.append((cells, setting))
    return (
        '<p class="soft">Base classes and those of all sessions, after the last session; the drop is that of the '
        "accuracy on all classes since the first task.</p>"
        + _table([*header, ("drop %", False)], rows, "Base and new classes", n, "results")
    )


def _differences(section: Section, n: int) -> str:
    if not section.pairs:
        return _part("differences", n, '<p class="soft">No two methods have the same memory, so none are paired.</p>')
    header = [("first", True), ("second", True), ("memory", True)]
    for name in ("average", "last"):
        header += [(f"{name}\npoints", False), ("95 % interval\npoints", False)]
    header.append(("pairs", False))
    by_rows = {(pair.first, pair.second, pair.metric): pair for pair in section.pairs}
    rows = []
    for first, second in dict.fromkeys((pair.first, pair.second) for pair in section.pairs):
        setting = section.settings.index(section.row(first).setting)
        pairs = [by_rows[first, second, metric] for metric in METRICS[:2]]
        cells = [
            *(_text(section.row(id).label, head=n == 0) for n, id in enumerate((first, second))),
            f'<td class="text" data-value="{setting}">{_e(section.settings[setting].text)}</td>',
            *(cell for pair in pairs for cell in (_value(pair.mean, points(pair.mean), pair.clear), _interval(pair))),
            _value(pairs[0].n, str(pairs[0].n)),
        ]
        rows.append((cells, setting))
    paired = sorted({setting for _, setting in rows})
    memories = [("", "all"), *((str(setting), section.settings[setting].text) for setting in paired)]
    choice = memories[-1][0] if len(rows) > 15 else ""
    return _part(
        "differences",
        n,
        '<p class="soft">First minus second, methods of one memory paired by seed. The interval is that of the mean '
        "difference by Student's t, not widened for the number of pairs; grey where it holds zero.</p>",
        _controls(_select(n, "differences", "Memory", memories, choice)) if len(paired) > 1 else "",
        _table(header, rows, "Paired differences", n, "differences"),
    )


def _interval(pair: Pair) -> str:
    if pair.low is None or pair.high is None:
        return _value(None, "too few seeds", clear=False)
    return _value(pair.low, f"{points(pair.low)} to {points(pair.high)}", pair.clear)


def _legend(labels: Sequence[str], comparison: Comparison, n: int, looks: dict[str, Style]) -> str:
    """Buttons that show and hide a method in the charts of a scenario."""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-scenario="{n}" data-method="{comparison.labels.index(label)}">'
        f"{_key(looks[label])}{_e(label)}</button>"
        for label in labels
    )
    return f'<div class="legend" role="group" aria-label="Methods shown">{buttons}</div>'


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.label for row in rows))


def _memory(comparison: Comparison, section: Section, n: int, looks: dict[str, Style]) -> str:
    order = [section.convention, *(name for name in CONVENTIONS if name != section.convention)]
    labels = _labels([row for row in section.rows if not row.upper_bound])
    if not labels:
        return _part("memory", n, '<p class="soft">Upper bounds alone have no memory to compare.</p>')
    areas = "".join(
        f'<div data-scenario="{n}" data-only-convention="{convention}">{_areas(section, n, convention, looks)}</div>'
        for convention in order
    )
    return _part(
        "memory",
        n,
        _controls(_select(n, "convention", "Bytes counted", [(name, name) for name in order], order[0])),
        _legend(labels, comparison, n, looks),
        '<div class="charts two">',
        _figure(n, "memory", "Average incremental accuracy", kind="low", metric=METRICS[0]),
        _figure(n, "memory", "Last accuracy", kind="low", metric=METRICS[1]),
        "</div>",
        areas,
    )


def _areas(section: Section, n: int, convention: str, looks: dict[str, Style]) -> str:
    header = [("method", True), ("points", False), ("from\nMiB", False), ("to\nMiB", False)]
    header += [("AUC-A\nfraction x MiB", False), ("AUC-L\nfraction x MiB", False), ("AUC-A\n/ range, %", False)]
    header += [("AUC-L\n/ range, %", False), ("APM-S\n% / MiB", False), ("APM-E\n% / MiB", False), ("range", True)]
    rows = []
    for curve in section.curves:
        own = curve.measures[convention]
        cells = [
            _text(curve.label, key=_key(looks[curve.label]), head=True),
            _value(len(curve.rows), str(len(curve.rows))),
            *(_value(number, f"{number:.2f}") for number in (own.low, own.high)),
            *(_value(number, _number(number)) for number in (own.area_average, own.area_last)),
            *(_value(number, _number(number, 100, 1)) for number in (own.normalised_average, own.normalised_last)),
            *(_value(number, _number(number)) for number in (own.apm_start, own.apm_end)),
            _text(_range(own, len(curve.rows)), wide=bool(own.not_comparable)),
        ]
        rows.append((cells, None))
    return _table(header, rows, f"Areas under the curves, {convention}", n)


def _range(own: Measures, n_points: int) -> str:
    """Whether areas may be compared."""
    if own.not_comparable:
        named = ", ".join(own.not_comparable[:2]) + ", ..." * (len(own.not_comparable) > 2)
        return f"not that of {named}"
    if own.area_average is None:
        return "one point" if n_points == 1 else "two points at one memory"
    return "common"


def _number(value: float | None, factor: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _tasks(comparison: Comparison, section: Section, n: int, looks: dict[str, Style]) -> str:
    choices = [(str(section.settings.index(setting)), setting.text) for setting in facets(section)]
    others = {row.setting.kind for row in section.rows} & {"none", "all"}
    named = " and ".join(
        text for kind, text in (("none", "methods without exemplars"), ("all", "upper bounds")) if kind in others
    )
    beside = f" {named[:1].upper()}{named[1:]} are shown beside every memory." if named and len(choices) else ""
    return _part(
        "tasks",
        n,
        f'<p class="soft">Mean over seeds; the band is one sample standard deviation to either side.{beside}</p>',
        _controls(_select(n, "facet", "Memory", choices, choices[-1][0])),
        _legend(_labels(section.rows), comparison, n, looks),
        _figure(n, "tasks", "Accuracy on all classes seen, after each task"),
    )


def _bytes(section: Section, n: int, looks: dict[str, Style]) -> str:
    present = [name for name in CATEGORIES if any(task.get(name) for row in section.rows for task in row.task_bytes)]
    key = "".join(
        f'<span class="entry"><span class="box" style="--light:{CATEGORY_COLOURS[name][0]};'
        f'--dark:{CATEGORY_COLOURS[name][1]}"></span>{_e(name)}</span>'
        for name in present
    )
    costs = [
        (key, name)
        for key, name in (("training_bytes", "while training\nMiB"), ("inference_bytes", "to predict\nMiB"))
        if any(row.cost(key) is not None for row in section.rows)
    ]
    header = [("method", True), ("memory", True), *((f"{name}\nMiB", False) for name in present)]
    header += [("strict\nMiB", False), ("paper\nMiB", False), *((name, False) for _, name in costs)]
    rows = []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        last = row.task_bytes[-1]
        sizes = [last.get(name, 0) for name in present] + [row.final_bytes(name) for name in CONVENTIONS]
        cells = [
            _text(row.label, key=_key(looks[row.label]), head=True),
            f'<td class="text" data-value="{setting}">{_e(row.setting.text)}</td>',
            *(_value(size, mib(size, 3)) for size in sizes),
            *(_value(row.cost(key), mib(row.cost(key))) for key, _ in costs),
        ]
        rows.append((cells, setting))
    ids = [(row.id, row.title) for row in section.rows]
    choice = "" if len(section.rows) <= 30 else str(len(section.settings) - 1)
    while_training = " What is held only while a task is learned is in neither." if costs else ""
    return _part(
        "ledger",
        n,
        f'<p class="soft">Every byte carried from task to task, by what it is.{while_training}</p>',
        _controls(_select(n, "ledger", "Memory", _memories(section), choice)) if len(section.settings) > 1 else "",
        f'<div class="legend">{key}</div>',
        _figure(n, "ledger", "Carried at the end"),
        _table(header, rows, "Bytes carried at the end", n, "ledger"),
        _controls(_select(n, "ledger_row", "Method", ids, _best(section))),
        _figure(n, "ledger_tasks", "Carried after each task", kind="low"),
    )


def _costs(section: Section, n: int, looks: dict[str, Style]) -> str:
    told = [row for row in section.rows if row.costs]
    if not told:
        return _part("costs", n, '<p class="soft">These runs do not tell where their time went.</p>')
    header = [("method", True), ("memory", True), *((f"{phase}\ns", False) for phase in PHASES)]
    header += [("images/s", False), ("training\nTFLOP", False), ("an image\nMFLOP", False)]
    peaks = {"process_bytes": "peak\nMiB", "device_bytes": "GPU peak\nMiB"}
    kinds = [kind for kind in peaks if any(row.costs[kind] is not None for row in told if row.costs)]
    header += [(peaks[kind], False) for kind in kinds]
    rows = []
    for row in told:
        own, setting = row.costs or {}, section.settings.index(row.setting)
        rate, training, forward = (own[key] for key in ("images_per_second", "training_flops", "forward_flops"))
        cells = [
            _text(row.label, key=_key(looks[row.label]), head=True),
            f'<td class="text" data-value="{setting}">{_e(row.setting.text)}</td>',
            *(_value(own[phase], _number(own[phase], 1, 1)) for phase in PHASES),
            _value(rate, _number(rate, 1, 0)),
            _value(training, _number(training, 1e-12, 2)),
            _value(forward, _number(forward, 1e-6, 1)),
            *(_value(own[kind], mib(own[kind], 0)) for kind in kinds),
        ]
        rows.append((cells, setting))
    return _part(
        "costs",
        n,
        '<p class="soft">Means over seeds. Images a second are those trained on, with the time to prepare them. '
        "Operations are those of gradient steps, teachers included, and of features for closed forms, two for each "
        "multiplication with addition, and those of predicting one image at the end.</p>",
        _controls(_select(n, "costs", "Memory", _memories(section))) if len(section.settings) > 1 else "",
        _table(header, rows, "Time and computing", n, "costs"),
    )


def _best(section: Section, nth: int = 0) -> str:
    """The row of the largest memory with the best average, or the one after it."""
    bounded = [row for setting in reversed(section.settings) if setting.kind != "all" for row in section.at(setting)]
    return (bounded or section.rows)[min(nth, len(bounded or section.rows) - 1)].id


def _confusion(section: Section, n: int) -> str:
    ids = [(row.id, row.title) for row in section.rows]
    charts = [
        "<div>"
        + _controls(_select(n, control, "Method", ids, _best(section, nth)))
        + _figure(n, "confusion", "Where the images of each task go", kind="square", control=control)
        + "</div>"
        for nth, control in enumerate(("confusion_left", "confusion_right")[: len(section.rows)])
    ]
    return _part(
        "confusion",
        n,
        '<p class="soft">Share of a task\'s test images, in %, that are predicted as a class of each task, after the '
        "last one; the mean over seeds. Rows sum to 100.</p>",
        f'<div class="charts two">{"".join(charts)}</div>',
    )


def _runs(section: Section, n: int, looks: dict[str, Style]) -> str:
    header = [("method", True), ("memory", True), ("seed", False), ("average %", False), ("last %", False)]
    header += [("seconds", False), ("commit", True), ("torch", True), ("machine", True), ("file", True)]
    rows, commands = [], []
    for row in section.rows:
        setting = section.settings.index(row.setting)
        for index, run in enumerate(row.runs):
            facts = run_facts(run)
            cells = [
                _text(row.label, key=_key(looks[row.label]), head=True),
                f'<td class="text" data-value="{setting}">{_e(row.setting.text)}</td>',
                _value(run.seeds[0], facts["seeds"]),
                *(_value(value, _number(value, 100, 1)) for value in (row.values(name)[index] for name in METRICS[:2])),
                _value(run.seconds, f"{run.seconds:.0f}"),
                *(_text(facts[name]) for name in ("commit", "torch", "machine", "file")),
            ]
            rows.append((cells, setting))
        lines = "\n".join(_e(run.content["command"]) for run in row.runs)
        versions = {json.dumps(run.content["versions"]): run.content["versions"] for run in row.runs}
        told = "<br>".join(
            _e(", ".join(f"{name} {value}" for name, value in item.items() if value is not None))
            for item in versions.values()
        )
        commands.append(f'<h4>{_e(row.title)}</h4><p class="soft small">{told}</p><pre>{lines}</pre>')
    return _part(
        "runs",
        n,
        _controls(_select(n, "runs", "Memory", _memories(section))) if len(section.settings) > 1 else "",
        _table(header, rows, "Runs", n, "runs"),
        f'<details class="commands"><summary>Commands and versions</summary>{"".join(commands)}</details>',
    )


def _reading(comparison: Comparison) -> str:
    evaluator = f"scored by {comparison.evaluator}" if comparison.evaluator else "scored by its own evaluator"
    terms = [
        ("average", f"Average incremental accuracy: mean over tasks of the accuracy on all classes seen; {evaluator}."),
        ("last", "Accuracy on all classes after the last task."),
        ("forgetting", "Mean over old tasks of the best accuracy before the last task minus that after it."),
        ("MiB", "2^20 bytes. Strict counts every byte carried: network, statistics, exemplars, labels."),
        ("paper", "Float32 backbone parameters and stored images alone, as Zhou et al., ICLR 2023, count."),
        ("AUC-A, AUC-L", "Area under average and last accuracy over memory, fraction x MiB, by the trapezoid rule."),
        ("AUC / range", "The same divided by the range of memory: the mean height of the curve, in %."),
        ("APM-S, APM-E", "Average accuracy in % for each MiB at the smallest and at the largest memory."),
        ("upper bound", "Keeps every image; in no memory curve and no difference."),
        (
            "while training",
            "Teachers, optimiser, the best epoch and decoded images at their highest; not carried, so not in strict.",
        ),
    ]
    listed = "".join(f"<dt>{_e(term)}</dt><dd>{_e(text)}</dd>" for term, text in terms)
    return f'<section id="reading"><h2>How to read this</h2><dl>{listed}</dl></section>'
