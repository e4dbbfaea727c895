"""iCaRL. Rebuffi, Kolesnikov, Sperl and Lampert, iCaRL: Incremental Classifier and Representation Learning, CVPR 2017.

Herding (``memory.selection: herding``) and the nearest mean of exemplars (the evaluator ``nearest_mean``, or
``nearest_mean_flip`` as the original code averaged mirrored exemplars too) belong to the method and are the engine's.

Where implementations differ: the paper's loss is a sigmoid with binary cross-entropy for both terms (``loss_form:
sigmoid``, the default); the survey's numbers (Zhou et al., TPAMI 2024) come from softmax cross-entropy plus
distillation at temperature 2 (``loss_form: softmax``). The binary terms are summed over classes, as the paper writes
them, and averaged over the batch. The released code (github.com/srebuffi/iCaRL, b3d36864) has an output for each of all
100 classes from the start and takes their mean, which goes with its rate of 2.0: with a sum, a rate of 0.02 takes the
same steps. ``mean_over: 100`` divides as it does.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.strategy import Strategy
from cil.nets.network import Network
from cil.ops.distillation import distillation
from cil.ops.freezing import frozen_copy


class ICaRL(Strategy):
    """Learn new classes while the old scores are distilled; predict the class of the nearest mean exemplar.

    Args:
        model: backbone and head without classes.
        loss_form: ``sigmoid`` (the paper's binary cross-entropy, old columns against the teacher's probabilities) or
            ``softmax`` (cross-entropy over all classes plus ``keep`` times distillation).
        temperature: of the softmax distillation.
        keep: weight of the softmax distillation.
        mean_over: by how many outputs the sum of the binary terms is divided; null: by none.
    """

    evaluator: ClassVar[str] = "nearest_mean"

    def __init__(
        self,
        model: Network,
        *,
        loss_form: Literal["sigmoid", "softmax"] = "sigmoid",
        temperature: float = 2.0,
        keep: float = 1.0,
        mean_over: int | None = None,
    ) -> None:
        super().__init__(model)
        check_number("strategy.temperature", temperature, above=0)
        check_number("strategy.keep", keep, least=0)
        if mean_over is not None:
            check_number("strategy.mean_over", mean_over, least=1, whole=True)
        self.loss_form, self.temperature, self.keep, self.mean_over = loss_form, temperature, keep, mean_over

    def begin(self, task: Task) -> None:
        self.teacher = frozen_copy(self.model) if task.n_old else None
        self.n_old = task.n_old

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self(x)  # (B, K)
        old = (
            self.teacher(x)[:, : self.n_old] if self.teacher is not None else logits.new_empty(len(x), 0)
        )  # (B, K_old)
        if self.loss_form == "sigmoid":
            return binary_loss(logits, y, old) / (self.mean_over or 1)
        learn = self.classification(logits, y)
        if self.teacher is None:
            return learn
        return learn + self.keep * distillation(logits[:, : self.n_old], old, self.temperature)

    def end(self, task: Task) -> None:
        self.teacher = None  # not carried, not charged


def binary_loss(logits: Tensor, y: Tensor, old_logits: Tensor) -> Tensor:
    """Binary cross-entropy of every class: new columns against the label, old columns against the teacher (alg. 3).

    Args:
        logits: (B, K).
        y: labels (B,); an old class's image has only zeros in the new columns.
        old_logits: the teacher's (B, K_old).

    Returns:
        The sum over classes, mean over the batch, a scalar ().
    """
    target = F.one_hot(y, logits.shape[1]).to(logits.dtype)
    target = torch.cat([torch.sigmoid(old_logits), target[:, old_logits.shape[1] :]], 1)  # (B, K)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(y)
