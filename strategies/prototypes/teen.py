"""TEEN. Wang, Zhou, Zhang, Zhan and Ye, Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration,
NeurIPS 2023.

Images of new classes are mostly mistaken for base classes that resemble them, yet which base classes a new one
resembles is known even from few images. So the prototype of a new class is moved towards those of similar base
classes. Nothing learns after the first task; base prototypes stay, and new ones do not depend on one another.

Where text and program differ: the program brings the weighted sum of base prototypes to unit length before it is mixed
in (``fusion: released``); the text does not (``fusion: paper``, the default). What is carried are the plain means;
calibrated prototypes follow from them, so the base classes are those of the first task.

On one machine and device all prototypes keep every bit from session to session; the scores of a class are the same up
to rounding, since a product with more classes may be added up in another order.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number, unknown
from cil.learning.frozen import CosinePrototypes
from cil.nets.network import Network
from cil.ops.closed_form.calibration import FUSIONS, calibrated


class TEEN(CosinePrototypes):
    """Predict the class with the most similar prototype, those of new classes calibrated by the base classes.

    Args:
        model: backbone and head without classes.
        alpha: how far new prototypes are moved, in [0, 1]; 0 is ProtoNet.
        tau: inverse temperature of the softmax over base classes.
        fusion: ``paper`` or ``released``: whether the weighted sum of base prototypes is of unit length.
    """

    def __init__(
        self,
        model: Network,
        *,
        alpha: float = 0.5,
        tau: float = 16.0,
        fusion: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__(model)
        check_number("strategy.alpha", alpha, least=0, most=1)
        check_number("strategy.tau", tau, least=0)
        if fusion not in FUSIONS:
            raise unknown("strategy.fusion", fusion, FUSIONS)
        self.alpha, self.tau, self.fusion = alpha, tau, fusion

    @property
    def needs_boundaries(self) -> bool:  # type: ignore[override]
        """To know the base classes."""
        return True

    def grow(self, task: Task) -> None:
        if task.index == 0:
            self.n_base = task.n_new
        super().grow(task)

    def rows(self) -> Tensor:
        base, new = self.prototypes.means[: self.n_base], self.prototypes.means[self.n_base :]
        known = self.prototypes.counts[: self.n_base] > 0  # a base class may have been forgotten
        moved = calibrated(new, base, self.alpha, self.tau, self.fusion, known)
        return torch.cat([F.normalize(base, dim=1), moved])
