"""Nearest class mean. Mensink, Verbeek, Perronnin and Csurka, Distance-Based Image Classification: Generalizing to New
Classes at Near-Zero Cost, TPAMI 2013.

On the features of a frozen backbone; the distance is Euclidean, without a learned metric. A backbone that is not
frozen learns in the first task and is frozen then. The evaluator ``nearest_mean`` compares with means of exemplars
instead; here the means are of all training images, and no image is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cil.learning.frozen import Prototypical


class NCM(Prototypical):
    """Predict the class whose mean feature is nearest."""

    def scores(self, features: Tensor) -> Tensor:
        means = self.prototypes.means
        # By products in batches of any size, where the default decides by the size of each.
        return -torch.cdist(features.double(), means, compute_mode="use_mm_for_euclid_dist")
