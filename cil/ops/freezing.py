"""The one way to freeze: turn off the gradient. What has no gradient stays in eval mode, batch statistics included."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Stop learning the module's parameters; the trainer then also keeps its batch statistics as they are."""
    return module.requires_grad_(False).eval()


def frozen_copy(module: M) -> M:
    """A copy that never changes: a teacher."""
    return freeze(copy.deepcopy(module))


def train_mode(module: nn.Module) -> None:
    """Put a module into training mode, except the subtrees whose parameters are all frozen: those go into eval mode."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    module.training = True
    for child in module.children():
        train_mode(child)
