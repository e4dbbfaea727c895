"""Where frozen backbones look features up now: nowhere, or what a run has opened for them."""

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
