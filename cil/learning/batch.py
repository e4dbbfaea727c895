"""What a step of the gradient loop sees: images, labels, and for those who ask where each image comes from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cil.machine import distributed


class Batch(NamedTuple):
    """This process's share of a batch of B images.

    Attributes:
        x: augmented images (B, C, H, W), or features (B, D).
        y: labels, int64 (B,).
        positions: which of the stage's images each one is, int64 (B,): the new images first, then the exemplars.
        source: where it comes from, int64 (B,): 0 for a new image, k >= 1 for an exemplar of the k-th draw.
        columns: what is stored beside the exemplars, by name, float32 (B, W); NaN for new images, and for what was not
            known when an exemplar was stored.
        whole: how many times this share the whole batch of all processes is; 1 in one process, 0 for a process that has
            no share and looks at a stand-in.
    """

    x: Tensor
    y: Tensor
    positions: Tensor
    source: Tensor
    columns: dict[str, Tensor]
    whole: float = 1.0

    @property
    def old(self) -> Tensor:
        """Which images are exemplars, bool (B,)."""
        return self.source > 0

    def mean(self, values: Tensor, where: Tensor) -> Tensor:
        """The mean of some images' values over the whole batch of all processes; 0 if there are none.

        Means of parts of a batch cannot be averaged over processes, whose parts differ in length; this one can.

        Args:
            values: one for each image, (B,).
            where: which count, bool (B,).

        Returns:
            A number, (), for the loss of this process.
        """
        count = distributed.sum_(where.sum().to(values.dtype)).clamp(min=1)
        return torch.where(where, values, 0).sum() * self.whole / count
