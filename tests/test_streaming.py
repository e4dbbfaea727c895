"""Accuracy along a stream and blind classifiers, against hand-made numbers and plain loops."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.data import blind
from cil.evaluation import metrics, streaming

# --- accuracy at any time ---------------------------------------------------------------------------------------------


def test_anytime_accuracy_counts_the_measurements_that_are_due():
    # Measured after 10 and 20 images, at the end of a phase after 25, and after 30.
    accuracy, seen = [0.2, 0.4, 0.9, 0.6], [10, 20, 25, 30]
    assert streaming.anytime_accuracy(accuracy, seen, 10) == pytest.approx((0.2 + 0.4 + 0.6) / 3)
    assert streaming.anytime_accuracy(accuracy, seen, 20) == pytest.approx(0.4)
    assert math.isnan(streaming.anytime_accuracy(accuracy, seen, 40))
    assert math.isnan(streaming.anytime_accuracy([], [], 10))


def test_anytime_area_weighs_by_images():
    accuracy, seen = [0.2, 0.4, 0.9, 0.6], [10, 20, 25, 30]
    expected = (0.2 * 10 + 0.4 * 10 + 0.9 * 5 + 0.6 * 5) / 30
    assert streaming.anytime_area(accuracy, seen) == pytest.approx(expected)
    assert math.isnan(streaming.anytime_area([], []))


def test_the_area_of_a_constant_curve_is_the_constant():
    seen = [3, 10, 11, 40]
    assert streaming.anytime_area([0.7] * 4, seen) == pytest.approx(0.7)
    assert streaming.anytime_accuracy([0.7] * 4, seen, 10) == pytest.approx(0.7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 50))
def test_the_two_definitions_agree_where_all_pieces_are_equal(accuracy, every):
    seen = [every * (i + 1) for i in range(len(accuracy))]
    assert streaming.anytime_area(accuracy, seen) == pytest.approx(streaming.anytime_accuracy(accuracy, seen, every))


@pytest.mark.parametrize(
    ("accuracy", "seen", "message"),
    [
        ([0.5], [1, 2], "do not fit"),
        ([0.5, 0.5], [2, 2], "must rise"),
        ([0.5], [0], "must rise from 1"),
        ([50.0], [1], "fractions"),
    ],
)
def test_curves_that_make_no_sense_are_refused(accuracy, seen, message):
    for measure in (streaming.anytime_area, lambda a, s: streaming.anytime_accuracy(a, s, 1)):
        with pytest.raises(ValueError, match=message):
            measure(accuracy, seen)


def test_a_period_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 image"):
        streaming.anytime_accuracy([0.5], [1], 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_by_phase_is_what_counting_images_by_phase_gives(data):
    n_pieces = data.draw(st.integers(1, 8))
    new = [data.draw(st.integers(1, 3))] + [data.draw(st.integers(0, 2)) for _ in range(n_pieces - 1)]
    phase = np.cumsum([0] + [data.draw(st.integers(0, 1)) for _ in range(n_pieces - 1)])
    done = data.draw(st.integers(0, n_pieces))
    owner = np.repeat(np.arange(n_pieces), new)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    images = rng.integers(0, 5, len(owner))  # test images of each class, perhaps none
    A = np.full((n_pieces, n_pieces), np.nan)
    n_phases = phase[-1] + 1
    expected = np.full((n_phases, n_phases), np.nan)
    for t in range(done):
        n_seen = sum(new[: t + 1])
        confusion = np.zeros((n_seen, n_seen), int)
        for label in range(n_seen):
            for guess in rng.integers(0, n_seen, images[label]):
                confusion[label, guess] += 1
        A[t] = metrics.accuracy_row(confusion, owner, n_pieces)
        if t + 1 == n_pieces or phase[t + 1] != phase[t]:
            for q in range(phase[t] + 1):
                mine = [c for c in range(n_seen) if phase[owner[c]] == q]
                total = sum(images[c] for c in mine)
                if total:
                    expected[phase[t], q] = sum(confusion[c, c] for c in mine) / total
    sizes = np.bincount(owner, weights=images, minlength=n_pieces)
    found, counts = streaming.by_phase(A, sizes, phase)
    np.testing.assert_allclose(found, expected)
    assert counts.tolist() == [images[phase[owner] == q].sum() for q in range(n_phases)]
    metrics.summary(found, counts)  # a matrix that the other metrics take


def test_forgetting_by_class():
    nan = math.nan
    per_class = [
        [0.9, 0.0, nan, nan],
        [0.5, 0.0, 0.6, nan],
        [0.6, 0.2, 0.7, 1.0],
    ]
    # Class 0 falls by 0.3 from its best, class 2 gains 0.1; class 1 was never right before, class 3 is new.
    assert streaming.class_forgetting(per_class) == pytest.approx((0.3 - 0.1) / 2)
    assert math.isnan(streaming.class_forgetting(per_class[:1]))
    assert math.isnan(streaming.class_forgetting([[0.0], [1.0]]))
    assert math.isnan(streaming.class_forgetting(np.empty((0, 3))))
    with pytest.raises(ValueError, match=r"\(P, K\)"):
        streaming.class_forgetting([0.5])


def test_forgetting_by_class_without_test_images_leaves_the_class_out():
    assert streaming.class_forgetting([[math.nan, 0.5], [math.nan, 0.25]]) == pytest.approx(0.25)


# --- what comes next --------------------------------------------------------------------------------------------------


def test_running_accuracy_is_the_recursion_of_the_definition():
    right, running = [0, 1, 1, 0, 1], []
    for t, a in enumerate(right, 1):
        running.append(((running[-1] if running else 0) * (t - 1) + a) / t)
    np.testing.assert_allclose(streaming.running_accuracy(right), running)
    np.testing.assert_allclose(streaming.running_accuracy([0, 3], [4, 2]), [0, 0.5])
    assert np.isnan(streaming.running_accuracy([0, 1], [0, 2])).tolist() == [True, False]


def test_the_near_future_of_a_frozen_model_is_its_plain_accuracy():
    rng = np.random.default_rng(0)
    right = rng.random(1000) < 0.3  # whatever it learns, it predicts each image as it always would
    assert streaming.running_accuracy(right)[-1] == pytest.approx(right.mean())
    cuts = [0, 10, 400, 1000]
    pieces = [right[a:b] for a, b in itertools.pairwise(cuts)]
    in_pieces = streaming.running_accuracy([p.sum() for p in pieces], [len(p) for p in pieces])
    assert in_pieces[-1] == pytest.approx(right.mean())


def mode_by_hand(labels, t, window):
    """The most frequent of the last labels up to t; among equals the one seen last."""
    recent = labels[max(0, t - window + 1) : t + 1]
    counts = Counter(recent)
    most = max(counts.values())
    return next(label for label in reversed(recent) if counts[label] == most)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_blind_predictions_are_modes(labels, windows):
    found = blind.blind_predictions(labels, windows)
    expected = [[mode_by_hand(labels, t, k) for t in range(len(labels))] for k in windows]
    assert found.tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=40), st.integers(1, 12), st.data())
def test_blind_accuracy_is_the_loop_over_its_formula(labels, window, data):
    shift = data.draw(st.integers(0, len(labels) - 2))
    n = len(labels)
    # Counted from 1 as in the formulas: a guess after label t is about label t + 1 + S.
    right = [mode_by_hand(labels, t - 1, window) == labels[t + shift] for t in range(1, n - shift)]
    expected = sum(right) / n if shift == 0 else sum(right) / len(right)
    assert blind.blind_accuracy(labels, window, shift) == pytest.approx(expected)


def test_ties_go_to_the_label_seen_last():
    assert blind.blind_predictions([0, 1, 1, 0], [4])[0].tolist() == [0, 1, 1, 0]
    assert blind.blind_predictions([2, 2, 0, 0, 1], [5])[0].tolist() == [2, 2, 2, 0, 0]


def test_a_constant_stream_is_known_but_for_its_first_label():
    n = 50
    assert blind.blind_accuracy([3] * n, 1) == pytest.approx((n - 1) / n)


def test_alternating_labels_are_never_and_always_repeated():
    labels = [0, 1] * 20
    assert blind.blind_accuracy(labels, 1, shift=0) == 0
    assert blind.blind_accuracy(labels, 1, shift=1) == 1


def test_unrelated_labels_are_guessed_at_chance():
    labels = np.random.default_rng(3).integers(0, 10, 20000)
    for window in (1, 5, 100, 5000):
        for shift in (0, 7):
            assert blind.blind_accuracy(labels, window, shift) == pytest.approx(0.1, abs=0.01)
    assert blind.near_future(labels, slack=0.01).shift == 0


@pytest.mark.parametrize(("length", "blocks"), [(5, 12), (8, 20), (2, 9)])
def test_blocks_of_one_label_are_told_up_to_their_length(length, blocks):
    labels = np.repeat(np.arange(blocks), length)
    assert blind.blind_accuracy(labels, 1) == pytest.approx((length - 1) / length)
    for shift in range(length - 1, len(labels) - 1):
        for window in (1, 3, length, 1000):
            assert blind.blind_accuracy(labels, window, shift) == 0
    found = blind.near_future(labels, shifts=range(len(labels)))
    assert found.shift == length - 1
    assert found.accuracy == 0 and found.majority == pytest.approx(1 / blocks)
    # One shift before, each block's first label still tells its last.
    before = blind.best_blind(labels, [length - 2])[0]
    assert before.accuracy > before.majority


def test_without_a_shift_that_is_far_enough_there_is_none():
    labels = np.repeat(np.arange(12), 8)
    assert blind.near_future(labels, shifts=[0, 2, 4]) is None
    assert blind.near_future(labels, shifts=[0, 2, 4], slack=1.0).shift == 0
    assert blind.near_future(labels).shift == 8  # of 0, 1, 2, 4, 8, ...


def test_the_best_window_wins_and_of_equal_ones_the_smallest():
    labels = [0, 0, 1] * 30  # the majority of three beats the last one
    found = blind.best_blind(labels, [0])[0]
    accuracies = {k: blind.blind_accuracy(labels, k) for k in (1, 2, 5, 10, 20, 30, 40, 60, 75)}
    assert found.accuracy == max(accuracies.values())
    assert found.window == min(k for k, value in accuracies.items() if value == found.accuracy)


def test_majority_level():
    assert blind.majority_level([0, 2, 2, 1]) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: blind.blind_predictions([0, 1], [0]), "at least 1"),
        (lambda: blind.blind_predictions([[0]], [1]), "integers"),
        (lambda: blind.blind_predictions([0.5], [1]), "integers"),
        (lambda: blind.blind_predictions([-1], [1]), "from 0"),
        (lambda: blind.blind_accuracy([0, 1], 1, 2), "from 0 to 1"),
        (lambda: blind.blind_accuracy([0, 1], 1, -1), "from 0 to 1"),
    ],
)
def test_nonsense_about_labels_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
