"""What a run on a stream leaves beside other results: accuracy at any time, by phase, and of what comes next.

A stream may have fifty pieces; tables show the ends of its phases alone, ``results.json`` keeps every piece.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from cil.data.scenario import Scenario
from cil.evaluation import metrics, streaming
from cil.experiment.resume import Record

SUMMARY = (
    ("anytime_accuracy", "anytime accuracy"),
    ("anytime_area", "anytime area"),
    ("average_accuracy", "average accuracy after phases"),
    ("last_accuracy", "last accuracy"),
    ("class_forgetting", "forgetting by class"),
)


def results(
    scenario: Scenario, records: list[Record], matrices: dict[str, np.ndarray], sizes: np.ndarray, own: str
) -> dict[str, Any] | None:
    """The key ``stream`` of ``results.json``; None for a scenario with boundaries. See ``docs/results_schema.md``.

    Args:
        scenario: of the run.
        records: of the pieces learned so far.
        matrices: the accuracy matrix (T, T) of each evaluator.
        sizes: test images of the classes first seen in each piece, (T,).
        own: the method's own evaluator.
    """
    if not scenario.streams:
        return None
    done, phase, seen = len(records), scenario.phase_of_task, scenario.images_seen
    ends = [end for end in scenario.phase_ends if end < done]
    measures, accuracy = {}, {}
    for name, matrix in matrices.items():
        all_seen = metrics.seen_accuracy(matrix, sizes)[:done]  # (P,)
        per_class = np.full((len(ends), scenario.n_classes), np.nan)
        for row, end in zip(per_class, ends, strict=True):
            known = records[end]["evaluators"][name]["per_class"]
            row[: len(known)] = known
        accuracy[name] = streaming.by_phase(matrix, sizes, phase)[0].tolist()
        measures[name] = {
            "anytime_accuracy": streaming.anytime_accuracy(all_seen, seen[:done], scenario.every or 1),
            "anytime_area": streaming.anytime_area(all_seen, seen[:done]),
            "average_accuracy": float(all_seen[ends].mean()) if ends else float("nan"),
            "last_accuracy": float(all_seen[ends[-1]]) if ends else float("nan"),
            "class_forgetting": streaming.class_forgetting(per_class),
        }
    # A task with a boundary before the stream begins foresees nothing.
    ahead = [record.get("near_future", {"images": 0, "right": 0}) for record in records]
    images, right = [step["images"] for step in ahead], [step["right"] for step in ahead]
    blind, cuts = scenario.blind, itertools.pairwise([0, *seen[:done].tolist()])
    hits = [int(blind.hits[start:stop].sum()) if n else 0 for n, (start, stop) in zip(images, cuts, strict=True)]
    rest = [float("nan")] * (len(scenario.tasks) - done)
    running = [[*streaming.running_accuracy(part, images).tolist(), *rest] for part in (right, hits)]
    last = [line[done - 1] if done else float("nan") for line in running]
    return {
        "every": scenario.every,
        "nfa_shift": scenario.nfa_shift,
        "phases": phase.tolist(),
        "images_seen": seen.tolist(),
        "accuracy": accuracy,
        "metrics": measures,
        "near_future": {"evaluator": own, "accuracy": last[0], "running": running[0]},
        "blind": {
            "window": blind.window,
            "accuracy": last[1],
            "running": running[1],
            "majority": blind.majority,
        },
    }


def phases(content: dict[str, Any]) -> list[dict[str, Any]]:
    """For each phase that has ended, its last piece's record with ``phase``, ``images_seen`` and all its seconds."""
    stream, rows, seconds = content["stream"], [], 0.0
    for task in content["tasks"]:
        index = task["task"]
        seconds += task["seconds"]
        if index + 1 < len(stream["phases"]) and stream["phases"][index + 1] == stream["phases"][index]:
            continue
        about = {"phase": stream["phases"][index], "images_seen": stream["images_seen"][index], "seconds": seconds}
        rows.append({**task, **about})
        seconds = 0.0
    return rows


def summary(content: dict[str, Any], evaluator: str) -> list[tuple[str, float | None]]:
    """Names and values of the numbers of one evaluator; of what comes next only for the method's own."""
    stream = content["stream"]
    lines = [(name, stream["metrics"][evaluator][key]) for key, name in SUMMARY]
    lines[0] = (f"{lines[0][0]}, every {stream['every']}", lines[0][1])
    if evaluator == stream["near_future"]["evaluator"]:
        blind = stream["blind"]
        lines += [
            (f"near-future accuracy, shift {stream['nfa_shift']}", stream["near_future"]["accuracy"]),
            (f"blind classifier, last {blind['window']} label" + "s" * (blind["window"] > 1), blind["accuracy"]),
            ("most frequent label", blind["majority"]),
        ]
    return lines
