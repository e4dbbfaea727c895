"""Batch normalisation folded into the convolution before it, for passes that learn nothing.

In eval mode batch normalisation is y = a x + b for each channel, so behind a convolution it is the same convolution
with other weights (Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, section 3.2). One operation in place of two, which differs by rounding alone.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cil.nets.pretrained import Pretrained


class Pair(NamedTuple):
    """A convolution whose result goes to a batch normalisation and nowhere else, by the names that its parent has."""

    parent: nn.Module
    conv: str
    norm: str


class Folded:
    """The convolutions of a module in eval mode with batch normalisation folded in, ready to stand in for its own.

    They are copies, made of the weights as they are now. Frozen pretrained parts keep theirs: their features have to be
    those of the cache, bit by bit.

    Args:
        module: whose parts are folded, as far as they can be.
    """

    def __init__(self, module: nn.Module) -> None:
        self.pairs = [pair for part in _parts(module) for pair in pairs(part)]
        self._own = [(parent._modules[conv], parent._modules[norm]) for parent, conv, norm in self.pairs]
        self._folded = [
            fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)) for conv, norm in self._own
        ]
        self._nothing = nn.Identity()

    def learned(self) -> int:
        """Batches that the norms have learned from, added up: as long as it is the same, so are their statistics."""
        counts = [cast(nn.BatchNorm2d, norm).num_batches_tracked for _, norm in self._own]
        return int(torch.stack(cast(list[Tensor], counts)).sum()) if counts else 0

    @contextlib.contextmanager
    def standing_in(self) -> Iterator[None]:
        """In here the module computes with the folded convolutions; before and after it is what it was."""
        try:
            for (parent, conv, norm), folded in zip(self.pairs, self._folded, strict=True):
                parent._modules[conv], parent._modules[norm] = folded, self._nothing
            yield
        finally:
            for (parent, conv, norm), (own_conv, own_norm) in zip(self.pairs, self._own, strict=True):
                parent._modules[conv], parent._modules[norm] = own_conv, own_norm


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all below it, without frozen pretrained ones."""
    if not (isinstance(module, Pretrained) and module.frozen):
        yield module
        for child in module.children():
            yield from _parts(child)


# What following a module's forward has found; it takes longer than folding.
_followed: weakref.WeakKeyDictionary[nn.Module, list[tuple[str, str]]] = weakref.WeakKeyDictionary()


def pairs(parent: nn.Module) -> list[Pair]:
    """The children of a module that can be folded now: plain ones in eval mode, each called once by its ``forward``.

    Where ``forward`` decides by its input, it cannot be followed, and there are none.
    """
    if parent not in _followed:
        _followed[parent] = _follow(parent)
    return [Pair(parent, conv, norm) for conv, norm in _followed[parent] if _foldable(parent, conv, norm)]


class _Calls(fx.Tracer):
    """Follows one module's ``forward`` and none of its children's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _follow(parent: nn.Module) -> list[tuple[str, str]]:
    if not {nn.Conv2d, nn.BatchNorm2d} <= {type(child) for child in parent.children()}:
        return []
    try:
        graph = _Calls().trace(parent)
    except Exception:  # whatever a forward does with input that has no values
        return []
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    found = []
    for conv, nodes in calls.items():
        then = list(nodes[0].users)
        norm = str(then[0].target) if len(then) == 1 else ""
        if len(nodes) == 1 and len(calls.get(norm, ())) == 1 and calls[norm][0] is then[0]:
            found.append((conv, norm))
    return found


def _foldable(parent: nn.Module, conv: str, norm: str) -> bool:
    own, its = parent._modules.get(conv), parent._modules.get(norm)
    if type(own) is not nn.Conv2d or type(its) is not nn.BatchNorm2d or its.running_mean is None:
        return False
    hooks = (own._forward_hooks, own._forward_pre_hooks, its._forward_hooks, its._forward_pre_hooks)
    return not (own.training or its.training or any(hooks))
