"""Accuracy on each class at the end: under which names it stands, and which classes are the best and the worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cil.compare.runs import Run

NAMED = 3


def of_run(run: Run, evaluator: str) -> dict[str, float]:
    """Class -> accuracy on its test images after the last task, in order of appearance.

    Classes without test images are left out. Empty if the run does not tell.
    """
    values = (run.content.get("per_class_accuracy") or {}).get(evaluator) or []
    names = _names(run.content["scenario"].get("class_names") or [], len(values))
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _names(given: Sequence[str], n: int) -> list[str]:
    """A name for each of n classes; the id stands for one that has none, and behind one that several have."""
    counts = Counter(given)
    names = [name if counts[name] == 1 else f"{name} (class {k})" for k, name in enumerate(given[:n])]
    return names + [f"class {k}" for k in range(len(names), n)]


def best(accuracy: Mapping[str, float], named: int = NAMED) -> list[str]:
    """The classes of the highest accuracy, best first: at most so many, and at most half of all."""
    return sorted(accuracy, key=lambda name: -accuracy[name])[: _at_most(named, len(accuracy))]


def worst(accuracy: Mapping[str, float], named: int = NAMED) -> list[str]:
    """The classes of the lowest accuracy, worst first, likewise."""
    return sorted(accuracy, key=lambda name: accuracy[name])[: _at_most(named, len(accuracy))]


def _at_most(named: int, n: int) -> int:
    return min(named, max(1, n // 2))


def listed(names: Sequence[str], accuracy: Mapping[str, float]) -> str:
    """``bed 0.0, bee 0.0, boy 0.4 (2 more)``: classes with percent, and how many others have as much as the last."""
    shown = {name: f"{100 * value:.1f}" for name, value in accuracy.items()}
    more = sum(shown[name] == shown[names[-1]] for name in shown.keys() - set(names))
    return ", ".join(f"{name} {shown[name]}" for name in names) + f" ({more} more)" * (more > 0)
