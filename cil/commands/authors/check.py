"""Check a strategy against the contract: ``cil check my_method [name=value ...]``."""

from __future__ import annotations

from collections.abc import Sequence

from cil.testing.checks import report


def main(argv: Sequence[str], program: str = "cil check") -> int:
    """Run the command; its exit status."""
    return report(argv, program)
