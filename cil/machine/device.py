"""Where a run computes: its device, and the precision that is chosen for it."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from cil.errors import UserError, unknown

PRECISIONS = ("auto", "32", "bf16-mixed", "16-mixed", "64")
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Flags of /proc/cpuinfo: AVX-512 or AMX on x86, the matrix extension on Arm.
FAST_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
# Of the GNU C library: options of mallopt(3), and their values in bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM, MMAP = 2**31 - 1, 2**26


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors free for the next ones.

    By default the GNU C library gives blocks of some MiB back to the system when they are freed, and gets new ones
    filled with zeros, which costs time (``benchmarks/freed_memory.py``). Blocks from 64 MiB on are still given back.
    Where there is another C library nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, MMAP)
            mallopt(M_TRIM_THRESHOLD, TRIM)


def pick_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is the best one present.

    Raises:
        UserError: torch does not know it or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: '{name}' is not available here: {str(error).splitlines()[0]}") from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of this name; ``auto`` is mixed where the device computes half precision fast, else ``32``.

    Args:
        name: ``auto``, ``32``, ``bf16-mixed``, ``16-mixed`` or ``64``.
        device: where it is for. Of GPUs those of compute capability 8 and more take bfloat16 and older ones, from 7 on,
            float16; of processors those that multiply bfloat16 in hardware take it, as Linux tells.

    Raises:
        UserError: there is none of that name, or the device does not compute it.
    """
    if name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)
    if name == "16-mixed" and device.type != "cuda":
        raise UserError(f"precision: 16-mixed is for NVIDIA GPUs, and the device is {device}; legal: bf16-mixed, 32")
    if name != "auto":
        return name
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)[0]
        return "bf16-mixed" if capability >= 8 else "16-mixed" if capability == 7 else "32"
    return "bf16-mixed" if device.type == "cpu" and _fast_bfloat16() else "32"


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether a processor that does not multiply bfloat16 is asked for it, as far as Linux tells; it may be slow."""
    on_processor = device.type == "cpu" and platform.system() == "Linux"
    return precision == "bf16-mixed" and on_processor and not _fast_bfloat16()


def _fast_bfloat16() -> bool:
    if platform.system() != "Linux":
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    return any(FAST_BFLOAT16 & set(line.split()) for line in lines if line.lower().startswith(("flags", "features")))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Matrix products and convolutions in half precision where the precision is mixed; nothing elsewhere."""
    return torch.autocast(device.type, HALF.get(precision, torch.bfloat16), enabled=precision in HALF)


def dtype_of(precision: str) -> torch.dtype:
    """The type of parameters and inputs: float64 for ``64``, else float32."""
    return torch.float64 if precision == "64" else torch.float32
