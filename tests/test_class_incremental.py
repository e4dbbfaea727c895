"""Class order and task sizes against the published ones, and the errors that name what is wrong."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.data.images import Dataset, ImageSet
from cil.errors import UserError
from scenarios.class_incremental import ClassIncremental, class_order, task_sizes

CIFAR100_1993 = [
    *(68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38, 58, 70, 77, 1, 85),
    *(19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44, 91, 41, 72, 60, 79, 52, 20, 10, 31, 54),
    *(37, 95, 14, 71, 96, 98, 97, 2, 64, 66, 42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18, 94, 11),
    *(12, 47, 25, 30, 46, 62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33),
]


def small(n_classes: int, name: str = "toy") -> Dataset:
    """Three training images and one test image of each class; each image's pixel is its label."""
    labels = np.tile(np.arange(n_classes), 3)
    train = ImageSet(labels.astype(np.uint8).reshape(-1, 1, 1, 1), labels)
    test = ImageSet(np.arange(n_classes, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(n_classes))
    return Dataset(name, train, test, tuple(f"class {label}" for label in range(n_classes)))


def test_seed_1993_is_the_published_order():
    assert class_order(100, 1993) == CIFAR100_1993
    assert class_order(10, 1993) == [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    assert class_order(1000, 1993)[:10] == [54, 7, 894, 512, 126, 337, 988, 11, 284, 493]
    assert ClassIncremental(step=10)(small(100)).class_order == tuple(CIFAR100_1993)


def test_other_orders():
    assert class_order(4, "natural") == [0, 1, 2, 3]
    assert class_order(4, [2, 0, 3, 1]) == [2, 0, 3, 1]
    assert class_order(100, 0) != class_order(100, 1)
    assert sorted(class_order(100, 2**32 - 1)) == list(range(100))


def test_global_random_state_is_neither_read_nor_changed():
    first = class_order(50, 7)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    scenario = ClassIncremental(step=5, order=7)(small(50))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert list(scenario.class_order) == first


@pytest.mark.parametrize(
    ("n_classes", "first", "step", "expected"),
    [
        (100, 0, 10, [10] * 10),
        (100, 50, 10, [50] + [10] * 5),
        (100, 0, 30, [30, 30, 30, 10]),
        (100, 50, 15, [50, 15, 15, 15, 5]),
        (10, 0, 10, [10]),
        (10, 9, 1, [9, 1]),
        (10, 0, 6, [6, 4]),
    ],
)
def test_task_sizes(n_classes, first, step, expected):
    assert task_sizes(n_classes, first=first, step=step) == expected


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_class_once_and_no_empty_task(data):
    n_classes = data.draw(st.integers(2, 120))
    first = data.draw(st.integers(0, n_classes - 1))
    step = data.draw(st.integers(1, n_classes - first))
    seed = data.draw(st.integers(0, 2**32 - 1))
    sizes = task_sizes(n_classes, first=first, step=step)
    assert sum(sizes) == n_classes and min(sizes) > 0
    assert len(sizes) == bool(first) + -(-(n_classes - first) // step)
    assert all(size == step for size in sizes[bool(first) : -1])
    scenario = ClassIncremental(first=first, step=step, order=seed)(small(n_classes))
    assert [task.n_new for task in scenario.tasks] == sizes
    learned = [scenario.class_order[new] for task in scenario.tasks for new in task.new]
    assert sorted(learned) == list(range(n_classes))
    for task in scenario.tasks:  # the pixel is the original label: images follow their classes
        pixels = task.train.raw()[:, 0, 0, 0].tolist()
        assert pixels == [scenario.class_order[label] for label in task.train.labels.tolist()]
        assert sorted(set(task.train.labels.tolist())) == list(task.new)


def test_names():
    data = small(100, "cifar100")
    assert ClassIncremental(step=10)(data).name == "cifar100 B0 Inc10"
    assert ClassIncremental(first=50, step=10)(data).name == "cifar100 B50 Inc10"
    assert ClassIncremental(sizes=[30, 20, 50])(data).name == "cifar100 sizes 30-20-50"
    assert [task.n_new for task in ClassIncremental(sizes=[30, 20, 50])(data).tasks] == [30, 20, 50]


def test_arguments_are_stored_as_given():
    order = [1, 0]
    builder = ClassIncremental(first=-3, step=0, sizes=[], order=order)  # nonsense is found when the data are known
    assert (builder.first, builder.step, builder.sizes) == (-3, 0, [])
    assert builder.order is order


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of step and sizes, not neither"),
        ({"step": 2, "sizes": [5, 5]}, "one of step and sizes, not both"),
        ({"first": 2, "sizes": [5, 5]}, "first=2 contradicts sizes"),
        ({"step": 0}, "step=0; legal: a whole number from 1 to 10"),
        ({"step": 11}, "step=11; legal: a whole number from 1 to 10"),
        ({"step": 2.5}, "step=2.5; legal"),
        ({"step": True}, "step=True; legal"),
        ({"first": -1, "step": 2}, "first=-1; legal: a whole number from 0 to 9"),
        ({"first": 10, "step": 2}, "first=10; legal: a whole number from 0 to 9"),
        ({"first": 8, "step": 3}, "step=3; legal: a whole number from 1 to 2, for first=8 leaves 2 of 10 classes"),
        ({"sizes": [5, 4]}, r"sizes=\[5, 4\] hold 9 classes; the data have 10"),
        ({"sizes": [5, 6]}, "hold 11 classes"),
        ({"sizes": [10, 0]}, r"sizes=\[10, 0\]; legal"),
        ({"sizes": []}, "hold 0 classes"),
        ({"step": 2, "order": "naturl"}, "did you mean 'natural'"),
        ({"step": 2, "order": -1}, "order=-1; a seed"),
        ({"step": 2, "order": 2**32}, "a seed is a whole number"),
        ({"step": 2, "order": None}, "order=None; legal"),
        ({"step": 2, "order": [0, 1, 2, 3, 4, 5, 6, 7, 8]}, r"missing \[9\], repeated \[\], no such label \[\]"),
        ({"step": 2, "order": [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]}, r"missing \[9\], repeated \[8\]"),
        ({"step": 2, "order": [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]}, r"no such label \[10\]"),
    ],
)
def test_errors_name_key_and_value(arguments, message):
    with pytest.raises(UserError, match=message):
        ClassIncremental(**arguments)(small(10))
