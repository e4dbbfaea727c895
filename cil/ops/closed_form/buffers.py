"""Fixed nonlinear maps from features to many more: what analytic methods put between backbone and regression."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cil.ops.closed_form.statistics import Statistics


class RandomFeatures(Statistics):
    """h = f B for a random B that never changes; the activation is the caller's.

    Args:
        num_features: D.
        width: M.
        init: ``uniform`` within 1 / sqrt(D), as torch.nn.Linear starts, or ``normal``, standard normal.
    """

    weight: Tensor

    def __init__(self, num_features: int, width: int, init: Literal["uniform", "normal"] = "uniform") -> None:
        super().__init__()
        drawn = torch.empty(num_features, width)
        drawn = drawn.normal_() if init == "normal" else drawn.uniform_(-1, 1) / num_features**0.5
        self.register_buffer("weight", drawn)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, M), in the precision of x."""
        return x @ self.weight.to(x.dtype)


class GaussianKernel(Statistics):
    """h_j(x) = exp(-||x - c_j||^2 / (2 sigma^2)) for centres c_j that are features of images seen first.

    Args:
        num_features: D.
        width: M, the number of centres.
    """

    centres: Tensor
    sigma: Tensor

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(width, num_features))
        self.register_buffer("sigma", torch.zeros(()))

    def settle(self, features: Tensor, sigma: float | None = None) -> None:
        """Choose the centres at random among features (N, D); where N < M, mixtures of two of them are added.

        Draws from the global generator.

        Args:
            features: of the first images.
            sigma: width of the kernel; None takes the median distance between centres.
        """
        width, n = len(self.centres), len(features)
        chosen = features[torch.randperm(n, device=features.device)[:width]]
        missing = width - len(chosen)
        if missing:
            one, two = torch.randint(n, (2, missing), device=features.device)
            part = torch.rand(missing, 1, device=features.device)
            chosen = torch.cat([chosen, part * features[one] + (1 - part) * features[two]])
        self.centres = chosen.clone()
        if sigma is None:
            some = chosen[:1000]
            sigma = float(torch.pdist(some).median()) if len(some) > 1 else 1.0
        self.sigma = torch.full_like(self.sigma, max(sigma, 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, M), in the precision of x."""
        centres = self.centres.to(x.dtype)
        middle = centres.mean(0)  # far from the origin, squares would cancel
        x, centres = x - middle, centres - middle
        squares = (x * x).sum(1, keepdim=True) - 2 * x @ centres.T + (centres * centres).sum(1)
        return torch.exp(-squares.clamp_min(0) / (2 * self.sigma.to(x.dtype) ** 2))
