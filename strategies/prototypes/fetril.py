"""FeTrIL. Petit, Popescu, Schindler, Picard and Delezoide, FeTrIL: Feature Translation for Exemplar-Free
Class-Incremental Learning, WACV 2023.

The backbone is frozen after the first task. For each old class, features of the new class whose mean is most similar
(cosine) are moved by the difference of the two means; a linear classifier learns the real features of the new classes
and these pseudo-features of the old ones. Class means are all that is carried beside the classifier. Where classes
return, which the paper does not treat, all classes of the task count as new here, and those absent from it as old.

``classifier: svc`` is the paper's one-against-rest linear support vector machine (scikit-learn's LinearSVC);
``classifier: sgd`` learns a linear head with the trainer's options (the published ones: 50 epochs, rate 0.05, cosine),
from fresh weights in each task.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.images import FeatureSet
from cil.data.scenario import Task
from cil.errors import check_number
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
    """

    linear: LinearHead

    def __init__(self, model: Network, *, classifier: Literal["svc", "sgd"] = "svc", penalty: float = 1.0) -> None:
        super().__init__(model)
        check_number("strategy.penalty", penalty, above=0)
        self.classifier, self.penalty = classifier, penalty

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            self.linear = LinearHead(self.model.num_features)
        self.linear.grow(task.n_new)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() == 2:  # features, after the first task's images
            return self.classification(self.linear(x), y)
        return super().loss(x, y)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        super().observe(task, features, labels, trainer)
        every, own = distributed.gather(features), distributed.gather(labels)
        x, y = with_absent_classes(every, own, self.prototypes.means.float())
        if task.n_seen == 1:
            return  # one class alone: any score is right
        if self.classifier == "svc":
            self.fit_svc(x, y)
        else:
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

    def scores(self, features: Tensor) -> Tensor:
        return self.linear(features)


def with_absent_classes(features: Tensor, labels: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """A task's features, followed by pseudo-features of each class that is absent from it.

    An absent class gets all features of the class with the most similar mean, moved so that their mean is its own.

    Args:
        features: of the task's images (N, D).
        labels: (N,).
        means: of all classes (K, D).

    Returns:
        Features (N', D) and labels (N',).
    """
    xs, ys = [features], [labels]
    present = labels.unique()
    here = torch.stack([features[labels == label].double().mean(0) for label in present]).to(means)  # (K', D)
    similar = F.normalize(means, dim=1) @ F.normalize(here, dim=1).T  # (K, K')
    for absent in sorted(set(range(len(means))) - set(present.tolist())):
        nearest = int(similar[absent].argmax())
        source = features[labels == present[nearest]]
        xs.append(source - here[nearest] + means[absent])
        ys.append(torch.full((len(source),), absent, dtype=labels.dtype, device=labels.device))
    return torch.cat(xs), torch.cat(ys)
