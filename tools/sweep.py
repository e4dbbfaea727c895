"""Run a sweep, on this machine or a cluster: ``python tools/sweep.py --config sweep.yaml``; see ``docs/sweeps.md``."""

import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed; and this folder, whose profile.py would hide that of Python, is left out.
sys.path[0] = str(Path(__file__).resolve().parents[1])


from cil.command import config
from cil.shown import Terminal
from cil.sweep.command import sweep


def main(argv: Sequence[str]) -> int:
    parser = config.PlainParser("sweep.py", "Run methods x budgets x seeds x protocols.")
    parser.add_argument("--config", required=True, help="YAML file of the sweep")
    parser.add_argument("--workers", type=int, help="processes at a time, instead of what the file says")
    parser.add_argument("--engine", default="local", help="local (processes of this machine, the default) or ray")
    parser.add_argument("--address", help="of a Ray cluster, such as auto; without it one is started here")
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="list the runs with their commands and stop"
    )
    options = parser.parse_args(argv)
    train = Path(__file__).resolve().with_name("train.py")
    try:
        return sweep(
            options.config,
            program=train,
            console=Terminal(),
            workers=options.workers,
            dry_run=options.dry_run,
            engine=options.engine,
            address=options.address,
        )
    except KeyboardInterrupt:  # while the runs were checked
        print("interrupted; nothing was started", file=sys.stderr)
        return 130


if __name__ == "__main__":
    config.main(main)
