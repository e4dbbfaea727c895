"""Pack the results of finished runs into one small file: ``cil pack runs/... --out results/NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.compare.result_files import PACKED, pack
from cil.shown import plain


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Pack the results of finished runs into one small file.")
    made.add_argument("runs", nargs="+", help="run folders, result files, or folders that are searched for them")
    made.add_argument("--out", required=True, type=Path, help=f"the folder in which {PACKED} is written")
    made.add_argument("--overwrite", action="store_true", help="replace one that is there")
    return made


def main(argv: Sequence[str], program: str = "cil pack") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    packed = pack(options.runs, options.out, overwrite=options.overwrite)
    for item in packed.left_out:
        print(plain(f"left out: {item.file}: {item.reason}"))
    print(plain(f"{packed.runs} runs, {packed.size} bytes: {packed.path}"))
    return 0
