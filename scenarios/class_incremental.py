"""The class-incremental scenario: the classes of one data set, in a fixed order, a few new ones at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cil.data.images import Dataset
from cil.data.scenario import Scenario, ScenarioBuilder, disjoint
from cil.errors import UserError, unknown


class ClassIncremental(ScenarioBuilder):
    """Cut a data set into tasks that each bring classes never seen before.

    "Bm-Incn" in the literature is ``first=m, step=n``: B0-Inc10 is ``step=10``, B50-Inc10 is ``first=50, step=10``.

    Args:
        first: classes of the first task; 0: as many as every other task.
        step: classes of each later task. The last task takes what is left: 100 classes with a step of 30 are tasks of
            30, 30, 30 and 10.
        sizes: classes of each task, written out, in place of ``first`` and ``step``; their sum is the number of
            classes.
        order: the order in which classes appear: a seed of ``numpy.random.RandomState(seed).permutation`` (1993 is the
            order of most published results), "natural" for the order of the labels, all labels written out, or null for
            another order with each run's data seed.
    """

    by_run = ("order",)

    def __init__(
        self,
        *,
        first: int = 0,
        step: int | None = None,
        sizes: list[int] | None = None,
        order: int | str | list[int] | None = 1993,
    ) -> None:
        self.first = first
        self.step = step
        self.sizes = sizes
        self.order = order

    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario of this data set.

        Raises:
            UserError: sizes or order do not fit the data set's number of classes.
        """
        groups, name = self.groups(dataset)
        return disjoint(dataset, groups, name=name)

    def groups(self, dataset: Dataset) -> tuple[list[list[int]], str]:
        """The original labels of each task's classes, in order of appearance, and the scenario's name.

        Raises:
            UserError: as for the scenario.
        """
        n_classes = len(dataset.classes)
        if (self.step is None) == (self.sizes is None):
            given = "both" if self.step is not None else "neither"
            raise UserError(f"scenario: give one of step and sizes, not {given} (step={self.step}, sizes={self.sizes})")
        if self.step is not None:
            sizes = task_sizes(n_classes, first=self.first, step=self.step)
            name = f"{dataset.name} B{self.first} Inc{self.step}"
        else:
            if self.first != 0:
                raise UserError(f"scenario: first={self.first!r} contradicts sizes={self.sizes}: sizes name every task")
            sizes = _listed_sizes(n_classes, self.sizes)
            name = f"{dataset.name} sizes {'-'.join(map(str, sizes))}"
        order = class_order(n_classes, self.order)
        starts = np.cumsum([0, *sizes]).tolist()
        return [order[start : start + size] for start, size in zip(starts, sizes, strict=False)], name


def task_sizes(n_classes: int, *, first: int = 0, step: int) -> list[int]:
    """The number of new classes of each task: ``first`` of them, then ``step`` at a time; the last task takes the rest.

    Args:
        n_classes: K, the classes to share out.
        first: classes of the first task, 0 for ``step``.
        step: classes of each later task.

    Returns:
        Positive sizes with sum K.

    Raises:
        UserError: a value is not a whole number in its range.
    """
    if not _whole(first) or not 0 <= first < n_classes:
        raise UserError(f"scenario: first={first!r}; legal: a whole number from 0 to {n_classes - 1}")
    if not _whole(step) or not 1 <= step <= n_classes - first:
        after = f", for first={first} leaves {n_classes - first} of {n_classes} classes" if first else ""
        raise UserError(f"scenario: step={step!r}; legal: a whole number from 1 to {n_classes - first}{after}")
    tasks, rest = divmod(n_classes - first, step)
    return ([first] if first else []) + [step] * tasks + ([rest] if rest else [])


def class_order(n_classes: int, order: int | str | Sequence[int] | None) -> list[int]:
    """The labels 0 to K - 1 in the order in which they are learned. Global random state is neither read nor changed.

    Args:
        n_classes: K.
        order: a seed, "natural" or a permutation.

    Raises:
        UserError: not a seed, not a name, or a list that is no permutation: which labels are missing or repeated.
    """
    if isinstance(order, str):
        if order != "natural":
            raise unknown("scenario.order", order, ["natural", "a seed such as 1993", "a list of all labels"])
        return list(range(n_classes))
    if isinstance(order, int) and not isinstance(order, bool):
        if not 0 <= order < 2**32:
            raise UserError(f"scenario: order={order}; a seed is a whole number from 0 to {2**32 - 1}")
        return np.random.RandomState(order).permutation(n_classes).tolist()
    if not isinstance(order, list | tuple) or not all(_whole(label) for label in order):
        raise UserError(f"scenario: order={order!r}; legal: a seed, natural, or a list of all labels")
    counts: Counter[int] = Counter(order)
    missing = [label for label in range(n_classes) if label not in counts]
    repeated = sorted(label for label, count in counts.items() if count > 1)
    foreign = sorted(label for label in counts if not 0 <= label < n_classes)
    if missing or repeated or foreign:
        raise UserError(
            f"scenario: order must name each label from 0 to {n_classes - 1} once: "
            f"missing {missing}, repeated {repeated}, no such label {foreign}"
        )
    return list(order)


def _listed_sizes(n_classes: int, sizes: Sequence[int] | None) -> list[int]:
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not all(_whole(s) and s > 0 for s in sizes):
        raise UserError(f"scenario: sizes={sizes!r}; legal: a list of whole numbers from 1 on")
    if sum(sizes) != n_classes:
        raise UserError(
            f"scenario: sizes={list(sizes)} hold {sum(sizes)} classes; the data have {n_classes}, "
            "and the sizes must add up to that"
        )
    return list(sizes)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
