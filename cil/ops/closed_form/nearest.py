"""Features that are kept one by one, so many a class, and the classes of the nearest of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.ops.closed_form.statistics import Statistics
from cil.ops.growing import extended


class KeptFeatures(Statistics):
    """Up to P features of each class, of unit length, in the order in which they came.

    Args:
        num_features: D.
        per_class: P.
    """

    features: Tensor
    counts: Tensor

    def __init__(self, num_features: int, per_class: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(0, per_class, num_features))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def grow(self, n_new: int) -> None:
        """Append classes without features."""
        self.features = extended(self.features, n_new)
        self.counts = extended(self.counts, n_new)

    def keep(self, features: Tensor, label: int) -> None:
        """Add features (N, D) of one class, the first of them, while there is room."""
        start = int(self.counts[label])
        stop = min(start + len(features), self.features.shape[1])
        self.features[label, start:stop] = F.normalize(features[: stop - start], dim=1)
        self.counts[label] = stop

    def drop(self, classes: Sequence[int]) -> None:
        """Make these classes ones without features."""
        self.features[list(classes)] = 0
        self.counts[list(classes)] = 0

    def unlearn(self, features: Tensor, labels: Tensor) -> None:
        """Remove those of these features (N, D) that are kept of their classes (N,), up to a millionth of length."""
        for vector, label in zip(F.normalize(features, dim=1), labels.tolist(), strict=True):
            kept = self.features[label, : self.counts[label]]
            others = kept[(kept - vector).norm(dim=1) > 1e-6]
            self.features[label] = 0
            self.features[label, : len(others)] = others
            self.counts[label] = len(others)

    def votes(self, features: Tensor, k: int, temperature: float) -> Tensor:
        """Votes of the k nearest kept features for their classes: (B, D) -> (B, K)."""
        return self.voting(k, temperature)(features)

    def voting(self, k: int, temperature: float) -> Callable[[Tensor], Tensor]:
        """What counts the votes of the k nearest for their classes, for many batches in a row: (B, D) -> (B, K).

        Each votes with exp(cos / temperature), as Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
        Discrimination, CVPR 2018, weigh them, less the largest exponent, which changes no order; with fewer than k all
        vote.
        """
        per_class = self.features.shape[1]
        held = torch.arange(per_class, device=self.counts.device) < self.counts[:, None]  # (K, P)
        owners = torch.arange(len(self.counts), device=self.counts.device)[:, None].expand_as(held)[held]  # (M,)
        kept, n_classes = self.features[held].T, len(self.counts)  # (D, M)

        def count(features: Tensor) -> Tensor:
            near, at = (F.normalize(features, dim=1) @ kept).topk(min(k, len(owners)), dim=1)  # (B, k)
            weights = torch.exp((near - near[:, :1]) / temperature)
            return weights.new_zeros(weights.shape[0], n_classes).scatter_add_(1, owners[at], weights)

        return count
