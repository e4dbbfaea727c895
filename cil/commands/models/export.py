"""Hand on what a run learned: ``cil export RUN --format onnx,torch,safetensors --out FOLDER``.

Without ``--format`` its backbone alone is written for another run: ``cil export RUN --out FILE.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.command.names import loader
from cil.deploy.export import export
from cil.deploy.hand_on import targets
from cil.deploy.model import load
from cil.errors import UserError
from cil.shown import plain
from cil.units import show


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Write what a run learned as files for other programs, or for another run.")
    made.add_argument("run", type=Path, help="folder of the run, or with --format a file of Model.save")
    made.add_argument("--out", required=True, type=Path, help="with --format a folder, else a .safetensors file; new")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--format", help="hand on the whole model: onnx, torch, safetensors, with commas between them")
    what.add_argument(
        "--backbone", action="store_true", help="write its weights for another run; also without --format"
    )
    made.add_argument("--task", type=int, help="take the state after this task, from 1, instead of the last")
    made.add_argument("--half", action="store_true", help="of a backbone: store float16 instead of float32")
    return made


def main(argv: Sequence[str], program: str = "cil export") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    if options.format is None:
        return backbone(options.run, options.out, options.task, options.half)
    if options.half:
        raise UserError("--half is for --backbone; a whole model keeps its precision")
    paths = targets(options.format, options.out)
    model = load(options.run, task=options.task, device="cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if path.suffix == ".safetensors":
            model.save(path)
            print(plain(f"{path}: {show(path.stat().st_size)}, all of the state; cil.load reads it"))
            continue
        done = model.export(path)
        told = f"{path}: {show(done.bytes)}, largest difference of a score {done.difference:.1e}"
        own = f" (to the model in {model.place.precision}: {done.own_difference:.1e})"
        print(plain(told + own * (model.place.precision != "32")))
    return 0


def backbone(run: Path, out: Path, task: int | None, half: bool) -> int:
    """Write the backbone alone."""
    described = export(run, out, loader(), task=task, half=half)
    known = json.loads(described["architecture"])["backbone"]
    n_classes = len(json.loads(described["classes"]))
    print(plain(f"{known} after task {described['task']}, {n_classes} classes: {out}"))
    print(plain(f"start from it: --model.backbone {known} --model.weights {out} --model.frozen true"))
    return 0
