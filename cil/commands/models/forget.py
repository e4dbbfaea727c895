"""Make a model forget classes or pictures: ``cil forget RUN --class cat``."""

from __future__ import annotations

from collections.abc import Sequence

from cil.command import config
from cil.command.names import loader
from cil.deploy import more
from cil.deploy.changing import InUse
from cil.deploy.model import load
from cil.shown import Terminal
from cil.verbs.forgetting import done_before


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Make a model forget classes, or pictures; ids of other classes stay.")
    more.arguments(made, changes=True)
    made.add_argument("--class", dest="classes", action="append", default=[], help="a class to forget; may be repeated")
    made.add_argument(
        "--images",
        help="pictures to take out, as --data of extend.py: of those classes all that were learned, else single ones",
    )
    return made


def main(argv: Sequence[str], program: str = "cil forget") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    place, console = InUse(options.model, options.out), Terminal()
    with place.held():
        model = load(options.model)
        images = None
        if options.images is not None:
            images = more.read(options.images, model.blueprint, loader(), root=options.root)
        made = model
        if not done_before(model, options.classes, images):
            made = model.forget(options.classes, images=images)
            place.write(made.state())
        removed = place.purge(made.state())
    told = made.history[-1]
    lines = [
        f"{made}; written to {place.target}",
        f"{told['exemplars_removed']} exemplars removed; what remains: {'; '.join(told['remains']) or 'nothing'}",
    ]
    if removed:
        lines.append(f"{removed} states of the run that held what was forgotten are gone; it cannot be resumed now")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    return 0
