"""G-ACIL, also GACL. Zhuang, Chen, Fang, He, Tong, Wei and others, GACL: Exemplar-Free Generalized Analytic Continual
Learning, NeurIPS 2024.

For streams in which classes return and nobody says when a task ends. The update has two parts (eq. 8-12), one from the
labels of classes not met before and the exposed-class label gain from those met before; their sum is the ridge
regression of all data so far, in whatever pieces they came. Each image counts once (the released script repeats each
batch three times, which is the same as a third of gamma).

The paper's algorithm starts the recursion at gamma I where its equations and code have I / gamma; so does this.
The random layer is uniform as in the code, see ``init``; the matrix is carried by half.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cil.frozen import Analytic
from cil.nets.network import Network
from cil.ops.buffers import RandomFeatures
from cil.ops.statistics import Statistics
from cil.scenario import Task


class GACIL(Analytic):
    """Regress the labels of new and returning classes on random ReLU features of a frozen backbone.

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
        width: int | None = 5000,
        gamma: float = 100.0,
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
        exposed, unexposed = decompose(super().targets(labels, task), task.n_old)
        return exposed + unexposed


def decompose(targets: Tensor, n_old: int) -> tuple[Tensor, Tensor]:
    """The label matrix in its exposed and its unexposed part, (eq. 8-12): (N, K) -> two (N, K).

    Regression is linear in the targets, so the weights of the exposed part are the exposed-class label gain.
    """
    old = torch.arange(targets.shape[1], device=targets.device) < n_old  # (K,)
    return targets * old, targets * ~old
