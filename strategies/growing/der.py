"""Dynamically expandable representation (DER). Yan et al., DER: Dynamically Expandable Representation for Class
Incremental Learning, CVPR 2021. Not to be confused with dark experience replay, which has the same abbreviation.

Each task adds a whole backbone; one head reads the features of all. Where ours departs: the pruning of new backbones by
learned channel masks is left out, as in the published toolboxes and in the comparisons at equal memory (Zhou et al., A
Model or 603 Exemplars, ICLR 2023), so a task always costs one backbone. Those toolboxes also replace the paper's second
stage, in which the head is learned anew on a balanced subset, by weight aligning; here both are there. That stage has
the schedule and the weight decay of the released code (github.com/Rhyssiyan/DER-ClassIL.pytorch, 42269581), whose
configurations also draw the whole head anew in each task (``fresh_head``). It draws it a second time when its warm-up
of ten epochs ends, which is left out; ``trainer.warmup_epochs`` has the warm-up itself.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network
from cil.ops.alignment import align
from cil.ops.expansion import auxiliary_loss
from cil.ops.freezing import freeze


class DER(Strategy):
    """Add a backbone for each task, freeze the former ones, and read all features with one head.

    Args:
        model: backbone and head without classes.
        auxiliary: weight of the loss by which the new backbone alone tells the new classes from each other and from all
            old ones (lambda_a of the paper).
        balance: how the head loses its preference for new classes: ``retrain`` learns it from fresh weights on as many
            images of each new class as are kept of an old one (the paper), ``align`` scales its new rows as weight
            aligning does (the toolboxes), ``none``.
        temperature: delta, by which scores are divided while the head is retrained.
        retrain_epochs: of ``retrain``, as a share of the trainer's epochs, rounded up.
        retrain_schedule: of ``retrain``: ``step`` divides the rate by ten after half of its epochs, without a warm-up
            (the released code), ``trainer`` takes the trainer's own.
        retrain_weight_decay: of ``retrain``; null takes the trainer's.
        fresh_head: draw the whole head anew in each task (the released code) instead of keeping what it has learned of
            old features (the paper).
    """

    def __init__(
        self,
        model: Network,
        *,
        auxiliary: float = 1.0,
        balance: Literal["retrain", "align", "none"] = "retrain",
        temperature: float = 5.0,
        retrain_epochs: float = 30 / 170,
        retrain_schedule: Literal["step", "trainer"] = "step",
        retrain_weight_decay: float | None = 5e-4,
        fresh_head: bool = False,
    ) -> None:
        super().__init__(model)
        check_number("strategy.auxiliary", auxiliary, least=0)
        check_number("strategy.temperature", temperature, above=0)
        check_number("strategy.retrain_epochs", retrain_epochs, above=0)
        if retrain_weight_decay is not None:
            check_number("strategy.retrain_weight_decay", retrain_weight_decay, least=0)
        self.auxiliary, self.balance, self.fresh_head = auxiliary, balance, fresh_head
        self.temperature, self.retrain_epochs = temperature, retrain_epochs
        self.retrain_schedule, self.retrain_weight_decay = retrain_schedule, retrain_weight_decay
        self.later = nn.ModuleList()  # the backbones of the second task and those after it

    @property
    def backbones(self) -> list[nn.Module]:
        """One for each task, oldest first."""
        return [self.model.backbone, *self.later]

    def grow(self, task: Task) -> None:
        if task.index:
            self.later.append(copy.deepcopy(self.backbones[-1]))
        self.model.head.grow(task.n_new, self.model.num_features if task.index else 0)

    def begin(self, task: Task) -> None:
        self.n_old, self.retraining = task.n_old, False
        for backbone in self.backbones[:-1]:
            freeze(backbone)
        if task.index and self.fresh_head:
            self.model.head.reset()
        self.helper = self.model.auxiliary_head(1 + task.n_new) if task.n_old and self.auxiliary else None

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([backbone(x) for backbone in self.backbones], 1)  # (B, T D)

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        trainer.descend(self, task.train, replay)
        if replay is not None and self.balance == "retrain":
            self.retraining = True
            for backbone in self.backbones:
                freeze(backbone)
            self.helper = None
            self.model.head.reset()
            few = int(replay.counts(task.n_seen).max())
            chosen = [torch.nonzero(task.train.labels == c).flatten() for c in task.new]
            chosen = [index[torch.randperm(len(index))[:few]] for index in chosen]
            epochs, options = trainer.share(self.retrain_epochs), self.retraining_options()
            trainer.descend(self, task.train.subset(torch.cat(chosen)), replay, epochs=epochs, options=options)

    def retraining_options(self) -> dict[str, Any]:
        """The trainer's options in the stage that learns the head anew, where they are not the trainer's own."""
        options: dict[str, Any] = {}
        if self.retrain_schedule == "step":
            options = {"schedule": "multistep", "milestones": [0.5], "gamma": 0.1, "warmup_epochs": 0}
        if self.retrain_weight_decay is not None:
            options["weight_decay"] = self.retrain_weight_decay
        return options

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.features(x)  # (B, T D)
        logits = self.scores(features)  # (B, K)
        if self.retraining:
            return self.classification(logits / self.temperature, y)
        learn = self.classification(logits, y)
        if self.helper is None:
            return learn
        own = features[:, -self.model.num_features :]  # (B, D)
        return learn + self.auxiliary * auxiliary_loss(self.helper(own), y, self.n_old)

    def end(self, task: Task) -> None:
        if task.n_old and task.n_new and self.balance == "align":
            align(self.model.head.weight, task.n_old)
        self.helper = None  # not carried, not charged
