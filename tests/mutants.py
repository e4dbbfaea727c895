"""Strategies that each break one promise. The conformance suite must catch every one. No source is named: 2020."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from cil.data.images import FeatureSet, ImageSet
from cil.data.scenario import Task
from cil.learning.batch import Batch
from cil.learning.frozen import Frozen
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.ops.closed_form.means import ClassMeans
from cil.ops.distillation import distillation
from cil.ops.freezing import freeze, frozen_copy


class HeadThatDoesNotGrow(Strategy):
    """Score the first task's classes for ever."""

    def grow(self, task: Task) -> None:
        if not task.n_old:
            super().grow(task)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(self(x), y.clamp(max=self.model.head.n_classes - 1))


class HeadForAllClasses(Strategy):
    """Score six classes from the start."""

    def grow(self, task: Task) -> None:
        if not task.n_old:
            self.model.head.grow(6)


class HiddenTeacher(Strategy):
    """Keep the former network in a list, where no ledger looks."""

    def begin(self, task: Task) -> None:
        self.shelf = getattr(self, "shelf", [])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self(x)
        loss = self.classification(logits, y)
        if self.shelf:
            old = self.shelf[0](x)
            loss = loss + distillation(logits[:, : old.shape[1]], old)
        return loss

    def end(self, task: Task) -> None:
        self.shelf = [frozen_copy(self.model)]


class TeacherLeftBehind(Strategy):
    """Forget to drop the teacher, so it is carried although nothing made room for it."""

    def begin(self, task: Task) -> None:
        self.teacher = frozen_copy(self.model)


class ChooserLeftBehind(Strategy):
    """Choose exemplars by the features of a copy, and drop it after the first task alone."""

    def begin(self, task: Task) -> None:
        self.chooser = frozen_copy(self.model)

    def selected(self, task: Task) -> None:
        if not task.n_old:
            self.chooser = None


class CountsInPython(Strategy):
    """Weigh the loss by the number of tasks learned, which is kept as a Python number."""

    learned = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(self(x), y) / (1 + self.learned)

    def end(self, task: Task) -> None:
        self.learned += 1


class CountsStepsInPython(Strategy):
    """Weigh the loss by the number of steps in the task, which no checkpoint inside the task knows."""

    def begin(self, task: Task) -> None:
        self.steps = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.steps += 1
        return self.classification(self(x), y) / (1 + 0.1 * self.steps)


class CountsStepsAfterwards(Strategy):
    """The same, counted when the optimiser has stepped."""

    def begin(self, task: Task) -> None:
        self.steps = 0

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(self(x), y) / (1 + 0.1 * self.steps)

    def stepped(self) -> None:
        self.steps += 1


class StepsByItself(Strategy):
    """Move the weights where gradients alone are to be changed."""

    def gradients(self, trainer: Trainer) -> None:
        for parameter in self.parameters():
            parameter -= 0.01 * parameter.grad


class KeepsFisherAside(Strategy):
    """Keep importances in a dictionary, where no ledger looks."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        super().fit(task, replay, trainer)
        self.fisher = trainer.gradients_of(self, task.train, of=torch.square)


class RemembersByPosition(Strategy):
    """Note each image's scores by its position, for ever."""

    def begin(self, task: Task) -> None:
        self.known = getattr(self, "known", {})

    def batch_loss(self, batch: Batch) -> Tensor:
        logits = self(batch.x)
        self.known |= zip(batch.positions.tolist(), logits.detach(), strict=True)
        return self.classification(logits, batch.y)


class StoresMoreThanDeclared(Strategy):
    """Store a number beside each exemplar more than is declared."""

    def exemplar_columns(self, n_seen: int) -> dict[str, int]:
        return {"scores": n_seen}

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": torch.nn.functional.pad(self(x), (0, 1))}


class DescribesTheBatch(Strategy):
    """Store scores that are centred by the other images' ones."""

    def exemplar_columns(self, n_seen: int) -> dict[str, int]:
        return {"scores": n_seen}

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        scores = self(x)
        return {"scores": scores - scores.mean(0)}


class CountsInBuffer(Strategy):
    """Make a buffer after learning that ``grow`` knows nothing of."""

    def end(self, task: Task) -> None:
        self.register_buffer("mean", torch.zeros(3))


class KeepsOldImages(Strategy):
    """Keep the training data of every task and learn from all of them."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        self.kept = [*getattr(self, "kept", []), task.train]
        for images in self.kept:
            trainer.descend(self, images, replay)


class KeepsACopyOfImages(Strategy):
    """Keep some images as a tensor attribute."""

    def end(self, task: Task) -> None:
        self.some = task.train.gather(slice(0, 4)).clone()


class DependsOnTheBatch(Strategy):
    """Centre the features of each batch."""

    def features(self, x: Tensor) -> Tensor:
        v = super().features(x)
        return v - v.mean(0)


class TrainsWhilePredicting(Strategy):
    """Predict in training mode, which moves the batch statistics."""

    def forward(self, x: Tensor) -> Tensor:
        self.model.train()
        return super().forward(x)


class DrawsWhilePredicting(Strategy):
    """Add a little noise to every score."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores + 1e-6 * torch.rand_like(scores)


class ThawsStatistics(Strategy):
    """Freeze the stem, then put it into training mode at every step."""

    def begin(self, task: Task) -> None:
        freeze(self.model.backbone.stem)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.model.train()
        return super().loss(x, y)


class MovesFrozenWeights(Strategy):
    """Freeze the stem and change it all the same."""

    def begin(self, task: Task) -> None:
        freeze(self.model.backbone.stem)

    @torch.no_grad()
    def _move(self) -> None:
        self.model.backbone.stem[0].weight.mul_(1.001)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self._move()
        return super().loss(x, y)


class OwnRandomness(Strategy):
    """Draw the initial head from the operating system."""

    def begin(self, task: Task) -> None:
        noise = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        with torch.no_grad():
            self.model.head.weight += 0.01 * torch.randn(self.model.head.weight.shape, generator=noise)


class AlwaysTheSame(Strategy):
    """Ignore every seed: fixed weights, fixed order, one step."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.01)


class NotANumber(Strategy):
    """Divide zero by zero after the second task."""

    def end(self, task: Task) -> None:
        if task.index == 1:
            with torch.no_grad():
                self.model.head.weight[-1] /= 0.0


class LearnsNothing(Strategy):
    """Leave the weights as they are."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        pass


class ForgetsItsParameter(Strategy):
    """Take a temperature and not keep it.

    Args:
        temperature: of nothing.
    """

    def __init__(self, model: Any, *, temperature: float = 2.0) -> None:
        super().__init__(model)


class HidesItsParameter(Strategy):
    """Take a parameter that the documentation does not mention."""

    def __init__(self, model: Any, *, secret: float = 2.0) -> None:
        super().__init__(model)
        self.secret = secret


class TakesItByPosition(Strategy):
    """Take a hyper-parameter by position.

    Args:
        width: of nothing.
    """

    def __init__(self, model: Any, width: int = 3) -> None:
        super().__init__(model)
        self.width = width


class GrowsWithTheData(Strategy):
    """Make a buffer as large as the number of training images, which a plan cannot know."""

    def begin(self, task: Task) -> None:
        self.register_buffer("seen", torch.zeros(len(task.train)))

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.register_buffer("seen", torch.zeros(len(task.train)))


class NeedsTwoClasses(Strategy):
    """Standardise scores over classes, which a single class does not survive."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores / scores.std(1, keepdim=True)


class NeedsNewClasses(Strategy):
    """Claim to need no boundaries, yet scale the rows of the new classes, of which a piece may have none."""

    needs_boundaries = False

    @torch.no_grad()
    def end(self, task: Task) -> None:
        self.model.head.weight /= self.model.head.weight[task.n_old :].norm(dim=1).mean()


class SaysExemplarFree(Strategy):
    """Claim to be exemplar-free, yet depend on a replay set."""

    exemplar_free = True

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        if task.n_old:
            assert replay is not None, "the exemplars are missing"
        super().fit(task, replay, trainer)


class SaysFrozen(Strategy):
    """Claim that the backbone learns in the first task alone, and let it learn."""

    freezes_backbone = True


class SpoilsExemplars(Strategy):
    """Paint over the exemplars it is given."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
        if replay is not None:
            replay._images[:] = 0
        super().fit(task, replay, trainer)


class HidesInTheModule(Strategy):
    """Keep old features in a list of the module."""

    def end(self, task: Task) -> None:
        SHELF.append(self.features(task.train.gather(slice(0, 4)).float()).detach())


SHELF: list[Tensor] = []


class Speechless(Strategy):
    __doc__ = None


class KeepsFeatures(Frozen):
    """Learn class means anew from the features of all tasks, which are kept as a set for a stage on features."""

    def grow(self, task: Task) -> None:
        self.means = ClassMeans(self.model.num_features)
        self.means.grow(task.n_seen)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: Trainer) -> None:
        old = self.known if task.index else FeatureSet(features[:0], labels[:0])
        self.known = FeatureSet(torch.cat([old.features, features]), torch.cat([old.labels, labels]))
        self.means.learn(self.known.features, self.known.labels)

    def scores(self, features: Tensor) -> Tensor:
        return -torch.cdist(features.double(), self.means.means)


class SumsInPython(Frozen):
    """Carry the sums of each class's features as lists of Python numbers, beside the means that are state."""

    def grow(self, task: Task) -> None:
        old = self.means if task.index else torch.zeros(0, self.model.num_features)
        self.register_buffer("means", torch.cat([old, old.new_zeros(task.n_new, old.shape[1])]))

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: Trainer) -> None:
        self.sums = [*getattr(self, "sums", [])[: task.n_old]]
        self.sums += [(features[labels == k].sum(0).tolist(), int((labels == k).sum())) for k in task.new]
        self.means = torch.stack([torch.tensor(total) / count for total, count in self.sums])

    def scores(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.means)


class HiddenWidth(Strategy):
    """Register a buffer that is not saved and learn with it."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classification(self(x), y) * self.scale

    def end(self, task: Task) -> None:
        self.scale += 1


class LearnsInEval(Strategy):
    """Never let a module learn: the first task stays at chance."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [nn.Parameter(torch.zeros(1))]}]
