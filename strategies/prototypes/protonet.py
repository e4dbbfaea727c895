"""Prototypical networks as few-shot class-incremental learning uses them. Snell, Swersky and Zemel, Prototypical
Networks for Few-shot Learning, NeurIPS 2017.

The backbone learns the first task with a classifier, the cosine head of the published baselines, and not in episodes;
then a class is the mean of its images' features, and nothing learns. Scores are cosines, as the few-shot literature
compares them; ``distance: euclidean`` is the squared distance of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from cil.learning.frozen import CosinePrototypes
from cil.nets.network import Network


class ProtoNet(CosinePrototypes):
    """Predict the class whose mean feature is most similar.

    Args:
        model: backbone and head without classes.
        distance: ``cosine`` or ``euclidean`` (squared).
    """

    def __init__(self, model: Network, *, distance: Literal["cosine", "euclidean"] = "cosine") -> None:
        super().__init__(model)
        self.distance = distance

    def scorer(self) -> Callable[[Tensor], Tensor]:
        if self.distance == "cosine":
            return super().scorer()
        return lambda features: -torch.cdist(features.double(), self.prototypes.means).square()
