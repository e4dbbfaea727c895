"""The state of a module: its bytes, and the names of its tensors among others."""

from __future__ import annotations

from torch import Tensor, nn


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def state_bytes(module: nn.Module) -> int:
    """Bytes of a module's ``state_dict``, tensors that are shared counting once."""
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return sum(map(size, tensors.values()))


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under ``prefix/name``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that ``with_prefix`` put under a prefix, by their own names."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
