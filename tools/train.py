"""Run one class-incremental experiment: ``python tools/train.py --config A.yaml [--config B.yaml] [--key value]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.command.session import train
from scenarios.datasets import load


def main(argv: Sequence[str]) -> int:
    return train(argv, load, program="tools/train.py")


if __name__ == "__main__":
    config.main(main)
