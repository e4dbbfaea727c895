"""Knowledge distillation: keep the scores that a former network gave."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation(logits: Tensor, target: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy between the softened scores of teacher and student, mean over the batch.

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, without the factor T^2 (as Li and Hoiem, Learning
    without Forgetting, ECCV 2016, and the class-incremental literature after it). Equal scores give the entropy of the
    softened distribution, not 0; gradients are those of the Kullback-Leibler form.

    Args:
        logits: the student's scores (B, K).
        target: the teacher's scores (B, K).
        temperature: T; both are divided by it.

    Returns:
        The mean of -sum_k softmax(target / T)_k log softmax(logits / T)_k, a scalar ().
    """
    return -(torch.softmax(target / temperature, 1) * F.log_softmax(logits / temperature, 1)).sum(1).mean()
