"""DS-AL. Zhuang, He, Tong, Zeng, Chen and Lin, DS-AL: A Dual-Stream Analytic Learning for Exemplar-Free
Class-Incremental Learning, AAAI 2024.

A main stream as in ACIL, and a second regression, on tanh of the same random layer, of what the main stream misses.
Residuals of old classes are set to 0 before that (previous-label cleansing). Scores are added with a weight.

The residual is that of the main stream as it is after the task, for the task's data at once. Released code takes it for
each batch, of the main stream as it is after that batch, so that it depends on their order; ``residual_batch`` is the
size of such batches. The authors' code also cleanses by position, which goes wrong when a batch lacks the newest class;
this, as that of PyCIL, goes by class. With ``compensation: 0`` the scores are ACIL's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import Analytic
from cil.learning.strategy import GradientLoop
from cil.machine import distributed
from cil.nets.network import Network
from cil.ops.closed_form.buffers import RandomFeatures
from cil.ops.closed_form.ridge import decompose
from cil.ops.closed_form.statistics import Statistics

Pairs = Iterator[tuple[Tensor, Tensor]]


class DSAL(Analytic):
    """Regress labels on ReLU features, then what is left on tanh features of the same random layer.

    Args:
        model: backbone and head without classes.
        compensation: C, the weight of the second stream's scores; 0.6 was published for CIFAR-100, 1.5 for ImageNet.
        compensation_gamma: the ridge penalty of the second stream.
        residual_batch: images after which the main stream learns and what it misses is taken; null: those of a task.
        init: of the random layer: ``uniform`` (the released code) or ``normal``.
        width: M, features after the random layer; null: the most that ``memory.budget`` allows.
        gamma: the ridge penalty of the main stream.
        storage: of the two M x M matrices: ``packed`` or ``full``.
        solver: ``auto``, ``accumulated`` or ``recursive``.
        products: ``auto``, ``float32`` or ``float64``.
    """

    def __init__(
        self,
        model: Network,
        *,
        compensation: float = 0.6,
        compensation_gamma: float = 0.1,
        residual_batch: int | None = None,
        init: Literal["uniform", "normal"] = "uniform",
        width: int | None = 8192,
        gamma: float = 0.1,
        storage: Literal["packed", "full"] = "packed",
        solver: Literal["auto", "accumulated", "recursive"] = "auto",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        super().__init__(model, width=width, gamma=gamma, storage=storage, solver=solver, products=products)
        check_number("strategy.compensation", compensation, least=0)
        check_number("strategy.compensation_gamma", compensation_gamma, above=0)
        if residual_batch is not None:
            check_number("strategy.residual_batch", residual_batch, least=1, whole=True)
        self.compensation, self.compensation_gamma, self.init = compensation, compensation_gamma, init
        self.residual_batch = residual_batch

    def make_expansion(self, width: int) -> Statistics:
        return RandomFeatures(self.model.num_features, width, self.init)

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            self.second = self.make_ridge(self.ridge.width, self.compensation_gamma)
        self.second.grow(task.n_new)

    def regressed_on(self, features: Tensor) -> Tensor:
        return self.expand(features).relu()  # of the main stream

    def targets(self, labels: Tensor, task: Task) -> Tensor:
        return decompose(super().targets(labels, task), task.n_old)[1]

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        if self.residual_batch is None:
            self.regress(task, features, labels, len(task.train))
            return
        every, own = distributed.gather(features), distributed.gather(labels)  # batches are those of one process
        mine = slice(distributed.rank(), None, distributed.world_size())
        for x, y in zip(every.split(self.residual_batch), own.split(self.residual_batch), strict=True):
            self.regress(task, x[mine], y[mine], len(x))

    def regress(self, task: Task, features: Tensor, labels: Tensor, n: int) -> None:
        """Learn from n samples over all processes, of which (N, D) and (N,) are one's own share."""

        def main(precision: torch.dtype) -> Pairs:
            for u, y in self.chunks(features, labels, task):
                yield u.relu().to(precision), y

        def missed(precision: torch.dtype) -> Pairs:
            for u, y in self.chunks(features, labels, task):
                residual = y - self.ridge(u.relu())  # (n, K)
                yield u.tanh().to(precision), decompose(residual, task.n_old)[1]  # previous-label cleansing

        self.ridge.learn(main, n)
        self.second.learn(missed, n)

    def forget(self, what: Forgotten) -> list[str]:
        return [*super().forget(what), "the second stream, which regressed what the main stream missed with them in it"]

    def scores(self, features: Tensor) -> Tensor:
        u = self.expand(features)  # (N, M)
        return self.ridge(u.relu()) + self.compensation * self.second(u.tanh())
