"""Memory aware synapses (MAS). Aljundi et al., Memory Aware Synapses: Learning What (Not) to Forget, ECCV 2018.

The importance of a parameter is how much the squared length of the network's output moves with it: the mean over
images of the absolute gradient of ||z(x)||^2; no label is needed. Importances of tasks add up, and the anchor is where
the last task ended.

Where ours departs: the paper has a head for each task. Here z are the scores of all classes seen, and a task's own
classes are compared with one another. FACIL takes the length itself, of batches, and averages importances.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cil.data.scenario import Task
from cil.learning.anchored import Anchored
from cil.learning.strategy import GradientLoop
from cil.nets.network import Network


class MAS(Anchored):
    """Hold parameters where the last task left them, by how much the scores of earlier tasks depend on them.

    Args:
        model: backbone and head without classes.
        strength: lambda; the penalty is lambda times the sum.
        columns: ``new`` compares the classes of a task with one another; ``all`` with every class seen.
    """

    def __init__(self, model: Network, *, strength: float = 0.1, columns: Literal["new", "all"] = "new") -> None:
        super().__init__(model, strength=strength, columns=columns)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.task_loss(x, y)
        return loss + self.strength * self.penalty() if self.anchored else loss

    def length(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean over images of the squared length of their scores: (B, C, H, W), (B,) -> ()."""
        return self(x).square().sum(1).mean()

    def settle(self, task: Task, trainer: GradientLoop) -> None:
        found = trainer.gradients_of(self, task.train, self.length, of=torch.abs, images=1)
        for name, parameter, importance in self.importance.beside(self.model):
            importance += found[f"model.{name}"]
            self.anchor[name].copy_(parameter)
