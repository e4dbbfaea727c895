"""Heads that grow: one row for each class seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import check_number, unknown
from cil.ops.growing import extended

BOUNDS = {"torch": 1.0, "kaiming": math.sqrt(3)}  # values start uniform within this over the root of D


class LinearHead(nn.Module):
    """Scores W x + b, one row of W for each class seen; starts with none.

    Args:
        num_features: D.
        bias: whether there is a b.
        init: how rows start: ``torch``, uniform within 1 / sqrt(D), as is b; or ``kaiming``, uniform within
            sqrt(3 / D), with a b of 0, as in the toolbox PyCIL (He et al., Delving Deep into Rectifiers, ICCV 2015,
            for a linear layer).
    """

    def __init__(self, num_features: int, bias: bool = True, init: Literal["torch", "kaiming"] = "torch") -> None:
        super().__init__()
        if init not in BOUNDS:
            raise unknown("init", init, BOUNDS)
        self.init = init
        self.weight = nn.Parameter(torch.empty(0, num_features))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None

    @property
    def n_classes(self) -> int:
        """K, the rows so far."""
        return self.weight.shape[0]

    def grow(self, n_new: int, more_features: int = 0) -> None:
        """Append rows for new classes, and columns for features that come after the old ones.

        What was there keeps every bit; the rest starts as that of a head of the new size does.
        """
        self.weight = _grown(self.weight, n_new, more_features, self.init)
        if self.bias is not None:
            bias = extended(self.bias.detach(), n_new)
            bias[len(self.bias) :] = self._first_bias(n_new).to(bias)
            self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was learned: fresh values for the same classes and features."""
        self.weight.copy_(_drawn(*self.weight.shape, num_features=self.weight.shape[1], init=self.init))
        if self.bias is not None:
            self.bias.copy_(self._first_bias(self.n_classes))

    @torch.no_grad()
    def drop(self, classes: Sequence[int]) -> None:
        """Make the rows of these classes 0; a head that is not used has none."""
        rows = [label for label in classes if label < self.n_classes]
        self.weight[rows] = 0
        if self.bias is not None:
            self.bias[rows] = 0

    def _first_bias(self, n: int) -> Tensor:
        """What n values of b start with."""
        return torch.zeros(n) if self.init == "kaiming" else _drawn(n, num_features=self.weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)"""
        return F.linear(x, self.weight, self.bias)


class CosineHead(nn.Module):
    """Scores scale * cos(x, w), one row w for each class seen; starts with none.

    Args:
        num_features: D.
        scale: the temperature eta, learned from this value on, or constant.
        learn_scale: whether the scale is a parameter or a buffer.
    """

    def __init__(self, num_features: int, scale: float = 16.0, learn_scale: bool = True) -> None:
        super().__init__()
        check_number("scale", scale, above=0)
        self.weight = nn.Parameter(torch.empty(0, num_features))
        self.scale: Tensor
        if learn_scale:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
        else:
            self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def n_classes(self) -> int:
        """K, the rows so far."""
        return self.weight.shape[0]

    def grow(self, n_new: int, more_features: int = 0) -> None:
        """Append rows for new classes, and columns for features that come after the old ones; old values stay."""
        self.weight = _grown(self.weight, n_new, more_features)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget what was learned of the classes: fresh rows; the scale stays."""
        self.weight.copy_(_drawn(*self.weight.shape, num_features=self.weight.shape[1]))

    @torch.no_grad()
    def drop(self, classes: Sequence[int]) -> None:
        """Make the rows of these classes 0; a head that is not used has none."""
        self.weight[[label for label in classes if label < self.n_classes]] = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)"""
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def _drawn(*shape: int, num_features: int, init: str = "torch") -> Tensor:
    """Values that a layer with so many features starts with, by default those of ``torch.nn.Linear``."""
    bound = BOUNDS[init] / math.sqrt(num_features)
    return torch.empty(shape).uniform_(-bound, bound)


def _grown(old: nn.Parameter, rows: int, columns: int, init: str = "torch") -> nn.Parameter:
    """A (K, D) matrix as the corner of a (K + rows, D + columns) matrix whose other values are drawn."""
    (n_old, n_columns), width = old.shape, old.shape[1] + columns
    weight = extended(extended(old.detach(), columns, 1), rows)
    if columns:
        weight[:n_old, n_columns:] = _drawn(n_old, columns, num_features=width, init=init).to(old)
    weight[n_old:] = _drawn(rows, width, num_features=width, init=init).to(old)
    return nn.Parameter(weight, requires_grad=old.requires_grad)
