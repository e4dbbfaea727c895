"""Interruption and continuation: what is written while a run learns, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cil.data.scenario import Task
from cil.experiment import checkpoint as ckpt
from cil.experiment.blueprint import Blueprint
from cil.experiment.checkpoint import Checkpoints, DamagedError, Moment
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.experiment.provenance import Origin
from cil.learning.best import Best
from cil.learning.state import under, with_prefix
from cil.learning.strategy import Strategy
from cil.machine import distributed
from cil.machine.compute import Compute
from cil.memory.exemplars import Exemplars

Record = dict[str, Any]  # JSON values: what a task adds to results.json
REMEDY = "Remove that checkpoint if it does not belong here; --overwrite or another --run_dir learns anew"
Inside = dict[int, tuple[int, dict[str, Tensor]]]  # stage: (epochs done, tensors)


class Start:
    """Where a run begins: the state, the records so far, and what is known of the task that was interrupted."""

    def __init__(self, experiment: Experiment) -> None:
        self.strategy = experiment.fresh()
        self.exemplars = Exemplars(experiment.memory, experiment.scenario.image_shape)
        self.done = 0  # tasks
        self.records: list[Record] = []  # of those that this run has learned
        self.inside: Inside = {}  # stage: (epochs done, tensors)
        self.compute = Compute()  # of the interrupted task so far


def restore(experiment: Experiment, checkpoints: Checkpoints, progress: Progress, start: Start | None = None) -> Start:
    """The newest state that is intact; checkpoints that are proven damaged are reported, renamed and passed over.

    Of several processes the first one renames, and the others read afterwards.

    Args:
        experiment: the whole run.
        checkpoints: of it.
        progress: whom to tell.
        start: where it began; None: at the first task.

    Raises:
        UserError: a checkpoint cannot be read, or is one of another run or of other data, by what ``checkpoints`` says
            that this run learns from; nothing was changed.
    """
    with distributed.first_alone():
        return _restore(experiment, checkpoints, progress, start or Start(experiment))


def _restore(experiment: Experiment, checkpoints: Checkpoints, progress: Progress, start: Start) -> Start:
    def attempt(moment: Moment) -> tuple[dict[str, Tensor], Record] | None:
        try:
            origin = checkpoints.origin_of(moment)
            if origin is not None and checkpoints.origin is not None:
                path = checkpoints.folder / f"{moment.name}.json"
                Origin.from_json(origin).assert_same(Origin.from_json(checkpoints.origin), path, REMEDY)
            return checkpoints.load(moment)
        except DamagedError as error:
            progress.warn(f"checkpoint passed over: {error}")
            checkpoints.put_aside(moment)
            return None

    moments = checkpoints.moments()
    for moment in reversed([moment for moment in moments if not moment.inside]):
        loaded = attempt(moment)
        if loaded:
            tensors, record = loaded
            start.records = record["tasks"]
            start.done = moment.task + 1
            for task in experiment.scenario.tasks[: moment.task + 1]:
                experiment.grow(start.strategy, task)
            start.strategy.load_state_dict(under("strategy", tensors))
            passed = sum(len(task.train) for task in experiment.scenario.tasks[: moment.task + 1])
            start.exemplars.load(under("exemplars", tensors), passed)
            break
    current, spent = start.done, start.compute.state()
    for moment in reversed([moment for moment in moments if moment.inside and moment.task == current]):
        stage = int(moment.stage)
        if stage not in start.inside and (loaded := attempt(moment)):
            tensors, record = loaded
            start.inside[stage] = (int(moment.epoch), tensors)
            spent = max(spent, record["compute"], key=lambda state: sum(state["seconds"].values()))
    # A stage is of use only if all stages before it are there to the end; epochs tell, since ends are always kept.
    useful: Inside = {}
    for stage in range(len(start.inside)):
        if stage not in start.inside:
            break
        useful[stage] = start.inside[stage]
        if not bool(start.inside[stage][1]["done"]):
            break
    start.inside = useful
    if useful:
        start.compute.load(spent)
    if moments:
        kind = "piece" if experiment.scenario.streams else "task"
        where = f"{kind} {current + 1}" + (f", epoch {max(e for e, _ in useful.values())}" if useful else "")
        progress.say(f"resuming: {current} of {len(experiment.scenario.tasks)} {kind}s done, going on in {where}")
    return start


def save_boundary(
    checkpoints: Checkpoints,
    task: Task,
    strategy: Strategy,
    exemplars: Exemplars,
    records: Sequence[Record],
    experiment: Experiment,
) -> None:
    """Write the state after a task; keep the one written before in case this one is damaged, and drop what is older.

    Of several processes the first one writes. With the state goes what is needed to use it without the data.
    """
    if not distributed.is_first():
        return
    tensors = {
        **with_prefix("strategy", strategy.state_dict()),
        **with_prefix("exemplars", exemplars.state()),
    }
    *before, last = records
    blueprint = Blueprint.of(experiment, task.index).as_json()
    checkpoints.save(Moment(task.index), tensors, {"tasks": [*map(lasting, before), last], "blueprint": blueprint})
    last_two = [moment for moment in checkpoints.moments() if not moment.inside and moment.task <= task.index][-2:]
    checkpoints.prune(lambda moment: not moment.inside and moment >= last_two[0])


def lasting(record: Record) -> Record:
    """A record without what is reported of the last task alone: of every task, it would grow with their square.

    Of a piece of a stream accuracies by class stay, since forgetting is reported by them.
    """
    dropped = {"task_confusion"} if "near_future" in record else {"task_confusion", "per_class"}
    evaluators = {
        name: {key: value for key, value in scores.items() if key not in dropped}
        for name, scores in record.get("evaluators", {}).items()
    }
    return {**record, "evaluators": evaluators}


class Keeper:
    """Tells the progress display how far a task is, writes checkpoints inside it, and restores from them."""

    def __init__(
        self,
        task: Task,
        checkpoints: Checkpoints | None,
        every: int,
        inside: Inside,
        progress: Progress,
        compute: Compute,
    ) -> None:
        self.task, self.checkpoints, self.every = task, checkpoints, every
        self.inside, self.progress, self.compute = inside, progress, compute

    def epoch_starts(self, stage: int, epoch: int, epochs: int, steps: int) -> None:
        self.progress.epoch_starts(self.task, stage, epoch, epochs, steps)

    def step_done(self) -> None:
        self.progress.step_done()

    def epoch_done(self, stage: int, epoch: int, epochs: int, loss: float, lr: float) -> None:
        self.progress.epoch_done(self.task, stage, epoch, epochs, loss, lr)

    def restore(self, stage: int, strategy: nn.Module, optimizer: Optimizer, best: Best | None) -> int:
        if stage not in self.inside:
            return 0
        epochs, tensors = self.inside[stage]
        strategy.load_state_dict(under("strategy", tensors))
        ckpt.load_optimizer(optimizer, under("optimizer", tensors))
        if best:
            best.load(under("best", tensors))
        return epochs

    def save(
        self, stage: int, epoch: int, epochs: int, strategy: nn.Module, optimizer: Optimizer, best: Best | None
    ) -> None:
        done = epoch + 1 == epochs
        wanted = self.every and (done or (epoch + 1) % self.every == 0)
        if not self.checkpoints or not wanted or not distributed.is_first():
            return
        tensors = {
            **with_prefix("strategy", strategy.state_dict()),
            **with_prefix("optimizer", ckpt.optimizer_tensors(optimizer)),
            **with_prefix("best", best.state() if best else {}),
            "done": torch.tensor(done),
        }
        moment = Moment(self.task.index, stage, epoch + 1)
        self.checkpoints.save(moment, tensors, {"compute": self.compute.state()})
        newest = [m for m in self.checkpoints.moments() if m.task == self.task.index and m.stage == stage][-2:]
        self.checkpoints.prune(lambda m: not m.inside or m.stage != stage or m in newest)
