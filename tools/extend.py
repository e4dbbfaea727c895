"""Teach a model more classes: ``python tools/extend.py RUN --data folder:MORE``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from cil.command import config
from cil.deploy import more
from cil.deploy.changing import InUse
from cil.deploy.model import Model, load
from cil.experiment.progress import Progress
from cil.shown import Terminal
from cil.verbs import extension
from scenarios import datasets


def parser() -> config.PlainParser:
    made = config.PlainParser("extend.py", "Teach a model more classes, from its state and the new pictures alone.")
    made.add_argument("model", type=Path, help="folder of a run, or a file of Model.save")
    made.add_argument("--data", required=True, help="as for a run, or folder:PATH with one folder for each class")
    made.add_argument("--root", default="data", help="where downloaded data sets are kept")
    made.add_argument("--out", type=Path, help="new file for the new model; without it, it takes the place of the old")
    made.add_argument("--dry-run", "--dry_run", action="store_true", help="say what it will do, and stop")
    return made


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    place, console = InUse(options.model, options.out), Terminal()
    with place.held():
        model = load(options.model)
        data = more.read(options.data, model.blueprint, datasets.load, root=options.root)
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


if __name__ == "__main__":
    config.main(main)
