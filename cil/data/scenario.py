"""What is learned, in which order: a scenario is a sequence of tasks and one test set."""

from __future__ import annotations

import abc
import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from cil.data import blind
from cil.data.images import ClassPrint, Dataset, ImageSet, Joined
from cil.errors import UserError


@dataclass(frozen=True)
class Task:
    """One step of a scenario. Class ids are numbered by first appearance, so new ids follow the old ones.

    A stream without boundaries comes in pieces, each of them a Task: its images are in stream order, and it may bring
    no new class.

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
        data_fingerprint: sha256 of the data set alone.
        family: sha256 of data and options without what the run's seed draws: equal for the scenarios of a builder that
            leaves draws to the run. None: nothing is left to it.
        base_classes: in a few-shot scenario, the number of classes of the first task, which have all their images;
            None: no task has few images by design.
        mean: channel means that normalise these images, None for no convention.
        std: channel standard deviations, likewise.
        phases: the phase of each task, from 0 without a gap: in a stream of pieces, the task of the literature to
            which each piece belongs. None: each task is a phase of its own.
        every: in a stream, the number of images after which accuracy is measured each time; else None.
        nfa_shift: in a stream, how many images ahead near-future accuracy looks.
        class_prints: of the images of each scenario id in the data set; None: they are not known by class.
    """

    name: str
    tasks: tuple[Task, ...]
    test: ImageSet
    image_shape: tuple[int, int, int]
    class_order: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    data_fingerprint: str
    family: str | None = None
    base_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    phases: tuple[int, ...] | None = None
    every: int | None = None
    nfa_shift: int = 0
    class_prints: tuple[ClassPrint, ...] | None = None

    @property
    def n_classes(self) -> int:
        return len(self.class_order)

    @property
    def task_of_class(self) -> np.ndarray:
        """Index of the task in which each class first appears, (K,)."""
        return np.repeat(np.arange(len(self.tasks)), [task.n_new for task in self.tasks])

    @property
    def streams(self) -> bool:
        """Whether any task is a piece of a stream without boundaries."""
        return not all(task.boundary for task in self.tasks)

    @property
    def pieces(self) -> tuple[int, ...]:
        """Indices of the tasks that are pieces of a stream without boundaries."""
        return tuple(task.index for task in self.tasks if not task.boundary)

    @property
    def phase_of_task(self) -> np.ndarray:
        """The phase of each task, (T,)."""
        return np.arange(len(self.tasks)) if self.phases is None else np.array(self.phases)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """Index of the last task of each phase."""
        phase = self.phase_of_task
        return tuple(np.flatnonzero(np.diff(phase, append=phase[-1] + 1)).tolist())

    @property
    def images_seen(self) -> np.ndarray:
        """Training images up to the end of each task, (T,)."""
        return np.cumsum([len(task.train) for task in self.tasks])

    def stretch(self, start: int, stop: int) -> ImageSet:
        """The training images from number ``start`` to ``stop`` - 1, counted over all tasks; fewer at the end."""
        ends = self.images_seen
        parts = [
            task.train.subset(np.arange(max(start - before, 0), min(stop - before, len(task.train))))
            for task, before in zip(self.tasks, ends - np.diff(ends, prepend=0), strict=True)
            if max(start, before) < min(stop, before + len(task.train))
        ]
        return Joined(*parts) if parts else self.tasks[0].train.subset(np.arange(0))

    @cached_property
    def blind(self) -> blind.Blind:
        """What the labels of the stream alone tell about those ``nfa_shift`` images ahead."""
        return blind.best_blind(_labels_of(self.tasks), [self.nfa_shift])[0]


class ScenarioBuilder(abc.ABC):
    """Makes a scenario of a data set; its constructor's arguments say how.

    A third party's builder subclasses this and is named by its class path in the configuration.

    Attributes:
        by_run: options, kept under their names, that seed a draw and may be None to take the run's data seed.
    """

    by_run: ClassVar[tuple[str, ...]] = ()

    def build(self, dataset: Dataset, seed: int) -> Scenario:
        """The scenario of a run: the run's seed draws what the options leave to it.

        Args:
            dataset: labels in [0, K).
            seed: the run's data seed.

        Raises:
            UserError: as for the scenario.
        """
        left = [option for option in self.by_run if getattr(self, option) is None]
        if not left:
            return self(dataset)
        drawn = copy.copy(self)
        for option in left:
            setattr(drawn, option, seed)
        made = drawn(dataset)
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        described = json.dumps([made.data_fingerprint, kind, vars(self)], sort_keys=True, default=str)
        return dataclasses.replace(
            made,
            name=f"{made.name}, {' and '.join(left)} by run",
            family=hashlib.sha256(described.encode()).hexdigest(),
        )

    @abc.abstractmethod
    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario.

        Args:
            dataset: labels in [0, K).

        Raises:
            UserError: the arguments do not fit the data set.
        """


def check_whole(key: str, value: object, low: int, high: int) -> int:
    """An option of a scenario that has to be a whole number within its range.

    Raises:
        UserError: names the option, its value and the range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"scenario: {key}={value!r}; legal: a whole number from {low} to {high}")
    return value


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
    train = dataset.train.relabel(to_id)
    starts = np.cumsum([0] + [len(group) for group in groups])
    tasks = tuple(
        Task(index, range(start, stop), tuple(range(start, stop)), train.of_classes(range(start, stop)))
        for index, (start, stop) in enumerate(zip(starts.tolist(), starts[1:].tolist(), strict=False))
    )
    return _scenario(dataset, tasks, order, [[int(label) for label in order], [len(group) for group in groups]], name)


def recurring(dataset: Dataset, groups: Sequence[np.ndarray], *, name: str) -> Scenario:
    """The scenario in which task t brings the training images ``groups[t]``, whatever classes they are of.

    Class ids are numbered by first appearance in the groups. Classes without an image there are dropped.

    Args:
        dataset: the data, labels in [0, K).
        groups: positions of each task's images in the training set.
        name: the scenario's name.

    Raises:
        ValueError: a group is empty, or an image is named twice or is not there.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError(f"every task needs images; there are {[len(group) for group in groups]}")
    order, index = _exposed(dataset, groups)
    tasks = _in_order(dataset, order, groups, boundary=True)
    return _scenario(dataset, tasks, order, ["recurring", [len(group) for group in groups], _sha256(index)], name)


def stream(
    dataset: Dataset, phases: Sequence[np.ndarray], *, name: str, every: int = 1000, nfa_shift: int | None = None
) -> Scenario:
    """The stream that brings training images one after another and does not tell where a phase ends.

    It is cut where accuracy is to be measured: each time ``every`` more images have passed, and at the end of each
    phase. Class ids are numbered by first appearance. Classes without an image in the stream are dropped, and phases
    without one are passed over.

    Args:
        dataset: the data, labels in [0, K).
        phases: positions in the training set, in stream order, of the images of each phase.
        name: the scenario's name.
        every: images between two measurements.
        nfa_shift: how many images ahead near-future accuracy looks. None: the smallest of 0, 1, 2, 4, 8, ... at which
            labels alone no longer tell what comes: the best blind classifier is down to the share of the most frequent
            label, within two standard errors.

    Raises:
        UserError: ``every`` or ``nfa_shift`` is no number in its range, or labels tell at every shift.
        ValueError: there is no image, or one is named twice or is not there.
    """
    order, index = _exposed(dataset, phases)
    check_whole("every", every, 1, len(index))
    pieces, owner, begin = [], [], 0
    for number, part in enumerate(part for part in phases if len(part)):
        cuts = [cut - begin for cut in range(begin - begin % every + every, begin + len(part), every)]
        pieces += np.split(np.asarray(part), cuts)
        owner += [number] * (len(cuts) + 1)
        begin += len(part)
    tasks = _in_order(dataset, order, pieces, boundary=False)
    if nfa_shift is None:
        nfa_shift = _far_enough(_labels_of(tasks))
    check_whole("nfa_shift", nfa_shift, 0, len(index) - 1)
    described = ["stream", [len(piece) for piece in pieces], owner, _sha256(index)]
    made = _scenario(dataset, tasks, order, described, name)
    return dataclasses.replace(made, phases=tuple(owner), every=every, nfa_shift=nfa_shift)


def _exposed(dataset: Dataset, parts: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
    """Original labels in order of first appearance, and all positions one after another."""
    index = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]) if parts else np.empty(0, np.int64)
    n = len(dataset.train)
    if not len(index) or index.min() < 0 or index.max() >= n or len(np.unique(index)) < len(index):
        raise ValueError(f"positions must be from 0 to {n - 1}, each at most once; there are {len(index)}")
    labels = dataset.train.labels.numpy()[index]
    _, first = np.unique(labels, return_index=True)
    return labels[np.sort(first)].tolist(), index


def _in_order(dataset: Dataset, order: list[int], parts: Sequence[np.ndarray], *, boundary: bool) -> tuple[Task, ...]:
    """A task for each part, images in its order, classes numbered by first appearance."""
    to_id = np.full(len(dataset.classes), -1, dtype=np.int64)
    to_id[order] = np.arange(len(order))
    train, tasks, seen = dataset.train.relabel(to_id), [], 0
    for index, part in enumerate(parts):
        own = train.subset(part)
        present = tuple(np.unique(own.labels.numpy()).tolist())
        before, seen = seen, max(seen, present[-1] + 1)
        tasks.append(Task(index, range(before, seen), present, own, boundary))
    return tuple(tasks)


def _scenario(
    dataset: Dataset, tasks: tuple[Task, ...], order: Sequence[int], described: list[Any], name: str
) -> Scenario:
    """The scenario of these tasks, with all test images of the classes in ``order``.

    Args:
        dataset: the data.
        tasks: in order, labels in scenario ids.
        order: original label of each scenario id.
        described: what beside the data makes the tasks what they are, for the fingerprint.
        name: the scenario's name.
    """
    to_id = np.full(len(dataset.classes), -1, dtype=np.int64)
    to_id[list(order)] = np.arange(len(order))
    test = dataset.test.of_classes([int(label) for label in order]).relabel(to_id)
    known = dataset.identified()
    data, prints = known.sha256(), known.class_prints
    return Scenario(
        name=name,
        tasks=tasks,
        test=test.subset(torch.argsort(test.labels, stable=True)),
        image_shape=dataset.train.image_shape,
        class_order=tuple(int(label) for label in order),
        class_names=tuple(dataset.classes[label] for label in order),
        fingerprint=hashlib.sha256(json.dumps([data, *described]).encode()).hexdigest(),
        data_fingerprint=data,
        class_prints=None if prints is None else tuple(prints[label] for label in order),
        mean=dataset.mean,
        std=dataset.std,
    )


def _labels_of(tasks: Sequence[Task]) -> np.ndarray:
    return torch.cat([task.train.labels for task in tasks]).numpy()


def _far_enough(labels: np.ndarray) -> int:
    level = blind.majority_level(labels)
    found = blind.near_future(labels, slack=2 * (level * (1 - level) / len(labels)) ** 0.5)
    if found is None:
        raise UserError(
            f"scenario: the labels of these {len(labels)} images tell what comes next at every shift that was tried; "
            "give nfa_shift, the number of images ahead at which predictions are to be counted"
        )
    return found.shift


def _sha256(index: np.ndarray) -> str:
    return hashlib.sha256(index.tobytes()).hexdigest()
