"""Scores compared among some classes alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def among(logits: Tensor, y: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The columns of some classes, and labels that count within them.

    Args:
        logits: (B, K).
        y: labels, each one of ``classes``, (B,).
        classes: K_own class ids, ascending.

    Returns:
        (B, K_own) and (B,).
    """
    own = torch.as_tensor(list(classes), device=y.device)
    return logits[:, own], torch.searchsorted(own, y)
