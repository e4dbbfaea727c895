"""Passes over images without learning: features and scores, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cil.data import ImageSet
from cil.strategy import Strategy

if TYPE_CHECKING:
    from cil.trainer import Place

BATCH = 256


@torch.inference_mode()
def passes(
    strategy: Strategy, data: ImageSet, place: Place, *, flip: bool = False, need_scores: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, D) and scores (B, K) of a set, batch by batch, in eval mode; the features are computed once.

    Args:
        strategy: put into eval mode.
        data: images.
        place: augmentation, device and precision of the run.
        flip: mirror the images first.
        need_scores: False leaves the scores empty (B, 0).
    """
    strategy.eval()
    score = _scorer(strategy) if need_scores else _none
    for start in range(0, len(data), BATCH):
        x = place.augmentation.test(data.gather(slice(start, start + BATCH)).to(place.device))
        x = x.flip(3) if flip else x
        with place.autocast():
            features = strategy.features(x)
            scores = score(x, features)
        yield features.float(), scores.float()


def _scorer(strategy: Strategy) -> Callable[[Tensor, Tensor], Tensor]:
    """What scores images (B, C, H, W) with features (B, D) -> (B, K)."""
    # forward() may do more than score the features; only the inherited one is known to split in two.
    if type(strategy).forward is not Strategy.forward:
        return lambda x, features: strategy(x)
    score = strategy.scorer()
    return lambda x, features: score(features)


def _none(x: Tensor, features: Tensor) -> Tensor:
    return features.new_empty(len(x), 0)


def features_of(strategy: Strategy, data: ImageSet, place: Place, *, flip: bool = False) -> Tensor:
    """The current features of a set of images, without augmentation: (N, D) on the run's device."""
    return torch.cat([features for features, _ in passes(strategy, data, place, flip=flip, need_scores=False)])
