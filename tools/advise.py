"""Extend a model, or learn anew? ``python tools/advise.py RUN --data folder:MORE [--old folder:OLD]``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.models import advise

main = functools.partial(advise.main, program="tools/advise.py")

if __name__ == "__main__":
    config.main(main)
