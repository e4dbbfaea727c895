"""Dark experience replay, DER and DER++ (no relation to DER, dynamically expandable representation).

Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS 2020. Beside each
exemplar lie the scores that the network gave it when it was taken up; replay pulls its scores back to them, eq. 6, and
DER++ also learns the labels of another draw, eq. 7. The scores are carried: 4 bytes for each class and exemplar.

Where ours departs: exemplars are taken up, and scored, after a task or a piece of a stream, not after each batch; the
released head has the columns of all classes from the start, ours grows, so an old exemplar is pulled in the columns of
the classes that were seen when it was taken up; one pass normalises new images and exemplars together.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.batch import Batch
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network


class DarkER(Strategy):
    """Learn new images, pull the scores of exemplars back to those stored beside them, and learn others by label.

    Args:
        model: backbone and head without classes.
        alpha: weight of the stored scores.
        beta: weight of the labels of a second draw, which makes DER++; 0 is DER.
    """

    needs_boundaries: ClassVar[bool] = False

    def __init__(self, model: Network, *, alpha: float = 0.3, beta: float = 0.5) -> None:
        super().__init__(model)
        check_number("strategy.alpha", alpha, least=0)
        check_number("strategy.beta", beta, least=0)
        self.alpha, self.beta = alpha, beta

    @property
    def label(self) -> str:
        return "DER++" if self.beta else "DER (dark)"

    def exemplar_columns(self, n_seen: int) -> dict[str, int]:
        return {"scores": n_seen}

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self(x)}

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        trainer.descend(self, task.train, replay, drawn=2 if self.beta else 1)

    def batch_loss(self, batch: Batch) -> Tensor:
        logits = self(batch.x)  # (B, K)
        learn = F.cross_entropy(logits, batch.y, reduction="none", label_smoothing=self.label_smoothing)  # (B,)
        loss = batch.mean(learn, batch.source == 0) + self.beta * batch.mean(learn, batch.source == 2)
        if "scores" not in batch.columns:
            return loss
        stored = batch.columns["scores"][:, : logits.shape[1]]  # (B, K before), NaN where nothing was known
        known = ~stored.isnan()
        distance = (logits[:, : stored.shape[1]] - stored.nan_to_num()).square() * known
        pulled = distance.sum(1) / known.sum(1).clamp(min=1)
        return loss + self.alpha * batch.mean(pulled, batch.source == 1)
