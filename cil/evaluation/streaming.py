"""Accuracy along a stream without task boundaries, and how much of it the labels alone would give.

n images come one after another, K classes, P measurements (after each piece of the stream), W windows. Numbers are
fractions in [0, 1], never percent; what is undefined is NaN, never 0. Streams have phases, the tasks of the
literature, which the learner is not told.

A blind classifier sees labels, no images: it predicts the label that was most frequent among the last k. Whatever it
reaches is owed to the order of the stream (Hammoud et al., Rapid Adaptation in Online Continual Learning: Are We
Evaluating It Right?, ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cil.evaluation.metrics import FloatArray, IntArray

WINDOWS = (1, 2, 5, 10, 20, 30, 40, 60, 75, 100, 250, 500, 1000, 5000, 25000, 75000)


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


def blind_predictions(labels: ArrayLike, windows: Sequence[int]) -> IntArray:
    """What the blind classifier predicts after each label, for each window: (n,), W windows -> (W, n).

    Entry [w, t] is the most frequent of the last windows[w] labels up to label t, counted from 0; ties go to the one
    seen last. Before the window is full it is of the labels so far.

    Hammoud et al., ICCV 2023.

    Raises:
        ValueError: labels are not non-negative integers (n,), or a window is less than 1.
    """
    stream = _labels(labels)
    if any(window < 1 for window in windows):
        raise ValueError(f"windows must be at least 1, not {list(windows)}")
    n, width, rows = len(stream), np.array(windows, np.int64), np.arange(len(windows))
    counts = np.zeros((len(windows), int(stream.max(initial=0)) + 1), np.int64)  # (W, K)
    latest = np.full(counts.shape[1], -1, np.int64)  # (K,) when each label was last seen
    out = np.empty((len(windows), n), np.int64)
    for t, label in enumerate(stream.tolist()):
        counts[:, label] += 1
        latest[label] = t
        full = rows[width <= t]
        counts[full, stream[t - width[full]]] -= 1  # what leaves the window
        out[:, t] = (counts * (n + 1) + latest).argmax(axis=1)  # a larger count first, then the later label
    return out


def blind_hits(labels: ArrayLike, predictions: ArrayLike, shift: int) -> NDArray[np.bool_]:
    """Whether each image from number ``shift`` on has the label predicted S + 1 labels earlier: (n,), (n,) -> (n - S,).

    Entry i is about label S + i, predicted after label i - 1, counted from 0. Before the first label there is no
    prediction, so entry 0 is False.
    """
    stream, guesses = _labels(labels), np.asarray(predictions)
    if not 0 <= shift < len(stream):
        raise ValueError(f"the shift must be from 0 to {len(stream) - 1} for {len(stream)} labels, not {shift}")
    return np.concatenate([[False], guesses[: len(stream) - 1 - shift] == stream[shift + 1 :]])


def blind_accuracy(labels: ArrayLike, window: int, shift: int = 0) -> float:
    """The share of labels that the mode of the last ``window`` labels gives, S + 1 labels ahead: (n,) -> a fraction.

    For S = 0 online accuracy, in which the first label, before which none was seen, counts as missed: n terms. For
    S > 0 near-future accuracy, a_t = [guess after label t is y_{t+1+S}] for t from 1 on: n - 1 - S terms.

    Hammoud et al., ICCV 2023.
    """
    return _scored(blind_hits(labels, blind_predictions(labels, [window])[0], shift), shift)


def majority_level(labels: ArrayLike) -> float:
    """The share of the most frequent label, which a constant prediction reaches: (n,) -> a fraction."""
    stream = _labels(labels)
    return float(np.bincount(stream).max() / len(stream)) if len(stream) else float("nan")


@dataclass(frozen=True)
class Blind:
    """The best blind classifier at one shift.

    Attributes:
        shift: S.
        window: k, the labels it looks back at.
        hits: whether it is right on each image from number S on, (n - S,).
        majority: what a constant prediction reaches on the whole stream.
    """

    shift: int
    window: int
    hits: NDArray[np.bool_]
    majority: float

    @property
    def accuracy(self) -> float:
        """As ``blind_accuracy`` has it."""
        return _scored(self.hits, self.shift)


def best_blind(labels: ArrayLike, shifts: Iterable[int], windows: Sequence[int] = WINDOWS) -> list[Blind]:
    """The best blind classifier at each shift: (n,), shifts -> one for each; among equals the smaller window."""
    stream = _labels(labels)
    used = [window for window in windows if window <= max(len(stream), 1)]
    guesses, level = blind_predictions(stream, used), majority_level(stream)
    found = []
    for shift in shifts:
        rivals = [Blind(shift, k, blind_hits(stream, own, shift), level) for k, own in zip(used, guesses, strict=True)]
        found.append(max(rivals, key=lambda rival: np.nan_to_num(rival.accuracy)))
    return found


def near_future(labels: ArrayLike, shifts: Iterable[int] | None = None, slack: float = 0.0) -> Blind | None:
    """The best blind classifier at the smallest shift at which it is down to the majority's level; None for no such.

    At that shift labels no longer tell what comes, so near-future accuracy measures what was learned of the images.

    Hammoud et al., ICCV 2023.

    Args:
        labels: of the stream, (n,).
        shifts: candidates, ascending; None: 0, 1, 2, 4, 8, ... below n.
        slack: how far above the level still counts as down to it. On a stream of unrelated labels, chance alone lifts
            the best of many windows a little.
    """
    stream = _labels(labels)
    if shifts is None:
        shifts = [0, *(2**power for power in range(len(stream).bit_length()))]
    candidates = [shift for shift in shifts if shift < max(len(stream) - 1, 1)]
    for blind in best_blind(stream, candidates):
        if blind.accuracy <= blind.majority + slack:
            return blind
    return None


def _scored(hits: NDArray[np.bool_], shift: int) -> float:
    counted = hits[1:] if shift else hits
    return float(counted.mean()) if len(counted) else float("nan")


def _curve(accuracy: ArrayLike, images_seen: ArrayLike) -> tuple[FloatArray, IntArray]:
    measured, seen = np.asarray(accuracy, np.float64), np.asarray(images_seen)
    if measured.ndim != 1 or measured.shape != seen.shape:
        raise ValueError(f"accuracy (P,) and images_seen (P,) do not fit: {measured.shape} and {seen.shape}")
    if len(seen) and (seen[0] < 1 or (np.diff(seen) < 1).any()):
        raise ValueError(f"images_seen must rise from 1 on, not {seen.tolist()}")
    for index in np.flatnonzero((measured < 0) | (measured > 1))[:1]:
        raise ValueError(f"accuracy[{index}] is {measured[index]:g}; accuracies are fractions in [0, 1]")
    return measured, seen.astype(np.int64)


def _labels(labels: ArrayLike) -> IntArray:
    stream = np.asarray(labels)
    if stream.ndim != 1 or not (np.issubdtype(stream.dtype, np.integer) or not stream.size):
        raise ValueError(f"labels must be integers (n,), not {stream.dtype} of shape {stream.shape}")
    if stream.size and stream.min() < 0:
        raise ValueError(f"labels are numbered from 0, found {stream.min()}")
    return stream.astype(np.int64)
