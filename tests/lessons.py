"""Frozen strategies run by the engine, with what each task gave them to learn from, for oracles that go other ways."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data.images import Dataset
from cil.data.scenario import Scenario, Task, disjoint
from cil.learning.inference import features_of
from cil.learning.strategy import Strategy
from cil.memory.ledger import Bytes, measure
from cil.testing.lab import Lab, toy_dataset, toy_scenario

# Classes of each task where they return; none is new in the last.
PRESENT = ((0, 1), (0, 2, 3), (1, 2, 4, 5), (0, 3, 5))


@dataclass
class Lesson:
    """One task, and the strategy after it."""

    task: Task
    x: np.ndarray  # features of the training images as the engine extracts them, float32 (N, D)
    y: np.ndarray  # their labels, (N,)
    state: dict[str, Tensor]
    test: np.ndarray  # features of all toy test images, seen or not, float32 (48, D)
    scores: np.ndarray  # of those images, (48, K)
    size: Bytes


def returning() -> Scenario:
    """The toy classes, whose images are dealt out to the tasks in which the class is present."""
    scenario, train, tasks, seen = toy_scenario(), toy_dataset().train, [], 0
    for index, present in enumerate(PRESENT):
        rows: list[int] = []
        for label in present:
            owners = [other for other, classes in enumerate(PRESENT) if label in classes]
            own = np.flatnonzero(train.labels.numpy() == label)
            rows += own[owners.index(index) :: len(owners)].tolist()
        stop = max(seen, *(label + 1 for label in present))
        tasks.append(Task(index, range(seen, stop), present, train.subset(np.array(rows)), boundary=True))
        seen = stop
    return dataclasses.replace(scenario, name="returning", tasks=tuple(tasks))


def with_few_images(count: int) -> Scenario:
    """The toy tasks, of which the first has this number of images."""
    scenario = toy_scenario()
    first = scenario.tasks[0]
    few = dataclasses.replace(first, train=first.train.subset(np.arange(count)))
    return dataclasses.replace(scenario, tasks=(few, *scenario.tasks[1:]))


def in_order(groups: tuple[tuple[int, ...], ...]) -> Scenario:
    """The toy classes in tasks of these classes."""
    data: Dataset = toy_dataset()
    return disjoint(data, groups, name="toy")


def teach(
    kind: type[Strategy], scenario: Scenario | None = None, *, frozen: bool = True, seed: int = 0, **options: Any
) -> list[Lesson]:
    """Run the strategy on the toy scenario or another one, watched; ``frozen``: the backbone never learns."""
    lab = Lab(kind, options)
    experiment = lab.experiment(seed)
    experiment.scenario = scenario or experiment.scenario
    lessons: list[Lesson] = []

    def build() -> Strategy:
        strategy = lab.build()
        strategy.model.frozen = frozen
        return strategy

    def watch(strategy: Strategy) -> None:
        task, place = experiment.scenario.tasks[len(lessons)], experiment.place(0)
        x, test = (features_of(strategy, data, place) for data in (task.train, toy_dataset().test))
        with torch.no_grad():
            scores = strategy.scores(test)
        state = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
        size = measure(strategy, 0, 0)
        lessons.append(Lesson(task, x.numpy(), task.train.labels.numpy(), state, test.numpy(), scores.numpy(), size))

    experiment.build = build
    for _ in lab.moments(experiment, watch=watch):
        pass
    return lessons


@functools.cache
def taught(kind: type[Strategy], **options: Any) -> list[Lesson]:
    """The same lessons for every test that only looks at them."""
    return teach(kind, **options)


def so_far(lessons: list[Lesson]) -> list[tuple[Lesson, np.ndarray, np.ndarray]]:
    """Each lesson with the features (float64) and labels of all tasks up to it."""
    out = []
    for count in range(1, len(lessons) + 1):
        x = np.concatenate([lesson.x for lesson in lessons[:count]]).astype(np.float64)
        out.append((lessons[count - 1], x, np.concatenate([lesson.y for lesson in lessons[:count]])))
    return out


def one_hot(y: np.ndarray, n: int) -> np.ndarray:
    """(N,) -> (N, n)"""
    return np.array([[float(label == column) for column in range(n)] for label in y])


def backbone_of(lesson: Lesson) -> dict[str, bytes]:
    """The bits of the backbone's parameters and batch statistics."""
    return {n: t.numpy().tobytes() for n, t in lesson.state.items() if n.startswith("model.backbone.")}
