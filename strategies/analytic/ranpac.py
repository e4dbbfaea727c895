"""RanPAC. McDonnell, Gong, Parvaneh, Abbasnejad and van den Hengel, RanPAC: Random Projections and Pre-trained Models
for Continual Learning, NeurIPS 2023.

Random ReLU features of a frozen backbone; X^T X and X^T Y are added up, and the ridge penalty is chosen anew in each
task: a regression on the first 80 % of the task's images alone is scored by its squared error on the last 20 %. So the
weights depend on the order of tasks through the penalty, unless ``penalties`` has one value. The penalty that wins on
few images may leave the equations of all images unsolvable; then the next best is taken.

The paper first tunes adapters in the first task; here a backbone that is not frozen learns all its weights in the first
task instead. Images are split at random, as in the released code (github.com/RanPAC/RanPAC, 698e00cc), whose loader
shuffles them. Statistics are kept in float64, where that code has float32, and no room is reserved for classes to come.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import UserError, check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import RandomAnalytic
from cil.learning.strategy import GradientLoop
from cil.machine import distributed
from cil.nets.network import Network
from cil.ops.closed_form.ridge import cholesky, solve


class RanPAC(RandomAnalytic):
    """Regress one-hot labels on random ReLU features, with a ridge penalty chosen on held-out images of each task.

    Args:
        model: backbone and head without classes.
        penalties: to choose from; null: 1e-8, 1e-7, ..., 1e8. One alone is not chosen but taken.
        held_out: share of a task's images that the choice is made on.
        init: of the random layer: ``normal`` (the paper) or ``uniform``.
        width: M, features after the random layer; null: the most that ``memory.budget`` allows.
        gamma: the penalty until a task has enough images to choose one.
        storage: of the M x M matrix: ``packed`` or ``full``.
        products: ``auto``, ``float32`` or ``float64``.
    """

    def __init__(
        self,
        model: Network,
        *,
        penalties: list[float] | None = None,
        held_out: float = 0.2,
        init: Literal["normal", "uniform"] = "normal",
        width: int | None = 10000,
        gamma: float = 1.0,
        storage: Literal["packed", "full"] = "packed",
        products: Literal["auto", "float32", "float64"] = "auto",
    ) -> None:
        options: dict[str, Any] = {"storage": storage, "solver": "accumulated", "products": products}
        check_number("strategy.held_out", held_out, least=0, below=1)
        if penalties == []:
            raise UserError("strategy.penalties: [] must be null or hold one or more numbers > 0")
        for penalty in penalties or ():
            check_number("strategy.penalties", penalty, above=0)
        super().__init__(model, init=init, width=width, gamma=gamma, **options)
        self.penalties, self.held_out = penalties, held_out

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        gammas = powers_of_ten() if self.penalties is None else self.penalties
        every, own = distributed.gather(features), distributed.gather(labels)
        order = torch.randperm(len(every), device=every.device)
        held = round(self.held_out * len(every))
        if len(gammas) != 1:
            if 0 < held < len(every):
                x, y = self.expand(every[order]), F.one_hot(own[order], task.n_seen).double()  # (N, M), (N, K)
                gammas = best_penalties(x[:-held], y[:-held], x[-held:], y[-held:], gammas)
            else:
                gammas = [float(self.ridge.gamma)]
        self.ridge.learn(self.samples(features, labels, task), len(task.train), gamma=gammas)

    def forget(self, what: Forgotten) -> list[str]:
        chosen = self.penalties is None or len(self.penalties) > 1
        return [*super().forget(what), *["the ridge penalty, which was chosen with their help"] * chosen]


def powers_of_ten() -> list[float]:
    """The published candidates, 1e-8 to 1e8."""
    return [10.0**power for power in range(-8, 9)]


def best_penalties(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor, penalties: list[float]) -> list[float]:
    """The ridge penalties by their squared error on held-out samples, best first.

    With fewer samples than columns the equations are solved in their dual form, X^T (X X^T + penalty I)^-1 Y.

    Args:
        x: (N, M).
        y: (N, K).
        x_held: (n, M).
        y_held: (n, K).
        penalties: candidates; those whose equations cannot be solved in float64 are passed over.

    Raises:
        UserError: that is all of them.
    """
    x, x_held = x.double(), x_held.double()
    dual = x.shape[0] < x.shape[1]
    system = x @ x.T if dual else x.T @ x
    seen, right = (x_held @ x.T, y) if dual else (x_held, x.T @ y)
    errors: dict[float, float] = {}
    for penalty in penalties:
        try:
            predicted = seen @ solve(cholesky(system, penalty), right)  # (n, K)
        except UserError:
            continue
        errors[penalty] = float((predicted - y_held).square().mean())
    if not errors:
        raise UserError(f"strategy.penalties: the equations can be solved with none of {penalties}; give larger ones")
    return sorted(errors, key=lambda penalty: errors[penalty])
