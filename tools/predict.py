"""Ask a model about pictures: ``python tools/predict.py RUN picture.jpg folder/ ...``."""

import functools
import sys
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.commands.models import predict

main = functools.partial(predict.main, program="tools/predict.py")

if __name__ == "__main__":
    config.main(main)
