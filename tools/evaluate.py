"""Judge a model by pictures whose classes are known: ``python tools/evaluate.py RUN --data folder:TEST --out page``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.models import evaluate

main = functools.partial(evaluate.main, program="tools/evaluate.py")

if __name__ == "__main__":
    config.main(main)
