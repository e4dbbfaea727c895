"""The folder of a report: checked before any work, written after all of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cil.compare.comparison import Comparison
from cil.compare.fairness import Finding
from cil.compare.figures import figures
from cil.compare.page import GENERATOR, page
from cil.compare.tables import MARK, as_csv, as_json
from cil.errors import UserError
from cil.files import write_atomic

PAGE, DATA = "index.html", "comparison.json"
FILES = (PAGE, "memory_curve.png", "task_curves.png", "ledger.png", "confusion.png", "comparison.csv", DATA)


class ReportFolder:
    """Where a report goes.

    Args:
        path: a new or empty folder, or one that holds a former report.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Refuse a place that holds anything but a report.

        Raises:
            UserError: the path is a file, or a folder with other things in it.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"--out: {self.path} is a file; name a folder")
        names = sorted(os.listdir(self.path))
        other = [name for name in names if name not in (*FILES, *(f".{name}.part" for name in FILES))]
        if other:
            raise UserError(
                f"--out: {self.path} holds something else than a report ({', '.join(other[:3])}); name another"
            )
        if any(name in FILES for name in names) and not self._is_report():
            raise UserError(f"--out: what is in {self.path} was not written as a report; name another folder")

    def _is_report(self) -> bool:
        try:
            if (self.path / DATA).exists():
                return bool(json.loads((self.path / DATA).read_bytes()).get("report") == MARK)
            # Without its data it is one that was interrupted while it was written.
            with open(self.path / PAGE, encoding="utf-8") as file:
                return f'name="generator" content="{GENERATOR}"' in file.read(2000)
        except (OSError, ValueError, AttributeError):
            return False

    def write(self, comparison: Comparison, findings: list[Finding]) -> None:
        """Write all files, each whole or not at all; ``comparison.json`` comes last, so where it is all are there.

        Raises:
            UserError: the folder cannot be written.
        """
        contents = {
            PAGE: page(comparison, findings).encode(),
            **{f"{name}.png": png for name, png in figures(comparison).items()},
            "comparison.csv": as_csv(comparison).encode(),
            DATA: json.dumps(as_json(comparison, findings), indent=1, allow_nan=False).encode(),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / DATA).unlink(missing_ok=True)
            for name in FILES:
                write_atomic(self.path / name, contents[name])
        except OSError as error:
            raise UserError(f"--out: {self.path}: {error.strerror}") from error
