"""Show what calibrated prototypes changed: ``python tools/calibration.py RUN_DIR --out FOLDER``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.deploy import calibration
from cil.deploy.finished import reopen
from cil.shown import plain
from scenarios.datasets import load


def parser() -> config.PlainParser:
    made = config.PlainParser("calibration.py", "Show what calibrated prototypes changed in a finished few-shot run.")
    made.add_argument("run_dir", type=Path, help="folder of the run, of TEEN or another method that calibrates")
    made.add_argument("--out", type=Path, help="folder for the figure and the table; the run's own by default")
    made.add_argument("--task", type=int, help="take the state after this task, from 1, instead of the last")
    return made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    found = calibration.measure(reopen(options.run_dir, load, task=options.task))
    written = calibration.write(found, options.out or options.run_dir)
    print(plain("\n".join([*calibration.lines(found), "written to " + " and ".join(map(str, written))])))
    return 0


if __name__ == "__main__":
    config.main(main)
