"""What a task costs beside memory: seconds by phase, floating-point operations, and the peak of the process."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PHASES = ("data", "learning", "selection", "evaluation", "checkpoint", "other")


@dataclass
class Compute:
    """The cost of one task so far, this process's and, after an interruption, that of the one before.

    Attributes:
        seconds: of the wall clock, by phase: ``data`` (batches gathered, decoded, augmented and moved to the device),
            ``learning`` (growing, gradient steps, closed forms, settling), ``selection`` (of exemplars),
            ``evaluation``, ``checkpoint`` and ``other`` (counting bytes and operations). A phase inside another counts
            where it is itself. On a GPU, which works on while the program prepares the next batch, ``data`` is the time
            for which the program was busy, and waiting for the GPU falls into the phase that waits.
        images: on which gradient steps were made.
        training_flops: floating-point operations of the gradient steps, teachers included, and of features extracted
            for closed forms; two for each multiplication with addition. Linear algebra of closed forms is not counted.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    images: int = 0
    training_flops: float = 0.0
    _inside: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent in here belongs to this phase, except for what an inner phase takes.

        Args:
            name: out of ``PHASES``.
        """
        self._charge()
        self._inside.append(name)
        try:
            yield
        finally:
            self._charge()
            self._inside.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def state(self) -> dict[str, Any]:
        """What a checkpoint inside the task keeps, as JSON values."""
        self._charge()
        return {"seconds": dict(self.seconds), "images": self.images, "training_flops": self.training_flops}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.seconds.update(state["seconds"])
        self.images, self.training_flops = state["images"], state["training_flops"]


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention in here, in ``total``.

    By the formulas of ``torch.utils.flop_counter``, whose own counter imports torch's compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and to say so torch would import its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # an operation made of others counts as those
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Most bytes held at once: by this process so far, and on its GPU since :func:`reset_peak`.

    Returns:
        ``process``: the peak of resident memory, None where the system does not tell; ``device``: None without a GPU.
    """
    try:
        import resource
    except ImportError:  # Windows
        process = None
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        process = peak if sys.platform == "darwin" else 1024 * peak
    return {
        "process": process,
        "device": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def reset_peak(device: torch.device) -> None:
    """Start to watch the peak of a GPU's memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
