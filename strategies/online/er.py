"""Experience replay (ER). Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486, 2019.

Each batch of new images is joined by as many exemplars, drawn uniformly, so that old classes have half of every step
however few exemplars there are. ``replay`` shuffles them among the new images instead, so that each is seen once in an
epoch. The paper's memory is a reservoir of the stream: ``memory.selection: reservoir``.

Where ours departs: exemplars are chosen after a task, or after a piece of a stream, not after each batch.
"""

from __future__ import annotations

from typing import ClassVar

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.learning.strategy import GradientLoop, Strategy


class ER(Strategy):
    """Minimise cross-entropy over all classes seen, on batches of new images with as many exemplars drawn for each."""

    needs_boundaries: ClassVar[bool] = False

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        trainer.descend(self, task.train, replay, drawn=1)
