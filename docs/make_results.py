"""Print the tables of docs/results.md from the result files of published runs.

    python docs/make_results.py results/cifar100_b0_10_short            # one table of strategies, and task by task
    python docs/make_results.py --memory results/cifar100_b0_10_memory  # a row for each strategy and memory, and areas
    python docs/make_results.py --across last_accuracy results/frozen   # strategies x scenarios, one number each

Means and sample standard deviations are over seeds, of each strategy's own evaluator. Below the tables stand the
command of one run of each row, versions, machines and commits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cil.compare.comparison import METRICS, Comparison, Row, Section, compare, spread
from cil.compare.tables import count, percent
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


def across(comparison: Comparison, metric: str) -> None:
    """A row for each strategy and memory, a column for each scenario, with one metric in percent."""
    names = list(dict.fromkeys((row.label, row.setting.text) for row in comparison.rows))
    lines = []
    for label, memory in names:
        found = [
            next((row for row in section.rows if (row.label, row.setting.text) == (label, memory)), None)
            for section in comparison.sections
        ]
        told = [percent(row.metric(metric)) if row else "" for row in found]
        some = [row for row in found if row]
        mean = sum(row.seconds.mean or 0 for row in some) / len(some)
        lines.append([label, memory, *told, mib(max(row.final_bytes("strict") for row in some)), f"{mean:.0f}"])
    print(metric)
    columns = [section.name for section in comparison.sections]
    print(table(["strategy", "memory", *columns, "strict MiB", "seconds"], lines, 2))


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
    parser.add_argument("folder", type=Path, nargs="+", help="of result files")
    parser.add_argument("--memory", action="store_true", help="a row for each memory, and areas")
    parser.add_argument("--across", metavar="METRIC", help="strategies x scenarios with this number of the results")
    arguments = parser.parse_args()
    comparison = compare(arguments.folder)
    for item in comparison.left_out:
        print(f"left out: {item.file}: {item.reason}", file=sys.stderr)
    if arguments.across:
        across(comparison, arguments.across)
    else:
        for section in comparison.sections:
            (by_memory if arguments.memory else by_strategy)(section)
    origin(comparison)


if __name__ == "__main__":
    main()
