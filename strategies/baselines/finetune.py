"""Fine-tuning: the lower bound of class-incremental comparisons, with no means against forgetting.

As in Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024: later tasks learn their own columns alone.
Cross-entropy over all columns is another, more biased baseline; ``columns: all`` gives it. Where old classes return, a
task's own columns are those of all its classes. A stream without boundaries has no columns of its own: there all
classes seen are compared.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from cil.data.scenario import Task
from cil.learning.strategy import Strategy
from cil.nets.network import Network
from cil.ops.columns import among


class Finetune(Strategy):
    """Learn each task's classes with cross-entropy and keep nothing of the past but the weights.

    Args:
        model: backbone and head without classes.
        columns: ``new`` compares the classes of a task with one another; ``all`` with every class seen.
    """

    exemplar_free: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = False

    def __init__(self, model: Network, *, columns: Literal["new", "all"] = "new") -> None:
        super().__init__(model)
        self.columns = columns

    def begin(self, task: Task) -> None:
        alone = self.columns == "new" and task.boundary
        self.own = list(task.present) if alone else list(range(task.n_seen))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(*among(self(x), y, self.own))
