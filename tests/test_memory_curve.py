"""Areas and accuracy per MiB against worked numbers, published ones and SciPy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from cil.compare.memory_curve import accuracy_per_mib, area, normalised_area

quick = settings(max_examples=60, deadline=None)
points = st.lists(
    st.tuples(st.integers(0, 2000).map(lambda n: n / 8), st.floats(0, 1)),
    min_size=2,
    max_size=8,
    unique_by=lambda point: point[0],
)


def test_two_points_are_a_trapezoid():
    assert area([0, 10], [0.5, 1]) == pytest.approx(7.5)
    assert normalised_area([0, 10], [0.5, 1]) == pytest.approx(0.75)


@given(points, st.floats(0, 1))
@quick
def test_a_constant_accuracy_covers_a_rectangle(curve, a):
    memory = [m for m, _ in curve]
    wanted = a * (max(memory) - min(memory))
    assert area(memory, [a] * len(memory)) == pytest.approx(wanted, abs=1e-12)
    assert normalised_area(memory, [a] * len(memory)) == pytest.approx(a)


@given(points, st.randoms())
@quick
def test_any_order_gives_what_scipy_finds_in_ascending_order(curve, random):
    mixed = random.sample(curve, len(curve))
    m, a = zip(*sorted(curve), strict=True)
    assert area(*zip(*mixed, strict=True)) == pytest.approx(float(trapezoid(a, m)), abs=1e-12)
    assert 0 <= normalised_area(m, a) <= 1 + 1e-12


def test_published_accuracy_per_mib():
    """Replay on CIFAR-100 in ten tasks: 69.98 % at 23.54 MiB are published as 2.97."""
    start, end = accuracy_per_mib([23.54, 10], [0.6998, 0.6])  # the other point is not a published one
    assert round(end, 2) == 2.97
    assert start == pytest.approx(6)


def test_one_budget_has_no_area_but_a_price():
    assert math.isnan(area([5], [0.4]))
    assert math.isnan(normalised_area([5], [0.4]))
    assert accuracy_per_mib([5], [0.4]) == pytest.approx((8, 8))


def test_no_memory_has_no_price():
    start, end = accuracy_per_mib([0, 4], [0.1, 0.4])
    assert math.isnan(start)
    assert end == pytest.approx(10)


@pytest.mark.parametrize("function", [area, normalised_area, accuracy_per_mib])
@pytest.mark.parametrize(
    ("memory", "accuracy", "told"),
    [
        ([1, 2, 1], [0.1, 0.2, 0.3], "same memory, 1 MiB"),
        ([1, 2], [0.1], "shapes"),
        ([], [], "shapes"),
        ([[1, 2]], [[0.1, 0.2]], "shapes"),
        ([1, 2], [10, 20], "percent"),
        ([1, 2], [0.1, -0.1], "fraction"),
        ([1, 2], [0.1, float("nan")], "fraction"),
        ([1, float("inf")], [0.1, 0.2], "MiB"),
        ([-1, 2], [0.1, 0.2], "MiB"),
    ],
)
def test_what_is_no_curve_is_an_error(function, memory, accuracy, told):
    with pytest.raises(ValueError, match=told):
        function(memory, accuracy)
