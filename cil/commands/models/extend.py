"""Teach a model more classes: ``cil extend RUN --data folder:MORE``."""

from __future__ import annotations

from collections.abc import Sequence

from cil.command import config
from cil.command.names import loader
from cil.deploy import more
from cil.deploy.changing import InUse
from cil.deploy.model import Model, load
from cil.experiment.progress import Progress
from cil.shown import Terminal
from cil.verbs import extension


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Teach a model more classes, from its state and the new pictures alone.")
    more.arguments(made, changes=True)
    made.add_argument("--data", required=True, help="as for a run, or folder:PATH with one folder for each class")
    made.add_argument("--dry-run", "--dry_run", action="store_true", help="say what it will do, and stop")
    return made


def main(argv: Sequence[str], program: str = "cil extend") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    place, console = InUse(options.model, options.out), Terminal()
    with place.held():
        model = load(options.model)
        data = more.read(options.data, model.blueprint, loader(), root=options.root)
        planned = extension.plan(model, data)
        for line in planned.told():
            console.print(line, highlight=False, soft_wrap=True)
        if options.dry_run:
            return 0
        state = planned.learn(folder=place.meanwhile(planned.origin.fingerprint), every=10, progress=Progress(console))
        place.write(state)
    made = Model(state, model.place.device)
    console.print(f"{made}; written to {place.target}", highlight=False, soft_wrap=True)
    return 0
