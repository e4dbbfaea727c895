"""Check a strategy against the contract: ``python tools/check_strategy.py my_package.mine.Mine [name=value ...]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cil import config
from cil.checks import report


def main(argv: Sequence[str]) -> int:
    return report(argv)


if __name__ == "__main__":
    config.main(main)
