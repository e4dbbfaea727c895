"""What is learned, in which order: a scenario is a sequence of tasks and one test set."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cil.data import Dataset, ImageSet


@dataclass(frozen=True)
class Task:
    """One step of a scenario. Class ids are numbered by first appearance, so new ids follow the old ones.

    Attributes:
        index: position in the scenario, from 0.
        new: ids of the classes that appear here for the first time.
        present: ids of all classes with training images here.
        train: the training images, labels in these ids.
        boundary: whether the learner may know that a task starts here (False in streams without boundaries).
    """

    index: int
    new: range
    present: tuple[int, ...]
    train: ImageSet
    boundary: bool = True

    @property
    def n_old(self) -> int:
        """Classes seen before this task."""
        return self.new.start

    @property
    def n_new(self) -> int:
        """Classes that appear here for the first time."""
        return len(self.new)

    @property
    def n_seen(self) -> int:
        """Classes seen when this task ends."""
        return self.new.stop

    def without_data(self) -> Task:
        """The task's structure alone: what ``Strategy.grow`` may look at."""
        return dataclasses.replace(self, train=self.train.subset(np.arange(0)))


@dataclass(frozen=True)
class Scenario:
    """Tasks to learn in order, and the test images of all their classes.

    Attributes:
        name: for people, such as ``cifar100 B0 Inc10``.
        tasks: in order.
        test: test images of all classes, labels in scenario ids. The engine alone reads it.
        image_shape: (C, H, W).
        class_order: original label of each scenario id.
        class_names: name of each scenario id.
        fingerprint: sha256 of data, order and sizes: two runs with the same one saw the same tasks.
        mean: channel means that normalise these images, None for no convention.
        std: channel standard deviations, likewise.
        data_fingerprint: sha256 of the data set alone, whatever the order and the tasks.
    """

    name: str
    tasks: tuple[Task, ...]
    test: ImageSet
    image_shape: tuple[int, int, int]
    class_order: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    data_fingerprint: str = ""

    @property
    def n_classes(self) -> int:
        return len(self.class_order)

    @property
    def task_of_class(self) -> np.ndarray:
        """Index of the task in which each class first appears, (K,)."""
        return np.repeat(np.arange(len(self.tasks)), [task.n_new for task in self.tasks])


class ScenarioBuilder(abc.ABC):
    """Makes a scenario of a data set; its constructor's arguments say how.

    A third party's builder subclasses this and is named by its class path in the configuration.
    """

    @abc.abstractmethod
    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario.

        Args:
            dataset: labels in [0, K).

        Raises:
            UserError: the arguments do not fit the data set.
        """


def disjoint(dataset: Dataset, groups: Sequence[Sequence[int]], *, name: str) -> Scenario:
    """The scenario in which task t brings all images of the classes ``groups[t]`` and no other.

    Args:
        dataset: the data, labels in [0, K).
        groups: original labels of the classes of each task, in order of appearance.
        name: the scenario's name.

    Raises:
        ValueError: a class is missing from the groups or named twice, or a task has no class.
    """
    order = [label for group in groups for label in group]
    missing = sorted(set(range(len(dataset.classes))) - set(order))
    repeated = sorted({label for label in order if order.count(label) > 1})
    if missing or repeated or len(order) != len(dataset.classes) or not all(len(group) for group in groups):
        raise ValueError(
            f"tasks must hold each of the {len(dataset.classes)} classes once: missing {missing}, repeated {repeated}, "
            f"sizes {[len(group) for group in groups]}"
        )
    to_id = np.empty(len(order), dtype=np.int64)
    to_id[order] = np.arange(len(order))
    train, test = dataset.train.relabel(to_id), dataset.test.relabel(to_id)
    starts = np.cumsum([0] + [len(group) for group in groups])
    tasks = tuple(
        Task(index, range(start, stop), tuple(range(start, stop)), train.of_classes(range(start, stop)))
        for index, (start, stop) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False))
    )
    data = dataset.sha256()
    described = json.dumps([data, [int(label) for label in order], [len(group) for group in groups]])
    return Scenario(
        name=name,
        tasks=tasks,
        test=test.subset(torch.argsort(test.labels, stable=True)),
        image_shape=dataset.train.image_shape,
        class_order=tuple(int(label) for label in order),
        class_names=tuple(dataset.classes[label] for label in order),
        fingerprint=hashlib.sha256(described.encode()).hexdigest(),
        mean=dataset.mean,
        std=dataset.std,
        data_fingerprint=data,
    )
