"""One run from the command line to its folder: parse, check, plan, learn, write."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cil.command import config as cfg
from cil.command import recorded, signals
from cil.command.names import find_class
from cil.data.images import Dataset
from cil.data.scenario import Scenario
from cil.errors import UserError
from cil.experiment.experiment import Experiment, plan
from cil.experiment.progress import Progress
from cil.experiment.provenance import Origin
from cil.experiment.resume import Record
from cil.experiment.run import run
from cil.features.store import Store
from cil.files import Unwritable
from cil.learning.strategy import Strategy
from cil.learning.trainer import DivergedError
from cil.machine import distributed
from cil.machine.device import is_emulated
from cil.memory import tables
from cil.memory.exemplars import Exemplars
from cil.memory.ledger import STATE, STORED
from cil.nets import lookup
from cil.report import report
from cil.report.folder import RunFolder
from cil.shown import Terminal
from cil.units import mib, show


def train(argv: Sequence[str], load: Callable[..., Dataset], program: str) -> int:
    """Run the experiment that a command line describes.

    Args:
        argv: arguments without the program's name.
        load: ``scenarios.datasets.load``.
        program: ``cil train`` or ``tools/train.py``, for the recorded command.

    Returns:
        Exit status: 0, or 1 when the training diverged.

    Raises:
        UserError: a mistake on the command line or in a file, or a folder that holds another run; nothing was changed.
            Or a file that cannot be written; the last checkpoint is whole, and the results say that the run failed.
    """
    first = distributed.is_first()
    console = Terminal(quiet=not first)
    parser, config = cfg.parse(argv, Path(program).name)
    experiment = cfg.instantiate(parser, config, load, Progress(console))
    experiment.check()
    text = kept(parser, config)
    resolved = yaml.safe_load(text)
    if config.dry_run:
        console.print(plan_table(experiment))
        return 0
    store = cfg.feature_store(config.cache, config.cache_limit)
    folder = RunFolder(Path(config.run_dir or default_folder(resolved)))
    if config.compile and (config.devices * config.num_nodes > 1 or distributed.under_torchrun()):
        raise UserError(f"compile: {config.compile} works in one process; give null, or devices: 1")
    if first:
        folder.check(resolved, resume=config.resume, overwrite=config.overwrite)
    origin = Origin.of(experiment, resolved)
    if config.resume:
        folder.check_data(origin)
    before = folder.results()
    if config.resume and before and before["status"] == "complete":
        console.print(report.terminal(before))
        console.print(f"{folder.path} is complete; nothing to do", highlight=False, soft_wrap=True)
        if first:
            folder.mend(text)
        return 0
    with (
        folder.open(text, overwrite=config.overwrite) if first else contextlib.nullcontext(),
        distributed.launch(experiment.device, config.devices, config.num_nodes) as experiment.device,
    ):
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        console.print(
            f"{experiment.scenario.name} in {folder.path}, {told(experiment)}", highlight=False, soft_wrap=True
        )
        command = recorded.command(argv, program, resolved)
        return _train(experiment, folder, resolved, command, console, store, origin, resume=config.resume)


def told(experiment: Experiment) -> str:
    """Where and how a run computes, for people."""
    world = distributed.world_size()
    slow = " (this processor does not multiply bfloat16; 32 may be many times faster)"
    precision = experiment.precision + slow * is_emulated(experiment.precision, experiment.device)
    return f"device {experiment.device}, precision {precision}" + f", {world} processes" * (world > 1)


def kept(parser: cfg.Parser, config: Namespace) -> str:
    """The configuration as a run keeps it: YAML that runs again without continuing or replacing anything."""
    config = config.clone()
    config.resume = config.overwrite = config.dry_run = False
    return parser.dump(config, skip_unset=False)


def _train(
    experiment: Experiment,
    folder: RunFolder,
    config: dict[str, Any],
    command: str,
    console: Console,
    store: Store | None,
    origin: Origin,
    *,
    resume: bool,
) -> int:
    fixed = described(experiment, config, command)

    def write(status: str, records: list[Record], **more: Any) -> dict[str, Any]:
        content = {**fixed, "status": status, **report.results(experiment, records), **more}
        if distributed.is_first():
            folder.write(content)
        return content

    # What a former process wrote stays until this one has begun: a run that cannot go on has lost nothing.
    done: list[Record] = []
    begun = not (folder.path / "results.json").exists()

    def on_task(records: list[Record], strategy: Strategy, exemplars: Exemplars) -> None:
        nonlocal begun
        begun, done[:] = True, records
        write("running", records)

    def ended(status: str, **more: Any) -> None:
        if begun:
            try:
                write(status, done, **more, finished=now())
            except Unwritable:
                folder.mark_failed()

    progress = Progress(console, folder.events if distributed.is_first() else None)
    try:
        if begun:
            write("running", [])
        with distributed.first_alone():
            features = experiment.known_features(store, fixed["machine"]["name"], progress)
        with lookup.use(features):
            records, _, _ = run(
                experiment,
                checkpoints=folder.checkpoints,
                checkpoint_every=config["checkpoint_every"],
                resume=resume,
                progress=progress,
                on_task=on_task,
                origin=origin,
            )
        content = write("complete", records, finished=now())
    except DivergedError as error:
        ended("failed", error=str(error))
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 1
    except UserError as error:
        ended("failed", error=str(error))
        raise
    except (KeyboardInterrupt, Exception) as error:
        if signals.behind(error):
            ended("interrupted")
        else:
            ended("failed", error=f"{type(error).__name__}: {error}")
        raise
    console.print(report.terminal(content))
    console.print(f"written to {folder.path}", highlight=False, soft_wrap=True)
    return 0


def described(experiment: Experiment, config: dict[str, Any], command: str) -> dict[str, Any]:
    """What ``results.json`` says of a run before its first task.

    Args:
        experiment: the run.
        config: resolved.
        command: what begins it again.
    """
    draws = dict(config["scenario"]["init_args"])
    if experiment.scenario.family is not None:  # the run's seed stands in for what is null
        draws = {name: experiment.seeds.data if value is None else value for name, value in draws.items()}
    return {
        "schema": report.SCHEMA,
        "command": command,
        "config": config,
        "seeds": {
            **vars(experiment.seeds),
            "class_order": draws.get("order"),
            "stream": draws.get("seed"),
        },
        **report.environment(experiment),
        "started": now(),
    }


def default_folder(config: dict[str, Any]) -> str:
    """``runs/<strategy>-<data>-seed<seed>``"""
    strategy = config["strategy"]["class_path"].rpartition(".")[2].lower()
    data = Path(config["data"].rpartition(":")[2]).stem
    return f"runs/{strategy}-{data}-seed{config['seed']}"


def memory(argv: Sequence[str], load: Callable[..., Dataset], program: str) -> int:
    """Print bytes before any training: the plan of a run, or the tables of methods equal in bytes.

    Args:
        argv: ``plan`` and the arguments of a run, or ``table``.
        load: ``scenarios.datasets.load``.
        program: ``cil memory`` or ``tools/memory.py``.

    Raises:
        UserError: neither word, or a mistake in the run's arguments.
    """
    usage = f"usage: {program} plan NAME ... [--config A.yaml] [--key value], or {program} table"
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    if not argv or argv[0] not in ("plan", "table"):
        raise UserError(f"{usage}; '{argv[0] if argv else ''}' is neither plan nor table")
    console = Terminal()
    if argv[0] == "plan":
        parser, config = cfg.parse(argv[1:], Path(program).name)
        experiment = cfg.instantiate(parser, config, load, Progress(console))
        experiment.check()
        console.print(plan_table(experiment))
        return 0
    if len(argv) > 1:
        raise UserError(f"{usage}; table takes no options")
    find = functools.partial(find_class, "strategy")
    console = Terminal(width=max(console.width, 104))  # narrower, numbers would be cut
    console.print("Budgets in MiB (2^20 bytes), convention 'paper': float32 backbone parameters and raw images.")
    console.print("Exemplars are floor((budget - 4 * parameters) / bytes of an image).", highlight=False)
    for title, rows in (("Aligned to DER", tables.aligned(find)), ("Budgets of the curves", tables.budgets(find))):
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
        for name in ("", "MiB", "network", "single", "MEMO", "DER", "parameters: MEMO", "DER"):
            table.add_column(name, justify="left" if name in ("", "network") else "right", no_wrap=name != "network")
        for single, memo, der in zip(*[iter(rows)] * 3, strict=True):
            kept = (f"{row.exemplars}" for row in (single, memo, der))
            sizes = (f"{row.parameters:,}" for row in (memo, der))
            table.add_row(single.setting, mib(single.budget), der.backbone, *kept, *sizes)
        console.print(table)
    for setting in tables.GROWING:
        weight = tables.in_images(find, setting)
        console.print(f"One {setting.backbone} weighs {weight:.1f} images of {setting.name}.", highlight=False)
    return 0


def plan_table(experiment: Experiment) -> Table:
    """What each task will bring and carry, without training."""
    table = Table(
        title=f"plan: {experiment.scenario.name}, sizes in MiB", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False
    )
    rows, scenario = plan(experiment), experiment.scenario
    if scenario.streams:
        rows = _of_phases(rows, scenario)
    # Labels and lengths belong to the exemplars; a column of zeros tells nothing.
    for row in rows:
        size = row["bytes"]
        row["sizes"] = {**size, "stored": sum(size[kind] for kind in STORED)}
    kinds = (*STATE, "stored")
    shown = [*(kind for kind in kinds if any(row["sizes"][kind] for row in rows)), "strict", "paper"]
    counts = ("task", "classes", "images", *["exemplars"] * any(row["exemplars"] for row in rows))
    for name in (*counts, *shown):
        short = {"normalisation": "norm.", "statistics": "stat."}
        table.add_column(short.get(name, name), justify="right", no_wrap=True)
    for row in rows:
        shown_task = row.get("phase", row["task"]) + 1
        row |= {"task": shown_task, "classes": len(row["classes"]), "images": row["train_images"]}
        table.add_row(*(str(row[name]) for name in counts), *(mib(row["sizes"][name], 3) for name in shown))
    budget = experiment.limits().budget
    notes = ["{}: {}, the most that the budget allows".format(*experiment.sized)] if experiment.sized else []
    notes += ["keeps all images: an upper bound, outside any memory budget"] * experiment.memory.unbounded
    if budget:
        notes.append(f"budget {show(budget.bytes)}, counted as '{budget.convention}', reached {WHEN[budget.align]}")
    if scenario.streams:
        notes.append(f"a stream without boundaries in {len(scenario.tasks)} pieces; tasks are its phases")
    if experiment.memory.codec != "raw":
        notes.append(f"exemplars as {experiment.memory.codec}: number and bytes are estimates from a sample")
    table.caption = "\n".join(notes) or None
    return table


def _of_phases(rows: list[dict[str, Any]], scenario: Scenario) -> list[dict[str, Any]]:
    """The plan at the end of each phase, with the new classes and the images of all its pieces."""
    out, start = [], 0
    for phase, end in enumerate(scenario.phase_ends):
        own = rows[start : end + 1]
        classes = [label for row in own for label in row["classes"]]
        images = sum(row["train_images"] for row in own)
        out.append({**own[-1], "phase": phase, "classes": classes, "train_images": images})
        start = end + 1
    return out


WHEN = {"final": "after the last task", "always": "after every task"}


def now() -> str:
    """The time, as results tell it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
