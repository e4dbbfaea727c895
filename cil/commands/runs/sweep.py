"""Run a sweep, on this machine or a cluster: ``cil sweep NAME``, ``cil sweep --config sweep.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cil.command import config, recorded
from cil.shown import Terminal
from cil.sweep.command import sweep


def parser(program: str) -> config.PlainParser:
    """What the command takes."""
    made = config.PlainParser(program, "Run methods x budgets x seeds x protocols.")
    made.add_argument("name", nargs="?", help="the sweep of that name, or its file")
    made.add_argument("--config", help="YAML file of the sweep")
    made.add_argument("--workers", type=int, help="processes at a time, instead of what the file says")
    made.add_argument("--engine", default="local", help="local (processes of this machine, the default) or ray")
    made.add_argument("--address", help="of a Ray cluster, such as auto; without it one is started here")
    made.add_argument("--dry-run", "--dry_run", action="store_true", help="list the runs with their commands and stop")
    return made


def main(argv: Sequence[str], program: str = "cil sweep") -> int:
    """Run the command; its exit status."""
    made = parser(program)
    options = made.parse_args(argv)
    given = [file for file in (options.name, options.config) if file is not None]
    if len(given) != 1:
        made.error("a sweep is one file: give its name, or --config and its path")
    try:
        return sweep(
            given[0],
            program=recorded.other(program, "train"),
            console=Terminal(),
            workers=options.workers,
            dry_run=options.dry_run,
            engine=options.engine,
            address=options.address,
        )
    except KeyboardInterrupt:  # while the runs were checked
        print("interrupted; nothing was started", file=sys.stderr)
        return 130
