"""k nearest neighbours on the features of a frozen backbone. Cover and Hart, Nearest Neighbor Pattern Classification,
IEEE Transactions on Information Theory 1967.

Cosine similarity, and votes weighted by exp(cos / temperature) as in Wu et al., CVPR 2018. So that no class outvotes
another by its number of images, the same number of features is kept of each: those that herding picks first (Rebuffi et
al., iCaRL, CVPR 2017). They are real features, which whoever shares the state should know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import Frozen
from cil.learning.strategy import GradientLoop
from cil.machine import distributed
from cil.nets.network import Network
from cil.ops.closed_form.nearest import KeptFeatures
from cil.ops.herding import herding


class KNN(Frozen):
    """Keep features of each class and let the nearest ones vote.

    Args:
        model: backbone and head without classes.
        k: neighbours that vote.
        per_class: features kept of each class; null: the most that ``memory.budget`` allows.
        temperature: of the weights of the votes.
    """

    sized_by: ClassVar[str | None] = "per_class"

    def __init__(self, model: Network, *, k: int = 5, per_class: int | None = 5, temperature: float = 0.07) -> None:
        super().__init__(model)
        check_number("strategy.k", k, least=1, whole=True)
        if per_class is not None:
            check_number("strategy.per_class", per_class, least=1, whole=True)
        check_number("strategy.temperature", temperature, above=0)
        self.k, self.per_class, self.temperature = k, per_class, temperature

    def grow(self, task: Task) -> None:
        if task.index == 0:
            assert self.per_class is not None, "the engine sets it before the first task"
            self.kept = KeptFeatures(self.model.num_features, self.per_class)
        self.kept.grow(task.n_new)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        every, owners = distributed.gather(features), distributed.gather(labels)
        for label in task.present:
            own = every[owners == label]
            self.kept.keep(own[herding(own, self.kept.features.shape[1])], label)

    def forget(self, what: Forgotten) -> list[str]:
        self.kept.unlearn(what.features, what.labels)
        remains = super().forget(what)
        if what.of_others.any():
            remains.append("the choice of the other features of their classes, which was made with them")
        return remains

    def scorer(self) -> Callable[[Tensor], Tensor]:
        return self.kept.voting(self.k, self.temperature)

    def scores(self, features: Tensor) -> Tensor:
        return self.scorer()(features)
