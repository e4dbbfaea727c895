"""How frozen backbones come by features now: looked up or computed, in passes of one size or as a batch comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from cil.data.images import ImageSet


class Features(Protocol):
    """Features that are known already, such as :class:`cil.features.cache.Features`."""

    def look_up(self, backbone: Any, x: Tensor) -> Tensor:
        """The features of images, (B, C, H, W) -> (B, D): those that are known, and the others computed."""
        ...

    def of_test_images(
        self, backbone: Any, data: ImageSet, prepare: Callable[[Tensor], Tensor], device: torch.device
    ) -> Callable[[slice], Tensor] | None:
        """What reads features of test images by their place in a set; None: they are not all known."""
        ...


_ACTIVE: ContextVar[Features | None] = ContextVar("features", default=None)
_ONE_SIZE: ContextVar[bool] = ContextVar("one_size", default=False)


def active() -> Features | None:
    """What frozen backbones look features up in now; None: they compute."""
    return _ACTIVE.get()


@contextlib.contextmanager
def use(features: Features | None) -> Iterator[None]:
    """Inside, frozen backbones look features up here; with None they compute all."""
    token = _ACTIVE.set(features)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def in_one_size() -> bool:
    """Whether frozen backbones compute in passes of one size now."""
    return _ONE_SIZE.get()


@contextlib.contextmanager
def one_size(wanted: bool = True) -> Iterator[None]:
    """Inside, an image has the same features, bit for bit, whatever batch it comes in, as a run and its cache need.

    Passes of one size cost more than a batch that is smaller. Outside, where a finished model predicts, each batch
    passes as it is, and features agree with those of the run within rounding.

    Args:
        wanted: False: inside, batches pass as they are after all.
    """
    token = _ONE_SIZE.set(wanted)
    try:
        yield
    finally:
        _ONE_SIZE.reset(token)
