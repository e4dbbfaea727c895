"""Bytes before any training.

``python tools/memory.py plan --config A.yaml ...`` takes the options of ``train.py`` and prints what a run will carry
after each task; ``python tools/memory.py table`` prints the numbers of exemplars at which methods are equal in bytes.
"""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.runs import memory

main = functools.partial(memory.main, program="tools/memory.py")

if __name__ == "__main__":
    config.main(main)
