"""SimpleCIL. Zhou, Cai, Ye, Zhan and Liu, Revisiting Class-Incremental Learning with Pre-Trained Models:
Generalizability and Adaptivity are All You Need, IJCV 2024.

Nothing learns: a class's row of a cosine classifier is the mean of its training images' features. The order of tasks
does not matter. A backbone that is not frozen learns in the first task and is frozen then.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cil.frozen import Frozen
from cil.ops.means import ClassMeans
from cil.scenario import Task
from cil.trainer import Trainer


class SimpleCIL(Frozen):
    """Score by the cosine between an image's features and each class's mean feature."""

    def grow(self, task: Task) -> None:
        if task.index == 0:
            self.prototypes = ClassMeans(self.model.num_features)
        self.prototypes.grow(task.n_new)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: Trainer) -> None:
        self.prototypes.learn(features, labels)

    def scores(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features.double(), dim=1), F.normalize(self.prototypes.means, dim=1))
