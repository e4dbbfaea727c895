"""What is needed to use a model where its data are not: written into each checkpoint, beside what was learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cil.data.images import ImageSet
from cil.data.scenario import Scenario, Task
from cil.experiment.experiment import Experiment


@dataclass(frozen=True)
class Blueprint:
    """The shape of what was learned so far, without an image.

    Attributes:
        image_shape: (C, H, W) of the images as they are stored.
        mean: channel means by which the data set is normalised; None: it has no convention.
        std: channel standard deviations, likewise.
        class_names: of the classes seen, by class id.
        tasks: of each task so far ``new``, how many classes it brought; ``present``, ids of those with images;
            ``images``, how many; ``boundary``, whether its start was told.
        preprocessing: what the backbone does to images itself; None: nothing.
        sized: the hyper-parameter that a budget decided, and its value; None: there is none.
        precision: in which the run computed.
        budget: in bytes, whatever it was stated as; None: there is none.
        forgotten: ids of classes that were learned and are not known any more; their names are empty.
        calibrated: whether it carries a temperature and confidences.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...]
    tasks: tuple[dict[str, Any], ...]
    preprocessing: dict[str, Any] | None
    sized: tuple[str, int] | None
    precision: str
    budget: int | None = None
    forgotten: tuple[int, ...] = ()
    calibrated: bool = False

    @classmethod
    def of(cls, experiment: Experiment, task: int) -> Blueprint:
        """Of an experiment after the task of this index."""
        scenario, own = experiment.scenario, experiment.preprocessing
        done = scenario.tasks[: task + 1]
        return cls(
            image_shape=scenario.image_shape,
            mean=scenario.mean,
            std=scenario.std,
            class_names=scenario.class_names[: done[-1].n_seen],
            tasks=tuple(map(outline, done)),
            preprocessing=None if own is None else own.as_dict(),
            sized=experiment.sized,
            precision=experiment.precision,
            calibrated=experiment.calibration is not None,
            budget=None if experiment.budget is None else experiment.budget.bytes,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Blueprint:
        """What ``as_json`` gave, read back."""
        known = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        for name in ("image_shape", "mean", "std", "class_names", "tasks", "sized", "forgotten"):
            known[name] = None if known[name] is None else tuple(known[name])
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """JSON values by attribute."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def scenario(self, name: str, more: ImageSet | None = None, names: Sequence[str] = ()) -> Scenario:
        """The tasks so far without their images: what a strategy grows by; and maybe one task more, with its images.

        Args:
            name: for people.
            more: the training images of one task more, labels as ids.
            names: of the classes that it brings; their ids follow those known.
        """
        channels, height, width = self.image_shape
        nothing = ImageSet(np.empty((0, height, width, channels), dtype=np.uint8), np.empty(0, dtype=np.int64))
        tasks: list[Task] = []
        for index, one in enumerate(self.tasks):
            start = tasks[-1].n_seen if tasks else 0
            new = range(start, start + one["new"])
            tasks.append(Task(index, new, tuple(one["present"]), nothing, one["boundary"]))
        known = len(self.class_names)
        if more is not None:
            present = tuple(np.unique(more.labels.numpy()).tolist())
            tasks.append(Task(len(tasks), range(known, known + len(names)), present, more))
        n = known + len(names)
        return Scenario(
            name=name,
            tasks=tuple(tasks),
            test=nothing,
            image_shape=self.image_shape,
            class_order=tuple(range(n)),
            class_names=(*self.class_names, *names),
            fingerprint="",
            data_fingerprint="",
            mean=self.mean,
            std=self.std,
        )

    def longer(self, task: Task, names: Sequence[str]) -> Blueprint:
        """With one task more, which brings classes of these names."""
        return dataclasses.replace(self, class_names=(*self.class_names, *names), tasks=(*self.tasks, outline(task)))

    @property
    def ids(self) -> dict[str, int]:
        """The id of each class that is known, by name."""
        return {name: label for label, name in enumerate(self.class_names) if label not in self.forgotten}

    @property
    def images_seen(self) -> int:
        """Training images of all tasks."""
        return sum(one["images"] for one in self.tasks)


def outline(task: Task) -> dict[str, Any]:
    """A task without its images."""
    return {"new": task.n_new, "present": list(task.present), "images": len(task.train), "boundary": task.boundary}
