"""Fine-tuning: the lower bound of class-incremental comparisons, with no means against forgetting.

As in Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024, section 5: later tasks learn their own columns
alone. Cross-entropy over all columns is another, more biased baseline; ``columns: all`` gives it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from cil.nets.network import Network
from cil.scenario import Task
from cil.strategy import Strategy


class Finetune(Strategy):
    """Learn each task's classes with cross-entropy and keep nothing of the past but the weights.

    Args:
        model: backbone and head without classes.
        columns: ``new`` compares new classes with one another; ``all`` with every class seen.
    """

    exemplar_free: ClassVar[bool] = True

    def __init__(self, model: Network, *, columns: Literal["new", "all"] = "new") -> None:
        super().__init__(model)
        self.columns = columns

    def begin(self, task: Task) -> None:
        self.first = task.n_old if self.columns == "new" else 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(self(x)[:, self.first :], y - self.first)  # (B, K - first)
