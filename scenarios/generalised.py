"""The generalised scenario: old classes return beside new ones, in numbers of images that are not known before.

The setting of Mi et al., Generalized Class Incremental Learning, CVPR Workshops 2020; which classes return, and with
how many images, is drawn here in a way of our own, so that every image comes once. Long-tailed numbers of images are as
in Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from cil.data.images import Dataset
from cil.data.scenario import Scenario, ScenarioBuilder, check_whole, recurring
from cil.errors import UserError


class Generalised(ScenarioBuilder):
    """Tasks with known boundaries that each bring new classes and further images of old ones.

    Each class first appears in one task, returns in each later one with probability ``returning``, and its images are
    divided among these tasks at random, at least one for each. Each task brings at least one new class.

    Args:
        tasks: how many.
        returning: probability that a class seen before returns in a task; 0: every class comes in one task alone.
        imbalance: images of the most frequent class over those of the rarest; 1 keeps all images. The c-th of K
            classes keeps n_max * imbalance^(-c / (K - 1)) of its images, rounded down and at least one, where n_max is
            the largest class; a class that has fewer keeps them all. Frequent and rare classes are drawn apart from the
            order of appearance.
        seed: of all draws; null: each run's data seed.
    """

    by_run = ("seed",)

    def __init__(self, *, tasks: int = 5, returning: float = 0.5, imbalance: float = 1.0, seed: int | None = 1) -> None:
        self.tasks, self.returning, self.imbalance, self.seed = tasks, returning, imbalance, seed

    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario of this data set.

        Raises:
            UserError: an option is out of its range.
        """
        n_classes = len(dataset.classes)
        check_whole("tasks", self.tasks, 1, n_classes)
        seed = check_whole("seed", self.seed, 0, 2**63 - 1)
        if not 0 <= self.returning <= 1:
            raise UserError(f"scenario: returning={self.returning!r}; legal: a probability from 0 to 1")
        if not 1 <= self.imbalance < math.inf:
            raise UserError(f"scenario: imbalance={self.imbalance!r}; legal: a number from 1 on")
        draws = torch.Generator().manual_seed(seed)
        order = torch.randperm(n_classes, generator=draws).tolist()
        rank = torch.randperm(n_classes, generator=draws).tolist()
        counts = dataset.train.counts(n_classes)
        kept = np.minimum(counts, long_tail(int(counts.max()), n_classes, self.imbalance)[rank])
        first = np.repeat(np.arange(self.tasks), np.diff(_distinct_cuts(n_classes, self.tasks, draws)))
        labels = dataset.train.labels.numpy()
        groups: list[list[np.ndarray]] = [[] for _ in range(self.tasks)]
        for label, task in zip(order, first.tolist(), strict=True):
            own = np.flatnonzero(labels == label)
            own = own[torch.randperm(len(own), generator=draws).numpy()][: kept[label]]
            later = torch.rand(self.tasks - task - 1, generator=draws, dtype=torch.float64).numpy() < self.returning
            where = [task, *(task + 1 + np.flatnonzero(later))][: len(own)]
            parts = np.split(own, _distinct_cuts(len(own), len(where), draws)[1:-1])
            for place, part in zip(where, parts, strict=True):
                groups[place].append(part)
        name = f"{dataset.name} generalised, {self.tasks} tasks, returning {self.returning:g}"
        name += f", imbalance {self.imbalance:g}"
        return recurring(dataset, _joined(groups), name=name)


def long_tail(largest: int, n_classes: int, imbalance: float) -> np.ndarray:
    """Images of each class from the most frequent to the rarest: (K,), whole numbers from 1 on.

    n_c = n_max * imbalance^(-c / (K - 1)), rounded down; Cao et al., NeurIPS 2019. A billionth is added first, so that
    a whole number that floats miss by a little is not rounded to the one below.

    Args:
        largest: n_max.
        n_classes: K.
        imbalance: of the most frequent to the rarest.
    """
    exponent = np.arange(n_classes) / max(n_classes - 1, 1)
    return np.maximum(np.floor(largest * imbalance**-exponent + 1e-9), 1).astype(np.int64)


def _joined(groups: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(group) for group in groups]


def _distinct_cuts(n: int, parts: int, generator: torch.Generator) -> np.ndarray:
    """0, ``parts`` - 1 different numbers from 1 to n - 1 in ascending order, n: (parts + 1,). No part is empty."""
    inner = torch.randperm(max(n - 1, 0), generator=generator)[: parts - 1].sort().values.numpy() + 1
    return np.concatenate([[0], inner, [n]]).astype(np.int64)
