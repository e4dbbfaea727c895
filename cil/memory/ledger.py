"""Bytes, measured from the state itself: by category, in two conventions, for training and for inference."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cil.learning.state import size
from cil.learning.strategy import Strategy
from cil.memory.exemplars import LABEL_BYTES, Exemplars
from cil.nets import lookup
from cil.nets.heads import CosineHead, LinearHead
from cil.ops.closed_form.statistics import Statistics

# What is carried, by what it is for: categories of the state, and of what is stored of the data. They sum to strict.
STATE = ("backbone", "head", "normalisation", "statistics")
STORED = ("exemplars", "labels", "columns", "lengths")


class Bytes(TypedDict):
    """What a run carries after a task, in bytes.

    The state in one way: ``parameters`` and ``buffers``. In another: ``backbone``, parameters of networks; ``head``,
    all of the heads; ``normalisation``, buffers of networks; ``statistics``, what the strategy holds itself, such as
    means, covariances, Gram matrices and prompts. The exemplars: ``exemplars``, images as stored; their ``labels``; the
    ``columns`` of numbers, such as logits, that are stored beside them; the ``lengths`` of images that are stored in a
    file format.

    ``strict`` is everything. ``paper`` is the convention of Zhou et al., A Model or 603 Exemplars, ICLR 2023: float32
    backbone parameters and stored images; no head, no batch statistics.
    """

    parameters: int
    buffers: int
    backbone: int
    head: int
    normalisation: int
    statistics: int
    exemplars: int
    labels: int
    columns: int
    lengths: int
    strict: int
    paper: int


def counted(measured: Bytes, convention: str) -> int:
    """The total in the convention ``strict`` or ``paper``."""
    return measured["strict"] if convention == "strict" else measured["paper"]


def measure(
    strategy: Strategy, n_exemplars: int, exemplar_bytes: int, length_bytes: int = 0, column_bytes: int = 0
) -> Bytes:
    """The bytes of a strategy's state and of its exemplars.

    Args:
        strategy: between tasks; may live on the ``meta`` device.
        n_exemplars: images kept.
        exemplar_bytes: of all of them together, as stored.
        length_bytes: for each, to say where it ends.
        column_bytes: of all that is stored beside them.
    """
    heads = {id(part) for module in strategy.modules() if _is_head(module, strategy) for part in module.modules()}
    owners = dict(strategy.named_modules(remove_duplicate=False))
    met: set[int] = set()
    parameters = buffers = float32 = 0
    own = dict.fromkeys(STATE, 0)
    for name, tensor in strategy.state_dict(keep_vars=True).items():
        if id(tensor) in met:  # shared between modules: stored once
            continue
        met.add(id(tensor))
        owner = owners[name.rpartition(".")[0]]
        learned = isinstance(tensor, nn.Parameter)
        if id(owner) in heads or (isinstance(owner, Statistics) and name.rpartition(".")[2] in owner.head_buffers):
            category = "head"
        elif owner is strategy or isinstance(owner, Statistics):
            category = "statistics"
        else:
            category = "backbone" if learned else "normalisation"
        own[category] += size(tensor)
        float32 += 4 * tensor.numel() * (category == "backbone")
        parameters += size(tensor) * learned
        buffers += size(tensor) * (not learned)
    state = Bytes(
        parameters=parameters,
        buffers=buffers,
        backbone=own["backbone"],
        head=own["head"],
        normalisation=own["normalisation"],
        statistics=own["statistics"],
        exemplars=0,
        labels=0,
        columns=0,
        lengths=0,
        strict=parameters + buffers,
        paper=float32,
    )
    return with_exemplars(state, n_exemplars, exemplar_bytes, length_bytes, column_bytes)


def with_exemplars(
    state: Bytes, n_exemplars: int, exemplar_bytes: int, length_bytes: int = 0, column_bytes: int = 0
) -> Bytes:
    """The bytes of a state that was measured without exemplars, and of exemplars beside it.

    Args:
        state: its bytes.
        n_exemplars: images kept.
        exemplar_bytes: of all of them together, as stored.
        length_bytes: for each, to say where it ends.
        column_bytes: of all that is stored beside them.
    """
    both = state.copy()
    both["exemplars"] = exemplar_bytes
    both["labels"] = n_exemplars * LABEL_BYTES
    both["columns"] = column_bytes
    both["lengths"] = n_exemplars * length_bytes
    both["strict"] += both["exemplars"] + both["labels"] + both["columns"] + both["lengths"]
    both["paper"] += both["exemplars"]
    return both


def measure_run(strategy: Strategy, exemplars: Exemplars) -> Bytes:
    """The bytes that a run carries now."""
    lengths = exemplars.codec.length_bytes
    return measure(strategy, len(exemplars), exemplars.image_bytes, lengths, exemplars.column_bytes)


class _Reads(TorchDispatchMode):
    """Notes the storage of every tensor that an operation takes."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled under it, and to say so torch would import its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self.storages.add(value.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


def inference_bytes(strategy: Strategy, x: Tensor, *, n_means: int = 0) -> int:
    """Bytes that predicting needs: the part of the state that a pass over a batch reads, and class means.

    Args:
        strategy: between tasks.
        x: a batch of network input (B, C, H, W).
        n_means: class means to compare features with, in place of the scores; 0: the scores are used.
    """
    with _Reads() as reads, torch.no_grad(), lookup.use(None):
        found = strategy.features(x) if n_means else strategy(x)
    used = {
        id(tensor): tensor
        for tensor in strategy.state_dict(keep_vars=True).values()
        if tensor.untyped_storage().data_ptr() in reads.storages
    }
    return sum(map(size, used.values())) + n_means * found.shape[1] * found.element_size()


def _is_head(module: nn.Module, strategy: Strategy) -> bool:
    return isinstance(module, (LinearHead, CosineHead)) or module is strategy.model.head
