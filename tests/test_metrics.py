"""Metrics against worked matrices, explicit loops and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score
from sklearn.metrics import top_k_accuracy_score as sk_top_k

from cil.evaluation import metrics as m

pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")  # samples of one image

NAN = float("nan")
TOY = np.array([[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.5, 0.7, 0.9]])
LATER_PEAK = np.array([[0.6, NAN, NAN], [0.8, 0.5, NAN], [0.7, 0.5, 0.4]])
EQUAL = np.array([10, 10, 10])
OF_MATRIX = [m.task_mean_accuracy, m.forgetting, m.forgetting_per_task, m.backward_transfer, m.new_task_accuracy]
OF_SIZES = [m.seen_accuracy, m.average_incremental_accuracy, m.last_accuracy, m.summary]
quick = settings(max_examples=60, deadline=None)


def same(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12, equal_nan=True)


# Worked examples


def test_toy_matrix():
    same(m.seen_accuracy(TOY, EQUAL), [0.9, 0.7, 0.7])
    same(m.task_mean_accuracy(TOY), [0.9, 0.7, 0.7])
    same(m.forgetting_per_task(TOY), [0.4, 0.1, NAN])
    wanted = {
        "average_incremental_accuracy": 2.3 / 3,
        "last_accuracy": 0.7,
        "forgetting": 0.25,
        "backward_transfer": -0.25,
        "new_task_accuracy": 2.6 / 3,
    }
    got = m.summary(TOY, EQUAL)
    assert list(got) == list(wanted)
    same(list(got.values()), list(wanted.values()))


def test_a_later_peak_separates_forgetting_from_minus_backward_transfer():
    same(m.forgetting_per_task(LATER_PEAK), [0.1, 0.0, NAN])
    same(m.forgetting(LATER_PEAK), 0.05)
    same(-m.backward_transfer(LATER_PEAK), -0.05)


def test_the_maximum_leaves_out_the_last_row():
    best_now = np.array([[0.5, NAN], [0.9, 1.0]])
    same(m.forgetting(best_now), -0.4)
    same(m.backward_transfer(best_now), 0.4)


def test_uneven_sizes_weigh_images_not_tasks():
    sizes = [50, 10, 40]
    same(m.seen_accuracy(TOY, sizes), [0.9, (30 + 8) / 60, (25 + 7 + 36) / 100])
    same(m.last_accuracy(TOY, sizes), 0.68)
    assert abs(m.seen_accuracy(TOY, sizes)[1] - m.task_mean_accuracy(TOY)[1]) > 0.05


def test_one_task():
    got = m.summary([[0.8]], [7])
    same([got["average_incremental_accuracy"], got["last_accuracy"], got["new_task_accuracy"]], [0.8, 0.8, 0.8])
    assert math.isnan(got["forgetting"])
    assert math.isnan(got["backward_transfer"])
    same(m.forgetting_per_task([[0.8]]), [NAN])


def test_summary_is_plain_floats_for_json():
    got = m.summary(TOY.astype(np.float32), EQUAL)
    assert all(type(value) is float for value in got.values())
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_run_in_progress_is_measured_by_its_finished_rows(n):
    partial = np.full((6, 6), NAN)
    partial[:3, :3] = TOY
    partial[n:] = NAN
    sizes = [5, 10, 20, 40, 80, 160]
    same(list(m.summary(partial, sizes).values()), list(m.summary(TOY[:n, :n], sizes[:n]).values()))
    for longer, shorter in [
        (m.seen_accuracy(partial, sizes), m.seen_accuracy(TOY[:n, :n], sizes[:n])),
        (m.task_mean_accuracy(partial), m.task_mean_accuracy(TOY[:n, :n])),
        (m.forgetting_per_task(partial), m.forgetting_per_task(TOY[:n, :n])),
    ]:
        same(longer, [*shorter, *[NAN] * (6 - n)])


@pytest.mark.filterwarnings("error")
def test_nothing_finished_is_all_nan_and_silent():
    empty = np.full((3, 3), NAN)
    assert all(math.isnan(value) for value in m.summary(empty, EQUAL).values())
    assert np.isnan(m.seen_accuracy(empty, EQUAL)).all()
    assert np.isnan(m.task_mean_accuracy(empty)).all()


def test_a_task_without_test_images_is_left_out():
    matrix = np.full((4, 4), NAN)
    keep = [0, 2, 3]
    matrix[np.ix_(keep, keep)] = TOY
    matrix[1, 0] = 0.9
    same(m.seen_accuracy(matrix, [10, 0, 10, 10]), [0.9, 0.9, 0.7, 0.7])
    same(m.task_mean_accuracy(matrix), [0.9, 0.9, 0.7, 0.7])
    same([m.forgetting(matrix), m.backward_transfer(matrix)], [0.25, -0.25])
    same(m.new_task_accuracy(matrix), 2.6 / 3)


def test_a_missing_number_is_not_averaged_away():
    skipped = TOY.copy()
    skipped[1] = NAN
    same(m.seen_accuracy(skipped, EQUAL), [0.9, NAN, 0.7])
    got = m.summary(skipped, EQUAL)
    same(got["last_accuracy"], 0.7)
    assert all(math.isnan(got[key]) for key in got if key != "last_accuracy")
    same(m.forgetting_per_task(skipped), [0.4, NAN, NAN])  # the maximum ignores the missing row


# Mistakes of the caller


@pytest.mark.parametrize("function", [*OF_MATRIX, *OF_SIZES], ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.full((2, 3), 0.5), r"square.*\(2, 3\)"),
        (np.full(4, 0.5), r"square.*\(4,\)"),
        (np.empty((0, 0)), "square"),
        (np.where(TOY == 0.7, 70.0, TOY), r"A\[2, 1\] is 70 \(percent\?\)"),
        (np.where(TOY == 0.7, np.inf, TOY), r"A\[2, 1\] is inf"),
        (np.where(TOY == 0.7, -0.1, TOY), r"A\[2, 1\] is -0.1; .*fractions"),
        (np.nan_to_num(TOY), r"A\[0, 1\] is 0, but task 1 comes after task 0"),
    ],
    ids=["not square", "one axis", "empty", "percent", "infinite", "negative", "zeros above the diagonal"],
)
def test_a_wrong_matrix_is_named(function, wrong, words):
    with pytest.raises(ValueError, match=words):
        function(wrong, EQUAL) if function in OF_SIZES else function(wrong)


@pytest.mark.parametrize("function", OF_SIZES, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([10, 10], r"each of the 3 tasks.*\(2,\)"),
        (10, r"each of the 3 tasks.*\(\)"),
        ([10, -1, 10], r"sizes\[1\] is -1"),
        ([10, 10, NAN], r"sizes\[2\] is nan"),
        ([10, 10, 0], r"sizes\[2\] is 0, but A holds accuracies of task 2"),
    ],
)
def test_wrong_sizes_are_named(function, sizes, words):
    with pytest.raises(ValueError, match=words):
        function(TOY, sizes)


@pytest.mark.parametrize(
    ("confusion", "tasks", "words"),
    [
        (np.ones((2, 3), dtype=int), [0, 0, 0], r"square.*\(2, 3\)"),
        (np.ones((0, 0), dtype=int), [], "square"),
        (np.full((2, 2), 0.5), [0, 1], "integer counts, not float64"),
        (np.array([[1, -2], [0, 1]]), [0, 1], r"confusion\[0, 1\] is -2"),
        (np.eye(2, dtype=int), [0], "each of the 2 classes seen"),
        (np.eye(2, dtype=int), [0.0, 1.0], "integer for each"),
        (np.eye(2, dtype=int), [0, -1], r"task_of_class\[1\] is -1"),
    ],
)
def test_wrong_counts_are_named(confusion, tasks, words):
    for function in (m.task_confusion, m.task_inference_decomposition, lambda c, t: m.accuracy_row(c, t, 3)):
        with pytest.raises(ValueError, match=words):
            function(confusion, tasks)


def test_a_task_beyond_the_last_is_named():
    with pytest.raises(ValueError, match="class 1 is of task 2, but there are 2 tasks"):
        m.accuracy_row(np.eye(2, dtype=int), [0, 2], 2)


@pytest.mark.parametrize(
    ("scores", "labels", "k", "words"),
    [
        (np.zeros(3), [0, 0, 0], 1, "do not fit"),
        (np.zeros((3, 2)), [0, 0], 1, "do not fit"),
        (np.zeros((1, 2)), [2], 1, r"in \[0, 2\)"),
        (np.zeros((1, 2)), [-1], 1, r"in \[0, 2\)"),
        (np.zeros((1, 2)), [0.0], 1, "integers, not float64"),
        (np.zeros((1, 2)), [0], 0, "at least 1"),
        (np.array([[0.0, 1.0], [NAN, 1.0]]), [0, 0], 1, "row 1 holds NaN"),
    ],
)
def test_wrong_scores_are_named(scores, labels, k, words):
    with pytest.raises(ValueError, match=words):
        m.top_k_accuracy(scores, labels, k)


# Explicit loops


@st.composite
def runs(draw):
    """An accuracy matrix with n of T rows finished, and its sizes."""
    n_tasks = draw(st.integers(1, 6))
    n = draw(st.integers(0, n_tasks))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = rng.integers(1, 30, n_tasks)
    matrix = np.full((n_tasks, n_tasks), NAN)
    for t in range(n):
        for k in range(t + 1):
            matrix[t, k] = rng.integers(0, sizes[k] + 1) / sizes[k]
    return matrix, sizes, n


@quick
@given(runs())
def test_matrix_metrics_equal_explicit_loops(run):
    A, sizes, n = run
    before = A.copy()
    pooled, means = [], []
    for t in range(n):
        right = sum(int(sizes[k]) * A[t, k] for k in range(t + 1))
        pooled.append(right / sum(int(sizes[k]) for k in range(t + 1)))
        means.append(sum(A[t, k] for k in range(t + 1)) / (t + 1))
    falls = [max(A[i, k] for i in range(k, n - 1)) - A[n - 1, k] for k in range(n - 1)]
    transfers = [A[n - 1, k] - A[k, k] for k in range(n - 1)]
    unreached = [NAN] * (len(A) - n)
    same(m.seen_accuracy(A, sizes), pooled + unreached)
    same(m.task_mean_accuracy(A), means + unreached)
    same(m.forgetting_per_task(A), falls + [NAN] * (len(A) - len(falls)))
    wanted = {
        "average_incremental_accuracy": sum(pooled) / n if n else NAN,
        "last_accuracy": pooled[-1] if n else NAN,
        "forgetting": sum(falls) / (n - 1) if n > 1 else NAN,
        "backward_transfer": sum(transfers) / (n - 1) if n > 1 else NAN,
        "new_task_accuracy": sum(A[t, t] for t in range(n)) / n if n else NAN,
    }
    got = m.summary(A, sizes)
    same([got[key] for key in wanted], list(wanted.values()))
    np.testing.assert_array_equal(A, before)  # the input is left alone


@quick
@given(runs())
def test_forgetting_is_at_least_minus_backward_transfer(run):
    A, _, n = run
    if n > 1:
        assert -1 <= -m.backward_transfer(A) <= m.forgetting(A) + 1e-12 <= 1 + 1e-12
    same(m.seen_accuracy(A, np.full(len(A), 7)), m.task_mean_accuracy(A))


@st.composite
def predictions(draw):
    """Truths, predictions and the task of each class: tasks hold 1 to 4 classes, some classes may have no image."""
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    tasks = np.repeat(np.arange(len(widths)), widths)
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.integers(0, len(tasks), n)
    guess = np.where(rng.random(n) < 0.5, truth, rng.integers(0, len(tasks), n))
    return truth, guess, tasks


def counted(truth, guess, n_classes):
    return confusion_matrix(truth, guess, labels=np.arange(n_classes))


@quick
@given(predictions())
def test_counts_equal_explicit_loops(sample):
    truth, guess, tasks = sample
    confusion = counted(truth, guess, len(tasks))
    n_tasks = tasks[-1] + 1
    row, between = np.full(n_tasks + 2, NAN), np.full((n_tasks, n_tasks), NAN)
    for i in range(n_tasks):
        mine = [(y, p) for y, p in zip(truth, guess, strict=True) if tasks[y] == i]
        if mine:
            row[i] = sum(y == p for y, p in mine) / len(mine)
            for j in range(n_tasks):
                between[i, j] = sum(tasks[p] == j for _, p in mine) / len(mine)
    same(m.accuracy_row(confusion, tasks, n_tasks + 2), row)
    got = m.task_confusion(confusion, tasks)
    same(got, between)
    same(got.sum(axis=1)[~np.isnan(row[:n_tasks])], 1.0)


@quick
@given(predictions())
def test_task_right_times_class_right_is_the_accuracy(sample):
    truth, guess, tasks = sample
    confusion = counted(truth, guess, len(tasks))
    task_right, class_right = m.task_inference_decomposition(confusion, tasks)
    same(task_right, accuracy_score(tasks[truth], tasks[guess]))
    if task_right:
        hit = tasks[truth] == tasks[guess]
        same(class_right, accuracy_score(truth[hit], guess[hit]))
        same(task_right * class_right, accuracy_score(truth, guess))
    else:
        assert math.isnan(class_right)
        assert accuracy_score(truth, guess) == 0


@quick
@given(predictions(), st.randoms(use_true_random=False))
def test_permuting_images_or_classes_changes_nothing(sample, random):
    truth, guess, tasks = sample
    confusion = counted(truth, guess, len(tasks))
    order = random.sample(range(len(truth)), len(truth))
    np.testing.assert_array_equal(counted(truth[order], guess[order], len(tasks)), confusion)
    classes = np.array(random.sample(range(len(tasks)), len(tasks)))
    moved = confusion[np.ix_(classes, classes)]
    same(m.accuracy_row(moved, tasks[classes], 4), m.accuracy_row(confusion, tasks, 4))
    same(m.task_confusion(moved, tasks[classes]), m.task_confusion(confusion, tasks))
    same(m.task_inference_decomposition(moved, tasks[classes]), m.task_inference_decomposition(confusion, tasks))
    same(m.per_class_accuracy(moved), m.per_class_accuracy(confusion)[classes])


@quick
@given(predictions())
def test_row_and_sizes_give_the_pooled_accuracy(sample):
    truth, guess, tasks = sample
    n_tasks = tasks[-1] + 1
    A = np.full((n_tasks, n_tasks), NAN)
    A[-1] = m.accuracy_row(counted(truth, guess, len(tasks)), tasks, n_tasks)
    same(m.last_accuracy(A, np.bincount(tasks[truth], minlength=n_tasks)), accuracy_score(truth, guess))


# scikit-learn


@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore:y_pred contains classes", "ignore:A single label"
)
@quick
@given(predictions())
def test_per_class_accuracy_is_recall(sample):
    truth, guess, tasks = sample
    got = m.per_class_accuracy(counted(truth, guess, len(tasks)))
    same(got, recall_score(truth, guess, labels=np.arange(len(tasks)), average=None, zero_division=np.nan))
    same(np.nanmean(got), balanced_accuracy_score(truth, guess))


@quick
@given(st.integers(1, 30), st.integers(3, 9), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_top_k_agrees_with_scikit_learn_without_ties(n, n_classes, k, seed):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(n_classes, dtype=float), (n, 1)), axis=1)
    labels = rng.integers(0, n_classes, n)
    k = min(k, n_classes - 1)  # scikit-learn warns from K on
    same(m.top_k_accuracy(scores, labels, k), sk_top_k(labels, scores, k=k, labels=np.arange(n_classes)))
    order = rng.permutation(n)
    assert m.top_k_accuracy(scores[order], labels[order], k) == m.top_k_accuracy(scores, labels, k)


# Details of counts and scores


@quick
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_ties_go_to_the_lower_class_id(n, n_classes, k, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 3, (n, n_classes)), rng.integers(0, n_classes, n)
    right = [
        y in sorted(range(n_classes), key=lambda c: (-row[c], c))[:k] for row, y in zip(scores, labels, strict=True)
    ]
    same(m.top_k_accuracy(scores, labels, k), sum(right) / n)
    assert m.top_k_accuracy(scores, labels, 1) == accuracy_score(labels, scores.argmax(axis=1))


def test_k_beyond_the_classes_means_all_of_them():
    scores = np.array([[0.1, -np.inf], [0.3, 0.2]])
    assert m.top_k_accuracy(scores, [1, 1]) == m.top_k_accuracy(scores, [1, 1], k=2) == 1.0
    assert m.top_k_accuracy(scores, [1, 1], k=1) == 0.0


@pytest.mark.filterwarnings("error")
def test_no_images_is_nan_and_silent():
    assert math.isnan(m.top_k_accuracy(np.empty((0, 3)), np.empty(0, dtype=int)))
    nothing = np.zeros((2, 2), dtype=int)
    same(m.per_class_accuracy(nothing), [NAN, NAN])
    same(m.accuracy_row(nothing, [0, 1], 3), [NAN, NAN, NAN])
    same(m.task_confusion(nothing, [0, 1]), np.full((2, 2), NAN))
    same(m.task_inference_decomposition(nothing, [0, 1]), (NAN, NAN))


def test_a_task_of_one_class():
    confusion = np.array([[3, 1, 0], [1, 4, 1], [2, 0, 8]])  # task 0: classes 0 and 1; task 1: class 2
    same(m.accuracy_row(confusion, [0, 0, 1], 2), [0.7, 0.8])
    same(m.task_confusion(confusion, [0, 0, 1]), [[0.9, 0.1], [0.2, 0.8]])
    same(m.task_inference_decomposition(confusion, [0, 0, 1]), (17 / 20, 15 / 17))
    same(m.accuracy_row([[5]], [0], 1), [1.0])


def test_tasks_of_classes_not_seen_yet_are_not_read():
    confusion = np.array([[3, 1], [1, 5]], dtype=np.uint8)
    tasks = [0, 1, 2, 2]
    same(m.accuracy_row(confusion, tasks, 3), [0.75, 5 / 6, NAN])
    assert m.task_confusion(confusion, tasks).shape == (2, 2)
    same(math.prod(m.task_inference_decomposition(confusion, tasks)), 0.8)


def test_small_integer_types_do_not_overflow():
    confusion = np.full((4, 4), 200, dtype=np.uint8)
    same(m.per_class_accuracy(confusion), [0.25] * 4)
    same(m.task_confusion(confusion, [0, 0, 1, 1]), np.full((2, 2), 0.5))
