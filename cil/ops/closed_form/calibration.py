"""What a class with few images borrows from classes with many."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FUSIONS = ("paper", "released")
ROWS = 8  # of a product


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Each row times a matrix, with bits that do not depend on the rows after it: (N, K), (K, M) -> (N, M).

    Libraries add up a product's sums in an order that depends on its height. So all products have one height here, the
    last one filled up with zeros.
    """
    filled = F.pad(rows, (0, 0, 0, -len(rows) % ROWS))
    return torch.cat([some @ matrix for some in filled.split(ROWS)])[: len(rows)]


def similarity_weights(new: Tensor, base: Tensor, tau: float, known: Tensor | None = None) -> Tensor:
    """How much each new class takes from each base class: (N, D), (B, D) -> (N, B), rows that sum to 1.

    w_nb = softmax over b of tau * cos(c_n, c_b). Wang et al., Few-Shot Class-Incremental Learning via Training-Free
    Prototype Calibration (TEEN), NeurIPS 2023.

    Args:
        new: prototypes of new classes.
        base: prototypes of base classes.
        tau: the inverse temperature; 0 weighs all alike, large values take the most similar one alone.
        known: which base classes count, bool (B,), the others weigh nothing; None: all.
    """
    similar = tau * product(F.normalize(new, dim=1), F.normalize(base, dim=1).T)
    if known is not None:
        similar = similar.masked_fill(~known, -torch.inf)
    return torch.softmax(similar, dim=1).nan_to_num(nan=0.0)


def calibrated(
    new: Tensor,
    base: Tensor,
    alpha: float,
    tau: float,
    fusion: Literal["paper", "released"] = "paper",
    known: Tensor | None = None,
) -> Tensor:
    """Prototypes of new classes moved towards similar base classes: (N, D), (B, D) -> (N, D).

    (1 - alpha) c_n + alpha d_n with d_n = sum_b w_nb c_b, all c of unit length; each row depends on its own class and
    the base classes alone, and keeps every bit when classes are added behind it. Wang et al., NeurIPS 2023; weights as
    :func:`similarity_weights`.

    Args:
        new: prototypes of new classes, of any length.
        base: prototypes of base classes, of any length.
        alpha: how far, in [0, 1]; 0 gives c_n itself.
        tau: the inverse temperature of the weights.
        fusion: ``paper`` takes d_n as it is; ``released``, as the authors' program, brings it to unit length first,
            which moves prototypes farther where base classes differ.
        known: which base classes count, bool (B,); None: all.
    """
    moved = product(similarity_weights(new, base, tau, known), F.normalize(base, dim=1))
    if fusion == "released":
        moved = F.normalize(moved, dim=1)
    return (1 - alpha) * F.normalize(new, dim=1) + alpha * moved
