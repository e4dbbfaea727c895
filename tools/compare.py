"""Compare finished runs at equal memory: ``python tools/compare.py runs/... --out report [--strict]``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.runs import compare

main = functools.partial(compare.main, program="tools/compare.py")

if __name__ == "__main__":
    config.main(main)
