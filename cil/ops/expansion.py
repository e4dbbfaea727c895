"""What methods share that add a network for each task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def auxiliary_targets(y: Tensor, n_old: int) -> Tensor:
    """Labels that tell new classes from one another and from everything old: (B,) -> (B,).

    0 for every old class, 1 + (y - n_old) for a new one. Yan et al., DER: Dynamically Expandable Representation for
    Class Incremental Learning, CVPR 2021.
    """
    return (y - n_old + 1).clamp(min=0)


def auxiliary_loss(logits: Tensor, y: Tensor, n_old: int) -> Tensor:
    """Cross-entropy by which new features alone tell new classes from one another and from everything old.

    Args:
        logits: of a head on the new features (B, 1 + K_new), everything old first.
        y: labels (B,).
        n_old: K_old, the number of old classes.

    Returns:
        Mean over the batch, a scalar ().
    """
    return F.cross_entropy(logits, auxiliary_targets(y, n_old))


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """Weights of classes by their effective number of images, with mean 1: (K,) -> float64 (K,).

    (1 - beta) / (1 - beta^n), which is larger for classes with few images. Cui et al., Class-Balanced Loss Based on
    Effective Number of Samples, CVPR 2019, eq. 2.

    Args:
        counts: images of each class, each at least 1.
        beta: within [0, 1); 0 weighs all classes alike.
    """
    weights = (1 - beta) / (1 - torch.pow(beta, counts.double()))
    return weights * len(counts) / weights.sum()


def balanced_distillation(logits: Tensor, target: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Distillation whose soft targets are weighed by class and made a distribution again.

    Wang et al., FOSTER: Feature Boosting and Compression for Class-Incremental Learning, ECCV 2022.

    Args:
        logits: the student's scores (B, K).
        target: the teacher's scores (B, K).
        weights: of the classes (K,).
        temperature: T; both scores are divided by it.

    Returns:
        Cross-entropy, mean over the batch, a scalar ().
    """
    soft = torch.softmax(target / temperature, 1) * weights  # (B, K)
    soft = soft / soft.sum(1, keepdim=True)
    return -(soft * F.log_softmax(logits / temperature, 1)).sum(1).mean()
