"""Elastic weight consolidation (EWC).

Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, PNAS 2017. Each task leaves a quadratic
penalty F_t (theta - theta_t)^2, F_t the diagonal of the Fisher information at its end. The sum of such penalties is
again one, with importance F = sum F_t and anchor sum F_t theta_t / F, up to a constant; so two numbers for each
parameter are carried, however many tasks there were. F_t is the mean over the task's images of the squared gradient of
each image's own log-likelihood, in eval mode, for the label that the image has.

Where ours departs: the paper does not grow a head. New rows have no importance in their first task, and a task's own
classes are compared with one another, as in Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.anchored import Anchored
from cil.learning.strategy import GradientLoop
from cil.nets.network import Network
from cil.ops.freezing import train_mode


class EWC(Anchored):
    """Hold parameters near where earlier tasks left them, by how much the likelihood of those tasks depends on them.

    Args:
        model: backbone and head without classes.
        strength: lambda; the penalty is lambda / 2 times the sum. PyCIL's importance is smaller by about the batch
            size, so its lambda is 1000.
        columns: ``new`` compares the classes of a task with one another while it is learned; ``all`` with every class
            seen, as the likelihood of the importance does in either case.
        released: importance as PyCIL computes it: squared gradients of the mean of each batch, in training mode, at
            most ``cap``; averaged with the former importance by numbers of classes; anchored where the last task ended.
        cap: the largest importance of a task with ``released``.
    """

    def __init__(
        self,
        model: Network,
        *,
        strength: float = 10.0,
        columns: Literal["new", "all"] = "new",
        released: bool = False,
        cap: float = 1e-4,
    ) -> None:
        super().__init__(model, strength=strength, columns=columns)
        check_number("strategy.cap", cap, above=0)
        self.released, self.cap = released, cap

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.task_loss(x, y)
        return loss + self.strength / 2 * self.penalty() if self.anchored else loss

    def settle(self, task: Task, trainer: GradientLoop) -> None:
        images = None if self.released else 1
        if self.released:
            train_mode(self)
        found = trainer.gradients_of(self, task.train, self.likelihood, of=torch.square, images=images)
        self.eval()
        for name, parameter, importance in self.importance.beside(self.model):
            fisher, anchor = found[f"model.{name}"], self.anchor[name]
            if self.released:
                mine = fisher.clamp(max=self.cap)
                former = tuple(slice(task.n_old if size == task.n_seen else size) for size in mine.shape[:1])
                share = task.n_old / task.n_seen
                mine[former] = share * importance[former] + (1 - share) * mine[former]
                importance.copy_(mine)
                anchor.copy_(parameter)
            else:
                both = importance + fisher
                anchor.copy_(torch.where(both > 0, (importance * anchor + fisher * parameter) / both, parameter))
                importance.copy_(both)
