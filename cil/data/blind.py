"""How much of a stream's accuracy its labels alone would give.

A blind classifier sees labels, no images: it predicts the label that was most frequent among the last k. Whatever it
reaches is owed to the order of the stream (Hammoud et al., Rapid Adaptation in Online Continual Learning: Are We
Evaluating It Right?, ICCV 2023). n images come one after another, K classes, W windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]

WINDOWS = (1, 2, 5, 10, 20, 30, 40, 60, 75, 100, 250, 500, 1000, 5000, 25000, 75000)


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


def _labels(labels: ArrayLike) -> IntArray:
    stream = np.asarray(labels)
    if stream.ndim != 1 or not (np.issubdtype(stream.dtype, np.integer) or not stream.size):
        raise ValueError(f"labels must be integers (n,), not {stream.dtype} of shape {stream.shape}")
    if stream.size and stream.min() < 0:
        raise ValueError(f"labels are numbered from 0, found {stream.min()}")
    return stream.astype(np.int64)
