"""What a model is asked to forget, and the rows of classes that go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

LEARNED_FROM = "the network's weights, which were learned from these images, too"
BACKBONE = "the backbone's weights, which were learned from the images of the first task"


@runtime_checkable
class HasRows(Protocol):
    """A part of a strategy that holds numbers of each class."""

    def drop(self, classes: Sequence[int]) -> None:
        """Make the numbers of these classes 0, as before they were learned; others keep every bit."""
        ...


@dataclass(frozen=True)
class Forgotten:
    """Classes that go as a whole, and images whose part in what was learned goes.

    Attributes:
        classes: ids.
        first: whether a class or an image is of the first task, in which some methods learn their backbone.
        features: of the images as the method sees them when it is asked, (N, D); without images (0, D).
        labels: of the images, (N,).
    """

    classes: tuple[int, ...]
    first: bool
    features: Tensor
    labels: Tensor

    @property
    def without_images(self) -> tuple[int, ...]:
        """Classes of which no image was given."""
        return tuple(sorted(set(self.classes) - set(self.labels.tolist())))

    @property
    def of_others(self) -> Tensor:
        """Which images are of classes that stay: bool (N,)."""
        return ~torch.isin(self.labels, torch.tensor(self.classes, dtype=torch.int64, device=self.labels.device))


@torch.no_grad()
def drop_rows(module: nn.Module, classes: Sequence[int]) -> None:
    """Make every number that belongs to one of these classes 0, in all parts of a module that hold such numbers."""
    for part in module.modules():
        if isinstance(part, HasRows):
            part.drop(classes)
