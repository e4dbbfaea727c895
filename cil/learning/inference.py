"""Passes over images without learning: features and scores, batch by batch."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cil.data.images import ImageSet, gathered, moved, slices
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.machine import distributed
from cil.machine.compute import Flops
from cil.nets import lookup
from cil.nets.folding import Folded
from cil.nets.pretrained import Pretrained

FEW = 8  # images for which folding takes longer than it saves


def batch_size(place: Place) -> int:
    """Images in a pass: as many as a processor's cache holds well, or enough to fill a GPU."""
    if place.device.type != "cpu":
        return 256
    return 128 if place.precision == "bf16-mixed" else 64


@torch.inference_mode()
def passes(
    strategy: Strategy,
    data: ImageSet,
    place: Place,
    *,
    flip: bool = False,
    need_scores: bool = True,
    count: Flops | None = None,
    in_use: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, D) and scores (B, K) of a set, batch by batch, in eval mode; the features are computed once.

    Args:
        strategy: put into eval mode.
        data: images.
        place: augmentation, device and precision of the run.
        flip: mirror the images first.
        need_scores: False leaves the scores empty (B, 0).
        count: counts the operations of the first batch.
        in_use: a finished model answers: its batches pass as they are, without what a run needs so that bits are equal,
            and few images pass without folding, which takes longer than it saves.
    """
    strategy.eval()
    score = _scorer(strategy) if need_scores else _none
    kept = None if flip else _kept(strategy, data, place)
    parts = slices(len(data), batch_size(place))
    lean, nothing = None, contextlib.nullcontext()
    for read in map(kept, parts) if kept else gathered(data, parts):
        if kept:
            x = features = read.to(place.dtype)
        else:
            x = place.augmentation.test(moved(read, place.device)).to(place.dtype)
            x = x.flip(3) if flip else x
            if not in_use or len(data) > FEW:
                lean = lean or _lean(strategy, x, need_scores and not splits(strategy))
        with place.autocast(), lookup.one_size(not in_use), lean() if lean else nothing, count or nothing:
            if not kept:
                features = strategy.features(x)
            scores = score(x, features)
        count = None
        yield features.to(place.dtype), scores.to(place.dtype)


# Whether a strategy stayed the same, by the batches its norms had learned from, the number of folded convolutions, and
# whether its forward was looked at.
_same: weakref.WeakKeyDictionary[Strategy, dict[tuple[int, int, bool], bool]] = weakref.WeakKeyDictionary()


def _lean(strategy: Strategy, x: Tensor, whole: bool) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """In what it gives, a strategy computes with batch normalisation folded into its convolutions.

    Whether it stays what it is, is looked at on the first of some images: a method that takes a network apart may use a
    convolution without what follows it. It is looked at again when norms have learned, since fresh ones do nothing that
    would be missed.

    Args:
        strategy: in eval mode.
        x: images (B, C, H, W).
        whole: look at its ``forward``, too.
    """
    folded = Folded(strategy)
    if not folded.pairs:
        return contextlib.nullcontext
    seen, key = _same.setdefault(strategy, {}), (folded.learned(), len(folded.pairs), whole)
    if key not in seen:

        def looks() -> Tensor:
            parts = [strategy.features(x[:1]), *[strategy(x[:1])] * whole]
            return torch.cat([part.flatten() for part in parts])

        plain = looks()
        with folded.standing_in():
            seen[key] = torch.allclose(looks(), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
    return folded.standing_in if seen[key] else contextlib.nullcontext


def splits(strategy: Strategy) -> bool:
    """Whether scores are known to follow from features alone; a ``forward`` of its own may do more."""
    return type(strategy).forward is Strategy.forward


def _scorer(strategy: Strategy) -> Callable[[Tensor, Tensor], Tensor]:
    """What scores images (B, C, H, W) with features (B, D) -> (B, K)."""
    if not splits(strategy):
        return lambda x, features: strategy(x)
    score = strategy.scorer()
    return lambda x, features: score(features)


def _kept(strategy: Strategy, data: ImageSet, place: Place) -> Callable[[slice], Tensor] | None:
    """What reads features from the cache without a look at the images; None: the images have to pass."""
    features, backbone = lookup.active(), strategy.model.backbone
    plain = splits(strategy) and type(strategy).features is Strategy.features
    if features is None or not plain or not isinstance(backbone, Pretrained) or not backbone.frozen:
        return None
    with place.autocast():
        return features.of_test_images(backbone, data, place.augmentation.test, place.device)


def _none(x: Tensor, features: Tensor) -> Tensor:
    return features.new_empty(len(x), 0)


def features_of(strategy: Strategy, data: ImageSet, place: Place, *, flip: bool = False) -> Tensor:
    """The current features of a set of images, without augmentation: (N, D) on the run's device.

    Several processes share the work, and each gets all features.
    """
    own = distributed.own(data)
    # A process without images of its own looks at one, to know how long features are.
    found = [features for features, _ in passes(strategy, own or data.subset([0]), place, flip=flip, need_scores=False)]
    return distributed.gather(torch.cat(found)[: len(own)])


@torch.inference_mode()
def described(strategy: Strategy, data: ImageSet, place: Place) -> dict[str, Tensor]:
    """What a strategy stores beside some images, {name: (N, W)}, of the images without augmentation, in eval mode.

    Several processes share the work, and each gets all of it.
    """
    strategy.eval()
    own = distributed.own(data)
    # A process without images of its own looks at one, to know the columns.
    looked = own or data.subset([0])
    parts = []
    for read in gathered(looked, slices(len(looked), batch_size(place))):
        with place.autocast(), lookup.one_size():
            parts.append(strategy.describe(place.augmentation.test(moved(read, place.device)).to(place.dtype)))
    found = {name: torch.cat([part[name] for part in parts])[: len(own)] for name in parts[0]}
    return {name: distributed.gather(column) for name, column in found.items()}
