"""Which epoch's model is kept: the last one, or the best on images held out for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from cil.data.images import ImageSet, gathered, moved, slices
from cil.data.scenario import Scenario, Task
from cil.data.seeds import generator
from cil.errors import UserError
from cil.learning.inference import batch_size
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.machine import distributed


def check(trainer: Trainer, scenario: Scenario, seed: int) -> None:
    """Refuse a scenario of which images to choose an epoch by cannot be held out, before any training.

    Args:
        trainer: of the run.
        scenario: the tasks to come.
        seed: of the draw.

    Raises:
        UserError: names the task, the class and the share; or there are no test images to choose by.
    """
    for task in (task for task in scenario.tasks if len(task.train)):  # a model has no images of those before
        own = trainer.of_task(task.index)
        if own.select_on == "validation":
            divide(task, own.validation_share, seed)
        if own.select_on == "test" and not len(scenario.test):
            raise UserError("trainer.select_on: test needs test images, and there are none; legal: last, validation")


def divide(task: Task, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """The training images of a task in two: to learn from, and held out; of each class the same share.

    Args:
        task: at least two images of each class.
        share: held out, rounded to whole images of each class.
        seed: of the draw.

    Raises:
        UserError: of some class nothing would be left on one side.
    """
    labels, draws, held = task.train.labels.numpy(), generator(seed, "validation", task.index), []
    for label in task.present:
        own = np.flatnonzero(labels == label)
        n = round(share * len(own))
        if not 0 < n < len(own):
            raise UserError(
                f"trainer.validation_share: {share} of the {len(own)} images of class {label} in task {task.index + 1} "
                f"is {n}, and both parts need images; choose another share, or select_on: last for this task "
                "(trainer.per_task)"
            )
        held.append(own[torch.randperm(len(own), generator=draws).numpy()[:n]])
    out = np.zeros(len(labels), dtype=bool)
    out[np.concatenate(held)] = True
    return task.train.subset(np.flatnonzero(~out)), task.train.subset(np.flatnonzero(out))


def hold_out(task: Task, trainer: Trainer, scenario: Scenario, seed: int) -> Task:
    """Tell a trainer which images choose its best epoch; the task without those held out of it.

    Args:
        task: to be learned.
        trainer: for this task, with its place.
        scenario: whose test images ``select_on: test`` uses.
        seed: of the draw.

    Raises:
        UserError: the images cannot be divided.
    """
    if trainer.select_on == "last":
        return task
    place = trainer.placed()
    if trainer.select_on == "test":
        place.judge = judge(scenario.test.of_classes(range(task.n_seen)), place)
        return task
    kept, held = divide(task, trainer.validation_share, seed)
    place.judge = judge(held, place)
    return dataclasses.replace(task, train=kept)


def set_aside(task: Task, share: float, seed: int) -> tuple[Task, ImageSet]:
    """A task without some of its images, and those: of each class this share, rounded; one at least is learned.

    Args:
        task: to be learned.
        share: set aside, in (0, 1); a class of few images may have none.
        seed: of the draw.
    """
    labels, draws, aside = task.train.labels.numpy(), generator(seed, "calibration", task.index), []
    for label in task.present:
        own = np.flatnonzero(labels == label)
        n = min(round(share * len(own)), len(own) - 1)
        aside.append(own[torch.randperm(len(own), generator=draws).numpy()[:n]])
    out = np.zeros(len(labels), dtype=bool)
    out[np.concatenate(aside)] = True
    kept, held = (task.train.subset(np.flatnonzero(which)) for which in (~out, out))
    return dataclasses.replace(task, train=kept), held


def judge(images: ImageSet, place: Place) -> Callable[[Strategy], float]:
    """The accuracy of a learning strategy on these images, by its ``learning_scores``."""

    @torch.inference_mode()
    def accuracy(strategy: Strategy) -> float:
        strategy.eval()
        right, own = torch.zeros((), dtype=torch.int64, device=place.device), distributed.own(images)
        parts = slices(len(own), batch_size(place))
        for part, read in zip(parts, gathered(own, parts), strict=True):
            x = place.augmentation.test(moved(read, place.device)).to(place.dtype)
            with place.autocast():
                found = strategy.learning_scores(x).argmax(1)
            right += (found == own.labels[part].to(place.device)).sum()
        return int(distributed.sum_(right)) / len(images)

    return accuracy
