"""Run one class-incremental experiment: ``cil train NAME ... [--config A.yaml] [--key value]``."""

from __future__ import annotations

from collections.abc import Sequence

from cil.command.names import loader
from cil.command.session import train


def main(argv: Sequence[str], program: str = "cil train") -> int:
    """Run the command; its exit status."""
    return train(argv, loader(), program)
