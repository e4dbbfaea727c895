"""How well base classes are kept and new ones learned from few images, told apart.

C is a confusion matrix (K, K) as in ``cil.evaluation.metrics``: integer counts, rows truth, columns prediction, over
all K classes seen. The first B of them are the base classes, the others are new. All numbers are fractions in [0, 1] or
their differences; what is undefined is NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cil.evaluation import metrics

# What a result says of each of its numbers.
DEFINITIONS = {
    "accuracy": "share of the test images of all classes seen that are right",
    "base_accuracy": "mean of the accuracies of the base classes, every class seen being a candidate",
    "new_accuracy": "mean of the accuracies of the classes of all sessions so far, every class seen being a candidate",
    "harmonic_mean": "2 b n / (b + n) of base_accuracy b and new_accuracy n, 0 if both are 0",
    "false_negative_rate": "share of the test images of new classes that are predicted as a base class",
    "false_positive_rate": "share of the test images of base classes that are predicted as a new class",
    "performance_drop": "accuracy after the first task minus accuracy after the last",
    "average_harmonic_mean": "mean of harmonic_mean over the sessions",
}
# Defined after each task; the others once a run.
BY_TASK = ("accuracy", "base_accuracy", "new_accuracy", "harmonic_mean", "false_negative_rate", "false_positive_rate")


def after_task(confusion: ArrayLike, base_classes: int) -> dict[str, float]:
    """The numbers of ``BY_TASK``: (K, K), B -> name: value. Those of new classes are NaN while there is none.

    As in the released code of TEEN (Wang et al., Few-Shot Class-Incremental Learning via Training-Free Prototype
    Calibration, NeurIPS 2023), base and new accuracy are means over classes. The two rates are of that paper, too: a
    false negative is an image of a new class taken for a base class.

    Raises:
        ValueError: C is no confusion matrix, or there are not 1 to K base classes.
    """
    recall = metrics.per_class_accuracy(confusion)
    if not 1 <= base_classes <= len(recall):
        raise ValueError(f"base_classes must be from 1 to the {len(recall)} classes seen, not {base_classes}")
    counts, new = np.asarray(confusion), slice(base_classes, None)
    base, fresh = _mean(recall[:base_classes]), _mean(recall[new])
    return {
        "accuracy": _share(np.trace(counts), counts.sum()),
        "base_accuracy": base,
        "new_accuracy": fresh,
        "harmonic_mean": harmonic_mean(base, fresh),
        "false_negative_rate": _share(counts[new, :base_classes].sum(), counts[new].sum()),
        "false_positive_rate": _share(counts[:base_classes, new].sum(), counts[:base_classes].sum())
        if len(recall) > base_classes
        else float("nan"),
    }


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n): two fractions -> a fraction, 0 if both are 0, NaN if one is undefined."""
    return 2 * base * new / (base + new) if base + new else base * new


def summary(steps: list[dict[str, float]]) -> dict[str, Any]:
    """What a result holds of one evaluator: the numbers of each task -> lists of them, and the two of the run.

    ``performance_drop`` and ``average_harmonic_mean`` are NaN before the first session ends.
    """
    rows: dict[str, Any] = {name: [step[name] for step in steps] for name in BY_TASK}
    sessions = rows["harmonic_mean"][1:]
    drop = rows["accuracy"][0] - rows["accuracy"][-1] if sessions else float("nan")
    mean = float(np.mean(sessions)) if sessions else float("nan")
    return {**rows, "performance_drop": drop, "average_harmonic_mean": mean}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
