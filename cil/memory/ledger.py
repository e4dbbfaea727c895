"""Bytes, measured from the state itself."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor, nn

from cil.memory.exemplars import Exemplars
from cil.strategy import Strategy

MIB = 2**20


class Bytes(TypedDict):
    """What a run carries after a task, in bytes.

    ``strict`` is everything: parameters, buffers, exemplar images and their labels. ``paper`` is the convention of
    Zhou et al., A Model or 603 Exemplars, ICLR 2023: float32 backbone parameters and raw uint8 images; no head, no
    batch statistics.
    """

    parameters: int
    buffers: int
    exemplars: int
    labels: int
    strict: int
    paper: int


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def state_bytes(module: nn.Module) -> tuple[int, int]:
    """Bytes of the parameters and of the persistent buffers in a module's ``state_dict``."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    seen: set[int] = set()
    totals = [0, 0]
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            totals[name not in parameters] += size(tensor)
    return totals[0], totals[1]


def measure(strategy: Strategy, n_exemplars: int, image_bytes: int, label_bytes: int) -> Bytes:
    """The bytes of a strategy's state and of a number of exemplars.

    Args:
        strategy: between tasks; may live on the ``meta`` device.
        n_exemplars: images kept.
        image_bytes: bytes of one image as stored.
        label_bytes: bytes of one label as stored.
    """
    parameters, buffers = state_bytes(strategy)
    backbone = sum(parameter.numel() for parameter in strategy.model.backbone.parameters())
    exemplars, labels = n_exemplars * image_bytes, n_exemplars * label_bytes
    return Bytes(
        parameters=parameters,
        buffers=buffers,
        exemplars=exemplars,
        labels=labels,
        strict=parameters + buffers + exemplars + labels,
        paper=4 * backbone + exemplars,
    )


def measure_run(strategy: Strategy, exemplars: Exemplars) -> Bytes:
    """The bytes that a run carries now."""
    count = len(exemplars)
    image = exemplars.images.nbytes // count if count else 0
    return measure(strategy, count, image, exemplars.labels.itemsize)
