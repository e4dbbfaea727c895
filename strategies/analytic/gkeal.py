"""GKEAL. Zhuang, Weng, He, Lin and Zeng, GKEAL: Gaussian Kernel Embedded Analytic Learning for Few-Shot Class
Incremental Task, CVPR 2023.

As ACIL, with a Gaussian kernel to fixed centres in place of the random layer. The centres are features of images of the
first task, chosen at random; they are real features, which whoever shares the state should know. The released code
(github.com/ZHUANGHP/Analytic-continual-learning, 156bc02f) takes the first M in the order of its loader, which
shuffles: as random. Its class has a width of 512, its command line one of 8,192 (``width``). With fewer features than
centres it adds random mixtures of all of them, this of two. The paper's augmented update for few shots is left out
there, too: its specification is not public.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import Analytic
from cil.learning.strategy import GradientLoop
from cil.machine import distributed
from cil.nets.network import Network
from cil.ops.closed_form.buffers import GaussianKernel
from cil.ops.closed_form.statistics import Statistics


class GKEAL(Analytic):
    """Regress one-hot labels on the Gaussian kernel between features and centres.

    Args:
        model: backbone and head without classes.
        sigma: width of the kernel in units of the features' distances; null takes the median distance of centres.
        width: M, the number of centres; null: the most that ``memory.budget`` allows.
        gamma: the ridge penalty.
        storage: of the M x M matrix: ``packed`` or ``full``.
        solver: ``auto``, ``accumulated`` or ``recursive``.
        products: ``auto``, ``float32`` or ``float64``.
    """

    expansion: GaussianKernel

    def __init__(
        self,
        model: Network,
        *,
        sigma: float | None = 10.0,
        width: int | None = 512,
        gamma: float = 0.1,
        storage: Literal["packed", "full"] = "packed",
        solver: Literal["auto", "accumulated", "recursive"] = "auto",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        super().__init__(model, width=width, gamma=gamma, storage=storage, solver=solver, products=products)
        if sigma is not None:
            check_number("strategy.sigma", sigma, above=0)
        self.sigma = sigma

    def make_expansion(self, width: int) -> Statistics:
        return GaussianKernel(self.model.num_features, width)

    def forget(self, what: Forgotten) -> list[str]:
        centres = ["centres of the kernel, which are features of images of the first task"] * what.first
        return [*super().forget(what), *centres]

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        if task.index == 0:
            self.expansion.settle(distributed.gather(features), self.sigma)
        super().observe(task, features, labels, trainer)
