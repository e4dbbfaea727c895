"""What a run on a few-shot scenario reports: base and new classes apart, after each session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cil.data.scenario import Scenario
from cil.evaluation import few_shot
from cil.experiment.resume import Record

COLUMNS = (
    ("base_accuracy", "base"),
    ("new_accuracy", "new"),
    ("harmonic_mean", "harmonic mean"),
    ("accuracy", "all seen"),
    ("false_negative_rate", "new taken for base"),
    ("false_positive_rate", "base taken for new"),
)


def results(scenario: Scenario, records: list[Record], evaluators: Sequence[str]) -> dict[str, Any] | None:
    """The key ``few_shot`` of ``results.json``; None for other scenarios. See ``docs/results_schema.md``."""
    if scenario.base_classes is None:
        return None
    return {
        "base_classes": scenario.base_classes,
        "sessions": len(scenario.tasks) - 1,
        "shots": [len(task.train) // task.n_new for task in scenario.tasks[1:]],
        "definitions": few_shot.DEFINITIONS,
        "metrics": {
            name: few_shot.summary([record["evaluators"][name]["few_shot"] for record in records])
            for name in evaluators
        },
    }


def rows(content: dict[str, Any], evaluator: str) -> tuple[list[str], list[list[float | None]]]:
    """Names of the columns, and a row of fractions for each task done, the first task first."""
    scores = content["few_shot"]["metrics"][evaluator]
    return [name for _, name in COLUMNS], [list(row) for row in zip(*(scores[key] for key, _ in COLUMNS), strict=True)]


def summary(content: dict[str, Any], evaluator: str) -> list[tuple[str, float | None]]:
    """Names and values of the numbers of one evaluator that stand for the whole run."""
    scores = content["few_shot"]["metrics"][evaluator]
    return [
        ("performance drop", scores["performance_drop"]),
        ("average harmonic mean", scores["average_harmonic_mean"]),
        ("harmonic mean at the end", scores["harmonic_mean"][-1] if scores["harmonic_mean"] else None),
    ]
