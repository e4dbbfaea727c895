"""The online scenario: the tasks of a class-incremental one as a stream whose images are seen once."""

from __future__ import annotations

import numpy as np
import torch

from cil.data.images import Dataset
from cil.data.scenario import Scenario, ScenarioBuilder, check_whole, stream
from scenarios.class_incremental import ClassIncremental


class Online(ScenarioBuilder):
    """A stream in which new classes come a few at a time, each image once, and no boundary is told.

    Args:
        first: classes of the first phase; 0: as many as every other phase.
        step: classes of each later phase; the last takes what is left.
        sizes: classes of each phase, written out, in place of ``first`` and ``step``.
        order: the order in which classes appear: a seed, "natural", all labels or null, as for ``ClassIncremental``.
        seed: of the order of the images within a phase; null: each run's data seed.
        every: images between two measurements of accuracy.
        nfa_shift: how many images ahead near-future accuracy looks; null: the smallest of 0, 1, 2, 4, 8, ... at which
            labels alone no longer tell what comes.
    """

    by_run = ("order", "seed")

    def __init__(
        self,
        *,
        first: int = 0,
        step: int | None = None,
        sizes: list[int] | None = None,
        order: int | str | list[int] | None = 1993,
        seed: int | None = 1,
        every: int = 1000,
        nfa_shift: int | None = None,
    ) -> None:
        self.first, self.step, self.sizes, self.order = first, step, sizes, order
        self.seed, self.every, self.nfa_shift = seed, every, nfa_shift

    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario of this data set.

        Raises:
            UserError: sizes or order do not fit the data set's number of classes, or an option is out of its range.
        """
        seed = check_whole("seed", self.seed, 0, 2**63 - 1)
        like = ClassIncremental(first=self.first, step=self.step, sizes=self.sizes, order=self.order)
        groups, name = like.groups(dataset)
        draws = torch.Generator().manual_seed(seed)
        labels, phases = dataset.train.labels.numpy(), []
        for group in groups:
            own = np.flatnonzero(np.isin(labels, group))
            phases.append(own[torch.randperm(len(own), generator=draws).numpy()])
        name = f"{name} online, every {self.every}"
        return stream(dataset, phases, name=name, every=self.every, nfa_shift=self.nfa_shift)
