"""Judge a model by pictures whose classes are known: ``cil evaluate RUN --data folder:TEST --out page``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.command.names import loader
from cil.deploy import more
from cil.deploy.model import load
from cil.shown import Terminal
from cil.verbs import judgement_page


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Judge a model by pictures whose classes are known.")
    more.arguments(made)
    made.add_argument(
        "--data",
        required=True,
        help="as for a run, of which the test images are taken, or folder:PATH with one folder for each class",
    )
    made.add_argument("--out", type=Path, help="folder of the report page: new, empty or a former one")
    made.add_argument("--json", action="store_true", help="all numbers as JSON on standard output")
    return made


def main(argv: Sequence[str], program: str = "cil evaluate") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    if options.out is not None:
        judgement_page.check(options.out)
    model = load(options.model)
    data = more.read(options.data, model.blueprint, loader(), root=options.root, split="test")
    found = model.evaluate(data)
    if options.out is not None:
        judgement_page.write(found, list(model.history), options.out)
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
        return 0
    console = Terminal()
    console.print(f"{found.model}: {100 * found.accuracy:.1f} % of {found.images} pictures", highlight=False)
    for name, share in sorted(found.per_class.items(), key=lambda pair: pair[1])[:5]:
        console.print(f"  {100 * share:5.1f} %  {name}", highlight=False, markup=False)
    if found.calibration:
        console.print(f"calibration error {found.calibration['ece']:.3f}", highlight=False)
    if options.out is not None:
        console.print(f"written to {options.out}; open {options.out / judgement_page.PAGE}", soft_wrap=True)
    return 0
