"""Print where a run's time went: ``cil profile RUN_DIR [RUN_DIR ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.errors import UserError
from cil.report import costs
from cil.report.folder import RunFolder
from cil.shown import Terminal


def main(argv: Sequence[str], program: str = "cil profile") -> int:
    """Run the command; its exit status."""
    parser = config.PlainParser(program, "Print where a run's time went, from its results.json.")
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a run")
    console = Terminal()
    if not console.is_terminal:
        console.width = 140  # a file has no edge
    for path in parser.parse_args(argv).run_dirs:
        content = RunFolder(path).results()
        if content is None:
            raise UserError(f"{path}: there is no results.json; give the folder of a run")
        console.print(costs.profile(content, str(path)))
    return 0
