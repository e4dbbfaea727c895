"""Run one class-incremental experiment: ``python tools/train.py --config A.yaml [--config B.yaml] [--key value]``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.runs import train

main = functools.partial(train.main, program="tools/train.py")

if __name__ == "__main__":
    config.main(main)
