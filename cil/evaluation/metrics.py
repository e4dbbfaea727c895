"""Accuracy, forgetting and transfer from an accuracy matrix; what went wrong from a confusion matrix.

T tasks, K classes, N images. All numbers are fractions in [0, 1] or their differences, never percent. What is undefined
is NaN, never 0.

A is the accuracy matrix (T, T): ``A[t, k]`` is the accuracy after task t on the test images of the classes first seen
in task k. Entries k > t are NaN. Rows not reached yet are NaN too, so a run in progress can be measured: below, n is
the number of finished rows (up to the last one that holds a number) and the last row is row n-1. A column without any
number is a task without test images, such as one that brings no new class; it is left out of every mean over tasks. A
number missing anywhere else makes what needs it NaN, rather than a mean over fewer terms; only the maximum in the
forgetting ignores it.

Every function of A raises ValueError if A is not square and at least 1 x 1, holds a number outside [0, 1] (percent), or
holds one above the diagonal. Every function of sizes (T,), the number of test images of each task, raises ValueError
unless there is one non-negative number for each task, and 0 only where A holds none.

A confusion matrix (K, K) holds integer counts over the K classes seen, rows truth, columns prediction.
``task_of_class`` gives the task in which each class first appears; entries of classes not seen yet, beyond the K-th,
are not read. Every function of them raises ValueError if the counts are not square, not integers or negative, or a
class seen has no task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def seen_accuracy(A: ArrayLike, sizes: ArrayLike) -> FloatArray:
    """Accuracy after each task on the test images of all classes seen, each image counting once: (T, T), (T,) -> (T,).

    a_t = sum_{k<=t} N_k A[t, k] / sum_{k<=t} N_k, with N = sizes. This is the pooled accuracy; the task-mean variant,
    in which each task counts once, is ``task_mean_accuracy``. The two agree where all tasks have equally many test
    images.

    Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017.
    """
    matrix = _accuracies(A)
    return _weighted_rows(matrix, _sizes(sizes, matrix))


def task_mean_accuracy(A: ArrayLike) -> FloatArray:
    """Accuracy after each task, each task seen counting once: (T, T) -> (T,).

    (1 / (t+1)) sum_{k<=t} A[t, k], t from 0. The pooled variant is ``seen_accuracy``.

    Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017 (ACC, its last entry).
    """
    matrix = _accuracies(A)
    return _weighted_rows(matrix, _has_images(matrix).astype(np.float64))


def average_incremental_accuracy(A: ArrayLike, sizes: ArrayLike) -> float:
    """The mean over the tasks finished of the accuracy on all classes seen: (T, T), (T,) -> a fraction.

    (1/n) sum_{t<n} a_t, with a = ``seen_accuracy``. It includes the first task, which some papers drop. NaN before the
    first row.

    Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017.
    """
    return _mean(seen_accuracy(A, sizes)[: _n_finished(_accuracies(A))])


def last_accuracy(A: ArrayLike, sizes: ArrayLike) -> float:
    """The accuracy on all classes seen after the last task finished: (T, T), (T,) -> a fraction.

    a_{n-1}, with a = ``seen_accuracy``. NaN before the first row.

    Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017.
    """
    n = _n_finished(_accuracies(A))
    accuracies = seen_accuracy(A, sizes)
    return float(accuracies[n - 1]) if n else float("nan")


def forgetting_per_task(A: ArrayLike) -> FloatArray:
    """How far each old task has fallen from its best: (T, T) -> (T,), negative if it is at its best now.

    f_k = max_{l<n-1} A[l, k] - A[n-1, k], in [-1, 1]. The maximum leaves out the last row and ignores undefined
    entries, so it starts at l = k. NaN for the last task finished and those after it.

    Chaudhry et al., Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence, ECCV 2018.
    """
    matrix = _accuracies(A)
    n = _n_finished(matrix)
    if n < 2:
        return np.full(len(matrix), np.nan)
    best: FloatArray = np.fmax.reduce(matrix[: n - 1], axis=0)  # (T,), fmax ignores NaN
    fall: FloatArray = best - matrix[n - 1]
    return fall


def forgetting(A: ArrayLike) -> float:
    """How far old tasks have fallen from their best on average: (T, T) -> a number.

    F = (1/(n-1)) sum_{k<n-1} f_k, with f = ``forgetting_per_task``; in [-1, 1]. Several toolboxes call another number
    forgetting: the fall from the diagonal, A[k, k] - A[n-1, k], which is minus ``backward_transfer`` and is smaller
    where a task's best came later. NaN before the second row.

    Chaudhry et al., Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence, ECCV 2018.
    """
    matrix = _accuracies(A)
    return _mean(forgetting_per_task(matrix)[_old_tasks(matrix)])


def backward_transfer(A: ArrayLike) -> float:
    """What later tasks have done to old ones since each was learned: (T, T) -> a number, negative for a loss.

    BWT = (1/(n-1)) sum_{k<n-1} (A[n-1, k] - A[k, k]), in [-1, 1]. NaN before the second row.

    Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017.
    """
    matrix = _accuracies(A)
    last = max(_n_finished(matrix) - 1, 0)
    return _mean((matrix[last] - np.diagonal(matrix))[_old_tasks(matrix)])


def new_task_accuracy(A: ArrayLike) -> float:
    """The mean accuracy on each task when it has just been learned: (T, T) -> a fraction.

    (1/n) sum_{k<n} A[k, k]. Often called plasticity, a word without one agreed formula: intransigence (Chaudhry et al.,
    ECCV 2018) compares the same diagonal with a model trained jointly. Every class seen is a candidate, so it falls
    where a learner prefers old classes. NaN before the first row.

    The diagonal of R in Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017.
    """
    matrix = _accuracies(A)
    return _mean(np.diagonal(matrix)[_has_images(matrix)])


def summary(A: ArrayLike, sizes: ArrayLike) -> dict[str, float]:
    """The five numbers of a run that results.json stores: (T, T), (T,) -> name: value, as of the last row finished.

    Formulas and sources stand at the functions of the same names.
    """
    return {
        "average_incremental_accuracy": average_incremental_accuracy(A, sizes),
        "last_accuracy": last_accuracy(A, sizes),
        "forgetting": forgetting(A),
        "backward_transfer": backward_transfer(A),
        "new_task_accuracy": new_task_accuracy(A),
    }


def accuracy_row(confusion: ArrayLike, task_of_class: ArrayLike, T: int) -> FloatArray:
    """The row of A that a confusion matrix stands for: (K, K), (>= K,) -> (T,), NaN for tasks without test images.

    A[t, k] = sum_{c of task k} C[c, c] / sum_{c of task k} sum_j C[c, j].

    Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017 (the matrix R).

    Raises:
        ValueError: a class seen is of a task beyond T.
    """
    counts = _counts(confusion)
    tasks = _tasks(task_of_class, len(counts))
    if tasks.max() >= T:
        raise ValueError(f"task_of_class: class {tasks.argmax()} is of task {tasks.max()}, but there are {T} tasks")
    right = np.bincount(tasks, weights=np.diagonal(counts), minlength=T)  # (T,)
    return _ratio(right, np.bincount(tasks, weights=counts.sum(axis=1), minlength=T))


def per_class_accuracy(confusion: ArrayLike) -> FloatArray:
    """The accuracy on each class, its recall: (K, K) -> (K,), NaN for a class without test images.

    C[c, c] / sum_j C[c, j]. Its mean is the balanced accuracy.

    Brodersen et al., The balanced accuracy and its posterior distribution, ICPR 2010.
    """
    counts = _counts(confusion)
    return _ratio(np.diagonal(counts), counts.sum(axis=1))


def task_confusion(confusion: ArrayLike, task_of_class: ArrayLike) -> FloatArray:
    """Where the images of each task go: (K, K), (>= K,) -> (t, t), with t the tasks seen; row i sums to 1.

    M[i, j] = share of the test images of task i that are predicted as a class of task j. A row is NaN if task i has
    none.

    Masana et al., Class-incremental learning: survey and performance evaluation on image classification, TPAMI 2022.
    """
    counts = _task_counts(confusion, task_of_class)
    return _ratio(counts, np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape))


def task_inference_decomposition(confusion: ArrayLike, task_of_class: ArrayLike) -> tuple[float, float]:
    """Accuracy as finding the task times finding the class in it: (K, K), (>= K,) -> two fractions.

    Returns P(task right) and P(class right | task right). P(task right) = share of all images predicted as any class of
    their own task; P(class right | task right) = right ones among those. Their product is the pooled accuracy exactly,
    up to rounding. Both are pooled over images, so the first differs from the mean of the diagonal of
    ``task_confusion`` for tasks of uneven size; the second differs from accuracy with the task given, which also counts
    images whose task was missed. Without images both are NaN; if no task is right the second is.

    After Kim et al., A Theoretical Study on Solving Continual Learning, NeurIPS 2022.
    """
    per_task = _task_counts(confusion, task_of_class)
    n_task_right = np.trace(per_task)
    task_right = _ratio(n_task_right, per_task.sum())
    class_right = _ratio(np.trace(_counts(confusion)), n_task_right)
    return float(task_right), float(class_right)


def top_k_accuracy(scores: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """The share of images whose class is among the k highest scores: (N, K), (N,) -> a fraction, NaN for N = 0.

    (1/N) sum_i [rank_i < k], where rank_i counts the classes before class y_i: those with a higher score, and those
    with an equal score and a lower id, so k = 1 agrees with ``argmax``. Where k > K it means min(k, K): early tasks
    have few classes, and with k >= K every image counts as right.

    Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015.

    Raises:
        ValueError: shapes that do not fit, a NaN score, labels that are not integers in [0, K), or k < 1.
    """
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise ValueError(f"scores (N, K) and labels (N,) do not fit: their shapes are {values.shape} and {truth.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not len(truth):
        return float("nan")
    if np.isnan(values).any():
        raise ValueError(f"scores: row {np.isnan(values).any(axis=1).argmax()} holds NaN")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels must be integers, not {truth.dtype}")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        raise ValueError(f"labels must be in [0, {values.shape[1]}), found {truth.min()} to {truth.max()}")
    own = values[np.arange(len(truth)), truth][:, None]  # (N, 1)
    tied_before = (values == own) & (np.arange(values.shape[1]) < truth[:, None])  # (N, K)
    rank = ((values > own) | tied_before).sum(axis=1)  # (N,)
    return float((rank < k).mean())


def _accuracies(A: ArrayLike) -> FloatArray:
    """A as float64 after the checks that the module's docstring promises."""
    matrix = np.asarray(A, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"A must be square, (T, T) with T >= 1; its shape is {matrix.shape}")
    for t, k in np.argwhere((matrix < 0) | (matrix > 1))[:1]:
        hint = " (percent?)" if matrix[t, k] > 1 else ""
        raise ValueError(f"A[{t}, {k}] is {matrix[t, k]:g}{hint}; accuracies are fractions in [0, 1]")
    for t, k in np.argwhere(np.triu(~np.isnan(matrix), 1))[:1]:
        raise ValueError(f"A[{t}, {k}] is {matrix[t, k]:g}, but task {k} comes after task {t}: it must be NaN")
    return matrix


def _sizes(sizes: ArrayLike, matrix: FloatArray) -> FloatArray:
    """sizes as float64 after the checks that the module's docstring promises."""
    numbers = np.asarray(sizes, dtype=np.float64)
    if numbers.shape != matrix.shape[:1]:
        raise ValueError(
            f"sizes must hold one number for each of the {len(matrix)} tasks; its shape is {numbers.shape}"
        )
    for k in np.flatnonzero(~np.isfinite(numbers) | (numbers < 0))[:1]:
        raise ValueError(f"sizes[{k}] is {numbers[k]:g}, not a number of test images")
    for k in np.flatnonzero((numbers == 0) & _has_images(matrix))[:1]:
        raise ValueError(f"sizes[{k}] is 0, but A holds accuracies of task {k}")
    return numbers


def _has_images(matrix: FloatArray) -> NDArray[np.bool_]:
    """Tasks with a number in their column, (T,)."""
    return np.asarray(~np.isnan(matrix).all(axis=0))


def _n_finished(matrix: FloatArray) -> int:
    """n, the rows up to the last one that holds a number."""
    rows = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    return int(rows[-1]) + 1 if len(rows) else 0


def _old_tasks(matrix: FloatArray) -> NDArray[np.bool_]:
    """Tasks with test images before the last one finished, (T,)."""
    return _has_images(matrix) & (np.arange(len(matrix)) < _n_finished(matrix) - 1)


def _weighted_rows(matrix: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean of each row over its tasks k <= t, weighted: (T, T), (T,) -> (T,). Weight 0 leaves a NaN out."""
    below = np.tril(np.broadcast_to(weights, matrix.shape))  # (T, T)
    total = np.where(below > 0, below * matrix, 0.0).sum(axis=1)  # (T,)
    return _ratio(total, below.sum(axis=1))


def _counts(confusion: ArrayLike) -> IntArray:
    """The confusion matrix as int64 after the checks that the module's docstring promises."""
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"confusion must be square, (K, K) with K >= 1; its shape is {counts.shape}")
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"confusion must hold integer counts, not {counts.dtype}")
    for truth, guess in np.argwhere(counts < 0)[:1]:
        raise ValueError(f"confusion[{truth}, {guess}] is {counts[truth, guess]}: a count cannot be negative")
    return counts.astype(np.int64)


def _tasks(task_of_class: ArrayLike, n_seen: int) -> IntArray:
    """The task of each class seen, (K,)."""
    tasks = np.asarray(task_of_class)
    if tasks.ndim != 1 or len(tasks) < n_seen or not np.issubdtype(tasks.dtype, np.integer):
        raise ValueError(
            f"task_of_class must hold an integer for each of the {n_seen} classes seen; "
            f"its shape is {tasks.shape}, its type {tasks.dtype}"
        )
    for c in np.flatnonzero(tasks[:n_seen] < 0)[:1]:
        raise ValueError(f"task_of_class[{c}] is {tasks[c]}: tasks are numbered from 0")
    return tasks[:n_seen].astype(np.int64)


def _task_counts(confusion: ArrayLike, task_of_class: ArrayLike) -> IntArray:
    """Counts summed over the classes of each pair of tasks: (K, K), (>= K,) -> (t, t)."""
    counts = _counts(confusion)
    tasks = _tasks(task_of_class, len(counts))
    summed = np.zeros((tasks.max() + 1, tasks.max() + 1), dtype=np.int64)
    np.add.at(summed, (tasks[:, None], tasks[None, :]), counts)
    return summed


def _ratio(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    shares: FloatArray = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _mean(values: FloatArray) -> float:
    """The mean, NaN for no values."""
    return float(values.mean()) if len(values) else float("nan")
