"""Bytes in words: what people write is read, and what tables show is written, in units of 2**20 bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from cil.errors import UserError

MIB = 2**20
UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30}


def mib(n_bytes: float | None, digits: int = 2) -> str:
    """Bytes as a number of MiB, ``7.63``; a dash where there is none."""
    return "-" if n_bytes is None else f"{n_bytes / MIB:.{digits}f}"


def show(n_bytes: int) -> str:
    """Bytes as text, in MiB and exactly: ``7.63 MiB (8001234 bytes)``."""
    return f"{mib(n_bytes)} MiB ({n_bytes} bytes)"


def parse_bytes(value: int | str, option: str = "memory.budget") -> int:
    """Bytes from a number or a text such as ``23.5MiB``, rounded down.

    Raises:
        UserError: it is neither, has a unit other than B, KiB, MiB and GiB, or is not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or isinstance(value, bool):
        raise UserError(f"{option}: {value!r} is no number of bytes; write 7600000, 512KiB or 23.5MiB")
    number, unit = match.groups()
    if unit not in UNITS:
        hint = " Tables of the literature write MB and mean MiB." if unit == "MB" else ""
        raise UserError(f"{option}: {value!r} has the unit '{unit}'; legal: B, KiB, MiB, GiB.{hint}")
    amount = int(Fraction(number) * UNITS[unit])
    if amount <= 0:
        raise UserError(f"{option}: {value!r} must be more than 0")
    return amount
