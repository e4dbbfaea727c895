"""Which of one class's images stand best for all of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TIE = 1e-12  # of squared distances between unit vectors in float64: far above rounding, far below what differs


def herding(features: Tensor, n: int) -> np.ndarray:
    """Indices of n images, each chosen so that the mean of those chosen so far is nearest to the class mean.

    Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, algorithm 4, without
    replacement. One matrix-vector product a pick: with s the sum of the picks,
    ||mu - (v + s) / k||^2 k^2 = ||v||^2 + 2 v.(s - k mu) + terms without v. Ties, such as between the only two images
    of a class, go to the lowest index, also where rounding tells them apart.

    Args:
        features: one class's features (N, D), not yet normalised.
        n: how many; at most N are returned.

    Returns:
        int64 indices (min(n, N),), best first.

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    v = features.cpu().double()
    if not torch.isfinite(v).all():
        raise ValueError("herding: a feature is NaN or infinite, so the network is broken")
    v = (v / (v.norm(dim=1, keepdim=True) + 1e-8)).numpy()  # small steps cost less in NumPy
    towards_mean = 2 * (v @ v.mean(0))  # (N,)
    distance = np.einsum("nd,nd->n", v, v)  # plus 2 v.s of the picks so far; infinite for the picks themselves
    chosen = np.empty(min(n, len(v)), dtype=np.int64)
    for k in range(len(chosen)):
        distance -= towards_mean
        chosen[k] = pick = int(np.argmax(distance <= distance.min() + TIE))
        distance += 2 * (v @ v[pick])
        distance[pick] = np.inf
    return chosen


def closest_to_mean(features: Tensor, n: int) -> np.ndarray:
    """Indices of the n images whose normalised features are nearest to the class mean, nearest first.

    Args:
        features: one class's features (N, D).
        n: how many; at most N are returned.
    """
    v = features.cpu().double()
    v = v / (v.norm(dim=1, keepdim=True) + 1e-8)
    distance = (v - v.mean(0)).norm(dim=1)  # (N,)
    return torch.argsort(distance, stable=True)[:n].cpu().numpy()
