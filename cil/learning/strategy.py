"""The contract of a strategy. Its defaults are fine-tuning with replay.

What a strategy carries from task to task is its ``state_dict`` and the exemplars in the engine's memory, nothing else.
That one state is what is counted, checkpointed, restored and deployed. For each task the engine calls::

    strategy.grow(task)          structure: head rows, blocks, buffers. No data; also run on the meta device
    strategy.begin(task)         prepare: freeze, take a teacher. Here every parameter can learn until frozen
    strategy.fit(...)            learn; by default trainer.descend, which calls loss() for each batch
    strategy.end(task)           settle: align, merge, calibrate; drop what is not carried

then it selects exemplars with ``features`` and evaluates with ``forward``. After ``end`` the names and shapes in the
``state_dict`` must be those that ``grow`` made, because a restored strategy is rebuilt by ``grow`` alone. What changes
while ``fit`` runs and must survive an interruption is a parameter or a buffer, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from cil.nets.network import Backbone, Network

if TYPE_CHECKING:
    from cil.data.images import ImageSet
    from cil.data.scenario import Task
    from cil.learning.trainer import Trainer


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

    def grow(self, task: Task) -> None:
        """Make room for the task's new classes. Structure only: the task comes without data, maybe on ``meta``."""
        self.model.head.grow(task.n_new)

    def begin(self, task: Task) -> None:
        """Prepare to learn. All parameters require gradients when this is called; freeze here what must not change."""

    def fit(self, task: Task, replay: ImageSet | None, trainer: Trainer) -> None:
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
