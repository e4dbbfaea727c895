"""MEMO. Zhou et al., A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning, ICLR 2023.

Early layers serve all tasks; each task adds a copy of the last stage only, and the memory that this saves against a
whole backbone goes to exemplars. As in the paper, the shared layers go on learning if the first task had at most 20
classes and are frozen if it had more; the published code has a switch for it, which ``train_shallow`` is.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.strategy import Strategy
from cil.nets.network import Network, Splittable
from cil.ops.alignment import align
from cil.ops.expansion import auxiliary_loss
from cil.ops.freezing import freeze


class MEMO(Strategy):
    """Share the shallow layers, add a copy of the last stage for each task, and align the head.

    Args:
        model: backbone and head without classes.
        auxiliary: weight of the loss by which the new stage alone tells the new classes from each other and from all
            old ones.
        train_shallow: whether the shared layers learn after the first task: ``yes``, ``no``, or ``auto``, which is yes
            if the first task has at most ``few_classes`` classes, from which they have not learned enough.
        few_classes: see ``train_shallow``.
        align: scale the head's new rows to the old rows' length after each task.
    """

    needs: ClassVar[type] = Splittable

    def __init__(
        self,
        model: Network,
        *,
        auxiliary: float = 1.0,
        train_shallow: Literal["auto", "yes", "no"] = "auto",
        few_classes: int = 20,
        align: bool = True,
    ) -> None:
        super().__init__(model)
        check_number("strategy.auxiliary", auxiliary, least=0)
        check_number("strategy.few_classes", few_classes, least=0, whole=True)
        self.auxiliary, self.align = auxiliary, align
        self.train_shallow, self.few_classes = train_shallow, few_classes
        self.later = nn.ModuleList()  # the last stages of the second task and those after it

    @property
    def backbone(self) -> Splittable:
        """The first task's network, whose shallow layers serve all."""
        return cast(Splittable, self.model.backbone)

    @property
    def stages(self) -> list[nn.Module]:
        """One last stage for each task, oldest first."""
        return [self.backbone.deep, *self.later]

    def grow(self, task: Task) -> None:
        if task.index == 0:
            self.first = task.n_new
        else:
            self.later.append(copy.deepcopy(self.stages[-1]))
        self.model.head.grow(task.n_new, self.backbone.num_features if task.index else 0)

    def begin(self, task: Task) -> None:
        self.n_old = task.n_old
        learns = {"yes": True, "no": False, "auto": self.first <= self.few_classes}[self.train_shallow]
        if task.n_old and not learns:
            freeze(self.model.backbone)
        for stage in self.stages[:-1]:
            freeze(stage)
        self.helper = self.model.auxiliary_head(1 + task.n_new) if task.n_old and self.auxiliary else None

    def features(self, x: Tensor) -> Tensor:
        shared = self.backbone.shallow(x)
        return torch.cat([self.backbone.pool(stage(shared)) for stage in self.stages], 1)  # (B, T D)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.features(x)  # (B, T D)
        learn = self.classification(self.scores(features), y)
        if self.helper is None:
            return learn
        own = features[:, -self.backbone.num_features :]  # (B, D)
        return learn + self.auxiliary * auxiliary_loss(self.helper(own), y, self.n_old)

    def end(self, task: Task) -> None:
        if task.n_old and task.n_new and self.align:
            align(self.model.head.weight, task.n_old)
        self.helper = None  # not carried, not charged
