"""Show what calibrated prototypes changed: ``cil calibration RUN_DIR --out FOLDER``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.command.names import loader
from cil.deploy import calibration
from cil.deploy.finished import reopen
from cil.shown import plain


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Show what calibrated prototypes changed in a finished few-shot run.")
    made.add_argument("run_dir", type=Path, help="folder of the run, of TEEN or another method that calibrates")
    made.add_argument("--out", type=Path, help="folder for the figure and the table; the run's own by default")
    made.add_argument("--task", type=int, help="take the state after this task, from 1, instead of the last")
    return made


def main(argv: Sequence[str], program: str = "cil calibration") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    found = calibration.measure(reopen(options.run_dir, loader(), task=options.task))
    written = calibration.write(found, options.out or options.run_dir)
    print(plain("\n".join([*calibration.lines(found), "written to " + " and ".join(map(str, written))])))
    return 0
