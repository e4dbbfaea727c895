"""Write the backbone of a run as weights for another: ``cil export RUN_DIR --out FILE.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.command.names import loader
from cil.deploy.export import export
from cil.shown import plain


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Write the backbone of a run as weights for another.")
    made.add_argument("run_dir", type=Path, help="folder of the run")
    made.add_argument("--out", required=True, type=Path, help="the .safetensors file to write; new")
    made.add_argument("--task", type=int, help="take the state after this task, from 1, instead of the last")
    made.add_argument("--half", action="store_true", help="store float16 instead of float32")
    return made


def main(argv: Sequence[str], program: str = "cil export") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    described = export(options.run_dir, options.out, loader(), task=options.task, half=options.half)
    known = json.loads(described["architecture"])["backbone"]
    n_classes = len(json.loads(described["classes"]))
    print(plain(f"{known} after task {described['task']}, {n_classes} classes: {options.out}"))
    print(plain(f"start from it: --model.backbone {known} --model.weights {options.out} --model.frozen true"))
    return 0
