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

from torch import Tensor

from cil.data.scenario import Task
from cil.learning.frozen import RandomAnalytic
from cil.ops.closed_form.ridge import decompose


class ACIL(RandomAnalytic):
    """Regress the new classes' one-hot labels on random ReLU features of a frozen backbone."""

    def targets(self, labels: Tensor, task: Task) -> Tensor:
        return decompose(super().targets(labels, task), task.n_old)[1]
