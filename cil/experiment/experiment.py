"""Everything that decides a run's numbers, checked and planned before any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from cil.data.augmentation import Augmentation
from cil.data.scenario import Scenario, Task
from cil.data.seeds import Seeds, seeded
from cil.errors import UserError, check_number
from cil.evaluation import accuracy
from cil.evaluation.probabilities import Probabilities
from cil.features.cache import Features, Progress
from cil.features.store import Store
from cil.learning import selection
from cil.learning.place import Place, Watcher
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.memory.budget import Budget, Reference, growth, resolve, rooms, smallest
from cil.memory.codecs import Codec
from cil.memory.exemplars import COLUMN_BYTES, Memory, fair_quota
from cil.memory.ledger import Bytes, counted, with_exemplars
from cil.nets.pretrained import Preprocessing, Pretrained
from cil.units import show


@dataclass
class Experiment:
    """Everything that decides a run's numbers; fixed once its limits have been asked for.

    Attributes:
        scenario: the tasks.
        build: makes the strategy, freshly initialised, without classes.
        trainer: the gradient loop's options.
        memory: exemplar quota and selection.
        augmentation: from bytes to network input.
        seeds: of initialisation, data and exemplars.
        evaluators: names out of ``cil.evaluation.accuracy.EVALUATORS``; empty: all that the memory allows.
        device: where to compute.
        precision: ``32``, ``bf16-mixed``, ``16-mixed`` or ``64``.
        compile: mode of ``torch.compile`` for losses; None: they are not compiled.
        calibration: share of each class's training images that is set aside to find probabilities on; 0: none is, and
            there is room for what is found elsewhere; None: there are no probabilities.
        reference: the other method whose size is the budget, where the memory's budget names one.
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
    compile: str | None = None
    calibration: float | None = None
    reference: Reference | None = None

    def check(self) -> None:
        """Refuse what cannot work, before any training.

        Raises:
            UserError: names the option, its value and what is legal.
        """
        self._checked  # noqa: B018

    @cached_property
    def _checked(self) -> None:
        self.memory.check()
        if self.calibration is not None:
            check_number("calibration", self.calibration, least=0, below=1)
        strategy = self.fresh()
        strategy.check(self.scenario)
        self.trainer.check(len(self.scenario.tasks), self.scenario.pieces)
        selection.check(self.trainer, self.scenario, self.seeds.data)
        self.memory.check_run(strategy, self.scenario)
        accuracy.check(self.evaluators, strategy, self.memory.keeps(strategy))
        self._check_backbone(strategy)
        self.limits()

    def _check_backbone(self, strategy: Strategy) -> None:
        """Refuse a backbone that does not take these images, and a frozen one of which a method learns copies."""
        place, backbone = self.place(0), strategy.model.backbone
        if isinstance(backbone, Pretrained):
            one = self.scenario.tasks[-1].train.gather(slice(0, 1)).to(self.device)
            backbone.check(place.augmentation.test(one).to(place.dtype))
        if strategy.model.frozen:
            with torch.device("meta"):
                grown = self.make()
                for task in self.scenario.tasks[:2]:
                    grown.grow(task.without_data())
            if sum(isinstance(module, Pretrained) for module in grown.modules()) > 1:
                raise UserError(
                    f"model.frozen: {type(strategy).__name__} learns copies of its backbone, and a frozen one never "
                    "learns; give model.frozen: false"
                )

    @property
    def selected_on(self) -> str:
        """What chooses the epoch that is kept: ``last``, ``validation`` or, if in any task, ``test``."""
        found = {self.trainer.of_task(task.index).select_on for task in self.scenario.tasks}
        return next((name for name in ("test", "validation") if name in found), "last")

    def limits(self) -> Limits:
        """The budget, the bytes of the state after each task, and what is left for exemplars; found once.

        Raises:
            UserError: the state alone, or with one exemplar of each class, exceeds the budget; names the smallest one
                that works.
        """
        return self._limits

    @cached_property
    def _limits(self) -> Limits:
        sizes = growth(self.make, self.scenario)
        budget = self.budget
        if budget is None:
            return Limits(None, sizes, [None] * len(sizes))
        left = rooms(budget, sizes)
        strategy = self.make()
        codec, seen = self.memory.make_codec(self.scenario.image_shape), [task.n_seen for task in self.scenario.tasks]
        needed = [0] * len(seen)
        if not strategy.exemplar_free:
            image, beside = int(self.item_sizes.max()), [self.item_bytes(codec, n) for n in seen]
            needed = [len(codec.shared) + n * (image + more) for n, more in zip(seen, beside, strict=True)]
        for task, room, need in zip(self.scenario.tasks, left, needed, strict=True):
            if room < need:
                with_one = " with one exemplar of each class" if need else ""
                raise UserError(
                    f"memory.budget: {show(budget.bytes)} is less than {type(strategy).__name__} carries after task "
                    f"{task.index + 1}{with_one}, counted as '{budget.convention}'; the smallest budget that works is "
                    f"{show(smallest(budget, sizes, needed))}"
                )
        return Limits(budget, sizes, [0 if strategy.exemplar_free else room for room in left])

    def item_bytes(self, codec: Codec, n_seen: int) -> int:
        """What an exemplar of this strategy takes beside its image, once ``n_seen`` classes were seen."""
        return self.memory.item_bytes(codec, self.outline.exemplar_columns(n_seen))

    @cached_property
    def budget(self) -> Budget | None:
        """The bytes that the run may carry; None if its memory states a number of exemplars."""
        return resolve(self.memory, self.scenario, self.reference)

    def make(self) -> Strategy:
        """The strategy, freshly initialised, without classes; what a budget decides (``sized_by``) is decided."""
        strategy = self.build()  # a file of weights is read here, and not on the meta device
        return self._equipped(strategy, self.sized)

    def _equipped(self, strategy: Strategy, sized: tuple[str, int] | None) -> Strategy:
        if sized is not None:
            setattr(strategy, *sized)
        if self.calibration is not None:
            strategy.probabilities = Probabilities()
        return strategy

    @cached_property
    def sized(self) -> tuple[str, int] | None:
        """The hyper-parameter that the budget decides and the largest value that it allows; None if there is none.

        Raises:
            UserError: there is no budget, or one that does not count what the hyper-parameter makes.
        """
        name = self.outline.sized_by
        if name is None or getattr(self.outline, name) is not None:
            return None
        budget = self.budget
        if budget is None or budget.convention != "strict":
            why = "there is none" if budget is None else f"'{budget.convention}' does not count it"
            raise UserError(f"strategy.{name}: null lets a strict memory.budget decide it, and {why}; give a number")

        def fits(value: int) -> bool:
            return (
                counted(
                    growth(lambda: self._equipped(self.build(), (name, value)), self.scenario)[-1], budget.convention
                )
                <= budget.bytes
            )

        high = 1
        while fits(2 * high):
            high *= 2
        low, high = high, 2 * high  # the largest that fits lies in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return name, low

    @cached_property
    def item_sizes(self) -> np.ndarray:
        """Bytes of training images as stored, int64 (n,): exact for ``raw``, else of a sample of each task."""
        codec = self.memory.make_codec(self.scenario.image_shape)
        if self.memory.codec == "raw":
            return np.array([self.scenario.test.image_bytes])
        parts = [task.train for task in self.scenario.tasks if len(task.train)]
        some = [part.raw(np.linspace(0, len(part) - 1, 16).astype(int)) for part in parts]
        return codec.sizes(codec.encode(np.concatenate(some)))

    def scored_by(self, strategy: Strategy) -> tuple[str, ...]:
        """The evaluators of this run; the strategy's own comes first."""
        own = strategy.evaluator
        chosen = self.evaluators or (("linear", "nearest_mean") if self.memory.keeps(strategy) else ("linear",))
        return (own, *(name for name in chosen if name != own))

    def fresh(self) -> Strategy:
        """The strategy before its first task: the same weights each time."""
        with seeded(self.seeds.init, "build"):
            return self.settle(self.make())

    def settle(self, strategy: Strategy) -> Strategy:
        """Move the strategy, and what has grown on it, to the device in the layout that convolutions like best."""
        if self.precision == "64":
            strategy = strategy.double()
        return strategy.to(self.device).to(memory_format=torch.channels_last)

    @cached_property
    def outline(self) -> Strategy:
        """The strategy on the ``meta`` device, without classes: for its tags, and for what belongs to its weights."""
        with torch.device("meta"):
            return self.build()

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What the backbone does to images in [0, 1] itself; None: they come to it normalised."""
        return getattr(self.outline.model.backbone, "preprocessing", None)

    def place(self, task: int, watcher: Watcher | None = None) -> Place:
        """Where one task is learned.

        Raises:
            UserError: the augmentation does not fit the images or, normalising, the backbone.
        """
        mean, std, own = self.scenario.mean, self.scenario.std, self.preprocessing
        if own is not None:
            if self.augmentation.mean is not None or self.augmentation.std is not None:
                raise UserError(
                    "augmentation.mean, augmentation.std: this backbone normalises images itself, with mean "
                    f"{own.mean} and std {own.std}; leave them out, or change model.preprocessing"
                )
            mean, std = (0.0,) * len(own.mean), (1.0,) * len(own.std)
        bound = self.augmentation.bind(self.scenario.image_shape, mean, std, self.device)
        ordered = not self.scenario.tasks[task].boundary
        place = Place(task, self.seeds.data, bound, self.device, self.precision, ordered=ordered)
        place.compile = self.compile
        if watcher is not None:
            place.watcher = watcher
        return place

    def known_features(self, store: Store | None, machine: str, progress: Progress) -> Features | None:
        """What frozen backbones look features up in, with all images of the scenario; None if that is of no use.

        Args:
            store: on disk; None: no cache is wanted.
            machine: name of the processor or GPU.
            progress: whom to tell.
        """
        if store is None or not self.outline.model.frozen:
            return None
        store.warn = progress.warn
        features = Features(store, machine)
        features.prepare(cast(Pretrained, self.fresh().model.backbone), self.scenario, self.place(0), progress)
        return features

    def grow(self, strategy: Strategy, task: Task) -> None:
        """Make room for a task's classes: the same initial values whenever it is called for this task."""
        with seeded(self.seeds.init, "grow", task.index):
            strategy.grow(task.without_data())
        self.settle(strategy)


@dataclass(frozen=True)
class Limits:
    """What a run may carry after each task.

    Attributes:
        budget: None where a number of exemplars is stated instead.
        sizes: bytes of the state after each task, without exemplars.
        rooms: bytes for exemplars after each task; None without a budget.
    """

    budget: Budget | None
    sizes: list[Bytes]
    rooms: list[int | None]


def plan(experiment: Experiment) -> list[dict[str, Any]]:
    """Classes, exemplars and bytes after each task.

    Args:
        experiment: checked here; nothing is trained.

    Returns:
        For each task: ``task``, ``classes``, ``train_images``, ``exemplars``, ``bytes``. With a codec other than
        ``raw`` the last two are estimates from a sample of images.
    """
    experiment.check()
    scenario, memory, limits = experiment.scenario, experiment.memory, experiment.limits()
    codec, typical = memory.make_codec(scenario.image_shape), float(experiment.item_sizes.mean())
    held = np.zeros(scenario.n_classes, dtype=np.int64)
    rows = []
    for task, state, room in zip(scenario.tasks, limits.sizes, limits.rooms, strict=True):
        held += task.train.counts(scenario.n_classes)
        quota = memory.quota(task.n_seen)
        if room is not None:
            sizes = [lambda n, own=own: round(typical) if n < own else None for own in held]
            beside = experiment.item_bytes(codec, task.n_seen)
            quota = fair_quota(sizes, room - len(codec.shared), beside) if room else 0
        count = int(held.sum() if quota is None else np.minimum(held, quota).sum())
        if memory.selection == "reservoir":
            count = min(int(held.sum()), int(memory.exemplars or 0))
        image_bytes = round(typical * count) + (len(codec.shared) if count else 0)
        numbers = count * sum(experiment.outline.exemplar_columns(task.n_seen).values())
        rows.append(
            {
                "task": task.index,
                "classes": list(task.new),
                "train_images": len(task.train),
                "exemplars": count,
                "bytes": dict(with_exemplars(state, count, image_bytes, codec.length_bytes, COLUMN_BYTES * numbers)),
            }
        )
    return rows
