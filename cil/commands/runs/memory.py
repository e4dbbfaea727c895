"""Tell bytes before any training: ``cil memory plan NAME ...``, ``cil memory table``.

``plan`` takes the options of a run and prints what it will carry after each task; ``table`` prints the numbers of
exemplars at which methods are equal in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from cil.command.names import loader
from cil.command.session import memory


def main(argv: Sequence[str], program: str = "cil memory") -> int:
    """Run the command; its exit status."""
    return memory(argv, loader(), program)
