"""Averaged gradient episodic memory (A-GEM). Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019.

A step learns new images alone. Where its gradient would raise the loss of a batch of exemplars, drawn anew for each
step, it is projected onto what would not, eq. 11.

Where ours departs: the paper is told the task of each image; here all classes seen are compared, as class-incremental
reports of the method do.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network
from cil.ops.projection import flat, off, put


class AGEM(Strategy):
    """Learn new images by gradients that are not against the mean gradient of some exemplars.

    Args:
        model: backbone and head without classes.
        memory_batch: exemplars drawn for each step.
    """

    needs_boundaries: ClassVar[bool] = False

    def __init__(self, model: Network, *, memory_batch: int = 128) -> None:
        super().__init__(model)
        check_number("strategy.memory_batch", memory_batch, least=1, whole=True)
        self.memory_batch = memory_batch

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        self.replay = replay
        trainer.descend(self, task.train)
        self.replay = None

    def gradients(self, trainer: GradientLoop) -> None:
        if self.replay is None:
            return
        drawn = self.replay.subset(trainer.draw(len(self.replay), self.memory_batch))
        reference = trainer.gradients_of(self, drawn, images=len(drawn), augment=True)
        put(self, off(flat(self), torch.cat([one.flatten() for one in reference.values()])))
