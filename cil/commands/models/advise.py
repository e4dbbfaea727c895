"""Try to extend a model, and to learn anew: ``cil advise RUN --data folder:MORE [--old folder:OLD]``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cil.command import config
from cil.command.names import loader
from cil.deploy import more
from cil.deploy.model import load
from cil.experiment.progress import Progress
from cil.shown import Terminal
from cil.units import mib
from cil.verbs.advising import Way, ways


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Try ways to a model that knows more classes; nothing is changed.")
    more.arguments(made)
    made.add_argument("--data", required=True, help="the new pictures, as for a run or folder:PATH of classes")
    made.add_argument(
        "--old", help="the pictures that the model was learned from, likewise; without them only extending"
    )
    made.add_argument("--methods", help="strategies to try beside its own, with commas between; else two that suit it")
    made.add_argument("--share", type=float, default=0.2, help="of each class's pictures, held out to judge by")
    made.add_argument("--json", action="store_true", help="a JSON list on standard output")
    return made


def table(tried: Sequence[Way]) -> Table:
    """A row for each way."""
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    out.add_column("way", overflow="fold")
    for name in ("old classes %", "new classes %", "all %", "MiB", "seconds"):
        out.add_column(name, justify="right")
    out.add_column("old pictures")
    for way in tried:
        shares = ("" if share is None else f"{100 * share:.1f}" for share in (way.old, way.new, way.both))
        size = "" if way.bytes is None else mib(way.bytes, 2)
        seconds = "" if way.seconds is None else f"{way.seconds:.1f}"
        out.add_row(way.name, *shares, size, seconds, way.why_not or ("needed" if way.needs_old_data else "not needed"))
    return out


def main(argv: Sequence[str], program: str = "cil advise") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    model, console = load(options.model), Terminal()
    data, old = (
        None if spec is None else more.read(spec, model.blueprint, loader(), root=options.root)
        for spec in (options.data, options.old)
    )
    methods = None if options.methods is None else options.methods.split(",")
    progress = Progress.silent() if options.json else Progress(console)
    tried = list(ways(model, data, old=old, methods=methods, share=options.share, progress=progress))
    if options.json:
        print(json.dumps([dataclasses.asdict(way) for way in tried], indent=1))
    else:
        console.print(table(tried))
    return 0
