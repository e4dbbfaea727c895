"""FOSTER. Wang et al., FOSTER: Feature Boosting and Compression for Class-Incremental Learning, ECCV 2022.

Boosting: a second backbone learns what the frozen old one lacks, with one head on the features of both. Compression:
the pair is distilled into one network, which the next task starts from. Where ours departs from the public toolbox
PyCIL: images of each class are counted in the data at hand, where it takes 500 for every new class (``images``); its
option to fix the weights from old features to new classes is left out. Compression has no weight decay, as in the
authors' code and in PyCIL (``compress_weight_decay``). The authors give ``beta_boost`` a value for each task, on
CIFAR-100 in ten tasks from 0.98 down to 0.94 (github.com/G-U-N/ECCV22-FOSTER, 8f8dac62); PyCIL has 0.96, their mean.
PyCIL evaluates the pair after each task, while the published number of parameters is that of the one network (Zhou et
al., Class-Incremental Learning: A Survey, TPAMI 2024); here ``scored`` says which is scored, and that one is carried
and counted. Scoring the pair means carrying it beside the compressed network. Exemplars are chosen by the pair's
features in either case (``herding``).
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import UserError, check_number
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.distillation import distillation
from cil.ops.expansion import balanced_distillation, effective_weights
from cil.ops.freezing import freeze, frozen_copy


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)"""
        return self.head(self.features(x))


class FOSTER(Strategy):
    """Boost the old network with a second one, then compress both into one.

    Args:
        model: backbone and head without classes.
        scored: ``compressed``, the single network that the next task starts from, or ``boosted``, the pair before
            compression, which is then carried as well.
        temperature: T of both distillations.
        keep: weight of the distillation of old scores while boosting.
        beta_boost: beta of the effective number of images by which scores are divided while boosting; 0 for none. A
            list has one for each task after the first; its last one serves all further tasks.
        beta_compress: beta of the weights of soft targets while compressing; 0 for none.
        compress_epochs: of the compression, as a share of the trainer's epochs, rounded up.
        compress_weight_decay: of the compression; null takes the trainer's.
        herding: whose features choose exemplars: those of the ``pair``, as in the released code, or of the network that
            is ``scored``.
        images: how many each new class counts in both effective numbers; null counts them. The released code has 500.
    """

    def __init__(
        self,
        model: Network,
        *,
        scored: Literal["compressed", "boosted"] = "compressed",
        temperature: float = 2.0,
        keep: float = 1.0,
        beta_boost: float | list[float] = 0.96,
        beta_compress: float = 0.97,
        compress_epochs: float = 130 / 170,
        compress_weight_decay: float | None = 0.0,
        herding: Literal["pair", "scored"] = "pair",
        images: int | None = None,
    ) -> None:
        super().__init__(model)
        if model.frozen:
            raise UserError(
                "model.frozen: FOSTER learns copies of its backbone, and a frozen one never learns; give model.frozen: "
                "false"
            )
        check_number("strategy.temperature", temperature, above=0)
        check_number("strategy.keep", keep, least=0)
        if beta_boost == []:
            raise UserError("strategy.beta_boost: [] must be a number or hold one or more, each >= 0 and < 1")
        for beta in beta_boost if isinstance(beta_boost, list) else [beta_boost]:
            check_number("strategy.beta_boost", beta, least=0, below=1)
        check_number("strategy.beta_compress", beta_compress, least=0, below=1)
        check_number("strategy.compress_epochs", compress_epochs, above=0)
        if compress_weight_decay is not None:
            check_number("strategy.compress_weight_decay", compress_weight_decay, least=0)
        if images is not None:
            check_number("strategy.images", images, least=1, whole=True)
        self.scored, self.temperature, self.keep = scored, temperature, keep
        self.beta_boost, self.beta_compress, self.compress_epochs = beta_boost, beta_compress, compress_epochs
        self.compress_weight_decay, self.herding, self.images = compress_weight_decay, herding, images
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
        self.helper = self.model.auxiliary_head(task.n_seen) if task.n_old else None
        if task.n_old:
            self.pair = Pair(self.model)
            freeze(self.model)

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        if self.pair is None or self.helper is None:  # the first task
            trainer.descend(self, task.train, replay)
            return
        counts = torch.from_numpy(task.train.counts(task.n_seen))
        if replay is not None:
            counts = counts + torch.from_numpy(replay.counts(task.n_seen))
        if self.images is not None:
            counts[task.n_old :] = self.images
        counts = counts.clamp(min=1)  # a class without any image weighs like one with a single image
        betas = self.beta_boost if isinstance(self.beta_boost, list) else [self.beta_boost]
        beta, like = betas[min(task.index, len(betas)) - 1], self.model.head.weight
        self.weights = effective_weights(counts, beta).to(like)  # (K,)
        trainer.descend(self, task.train, replay)
        self.compressing = True
        freeze(self.pair)
        freeze(self.helper)
        self.model.requires_grad_(True)
        self.weights = effective_weights(counts, self.beta_compress).to(like)
        decay = self.compress_weight_decay
        options = {} if decay is None else {"weight_decay": decay}
        trainer.descend(self, task.train, replay, epochs=trainer.share(self.compress_epochs), options=options)
        del self.weights  # of this task's data alone

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.pair is None or self.helper is None:  # the first task
            return self.classification(self.model(x), y)
        if self.compressing:
            return self.compression(self.pair, x)
        return self.boosting(self.pair, self.helper, x, y)

    def boosting(self, pair: Pair, helper: LinearHead, x: Tensor, y: Tensor) -> Tensor:
        """All classes by both features and by the new ones alone, and the old scores: (B, C, H, W), (B,) -> ()."""
        features, width = pair.features(x), self.model.num_features  # (B, 2 D), D
        logits = pair.head(features)  # (B, K)
        own = helper(features[:, width:])  # (B, K), from the new features alone
        old = self.model.head(features[:, :width])[:, : self.n_old]  # (B, K_old), of the frozen old network
        learn = self.classification(logits / self.weights, y) + F.cross_entropy(own, y)
        return learn + self.keep * distillation(logits[:, : self.n_old], old, self.temperature)

    def compression(self, pair: Pair, x: Tensor) -> Tensor:
        """The pair's scores, weighed by class, as soft targets of the single network: (B, C, H, W) -> ()."""
        return balanced_distillation(self.model(x), pair(x), self.weights, self.temperature)

    def end(self, task: Task) -> None:
        self.helper = None  # not carried, not charged
        if self.herding == "scored":
            self.selected(task)

    def selected(self, task: Task) -> None:
        if self.scored == "compressed":
            self.pair = None  # not carried, not charged

    def features(self, x: Tensor) -> Tensor:
        return self.model.features(x) if self.pair is None else self.pair.features(x)

    def scores(self, features: Tensor) -> Tensor:
        return self.model.head(features) if self.pair is None else self.pair.head(features)
