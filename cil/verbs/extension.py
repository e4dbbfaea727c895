"""Teach a model more: one task more of the run that it belongs to, from its state and the new pictures alone."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cil.data.images import ClassPrint, Dataset, ImageSet
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.experiment.provenance import Origin
from cil.experiment.run import run
from cil.units import show
from cil.verbs.learned import Learned, State, event, plain
from cil.verbs.pictures_given import Named, named


@dataclasses.dataclass
class Extension:
    """One task more, planned and checked before it starts.

    Attributes:
        learned: what it begins from.
        images: to learn, labels as ids.
        names: of classes that are new, in the order of their ids.
        returned: names of classes known before.
        experiment: the run with this task.
    """

    learned: Learned
    images: ImageSet
    names: tuple[str, ...]
    returned: tuple[str, ...]
    experiment: Experiment

    def told(self) -> list[str]:
        """What it will do, and what a plan for fewer classes means for it, in sentences."""
        out = [f"{len(self.images)} pictures, {len(self.names)} new classes: {', '.join(self.names) or 'none'}"]
        if self.returned:
            out.append(f"classes that are known and come again: {', '.join(self.returned)}")
        limits = self.experiment.limits()
        budget = limits.budget
        if budget is not None:
            room = limits.rooms[-1] or 0
            kind = "reached after the last task of the run" if budget.align == "final" else "reached after every task"
            out.append(
                f"the budget stays {show(budget.bytes)} ({budget.convention}), planned as {kind}; the longer run "
                f"leaves {show(room)} for exemplars"
            )
        if self.experiment.sized is not None:
            name, value = self.experiment.sized
            out.append(f"{name} stays {value}, which the budget had decided for fewer classes")
        return out

    def learn(self, *, folder: Path | None = None, every: int = 0, progress: Progress | None = None) -> State:
        """Learn it.

        Args:
            folder: where the state is kept while the task is learned, so that it goes on after an interruption; None:
                nowhere.
            every: epochs after which that is done.
            progress: whom to tell.

        Raises:
            UserError: the folder holds another extension, or cannot be written.
            DivergedError: the loss became NaN or infinite.
        """
        learned, experiment = self.learned, self.experiment
        task, origin = experiment.scenario.tasks[-1], self.origin
        with learned.computing():
            records, strategy, exemplars = run(
                experiment,
                start=learned.start(experiment),
                checkpoints=None if folder is None else Checkpoints(folder),
                checkpoint_every=every,
                resume=folder is not None,
                progress=progress,
                origin=origin,
            )
        strategy.eval()
        made = event(
            "extend",
            classes=list(self.names),
            returned=list(self.returned),
            images=len(self.images),
            seconds=records[-1]["seconds"],
        )
        return State(
            origin,
            learned.blueprint.longer(task, self.names),
            plain(strategy, exemplars),
            (*learned.history, made),
        )

    @cached_property
    def origin(self) -> Origin:
        """What the longer run learns from; the classes' images by their own hashes."""
        before = self.learned.origin
        task = self.experiment.scenario.tasks[-1]
        fingerprint, prints = self.images.fingerprints(task.n_seen)
        new = tuple(ClassPrint(*prints[label], 0, "") for label in task.new)
        told = (before.fingerprint, fingerprint, *self.names)
        return dataclasses.replace(
            before,
            fingerprint=hashlib.sha256(repr(told).encode()).hexdigest(),
            task_sizes=(*before.task_sizes, task.n_new),
            class_names=(*before.class_names, *self.names),
            class_prints=None if before.class_prints is None else (*before.class_prints, *new),
        )


def plan(learned: Learned, data: Any) -> Extension:
    """One task more, checked before anything is learned.

    Args:
        learned: what is to learn more; it stays as it is.
        data: pictures with the names of their classes, as :func:`cil.verbs.pictures_given.named` takes them.

    Raises:
        UserError: the pictures cannot be used, the method cannot learn them, or the budget has no room for them.
    """
    given = named(data, learned.blueprint)
    known = learned.blueprint.ids
    names = new_names(given, known, data)
    ids = known | {name: len(learned.blueprint.class_names) + i for i, name in enumerate(names)}
    images = ImageSet(given.images, np.array([ids[name] for name in given.names], dtype=np.int64))
    experiment = learned.longer(images, names)
    experiment.check()
    returned = tuple(name for name in known if name in set(given.names))
    return Extension(learned, images, names, returned, experiment)


def new_names(given: Named, known: dict[str, int], data: Any) -> tuple[str, ...]:
    """Names that a model does not know, in the order of a data set's classes, else of their first pictures."""
    order = data.classes if isinstance(data, Dataset) else given.names
    there = set(given.names)
    return tuple(dict.fromkeys(name for name in order if name in there and name not in known))
