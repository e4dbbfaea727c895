"""Passes over images without learning: features and scores, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
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
    # forward() may do more than score the features; only the inherited one is known to split in two.
    splits = type(strategy).forward is Strategy.forward
    score = strategy.scorer() if need_scores and splits else None
    for start in range(0, len(data), BATCH):
        x = place.augmentation.test(data.gather(slice(start, start + BATCH)).to(place.device))
        x = x.flip(3) if flip else x
        with place.autocast():
            features = strategy.features(x)
            if score:
                scores = score(features)
            else:
                scores = strategy(x) if need_scores else features.new_empty(len(x), 0)
        yield features.float(), scores.float()


def features_of(strategy: Strategy, data: ImageSet, place: Place, *, flip: bool = False) -> Tensor:
    """The current features of a set of images, without augmentation: (N, D) on the run's device."""
    return torch.cat([features for features, _ in passes(strategy, data, place, flip=flip, need_scores=False)])
