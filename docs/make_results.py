"""Print the tables of docs/results.md from the result files of published runs.

    python docs/make_results.py results/cifar100_b0_10_short            # one table of strategies, and task by task
    python docs/make_results.py --memory results/cifar100_b0_10_memory  # a row for each strategy and memory, and areas
    python docs/make_results.py --across last_accuracy results/frozen   # strategies x subfolders, one number each
    python docs/make_results.py --few-shot results/omniglot_few_shot    # base and new classes, sessions, differences
    python docs/make_results.py --anytime OUT.png results/si_blurry     # and a picture: accuracy along streams

Means and sample standard deviations are over seeds, of each strategy's own evaluator. Below the tables stand the
command of one run of each row, versions, machines and commits.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cil.compare.comparison import FEW_SHOT, METRICS, Comparison, Row, Section, Spread, compare, difference, spread
from cil.compare.figures import styles
from cil.compare.runs import Run
from cil.compare.tables import count, percent, points
from cil.units import mib


def table(header: list[str], rows: Iterable[list[str]], words: int = 1) -> str:
    """Markdown; the first ``words`` columns are words, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows]) + "\n"


def seeds(row: Row) -> str:
    return ", ".join(str(run.seeds[0]) for run in row.runs)


def scores(row: Row, evaluator: str) -> list[str]:
    """Average, last, forgetting and the accuracy on the newest task."""
    return [
        percent(spread([run.content["metrics"][evaluator][key] for run in row.runs]))
        for key in (*METRICS, "new_task_accuracy")
    ]


def sizes(row: Row) -> list[str]:
    return [count(row.exemplars), mib(row.final_bytes("strict")), mib(row.final_bytes("paper"))]


def by_strategy(section: Section) -> None:
    """One table of strategies, one of accuracies task by task, one of the evaluators that are not the method's own."""
    rows = sorted(section.rows, key=lambda row: -(row.metric(METRICS[0]).mean or 0))
    own = [
        [f"{row.first.name} ({row.evaluator})", seeds(row), *scores(row, row.evaluator), *sizes(row)] for row in rows
    ]
    head = ["strategy (evaluator)", "seeds", "average", "last", "forgetting", "new task"]
    print(table([*head, "exemplars", "strict MiB", "paper MiB"], own, 2))
    tasks = [str(t + 1) for t in range(len(section.task_sizes))]
    curves = [[row.first.name, *map(percent, row.seen_accuracy)] for row in rows]
    print(table(["all classes seen, after task", *tasks], curves))
    others = [(row, name) for row in rows for name in row.first.content["metrics"] if name != row.evaluator]
    lines = [[f"{row.first.name} ({name})", *scores(row, name)] for row, name in others]
    print(table(["other evaluator", "average", "last", "forgetting", "new task"], lines))


def by_memory(section: Section) -> None:
    """A row for each memory and strategy, and the area under each strategy's curve."""
    lines = [
        [
            row.setting.text,
            row.label,
            seeds(row),
            *scores(row, row.evaluator)[:3],
            *sizes(row),
            f"{row.seconds.mean:.0f}",
        ]
        for setting in section.settings
        for row in section.at(setting)
    ]
    head = ["memory", "strategy", "seeds", "average", "last", "forgetting", "exemplars", "strict MiB", "paper MiB"]
    print(table([*head, "seconds"], lines, 3))
    curves = []
    for curve in section.curves:
        own = curve.measures[section.convention]
        values = (own.area_average, own.area_last, own.normalised_average, own.normalised_last)
        if None not in values:
            areas = [f"{value:.2f}" for value in values[:2]] + [f"{100 * value:.1f}" for value in values[2:]]
            ends = [f"{own.low:.2f} to {own.high:.2f}", *areas, f"{own.apm_start:.2f}", f"{own.apm_end:.2f}"]
            curves.append([curve.label, *ends])
    head = ["curve", f"MiB {section.convention}", "AUC-A", "AUC-L", "mean A %", "mean L %", "APM-S", "APM-E"]
    print(table(head, curves))


def by_session(section: Section) -> None:
    """Base and new classes at the end, accuracy and harmonic mean session by session, differences to ProtoNet."""
    rows = sorted(section.rows, key=lambda row: -(row.metric("harmonic_mean").mean or 0))
    keys = (*FEW_SHOT[:3], "false_negative_rate", "false_positive_rate", "performance_drop", METRICS[0])
    lines = [
        [row.label, str(len(row.runs)), *(percent(row.metric(key)) for key in keys), mib(row.final_bytes("strict"))]
        for row in rows
    ]
    head = ["strategy", "seeds", "base", "new", "harmonic mean", "new taken for base", "base taken for new", "drop"]
    print(table([*head, "average", "strict MiB"], lines))
    sessions = [str(session) for session in range(len(section.task_sizes))]
    for name in ("accuracy", "harmonic_mean"):
        told = [[row.label, *map(percent, _sessions(row, name))] for row in rows]
        print(table([f"{name.replace('_', ' ')} after session", *sessions], told))
    base = next((row for row in rows if row.first.name == "ProtoNet"), rows[0])
    compared = ("harmonic_mean", "new_accuracy", "base_accuracy", "last_accuracy")
    told = []
    for row in rows:
        if row is base:
            continue
        pairs = [difference(row, base, metric) for metric in compared]
        cells = [f"{points(p.mean)} ({points(p.low)} to {points(p.high)})" for p in pairs]
        told.append([f"{row.label} - {base.label}", *cells])
    print(table(["difference, 95 % interval", *(metric.replace("_", " ") for metric in compared)], told))


def _sessions(row: Row, name: str) -> list[Spread]:
    each = [run.content["few_shot"]["metrics"][row.evaluator][name] for run in row.runs]
    return [spread(values) for values in zip(*each, strict=True)]


def across(comparison: Comparison, metric: str, folder: Path) -> None:
    """A row for each strategy and memory, a column for each folder of result files, with one metric in percent."""
    found: dict[tuple[str, str], dict[str, list[tuple[Row, Run]]]] = {}
    for row in comparison.rows:
        cells = found.setdefault((row.label, row.setting.text), {})
        for run in row.runs:
            cells.setdefault(Path(run.file).relative_to(folder).parts[0], []).append((row, run))
    columns = sorted({column for cells in found.values() for column in cells}, key=by_numbers)
    lines = []
    for (label, memory), cells in found.items():
        values = {name: [run.number(row.evaluator, metric) for row, run in pairs] for name, pairs in cells.items()}
        told = [percent(spread(values[column])) if column in values else "" for column in columns]
        rows = [row for pairs in cells.values() for row, _ in pairs]
        seconds = spread([run.seconds for pairs in cells.values() for _, run in pairs]).mean
        lines.append([label, memory, *told, mib(max(row.final_bytes("strict") for row in rows)), f"{seconds:.0f}"])
    print(metric)
    print(table(["strategy", "memory", *columns, "strict MiB", "seconds"], lines, 2))


def anytime(comparison: Comparison, folder: Path, out: Path) -> None:
    """Draw accuracy over images seen, a panel for each folder: means over seeds, shaded by the standard deviation."""
    from matplotlib.figure import Figure

    found: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {}
    for row in comparison.rows:
        for run in row.runs:
            seen = np.array(run.content["stream"]["images_seen"])
            accuracy = 100 * np.array(run.content["metrics"][row.evaluator]["seen_accuracy"])
            panel = found.setdefault(Path(run.file).relative_to(folder).parts[0], {})
            panel.setdefault(row.label, []).append((seen, accuracy))
    looks = styles(comparison)
    columns, rows = min(4, len(found)), -(-len(found) // 4)
    figure = Figure((3.2 * columns, 0.5 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for place in axes.flat[len(found) :]:
        place.set_axis_off()
    for place, name in zip(axes.flat, sorted(found, key=by_numbers), strict=False):
        for label, curves in found[name].items():
            # All are measured at the same numbers of images; the ends of phases, which differ, are left out.
            x = sorted(set.intersection(*(set(seen.tolist()) for seen, _ in curves)))
            y = np.array([np.interp(x, seen, accuracy) for seen, accuracy in curves])
            mean, error = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else np.zeros(len(x))
            place.plot(x, mean, color=looks[label].light, label=label)
            place.fill_between(x, mean - error, mean + error, color=looks[label].light, alpha=0.15, lw=0)
        place.set(title=name.replace("_", " "), xlabel="images seen, thousands", ylim=(0, 100))
        place.xaxis.set_major_formatter(lambda seen, _: f"{seen / 1000:g}")
    for place in axes[:, 0]:
        place.set_ylabel("accuracy, exposed classes, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(looks), frameon=False)
    figure.savefig(out, dpi=110)


def by_numbers(name: str) -> list[tuple[int, str]]:
    """What names are sorted by so that the numbers in them count as numbers."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def origin(comparison: Comparison) -> None:
    """Where the numbers come from."""
    runs = [run for row in comparison.rows for run in row.runs]
    for row in comparison.rows:
        print(f"    {row.first.content['command']}")
    versions = sorted({json.dumps({**run.content["versions"], "commit": "-"}) for run in runs})
    machines = sorted({json.dumps(run.content["machine"]) for run in runs})
    commits = sorted({str(run.content["versions"]["commit"]) for run in runs})
    prints = sorted({run.content["fingerprint"] for run in runs})
    print("\n".join(["", *versions, *machines, f"commits {commits}", f"fingerprints {prints}"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="of result files, or of a packed one")
    parser.add_argument("--memory", action="store_true", help="a row for each memory, and areas")
    parser.add_argument("--across", metavar="METRIC", help="strategies x folders with this number of the results")
    parser.add_argument("--few-shot", action="store_true", help="base and new classes, session by session")
    parser.add_argument("--anytime", metavar="OUT.png", type=Path, help="draw accuracy along streams")
    arguments = parser.parse_args()
    comparison = compare(arguments.folder)
    for item in comparison.left_out:
        print(f"left out: {item.file}: {item.reason}", file=sys.stderr)
    first = arguments.folder[0]
    folder = first.parent if first.is_file() else first  # what is packed lies, by name, in the folder of its file
    if arguments.anytime:
        anytime(comparison, folder, arguments.anytime)
        return
    if arguments.across:
        across(comparison, arguments.across, folder)
    else:
        for section in comparison.sections:
            chosen = by_memory if arguments.memory else by_session if arguments.few_shot else by_strategy
            chosen(section)
    origin(comparison)


if __name__ == "__main__":
    main()
