"""What is needed to use a model where its data are not: written into each checkpoint, beside what was learned from."""

from __future__ import annotations

import dataclasses
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
            ``boundary``, whether its start was told.
        preprocessing: what the backbone does to images itself; None: nothing.
        sized: the hyper-parameter that a budget decided, and its value; None: there is none.
        precision: in which the run computed.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...]
    tasks: tuple[dict[str, Any], ...]
    preprocessing: dict[str, Any] | None
    sized: tuple[str, int] | None
    precision: str

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
            tasks=tuple({"new": one.n_new, "present": list(one.present), "boundary": one.boundary} for one in done),
            preprocessing=None if own is None else own.as_dict(),
            sized=experiment.sized,
            precision=experiment.precision,
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Blueprint:
        """What ``as_json`` gave, read back."""
        known = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        for name in ("image_shape", "mean", "std", "class_names", "tasks", "sized"):
            known[name] = None if known[name] is None else tuple(known[name])
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """JSON values by attribute."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def scenario(self, name: str) -> Scenario:
        """The tasks so far without their images: what a strategy grows by.

        Args:
            name: for people.
        """
        channels, height, width = self.image_shape
        nothing = ImageSet(np.empty((0, height, width, channels), dtype=np.uint8), np.empty(0, dtype=np.int64))
        tasks: list[Task] = []
        for index, one in enumerate(self.tasks):
            start = tasks[-1].n_seen if tasks else 0
            new = range(start, start + one["new"])
            tasks.append(Task(index, new, tuple(one["present"]), nothing, one["boundary"]))
        n = len(self.class_names)
        return Scenario(
            name=name,
            tasks=tuple(tasks),
            test=nothing,
            image_shape=self.image_shape,
            class_order=tuple(range(n)),
            class_names=self.class_names,
            fingerprint="",
            data_fingerprint="",
            mean=self.mean,
            std=self.std,
        )
