"""Strategies on a frozen backbone: each image is looked at once, and what is carried is learned from its features."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import UserError, check_number
from cil.learning.forgetting import BACKBONE, Forgotten, drop_rows
from cil.learning.strategy import GradientLoop, Strategy
from cil.nets.network import Network
from cil.ops.closed_form.buffers import RandomFeatures
from cil.ops.closed_form.means import ClassMeans
from cil.ops.closed_form.ridge import Ridge, Samples
from cil.ops.closed_form.statistics import Statistics
from cil.ops.freezing import freeze

CHUNK = 2048  # samples whose expanded features are held at once


class Frozen(Strategy, abc.ABC):
    """Learn the backbone in the first task, if it is not frozen already; then learn from its features alone.

    A subclass says in :meth:`observe` what it takes from the features of a task, and in ``scores`` how it predicts. The
    network's own head stays without classes; a linear head helps the backbone learn and is dropped.
    """

    exemplar_free: ClassVar[bool] = True
    freezes_backbone: ClassVar[bool] = True
    logits: ClassVar[bool] = False

    @property
    def needs_boundaries(self) -> bool:  # type: ignore[override]
        """To learn the backbone in the first task, that has to be told from the others."""
        return not self.model.frozen

    def grow(self, task: Task) -> None:
        """Make room for what is carried; nothing by default, the network's own head is not used."""

    def begin(self, task: Task) -> None:
        self.helper: nn.Module | None = None
        if task.index or self.model.frozen:
            freeze(self.model.backbone)
        else:
            self.helper = copy.deepcopy(self.model.head)
            self.helper.grow(task.n_new)

    def fit(self, task: Task, replay: ImageSet | None, trainer: GradientLoop) -> None:
        if self.helper is not None:
            trainer.descend(self, task.train)
            freeze(self.model.backbone)
            self.helper = None
        features, labels = trainer.extract(self, task.train)  # (N, D), (N,)
        if not torch.isfinite(features).all():
            raise UserError(f"a feature of task {task.index + 1} is NaN or infinite, so the network is broken")
        self.observe(task, features, labels, trainer)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.helper is not None, "only the first task learns by gradients"
        return self.classification(self.learning_scores(x), y)

    def learning_scores(self, x: Tensor) -> Tensor:
        return self(x) if self.helper is None else self.helper(self.features(x))

    def forget(self, what: Forgotten) -> list[str]:
        drop_rows(self, what.classes)
        return [BACKBONE] if what.first and not self.model.frozen else []

    @abc.abstractmethod
    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        """Learn from a task's features.

        Args:
            task: what is learned.
            features: float32 (N, D), in the order of the task's images; with several processes, of one's own share.
            labels: int64 (N,).
            trainer: for a stage of gradient descent on features.
        """


class Prototypical(Frozen):
    """Carry the mean feature of each class; a subclass says how they score."""

    def grow(self, task: Task) -> None:
        if task.index == 0:
            self.prototypes = ClassMeans(self.model.num_features)
        self.prototypes.grow(task.n_new)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        self.prototypes.learn(features, labels)

    def forget(self, what: Forgotten) -> list[str]:
        self.prototypes.unlearn(what.features[what.of_others], what.labels[what.of_others])
        return super().forget(what)


class CosinePrototypes(Prototypical):
    """Score by the cosine between an image's features and each class's row; the rows are the means."""

    def rows(self) -> Tensor:
        """What features are compared with, one row a class: float64 (K, D)."""
        return F.normalize(self.prototypes.means, dim=1)

    def scorer(self) -> Callable[[Tensor], Tensor]:
        rows = F.normalize(self.rows(), dim=1)
        return lambda features: F.linear(F.normalize(features.double(), dim=1), rows)

    def scores(self, features: Tensor) -> Tensor:
        return self.scorer()(features)


class Analytic(Frozen):
    """Expand the features by a fixed map, and solve a ridge regression of all one-hot labels so far.

    Args:
        model: backbone and head without classes.
        width: M, features after the expansion; null: the most that ``memory.budget`` allows.
        gamma: the ridge penalty.
        storage: of the M x M matrix that is carried: ``packed`` (one triangle) or ``full``.
        solver: ``accumulated`` (add up X^T X, solve once a task), ``recursive`` (update its inverse for each batch), or
            ``auto``, what is cheaper; the weights are the same.
        products: ``float64``; ``float32`` for products of samples, added up in float64; ``auto``: the second where
            rounding has changed the weights by less than 1e-5 (relative) so far, else the first.
    """

    sized_by: ClassVar[str | None] = "width"

    def __init__(
        self,
        model: Network,
        *,
        width: int | None = 8192,
        gamma: float = 0.1,
        storage: Literal["packed", "full"] = "packed",
        solver: Literal["auto", "accumulated", "recursive"] = "auto",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        super().__init__(model)
        if width is not None:
            check_number("strategy.width", width, least=1, whole=True)
        check_number("strategy.gamma", gamma, above=0)
        self.width, self.gamma = width, gamma
        self.storage, self.solver, self.products = storage, solver, products

    @abc.abstractmethod
    def make_expansion(self, width: int) -> Statistics:
        """The fixed map (N, D) -> (N, M), for :meth:`grow`."""

    def make_ridge(self, width: int, gamma: float) -> Ridge:
        """A regression with this strategy's options, for :meth:`grow`."""
        options: dict[str, Any] = {"storage": self.storage, "solver": self.solver, "products": self.products}
        return Ridge(width, gamma, **options)

    def grow(self, task: Task) -> None:
        if task.index == 0:
            assert self.width is not None, "the engine sets the width before the first task"
            self.expansion = self.make_expansion(self.width)
            self.ridge = self.make_ridge(self.width, self.gamma)
        self.ridge.grow(task.n_new)

    def expand(self, features: Tensor) -> Tensor:
        """What is regressed on: (N, D) -> (N, M), float64 where the products are, else float32."""
        return self.expansion(features.double() if self.products == "float64" else features)

    def regressed_on(self, features: Tensor) -> Tensor:
        """What ``ridge`` multiplies with its weights: (N, D) -> (N, M)."""
        return self.expand(features)

    def targets(self, labels: Tensor, task: Task) -> Tensor:
        """What is regressed: one-hot labels (N,) -> (N, K)."""
        return F.one_hot(labels, task.n_seen)

    def chunks(self, features: Tensor, labels: Tensor, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
        """The task's expanded features (n, M) and targets (n, K), some at a time."""
        for some, own in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            yield self.expand(some), self.targets(own, task)

    def samples(self, features: Tensor, labels: Tensor, task: Task) -> Samples:
        """The same, as often as the regression asks for them, in the precision that it asks for."""
        return lambda precision: ((x.to(precision), y) for x, y in self.chunks(features, labels, task))

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        self.ridge.learn(self.samples(features, labels, task), len(task.train))

    def forget(self, what: Forgotten) -> list[str]:
        """Take the given images out of X^T X and X^T Y and solve again; of other classes the columns alone go."""
        if len(what.labels):
            self.ridge.unlearn(self.regressed_on(what.features), what.labels)
        remains = super().forget(what)
        if what.without_images:
            remains.append("their share of the features' products, X^T X; give their images to take it out")
        return remains

    def scores(self, features: Tensor) -> Tensor:
        return self.ridge(self.expand(features))


class RandomAnalytic(Analytic):
    """Regress on ReLU features of a random layer.

    Args:
        model: backbone and head without classes.
        init: of the random layer: ``uniform`` (within 1 / sqrt(D), released code of the analytic methods) or ``normal``
            (standard normal, the papers).
        width: M, features after the random layer; null: the most that ``memory.budget`` allows.
        gamma: the ridge penalty.
        storage: of the M x M matrix: ``packed`` or ``full``.
        solver: ``auto``, ``accumulated`` or ``recursive``.
        products: ``auto``, ``float32`` or ``float64``.
    """

    def __init__(
        self,
        model: Network,
        *,
        init: Literal["uniform", "normal"] = "uniform",
        width: int | None = 8192,
        gamma: float = 0.1,
        storage: Literal["packed", "full"] = "packed",
        solver: Literal["auto", "accumulated", "recursive"] = "auto",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        super().__init__(model, width=width, gamma=gamma, storage=storage, solver=solver, products=products)
        self.init = init

    def make_expansion(self, width: int) -> Statistics:
        return RandomFeatures(self.model.num_features, width, self.init)

    def expand(self, features: Tensor) -> Tensor:
        return super().expand(features).relu()
