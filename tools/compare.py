"""Compare finished runs at equal memory: ``python tools/compare.py runs/... --out report [--strict]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from rich.console import Console

from cil import config
from cil.compare.comparison import compare
from cil.compare.fairness import findings
from cil.compare.report_folder import PAGE, ReportFolder
from cil.compare.tables import terminal
from cil.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse's parser with errors of one paragraph."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. {' '.join(self.format_usage().split())}")


def parser() -> Parser:
    made = Parser(prog="compare.py", allow_abbrev=False, description="Compare finished runs at equal memory.")
    made.add_argument("runs", nargs="+", help="run folders, result files, or folders that are searched for them")
    made.add_argument("--out", required=True, type=Path, help="folder of the report: new, empty or a former report")
    made.add_argument("--strict", action="store_true", help="exit with status 1 if a check of fairness finds a problem")
    made.add_argument("--evaluator", help="compare by this evaluator instead of each method's own")
    return made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    folder = ReportFolder(options.out)
    folder.check()
    comparison = compare(options.runs, options.evaluator)
    found = findings(comparison)
    folder.write(comparison, found)
    console = Console()
    console.print(terminal(comparison, found))
    console.print(f"written to {folder.path}; open {folder.path / PAGE}", highlight=False, soft_wrap=True)
    return int(options.strict and any(finding.level == "problem" for finding in found))


if __name__ == "__main__":
    config.main(main)
