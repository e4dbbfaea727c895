"""Weight aligning (WA). Zhao et al., Maintaining Discrimination and Fairness in Class Incremental Learning, CVPR 2020.

The head's weights are kept non-negative (``clip_weights``), so that a row's length tells the size of its scores.
Published toolboxes leave that out, and the survey's numbers (Zhou et al., TPAMI 2024) are without it;
configs/strategies/wa.yaml is as they have it. Where ours departs: the paper has no use for a bias, which the toolboxes
have (``head_bias``). It is not scaled unless ``scale_bias`` says so.
"""

from __future__ import annotations

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
        clip_weights: set negative weights of the head to 0 after every step, as in the paper.
        head_bias: whether the head has a bias.
        scale_bias: scale the new biases by gamma, too.
        only_shrink: align only when the new rows are longer than the old ones.
    """

    def __init__(
        self,
        model: Network,
        *,
        temperature: float = 2.0,
        clip_weights: bool = True,
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
        logits = self(x)  # (B, K)
        learn = self.classification(logits, y)
        if self.teacher is None:
            return learn
        target = self.teacher(x)[:, : self.n_old]  # (B, K_old)
        keep = self.n_old / logits.shape[1]  # lambda
        return (1 - keep) * learn + keep * distillation(logits[:, : self.n_old], target, self.temperature)

    def stepped(self) -> None:
        if self.clip_weights:
            self.model.head.weight.clamp_(min=0)

    def end(self, task: Task) -> None:
        if task.n_old and task.n_new:
            head = self.model.head
            gamma = align(head.weight, task.n_old, only_shrink=self.only_shrink)
            if self.scale_bias and isinstance(head, LinearHead) and head.bias is not None:
                head.bias.data[task.n_old :] *= gamma
        self.teacher = None  # not carried, not charged
