"""What the gradient loop minimises: a strategy's loss, compiled or not, in one process or in several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cil.learning.batch import Batch
from cil.learning.strategy import Strategy
from cil.machine import distributed


class Compiled:
    """A loss compiled by ``torch.compile`` for batches of one shape; batches of another shape are computed as they are.

    The first batch, whose operations the engine counts, is computed as it is, too.

    Args:
        loss: of a strategy: Batch -> ().
        mode: of ``torch.compile``; ``reduce-overhead`` records CUDA graphs.
    """

    def __init__(self, loss: Callable[[Batch], Tensor], mode: str) -> None:
        torch.compiler.reset()  # what was compiled before was for fewer classes
        self.plain = loss
        self.compiled = torch.compile(loss, mode=mode, dynamic=False)
        self.shape: torch.Size | None = None

    def __call__(self, batch: Batch) -> Tensor:
        if self.shape is None:
            self.shape = batch.x.shape
            return self.plain(batch)
        return self.compiled(batch) if batch.x.shape == self.shape else self.plain(batch)


class Learner:
    """A strategy whose loss is to be minimised, in this process alone.

    Args:
        strategy: what learns.
        compile: mode in which its loss is compiled; None: not at all.
    """

    def __init__(self, strategy: Strategy, compile: str | None = None) -> None:
        self.strategy = strategy
        self._loss = Compiled(strategy.batch_loss, compile) if compile else strategy.batch_loss

    def loss(self, batch: Batch) -> Tensor:
        """The strategy's loss of this process's share of a batch."""
        return self._loss(batch)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, averaged over all processes."""
        loss.backward()


class _Together(Learner):
    """The same with gradients averaged by Fabric."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy)
        self.fabric = distributed.fabric()
        self.module = self.fabric.setup_module(strategy, move_to_device=False)
        self.module.mark_forward_method("batch_loss")

    def loss(self, batch: Batch) -> Tensor:
        return self.module.batch_loss(batch)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss, model=self.module)


@contextlib.contextmanager
def learner(strategy: Strategy, compile: str | None = None) -> Iterator[Learner]:
    """What the gradient loop minimises: the strategy's loss, with gradients averaged over all processes.

    Args:
        strategy: what learns.
        compile: mode in which its loss is compiled where one process learns alone; None: not at all.

    Raises:
        RuntimeError: the process group was not made by :func:`launch`.
    """
    if distributed.world_size() == 1:
        yield Learner(strategy, compile)
        return
    together = _Together(strategy)
    try:
        yield together
    finally:
        del together
        strategy.__dict__.pop("forward", None)  # the detour on which Fabric sends a loss through DDP
