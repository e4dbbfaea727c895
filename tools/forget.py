"""Make a model forget classes or pictures: ``python tools/forget.py RUN --class cat``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.models import forget

main = functools.partial(forget.main, program="tools/forget.py")

if __name__ == "__main__":
    config.main(main)
