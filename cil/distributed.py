"""Several processes that learn one model: each reads its share of the data, and sums of statistics are exact."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes that work together; 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def share(n: int) -> slice:
    """The positions out of n that this process reads: contiguous, the first processes one more where n is uneven."""
    each, rest = divmod(n, world_size())
    start = rank() * each + min(rank(), rest)
    return slice(start, start + each + (rank() < rest))


def sum_(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place; each then holds the same sum."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of :func:`share`, on each of them: (n, ...) -> (N, ...)."""
    if world_size() == 1:
        return tensor
    lengths = [0] * world_size()
    dist.all_gather_object(lengths, len(tensor))
    rows = [tensor.new_empty(length, *tensor.shape[1:]) for length in lengths]
    for owner, part in enumerate(rows):
        if owner == rank():
            part.copy_(tensor)
        dist.broadcast(part, owner)
    return torch.cat(rows)
