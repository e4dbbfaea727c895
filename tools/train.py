"""Run one class-incremental experiment: ``python tools/train.py --config A.yaml [--config B.yaml] [--key value]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from cil import config
from cil.session import train
from scenarios.datasets import load


def main(argv: Sequence[str]) -> int:
    return train(argv, load, program="tools/train.py")


if __name__ == "__main__":
    config.main(main)
