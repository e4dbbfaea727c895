"""What methods share that hold important parameters where they were: importance, anchor, and the columns compared."""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import check_number, unknown
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network
from cil.ops.columns import among
from cil.ops.per_parameter import PerParameter, quadratic

COLUMNS = ("new", "all")


class Anchored(Strategy, abc.ABC):
    """Learn each task with a penalty on moving the parameters that mattered for earlier ones; no exemplars.

    A subclass says in :meth:`settle` what a task adds to ``importance`` and where the ``anchor`` is then, both carried:
    8 bytes for each parameter in float32.

    Args:
        model: backbone and head without classes.
        strength: of the penalty.
        columns: ``new`` compares the classes of a task with one another, as published comparisons do; ``all`` with
            every class seen.
    """

    exemplar_free: ClassVar[bool] = True

    def __init__(self, model: Network, *, strength: float, columns: Literal["new", "all"] = "new") -> None:
        super().__init__(model)
        check_number("strategy.strength", strength, least=0)
        if columns not in COLUMNS:
            raise unknown("strategy.columns", columns, COLUMNS)
        self.strength, self.columns = strength, columns

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            self.importance, self.anchor = PerParameter(), PerParameter()
        self.importance.grow(self.model)
        self.anchor.grow(self.model)

    def begin(self, task: Task) -> None:
        self.own = list(task.present) if self.columns == "new" else list(range(task.n_seen))
        self.anchored = task.index > 0

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        trainer.descend(self, task.train, replay)
        with torch.no_grad():
            self.settle(task, trainer)

    @abc.abstractmethod
    def settle(self, task: Task, trainer: GradientLoop) -> None:
        """Say which parameters mattered for the task just learned, and where they are; under ``torch.no_grad``."""

    def task_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of the task alone: (B, C, H, W), (B,) -> ()."""
        return self.classification(*among(self(x), y, self.own))

    def penalty(self) -> Tensor:
        """sum of importance (parameter - anchor)^2, without the strength: -> ()."""
        return quadratic(self.model, self.importance, self.anchor)

    def likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """-log p(y | x), the mean over images, among all classes seen: (B, C, H, W), (B,) -> ()."""
        return F.cross_entropy(self(x), y)
