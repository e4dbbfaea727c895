"""One run from the command line to its folder: parse, check, plan, learn, write."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from cil import config as cfg
from cil.data import Dataset
from cil.errors import UserError
from cil.evaluation import report
from cil.experiment import Experiment, plan
from cil.folder import RunFolder
from cil.memory.exemplars import Exemplars
from cil.progress import MIB, Progress
from cil.resume import Record
from cil.run import run
from cil.strategy import Strategy
from cil.trainer import DivergedError


def train(argv: Sequence[str], load: Callable[..., Dataset], program: str) -> int:
    """Run the experiment that a command line describes.

    Args:
        argv: arguments without the program's name.
        load: ``scenarios.datasets.load``.
        program: name of the program, for the recorded command.

    Returns:
        Exit status: 0, or 1 when the training diverged.

    Raises:
        UserError: a mistake on the command line or in a file; nothing was changed.
    """
    console = Console()
    parser, config = cfg.parse(argv, Path(program).name)
    experiment = cfg.instantiate(parser, config, load)
    experiment.check()
    # What is kept can be run again without continuing or replacing anything.
    kept = config.clone()
    kept.resume = kept.overwrite = kept.dry_run = False
    text = parser.dump(kept, skip_unset=False)
    resolved = yaml.safe_load(text)
    if config.dry_run:
        console.print(plan_table(experiment))
        return 0
    folder = RunFolder(Path(config.run_dir or default_folder(resolved)))
    folder.check(resolved, resume=config.resume, overwrite=config.overwrite)
    before = folder.results()
    if config.resume and before and before["status"] == "complete":
        console.print(report.terminal(before))
        console.print(f"{folder.path} is complete; nothing to do", highlight=False, soft_wrap=True)
        return 0
    folder.open(text, overwrite=config.overwrite)
    console.print(
        f"{experiment.scenario.name} in {folder.path}, device {experiment.device}", highlight=False, soft_wrap=True
    )
    return _train(experiment, folder, resolved, cfg.command(argv, program), console, resume=config.resume)


def _train(
    experiment: Experiment,
    folder: RunFolder,
    config: dict[str, Any],
    command: str,
    console: Console,
    *,
    resume: bool,
) -> int:
    fixed = {
        "schema": report.SCHEMA,
        "command": command,
        "config": config,
        "seeds": {**vars(experiment.seeds), "class_order": config["scenario"]["init_args"].get("order")},
        **report.environment(experiment),
        "started": _now(),
    }

    def write(status: str, records: list[Record], **more: Any) -> dict[str, Any]:
        content = {**fixed, "status": status, **report.results(experiment, records), **more}
        folder.write(content)
        return content

    done: list[Record] = []

    def on_task(records: list[Record], strategy: Strategy, exemplars: Exemplars) -> None:
        done[:] = records
        write("running", records)

    progress = Progress(console, folder.events)
    if not folder.results():
        write("running", [])
    try:
        records, _, _ = run(
            experiment,
            checkpoints=folder.checkpoints,
            checkpoint_every=config["checkpoint_every"],
            resume=resume,
            progress=progress,
            on_task=on_task,
        )
    except DivergedError as error:
        write("failed", done, error=str(error), finished=_now())
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 1
    except UserError as error:
        write("failed", done, error=str(error), finished=_now())
        raise
    except Exception as error:
        write("failed", done, error=f"{type(error).__name__}: {error}", finished=_now())
        raise
    content = write("complete", records, finished=_now())
    console.print(report.terminal(content))
    console.print(f"written to {folder.path}", highlight=False, soft_wrap=True)
    return 0


def default_folder(config: dict[str, Any]) -> str:
    """``runs/<strategy>-<data>-seed<seed>``"""
    strategy = config["strategy"]["class_path"].rpartition(".")[2].lower()
    data = Path(config["data"].rpartition(":")[2]).stem
    return f"runs/{strategy}-{data}-seed{config['seed']}"


def plan_table(experiment: Experiment) -> Table:
    """What each task will bring and carry, without training."""
    table = Table(title=f"plan: {experiment.scenario.name}")
    for name in ("task", "new classes", "images", "parameters", "exemplars", "strict MiB", "paper MiB"):
        table.add_column(name, justify="right")
    for row in plan(experiment):
        sizes = [f"{row['bytes'][key] / MIB:.3f}" for key in ("strict", "paper")]
        counts = (row["task"] + 1, len(row["classes"]), row["train_images"], row["parameters"], row["exemplars"])
        table.add_row(*map(str, counts), *sizes)
    if experiment.memory.unbounded:
        table.caption = "keeps all images: an upper bound, outside any memory budget"
    return table


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
