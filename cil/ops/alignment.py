"""Bring the head's rows of new classes to the length of the old classes' rows."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def align(weight: Tensor, n_old: int, *, only_shrink: bool = False) -> float:
    """Scale the new rows, in place, so that their mean norm equals that of the old rows.

    Zhao et al., Maintaining Discrimination and Fairness in Class Incremental Learning, CVPR 2020, eq. 6-9. Old rows
    keep every bit; relative lengths within the new rows stay. A second call changes nothing (gamma = 1).

    Args:
        weight: head weight (K, D); rows from ``n_old`` on are new.
        n_old: number of old classes, 0 < n_old < K.
        only_shrink: leave the rows alone when they are not longer than the old ones.

    Returns:
        gamma, by which the new rows were multiplied.

    Raises:
        ValueError: there are no old or no new rows, or the new rows are all zero.
    """
    if not 0 < n_old < len(weight):
        raise ValueError(f"aligning needs old and new rows; {n_old} of {len(weight)} are old")
    norms = weight.norm(dim=1)
    if not norms[n_old:].any():
        raise ValueError("aligning cannot lengthen new rows that are all zero; they learned nothing")
    gamma = float(norms[:n_old].mean() / norms[n_old:].mean())
    if only_shrink:
        gamma = min(gamma, 1.0)
    weight[n_old:] *= gamma
    return gamma
