"""Learning without forgetting (LwF). Li and Hoiem, Learning without Forgetting, ECCV 2016.

Where this departs from the paper: new and old columns learn together from the start, without the warm-up in which only
the new rows learn; and the distillation weighs 3, as class-incremental toolboxes have it, where the paper weighs it 1.
"""

from cil.learning.strategy import Strategy
from cil.ops.distillation import distillation
from cil.ops.freezing import frozen_copy


class LwF(Strategy):
    """Learn the new columns while the old ones keep giving the scores they gave before.

    Args:
        model: backbone and head without classes.
        keep: weight of the distillation.
        temperature: T of the distillation.
    """

    exemplar_free = True

    def __init__(self, model, *, keep: float = 3.0, temperature: float = 2.0):
        super().__init__(model)
        self.keep, self.temperature = keep, temperature

    def begin(self, task):
        self.teacher = frozen_copy(self.model) if task.n_old else None
        self.n_old = task.n_old

    def loss(self, x, y):
        logits = self(x)  # (B, K)
        learn = self.classification(logits[:, self.n_old :], y - self.n_old)
        if self.teacher is None:
            return learn
        target = self.teacher(x)[:, : self.n_old]  # (B, K_old)
        return learn + self.keep * distillation(logits[:, : self.n_old], target, self.temperature)

    def end(self, task):
        self.teacher = None  # not carried, not charged
