"""Gradients turned so that a step does no harm to what they are compared with."""

from __future__ import annotations

import torch
from scipy.optimize import nnls
from torch import Tensor, nn


def off(gradient: Tensor, reference: Tensor) -> Tensor:
    """A gradient without its part against a reference; as it is where it has none: (P,), (P,) -> (P,).

    Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019, eq. 11: g - (g.r / r.r) r if g.r < 0.
    """
    product = gradient @ reference
    return gradient - product / (reference @ reference) * reference if product < 0 else gradient


def multipliers(products: Tensor, gram: Tensor, margin: float = 0.0) -> Tensor:
    """How much of each reference to add to a gradient so that the sum is against none of them.

    Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017, eq. 11: the v >= margin that
    minimises v^T R R^T v / 2 + (R g)^T v, for references R (T, P) and a gradient g (P,).

    Args:
        products: R g, (T,).
        gram: R R^T, (T, T); references may depend on one another.
        margin: smallest multiplier.

    Returns:
        v, (T,), float64.
    """
    matrix = gram.double()
    values, vectors = torch.linalg.eigh(matrix)
    there = values > values.max() * len(values) * torch.finfo(gram.dtype).eps
    roots = values[there].sqrt()[:, None]
    # With v = margin + u this is the problem of non-negative least squares |root u - target|, root^T root = R R^T.
    root = roots * vectors.T[there]
    target = -vectors.T[there] @ (products.double() + margin * matrix.sum(1)) / roots[:, 0]
    found, _ = nnls(root.cpu().numpy(), target.cpu().numpy())
    return torch.from_numpy(found).to(gram.device) + margin


def flat(module: nn.Module) -> Tensor:
    """The gradients of all parameters that require one, in their order, 0 where a parameter took no part: -> (P,)."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in learning])


def put(module: nn.Module, gradient: Tensor) -> None:
    """Make a flat gradient, (P,), that of the parameters that require one, in their order."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    parts = gradient.split([parameter.numel() for parameter in learning])
    for parameter, part in zip(learning, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()
