"""Exemplars: the images that may be kept, how many, and which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cil.data import ImageSet
from cil.errors import UserError, unknown
from cil.scenario import Task

SELECTIONS = ("herding", "random", "closest_to_mean", "reservoir")
Features = Callable[[ImageSet], Tensor]  # N images -> (N, D)


def herding(features: Tensor, n: int) -> np.ndarray:
    """Indices of n images, each chosen so that the mean of those chosen so far is nearest to the class mean.

    Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017, algorithm 4, without
    replacement. One matrix-vector product a pick: with s the sum of the picks,
    ||mu - (v + s) / k||^2 k^2 = ||v||^2 + 2 v.(s - k mu) + terms without v. Ties go to the lowest index.

    Args:
        features: one class's features (N, D), not yet normalised.
        n: how many; at most N are returned.

    Returns:
        int64 indices (min(n, N),), best first.

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    v = features.cpu().double()
    if not torch.isfinite(v).all():
        raise ValueError("herding: a feature is NaN or infinite, so the network is broken")
    v = v / (v.norm(dim=1, keepdim=True) + 1e-8)
    mean = v.mean(0)  # (D,)
    norms, towards_mean = (v * v).sum(1), v @ mean  # (N,), (N,)
    with_sum = torch.zeros(len(v), dtype=v.dtype)  # v . s
    chosen: list[int] = []
    free = torch.zeros(len(v), dtype=v.dtype)
    for k in range(1, min(n, len(v)) + 1):
        distance = norms + 2 * (with_sum - k * towards_mean) + free
        pick = int(distance.argmin())
        chosen.append(pick)
        free[pick] = torch.inf
        with_sum += v @ v[pick]
    return np.array(chosen, dtype=np.int64)


def closest_to_mean(features: Tensor, n: int) -> np.ndarray:
    """Indices of the n images whose normalised features are nearest to the class mean, nearest first.

    Args:
        features: one class's features (N, D).
        n: how many; at most N are returned.
    """
    v = features.cpu().double()
    v = v / (v.norm(dim=1, keepdim=True) + 1e-8)
    distance = (v - v.mean(0)).norm(dim=1)  # (N,)
    return torch.argsort(distance, stable=True)[:n].cpu().numpy()


def reservoir(seen: int, n: int, size: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which of n arriving items are kept by a reservoir that has seen others before, and in which slots.

    Vitter, Random Sampling with a Reservoir, 1985, algorithm R: item i of the whole stream (from 0) takes slot i while
    i < size, else a slot j drawn from 0..i if j < size. Later items overwrite earlier ones.

    Args:
        seen: items that came before.
        n: items that come now.
        size: slots.
        generator: of the draws.

    Returns:
        (slots, items): int64 arrays of equal length, each slot at most once, items as positions in 0..n-1.
    """
    position = np.arange(seen, seen + n)
    draw = (torch.rand(n, generator=generator, dtype=torch.float64).numpy() * (position + 1)).astype(np.int64)
    slot = np.where(position < size, position, draw)
    item = np.flatnonzero(slot < size)
    latest = np.full(size, -1, dtype=np.int64)
    np.maximum.at(latest, slot[item], item)  # the last writer of each slot
    slots = np.flatnonzero(latest >= 0)
    return slots, latest[slots]


class Memory:
    """How many exemplars a run keeps, and how they are selected.

    Args:
        exemplars: total number, shared equally by the classes seen (rounded down), or ``all`` for upper bounds that
            keep every image; null when ``per_class`` is given.
        per_class: number for each class, however many classes there are; null when ``exemplars`` is given.
        selection: ``herding``, ``random``, ``closest_to_mean``, or ``reservoir`` (a uniform sample of the stream, not
            balanced by class; needs ``exemplars``).
    """

    def __init__(
        self,
        *,
        exemplars: int | Literal["all"] | None = 0,
        per_class: int | None = None,
        selection: Literal["herding", "random", "closest_to_mean", "reservoir"] = "herding",
    ) -> None:
        self.exemplars, self.per_class, self.selection = exemplars, per_class, selection

    def check(self) -> None:
        """Refuse contradictory quotas.

        Raises:
            UserError: both or neither quota given, a negative one, or a reservoir without a total.
        """
        if (self.exemplars is None) == (self.per_class is None):
            raise UserError(
                "memory: give exemplars (a total) or per_class, and null for the other; "
                f"exemplars is {self.exemplars}, per_class is {self.per_class}"
            )
        for key in ("exemplars", "per_class"):
            value = getattr(self, key)
            if value is None or (key == "exemplars" and value == "all"):
                continue
            if not isinstance(value, int) or value < 0:
                raise UserError(f"memory.{key}: {value!r} must be an integer >= 0" + ", or all" * (key == "exemplars"))
        if self.selection not in SELECTIONS:
            raise unknown("memory.selection", self.selection, SELECTIONS)
        if self.selection == "reservoir" and not isinstance(self.exemplars, int):
            raise UserError("memory.selection: reservoir needs a total number in memory.exemplars")

    @property
    def unbounded(self) -> bool:
        """Whether every image is kept."""
        return self.exemplars == "all"

    @property
    def empty(self) -> bool:
        """Whether no image is ever kept."""
        return not self.unbounded and not (self.exemplars or self.per_class)

    def quota(self, n_seen: int) -> int | None:
        """Exemplars of each class once ``n_seen`` classes were seen; None: all of them."""
        if self.unbounded:
            return None
        if self.per_class is not None:
            return self.per_class
        return int(self.exemplars or 0) // n_seen

    def capacity(self, n_seen: int) -> int | None:
        """The most exemplars that may be held once ``n_seen`` classes were seen; None: no limit."""
        if self.unbounded:
            return None
        return self.per_class * n_seen if self.per_class is not None else int(self.exemplars or 0)


class Exemplars:
    """The images kept, class by class in order of selection, so that a shrinking quota keeps the prefix.

    Args:
        memory: quota and selection.
        image_shape: (C, H, W) of the images.
    """

    def __init__(self, memory: Memory, image_shape: tuple[int, int, int]) -> None:
        channels, height, width = image_shape
        self.memory = memory
        self.images = np.empty((0, height, width, channels), dtype=np.uint8)  # (M, H, W, C)
        self.labels = np.empty(0, dtype=np.int32)  # (M,)
        self.seen = 0  # images that passed, for the reservoir

    def __len__(self) -> int:
        return len(self.labels)

    def as_set(self) -> ImageSet | None:
        """The exemplars to learn from, not to write on; None when there are none."""
        if not len(self):
            return None
        images = self.images.view()
        images.flags.writeable = False
        return ImageSet(images, self.labels)

    def update(self, task: Task, features: Features, generator: torch.Generator) -> None:
        """Take up the task's images and bring every class to the quota.

        Args:
            task: the task just learned.
            features: the current network's features of a set of images, (N, D); not called by random selections.
            generator: of random selections.
        """
        if self.memory.empty:
            return
        if self.memory.selection == "reservoir":
            self._reservoir(task.train, generator)
        else:
            self._by_class(task, features, generator)
        self.seen += len(task.train)

    def _by_class(self, task: Task, features: Features, generator: torch.Generator) -> None:
        quota = self.memory.quota(task.n_seen)
        images, labels = [], []
        for label in range(task.n_seen):
            mine = self.images[self.labels == label]
            if label in task.present:
                candidates = task.train.of_classes([label])
                if len(mine):  # the class comes back: what was kept competes with what is new
                    both = np.concatenate([mine, candidates.raw()])
                    candidates = ImageSet(both, np.full(len(both), label))
                mine = candidates.raw(self._select(candidates, quota, features, generator))
            images.append(mine[:quota])
            labels.append(np.full(len(images[-1]), label, dtype=np.int32))
        self.images, self.labels = np.concatenate(images), np.concatenate(labels)

    def _select(
        self, candidates: ImageSet, quota: int | None, features: Features, generator: torch.Generator
    ) -> np.ndarray:
        if quota is None:
            return np.arange(len(candidates))
        if self.memory.selection == "random":
            return torch.randperm(len(candidates), generator=generator)[:quota].numpy()
        select = herding if self.memory.selection == "herding" else closest_to_mean
        return select(features(candidates), quota)

    def _reservoir(self, arriving: ImageSet, generator: torch.Generator) -> None:
        size = int(self.memory.exemplars or 0)
        order = torch.randperm(len(arriving), generator=generator).numpy()
        slots, items = reservoir(self.seen, len(arriving), size, generator)
        room = max(len(self), int(slots.max(initial=-1)) + 1)
        images = np.empty((room, *self.images.shape[1:]), dtype=np.uint8)
        labels = np.empty(room, dtype=np.int32)
        images[: len(self)], labels[: len(self)] = self.images, self.labels
        chosen = order[items]
        images[slots], labels[slots] = arriving.raw(chosen), arriving.labels.numpy()[chosen]
        self.images, self.labels = images, labels

    def state(self) -> dict[str, Tensor]:
        """The exemplars as tensors: what a checkpoint keeps."""
        return {
            "images": torch.from_numpy(np.ascontiguousarray(self.images)),
            "labels": torch.from_numpy(self.labels.copy()),
        }

    def load(self, state: dict[str, Tensor], seen: int) -> None:
        """Take back what ``state`` gave, after ``seen`` images have passed."""
        self.images, self.labels, self.seen = state["images"].numpy(), state["labels"].numpy(), seen
