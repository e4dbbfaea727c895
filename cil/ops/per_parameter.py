"""A number for each parameter of a network, such as its importance: made, grown, counted and named in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cil.ops.closed_form.statistics import Statistics


class PerParameter(Statistics):
    """Numbers that lie beside the parameters of a network and grow with them: carried, and counted as statistics.

    A parameter ``head.weight`` has its numbers in the buffer ``head/weight``. Where a parameter has grown, as the head
    does by rows for new classes, its old numbers keep their place and those of the rest are 0.
    """

    def grow(self, network: nn.Module) -> None:
        """Make room for parameters, and parts of them, that are new: the others keep every bit."""
        for name, parameter in network.named_parameters():
            key = name.replace(".", "/")
            numbers = torch.zeros_like(parameter, requires_grad=False)
            if key in self._buffers:
                old = self.get_buffer(key)
                if old.shape == numbers.shape:
                    continue
                numbers[tuple(map(slice, old.shape))] = old.to(numbers)
            self.register_buffer(key, numbers)

    def drop(self, classes: Sequence[int]) -> None:
        """Make the numbers beside the rows of these classes in the network's head 0."""
        for key in [key for key in self._buffers if key in ("head/weight", "head/bias")]:
            self.get_buffer(key)[list(classes)] = 0

    def __getitem__(self, name: str) -> Tensor:
        """The numbers of the parameter of this name, as it is shaped."""
        return self.get_buffer(name.replace(".", "/"))

    def beside(self, network: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """(name, parameter, its numbers) for each parameter of the network that requires a gradient."""
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                yield name, parameter, self[name]


def quadratic(network: nn.Module, importance: PerParameter, anchor: PerParameter) -> Tensor:
    """sum over parameters of importance (parameter - anchor)^2: -> ()."""
    parts = [
        (weights * (parameter - anchor[name]).square()).sum() for name, parameter, weights in importance.beside(network)
    ]
    return torch.stack(parts).sum()
