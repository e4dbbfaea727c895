"""Heads that grow: one row for each class seen."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """Scores W x + b, one row of W for each class seen; starts with none.

    Args:
        num_features: D.
        bias: whether there is a b.
    """

    def __init__(self, num_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, num_features))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None

    @property
    def n_classes(self) -> int:
        """K, the rows so far."""
        return self.weight.shape[0]

    def grow(self, n_new: int) -> None:
        """Append rows for new classes; old rows and biases keep every bit."""
        bound = 1 / math.sqrt(self.weight.shape[1])  # as torch.nn.Linear starts
        self.weight = _grown(self.weight, torch.empty(n_new, self.weight.shape[1]).uniform_(-bound, bound))
        if self.bias is not None:
            self.bias = _grown(self.bias, torch.empty(n_new).uniform_(-bound, bound))

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

    def grow(self, n_new: int) -> None:
        """Append rows for new classes; old rows keep every bit."""
        rows = torch.empty(n_new, self.weight.shape[1])
        nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
        self.weight = _grown(self.weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)"""
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


def _grown(old: nn.Parameter, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([old.detach(), rows.to(old)]), requires_grad=old.requires_grad)
