"""Tensors that grow with the classes."""

from __future__ import annotations

from torch import Tensor


def extended(tensor: Tensor, n: int, dim: int = 0) -> Tensor:
    """The tensor followed by n zeros along a dimension.

    ``torch.cat`` would do it; but on the meta device, where strategies are grown to be planned, its first call imports
    torch's compiler, which takes as long as importing torch.
    """
    shape = list(tensor.shape)
    shape[dim] += n
    out = tensor.new_zeros(shape)
    out.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return out
