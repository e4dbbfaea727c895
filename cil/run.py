"""The whole experiment: for each task grow, learn, select exemplars, evaluate, count, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from cil import checkpoint as ckpt
from cil.augmentation import Augmentation
from cil.checkpoint import Checkpoints, DamagedError, Moment
from cil.errors import UserError, unknown
from cil.evaluation import metrics
from cil.evaluation.accuracy import EVALUATORS, Predictions, evaluate, features_of
from cil.memory.exemplars import Exemplars, Memory
from cil.memory.ledger import Bytes, measure, measure_run
from cil.progress import Progress
from cil.scenario import Scenario, Task
from cil.seeds import Seeds, generator, seeded
from cil.strategy import Strategy
from cil.trainer import Place, Trainer

Record = dict[str, Any]  # JSON values: what a task adds to results.json


@dataclass
class Experiment:
    """Everything that decides a run's numbers.

    Attributes:
        scenario: the tasks.
        build: makes the strategy, freshly initialised, without classes.
        trainer: the gradient loop's options.
        memory: exemplar quota and selection.
        augmentation: from bytes to network input.
        seeds: of initialisation, data and exemplars.
        evaluators: names out of ``cil.evaluation.accuracy.EVALUATORS``; empty: all that the memory allows.
        device: where to compute.
        precision: ``32`` or ``bf16-mixed``.
    """

    scenario: Scenario
    build: Callable[[], Strategy]
    trainer: Trainer
    memory: Memory = field(default_factory=Memory)
    augmentation: Augmentation = field(default_factory=Augmentation)
    seeds: Seeds = field(default_factory=lambda: Seeds(0, 0, 0))
    evaluators: tuple[str, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "32"

    def check(self) -> None:
        """Refuse what cannot work, before any training.

        Raises:
            UserError: names the option, its value and what is legal.
        """
        self.memory.check()
        self.trainer.check(len(self.scenario.tasks))
        strategy = self.fresh()
        name = type(strategy).__name__
        if strategy.exemplar_free and not self.memory.empty:
            kept = self.memory.per_class if self.memory.exemplars is None else self.memory.exemplars
            raise UserError(f"memory: {name} is exemplar-free and the run gives it {kept} exemplars; set them to 0")
        if strategy.needs_all_data and not self.memory.unbounded:
            raise UserError(
                f"memory.exemplars: {name} trains on all data of the past, outside any budget; say so with "
                f"memory.exemplars: all (it is {self.memory.exemplars})"
            )
        if not isinstance(strategy.model.backbone, strategy.needs):
            raise UserError(f"model.backbone: {name} needs a {strategy.needs.__name__}")
        for evaluator in self.evaluators:
            if evaluator not in EVALUATORS:
                raise unknown("evaluators", evaluator, EVALUATORS)
        if self.memory.empty and any(name != "linear" for name in [*self.evaluators, strategy.evaluator]):
            raise UserError(
                f"evaluators: nearest means of exemplars need exemplars; memory has none and {name} is scored by "
                f"'{strategy.evaluator}', the run by {', '.join(self.evaluators) or 'default'}"
            )
        self.place(0)

    def scored_by(self, strategy: Strategy) -> tuple[str, ...]:
        """The evaluators of this run; the strategy's own comes first."""
        own = strategy.evaluator
        chosen = self.evaluators or (("linear",) if self.memory.empty else ("linear", "nearest_mean"))
        return (own, *(name for name in chosen if name != own))

    def fresh(self) -> Strategy:
        """The strategy before its first task: the same weights each time."""
        with seeded(self.seeds.init, "build"):
            return self.settle(self.build())

    def settle(self, strategy: Strategy) -> Strategy:
        """Move the strategy, and what has grown on it, to the device in the layout that convolutions like best."""
        return strategy.to(self.device).to(memory_format=torch.channels_last)

    def place(self, task: int, watcher: Any = None) -> Place:
        """Where one task is learned."""
        bound = self.augmentation.bind(self.scenario.image_shape, self.scenario.mean, self.scenario.std, self.device)
        place = Place(task, self.seeds.data, bound, self.device, self.precision)
        if watcher is not None:
            place.watcher = watcher
        return place


def run(
    experiment: Experiment,
    *,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
    on_task: Callable[[list[Record], Strategy, Exemplars], None] | None = None,
) -> tuple[list[Record], Strategy, Exemplars]:
    """Learn all tasks.

    Args:
        experiment: what to run; checked first.
        checkpoints: where to write the state after each task, or None to write nothing.
        checkpoint_every: also write inside a task, each time this many epochs are done; 0: only after tasks.
        resume: go on from the newest intact checkpoint.
        progress: whom to tell.
        on_task: called after each task with all records so far and the state.

    Returns:
        One record for each task, the strategy and the exemplars after the last.

    Raises:
        UserError: the experiment cannot work.
        DivergedError: the loss became NaN or infinite.
    """
    experiment.check()
    scenario, progress = experiment.scenario, progress or Progress.silent()
    start = restore(experiment, checkpoints, progress) if resume and checkpoints else Start(experiment)
    strategy, exemplars, records = start.strategy, start.exemplars, start.records
    evaluators = experiment.scored_by(strategy)
    with progress.tasks(len(scenario.tasks), done=len(records)):
        for task in scenario.tasks[len(records) :]:
            began = time.perf_counter()
            keeper = Keeper(task, checkpoints, checkpoint_every, start.inside, progress, began - start.spent)
            place = experiment.place(task.index, keeper)
            trainer = experiment.trainer.at(place)
            learn(strategy, task, exemplars, trainer, experiment)
            select(strategy, task, exemplars, place, experiment.seeds)
            seen = scenario.test.of_classes(range(task.n_seen))
            predictions = evaluate(strategy, seen, task.n_seen, exemplars, evaluators, place)
            size = measure_run(strategy, exemplars)
            seconds = time.perf_counter() - began + start.spent
            records.append(make_record(scenario, task, predictions, size, len(exemplars), trainer, seconds))
            start.inside, start.spent = {}, 0.0
            if checkpoints:
                save_boundary(checkpoints, task, strategy, exemplars, records)
            if on_task:
                on_task(records, strategy, exemplars)
            progress.task_done(task, predictions, size)
    return records, strategy, exemplars


def learn(strategy: Strategy, task: Task, exemplars: Exemplars, trainer: Trainer, experiment: Experiment) -> None:
    """The strategy's four steps for one task, each with its own derived seed."""
    seeds = experiment.seeds
    grow(strategy, task, experiment)
    strategy.requires_grad_(True)  # which parameters learn is decided anew for each task, so it is not state
    strategy.eval()
    with seeded(seeds.init, "begin", task.index):
        strategy.begin(task)
    with seeded(seeds.data, "fit", task.index):
        strategy.fit(task, exemplars.as_set(), trainer)
    strategy.eval()
    with seeded(seeds.data, "end", task.index):
        strategy.end(task)
    strategy.eval()


def grow(strategy: Strategy, task: Task, experiment: Experiment) -> None:
    """Make room for a task's classes: the same initial values whenever it is called for this task."""
    with seeded(experiment.seeds.init, "grow", task.index):
        strategy.grow(task.without_data())
    experiment.settle(strategy)


def select(strategy: Strategy, task: Task, exemplars: Exemplars, place: Place, seeds: Seeds) -> None:
    """Choose the exemplars to keep, with the features of the network as it is after the task."""
    exemplars.update(
        task, lambda data: features_of(strategy, data, place), generator(seeds.exemplars, "select", task.index)
    )
    capacity = exemplars.memory.capacity(task.n_seen)
    if capacity is not None and len(exemplars) > capacity:
        raise RuntimeError(f"{len(exemplars)} exemplars after task {task.index}, the memory allows {capacity}")


def make_record(
    scenario: Scenario,
    task: Task,
    predictions: dict[str, Predictions],
    size: Bytes,
    n_exemplars: int,
    trainer: Trainer,
    seconds: float,
) -> Record:
    """What one task adds to ``results.json``; the schema is described in ``docs/results_schema.md``."""
    owner = scenario.task_of_class[: task.n_seen]
    scores = {}
    for name, seen in predictions.items():
        inference, within = metrics.task_inference_decomposition(seen.confusion, owner)
        scores[name] = {
            "accuracy_row": metrics.accuracy_row(seen.confusion, owner, len(scenario.tasks)).tolist(),
            "top5": seen.top5,
            "per_class": metrics.per_class_accuracy(seen.confusion).tolist(),
            "task_confusion": metrics.task_confusion(seen.confusion, owner).tolist(),
            "task_inference": inference,
            "within_task": within,
        }
    return {
        "task": task.index,
        "classes": list(task.new),
        "n_seen": task.n_seen,
        "train_images": len(task.train),
        "seconds": seconds,
        "images_per_second": trainer.images / trainer.seconds if trainer.seconds else None,
        "exemplars": n_exemplars,
        "bytes": dict(size),
        "evaluators": scores,
    }


def plan(experiment: Experiment) -> list[Record]:
    """Classes, exemplars and bytes after each task, found by growing the strategy on the ``meta`` device.

    Args:
        experiment: checked here; nothing is trained.

    Returns:
        For each task: ``task``, ``classes``, ``train_images``, ``parameters`` (number), ``exemplars``, ``bytes``.
    """
    experiment.check()
    scenario, memory = experiment.scenario, experiment.memory
    image_bytes = scenario.test.image_bytes
    held = np.zeros(scenario.n_classes, dtype=np.int64)
    rows = []
    with torch.device("meta"):
        strategy = experiment.build()
        for task in scenario.tasks:
            strategy.grow(task.without_data())
            held += task.train.counts(scenario.n_classes)
            quota = memory.quota(task.n_seen)
            count = int(held.sum() if quota is None else np.minimum(held, quota).sum())
            if memory.selection == "reservoir":
                count = min(int(held.sum()), int(memory.exemplars or 0))
            rows.append(
                {
                    "task": task.index,
                    "classes": list(task.new),
                    "train_images": len(task.train),
                    "parameters": sum(parameter.numel() for parameter in strategy.parameters()),
                    "exemplars": count,
                    "bytes": dict(measure(strategy, count, image_bytes, 4)),
                }
            )
    return rows


# --- interruption and continuation ------------------------------------------------------------------------------------


class Start:
    """Where a run begins: the state, the records so far, and what is known of the task that was interrupted."""

    def __init__(self, experiment: Experiment) -> None:
        self.strategy = experiment.fresh()
        self.exemplars = Exemplars(experiment.memory, experiment.scenario.image_shape)
        self.records: list[Record] = []
        self.inside: dict[int, tuple[int, dict[str, Tensor]]] = {}  # stage: (epochs done, tensors)
        self.spent = 0.0  # seconds already spent in the interrupted task


def restore(experiment: Experiment, checkpoints: Checkpoints, progress: Progress) -> Start:
    """The newest state that is intact; damaged checkpoints are reported, removed and passed over."""

    def attempt(moment: Moment) -> tuple[dict[str, Tensor], Record] | None:
        try:
            return checkpoints.load(moment)
        except DamagedError as error:
            progress.warn(f"checkpoint passed over: {error}")
            checkpoints.prune(lambda other: other != moment)
            return None

    start = Start(experiment)
    moments = checkpoints.moments()
    for moment in reversed([moment for moment in moments if not moment.inside]):
        loaded = attempt(moment)
        if loaded:
            tensors, record = loaded
            start.records = record["tasks"]
            for task in experiment.scenario.tasks[: moment.task + 1]:
                grow(start.strategy, task, experiment)
            start.strategy.load_state_dict(ckpt.under("strategy", tensors))
            passed = sum(len(task.train) for task in experiment.scenario.tasks[: moment.task + 1])
            start.exemplars.load(ckpt.under("exemplars", tensors), passed)
            break
    current = len(start.records)
    for moment in reversed([moment for moment in moments if moment.inside and moment.task == current]):
        stage = int(moment.stage)
        if stage not in start.inside and (loaded := attempt(moment)):
            tensors, record = loaded
            start.inside[stage] = (int(moment.epoch), tensors)
            start.spent = max(start.spent, record["seconds"])
    # A stage is of use only if all stages before it are there to the end; epochs tell, since ends are always kept.
    useful: dict[int, tuple[int, dict[str, Tensor]]] = {}
    for stage in range(len(start.inside)):
        if stage not in start.inside:
            break
        useful[stage] = start.inside[stage]
        if not bool(start.inside[stage][1]["done"]):
            break
    start.inside = useful
    if not useful:
        start.spent = 0.0
    if moments:
        where = f"task {current}" + (f", epoch {max(e for e, _ in useful.values())}" if useful else "")
        progress.say(f"resuming: {current} of {len(experiment.scenario.tasks)} tasks done, going on in {where}")
    return start


def save_boundary(
    checkpoints: Checkpoints, task: Task, strategy: Strategy, exemplars: Exemplars, records: Sequence[Record]
) -> None:
    """Write the state after a task; keep the one before it in case this one is damaged, and drop what is older."""
    tensors = {
        **ckpt.with_prefix("strategy", strategy.state_dict()),
        **ckpt.with_prefix("exemplars", exemplars.state()),
    }
    checkpoints.save(Moment(task.index), tensors, {"tasks": list(records)})
    checkpoints.prune(lambda moment: not moment.inside and moment.task >= task.index - 1)


class Keeper:
    """Tells the progress display how far a task is, writes checkpoints inside it, and restores from them."""

    def __init__(
        self,
        task: Task,
        checkpoints: Checkpoints | None,
        every: int,
        inside: dict[int, tuple[int, dict[str, Tensor]]],
        progress: Progress,
        began: float,
    ) -> None:
        self.task, self.checkpoints, self.every = task, checkpoints, every
        self.inside, self.progress, self.began = inside, progress, began

    def epoch_starts(self, stage: int, epoch: int, epochs: int, steps: int) -> None:
        self.progress.epoch_starts(self.task, stage, epoch, epochs, steps)

    def step_done(self) -> None:
        self.progress.step_done()

    def epoch_done(self, stage: int, epoch: int, epochs: int, loss: float, lr: float) -> None:
        self.progress.epoch_done(self.task, stage, epoch, epochs, loss, lr)

    def restore(self, stage: int, strategy: Strategy, optimizer: Optimizer) -> int:
        if stage not in self.inside:
            return 0
        epochs, tensors = self.inside[stage]
        strategy.load_state_dict(ckpt.under("strategy", tensors))
        ckpt.load_optimizer(optimizer, ckpt.under("optimizer", tensors))
        return epochs

    def save(self, stage: int, epoch: int, epochs: int, strategy: Strategy, optimizer: Optimizer) -> None:
        done = epoch + 1 == epochs
        if not self.checkpoints or not self.every or not (done or (epoch + 1) % self.every == 0):
            return
        tensors = {
            **ckpt.with_prefix("strategy", strategy.state_dict()),
            **ckpt.with_prefix("optimizer", ckpt.optimizer_tensors(optimizer)),
            "done": torch.tensor(done),
        }
        moment = Moment(self.task.index, stage, epoch + 1)
        self.checkpoints.save(moment, tensors, {"seconds": time.perf_counter() - self.began})
        newest = [m for m in self.checkpoints.moments() if m.task == self.task.index and m.stage == stage][-2:]
        self.checkpoints.prune(lambda m: not m.inside or m.stage != stage or m in newest)
