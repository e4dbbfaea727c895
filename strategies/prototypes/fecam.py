"""FeCAM with calibrated statistics for classes of few images. Goswami, Twardowski and van de Weijer, Calibrating
Higher-Order Statistics for Few-Shot Class-Incremental Learning with Pre-trained Vision Transformers, CVPR Workshops
2024; FeCAM is Goswami, Liu, Twardowski and van de Weijer, FeCAM: Exploiting the Heterogeneity of Class Distributions in
Exemplar-Free Continual Learning, NeurIPS 2023.

A class is a mean and a covariance, and the nearest class by Mahalanobis distance is predicted. Five images give no
covariance, so that a new class takes over those of the base classes, weighted by similarity as TEEN weighs prototypes:
beta (Sigma_n + sum_b w_nb Sigma_b). Covariances get ``ridge`` added to their diagonals and become correlations;
features and means are compared at unit length. This is the released program of the first paper; it leaves out FeCAM's
power transform and its shrinkage towards the average variance. Prototypes are calibrated, too, with ``alpha``.

K covariances are K D (D + 1) / 2 numbers, which outweigh a network soon; the ledger shows it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.scenario import Task
from cil.errors import check_number
from cil.learning.forgetting import Forgotten
from cil.learning.frozen import Prototypical
from cil.learning.strategy import GradientLoop
from cil.nets.network import Network
from cil.ops.closed_form.calibration import calibrated, similarity_weights
from cil.ops.closed_form.covariances import ClassCovariances


class FeCAM(Prototypical):
    """Predict the class that is nearest by the Mahalanobis distance of its own covariance.

    Args:
        model: backbone and head without classes.
        alpha: how far new prototypes are moved towards those of similar base classes, in [0, 1]; 0: not at all.
        beta: of calibrated covariances; 0 leaves new classes with their own alone.
        tau: inverse temperature of the softmax over base classes.
        ridge: added to the diagonals, in units of squared features.
    """

    def __init__(
        self, model: Network, *, alpha: float = 0.25, beta: float = 1.0, tau: float = 16.0, ridge: float = 1.0
    ) -> None:
        super().__init__(model)
        check_number("strategy.alpha", alpha, least=0, most=1)
        check_number("strategy.beta", beta, least=0)
        check_number("strategy.tau", tau, least=0)
        check_number("strategy.ridge", ridge, above=0)
        self.alpha, self.beta, self.tau, self.ridge = alpha, beta, tau, ridge

    @property
    def needs_boundaries(self) -> bool:  # type: ignore[override]
        """To know the base classes."""
        return True

    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            self.n_base = task.n_new
            self.covariances = ClassCovariances(self.model.num_features)
        self.covariances.grow(task.n_new)

    def observe(self, task: Task, features: Tensor, labels: Tensor, trainer: GradientLoop) -> None:
        self.covariances.learn(features, labels, self.prototypes)
        super().observe(task, features, labels, trainer)

    @property
    def known_base(self) -> Tensor:
        """Which base classes are known, bool (B,); one may have been forgotten."""
        return self.prototypes.counts[: self.n_base] > 0

    def forget(self, what: Forgotten) -> list[str]:
        others = what.of_others
        self.covariances.unlearn(what.features[others], what.labels[others], self.prototypes)
        return super().forget(what)

    def centres(self) -> Tensor:
        """Prototypes of unit length, new ones calibrated: float64 (K, D)."""
        plain = F.normalize(self.prototypes.means, dim=1)
        base, new = plain[: self.n_base], plain[self.n_base :]
        # The released program, which this follows, brings the weighted sum to unit length.
        moved = calibrated(new, base, self.alpha, self.tau, "released", self.known_base)
        return F.normalize(torch.cat([base, moved]), dim=1)

    def correlations(self) -> Tensor:
        """Of each class, new ones calibrated, with the ridge: float64 (K, D, D)."""
        own = self.covariances.matrices()
        base, new = own[: self.n_base], own[self.n_base :]
        if self.beta and len(new):
            means = self.prototypes.means
            weights = similarity_weights(
                means[self.n_base :], means[: self.n_base], self.tau, self.known_base
            )  # (N, B)
            new = self.beta * (new + torch.einsum("nb,bij->nij", weights, base))
        full = torch.cat([base, new]) + self.ridge * torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
        spread = full.diagonal(dim1=1, dim2=2).sqrt()  # (K, D)
        return full / (spread[:, :, None] * spread[:, None, :])

    def scorer(self) -> Callable[[Tensor], Tensor]:
        factors, centres = torch.linalg.cholesky(self.correlations()), self.centres().float()
        # Inverted here, once: the ridge keeps them well-conditioned, and products are what every format has.
        eye = torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
        whitening = torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False).mT.float()  # (K, D, D)

        def distances(features: Tensor) -> Tensor:
            x = F.normalize(features.float(), dim=1)
            each = [
                ((x - centre) @ own).square().sum(1) for own, centre in zip(whitening, centres, strict=True)
            ]  # K of (B,)
            return -torch.stack(each, 1)

        return distances

    def scores(self, features: Tensor) -> Tensor:
        return self.scorer()(features)
