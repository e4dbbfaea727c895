"""Ask a model about pictures: ``cil predict RUN picture.jpg folder/ ...``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cil.command import config
from cil.deploy.answers import asked, table
from cil.deploy.model import Answer, load
from cil.shown import Terminal


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Ask a model what pictures show.")
    made.add_argument("model", type=Path, help="folder of a run, or a file of Model.save")
    made.add_argument("pictures", nargs="+", type=Path, help="image files, or folders that are searched for them")
    made.add_argument("--top", type=int, default=1, help="classes to name for each picture, the likeliest first")
    made.add_argument("--task", type=int, help="take the state of a run after this task, from 1, instead of the last")
    made.add_argument(
        "--reject",
        type=float,
        help="name a picture unknown that resembles no class; the share of known ones that may be, such as 0.05",
    )
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list on standard output")
    form.add_argument("--csv", action="store_true", help="comma-separated values on standard output")
    return made


def main(argv: Sequence[str], program: str = "cil predict") -> int:
    """Run the command; its exit status."""
    options = parser(program).parse_args(argv)
    answers = asked(load(options.model, task=options.task), options.pictures, options.top, options.reject)
    if options.json:
        told = [{"picture": str(path), "answers": [one._asdict() for one in best]} for path, best in answers]
        print(json.dumps(told, indent=1))
    elif options.csv:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(["picture", "rank", *Answer._fields])
        for path, best in answers:
            out.writerows([path, rank, *one] for rank, one in enumerate(best, start=1))
    else:
        Terminal().print(table(answers))
    return 0
