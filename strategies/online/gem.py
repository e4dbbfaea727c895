"""Gradient episodic memory (GEM). Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017.

A step learns new images alone. Where its gradient would raise the loss of any former task's exemplars, the nearest one
that raises none is taken, eqs. 8 to 11: a quadratic program with one variable for each former task. Losses compare the
classes of one task with one another, as the paper does, which is told the task of each image.

Where ours departs: exemplars' gradients are computed after the batch's, which moves batch statistics in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import check_number, unknown
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network
from cil.ops.columns import among
from cil.ops.projection import flat, multipliers, put


class GEM(Strategy):
    """Learn new images by the nearest gradients that are against no former task's exemplars.

    Args:
        model: backbone and head without classes.
        margin: smallest share of each exemplars' gradient that is added where any is needed.
        memory_batch: exemplars of each task drawn for each step; null: all of them.
        columns: ``own`` compares the classes of a task with one another; ``all`` with every class seen.
    """

    tasks: list[Sequence[int]]  # the classes that each task brought

    def __init__(
        self,
        model: Network,
        *,
        margin: float = 0.5,
        memory_batch: int | None = None,
        columns: Literal["own", "all"] = "own",
    ) -> None:
        super().__init__(model)
        check_number("strategy.margin", margin, least=0)
        if memory_batch is not None:
            check_number("strategy.memory_batch", memory_batch, least=1, whole=True)
        if columns not in ("own", "all"):
            raise unknown("strategy.columns", columns, ("own", "all"))
        self.margin, self.memory_batch, self.columns = margin, memory_batch, columns

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.tasks = [*(self.tasks if task.index else []), task.new]

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        former = [] if replay is None else [(own, replay.of_classes(own)) for own in self.tasks[:-1]]
        self.memories = [(self.compared(own, task.n_seen), images) for own, images in former if len(images)]
        self.own = self.compared(task.present, task.n_seen)
        trainer.descend(self, task.train)
        self.memories = []

    def compared(self, classes: Sequence[int], n_seen: int) -> list[int]:
        """The columns that a loss of these classes looks at."""
        return list(classes) if self.columns == "own" else list(range(n_seen))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(*among(self(x), y, self.own))

    def references(self, trainer: GradientLoop) -> list[Tensor]:
        """The gradient of each former task's exemplars, (P,) each."""
        found = []
        for own, images in self.memories:
            if self.memory_batch is not None:
                images = images.subset(trainer.draw(len(images), self.memory_batch))

            def loss(x: Tensor, y: Tensor, own: list[int] = own) -> Tensor:
                return self.classification(*among(self(x), y, own))

            gradient = trainer.gradients_of(self, images, loss, images=len(images), augment=True)
            found.append(torch.cat([one.flatten() for one in gradient.values()]))
        return found

    def gradients(self, trainer: GradientLoop) -> None:
        references = self.references(trainer)
        if not references:
            return
        matrix, gradient = torch.stack(references), flat(self)  # (T, P), (P,)
        products = matrix @ gradient
        if (products < 0).any():
            weights = multipliers(products, matrix @ matrix.T, self.margin)
            put(self, gradient + matrix.T @ weights.to(matrix))
