"""A written run, put together again from its folder: its experiment, and the strategy as it was after a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from cil.command import config as cfg
from cil.data.images import Dataset
from cil.errors import UserError
from cil.experiment.checkpoint import DamagedError, Moment
from cil.experiment.experiment import Experiment
from cil.experiment.provenance import Origin
from cil.learning.state import under
from cil.learning.strategy import Strategy
from cil.report.folder import RunFolder

REMEDY = "Its state is of use only with what it was learned from"


@dataclass(frozen=True)
class Finished:
    """What a run left behind.

    Attributes:
        content: of its ``results.json``.
        config: its resolved configuration.
        experiment: as it ran.
        strategy: after the task, in eval mode.
        task: index of that task.
    """

    content: dict[str, Any]
    config: Namespace
    experiment: Experiment
    strategy: Strategy
    task: int


def reopen(run_dir: Path, load: Callable[..., Dataset], *, task: int | None = None) -> Finished:
    """Put a run's experiment and strategy together again.

    Args:
        run_dir: folder of the run.
        load: ``scenarios.datasets.load``.
        task: number of the task after which the state is taken, from 1; None: the last of a finished run.

    Raises:
        UserError: no such run or state, or its data, seeds or strategy are not what they were.
    """
    folder = RunFolder(run_dir)
    content = folder.results()
    if content is None:
        what = "damaged; --resume makes it anew" if (run_dir / "results.json").exists() else "missing"
        raise UserError(f"{run_dir} holds no run: results.json is {what}")
    if task is None and content["status"] != "complete":
        raise UserError(f"{run_dir}: the run is not finished ({content['status']}); say after which task with --task N")
    moments = [moment for moment in folder.checkpoints.moments() if not moment.inside]
    wanted = Moment(len(content["tasks"]) - 1 if task is None else task - 1)
    if wanted not in moments:
        kept = ", ".join(str(moment.task + 1) for moment in moments)
        raise UserError(
            f"--task: no state after task {wanted.task + 1} is kept in {run_dir}; there are: {kept or 'none'}"
        )
    parser, config = cfg.parse(["--config", str(run_dir / "config.yaml")])
    experiment = cfg.instantiate(parser, config, load)
    now = Origin.of(experiment)
    try:
        told = folder.checkpoints.origin_of(wanted)
        if told is not None:
            Origin.from_json(told).assert_same(now, folder.checkpoints.folder / f"{wanted.name}.json", REMEDY)
        Origin.of_results(content).assert_same(now, run_dir, REMEDY)
        tensors, _ = folder.checkpoints.load(wanted)
    except DamagedError as error:
        raise UserError(str(error)) from error
    strategy = experiment.fresh()
    for learned in experiment.scenario.tasks[: wanted.task + 1]:
        experiment.grow(strategy, learned)
    strategy.load_state_dict(under("strategy", tensors))
    return Finished(content, config, experiment, strategy.eval(), wanted.task)
