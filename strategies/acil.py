"""ACIL. Zhuang, Weng, Wei, Xie, Toh and Lin, ACIL: Analytic Class-Incremental Learning with Absolute Memorization and
Privacy Protection, NeurIPS 2022.

Learn the backbone in the first task, freeze it, expand its features by a random layer with ReLU, and regress the
one-hot labels. Later tasks regress their new classes alone: labels of classes met before are not regressed again, which
is exact where no class returns; GACIL is for streams in which classes do.

Where paper and released code differ: the paper draws the random layer from a normal distribution, the code (and every
published gamma) uses the uniform one of ``torch.nn.Linear``; ``init`` offers both, the default is the code's because
``gamma: 0.1`` was chosen for it. The matrix is carried as X^T X or its inverse, whichever is cheaper to go on with, and
by half, since it is symmetric: half the published bytes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cil.frozen import Analytic
from cil.nets.network import Network
from cil.ops.buffers import RandomFeatures
from cil.ops.statistics import Statistics
from cil.scenario import Task


class ACIL(Analytic):
    """Regress the new classes' one-hot labels on random ReLU features of a frozen backbone.

    Args:
        model: backbone and head without classes.
        init: of the random layer: ``uniform`` (the released code) or ``normal`` (the paper).
        width: M, features after the random layer; null: the most that ``memory.budget`` allows.
        gamma: the ridge penalty.
        storage: of the M x M matrix: ``packed`` or ``full``.
        solver: ``auto``, ``accumulated`` or ``recursive``.
        products: ``auto``, ``float32`` or ``float64``.
    """

    def __init__(
        self,
        model: Network,
        *,
        init: Literal["uniform", "normal"] = "uniform",
        width: int | None = 8192,
        gamma: float = 0.1,
        storage: Literal["packed", "full"] = "packed",
        solver: Literal["auto", "accumulated", "recursive"] = "auto",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        super().__init__(model, width=width, gamma=gamma, storage=storage, solver=solver, products=products)
        self.init = init

    def make_expansion(self, width: int) -> Statistics:
        return RandomFeatures(self.model.num_features, width, self.init)

    def expand(self, features: Tensor) -> Tensor:
        return super().expand(features).relu()

    def targets(self, labels: Tensor, task: Task) -> Tensor:
        every = super().targets(labels, task)  # (N, K)
        every[:, : task.n_old] = 0
        return every
