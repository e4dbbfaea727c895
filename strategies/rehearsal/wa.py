"""Weight aligning (WA). Zhao et al., Maintaining Discrimination and Fairness in Class Incremental Learning, CVPR 2020.

Where ours departs: the paper also keeps the head's weights non-negative, so that a row's length tells the size of its
scores, and has no use for a bias; published toolboxes do neither, and the survey's numbers (Zhou et al., TPAMI 2024)
are without. Both are options, ``clip_weights`` and ``head_bias``, set as the toolboxes have them. The bias is not
scaled unless ``scale_bias`` says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.strategy import Strategy
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.alignment import align
from cil.ops.distillation import distillation
from cil.ops.freezing import frozen_copy


class WA(Strategy):
    """Distil the old logits; then scale the new rows of the head to the old rows' norm.

    Args:
        model: backbone and head without classes.
        temperature: T of the distillation.
        clip_weights: keep the head's weights non-negative after every step, as in the paper.
        head_bias: whether the head has a bias.
        scale_bias: scale the new biases by gamma, too.
        only_shrink: align only when the new rows are longer than the old ones.
    """

    def __init__(
        self,
        model: Network,
        *,
        temperature: float = 2.0,
        clip_weights: bool = False,
        head_bias: bool = True,
        scale_bias: bool = False,
        only_shrink: bool = False,
    ) -> None:
        super().__init__(model)
        check_number("strategy.temperature", temperature, above=0)
        self.temperature, self.clip_weights, self.head_bias = temperature, clip_weights, head_bias
        self.scale_bias, self.only_shrink = scale_bias, only_shrink

    def grow(self, task: Task) -> None:
        if not self.head_bias and isinstance(self.model.head, LinearHead):
            self.model.head.bias = None
        super().grow(task)

    def begin(self, task: Task) -> None:
        self.teacher = frozen_copy(self.model) if task.n_old else None
        self.n_old = task.n_old

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.clip()
        logits = self(x)  # (B, K)
        learn = self.classification(logits, y)
        if self.teacher is None:
            return learn
        target = self.teacher(x)[:, : self.n_old]  # (B, K_old)
        keep = self.n_old / logits.shape[1]  # lambda
        return (1 - keep) * learn + keep * distillation(logits[:, : self.n_old], target, self.temperature)

    def end(self, task: Task) -> None:
        self.clip()
        if task.n_old and task.n_new:
            head = self.model.head
            gamma = align(head.weight, task.n_old, only_shrink=self.only_shrink)
            if self.scale_bias and isinstance(head, LinearHead) and head.bias is not None:
                head.bias.data[task.n_old :] *= gamma
        self.teacher = None  # not carried, not charged

    @torch.no_grad()
    def clip(self) -> None:
        """Set negative head weights to zero: called before each step and at the end, so after every step."""
        if self.clip_weights:
            self.model.head.weight.clamp_(min=0)
