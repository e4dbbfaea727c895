"""Everything that decides a run's numbers, checked and planned before any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cil.augmentation import Augmentation
from cil.errors import UserError, unknown
from cil.evaluation.accuracy import EVALUATORS
from cil.memory.exemplars import Memory
from cil.memory.ledger import measure
from cil.scenario import Scenario, Task
from cil.seeds import Seeds, seeded
from cil.strategy import Strategy
from cil.trainer import Place, Trainer, Watcher


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

    def place(self, task: int, watcher: Watcher | None = None) -> Place:
        """Where one task is learned."""
        bound = self.augmentation.bind(self.scenario.image_shape, self.scenario.mean, self.scenario.std, self.device)
        place = Place(task, self.seeds.data, bound, self.device, self.precision)
        if watcher is not None:
            place.watcher = watcher
        return place

    def grow(self, strategy: Strategy, task: Task) -> None:
        """Make room for a task's classes: the same initial values whenever it is called for this task."""
        with seeded(self.seeds.init, "grow", task.index):
            strategy.grow(task.without_data())
        self.settle(strategy)


def plan(experiment: Experiment) -> list[dict[str, Any]]:
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
