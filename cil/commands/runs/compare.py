"""Compare finished runs at equal memory: ``cil compare runs/... --out report [--strict]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.compare.comparison import compare
from cil.compare.fairness import findings
from cil.compare.report_folder import PAGE, ReportFolder
from cil.compare.tables import terminal
from cil.shown import Terminal


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Compare finished runs at equal memory.")
    made.add_argument("runs", nargs="+", help="run folders, result files, or folders that are searched for them")
    made.add_argument("--out", required=True, type=Path, help="folder of the report: new, empty or a former report")
    made.add_argument("--strict", action="store_true", help="exit with status 1 if a check of fairness finds a problem")
    made.add_argument("--evaluator", help="compare by this evaluator instead of each method's own")
    return made


def main(argv: Sequence[str], program: str = "cil compare") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    folder = ReportFolder(options.out)
    folder.check()
    comparison = compare(options.runs, options.evaluator)
    found = findings(comparison)
    folder.write(comparison, found)
    console = Terminal()
    console.print(terminal(comparison, found))
    console.print(f"written to {folder.path}; open {folder.path / PAGE}", highlight=False, soft_wrap=True)
    return int(options.strict and any(finding.level == "problem" for finding in found))
