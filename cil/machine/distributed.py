"""Several processes that learn one model: each reads its share of the data, and sums of statistics are exact.

Lightning Fabric starts the processes, or finds those that ``torchrun`` started, and averages gradients
(DistributedDataParallel). With one process nothing of it is imported.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cil.data.images import ImageSet
from cil.errors import UserError

T = TypeVar("T")
WAIT = datetime.timedelta(hours=6)  # for one another: the first process may have features to compute for all
_fabric: Any = None  # of this process, as the process group is


def under_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextlib.contextmanager
def launch(device: torch.device, devices: int, num_nodes: int) -> Iterator[torch.device]:
    """Start the other processes, or join those that were started; in here they work together.

    At the end they wait for one another and part in good order: the threads of a process group that live on when the
    interpreter ends can abort the process. After an error other than a user's nobody waits, since a sum may be
    under way; the process is then to end, which the others are told by the closed connection.

    Args:
        device: of the run.
        devices: processes on this machine.
        num_nodes: machines.

    Yields:
        The device of this process.

    Raises:
        UserError: there are not so many devices, or ``torchrun`` was told another number.
    """
    global _fabric
    if devices < 1 or num_nodes < 1:
        raise UserError(f"devices: {devices}, num_nodes: {num_nodes}: both must be >= 1")
    world = devices * num_nodes
    if under_torchrun():
        told = int(os.environ["WORLD_SIZE"])
        if told != world and world > 1:
            raise UserError(f"devices: torchrun started {told} processes, and devices x num_nodes is {world}")
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = told // devices
    elif num_nodes > 1:
        raise UserError(f"num_nodes: {num_nodes} machines need torchrun to start the command on each of them")
    if devices * num_nodes == 1:
        yield device
        return
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UserError(f"devices: {devices}, and this machine has {torch.cuda.device_count()} GPUs")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"devices: {devices} processes compute on cpu or cuda, not on {device}")
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    if num_nodes == 1:  # the machine's own name may not lead to itself
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if os.path.exists("/sys/class/net/lo") else "")
        if not os.environ["GLOO_SOCKET_IFNAME"]:
            del os.environ["GLOO_SOCKET_IFNAME"]
    # Of a network with several heads a loss may use one; DDP then has to look for those without a gradient.
    strategy = DDPStrategy(find_unused_parameters=True, timeout=WAIT)
    _fabric = Fabric(accelerator=device.type, devices=devices, num_nodes=num_nodes, strategy=strategy)
    _fabric.launch()
    try:
        yield _fabric.device
        wait()
    except UserError:
        _part()
        raise
    _part()


def _part() -> None:
    """End the process group, and its threads with it."""
    global _fabric
    _fabric = None
    dist.destroy_process_group()


def world_size() -> int:
    """Processes that work together; 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to the user, also before :func:`launch`."""
    if dist.is_available() and dist.is_initialized():
        return rank() == 0
    return int(os.environ.get("RANK" if under_torchrun() else "LOCAL_RANK", "0")) == 0


def wait() -> None:
    """Go on when all processes have come here."""
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """In here the first process is alone, and the others come when it has left."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def share(n: int) -> slice:
    """The positions out of n that this process reads: contiguous, the first processes one more where n is uneven."""
    each, rest = divmod(n, world_size())
    start = rank() * each + min(rank(), rest)
    return slice(start, start + each + (rank() < rest))


def own(data: ImageSet) -> ImageSet:
    """The images that this process reads: :func:`share` of them."""
    return data if world_size() == 1 else data.subset(np.arange(len(data))[share(len(data))])


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


def from_first(value: T) -> T:
    """What the first process gives, on each of them."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def fabric() -> Any:
    """What averages gradients over the processes.

    Raises:
        RuntimeError: the process group was not made by :func:`launch`.
    """
    if _fabric is None:
        raise RuntimeError("several processes learn together in distributed.launch, which was not called")
    return _fabric
