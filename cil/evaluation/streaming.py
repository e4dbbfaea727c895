"""Accuracy along a stream without task boundaries.

n images come one after another, K classes, P measurements (after each piece of the stream). Numbers are fractions in
[0, 1], never percent; what is undefined is NaN, never 0. Streams have phases, the tasks of the literature, which the
learner is not told. How much of an accuracy the labels alone would give is told by ``cil.data.blind``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cil.evaluation.metrics import FloatArray, IntArray

# --- accuracy at any time ---------------------------------------------------------------------------------------------


def anytime_accuracy(accuracy: ArrayLike, images_seen: ArrayLike, every: int) -> float:
    """The mean of the accuracies measured each time ``every`` more images were learned: (P,), (P,) -> a fraction.

    A_AUC as the released code of Si-Blurry has it: (1/J) sum_{j=1..J} f(j * every), f(n) the accuracy on the classes
    seen after n images. Measurements at other numbers of images, such as at the end of a phase, are left out. NaN
    before the first ``every`` images.

    Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime Inference, ICLR
    2022.
    """
    measured, seen = _curve(accuracy, images_seen)
    if every < 1:
        raise ValueError(f"every must be at least 1 image, not {every}")
    due = measured[seen % every == 0]
    return float(due.mean()) if len(due) else float("nan")


def anytime_area(accuracy: ArrayLike, images_seen: ArrayLike) -> float:
    """The area under accuracy over images learned, by the span from 0 to the last: (P,), (P,) -> a fraction.

    A_AUC as the paper writes it, sum_i f(n_i) * (n_i - n_{i-1}), divided by n_P, with n_0 = 0: each accuracy counts for
    the images since the measurement before. A step area, not one of trapezoids, and every measurement counts. It is
    ``anytime_accuracy`` where all pieces are of ``every`` images. NaN before the first measurement.

    Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration with Anytime Inference, ICLR
    2022.
    """
    measured, seen = _curve(accuracy, images_seen)
    if not len(seen):
        return float("nan")
    return float((measured * np.diff(seen, prepend=0)).sum() / seen[-1])


def by_phase(A: ArrayLike, sizes: ArrayLike, phase_of_task: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The accuracy matrix of the phases from that of the pieces: (T, T), (T,), (T,) -> (Q, Q), (Q,).

    Entry [p, q] is the accuracy at the end of phase p on the test images of the classes first seen in phase q; the
    second result counts these images. NaN where a phase brings no new class or has not ended.

    Args:
        A: the accuracy matrix of ``cil.evaluation.metrics``, a row for each piece.
        sizes: test images of the classes first seen in each piece.
        phase_of_task: the phase of each piece, from 0 without a gap, never falling.
    """
    matrix, counts, phase = np.asarray(A, np.float64), np.asarray(sizes, np.float64), np.asarray(phase_of_task)
    n = int(phase[-1]) + 1
    ends = np.flatnonzero(np.diff(phase, append=n))
    out: FloatArray = np.full((n, n), np.nan)
    images: FloatArray = np.bincount(phase, weights=counts, minlength=n).astype(np.float64)
    for p, end in enumerate(ends):
        right = np.bincount(phase, weights=np.nan_to_num(matrix[end]) * counts, minlength=n)
        known = np.bincount(phase, weights=~np.isnan(matrix[end]) * counts, minlength=n)
        out[p] = np.where(known > 0, right / np.maximum(known, 1), np.nan)
    return out, images


def class_forgetting(per_class: ArrayLike) -> float:
    """How far classes have fallen from their best: (P, K) -> a number, NaN if no class was ever right before.

    F_last = mean over c of max_{p<P-1} a[p, c] - a[P-1, c], over the classes whose maximum is above 0. a[p, c] is the
    accuracy on class c at the end of phase p, NaN where it has not been seen or has no test image.

    Moon et al., Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and Visual Prompt Tuning,
    ICCV 2023; as in the released code, but without the 1e-5 that it adds to the number of test images of each class.
    """
    rows = np.asarray(per_class, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"per_class must be (P, K); its shape is {rows.shape}")
    if len(rows) < 2:
        return float("nan")
    best = np.fmax.reduce(rows[:-1], axis=0)  # (K,), fmax ignores NaN
    counted = np.nan_to_num(best) > 0
    return float((best - rows[-1])[counted].mean()) if counted.any() else float("nan")


# --- what comes next --------------------------------------------------------------------------------------------------


def running_accuracy(right: ArrayLike, images: ArrayLike | None = None) -> FloatArray:
    """The share of predictions so far that were right: (P,), (P,) -> (P,), NaN before the first prediction.

    A_t = (A_{t-1} (t-1) + a_t) / t, the mean in online and in near-future accuracy. ``right`` counts right predictions
    at each step, or says whether the one prediction was right; ``images`` counts predictions, 1 by default.
    """
    hits = np.cumsum(np.asarray(right, np.float64))
    total = np.cumsum(np.ones_like(hits) if images is None else np.asarray(images, np.float64))
    return np.divide(hits, total, out=np.full(hits.shape, np.nan), where=total > 0)


def _curve(accuracy: ArrayLike, images_seen: ArrayLike) -> tuple[FloatArray, IntArray]:
    measured, seen = np.asarray(accuracy, np.float64), np.asarray(images_seen)
    if measured.ndim != 1 or measured.shape != seen.shape:
        raise ValueError(f"accuracy (P,) and images_seen (P,) do not fit: {measured.shape} and {seen.shape}")
    if len(seen) and (seen[0] < 1 or (np.diff(seen) < 1).any()):
        raise ValueError(f"images_seen must rise from 1 on, not {seen.tolist()}")
    for index in np.flatnonzero((measured < 0) | (measured > 1))[:1]:
        raise ValueError(f"accuracy[{index}] is {measured[index]:g}; accuracies are fractions in [0, 1]")
    return measured, seen.astype(np.int64)
