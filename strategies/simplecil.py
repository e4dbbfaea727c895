"""SimpleCIL. Zhou, Cai, Ye, Zhan and Liu, Revisiting Class-Incremental Learning with Pre-Trained Models:
Generalizability and Adaptivity are All You Need, IJCV 2024.

Nothing learns: a class's row of a cosine classifier is the mean of its training images' features. The order of tasks
does not matter. A backbone that is not frozen learns in the first task and is frozen then.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cil.frozen import Prototypical


class SimpleCIL(Prototypical):
    """Score by the cosine between an image's features and each class's mean feature."""

    def scores(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features.double(), dim=1), F.normalize(self.prototypes.means, dim=1))
