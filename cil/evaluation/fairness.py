"""What makes a comparison unfair, or limits what may be concluded from it.

Each check is a function of a comparison whose docstring is its promise; ``CHECKS`` lists them. A ``problem`` means that
a difference in accuracy may have another cause than the methods; a ``note`` is something to know when reading.
Identifiers are stable, so that scripts can look for them. Upper bounds take no part in what concerns memory.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from cil.evaluation.comparison import Comparison, Row, Section, shown
from cil.evaluation.runs import MIB, Run

Level = Literal["problem", "note"]
# Options of the trainer that do nothing unless another has this value.
ONLY_WITH = {
    "trainer.milestones": ("trainer.schedule", "multistep"),
    "trainer.gamma": ("trainer.schedule", "multistep"),
    "trainer.min_lr": ("trainer.schedule", "cosine"),
    "trainer.momentum": ("trainer.optimizer", "sgd"),
    "trainer.nesterov": ("trainer.optimizer", "sgd"),
}
NEARLY_EQUAL = 0.01
NAMED = 4


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Args:
        level: ``problem`` or ``note``.
        id: of the kind of finding, such as ``different-epochs``.
        text: a sentence that names rows or runs and values.
        advice: what to do about it.
        scenario: where it was found; empty if it concerns all.
    """

    level: Level
    id: str
    text: str
    advice: str
    scenario: str = ""


def findings(comparison: Comparison) -> list[Finding]:
    """What all checks find, problems first."""
    found = [finding for check in CHECKS for finding in check(comparison)]
    return sorted(found, key=lambda finding: finding.level != "problem")


# --- the same tasks ---------------------------------------------------------------------------------------------------


def scenarios(comparison: Comparison) -> list[Finding]:
    """Methods that were run on data or class orders of one name but not the same are a problem; several scenarios that
    each have all methods, or bear different names, are a note."""
    by_name: dict[str, list[Section]] = defaultdict(list)
    for section in comparison.sections:
        by_name[section.name].append(section)
    found = []
    for name, sections in by_name.items():
        if len({frozenset(row.label for row in section.rows) for section in sections}) > 1:
            parts = [f"{_few(_labels(section.rows))} on {section.fingerprint[:8]}" for section in sections]
            found.append(
                Finding(
                    "problem",
                    "different-fingerprints",
                    f"'{name}' is not one scenario: the runs differ in {_difference(sections)} ({'; '.join(parts)}).",
                    "Each fingerprint has tables of its own. Run all methods on the same images, order and tasks.",
                )
            )
    if len(comparison.sections) > 1:
        parts = [f"{section.name} ({section.fingerprint[:8]})" for section in comparison.sections]
        found.append(
            Finding(
                "note",
                "several-scenarios",
                f"There are {len(parts)} scenarios: {_few(parts)}.",
                "Each has tables of its own; nothing is compared or averaged across them.",
            )
        )
    return found


def _difference(sections: Sequence[Section]) -> str:
    """In what scenarios of one name differ, as far as the files tell."""
    contents = [section.rows[0].first.content for section in sections]
    told = [
        name
        for name, values in (
            ("task sizes", [content["scenario"]["task_sizes"] for content in contents]),
            ("class order", [content["scenario"].get("class_order") for content in contents]),
            ("image size", [content["config"].get("image_size") for content in contents]),
        )
        if any(value != values[0] for value in values)
    ]
    return " and ".join(told) or "pixels or labels"


# --- the same memory --------------------------------------------------------------------------------------------------


def budgets(comparison: Comparison) -> list[Finding]:
    """Every run with a stated budget carries, at the end and in the budget's convention, what the budget says, give or
    take one stored image for each class; one to be met at every task is nowhere exceeded by more. A method that keeps
    no image, or all of them already, cannot fill a budget, so that it falls short is a note."""
    found = []
    for section in comparison.sections:
        for row in _bounded(section.rows):
            setting = row.setting
            if setting.kind != "budget":
                continue
            image = max((run.image_bytes for run in row.runs), default=0) or _image(section)
            room = image * sum(section.task_sizes)
            ends = [run.task_bytes[-1][setting.convention] for run in row.runs]
            worst = max(ends, key=lambda end: abs(end - setting.number))
            text = (
                f"{row.title} carries {_mib(worst)} MiB ({setting.convention}) at the end where the budget says "
                f"{_mib(setting.number)} MiB, which is {_mib(abs(worst - setting.number))} MiB too "
                f"{'much' if worst > setting.number else 'little'}."
            )
            if abs(worst - setting.number) > room:
                short = worst < setting.number and all(run.full for run in row.runs)
                advice = (
                    "It has no further image to fill the room with: read it as a method that needs less."
                    if short
                    else "Plan again with --dry-run, or name the budget that is carried."
                )
                found.append(Finding("note" if short else "problem", "budget-not-met", text, advice, section.name))
            elif setting.align == "always":
                peaks = [(max(b[setting.convention] for b in run.task_bytes), run) for run in row.runs]
                peak, run = max(peaks, key=lambda item: item[0])
                if peak - setting.number > room:
                    found.append(
                        Finding(
                            "problem",
                            "budget-exceeded",
                            f"{run.file} ({row.title}) carries up to {_mib(peak)} MiB where "
                            f"{_mib(setting.number)} MiB are allowed at every task.",
                            "Plan again with --dry-run.",
                            section.name,
                        )
                    )
    return found


def budget_conventions(comparison: Comparison) -> list[Finding]:
    """Budgets of nearly the same bytes (within one percent) that count by another convention, are met at another time,
    or are a little apart are different memories, and are told: the first two as a problem."""
    found = []
    for section in comparison.sections:
        stated = [setting for setting in section.settings if setting.kind == "budget"]
        for index, one in enumerate(stated):
            for other in stated[index + 1 :]:
                if abs(one.number - other.number) > NEARLY_EQUAL * max(one.number, other.number):
                    continue
                apart = (one.convention, one.align) != (other.convention, other.align)
                names = [
                    f"{item.text} ({item.number} bytes: {_few(_labels(section.at(item)))})" for item in (one, other)
                ]
                found.append(
                    Finding(
                        "problem" if apart else "note",
                        "different-budget-conventions" if apart else "nearly-equal-budgets",
                        f"{' and '.join(names)} are shown as different memories.",
                        "Give all methods one budget, with the same --memory.convention and --memory.align.",
                        section.name,
                    )
                )
    return found


def equal_exemplars(comparison: Comparison) -> list[Finding]:
    """Methods with the same number of exemplars and no stated budget carry the same strict bytes at the end, give or
    take one stored image: equal exemplars are not equal memory."""
    found = []
    for section in comparison.sections:
        for setting in section.settings:
            rows = [row for row in section.at(setting) if setting.kind in ("none", "exemplars", "per_class")]
            if len(rows) < 2:
                continue
            image = max(run.image_bytes for row in rows for run in row.runs)
            rows.sort(key=lambda row: row.final_bytes("strict"))
            low, high = rows[0], rows[-1]
            if high.final_bytes("strict") - low.final_bytes("strict") > image:
                found.append(
                    Finding(
                        "problem",
                        "unequal-memory",
                        f"With {setting.text} each, {low.label} carries {_mib(low.final_bytes('strict'))} MiB and "
                        f"{high.label} {_mib(high.final_bytes('strict'))} MiB (strict) at the end: equal exemplars are "
                        "not equal memory.",
                        "State a budget in bytes (--memory.budget), or compare the curves over memory.",
                        section.name,
                    )
                )
    return found


def memory_ranges(comparison: Comparison) -> list[Finding]:
    """Areas under memory curves whose ranges differ by more than one percent are named; so are curves with two points
    at one memory, which have no area."""
    found = []
    for section in comparison.sections:
        own = {curve.label: curve.measures[section.convention] for curve in section.curves}
        apart = [label for label, measures in own.items() if measures.not_comparable]
        if apart:
            ranges = [f"{label} {own[label].low:.2f} to {own[label].high:.2f} MiB" for label in apart]
            found.append(
                Finding(
                    "note",
                    "different-memory-ranges",
                    f"Areas under the memory curves cover different ranges: {_few(ranges)}.",
                    "Compare areas only between methods whose ranges agree; the table marks the others.",
                    section.name,
                )
            )
        double = [c.label for c in section.curves if len(c.rows) > 1 and own[c.label].area_average is None]
        if double:
            found.append(
                Finding(
                    "note",
                    "repeated-memory",
                    f"{_few(double)} has two points at one memory and so no area.",
                    "Compare fewer settings at once.",
                    section.name,
                )
            )
    return found


def exemplar_free(comparison: Comparison) -> list[Finding]:
    """A method that says it keeps no exemplars keeps none after any task."""
    found = []
    for section, row in _rows(comparison):
        for run in row.runs:
            most = max(task["exemplars"] for task in run.content["tasks"])
            if run.exemplar_free and most:
                found.append(
                    Finding(
                        "problem",
                        "exemplars-in-exemplar-free",
                        f"{run.file} ({row.title}) says it is exemplar-free and keeps {most} exemplars.",
                        "Run it with --memory.exemplars 0, or list it among the methods with exemplars.",
                        section.name,
                    )
                )
    return found


def ledgers(comparison: Comparison) -> list[Finding]:
    """The bytes of every task add up: no category is negative, and none is missing from the strict total."""
    found = []
    for section, row in _rows(comparison):
        for run in row.runs:
            rest = [measured.get("other", 0) for measured in run.task_bytes]
            worst = max(rest, key=abs)
            if worst:
                found.append(
                    Finding(
                        "problem",
                        "bytes-do-not-add-up",
                        f"{run.file} ({row.title}): strict bytes and the sum of their categories are {worst} apart.",
                        "Measure again with the current version; do not quote its memory.",
                        section.name,
                    )
                )
    return found


# --- the same training ------------------------------------------------------------------------------------------------


def training(comparison: Comparison) -> list[Finding]:
    """Every option of the trainer that has an effect has one value in all rows; one that only an upper bound sets
    differently is a note. The identifier names the option: different-epochs, different-batch-size, different-lr."""
    return _different(
        comparison, "trainer.", "Train all methods under one protocol, or say in the text that this differs."
    )


def augmentation(comparison: Comparison) -> list[Finding]:
    """Every option of the augmentation has one value in all rows."""
    return _different(
        comparison, "augmentation.", "Use one augmentation: it moves accuracy by as much as methods do.", "augmentation"
    )


def image_size(comparison: Comparison) -> list[Finding]:
    """Images are resized alike in all rows."""
    return _different(comparison, "image_size", "Use one --image_size.")


def precision(comparison: Comparison) -> list[Finding]:
    """All rows compute in one precision."""
    return _different(comparison, "precision", "Use one --precision.")


def backbones(comparison: Comparison) -> list[Finding]:
    """Methods with one network all have the same one. A method whose network grows may have another at a stated budget,
    which is how it meets it (a note), and may not without one."""
    found = []
    for section in comparison.sections:
        rows = _bounded(section.rows)
        fixed = [row for row in rows if not (row.first.grows and row.setting.kind == "budget")]
        traded = [row for row in rows if row not in fixed]
        by_value = _by_value(fixed, _network)
        if len(by_value) > 1:
            found.append(
                Finding(
                    "problem",
                    "different-backbones",
                    f"The network differs: {_listed(by_value)}.",
                    "Use one --model.backbone, unless a method's own growth is paid for under a stated budget.",
                    section.name,
                )
            )
        other = [row for row in traded if _network(row) not in by_value] if by_value else []
        if other:
            found.append(
                Finding(
                    "note",
                    "backbone-spent-as-memory",
                    f"Growing methods meet the budget with another network: {_listed(_by_value(other, _network))}.",
                    "This is the protocol of Zhou et al., ICLR 2023; say so beside the table.",
                    section.name,
                )
            )
    return found


def heads(comparison: Comparison) -> list[Finding]:
    """Another kind of head is told as a note, since some methods are defined with one."""
    found = []
    for section in comparison.sections:
        by_value = _by_value(section.rows, lambda row: _told(row, ("model.head", "model.head_args")))
        if len(by_value) > 1:
            found.append(
                Finding(
                    "note",
                    "different-heads",
                    f"The head differs: {_listed(by_value)}.",
                    "Say so where a method's head is not part of it.",
                    section.name,
                )
            )
    return found


# --- the same knowledge -----------------------------------------------------------------------------------------------


def pretraining(comparison: Comparison) -> list[Finding]:
    """Either all rows of a scenario start from weights trained on one list of classes, or none does; rows that do not
    say count as untrained."""
    found = []
    for section in comparison.sections:
        by_value = _by_value(
            section.rows, lambda row: json.dumps(sorted(row.first.content.get("pretrained_classes") or []))
        )
        if len(by_value) > 1:
            parts = [
                f"{len(json.loads(value)) or 'no'} classes in {_few(_labels(rows))}" for value, rows in by_value.items()
            ]
            found.append(
                Finding(
                    "problem",
                    "different-pretraining",
                    f"The classes that initial weights were trained on differ: {'; '.join(parts)}.",
                    "Start all methods from the same weights.",
                    section.name,
                )
            )
    return found


def pretraining_overlap(comparison: Comparison) -> list[Finding]:
    """The classes that initial weights were trained on, where declared, are none of the stream's; names are compared
    without case and punctuation, and synonyms after a comma count. Classes of the stream's own first task that an
    earlier run learned, and declares as that, are none."""
    found = []
    for section in comparison.sections:
        by_overlap: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for row in section.rows:
            stream = row.first.content["scenario"].get("class_names") or []
            own = {*(row.first.content.get("pretrained_stream") or [])} & {*stream[: section.task_sizes[0]]}
            declared = row.first.content.get("pretrained_classes") or []
            known = {name for text in declared if text not in own for name in _names(text)}
            by_overlap[tuple(str(text) for text in stream if _names(text) & known)].append(row)
        for overlap, rows in by_overlap.items():
            if overlap:
                found.append(
                    Finding(
                        "problem",
                        "pretraining-overlap",
                        f"{_titles(rows)}: the initial weights were trained on {len(overlap)} of the stream's "
                        f"classes ({_few(overlap)}).",
                        "Use weights trained without these classes, or do not call them new.",
                        section.name,
                    )
                )
    return found


def selection(comparison: Comparison) -> list[Finding]:
    """Every run that says how its model was selected reports the last epoch, which needs no test data."""
    found = []
    for section, row in _rows(comparison):
        chosen = row.first.content.get("selected_by") or "last epoch"
        if chosen != "last epoch":
            found.append(
                Finding(
                    "problem",
                    "test-data-selection",
                    f"{row.title} reports a model selected by '{chosen}'.",
                    "Report the last epoch, or select on images held out from training for all methods.",
                    section.name,
                )
            )
    return found


# --- enough, and the same, runs ---------------------------------------------------------------------------------------


def single_seed(comparison: Comparison) -> list[Finding]:
    """Every row has at least two seeds: one is an example, not a comparison."""
    found = []
    for section in comparison.sections:
        alone = [row for row in section.rows if len(row.runs) < 2]
        if alone:
            found.append(
                Finding(
                    "problem",
                    "single-seed",
                    f"One seed only: {_titles(alone)}.",
                    "Run further seeds (--seed 1, --seed 2): without them there is no deviation and no interval.",
                    section.name,
                )
            )
    return found


def seeds(comparison: Comparison) -> list[Finding]:
    """Rows of one memory have the same seeds; differences are paired over common ones only."""
    found = []
    for section in comparison.sections:
        for setting in section.settings:
            by_value = _by_value(section.at(setting), lambda row: ", ".join(seed_text(run) for run in row.runs))
            if len(by_value) > 1:
                found.append(
                    Finding(
                        "note",
                        "different-seeds",
                        f"At {setting.text}, seeds differ: {_listed(by_value)}.",
                        "Run all methods with the same seeds: only common ones are paired.",
                        section.name,
                    )
                )
    return found


def repeated(comparison: Comparison) -> list[Finding]:
    """An experiment that was given twice with the same seeds is counted once; that its numbers differ is a problem."""
    found = []
    for kept, dropped, agree in comparison.repeated:
        found.append(
            Finding(
                "note" if agree else "problem",
                "repeated-run" if agree else "repeated-run-differs",
                f"{kept} and {dropped} are the same experiment with the same seeds and "
                f"{'agree' if agree else 'do not agree'}; the first is used.",
                "Give it once." if agree else "Find out which is right: versions, machine or code changed the numbers.",
            )
        )
    return found


def left_out(comparison: Comparison) -> list[Finding]:
    """Result files that are not compared are named with the reason; repeated ones by a check of their own."""
    doubles = {dropped for _, dropped, _ in comparison.repeated}
    return [
        Finding("note", "left-out", f"{item.file} is left out: {item.reason}.", "Finish it, or do not name it.")
        for item in comparison.left_out
        if item.file not in doubles
    ]


def versions(comparison: Comparison) -> list[Finding]:
    """Python and packages have one version in all runs of a scenario."""
    found = []
    for section in comparison.sections:
        runs = _runs(section)
        names = dict.fromkeys(name for run in runs for name in run.content["versions"] if name != "commit")
        for name in names:
            counts = _counted(str(run.content["versions"].get(name)) for run in runs)
            if len(counts) > 1:
                found.append(
                    Finding(
                        "note",
                        "different-versions",
                        f"{name} differs between runs: {_tally(counts)}.",
                        "Numbers may differ in the last digits; repeat one run under both to see how much.",
                        section.name,
                    )
                )
    return found


def commits(comparison: Comparison) -> list[Finding]:
    """All runs of a scenario come from one commit, with nothing uncommitted."""
    found = []
    for section in comparison.sections:
        counts = _counted(str(run.content["versions"].get("commit")) for run in _runs(section))
        if len(counts) > 1:
            found.append(
                Finding(
                    "note",
                    "different-commits",
                    f"Runs come from different commits: {_tally(counts)}.",
                    "Check that nothing between them changes numbers, or run again at one.",
                    section.name,
                )
            )
        dirty = [run.file for run in _runs(section) if str(run.content["versions"].get("commit")).endswith("-dirty")]
        if dirty:
            found.append(
                Finding(
                    "note",
                    "uncommitted-changes",
                    f"The source had uncommitted changes in {len(dirty)} runs: {_few(dirty)}.",
                    "Commit, then run again: nobody else can run this code.",
                    section.name,
                )
            )
    return found


def machines(comparison: Comparison) -> list[Finding]:
    """All runs of a scenario were computed on one kind of machine with as many threads, so their seconds compare."""
    found = []
    for section in comparison.sections:
        counts = _counted(machine_text(run) for run in _runs(section))
        if len(counts) > 1:
            found.append(
                Finding(
                    "note",
                    "different-machines",
                    f"Runs were computed on different machines: {_tally(counts)}.",
                    "Do not compare their seconds.",
                    section.name,
                )
            )
    return found


CHECKS: tuple[Callable[[Comparison], list[Finding]], ...] = (
    *(scenarios, budgets, budget_conventions, equal_exemplars, exemplar_free, ledgers, training, augmentation),
    *(image_size, precision, backbones, pretraining, pretraining_overlap, selection, single_seed, repeated),
    *(memory_ranges, heads, seeds, versions, commits, machines, left_out),
)


# --- words ------------------------------------------------------------------------------------------------------------


def seed_text(run: Run) -> str:
    """``0``, or all three where they differ."""
    init, data, exemplars = run.seeds
    return str(init) if init == data == exemplars else f"{init}/{data}/{exemplars}"


def machine_text(run: Run) -> str:
    """Processor or GPU, device and threads."""
    machine = run.content["machine"]
    return f"{machine.get('name')}, {machine.get('device')}, threads {machine.get('threads')}"


def _different(comparison: Comparison, prefix: str, advice: str, name: str | None = None) -> list[Finding]:
    """A finding for each option that differs within a scenario, or one for all of them under a common name."""
    found = []
    for section in comparison.sections:
        values: dict[str, dict[str, list[Row]]] = {}
        for key in dict.fromkeys(key for row in section.rows for key in row.first.options if key.startswith(prefix)):
            by_value = _by_value(section.rows, partial(_effective, key=key))
            if len(by_value) > 1:
                values[key] = by_value
        for group in [list(values)] if name and values else [[key] for key in values]:
            bounded = _bounded(section.rows)
            fair = bounded and all(len({_effective(row, key) for row in bounded}) == 1 for key in group)
            last = group[0].rpartition(".")[2].replace("_", "-")
            found.append(
                Finding(
                    "note" if fair else "problem",
                    f"different-{name or last}",
                    f"{' '.join(f'{key} differs: {_listed(values[key])}.' for key in group)}"
                    + " Only upper bounds differ." * bool(fair),
                    advice,
                    section.name,
                )
            )
    return found


def _effective(row: Row, key: str) -> str:
    """An option's value, ``-`` where it has no effect or is unset."""
    options = row.first.options
    other, needed = ONLY_WITH.get(key, ("", None))
    if other in options and options[other] != needed and not options.get("trainer.per_task"):
        return "-"
    return shown(options[key]) if key in options else "-"


def _network(row: Row) -> str:
    return _told(row, ("model.backbone", "model.backbone_args"))


def _told(row: Row, keys: Iterable[str]) -> str:
    return " ".join(shown(row.first.options[key]) for key in keys if row.first.options.get(key)) or "-"


def _by_value(rows: Iterable[Row], value: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[value(row)].append(row)
    return dict(found)


def _listed(by_value: dict[str, list[Row]]) -> str:
    """``5 in WA, Replay; 170 in DER``"""
    return "; ".join(f"{value} in {_few(_labels(rows))}" for value, rows in by_value.items())


def _labels(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.label for row in rows))


def _titles(rows: Iterable[Row]) -> str:
    # A title has a comma of its own.
    return _few([row.title for row in rows], "; ")


def _few(names: Sequence[str], between: str = ", ") -> str:
    """The first names, and how many more there are."""
    return between.join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _tally(counts: dict[str, int]) -> str:
    """``9cb4034 (10 runs), 6d7d9c8 (1 run)``"""
    return ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in counts.items())


def _counted(values: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for value in values:
        found[value] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _names(text: Any) -> set[str]:
    """The names in a class's name: ``"tench, Tinca tinca"`` has two; case, spaces and underscores do not matter."""
    parts = (re.sub(r"[\W_]+", "", part).lower() for part in str(text).split(","))
    return {part for part in parts if part}


def _bounded(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row.upper_bound]


def _rows(comparison: Comparison) -> list[tuple[Section, Row]]:
    return [(section, row) for section in comparison.sections for row in section.rows]


def _runs(section: Section) -> list[Run]:
    return [run for row in section.rows for run in row.runs]


def _image(section: Section) -> float:
    """The largest stored image of a scenario, for rows that have none."""
    return max((run.image_bytes for run in _runs(section)), default=0.0)


def _mib(number: float) -> str:
    return f"{number / MIB:.3f}"
