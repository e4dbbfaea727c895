"""Runs side by side: a row for each method and memory, means over seeds, paired differences, curves over memory.

Runs that differ in seeds alone are one row. Rows are compared within one scenario, which is one fingerprint: the same
images, order of classes and tasks; or one family of them, in which each run's seed draws the tasks. Accuracies are
fractions, sizes bytes; what is undefined is None.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from cil.compare import classes, memory_curve
from cil.compare.result_files import LeftOut, read
from cil.compare.runs import UNSAID, Run, Setting
from cil.errors import unknown
from cil.machine.compute import PHASES
from cil.report import costs
from cil.units import MIB

METRICS = ("average_incremental_accuracy", "last_accuracy", "forgetting")
# What few-shot scenarios have beside these; after the last session.
FEW_SHOT = ("base_accuracy", "new_accuracy", "harmonic_mean", "performance_drop")
CONVENTIONS = ("strict", "paper")
LEVEL = 0.95
SHOWN_OPTIONS = 3
# Memory ranges that differ by more are not comparable by area.
SAME_RANGE = 0.01


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation for one seed, nothing where a value is undefined."""

    mean: float | None
    deviation: float | None
    n: int


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation (n - 1) of numbers, of which none may be undefined."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return Spread(None, None, len(values))
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass
class Row:
    """Runs that differ in seeds alone.

    Args:
        id: unique within a comparison.
        setting: the memory that was allowed.
        evaluator: whose numbers these are.
        runs: by seeds.
        label: the method, the options in which rows of its name differ, and the evaluator if it is not linear. Rows of
            one label differ in memory alone.
        differing: those options and their values.
    """

    id: str
    setting: Setting
    evaluator: str
    runs: list[Run]
    label: str = ""
    differing: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> Run:
        """Any of the runs will do for what all share."""
        return self.runs[0]

    @property
    def upper_bound(self) -> bool:
        """Whether every image is kept, so that no memory is comparable."""
        return bool(self.first.content["out_of_budget"])

    @property
    def title(self) -> str:
        """Label and memory, which together name a row within its scenario."""
        return f"{self.label}, {self.setting.text}"

    def values(self, metric: str) -> list[float | None]:
        """One number of each run, by seeds."""
        return [run.number(self.evaluator, metric) for run in self.runs]

    def metric(self, name: str) -> Spread:
        """Mean and deviation of a metric over seeds."""
        return spread(self.values(name))

    @property
    def seen_accuracy(self) -> list[Spread]:
        """Accuracy on all classes seen after each task, or each phase of a stream: T spreads."""
        rows = [[run.content["metrics"][self.evaluator]["seen_accuracy"][end] for end in run.ends] for run in self.runs]
        return [spread(values) for values in zip(*rows, strict=True)]

    @property
    def classes_seen(self) -> list[float]:
        """After each task, or each phase of a stream; the mean over seeds."""
        rows = [[run.content["tasks"][end]["n_seen"] for end in run.ends] for run in self.runs]
        return [statistics.mean(values) for values in zip(*rows, strict=True)]

    @property
    def seconds(self) -> Spread:
        """Over all tasks of a run."""
        return spread([run.seconds for run in self.runs])

    @property
    def exemplars(self) -> float:
        """At the end, the mean over seeds."""
        return statistics.mean(run.content["tasks"][-1]["exemplars"] for run in self.runs)

    @cached_property
    def task_bytes(self) -> list[dict[str, float]]:
        """Bytes after each task, or phase, by category, with ``strict`` and ``paper``; the mean over seeds."""
        out = []
        for measured in zip(*([run.task_bytes[end] for end in run.ends] for run in self.runs), strict=True):
            keys = [key for key in measured[0] if all(key in other for other in measured)]
            keys += sorted({key for other in measured for key in other} - set(keys))
            out.append({key: statistics.mean(other.get(key, 0) for other in measured) for key in keys})
        return out

    def final_bytes(self, convention: str) -> float:
        """Bytes carried at the end, the mean over seeds."""
        return self.task_bytes[-1][convention]

    def cost(self, key: str) -> float | None:
        """``training_bytes`` at their highest or ``inference_bytes`` at the end, mean over seeds; None if untold."""
        found = []
        for run in self.runs:
            told = [task[key] for task in run.content["tasks"] if task.get(key) is not None]
            if run.content["tasks"][-1].get(key) is None:
                return None
            sums = [sum(value.values()) if isinstance(value, dict) else value for value in told]
            found.append(max(sums) if key == "training_bytes" else sums[-1])
        return statistics.mean(found)

    @cached_property
    def costs(self) -> dict[str, float | None] | None:
        """Time and computing of a run, means over seeds; None if a run does not tell, as older files do not.

        Seconds by phase, under its name; ``images_per_second``, ``training_flops``, ``forward_flops`` of one image at
        the end, and ``process_bytes`` and ``device_bytes`` at their highest, None where they are not known.
        """
        told = [costs.of_tasks(run.content["tasks"]) for run in self.runs]
        if any(one is None for one in told):
            return None

        def mean(values: Iterable[float | None]) -> float | None:
            known = list(values)
            return None if None in known else statistics.mean(value for value in known if value is not None)

        found = [one for one in told if one is not None]
        names = ("images_per_second", "training_flops", "forward_flops", "process_bytes", "device_bytes")
        return {phase: mean(one.seconds[phase] for one in found) for phase in PHASES} | {
            name: mean(getattr(one, name) for one in found) for name in names
        }

    @property
    def confusion(self) -> list[list[float | None]]:
        """Share of the images of task i (row) predicted as a class of task j, after the last; the mean over seeds."""
        matrices = [run.content["task_confusion"][self.evaluator] for run in self.runs]
        # A stream's last phases may bring no class: nothing is taken for them, and they have no test images.
        n = max(map(len, matrices))
        padded = [
            [[*row, *[None if row[0] is None else 0.0] * (n - len(row))] for row in matrix]
            + [[None] * n] * (n - len(matrix))
            for matrix in matrices
        ]
        return [[spread(values).mean for values in zip(*lines, strict=True)] for lines in zip(*padded, strict=True)]

    @cached_property
    def class_accuracy(self) -> dict[str, Spread]:
        """Accuracy on each class after the last task, over seeds; empty if a run does not tell.

        Where seeds draw the classes, one that not every run saw is that of the others; the order is the first run's.
        """
        told = [classes.of_run(run, self.evaluator) for run in self.runs]
        names = dict.fromkeys(name for one in told for name in one) if all(told) else {}
        return {name: spread([one[name] for one in told if name in one]) for name in names}

    @property
    def class_means(self) -> dict[str, float]:
        """Class -> the mean of its accuracies."""
        return {name: one.mean for name, one in self.class_accuracy.items() if one.mean is not None}


@dataclass(frozen=True)
class Pair:
    """The first row minus the second, over the seeds that both have.

    ``low`` and ``high`` bound the 95 % confidence interval of the mean difference by Student's t; None for fewer than
    two pairs or an undefined value.
    """

    first: str
    second: str
    metric: str
    n: int
    mean: float | None
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> str:
        """What may be said: ``too few seeds``, ``clear`` if the interval leaves out 0, else ``open``."""
        return "too few seeds" if self.low is None else "clear" if self.clear else "open"


@dataclass(frozen=True)
class Measures:
    """A method's curve over memory in one convention, in the units of ``cil.compare.memory_curve``.

    ``low`` and ``high`` are the ends of its range in MiB, ``not_comparable`` the methods whose range differs.
    """

    low: float
    high: float
    area_average: float | None = None
    area_last: float | None = None
    normalised_average: float | None = None
    normalised_last: float | None = None
    apm_start: float | None = None
    apm_end: float | None = None
    not_comparable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """The rows of one label over their memory, smallest first; measures by convention."""

    label: str
    rows: tuple[str, ...]
    measures: dict[str, Measures]


@dataclass
class Section:
    """The rows of one scenario and what follows from them.

    ``fingerprint`` is the family's where each run's seed draws the tasks; ``task_sizes`` are then one run's.
    """

    name: str
    fingerprint: str
    task_sizes: list[int]
    rows: list[Row]
    convention: str = "strict"
    pairs: list[Pair] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)

    @property
    def few_shot(self) -> bool:
        """Whether the later tasks bring few images by design, so that base and new classes are told apart."""
        return all(run.content.get("few_shot") for row in self.rows for run in row.runs)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all its rows."""
        return METRICS + FEW_SHOT * self.few_shot

    def row(self, id: str) -> Row:
        """The row of this id."""
        return next(row for row in self.rows if row.id == id)

    @property
    def settings(self) -> list[Setting]:
        """All memories, from the least to the most."""
        return sorted({row.setting for row in self.rows}, key=lambda setting: setting.order)

    def at(self, setting: Setting) -> list[Row]:
        """The rows of one memory, best average first."""
        return [row for row in self.rows if row.setting == setting]


@dataclass
class Comparison:
    """All scenarios, and what was left out.

    ``repeated`` are pairs of files with the same experiment and seeds, of which the second was left out, with whether
    the two agree in every number.
    """

    sections: list[Section]
    left_out: list[LeftOut]
    evaluator: str | None = None
    repeated: list[tuple[str, str, bool]] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """Of all scenarios."""
        return [row for section in self.sections for row in section.rows]

    @property
    def labels(self) -> list[str]:
        """Methods in order of first appearance: what has a colour of its own."""
        return list(dict.fromkeys(row.label for row in self.rows))


def compare(places: Sequence[str | Path], evaluator: str | None = None) -> Comparison:
    """Read results and put them side by side.

    Args:
        places: as in :func:`cil.compare.result_files.read`.
        evaluator: whose numbers to compare; None: each method's own.

    Raises:
        UserError: nothing to read, or no run was scored by the evaluator.
    """
    runs, left_out = read(places)
    if evaluator is not None:
        scored = [run for run in runs if evaluator in run.content["metrics"]]
        if not scored:
            raise unknown("--evaluator", evaluator, {name for run in runs for name in run.content["metrics"]})
        left_out += [LeftOut(run.file, f"not scored by {evaluator}") for run in runs if run not in scored]
        runs = scored
    repeated: list[tuple[str, str, bool]] = []
    by_scenario: dict[tuple[str, int], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        group = by_scenario[run.scenario][_identity(run, evaluator)]
        twin = next((other for other in group if other.seeds == run.seeds), None)
        if twin is None:
            group.append(run)
        else:
            left_out.append(LeftOut(run.file, f"the experiment and seeds of {twin.file}"))
            repeated.append((twin.file, run.file, twin.content["metrics"] == run.content["metrics"]))
    sections = []
    for groups in by_scenario.values():
        rows = []
        for group in groups.values():
            group.sort(key=lambda run: run.seeds)
            rows.append(Row("", group[0].setting, evaluator or group[0].content["evaluator"], group))
        sections.append(_section(rows))
    sections.sort(key=lambda section: (section.name, section.fingerprint))
    comparison = Comparison(sections, left_out, evaluator, repeated)
    for number, row in enumerate(comparison.rows):
        row.id = f"row{number + 1}"
    for section in sections:
        compared = METRICS[:2] + FEW_SHOT * section.few_shot
        section.pairs = [pair for setting in section.settings for pair in _pairs(section.at(setting), compared)]
        section.curves = _curves(section)
    return comparison


def _identity(run: Run, evaluator: str | None) -> str:
    """Equal for runs that differ in seeds alone."""
    own = evaluator or run.content["evaluator"]
    return json.dumps([run.name, own, run.setting.order, run.options], sort_keys=True, default=str)


def _section(rows: list[Row]) -> Section:
    scenario = rows[0].first.content["scenario"]
    _label(rows)
    rows.sort(key=lambda row: (row.setting.order, -(row.metric(METRICS[0]).mean or 0), row.label))
    conventions = {row.setting.convention for row in rows if row.setting.kind == "budget"}
    convention = conventions.pop() if len(conventions) == 1 else CONVENTIONS[0]
    return Section(scenario["name"], rows[0].first.scenario[0], rows[0].first.task_sizes, rows, convention)


# --- labels -----------------------------------------------------------------------------------------------------------


def _label(rows: list[Row]) -> None:
    """Give every row a label: its name, and the options that tell rows of this name apart."""
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_name[row.first.name].append(row)
    for name, same in by_name.items():
        keys = differing(same)
        # A network that changes with the memory and with nothing else is how that memory was spent: one curve.
        others = [key for key in keys if not key.startswith("model.")]
        places = {json.dumps([row.setting.order, row.evaluator, _chosen(row, others)], default=str) for row in same}
        told = others if len(places) == len(same) else keys
        for row in same:
            row.differing = {key: row.first.options.get(key) for key in keys}
            values = {key: row.first.options.get(key, UNSAID.get(key)) for key in told[:SHOWN_OPTIONS]}
            parts = [f"{short(key, told)} {shown(value)}" for key, value in values.items() if value is not None]
            parts += ["..."] * (len(told) > SHOWN_OPTIONS)
            parts += [row.evaluator] * (row.evaluator != "linear")
            row.label = f"{name} ({'; '.join(parts)})" if parts else name
        _number_twins(same, told)


def _number_twins(rows: list[Row], told: list[str]) -> None:
    """A label that leaves out options may fit several variants; number those."""
    by_label: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_label[row.label][json.dumps(_chosen(row, told), default=str)].append(row)
    for label, variants in by_label.items():
        for number, variant in enumerate(variants.values(), 1):
            for row in variant:
                row.label = f"{label} #{number}" if len(variants) > 1 else label


def _chosen(row: Row, keys: list[str]) -> list[Any]:
    return [row.first.options.get(key) for key in keys]


def differing(rows: Sequence[Row]) -> list[str]:
    """The options that do not have one value in all rows, in the order in which they are set."""
    keys = dict.fromkeys(key for row in rows for key in row.first.options)
    values = {
        key: {json.dumps(row.first.options.get(key), sort_keys=True, default=str) for row in rows} for key in keys
    }
    return [key for key in keys if len(values[key]) > 1]


def short(key: str, among: Sequence[str]) -> str:
    """An option without its group, where that leaves it distinct: ``strategy.temperature`` is ``temperature``."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else key


def shown(value: Any) -> str:
    """A value as a command line would write it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


# --- pairs ------------------------------------------------------------------------------------------------------------


def _pairs(rows: list[Row], metrics: Sequence[str]) -> list[Pair]:
    """Every two rows of one memory, the better average first."""
    bounded = [row for row in rows if not row.upper_bound]
    return [difference(a, b, metric) for metric in metrics for a, b in combinations(bounded, 2)]


def difference(first: Row, second: Row, metric: str) -> Pair:
    """The mean paired difference over common seeds and its 95 % interval, mean +- t_{0.975, n-1} s / sqrt(n)."""
    theirs = {run.seeds: value for run, value in zip(second.runs, second.values(metric), strict=True)}
    steps = []
    for run, own in zip(first.runs, first.values(metric), strict=True):
        other = theirs.get(run.seeds)
        if own is not None and other is not None:
            steps.append(own - other)
    mean = statistics.fmean(steps) if steps else None
    if mean is None or len(steps) < 2:
        return Pair(first.id, second.id, metric, len(steps), mean, None, None)
    quantile = float(student.ppf((1 + LEVEL) / 2, len(steps) - 1))
    half = quantile * statistics.stdev(steps) / math.sqrt(len(steps))
    return Pair(first.id, second.id, metric, len(steps), mean, mean - half, mean + half)


# --- curves over memory -----------------------------------------------------------------------------------------------


def _curves(section: Section) -> list[Curve]:
    """A curve for each method with a memory: its rows from the smallest to the largest."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in section.rows:
        if not row.upper_bound:
            by_label[row.label].append(row)
    measures = {
        convention: _told_apart({label: _measures(rows, convention) for label, rows in by_label.items()})
        for convention in CONVENTIONS
    }
    curves = []
    for label, rows in by_label.items():
        rows.sort(key=lambda row: row.final_bytes(section.convention))
        own = {convention: measures[convention][label] for convention in CONVENTIONS}
        curves.append(Curve(label, tuple(row.id for row in rows), own))
    return curves


def _measures(rows: list[Row], convention: str) -> Measures:
    memory = [row.final_bytes(convention) / MIB for row in rows]
    low, high = min(memory), max(memory)
    average, last = ([mean for row in rows if (mean := row.metric(m).mean) is not None] for m in METRICS[:2])
    # Points at the same memory, such as 20 exemplars a class and 2000 in all, are no curve.
    if min(len(average), len(last), len(set(memory))) < len(memory):
        return Measures(low, high)
    start, end = memory_curve.accuracy_per_mib(memory, average)
    return Measures(
        low,
        high,
        area_average=_known(memory_curve.area(memory, average)),
        area_last=_known(memory_curve.area(memory, last)),
        normalised_average=_known(memory_curve.normalised_area(memory, average)),
        normalised_last=_known(memory_curve.normalised_area(memory, last)),
        apm_start=_known(start),
        apm_end=_known(end),
    )


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _told_apart(measures: dict[str, Measures]) -> dict[str, Measures]:
    """The same, each with the names of those whose range of memory differs too much to compare areas."""
    areas = {label: own for label, own in measures.items() if own.area_average is not None}
    return {
        label: replace(own, not_comparable=tuple(name for name, other in areas.items() if _apart(own, other)))
        if label in areas
        else own
        for label, own in measures.items()
    }


def _apart(a: Measures, b: Measures) -> bool:
    return any(abs(x - y) > SAME_RANGE * max(x, y) for x, y in ((a.low, b.low), (a.high, b.high)))
