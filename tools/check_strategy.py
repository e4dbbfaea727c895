"""Check a strategy against the contract: ``python tools/check_strategy.py my_package.mine.Mine [name=value ...]``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.authors import check

main = functools.partial(check.main, program="tools/check_strategy.py")

if __name__ == "__main__":
    config.main(main)
