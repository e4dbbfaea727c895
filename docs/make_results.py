"""Print the tables of docs/results.md from the result files of published runs.

    python docs/make_results.py results/cifar100_b0_10_short

Each table has a row for each strategy: mean and sample standard deviation over its seeds, by its own evaluator.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cil.memory.ledger import mib

METRICS = ("average_incremental_accuracy", "last_accuracy", "forgetting", "new_task_accuracy")


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation of fractions, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def main(folder: Path) -> None:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        assert content["status"] == "complete", path
        runs[content["strategy"].rpartition(".")[2]].append(content)
    order = sorted(runs, key=lambda name: -statistics.mean(_metric(runs[name], METRICS[0])))
    rows, curves, others = [], [], []
    for name in order:
        own = runs[name]
        evaluator, last = own[0]["evaluator"], own[0]["tasks"][-1]
        seeds = ", ".join(str(run["seeds"]["init"]) for run in own)
        sizes = [mib(last["bytes"][key]) for key in ("strict", "paper")]
        scores = [spread(_metric(own, key)) for key in METRICS]
        rows.append([f"{name} ({evaluator})", seeds, *scores, str(last["exemplars"]), *sizes])
        by_task = zip(*(run["metrics"][evaluator]["seen_accuracy"] for run in own), strict=True)
        curves.append([name, *(spread(list(values)) for values in by_task)])
        for other in own[0]["accuracy"]:
            if other != evaluator:
                found = [[run["metrics"][other][key] for run in own] for key in METRICS]
                others.append([f"{name} ({other})", *(spread(values) for values in found)])
    sizes = ["exemplars", "strict MiB", "paper MiB"]
    print(table(["strategy (evaluator)", "seeds", "average", "last", "forgetting", "new task", *sizes], rows), "\n")
    tasks = len(curves[0]) - 1
    print(table(["all classes seen, after task", *(str(t + 1) for t in range(tasks))], curves), "\n")
    print(table(["other evaluator", "average", "last", "forgetting", "new task"], others), "\n")
    for name in order:
        print(f"    {runs[name][0]['command']}")
    versions = {json.dumps({**run["versions"], "commit": "-"}) for own in runs.values() for run in own}
    machines = {json.dumps(run["machine"]) for own in runs.values() for run in own}
    commits = sorted({str(run["versions"]["commit"]) for own in runs.values() for run in own})
    prints = sorted({run["fingerprint"] for own in runs.values() for run in own})
    print("\n".join(["", *versions, *machines, f"commits {commits}", f"fingerprints {prints}"]))


def _metric(runs: list[dict[str, Any]], key: str) -> list[float]:
    return [run["metrics"][run["evaluator"]][key] for run in runs]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
