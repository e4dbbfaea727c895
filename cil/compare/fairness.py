"""What makes a comparison unfair, or limits what may be concluded from it.

Each check is a generator whose docstring is its promise, over one scenario or over the whole comparison; ``CHECKS``
lists them. A ``problem`` means that a difference in accuracy may have another cause than the methods; a ``note`` is
something to know when reading. Identifiers are stable, so that scripts can look for them. Upper bounds take no part in
what concerns memory.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from itertools import combinations
from typing import Any, Literal, TypeVar

from cil.compare.comparison import Comparison, Row, Section, shown
from cil.compare.runs import Run
from cil.learning.best import TOLD
from cil.memory.ledger import STORED
from cil.units import mib

Level = Literal["problem", "note"]
Value = TypeVar("Value", bound=Hashable)
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


Check = Callable[[Comparison], Iterator[Finding]]


def findings(comparison: Comparison) -> list[Finding]:
    """What all checks find, problems first."""
    found = [finding for check in CHECKS for finding in check(comparison)]
    return sorted(found, key=lambda finding: finding.level != "problem")


def problem(id: str, text: str, advice: str) -> Finding:
    """What may explain a difference in accuracy."""
    return Finding("problem", id, text, advice)


def note(id: str, text: str, advice: str) -> Finding:
    """What is good to know."""
    return Finding("note", id, text, advice)


def in_each_section(check: Callable[[Section], Iterator[Finding]]) -> Check:
    """The check of one scenario as a check of a comparison; what it finds bears the scenario's name."""

    @wraps(check)
    def checked(comparison: Comparison) -> Iterator[Finding]:
        for section in comparison.sections:
            for finding in check(section):
                yield replace(finding, scenario=section.name)

    return checked


# --- the same tasks ---------------------------------------------------------------------------------------------------


def scenarios(comparison: Comparison) -> Iterator[Finding]:
    """Methods that were run on data or class orders of one name but not the same are a problem; several scenarios that
    each have all methods, or bear different names, are a note."""
    by_name: dict[str, list[Section]] = defaultdict(list)
    for section in comparison.sections:
        by_name[section.name].append(section)
    for name, sections in by_name.items():
        if len({frozenset(row.label for row in section.rows) for section in sections}) > 1:
            parts = [f"{_few(_labels(section.rows))} on {section.fingerprint[:8]}" for section in sections]
            yield problem(
                "different-fingerprints",
                f"'{name}' is not one scenario: the runs differ in {_difference(sections)} ({'; '.join(parts)}).",
                "Each fingerprint has tables of its own. Run all methods on the same images, order and tasks.",
            )
    if len(comparison.sections) > 1:
        parts = [f"{section.name} ({section.fingerprint[:8]})" for section in comparison.sections]
        yield note(
            "several-scenarios",
            f"There are {len(parts)} scenarios: {_few(parts)}.",
            "Each has tables of its own; nothing is compared or averaged across them.",
        )


def _difference(sections: Sequence[Section]) -> str:
    """In what scenarios of one name differ, as far as the files tell."""
    contents = [section.rows[0].first.content for section in sections]
    told = [
        name
        for name, values in (
            ("task sizes", [content["scenario"]["task_sizes"] for content in contents]),
            ("class order", [content["scenario"].get("class_order") for content in contents]),
            ("image size", [content["config"].get("image_size") for content in contents]),
            ("training images of a class", [content["config"].get("train_per_class") for content in contents]),
        )
        if any(value != values[0] for value in values)
    ]
    return " and ".join(told) or "pixels or labels"


# --- the same memory --------------------------------------------------------------------------------------------------


@in_each_section
def budgets(section: Section) -> Iterator[Finding]:
    """Every run with a stated budget carries, at the end and in the budget's convention, what the budget says, give or
    take one stored image for each class; one to be met at every task is nowhere exceeded by more. A method that keeps
    no image, or all of them already, cannot fill a budget, so that it falls short is a note."""
    for row in _bounded(section.rows):
        if row.setting.kind != "budget":
            continue
        allowed, convention = row.setting.number, row.setting.convention
        # Rows that have no image take the scenario's largest.
        image = max(run.image_bytes for run in row.runs) or max(run.image_bytes for run in _runs(section))
        room = image * sum(section.task_sizes)
        worst = max((run.task_bytes[-1][convention] for run in row.runs), key=lambda end: abs(end - allowed))
        peak, file = max(((_peak(run, convention), run.file) for run in row.runs), key=lambda item: item[0])
        if abs(worst - allowed) > room:
            short = worst < allowed and all(run.full for run in row.runs)
            yield (note if short else problem)(
                "budget-not-met",
                f"{row.title} carries {mib(worst, 3)} MiB ({convention}) at the end where the budget says "
                f"{mib(allowed, 3)} MiB, which is {mib(abs(worst - allowed), 3)} MiB too "
                f"{'much' if worst > allowed else 'little'}.",
                "It has no further image to fill the room with: read it as a method that needs less."
                if short
                else "Plan again with --dry-run, or name the budget that is carried.",
            )
        elif row.setting.align == "always" and peak - allowed > room:
            yield problem(
                "budget-exceeded",
                f"{file} ({row.title}) carries up to {mib(peak, 3)} MiB where {mib(allowed, 3)} MiB are allowed at "
                "every task.",
                "Plan again with --dry-run.",
            )


@in_each_section
def unspent(section: Section) -> Iterator[Finding]:
    """Images that a row was allowed and does not keep at the end are told with their number: every class gets as many,
    so that some are left over, or there are no more of a class. What a budget misses by more than one image for each
    class is told by the check of budgets."""
    left_over: list[tuple[int, str]] = []
    too_few: list[tuple[int, str]] = []
    for row in _bounded(section.rows):
        run = max(row.runs, key=_unspent)
        images, n_seen = _unspent(run), run.content["tasks"][-1]["n_seen"]
        stated = row.setting.kind == "budget"
        if images and (not stated or images <= n_seen):
            size = f", {mib(images * _cost(run), 3)} MiB" * stated
            short = run.full or images > n_seen
            told = (images, f"{row.title}: {images} image{'s' * (images > 1)}{size}")
            (too_few if short else left_over).append(told)
    for found, why in (
        (left_over, "Every class gets as many images, which leaves room for at most one more of each"),
        (too_few, "Classes have fewer images than their share, which leaves room"),
    ):
        if found:
            listed = _few([text for _, text in sorted(found, key=lambda item: -item[0])], "; ")
            yield note("unspent-memory", f"{why}: {listed}.", "Read these rows as ones that need a little less memory.")


@in_each_section
def budget_conventions(section: Section) -> Iterator[Finding]:
    """Budgets of nearly the same bytes (within one percent) that count by another convention, are met at another time,
    or are a little apart are different memories, and are told: the first two as a problem."""
    for pair in combinations([setting for setting in section.settings if setting.kind == "budget"], 2):
        low, high = sorted(setting.number for setting in pair)
        if high - low > NEARLY_EQUAL * high:
            continue
        names = [f"{setting.text} ({setting.number} bytes: {_few(_labels(section.at(setting)))})" for setting in pair]
        text = f"{' and '.join(names)} are shown as different memories."
        advice = "Give all methods one budget, with the same --memory.convention and --memory.align."
        if len({(setting.convention, setting.align) for setting in pair}) > 1:
            yield problem("different-budget-conventions", text, advice)
        else:
            yield note("nearly-equal-budgets", text, advice)


@in_each_section
def equal_exemplars(section: Section) -> Iterator[Finding]:
    """Methods with the same number of exemplars and no stated budget carry the same strict bytes at the end, give or
    take one stored image: equal exemplars are not equal memory."""
    for setting in section.settings:
        if setting.kind not in ("none", "exemplars", "per_class"):
            continue
        rows = sorted(section.at(setting), key=lambda row: row.final_bytes("strict"))
        low, high = rows[0].final_bytes("strict"), rows[-1].final_bytes("strict")
        if high - low > max(run.image_bytes for row in rows for run in row.runs):
            yield problem(
                "unequal-memory",
                f"With {setting.text} each, {rows[0].label} carries {mib(low, 3)} MiB and {rows[-1].label} "
                f"{mib(high, 3)} MiB (strict) at the end: equal exemplars are not equal memory.",
                "State a budget in bytes (--memory.budget), or compare the curves over memory.",
            )


@in_each_section
def memory_ranges(section: Section) -> Iterator[Finding]:
    """Areas under memory curves whose ranges differ by more than one percent are named; so are curves with two points
    at one memory, which have no area."""
    own = {curve.label: curve.measures[section.convention] for curve in section.curves}
    ranges = [
        f"{label} {own[label].low:.2f} to {own[label].high:.2f} MiB" for label in own if own[label].not_comparable
    ]
    if ranges:
        yield note(
            "different-memory-ranges",
            f"Areas under the memory curves cover different ranges: {_few(ranges)}.",
            "Compare areas only between methods whose ranges agree; the table marks the others.",
        )
    double = [c.label for c in section.curves if len(c.rows) > 1 and own[c.label].area_average is None]
    if double:
        yield note(
            "repeated-memory",
            f"{_few(double)} has two points at one memory and so no area.",
            "Compare fewer settings at once.",
        )


@in_each_section
def exemplar_free(section: Section) -> Iterator[Finding]:
    """A method that says it keeps no exemplars keeps none after any task."""
    for row in section.rows:
        for run in row.runs:
            most = max(task["exemplars"] for task in run.content["tasks"])
            if run.exemplar_free and most:
                yield problem(
                    "exemplars-in-exemplar-free",
                    f"{run.file} ({row.title}) says it is exemplar-free and keeps {most} exemplars.",
                    "Run it with --memory.exemplars 0, or list it among the methods with exemplars.",
                )


@in_each_section
def ledgers(section: Section) -> Iterator[Finding]:
    """The bytes of every task add up: no category is negative, and none is missing from the strict total."""
    for row in section.rows:
        for run in row.runs:
            worst = max((measured.get("other", 0) for measured in run.task_bytes), key=abs)
            negative = {name for measured in run.task_bytes for name, size in measured.items() if size < 0} - {"other"}
            if negative:
                yield problem(
                    "bytes-do-not-add-up",
                    f"{run.file} ({row.title}): less than 0 bytes of {_few(sorted(negative))}.",
                    "Measure again with the current version; do not quote its memory.",
                )
            if worst:
                yield problem(
                    "bytes-do-not-add-up",
                    f"{run.file} ({row.title}): strict bytes and the sum of their categories are {worst} apart.",
                    "Measure again with the current version; do not quote its memory.",
                )


# --- the same training ------------------------------------------------------------------------------------------------


@in_each_section
def training(section: Section) -> Iterator[Finding]:
    """Every option of the trainer that has an effect has one value in all rows; one that only an upper bound sets
    differently is a note. The identifier names the option: different-epochs, different-batch-size, different-lr."""
    return _different(
        section, "trainer.", "Train all methods under one protocol, or say in the text that this differs."
    )


@in_each_section
def augmentation(section: Section) -> Iterator[Finding]:
    """Every option of the augmentation has one value in all rows."""
    advice = "Use one augmentation: it moves accuracy by as much as methods do."
    return _different(section, "augmentation.", advice, name="augmentation")


@in_each_section
def image_size(section: Section) -> Iterator[Finding]:
    """Images are resized alike in all rows."""
    return _different(section, "image_size", "Use one --image_size.")


@in_each_section
def precision(section: Section) -> Iterator[Finding]:
    """All rows compute in one precision."""
    return _different(section, "precision", "Use one --precision.")


@in_each_section
def backbones(section: Section) -> Iterator[Finding]:
    """Methods with one network all have the same one. A method whose network grows may have another at a stated budget,
    which is how it meets it (a note), and may not without one."""
    rows = _bounded(section.rows)
    traded = [row for row in rows if row.first.grows and row.setting.kind == "budget"]
    fixed = [row for row in rows if row not in traded]
    if by_network := _divided(fixed, _network):
        yield problem(
            "different-backbones",
            f"The network differs: {_listed(by_network)}.",
            "Use one --model.backbone, unless a method's own growth is paid for under a stated budget.",
        )
    usual = {_network(row) for row in fixed}
    other = [row for row in traded if _network(row) not in usual]
    if usual and other:
        yield note(
            "backbone-spent-as-memory",
            f"Growing methods meet the budget with another network: {_listed(_by_value(other, _network))}.",
            "This is the protocol of Zhou et al., ICLR 2023; say so beside the table.",
        )


@in_each_section
def heads(section: Section) -> Iterator[Finding]:
    """Another kind of head is told as a note, since some methods are defined with one."""
    if by_head := _divided(section.rows, partial(_told, keys=("model.head", "model.head_args"))):
        yield note(
            "different-heads",
            f"The head differs: {_listed(by_head)}.",
            "Say so where a method's head is not part of it.",
        )


# --- the same knowledge -----------------------------------------------------------------------------------------------


@in_each_section
def pretraining(section: Section) -> Iterator[Finding]:
    """Either all rows of a scenario start from weights trained on one list of classes, or none does; rows that do not
    say count as untrained."""
    if by_classes := _divided(section.rows, lambda row: tuple(sorted(_pretrained(row)))):
        parts = [f"{len(classes) or 'no'} classes in {_few(_labels(rows))}" for classes, rows in by_classes.items()]
        yield problem(
            "different-pretraining",
            f"The classes that initial weights were trained on differ: {'; '.join(parts)}.",
            "Start all methods from the same weights.",
        )


@in_each_section
def pretraining_overlap(section: Section) -> Iterator[Finding]:
    """The classes that initial weights were trained on, where declared, are none of the stream's; names are compared
    without case and punctuation, and synonyms after a comma count."""
    for overlap, rows in _by_value(section.rows, _overlap).items():
        if overlap:
            yield problem(
                "pretraining-overlap",
                f"{_titles(rows)}: the initial weights were trained on {len(overlap)} of the stream's classes "
                f"({_few(overlap)}).",
                "Use weights trained without these classes, or do not call them new.",
            )


@in_each_section
def selection(section: Section) -> Iterator[Finding]:
    """No run chose its model by test images: it reports the last epoch, or the best on images held out for that."""
    for row in section.rows:
        chosen = row.first.content.get("selected_by") or TOLD["last"]
        if chosen not in (TOLD["last"], TOLD["validation"]):
            yield problem(
                "test-data-selection",
                f"{row.title} reports a model selected by '{chosen}'.",
                "Report the last epoch, or select on images held out from training for all methods.",
            )


# --- enough, and the same, runs ---------------------------------------------------------------------------------------


@in_each_section
def single_seed(section: Section) -> Iterator[Finding]:
    """Every row has at least two seeds: one is an example, not a comparison."""
    if alone := [row for row in section.rows if len(row.runs) < 2]:
        yield problem(
            "single-seed",
            f"One seed only: {_titles(alone)}.",
            "Run further seeds (--seed 1, --seed 2): without them there is no deviation and no interval.",
        )


@in_each_section
def seeds(section: Section) -> Iterator[Finding]:
    """Rows of one memory have the same seeds; differences are paired over common ones only."""
    for setting in section.settings:
        if by_seeds := _divided(section.at(setting), lambda row: ", ".join(seed_text(run) for run in row.runs)):
            yield note(
                "different-seeds",
                f"At {setting.text}, seeds differ: {_listed(by_seeds)}.",
                "Run all methods with the same seeds: only common ones are paired.",
            )


@in_each_section
def draws(section: Section) -> Iterator[Finding]:
    """Where each run's seed draws the tasks, all methods of one memory saw the same draws."""
    for setting in section.settings:
        seen = _divided(section.at(setting), lambda row: ", ".join(sorted({_drawn(run) for run in row.runs})))
        if seen:
            yield problem(
                "different-draws",
                f"At {setting.text}, seeds or what they drew differ: {_listed(seen)}.",
                "Run all methods with the same seeds and one version: their means are over the same tasks then.",
            )


def repeated(comparison: Comparison) -> Iterator[Finding]:
    """An experiment that was given twice with the same seeds is counted once; that its numbers differ is a problem."""
    for kept, dropped, agree in comparison.repeated:
        both = f"{kept} and {dropped} are the same experiment with the same seeds and"
        if agree:
            yield note("repeated-run", f"{both} agree; the first is used.", "Give it once.")
        else:
            yield problem(
                "repeated-run-differs",
                f"{both} do not agree; the first is used.",
                "Find out which is right: versions, machine or code changed the numbers.",
            )


def left_out(comparison: Comparison) -> Iterator[Finding]:
    """Result files that are not compared are named with the reason; repeated ones by a check of their own."""
    doubles = {dropped for _, dropped, _ in comparison.repeated}
    for item in comparison.left_out:
        if item.file not in doubles:
            yield note("left-out", f"{item.file} is left out: {item.reason}.", "Finish it, or do not name it.")


@in_each_section
def versions(section: Section) -> Iterator[Finding]:
    """Python and packages have one version in all runs of a scenario."""
    runs = _runs(section)
    for name in dict.fromkeys(name for run in runs for name in run.content["versions"] if name != "commit"):
        if told := _tally(str(run.content["versions"].get(name)) for run in runs):
            yield note(
                "different-versions",
                f"{name} differs between runs: {told}.",
                "Numbers may differ in the last digits; repeat one run under both to see how much.",
            )


@in_each_section
def commits(section: Section) -> Iterator[Finding]:
    """All runs of a scenario come from one commit, with nothing uncommitted."""
    by_file = {run.file: str(run.content["versions"].get("commit")) for run in _runs(section)}
    if told := _tally(by_file.values()):
        yield note(
            "different-commits",
            f"Runs come from different commits: {told}.",
            "Check that nothing between them changes numbers, or run again at one.",
        )
    if dirty := [file for file, commit in by_file.items() if commit.endswith("-dirty")]:
        yield note(
            "uncommitted-changes",
            f"The source had uncommitted changes in {len(dirty)} runs: {_few(dirty)}.",
            "Commit, then run again: nobody else can run this code.",
        )


@in_each_section
def machines(section: Section) -> Iterator[Finding]:
    """All runs of a scenario were computed on one kind of machine with as many threads, so their seconds compare."""
    if told := _tally(machine_text(run) for run in _runs(section)):
        yield note(
            "different-machines",
            f"Runs were computed on different machines: {told}.",
            "Do not compare their seconds.",
        )


CHECKS: tuple[Check, ...] = (
    *(scenarios, budgets, unspent, budget_conventions, equal_exemplars, exemplar_free, ledgers, training, augmentation),
    *(image_size, precision, backbones, pretraining, pretraining_overlap, selection, single_seed, repeated),
    *(draws, memory_ranges, heads, seeds, versions, commits, machines, left_out),
)


# --- words ------------------------------------------------------------------------------------------------------------


def seed_text(run: Run) -> str:
    """``0``, or all three where they differ."""
    init, data, exemplars = run.seeds
    return str(init) if init == data == exemplars else f"{init}/{data}/{exemplars}"


def _drawn(run: Run) -> str:
    """``0 on c35388b1``, seed and fingerprint, where the seed drew the tasks; empty elsewhere."""
    family = run.content["scenario"].get("family")
    return f"{seed_text(run)} on {run.content['fingerprint'][:8]}" if family else ""


def machine_text(run: Run) -> str:
    """Processor or GPU, device and threads."""
    machine = run.content["machine"]
    return f"{machine.get('name')}, {machine.get('device')}, threads {machine.get('threads')}"


def _different(section: Section, prefix: str, advice: str, name: str | None = None) -> Iterator[Finding]:
    """A finding for each option that differs within a scenario, or one for all of them under a common name."""
    keys = dict.fromkeys(key for row in section.rows for key in row.first.options if key.startswith(prefix))
    values = {key: found for key in keys if (found := _divided(section.rows, partial(_effective, key=key)))}
    bounded = _bounded(section.rows)
    for group in [list(values)] if name and values else [[key] for key in values]:
        fair = bounded and not any(_divided(bounded, partial(_effective, key=key)) for key in group)
        told = " ".join(f"{key} differs: {_listed(values[key])}." for key in group)
        last = group[0].rpartition(".")[2].replace("_", "-")
        yield (note if fair else problem)(
            f"different-{name or last}", told + " Only upper bounds differ." * bool(fair), advice
        )


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


def _by_value(rows: Iterable[Row], value: Callable[[Row], Value]) -> dict[Value, list[Row]]:
    found: dict[Value, list[Row]] = defaultdict(list)
    for row in rows:
        found[value(row)].append(row)
    return dict(found)


def _divided(rows: Iterable[Row], value: Callable[[Row], Value]) -> dict[Value, list[Row]]:
    """Rows by value where they have several; empty where all have one."""
    found = _by_value(rows, value)
    return found if len(found) > 1 else {}


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


def _tally(values: Iterable[str]) -> str:
    """``9cb4034 (10 runs), 6d7d9c8 (1 run)``; empty where all are the same."""
    counts = Counter(values).most_common()
    told = ", ".join(f"{value} ({count} run{'s' * (count > 1)})" for value, count in counts)
    return told if len(counts) > 1 else ""


def _pretrained(row: Row) -> list[str]:
    """The classes that initial weights were trained on, as declared."""
    return [str(text) for text in row.first.content.get("pretrained_classes") or []]


def _overlap(row: Row) -> tuple[str, ...]:
    """Those that are the stream's, without classes of its first task that an earlier run declares to have learned."""
    found: dict[str, None] = {}
    for run in row.runs:
        stream = run.content["scenario"].get("class_names") or []
        first = stream[: run.content["scenario"]["task_sizes"][0]]
        own = {*(run.content.get("pretrained_stream") or [])} & {*first}
        known = {name for text in _pretrained(row) if text not in own for name in _names(text)}
        found |= dict.fromkeys(str(text) for text in stream if _names(text) & known)
    return tuple(found)


def _names(text: Any) -> set[str]:
    """The names in a class's name: ``"tench, Tinca tinca"`` has two; case, spaces and underscores do not matter."""
    parts = (re.sub(r"[\W_]+", "", part).lower() for part in str(text).split(","))
    return {part for part in parts if part}


def _bounded(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row.upper_bound]


def _runs(section: Section) -> list[Run]:
    return [run for row in section.rows for run in row.runs]


def _unspent(run: Run) -> int:
    """Images that were allowed and would still fit at the end."""
    setting, last = run.setting, run.content["tasks"][-1]
    if setting.kind == "budget":
        free = setting.number - run.task_bytes[-1][setting.convention]
        return max(0, int(free / _cost(run))) if last["exemplars"] else 0
    allowed = {"exemplars": setting.number, "per_class": setting.number * last["n_seen"]}
    return max(0, allowed.get(setting.kind, 0) - last["exemplars"])


def _cost(run: Run) -> float:
    """What an exemplar takes at the end on average, in bytes of the budget's convention."""
    last = run.content["tasks"][-1]
    kinds = ("exemplars",) if run.setting.convention == "paper" else STORED
    return sum(last["bytes"].get(kind, 0) for kind in kinds) / max(1, last["exemplars"])


def _peak(run: Run, convention: str) -> int:
    """The most that a run carries after any task."""
    return max(measured[convention] for measured in run.task_bytes)
