"""Hand on what a run learned: ``python tools/export.py RUN --format onnx,torch,safetensors --out FOLDER``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.models import export

main = functools.partial(export.main, program="tools/export.py")

if __name__ == "__main__":
    config.main(main)
