"""Class covariances, learned in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cil.machine import distributed
from cil.ops.closed_form.means import ClassMeans
from cil.ops.closed_form.statistics import Statistics, packed_size
from cil.ops.growing import extended


class ClassCovariances(Statistics):
    """The covariance of each class's vectors, with n - 1 in the denominator, as one triangle; float32.

    Args:
        num_features: D.
    """

    triangles: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("triangles", torch.zeros(0, packed_size(num_features)))

    def grow(self, n_new: int) -> None:
        """Append classes without vectors; their covariance is zero, and that of a single vector stays zero."""
        self.triangles = extended(self.triangles, n_new)

    def drop(self, classes: Sequence[int]) -> None:
        """Make these classes ones without vectors."""
        self.triangles[list(classes)] = 0

    def unlearn(self, features: Tensor, labels: Tensor, before: ClassMeans) -> None:
        """Take out vectors (N, D) of classes (N,) that were taken in: the inverse of :meth:`learn`.

        Args:
            features: (N, D)
            labels: (N,)
            before: means and counts with these vectors.
        """
        x, d = features.double(), self.num_features
        rows, columns = torch.tril_indices(d, d, device=x.device)
        for label in labels.unique().tolist():
            out = x[labels == label]
            n, m = int(before.counts[label]), len(out)
            scatter = max(n - 1, 0) * self.triangles[label].double()
            if n > m:
                own = out.mean(0)
                rest = (n * before.means[label] - m * own) / (n - m)
                gap, deviations = rest - own, out - own
                scatter -= (deviations.T @ deviations)[rows, columns]
                scatter -= ((n - m) * m / n) * torch.outer(gap, gap)[rows, columns]
            self.triangles[label] = (scatter / max(n - m - 1, 1) * (n - m > 1)).to(self.triangles.dtype)

    def matrices(self) -> Tensor:
        """float64 (K, D, D)"""
        rows, columns = torch.tril_indices(self.num_features, self.num_features, device=self.triangles.device)
        out = self.triangles.new_zeros(len(self.triangles), self.num_features, self.num_features, dtype=torch.float64)
        out[:, rows, columns] = self.triangles.double()
        out[:, columns, rows] = self.triangles.double()
        return out

    def learn(self, features: Tensor, labels: Tensor, before: ClassMeans) -> None:
        """Take in more vectors (N, D) of classes (N,); with several processes, each one's own share.

        Two sets of n and m vectors, of means a and b, have the scatter of both plus n m / (n + m) (a - b) (a - b)^T
        (Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).

        Args:
            features: (N, D)
            labels: (N,)
            before: means and counts without these vectors.
        """
        x, d = features.double(), self.num_features
        counts = distributed.sum_(torch.bincount(labels, minlength=len(before.counts)))  # (K,)
        sums = distributed.sum_(torch.zeros_like(before.means).index_add_(0, labels, x))
        own = sums / counts.clamp_min(1)[:, None]  # (K, D), of these vectors
        rows, columns = torch.tril_indices(d, d, device=x.device)
        for label in torch.nonzero(counts).flatten().tolist():
            deviations = x[labels == label] - own[label]
            n, m = int(before.counts[label]), int(counts[label])
            scatter = distributed.sum_((deviations.T @ deviations)[rows, columns])
            gap = before.means[label] - own[label]
            scatter += (n * m / (n + m)) * torch.outer(gap, gap)[rows, columns]
            scatter += max(n - 1, 0) * self.triangles[label].double()
            self.triangles[label] = (scatter / max(n + m - 1, 1)).to(self.triangles.dtype)
