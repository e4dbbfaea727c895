"""FeTrIL. Petit, Popescu, Schindler, Picard and Delezoide, FeTrIL: Feature Translation for Exemplar-Free
Class-Incremental Learning, WACV 2023.

The backbone is frozen after the first task. For each old class, features of the new class whose mean is most similar
(cosine) are moved by the difference of the two means; a linear classifier learns the real features of the new classes
and these pseudo-features of the old ones. Class means are all that is carried beside the classifier. Where classes
return, which the paper does not treat, all classes of the task count as new here, and those absent from it as old.

``classifier: svc`` is the paper's one-against-rest linear support vector machine (scikit-learn's LinearSVC). It sees
features of unit length, as in both released programs. ``classifier: sgd`` learns a linear head with the options of the
trainer (the published ones: 50 epochs, rate 0.05, cosine), from fresh weights in each task.

Where programs differ: the authors' takes the nearest mean by Euclidean distance (``similarity: euclidean``); that of
PyCIL lets the head that learned with the backbone go on (``restart: false``). What remains: the authors' program leaves
the first 512 features of a task at their own length and solves the primal problem to a tolerance of its own; PyCIL
trains the first task with AutoAugment and Cutout, which the strategy does not choose here.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.images import FeatureSet
from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import Prototypical
from cil.learning.strategy import GradientLoop
from cil.machine import distributed
from cil.nets.heads import LinearHead
from cil.nets.network import Network


class FeTrIL(Prototypical):
    """Learn a linear classifier on new features and, for old classes, on features moved from the most similar new one.

    Args:
        model: backbone and head without classes.
        classifier: ``svc`` (a linear support vector machine) or ``sgd`` (a linear head with the trainer's options).
        penalty: C of the support vector machine.
        unit_length: whether the support vector machine sees features of unit length; a linear head never does.
        similarity: which new class lends its features: that of the largest ``cosine`` between means, or of the smallest
            ``euclidean`` distance.
        restart: whether a linear head starts anew in each task; false: the one that learned with the backbone goes on.
    """

    linear: LinearHead

    def __init__(
        self,
        model: Network,
        *,
        classifier: Literal["svc", "sgd"] = "svc",
        penalty: float = 1.0,
        unit_length: bool = True,
        similarity: Literal["cosine", "euclidean"] = "cosine",
        restart: bool = True,
    ) -> None:
        super().__init__(model)
        check_number("strategy.penalty", penalty, above=0)
        self.classifier, self.penalty, self.unit_length = classifier, penalty, unit_length
        self.similarity, self.restart = similarity, restart

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            self.linear = LinearHead(self.model.num_features)
        self.linear.grow(task.n_new)

    def begin(self, task: Task) -> None:
        super().begin(task)
        if self.helper is not None and self.classifier == "sgd" and not self.restart:
            self.helper = self.linear  # the backbone learns with the head that goes on

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() == 2:  # features, after the first task's images
            return self.classification(self.linear(x), y)
        return super().loss(x, y)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        super().observe(task, features, labels, trainer)
        every, own = distributed.gather(features), distributed.gather(labels)
        x, y = with_absent_classes(every, own, self.prototypes.means.to(every), self.similarity)
        if task.n_seen == 1:
            return  # one class alone: any score is right
        if self.classifier == "svc":
            self.fit_svc(self.seen(x), y)
        elif self.restart or task.index or self.model.frozen:  # else it has learned with the backbone
            if self.restart:
                self.linear.reset()
            trainer.descend(self, FeatureSet(x, y))

    def fit_svc(self, x: Tensor, y: Tensor) -> None:
        """The support vector machine of features (N, D) and labels (N,), as the linear head's weights."""
        from sklearn.svm import LinearSVC  # half a second to import

        machine = LinearSVC(C=self.penalty, dual="auto", random_state=0).fit(x.cpu().numpy(), y.cpu().numpy())
        weight, bias = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)  # (K, D), (K,)
        if len(weight) == 1:  # two classes share one hyperplane
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            assert self.linear.bias is not None
            self.linear.bias.copy_(bias)

    def forget(self, what: Forgotten) -> list[str]:
        return [*super().forget(what), "the linear classifier of the other classes, which learned to tell them apart"]

    def seen(self, features: Tensor) -> Tensor:
        """What the classifier gets of features: (N, D) -> (N, D)."""
        return F.normalize(features, dim=1) if self.classifier == "svc" and self.unit_length else features

    def scores(self, features: Tensor) -> Tensor:
        return self.linear(self.seen(features))


def with_absent_classes(
    features: Tensor, labels: Tensor, means: Tensor, similarity: Literal["cosine", "euclidean"] = "cosine"
) -> tuple[Tensor, Tensor]:
    """A task's features, followed by pseudo-features of each class that is absent from it.

    An absent class gets all features of the class with the most similar mean, moved so that their mean is its own.

    Args:
        features: of the task's images (N, D).
        labels: (N,).
        means: of all classes (K, D).
        similarity: of means: ``cosine`` or ``euclidean``, the smallest distance.

    Returns:
        Features (N', D) and labels (N',).
    """
    xs, ys = [features], [labels]
    present = labels.unique()
    here = torch.stack([features[labels == label].double().mean(0) for label in present]).to(means)  # (K', D)
    if similarity == "cosine":
        similar = F.normalize(means, dim=1) @ F.normalize(here, dim=1).T  # (K, K')
    else:
        similar = -torch.cdist(means, here)  # (K, K')
    for absent in sorted(set(range(len(means))) - set(present.tolist())):
        nearest = int(similar[absent].argmax())
        source = features[labels == present[nearest]]
        xs.append(source - here[nearest] + means[absent])
        ys.append(torch.full((len(source),), absent, dtype=labels.dtype, device=labels.device))
    return torch.cat(xs), torch.cat(ys)
