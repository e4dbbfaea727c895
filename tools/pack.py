"""Pack the results of finished runs into one small file: ``python tools/pack.py runs/... --out results/NAME``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.compare.result_files import PACKED, pack
from cil.shown import plain


def parser() -> config.PlainParser:
    made = config.PlainParser("pack.py", "Pack the results of finished runs into one small file.")
    made.add_argument("runs", nargs="+", help="run folders, result files, or folders that are searched for them")
    made.add_argument("--out", required=True, type=Path, help=f"the folder in which {PACKED} is written")
    made.add_argument("--overwrite", action="store_true", help="replace one that is there")
    return made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    packed = pack(options.runs, options.out, overwrite=options.overwrite)
    for item in packed.left_out:
        print(plain(f"left out: {item.file}: {item.reason}"))
    print(plain(f"{packed.runs} runs, {packed.size} bytes: {packed.path}"))
    return 0


if __name__ == "__main__":
    config.main(main)
