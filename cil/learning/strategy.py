"""The contract of a strategy. Its defaults are fine-tuning with replay.

What a strategy carries from task to task is its ``state_dict`` and the exemplars in the engine's memory, nothing else.
That one state is what is counted, checkpointed, restored and deployed. For each task the engine calls::

    strategy.grow(task)          structure: head rows, blocks, buffers. No data; also run on the meta device
    strategy.begin(task)         prepare: freeze, take a teacher. Here every parameter can learn until frozen
    strategy.fit(...)            learn; by default trainer.descend, which calls loss() for each batch
    strategy.end(task)           settle: align, merge, calibrate; drop what is not carried

then it selects exemplars with ``features``, calls ``selected(task)`` and evaluates with ``forward``. By then the names
and shapes in the ``state_dict`` must be those that ``grow`` made, because a restored strategy is rebuilt by ``grow``
alone. What changes while ``fit`` runs and must survive an interruption is a parameter or a buffer, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from cil.data.images import FeatureSet, ImageSet
from cil.data.scenario import Scenario, Task
from cil.errors import UserError
from cil.learning.batch import Batch
from cil.learning.forgetting import LEARNED_FROM, Forgotten, drop_rows
from cil.learning.place import Place
from cil.nets.network import Backbone, Network


class GradientLoop(Protocol):
    """What a strategy may ask of the trainer while it learns a task; :class:`cil.learning.trainer.Trainer` is one.

    Attributes:
        label_smoothing: the trainer's option.
    """

    label_smoothing: float

    @property
    def select_on(self) -> str:
        """Which epoch of a stage is kept: the ``last``, or the best on ``validation`` or ``test`` images."""
        ...

    def placed(self) -> Place:
        """Where the task is learned: device, precision, augmentation."""
        ...

    def share(self, part: float) -> int:
        """Epochs of a stage that takes this part of the trainer's own, at least one."""
        ...

    def descend(
        self,
        strategy: Strategy,
        data: ImageSet | FeatureSet,
        replay: ImageSet | None = None,
        *,
        epochs: int | None = None,
        drawn: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Minimise the strategy's ``loss`` over new data and exemplars: one stage, maybe with options of its own."""
        ...

    def gradients_of(
        self,
        strategy: Strategy,
        data: ImageSet,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        of: Callable[[Tensor], Tensor] | None = None,
        images: int | None = None,
        augment: bool = False,
    ) -> dict[str, Tensor]:
        """The mean of what ``of`` makes of the gradients of some images, by parameter; nothing learns."""
        ...

    def draw(self, n: int, size: int) -> Tensor:
        """``size`` of n positions, or all of fewer, drawn within an epoch: int64, the same in every process."""
        ...

    def extract(self, strategy: Strategy, data: ImageSet) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,) of images as they are tested, of one's own share of them."""
        ...


class Strategy(nn.Module):
    """Learn the new classes and the exemplars together, with cross-entropy over all classes seen.

    A subclass takes keyword-only hyper-parameters after the model, documents them under ``Args:`` and stores each under
    its own name; nothing else happens in ``__init__``.

    Attributes:
        exemplar_free: the method keeps no exemplars; a run that gives it any is refused.
        needs_boundaries: the method needs to know where tasks begin and end; False: it also learns a stream without
            boundaries, in which it is called around pieces whose ends mean nothing and that may bring no new class.
        freezes_backbone: the backbone learns in the first task alone, so that an export declares that task's classes.
        needs_all_data: the method trains on all data of the past, as upper bounds do; it needs
            ``memory.exemplars: all``.
        needs: what the backbone must offer, a runtime Protocol.
        logits: the scores are those of a softmax that was learned, so that it makes probabilities of them.
        sized_by: the hyper-parameter that a budget decides when it is null, such as the width of a layer; None: none.
        evaluator: the evaluator whose accuracy is the method's own: ``linear`` or ``nearest_mean``.
        label_smoothing: set by the trainer from its own option; used by :meth:`classification`.

    Args:
        model: backbone and head without classes.
    """

    exemplar_free: ClassVar[bool] = False
    needs_boundaries: ClassVar[bool] = True
    freezes_backbone: ClassVar[bool] = False
    needs_all_data: ClassVar[bool] = False
    needs: ClassVar[type] = Backbone
    logits: ClassVar[bool] = True
    sized_by: ClassVar[str | None] = None
    evaluator: ClassVar[str] = "linear"
    label_smoothing: float = 0.0

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    @property
    def label(self) -> str:
        """The method's name in tables; says which variant is scored where a method has several networks."""
        return type(self).__name__

    def check(self, scenario: Scenario) -> None:
        """Refuse what the method cannot learn, before any training; by default what its tags rule out.

        Args:
            scenario: the tasks to come.

        Raises:
            UserError: names what does not fit and what would.
        """
        name = type(self).__name__
        if scenario.pieces and self.needs_boundaries:
            raise UserError(
                f"strategy: {name} needs to know where tasks begin, and '{scenario.name}' is a stream without "
                "boundaries; legal are strategies with needs_boundaries = False, such as Replay or, on a frozen "
                "backbone, SLDA, or a scenario with boundaries, such as ClassIncremental"
            )
        if not isinstance(self.model.backbone, self.needs):
            frozen = ", which a frozen one is not" * self.model.frozen
            raise UserError(f"model.backbone: {name} needs a {self.needs.__name__}{frozen}")

    def grow(self, task: Task) -> None:
        """Make room for the task's new classes. Structure only: the task comes without data, maybe on ``meta``."""
        self.model.head.grow(task.n_new)

    def begin(self, task: Task) -> None:
        """Prepare to learn. All parameters require gradients when this is called; freeze here what must not change."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        """Learn the task.

        Args:
            task: new images in ``task.train``.
            replay: the exemplars kept so far; None when there are none.
            trainer: owns the gradient loop; call ``descend`` once for each stage of training.
        """
        trainer.descend(self, task.train, replay)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Loss of one batch: augmented images (B, C, H, W), labels (B,) -> ()."""
        return self.classification(self(x), y)

    def batch_loss(self, batch: Batch) -> Tensor:
        """The same for a method that asks which images are exemplars, or for what is stored beside them: -> ()."""
        return self.loss(batch.x, batch.y)

    def gradients(self, trainer: GradientLoop) -> None:
        """Change the gradients of a step: called after ``backward``, before they are clipped and the optimiser steps.

        They are those of the whole batch, averaged over all processes, without a scale; change ``parameter.grad``,
        which is None where a parameter took no part, alike in every process. Nothing is recorded for autograd.

        Args:
            trainer: what else may be asked for, such as ``gradients_of`` some exemplars.
        """

    def stepped(self) -> None:
        """Follow a step: called after the optimiser has changed the parameters. Nothing is recorded for autograd."""

    def learning_scores(self, x: Tensor) -> Tensor:
        """Scores while :meth:`fit` runs, for choosing the best epoch on held-out images: (B, C, H, W) -> (B, K).

        By default what :meth:`forward` gives; a method that learns through another head gives that head's.
        """
        return self(x)

    def classification(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy with the trainer's label smoothing: (B, K), (B,) -> ()."""
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters to learn, as an optimiser takes them; a group may override ``lr`` or ``weight_decay``."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def end(self, task: Task) -> None:
        """Settle after learning; drop what is not carried."""

    def exemplar_columns(self, n_seen: int) -> dict[str, int]:
        """What is stored beside each exemplar's image, once ``n_seen`` classes were seen: {name: float32 numbers}.

        A width may grow with the classes; numbers that an older exemplar lacks are NaN, and are counted.
        """
        return {}

    def describe(self, x: Tensor) -> dict[str, Tensor]:
        """Those columns of images that have become exemplars: (B, C, H, W), in eval mode -> {name: (B, W)}.

        Called once for each image, when it is taken up, after :meth:`end`.
        """
        return {}

    def selected(self, task: Task) -> None:
        """Follow the selection of exemplars, before anything is evaluated or counted: drop what that alone needed.

        A method whose exemplars are chosen by the features of more than it carries keeps it until here.
        """

    def forget(self, what: Forgotten) -> list[str]:
        """Drop what is carried of classes or images that a model is asked to forget; ids of other classes stay.

        The default drops the rows of the classes. Exemplars are the engine's, which removes them.

        Args:
            what: classes, and images with their features.

        Returns:
            What remains of them, in words that go on "what remains: ..."; nothing where the state is that of a model
            that never saw them.
        """
        drop_rows(self, what.classes)
        return [LEARNED_FROM]

    def features(self, x: Tensor) -> Tensor:
        """What herding and nearest means compare: (B, C, H, W) -> (B, D)."""
        return self.model.features(x)

    def scores(self, features: Tensor) -> Tensor:
        """Scores from features, where the two steps of prediction can be told apart: (B, D) -> (B, K)."""
        return self.model.head(features)

    def scorer(self) -> Callable[[Tensor], Tensor]:
        """:meth:`scores` for many batches in a row: what they share may be computed here, once."""
        return self.scores

    def forward(self, x: Tensor) -> Tensor:
        """One score for each class seen: (B, C, H, W) -> (B, K)."""
        return self.scores(self.features(x))
