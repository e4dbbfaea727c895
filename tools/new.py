"""Begin a strategy, with its configuration and its test: ``python tools/new.py my_method [--family FOLDER]``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.authors import new

main = functools.partial(new.main, program="tools/new.py")

if __name__ == "__main__":
    config.main(main)
