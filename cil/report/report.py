"""What a run leaves for people and tools: ``results.json``, ``report.md`` and a table on the terminal."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cil.data.scenario import Scenario
from cil.evaluation import metrics, streaming
from cil.experiment.experiment import Experiment
from cil.experiment.provenance import FREE
from cil.experiment.resume import Record
from cil.learning import best
from cil.learning.strategy import Strategy
from cil.machine import distributed
from cil.memory.ledger import STATE, STORED
from cil.nets.pretrained import TIMM, Pretrained
from cil.report import sessions as few_shot_report
from cil.report import stream as stream_report
from cil.units import mib

SCHEMA = 1
PACKAGES = ("cil-framework", "torch", "torchvision", "numpy", "scikit-learn", "avalanche-lib")


def environment(experiment: Experiment) -> dict[str, Any]:
    """Versions and machine of this process: ``{"versions": ..., "machine": ...}``."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    backbone = experiment.outline.model.backbone
    if isinstance(backbone, Pretrained) and backbone.name.startswith(TIMM):
        versions["timm"] = importlib.metadata.version("timm")
    versions["commit"] = commit()
    device = experiment.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "versions": versions,
        "machine": {
            "device": str(device),
            "name": name,
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
            "precision": experiment.precision,
        },
    }


def accuracy_matrix(records: list[Record], evaluator: str, n_tasks: int) -> np.ndarray:
    """A (T, T): row t holds the accuracies after task t; NaN for tasks not learned yet."""
    matrix = np.full((n_tasks, n_tasks), np.nan)
    for record in records:
        matrix[record["task"]] = record["evaluators"][evaluator]["accuracy_row"]
    return matrix


def results(experiment: Experiment, records: list[Record]) -> dict[str, Any]:
    """The part of ``results.json`` that follows from the experiment and its tasks; see ``docs/results_schema.md``."""
    scenario = experiment.scenario
    strategy, budget = experiment.outline, experiment.limits().budget
    evaluators = experiment.scored_by(strategy)
    counts = scenario.test.counts(scenario.n_classes)
    sizes = np.array([counts[list(task.new)].sum() for task in scenario.tasks])
    matrices = {name: accuracy_matrix(records, name, len(scenario.tasks)) for name in evaluators}
    # On a stream, tasks are its phases wherever they are counted or compared.
    phased = {
        name: streaming.by_phase(matrix, sizes, scenario.phase_of_task) if scenario.streams else (matrix, sizes)
        for name, matrix in matrices.items()
    }
    last = records[-1]["evaluators"] if records else {}
    out = {
        "fingerprint": scenario.fingerprint,
        "scenario": {
            "name": scenario.name,
            "family": scenario.family,
            "task_sizes": [task.n_new for task in scenario.tasks],
            "class_order": list(scenario.class_order),
            "class_names": list(scenario.class_names),
        },
        "strategy": f"{type(strategy).__module__}.{type(strategy).__qualname__}",
        "name": strategy.label + " (oracle)" * (experiment.selected_on == "test"),
        "exemplar_free": strategy.exemplar_free,
        "budget": dataclasses.asdict(budget) if budget else None,
        "sized": None if experiment.sized is None else dict([experiment.sized]),
        "selected_by": best.TOLD[experiment.selected_on],
        "pretrained_classes": getattr(strategy.model.backbone, "pretrained_classes", None),
        "pretrained_stream": own_stream(strategy, scenario),
        "evaluator": strategy.evaluator,
        "out_of_budget": experiment.memory.unbounded,
        "accuracy": {name: matrix.tolist() for name, matrix in matrices.items()},
        "metrics": {
            name: {
                **metrics.summary(*phased[name]),
                "seen_accuracy": metrics.seen_accuracy(matrix, sizes).tolist(),
                "top5_last": last[name]["top5"] if last else None,
                "task_inference_last": last[name]["task_inference"] if last else None,
                "within_task_last": last[name]["within_task"] if last else None,
            }
            for name, matrix in matrices.items()
        },
        "per_class_accuracy": {name: scores["per_class"] for name, scores in last.items()},
        "task_confusion": {name: scores["task_confusion"] for name, scores in last.items()},
        "stream": stream_report.results(scenario, records, matrices, sizes, strategy.evaluator),
        "few_shot": few_shot_report.results(scenario, records, evaluators),
        "tasks": [_public(record) for record in records],
    }
    return jsonable(out)


def own_stream(strategy: Strategy, scenario: Scenario) -> list[str] | None:
    """Names of the classes of this very data set that the initial weights were trained on by an earlier run, as its
    export declares them; None where they come from elsewhere."""
    stream = getattr(strategy.model.backbone, "stream", None) or {}
    own = scenario.data_fingerprint and stream.get("data") == scenario.data_fingerprint
    return list(stream["classes"]) if own else None


def _public(record: Record) -> dict[str, Any]:
    top5 = {name: scores["top5"] for name, scores in record["evaluators"].items()}
    return {**{key: value for key, value in record.items() if key != "evaluators"}, "top5": top5}


def comparable(content: dict[str, Any]) -> dict[str, Any]:
    """``results.json`` less what may differ between two runs of one experiment: times, places, command, machine."""
    kept = {key: value for key, value in content.items() if key not in ("command", "machine", "started", "finished")}
    kept["config"] = {key: value for key, value in content["config"].items() if key not in FREE}
    kept["tasks"] = [
        {key: value for key, value in task.items() if key not in ("seconds", "images_per_second", "compute")}
        for task in content["tasks"]
    ]
    return kept


def jsonable(value: Any) -> Any:
    """The same with NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.floating, float)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def readable(value: Any, indent: str = "") -> str:
    """JSON for people and tools: a list or an object that holds no other is one line, such as a row of a matrix.

    Raises:
        ValueError: a number is not finite.
    """
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, (dict, list)) and item for item in items):
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(str(key))}: {readable(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + readable(item, inner) for item in value) + f"\n{indent}]"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one digit; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:.1f}"


def accuracy_rows(content: dict[str, Any], evaluator: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of one evaluator: accuracies by task or phase, classes, exemplars and MiB."""
    if content.get("stream"):
        return _phase_rows(content, evaluator)
    n = len(content["scenario"]["task_sizes"])
    header = ["after task", "classes", *(str(k + 1) for k in range(n)), "all seen", "exemplars", "MiB"]
    rows = []
    for task in content["tasks"]:
        row = content["accuracy"][evaluator][task["task"]]
        cells = [percent(value) if value is not None else "" for value in row]
        seen = percent(content["metrics"][evaluator]["seen_accuracy"][task["task"]])
        size = mib(task["bytes"]["strict"])
        rows.append([str(task["task"] + 1), str(task["n_seen"]), *cells, seen, str(task["exemplars"]), size])
    return header, rows


def _phase_rows(content: dict[str, Any], evaluator: str) -> tuple[list[str], list[list[str]]]:
    matrix = content["stream"]["accuracy"][evaluator]
    header = ["after phase", "images", "classes", *(str(q + 1) for q in range(len(matrix))), "all seen", "exemplars"]
    rows = []
    for end in stream_report.phases(content):
        cells = ["" if value is None else percent(value) for value in matrix[end["phase"]]]
        counts = [str(end["phase"] + 1), str(end["images_seen"]), str(end["n_seen"])]
        seen = percent(content["metrics"][evaluator]["seen_accuracy"][end["task"]])
        rows.append([*counts, *cells, seen, str(end["exemplars"]), mib(end["bytes"]["strict"])])
    return [*header, "MiB"], rows


SUMMARY = (
    ("average_incremental_accuracy", "average incremental accuracy"),
    ("last_accuracy", "last accuracy"),
    ("forgetting", "forgetting"),
    ("backward_transfer", "backward transfer"),
    ("new_task_accuracy", "new-task accuracy"),
    ("top5_last", "top-5 at the end"),
)


def terminal(content: dict[str, Any]) -> Group:
    """What a run prints at its end: the accuracy matrix, a line for each task, and the metrics."""
    if content.get("stream"):
        return _stream_terminal(content)
    evaluator = content["evaluator"]
    matrix = Table(show_edge=False, box=None, padding=(0, 0, 0, 1))
    tasks = len(content["scenario"]["task_sizes"])
    for name in ("", *(str(k + 1) for k in range(tasks))):
        matrix.add_column(name, justify="right", no_wrap=True)
    for task in content["tasks"]:
        row = content["accuracy"][evaluator][task["task"]]
        matrix.add_row(str(task["task"] + 1), *("" if value is None else f"{100 * value:.0f}" for value in row))
    table = Table(title=f"{content['strategy']} on {content['scenario']['name']}, scored by {evaluator}")
    for name in ("after task", "classes", "new task %", "all seen %", "exemplars", "MiB", "seconds"):
        table.add_column(name, justify="right")
    scores = content["metrics"][evaluator]
    for task in content["tasks"]:
        t = task["task"]
        accuracy = (content["accuracy"][evaluator][t][t], scores["seen_accuracy"][t])
        sizes = (mib(task["bytes"]["strict"]), f"{task['seconds']:.0f}")
        table.add_row(str(t + 1), str(task["n_seen"]), *map(percent, accuracy), str(task["exemplars"]), *sizes)
    numbers = [(name, scores[key]) for key, name in SUMMARY]
    sessions: list[Table | str] = []
    if content.get("few_shot"):
        numbers += few_shot_report.summary(content, evaluator)
        sessions = [_session_table(content, evaluator), ""]
    return Group(
        "Accuracy in %; rows: after task, columns: classes of task",
        matrix,
        "",
        table,
        "",
        *sessions,
        *(Text(f"{name:<30}{percent(value):>6} %") for name, value in numbers),
    )


def _session_table(content: dict[str, Any], evaluator: str) -> Table:
    """Base and new classes after each session of a few-shot scenario, in percent."""
    header, rows = few_shot_report.rows(content, evaluator)
    table = Table(title=f"{content['few_shot']['base_classes']} base classes and those of all sessions so far, in %")
    for name in ("session", *header):
        table.add_column(name, justify="right")
    for session, row in enumerate(rows):
        table.add_row(str(session), *map(percent, row))
    return table


def _stream_terminal(content: dict[str, Any]) -> Group:
    """The same for a stream: a row for each phase."""
    evaluator, ends = content["evaluator"], stream_report.phases(content)
    by_phase = content["stream"]["accuracy"][evaluator]
    matrix = Table(show_edge=False, box=None, padding=(0, 0, 0, 1))
    for name in ("", *(str(q + 1) for q in range(len(by_phase)))):
        matrix.add_column(name, justify="right", no_wrap=True)
    table = Table(title=f"{content['strategy']} on {content['scenario']['name']}, scored by {evaluator}")
    for name in ("phase", "images", "classes", "new %", "all seen %", "exemplars", "MiB", "seconds"):
        table.add_column(name, justify="right")
    for end in ends:
        row, phase = by_phase[end["phase"]], str(end["phase"] + 1)
        matrix.add_row(phase, *("" if value is None else f"{100 * value:.0f}" for value in row))
        accuracy = (row[end["phase"]], content["metrics"][evaluator]["seen_accuracy"][end["task"]])
        sizes = (mib(end["bytes"]["strict"]), f"{end['seconds']:.0f}")
        counts = (phase, str(end["images_seen"]), str(end["n_seen"]))
        table.add_row(*counts, *map(percent, accuracy), str(end["exemplars"]), *sizes)
    lines = [f"{name:<36}{percent(value):>6} %" for name, value in stream_report.summary(content, evaluator)]
    return Group(
        "Accuracy in %; rows: after phase, columns: classes first seen in phase",
        matrix,
        "",
        table,
        "",
        *(Text(line) for line in lines),
    )


def markdown(content: dict[str, Any]) -> str:
    """``report.md``: every evaluator's accuracy matrix and metrics, the bytes, and how to run it again."""
    stream = content.get("stream")
    ends = stream_report.phases(content) if stream else content["tasks"]
    lines = [f"# {content['name']} on {content['scenario']['name']}", ""]
    if stream:
        lines += [f"A stream without boundaries in {len(stream['phases'])} pieces; rows are ends of phases.", ""]
    if content["out_of_budget"]:
        lines += ["Keeps all images: an upper bound, outside any memory budget.", ""]
    for evaluator in content["accuracy"]:
        own = " (the method's own)" if evaluator == content["evaluator"] else ""
        lines += [f"## Accuracy in %, evaluator `{evaluator}`{own}", ""]
        header, rows = accuracy_rows(content, evaluator)
        lines += _markdown_table(header, rows)
        scores = content["metrics"][evaluator]
        found = [(name, scores[key]) for key, name in SUMMARY]
        if stream:
            found = stream_report.summary(content, evaluator)
        if content.get("few_shot"):
            found += few_shot_report.summary(content, evaluator)
        lines += ["", *(f"- {name}: {percent(value)} %" for name, value in found), ""]
        if content.get("few_shot"):
            header, numbers = few_shot_report.rows(content, evaluator)
            lines += [f"Base classes and those of all sessions so far, evaluator `{evaluator}`:", ""]
            cells = [[str(number), *map(percent, row)] for number, row in enumerate(numbers)]
            lines += [*_markdown_table(["session", *header], cells), ""]
    kinds = (*STATE, *STORED)
    beside = ["training only", "read to predict", "strict MiB", "paper MiB", "seconds"]
    rows = [
        [
            str(task.get("phase", task["task"]) + 1),
            *(str(task["bytes"][key]) for key in kinds),
            str(sum(task["training_bytes"].values())),
            str(task["inference_bytes"]),
            *(mib(task["bytes"][key], 3) for key in ("strict", "paper")),
            f"{task['seconds']:.1f}",
        ]
        for task in ends
    ]
    lines += ["## Carried between tasks, in bytes", ""]
    if content["budget"]:
        own = content["budget"]
        told = f"{own['text']}: {own['bytes']} bytes, counted as `{own['convention']}`, aligned `{own['align']}`"
        lines += [f"Budget {told}.", ""]
    lines += [*_markdown_table(["after phase" if stream else "after task", *kinds, *beside], rows), ""]
    lines += [
        "`strict` counts every carried byte; `paper` counts float32 backbone parameters and exemplar images alone. "
        "`training only`, teachers, the optimiser's state, the best epoch and decoded exemplars, is in neither.",
        "",
        "## Run again",
        "",
        f"    {content['command']}",
        "",
        f"Seeds {content['seeds']}; versions {content['versions']}; machine {content['machine']}; "
        f"fingerprint {content['fingerprint']}.",
        "",
    ]
    return "\n".join(lines)


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---:"] * len(header)
    return ["| " + " | ".join(cells) + " |" for cells in [header, rule, *rows]]


def commit() -> str | None:
    """The commit of the source tree this runs from; None where there is none."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() or None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
