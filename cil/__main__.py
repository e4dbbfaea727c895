"""The program ``cil`` as ``python -m cil``, and as a file that another process is started with."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Neither the current folder nor this one, whose names are usual ones, comes before what Python itself has.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from cil.commands.entry import main

    main()
