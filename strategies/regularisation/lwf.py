"""Learning without forgetting (LwF). Li and Hoiem, Learning without Forgetting, ECCV 2016.

The new columns learn by cross-entropy among themselves; the old ones are distilled from the network before the task, on
the new images, since there are no others. First the new rows of the head learn alone, then everything learns together.

Where ours departs: the paper has a head for each task and distils each by itself, where one head grows here and its old
columns are distilled together; the paper warms up until convergence, here for a share of the epochs. Zhou et al.,
Class-Incremental Learning: A Survey, TPAMI 2024, and PyCIL weigh the distillation by 3 and do not warm up: ``keep: 3``,
``warm_up: 0``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network
from cil.ops.columns import among
from cil.ops.distillation import distillation
from cil.ops.freezing import freeze, frozen_copy


class LwF(Strategy):
    """Learn the new columns while the old ones keep giving the scores they gave before.

    Args:
        model: backbone and head without classes.
        keep: lambda_o, weight of the distillation.
        temperature: T of the distillation.
        warm_up: epochs in which the new rows learn alone, as a share of the trainer's, rounded up; 0: none.
    """

    exemplar_free: ClassVar[bool] = True

    def __init__(self, model: Network, *, keep: float = 1.0, temperature: float = 2.0, warm_up: float = 0.1) -> None:
        super().__init__(model)
        check_number("strategy.keep", keep, least=0)
        check_number("strategy.temperature", temperature, above=0)
        check_number("strategy.warm_up", warm_up, least=0)
        self.keep, self.temperature, self.warm_up = keep, temperature, warm_up

    def begin(self, task: Task) -> None:
        self.teacher = frozen_copy(self.model) if task.n_old else None
        self.n_old, self.own, self.warming = task.n_old, list(task.present), False

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        if self.teacher is not None and task.n_new and self.warm_up:
            self.warming = True
            freeze(self.model.backbone)
            trainer.descend(self, task.train, epochs=trainer.share(self.warm_up))
            self.warming = False
            self.model.backbone.requires_grad_(not self.model.frozen)
        trainer.descend(self, task.train)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self(x)  # (B, K)
        learn = self.classification(*among(logits, y, self.own))
        if self.teacher is None or self.warming:
            return learn
        with torch.no_grad():
            target = self.teacher(x)[:, : self.n_old]  # (B, K_old)
        return learn + self.keep * distillation(logits[:, : self.n_old], target, self.temperature)

    def stepped(self) -> None:
        if self.teacher is not None and self.warming:  # what decays or is shared stays, too
            for now, before in zip(self.model.head.parameters(), self.teacher.head.parameters(), strict=True):
                old = slice(self.n_old) if now.dim() else ...
                now[old] = before[old]

    def end(self, task: Task) -> None:
        self.teacher = None  # not carried, not charged
