"""Print where a run's time went: ``python tools/profile.py RUN_DIR [RUN_DIR ...]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])


from cil.command import config
from cil.errors import UserError
from cil.report import costs
from cil.report.folder import RunFolder
from cil.shown import Terminal


def main(argv: Sequence[str]) -> int:
    parser = config.PlainParser("profile.py", "Print where a run's time went, from its results.json.")
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


if __name__ == "__main__":
    config.main(main)
