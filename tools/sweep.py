"""Run a sweep, on this machine or a cluster: ``python tools/sweep.py --config sweep.yaml``; see ``docs/sweeps.md``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.runs import sweep

main = functools.partial(sweep.main, program="tools/sweep.py")

if __name__ == "__main__":
    config.main(main)
