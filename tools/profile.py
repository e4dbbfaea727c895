"""Print where a run's time went: ``python tools/profile.py RUN_DIR [RUN_DIR ...]``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.runs import profile

main = functools.partial(profile.main, program="tools/profile.py")

if __name__ == "__main__":
    config.main(main)
