"""Write the backbone of a run as weights for another: ``python tools/export.py RUN_DIR --out FILE.safetensors``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.deploy.export import export
from cil.shown import plain
from scenarios.datasets import load


def parser() -> config.PlainParser:
    made = config.PlainParser("export.py", "Write the backbone of a run as weights for another.")
    made.add_argument("run_dir", type=Path, help="folder of the run")
    made.add_argument("--out", required=True, type=Path, help="the .safetensors file to write; new")
    made.add_argument("--task", type=int, help="take the state after this task, from 1, instead of the last")
    made.add_argument("--half", action="store_true", help="store float16 instead of float32")
    return made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    described = export(options.run_dir, options.out, load, task=options.task, half=options.half)
    known = json.loads(described["architecture"])["backbone"]
    n_classes = len(json.loads(described["classes"]))
    print(plain(f"{known} after task {described['task']}, {n_classes} classes: {options.out}"))
    print(plain(f"start from it: --model.backbone {known} --model.weights {options.out} --model.frozen true"))
    return 0


if __name__ == "__main__":
    config.main(main)
