"""Pack the results of finished runs into one small file: ``python tools/pack.py runs/... --out results/NAME``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.runs import pack

main = functools.partial(pack.main, program="tools/pack.py")

if __name__ == "__main__":
    config.main(main)
