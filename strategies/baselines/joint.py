"""Joint training: the upper bound, which keeps every image and so lies outside any memory budget.

As in Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024. It needs ``memory.exemplars: all``; its bytes are
counted like everyone's. On a stream without boundaries it is experience replay from all images so far and never starts
from fresh weights.
"""

from __future__ import annotations

from typing import ClassVar

from cil.data.scenario import Task
from cil.learning.strategy import Strategy
from cil.nets.network import Network


class Joint(Strategy):
    """Train on all images of all classes seen, at each task.

    Args:
        model: backbone and head without classes.
        restart: whether each task starts from fresh weights instead of the ones before.
    """

    needs_all_data: ClassVar[bool] = True
    needs_boundaries: ClassVar[bool] = False

    def __init__(self, model: Network, *, restart: bool = True) -> None:
        super().__init__(model)
        self.restart = restart

    def begin(self, task: Task) -> None:
        if self.restart and task.n_old and task.boundary:
            self.model.reinitialise()
