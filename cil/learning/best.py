"""The best epoch of a stage, by whatever says how good one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cil.learning.state import under, with_prefix

# What results say of each value of trainer.select_on.
TOLD = {"last": "last epoch", "validation": "best epoch on validation images", "test": "best epoch on test images"}


class Best:
    """The state of the best epoch of a stage so far; of equals the later one.

    Args:
        judge: says how good a strategy is.
    """

    def __init__(self, judge: Callable[[Any], float]) -> None:
        self.judge = judge
        self.accuracy = -1.0
        self.kept: dict[str, Tensor] = {}

    def look(self, strategy: nn.Module) -> None:
        """Keep the state if it is the best."""
        accuracy = self.judge(strategy)
        if accuracy >= self.accuracy:
            self.accuracy = accuracy
            self.kept = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}

    def take(self, strategy: nn.Module) -> None:
        """Give the strategy the best state back; nothing if it was given back before an interruption."""
        if self.kept:
            strategy.load_state_dict(self.kept)
            self.kept = {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint inside the stage needs to go on."""
        return {"accuracy": torch.tensor(self.accuracy, dtype=torch.float64), **with_prefix("kept", self.kept)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self.accuracy, self.kept = float(tensors["accuracy"]), under("kept", tensors)
