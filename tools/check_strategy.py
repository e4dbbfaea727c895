"""Check a strategy against the contract: ``python tools/check_strategy.py my_package.mine.Mine [name=value ...]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.testing.checks import report


def main(argv: Sequence[str]) -> int:
    return report(argv)


if __name__ == "__main__":
    config.main(main)
