"""Deep SLDA. Hayes and Kanan, Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis, CVPR
Workshops 2020.

Running class means and one covariance for all classes, updated image by image in the order of the data; linear
discriminant scores with the covariance shrunk towards the identity. The updates of a piece are computed together, with
the same result. The released code starts from a covariance estimated on a first batch; this starts from none. There the
first image of a class that comes later differs from a mean of zeros, which adds the feature itself to the covariance;
here it has no mean to differ from and adds nothing. A backbone that is not frozen learns in the first task and is
frozen then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import Prototypical
from cil.learning.strategy import GradientLoop
from cil.machine import distributed
from cil.nets.network import Network
from cil.ops.closed_form.statistics import Statistics, mirror_, pack, packed_size, unpack
from cil.ops.growing import extended


class Discriminant(Statistics):
    """The linear scores w x + b that follow from means and covariance: w (K, D), b (K,)."""

    head_buffers = ("weight", "bias")
    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0, num_features, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(0, dtype=torch.float64))

    def grow(self, n_new: int) -> None:
        """Append classes with scores of zero."""
        self.weight = extended(self.weight, n_new)
        self.bias = extended(self.bias, n_new)

    def drop(self, classes: Sequence[int]) -> None:
        """Make the scores of these classes 0."""
        self.weight[list(classes)] = 0
        self.bias[list(classes)] = 0


class SLDA(Prototypical):
    """Linear discriminant analysis with running means and one running covariance.

    Args:
        model: backbone and head without classes.
        shrinkage: epsilon, the share of the identity in the covariance that is inverted.
    """

    covariance: Tensor  # of all classes together, its lower triangle

    def __init__(self, model: Network, *, shrinkage: float = 1e-4) -> None:
        super().__init__(model)
        check_number("strategy.shrinkage", shrinkage, least=0, most=1)
        self.shrinkage = shrinkage

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            triangle = torch.zeros(packed_size(self.model.num_features), dtype=torch.float64)
            self.register_buffer("covariance", triangle)
            self.discriminant = Discriminant(self.model.num_features)
        self.discriminant.grow(task.n_new)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        every, own = distributed.gather(features).double(), distributed.gather(labels)
        seen = int(self.prototypes.counts.sum())
        deviations = before_update(every, own, self.prototypes.means, self.prototypes.counts)  # (N, D)
        covariance = streamed(mirror_(unpack(self.covariance)), seen, deviations)
        self.covariance = pack(covariance)
        super().observe(task, features, labels, trainer)
        self.discriminate(covariance)

    def discriminate(self, covariance: Tensor) -> None:
        """Find the linear scores of these means and this covariance (D, D)."""
        means = self.prototypes.means
        eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * eye
        weight = torch.linalg.solve(shrunk, means.T).T  # (K, D)
        self.discriminant.weight = weight
        self.discriminant.bias = -(weight * means).sum(1) / 2

    def forget(self, what: Forgotten) -> list[str]:
        n, out = int(self.prototypes.counts.sum()), what.features.double()
        remains = super().forget(what)
        # A class that went had no mean before its first image.
        deviations = before_update(out, what.labels, self.prototypes.means, self.prototypes.counts)
        covariance = (n * mirror_(unpack(self.covariance)) - deviations.T @ deviations) / max(n - len(out), 1)
        self.covariance = pack(covariance)
        self.discriminate(covariance)
        if what.without_images:
            return [*remains, "their share of the covariance of all classes; give their images to take it out"]
        return [*remains, f"weights of the running covariance that count images, a difference of about 1 in {n}"]

    def scores(self, features: Tensor) -> Tensor:
        return features.double() @ self.discriminant.weight.T + self.discriminant.bias


def before_update(features: Tensor, labels: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """Each vector minus the mean of its class as it was before that vector: (N, D), (N,), (K, D), (K,) -> (N, D).

    A class's first vector has no mean to differ from: its difference is zero.
    """
    out = torch.empty_like(features)
    for label in labels.unique():
        at = torch.nonzero(labels == label).flatten()
        own = features[at]  # (n, D), in order
        earlier = counts[label] * means[label] + torch.cat([torch.zeros_like(own[:1]), own.cumsum(0)[:-1]])
        number = counts[label] + torch.arange(len(at), device=at.device)  # vectors before each
        out[at] = torch.where(number[:, None] > 0, own - earlier / number.clamp_min(1)[:, None], 0.0)
    return out


def streamed(covariance: Tensor, seen: int, deviations: Tensor) -> Tensor:
    """The covariance after more vectors: Sigma <- (n Sigma + n / (n + 1) d d^T) / (n + 1), one by one, n from ``seen``.

    n Sigma_n is the sum of i / (i + 1) d_i d_i^T, so that the vectors of a piece can be added together.

    Args:
        covariance: Sigma (D, D).
        seen: n before.
        deviations: d (N, D), each from its class's mean before it.
    """
    n = seen + torch.arange(len(deviations), dtype=deviations.dtype, device=deviations.device)
    weighted = deviations * (n / (n + 1))[:, None]
    return (seen * covariance + weighted.T @ deviations) / (seen + len(deviations))
