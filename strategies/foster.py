"""FOSTER. Wang et al., Feature Boosting and Compression for Class-Incremental Learning, ECCV 2022.

Boosting: a second backbone learns what the frozen old one lacks, with one head on the features of both. Compression:
the pair is distilled into one network, which the next task starts from. Where ours departs: images of each class are
counted in the data at hand, where the released code assumes 500 for every new class; its options to align heads and to
fix the weights from old features to new classes are left out, since it has them switched off. That code evaluates the
pair at each task and reports the size of the one network; here ``scored`` says which is scored, and that one is carried
and counted. Scoring the pair means carrying it beside the compressed network.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import ImageSet
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.distillation import distillation
from cil.ops.expansion import balanced_distillation, effective_weights
from cil.ops.freezing import freeze, frozen_copy
from cil.scenario import Task
from cil.strategy import Strategy
from cil.trainer import Trainer


class Pair(nn.Module):
    """The old backbone, a new one that starts as its copy, and one head on the features of both.

    Args:
        model: the network so far; its head, whose rows are the pair's for the old features, has grown already.
    """

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.old = frozen_copy(model.backbone)
        self.new = copy.deepcopy(model.backbone)
        self.head = copy.deepcopy(model.head)
        self.head.grow(0, model.num_features)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 D), the old backbone's first."""
        return torch.cat([self.old(x), self.new(x)], 1)


class FOSTER(Strategy):
    """Boost the old network with a second one, then compress both into one.

    Args:
        model: backbone and head without classes.
        scored: ``compressed``, the single network (the paper's FOSTER), or ``boosted``, the pair before compression
            (its FOSTER B4), which is then carried as well.
        temperature: T of both distillations.
        keep: weight of the distillation of old scores while boosting.
        beta_boost: beta of the effective number of images by which scores are divided while boosting; 0 for none.
        beta_compress: beta of the weights of soft targets while compressing; 0 for none.
        compress_epochs: of the compression, as a share of the trainer's epochs, rounded up.
    """

    def __init__(
        self,
        model: Network,
        *,
        scored: Literal["compressed", "boosted"] = "compressed",
        temperature: float = 2.0,
        keep: float = 1.0,
        beta_boost: float = 0.97,
        beta_compress: float = 0.97,
        compress_epochs: float = 130 / 170,
    ) -> None:
        super().__init__(model)
        self.scored, self.temperature, self.keep = scored, temperature, keep
        self.beta_boost, self.beta_compress, self.compress_epochs = beta_boost, beta_compress, compress_epochs
        self.pair: Pair | None = None

    @property
    def label(self) -> str:
        return f"FOSTER ({self.scored})"

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.n_old and self.scored == "boosted":
            self.pair = Pair(self.model)

    def begin(self, task: Task) -> None:
        self.n_old, self.compressing = task.n_old, False
        self.weights: Tensor | None = None
        self.old_head = frozen_copy(self.model.head) if task.n_old else None  # its teacher is the pair's old backbone
        self.helper = LinearHead(self.model.num_features) if task.n_old else None
        if self.helper is not None:
            self.helper.to(self.model.head.weight.device)
            self.helper.grow(task.n_seen)
            self.pair = Pair(self.model)
            freeze(self.model)

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        if self.pair is None or self.helper is None:
            trainer.descend(self, task.train, replay)
            return
        counts = torch.from_numpy(task.train.counts(task.n_seen))
        if replay is not None:
            counts = counts + torch.from_numpy(replay.counts(task.n_seen))
        counts = counts.clamp(min=1)  # a class without any image weighs like one with a single image
        device = self.model.head.weight.device
        self.weights = effective_weights(counts, self.beta_boost).to(device)  # (K,)
        trainer.descend(self, task.train, replay)
        self.compressing = True
        freeze(self.pair)
        freeze(self.helper)
        self.model.requires_grad_(True)
        self.weights = effective_weights(counts, self.beta_compress).to(device)
        trainer.descend(self, task.train, replay, epochs=trainer.share(self.compress_epochs))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.pair is None or self.helper is None or self.old_head is None or self.weights is None:  # the first task
            return self.classification(self.model(x), y)
        features = self.pair.features(x)  # (B, 2 D)
        logits = self.pair.head(features)  # (B, K)
        if self.compressing:
            return balanced_distillation(self.model(x), logits, self.weights, self.temperature)
        width = self.model.num_features
        own = self.helper(features[:, width:])  # (B, K), from the new features alone
        learn = self.classification(logits / self.weights, y) + F.cross_entropy(own, y)
        old = self.old_head(features[:, :width])[:, : self.n_old]  # (B, K_old)
        return learn + self.keep * distillation(logits[:, : self.n_old], old, self.temperature)

    def end(self, task: Task) -> None:
        self.old_head = self.helper = self.weights = None  # not carried, not charged
        if self.scored == "compressed":
            self.pair = None

    def features(self, x: Tensor) -> Tensor:
        return self.model.features(x) if self.pair is None else self.pair.features(x)

    def scores(self, features: Tensor) -> Tensor:
        return self.model.head(features) if self.pair is None else self.pair.head(features)
