"""Synaptic intelligence (SI). Zenke et al., Continual Learning Through Synaptic Intelligence, ICML 2017.

While a task is learned each parameter adds up what its own steps did to the loss, omega = sum of -g (theta' - theta),
with g the gradient of the task's loss alone, eq. 3. At the task's end its importance grows by omega divided by
distance^2 + xi, the distance from where the task began, eq. 5; the penalty c sum importance (theta - anchor)^2 is that
of eq. 4.

Where ours departs: the paper has a head for each task or one that does not grow; here a task's own classes are compared
with one another. The loss that is shown is the task's; the penalty enters by its gradient.
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
from cil.ops.per_parameter import PerParameter


class SI(Anchored):
    """Hold parameters where the last task left them, by how much their steps lowered the loss of earlier tasks.

    Args:
        model: backbone and head without classes.
        strength: c; the penalty is c times the sum.
        damping: xi, keeps importance finite where a parameter hardly moved.
        columns: ``new`` compares the classes of a task with one another; ``all`` with every class seen.
    """

    def __init__(
        self,
        model: Network,
        *,
        strength: float = 1.0,
        damping: float = 0.1,
        columns: Literal["new", "all"] = "new",
    ) -> None:
        super().__init__(model, strength=strength, columns=columns)
        check_number("strategy.damping", damping, above=0)
        self.damping = damping

    @torch.no_grad()
    def begin(self, task: Task) -> None:
        super().begin(task)
        self.path, self.start = PerParameter(), PerParameter()  # omega, and where the task began: for this task alone
        self.path.grow(self.model)
        self.start.grow(self.model)
        for _, parameter, start in self.start.beside(self.model):
            start.copy_(parameter)
        self.before: dict[str, tuple[Tensor, Tensor]] = {}  # gradients and values before a step

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.task_loss(x, y)

    def gradients(self, trainer: GradientLoop) -> None:
        for name, parameter, importance in self.importance.beside(self.model):
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            self.before[name] = own, parameter.clone()
            parameter.grad = own + 2 * self.strength * importance * (parameter - self.anchor[name])

    def stepped(self) -> None:
        for name, parameter, path in self.path.beside(self.model):
            gradient, before = self.before[name]
            path -= gradient * (parameter - before)

    def settle(self, task: Task, trainer: GradientLoop) -> None:
        for name, parameter, importance in self.importance.beside(self.model):
            distance = parameter - self.start[name]
            importance += self.path[name] / (distance.square() + self.damping)
            self.anchor[name].copy_(parameter)

    def end(self, task: Task) -> None:
        del self.before, self.path, self.start
