"""Class means, learned in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cil.errors import UserError
from cil.machine import distributed
from cil.ops.closed_form.statistics import Statistics
from cil.ops.growing import extended


class ClassMeans(Statistics):
    """The mean of each class's vectors and how many there were; float64, whatever the pieces they came in.

    Args:
        num_features: D.
    """

    head_buffers = ("means", "counts")
    means: Tensor
    counts: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(0, num_features, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def grow(self, n_new: int) -> None:
        """Append classes without images."""
        self.means = extended(self.means, n_new)
        self.counts = extended(self.counts, n_new)

    def drop(self, classes: Sequence[int]) -> None:
        """Make these classes ones without vectors."""
        self.means[list(classes)] = 0
        self.counts[list(classes)] = 0

    def unlearn(self, features: Tensor, labels: Tensor) -> None:
        """Take out vectors (N, D) of classes (N,) that were taken in: the rest is the mean of the others.

        Raises:
            UserError: there are more of a class than were taken in.
        """
        counts = torch.bincount(labels, minlength=len(self.counts))
        if (counts > self.counts).any():
            label = int((counts > self.counts).nonzero()[0])
            raise UserError(
                f"{int(counts[label])} images are to be forgotten of a class that learned {int(self.counts[label])}"
            )
        sums = self.means * self.counts[:, None]
        sums.index_add_(0, labels, -features.double())
        self.counts = self.counts - counts
        touched = counts > 0
        rest = sums / self.counts.clamp_min(1)[:, None] * (self.counts > 0)[:, None]
        self.means = torch.where(touched[:, None], rest, self.means)

    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Take in more vectors (N, D) of classes (N,); with several processes, each one's own share."""
        counts = distributed.sum_(torch.bincount(labels, minlength=len(self.counts)))
        sums = torch.zeros_like(self.means).index_add_(0, labels, features.double())
        # Each class's mean moves towards its new images by their share of all its images.
        moved = distributed.sum_(sums) - counts[:, None] * self.means
        self.counts = self.counts + counts
        self.means = self.means + moved / self.counts.clamp_min(1)[:, None]
