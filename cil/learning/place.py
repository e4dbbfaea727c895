"""Where a task is learned, and who watches: values that the engine makes for each task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from cil.data.augmentation import Bound
from cil.learning.best import Best
from cil.machine.compute import Compute
from cil.machine.device import autocast, dtype_of


class Watcher(Protocol):
    """Whom the trainer tells how far it is, and who may know where an interrupted run stood."""

    def epoch_starts(self, stage: int, epoch: int, epochs: int, steps: int) -> None: ...

    def step_done(self) -> None: ...

    def epoch_done(self, stage: int, epoch: int, epochs: int, loss: float, lr: float) -> None: ...

    def restore(self, stage: int, strategy: nn.Module, optimizer: Optimizer, best: Best | None) -> int:
        """Load what a checkpoint holds of this stage; the number of epochs already done."""
        ...

    def save(
        self, stage: int, epoch: int, epochs: int, strategy: nn.Module, optimizer: Optimizer, best: Best | None
    ) -> None: ...


class NoWatcher:
    """Tells nobody, starts from the beginning."""

    def epoch_starts(self, stage: int, epoch: int, epochs: int, steps: int) -> None: ...

    def step_done(self) -> None: ...

    def epoch_done(self, stage: int, epoch: int, epochs: int, loss: float, lr: float) -> None: ...

    def restore(self, stage: int, strategy: nn.Module, optimizer: Optimizer, best: Best | None) -> int:
        return 0

    def save(
        self, stage: int, epoch: int, epochs: int, strategy: nn.Module, optimizer: Optimizer, best: Best | None
    ) -> None: ...


@dataclass
class Place:
    """Where and for which task a trainer works; made by the engine for each task.

    ``ordered``: the task is a piece of a stream, so its images come in their order, once. ``judge``: how good the
    strategy is after an epoch, where the best one is to be kept. ``compute``: where costs are added up.
    ``compile``: the mode in which ``torch.compile`` is to compile losses; None: not at all.
    """

    task: int
    seed: int
    augmentation: Bound
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "32"
    watcher: Watcher = field(default_factory=NoWatcher)
    ordered: bool = False
    judge: Callable[[Any], float] | None = None
    compute: Compute = field(default_factory=Compute)
    compile: str | None = None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of this run: matrix products in half of it where it is mixed."""
        return autocast(self.device, self.precision)

    @property
    def dtype(self) -> torch.dtype:
        """Of network inputs and of features: float32, or float64 in a run of that precision."""
        return dtype_of(self.precision)
