"""Accuracy on the test images of the classes seen, by each evaluator.

An evaluator turns a strategy into predictions: ``linear`` takes the highest of its scores; ``nearest_mean`` takes the
class whose mean exemplar is nearest (Rebuffi et al., iCaRL, CVPR 2017, algorithm 1); ``nearest_mean_flip`` averages
each exemplar with its mirror image first, as the original implementation did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data.images import ImageSet
from cil.errors import UserError, unknown
from cil.learning.inference import features_of, passes
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.machine import distributed
from cil.memory.exemplars import Exemplars

EVALUATORS = ("linear", "nearest_mean", "nearest_mean_flip")


@dataclass
class Predictions:
    """What one evaluator saw after a task.

    Attributes:
        confusion: test images by class (rows) and prediction (columns), (K, K) int64.
        top5: share of test images whose class is among the five best scores (all of them when K < 5).
    """

    confusion: np.ndarray
    top5: float


def class_means(
    strategy: Strategy,
    exemplars: Exemplars,
    n_seen: int,
    place: Place,
    evaluators: Iterable[str],
    known: Tensor | None = None,
) -> dict[str, Tensor]:
    """Normalised means of the classes' normalised exemplar features; NaN for a class without exemplars.

    Args:
        strategy: after ``end``.
        exemplars: at least one.
        n_seen: K.
        place: augmentation, device and precision of the run.
        evaluators: out of ``nearest_mean`` and ``nearest_mean_flip``, which takes the mirrored exemplars in, too.
        known: features of exemplars, (M, D), with NaN in rows that are not known; None: no row is.

    Returns:
        (K, D) for each evaluator.
    """
    data = exemplars.as_set()
    assert data is not None, "class means need exemplars"
    if known is None:
        plain = features_of(strategy, data, place)
    else:
        plain, unknown = known.clone(), known.isnan().any(1)
        if unknown.any():
            plain[unknown] = features_of(strategy, data.subset(unknown.nonzero().flatten().cpu()), place)
    plain, labels = F.normalize(plain, dim=1), data.labels.to(plain.device)  # (M, D), (M,)
    counts = torch.bincount(labels, minlength=n_seen).unsqueeze(1)
    means = {}
    for name in evaluators:
        v = plain
        if name == "nearest_mean_flip":
            v = (plain + F.normalize(features_of(strategy, data, place, flip=True), dim=1)) / 2
        sums = v.new_zeros(n_seen, v.shape[1]).index_add_(0, labels, v)
        means[name] = F.normalize(sums / counts, dim=1)
    return means


def nearness(features: Tensor, means: Tensor) -> Tensor:
    """Minus the distance of normalised features (B, D) to class means (K, D); -inf to a class without one. (B, K)"""
    # Without the products that the default takes for many rows: they would lose the digits of a small distance.
    apart = torch.cdist(F.normalize(features, dim=1), means, compute_mode="donot_use_mm_for_euclid_dist")
    return -apart.nan_to_num(nan=torch.inf)


def own_means(strategy: Strategy, exemplars: Exemplars, n_seen: int, place: Place) -> Tensor | None:
    """The means of exemplars that the method's own evaluator compares with, (K, D); None: it has scores of its own.

    Args:
        strategy: after ``end``.
        exemplars: that are carried.
        n_seen: K.
        place: augmentation, device and precision of the run.
    """
    name = strategy.evaluator
    return None if name == "linear" else class_means(strategy, exemplars, n_seen, place, [name])[name]


def scores_of(
    strategy: Strategy, data: ImageSet, place: Place, means: Tensor | None = None, *, in_use: bool = False
) -> Tensor:
    """The method's own scores of some images, (N, K); several processes share the images, and each gets all scores.

    Args:
        strategy: after ``end``.
        data: images.
        place: augmentation, device and precision of the run.
        means: of exemplars, (K, D), where its own evaluator compares with them; None: its scores.
        in_use: a finished model answers, as in :func:`cil.learning.inference.passes`.
    """
    own = distributed.own(data)
    found = passes(strategy, own or data.subset([0]), place, need_scores=means is None, in_use=in_use)
    parts = [scores if means is None else nearness(features, means) for features, scores in found]
    return distributed.gather(torch.cat(parts)[: len(own)])


def check(wanted: Sequence[str], strategy: Strategy, has_exemplars: bool) -> None:
    """Refuse evaluators that there are not, or that need exemplars where there are none.

    Args:
        wanted: names, as a run asks for them.
        strategy: whose own evaluator is always used.
        has_exemplars: whether the run keeps any.

    Raises:
        UserError: names the evaluator and what is legal.
    """
    for name in wanted:
        if name not in EVALUATORS:
            raise unknown("evaluators", name, EVALUATORS)
    if not has_exemplars and any(name != "linear" for name in (*wanted, strategy.evaluator)):
        raise UserError(
            f"evaluators: nearest means of exemplars need exemplars; memory has none and {type(strategy).__name__} is "
            f"scored by '{strategy.evaluator}', the run by {', '.join(wanted) or 'default'}"
        )


def evaluate(
    strategy: Strategy,
    test: ImageSet,
    n_seen: int,
    exemplars: Exemplars,
    evaluators: tuple[str, ...],
    place: Place,
    known: Tensor | None = None,
) -> dict[str, Predictions]:
    """Predictions of each evaluator on the test images of the classes seen, from one pass over them.

    Several processes share the images, and each gets all predictions.

    Args:
        strategy: after ``end``.
        test: test images of the classes seen.
        n_seen: K.
        exemplars: for the nearest means.
        evaluators: names out of ``EVALUATORS``.
        place: augmentation, device and precision of the run.
        known: features of exemplars that selecting them took, as ``Exemplars.update`` gives them.
    """
    near = [name for name in evaluators if name != "linear"]
    means = class_means(strategy, exemplars, n_seen, place, near, known) if near else {}
    ranked: dict[str, list[Tensor]] = {name: [] for name in evaluators}
    own = distributed.own(test)
    for features, scores in passes(strategy, own or test.subset([0]), place, need_scores="linear" in evaluators):
        for name in evaluators:
            found = scores if name == "linear" else nearness(features, means[name])  # (B, K)
            ranked[name].append(found.topk(min(5, n_seen), dim=1).indices.cpu())
    out = {}
    for name, parts in ranked.items():
        best = distributed.gather(torch.cat(parts)[: len(own)].to(place.device)).cpu()  # (N, 5)
        pairs = test.labels * n_seen + best[:, 0]
        confusion = torch.bincount(pairs, minlength=n_seen * n_seen).view(n_seen, n_seen)
        out[name] = Predictions(confusion.numpy(), float((best == test.labels[:, None]).any(1).double().mean()))
    return out
