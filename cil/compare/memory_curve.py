"""Accuracy as a function of memory, in one number: the area under the curve and accuracy per MiB.

A method that is run at several memory budgets gives a point (memory, accuracy) for each. Memory is in MiB (2**20
bytes), accuracy a fraction in [0, 1]. Points may come in any order. With the average incremental accuracy the area is
AUC-A, with the last accuracy it is AUC-L.

Zhou et al., A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning, ICLR 2023.

Every function raises ValueError unless there is one accuracy for each memory, at least one point, all memories are
finite, not negative and different from one another, and all accuracies are in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def area(memory: ArrayLike, accuracy: ArrayLike) -> float:
    """The area under the points joined by straight lines: (P,) MiB, (P,) fractions -> fraction x MiB.

    sum_p (m_{p+1} - m_p) (a_p + a_{p+1}) / 2 over the points sorted by memory. It grows with the range of memory, so
    only methods measured over one range can be compared by it. NaN for a single point.

    Zhou et al., ICLR 2023 (AUC-A, AUC-L).
    """
    m, a = _points(memory, accuracy)
    if len(m) < 2:
        return float("nan")
    return float((np.diff(m) * (a[1:] + a[:-1]) / 2).sum())


def normalised_area(memory: ArrayLike, accuracy: ArrayLike) -> float:
    """The mean height of the curve: (P,) MiB, (P,) fractions -> a fraction in [0, 1], NaN for a single point.

    ``area`` divided by the range of memory. It has the unit of an accuracy, whatever the range; the published areas are
    not divided.
    """
    m, a = _points(memory, accuracy)
    if len(m) < 2:
        return float("nan")
    return area(m, a) / float(m[-1] - m[0])


def accuracy_per_mib(memory: ArrayLike, accuracy: ArrayLike) -> tuple[float, float]:
    """What a MiB buys at the smallest and the largest memory: (P,) MiB, (P,) fractions -> two numbers, percent / MiB.

    100 a_1 / m_1 (APM-S, at the start) and 100 a_P / m_P (APM-E, at the end). The two are equal for a single point; one
    is NaN where the memory is 0.

    Zhou et al., ICLR 2023 (APM).
    """
    m, a = _points(memory, accuracy)
    start, end = (100 * float(a[p]) / float(m[p]) if m[p] > 0 else float("nan") for p in (0, -1))
    return start, end


def _points(memory: ArrayLike, accuracy: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Memory and accuracy as float64, sorted by memory, after the checks that the module's docstring promises."""
    m, a = np.asarray(memory, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if m.ndim != 1 or m.shape != a.shape or not m.size:
        raise ValueError(f"memory and accuracy must hold one number a point; their shapes are {m.shape} and {a.shape}")
    for value in m[~(np.isfinite(m) & (m >= 0))][:1]:
        raise ValueError(f"memory {value:g} is not a number of MiB")
    for value in a[~((a >= 0) & (a <= 1))][:1]:
        hint = " (percent?)" if value > 1 else ""
        raise ValueError(f"accuracy {value:g}{hint} is not a fraction in [0, 1]")
    order = np.argsort(m, kind="stable")
    m, a = m[order], a[order]
    for p in np.flatnonzero(np.diff(m) == 0)[:1]:
        raise ValueError(f"two points have the same memory, {m[p]:g} MiB")
    return m, a
