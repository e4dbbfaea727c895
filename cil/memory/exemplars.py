"""Exemplars: the images that may be kept, how many, and which."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cil.data.images import ImageSet
from cil.data.scenario import Scenario, Task
from cil.errors import UserError, unknown
from cil.learning.state import under, with_prefix
from cil.learning.strategy import Strategy
from cil.memory.codecs import Codec, make_codec
from cil.ops.herding import closest_to_mean, herding

SELECTIONS = ("herding", "random", "closest_to_mean", "reservoir")
ALIGNMENTS = ("final", "always")
CONVENTIONS = ("strict", "paper")
LABEL_BYTES = 4  # int32
COLUMN_BYTES = 4  # float32
Features = Callable[[ImageSet], Tensor]  # N images -> (N, D)
Describe = Callable[[ImageSet], dict[str, Tensor]]  # N images -> {name: (N, W)}


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
    """How much a run may carry, and which exemplars it keeps in that room.

    Give one of ``exemplars``, ``per_class`` and ``budget``, and null (or, for ``exemplars``, 0) for the others.

    Args:
        exemplars: total number, shared equally by the classes seen (rounded down), or ``all`` for upper bounds that
            keep every image.
        per_class: number for each class, however many classes there are.
        budget: bytes of everything carried, network and exemplars: a number, a text such as ``23.5MiB``, or
            ``{as: {strategy: der, exemplars: 2000}}`` for what that strategy carries after the last task with that many
            raw exemplars; ``as`` also takes ``init_args`` of the strategy and another ``backbone``.
        align: ``final``: the room for exemplars is constant and the budget is reached after the last task;
            ``always``: the budget is reached after each task, so exemplars make room as the network grows.
        convention: what a budget counts: ``strict``, every carried byte; ``paper``, float32 backbone parameters and
            stored images alone.
        selection: ``herding``, ``random``, ``closest_to_mean``, or ``reservoir`` (a uniform sample of the stream, not
            balanced by class; needs ``exemplars``).
        codec: how an exemplar is stored: ``raw``, ``png`` or ``webp`` (lossless), ``jpeg``.
        quality: of ``jpeg``, 1 to 95.
        code_new: whether new images are learned as the codec would store them, too. Without it a network that learns
            JPEG exemplars beside untouched new images can tell old from new by the format alone.
    """

    def __init__(
        self,
        *,
        exemplars: int | Literal["all"] | None = 0,
        per_class: int | None = None,
        budget: int | str | dict[str, Any] | None = None,
        align: Literal["final", "always"] = "final",
        convention: Literal["strict", "paper"] = "strict",
        selection: Literal["herding", "random", "closest_to_mean", "reservoir"] = "herding",
        codec: Literal["raw", "png", "webp", "jpeg"] = "raw",
        quality: int = 75,
        code_new: bool = False,
    ) -> None:
        self.exemplars, self.per_class, self.budget = exemplars, per_class, budget
        self.align, self.convention = align, convention
        self.selection, self.codec, self.quality, self.code_new = selection, codec, quality, code_new

    def check(self) -> None:
        """Refuse contradictory quotas.

        Raises:
            UserError: no quota or more than one, a negative one, an unknown name, or a reservoir without a total.
        """
        given = [self.exemplars is not None, self.per_class is not None, self.budget is not None]
        if self.budget is not None and self.exemplars == 0:
            given[0] = False
        if sum(given) != 1:
            raise UserError(
                "memory: give exemplars (a total), per_class or budget, and null for the others; "
                f"exemplars is {self.exemplars}, per_class is {self.per_class}, budget is {self.budget}"
            )
        for key, legal in (("align", ALIGNMENTS), ("convention", CONVENTIONS)):
            if getattr(self, key) not in legal:
                raise unknown(f"memory.{key}", getattr(self, key), legal)
        for key in ("exemplars", "per_class"):
            value = getattr(self, key)
            if value is None or (key == "exemplars" and value == "all"):
                continue
            if not isinstance(value, int) or value < 0:
                raise UserError(f"memory.{key}: {value!r} must be an integer >= 0" + ", or all" * (key == "exemplars"))
        if self.selection not in SELECTIONS:
            raise unknown("memory.selection", self.selection, SELECTIONS)
        if self.code_new and self.codec != "jpeg":
            raise UserError(f"memory.code_new: {self.codec} stores every pixel, so it would change nothing; give false")
        if self.selection == "reservoir" and (not isinstance(self.exemplars, int) or self.budget is not None):
            raise UserError("memory.selection: reservoir needs a total number in memory.exemplars")

    def check_run(self, strategy: Strategy, scenario: Scenario) -> None:
        """Refuse exemplars that a method does not keep, or too few of them, before any training.

        Args:
            strategy: whose tags are looked at.
            scenario: whose classes share the exemplars.

        Raises:
            UserError: names the option, its value and what is legal.
        """
        name = type(strategy).__name__
        if strategy.exemplar_free and not self.empty and self.budget is None:
            kept = self.per_class if self.exemplars is None else self.exemplars
            raise UserError(f"memory: {name} is exemplar-free and the run gives it {kept} exemplars; set them to 0")
        if strategy.needs_all_data and not self.unbounded:
            raise UserError(
                f"memory.exemplars: {name} trains on all data of the past, outside any budget; say so with "
                f"memory.exemplars: all (it is {self.exemplars})"
            )
        if self.keeps(strategy) and self.quota(scenario.n_classes) == 0 and self.selection != "reservoir":
            raise UserError(
                f"memory.exemplars: {self.exemplars} is less than one for each of the {scenario.n_classes} classes; "
                f"give 0, or {scenario.n_classes} and more"
            )
        self.make_codec(scenario.image_shape)

    @property
    def unbounded(self) -> bool:
        """Whether every image is kept."""
        return self.exemplars == "all"

    @property
    def empty(self) -> bool:
        """Whether no image is ever kept."""
        return not (self.exemplars or self.per_class or self.budget is not None)

    def keeps(self, strategy: Strategy) -> bool:
        """Whether this strategy keeps images in a run with this memory."""
        return not (self.empty or strategy.exemplar_free)

    def make_codec(self, image_shape: tuple[int, int, int]) -> Codec:
        """The codec for images of this shape (C, H, W)."""
        return make_codec(self.codec, image_shape, self.quality)

    def item_bytes(self, codec: Codec, widths: Mapping[str, int]) -> int:
        """What an exemplar takes beside its image, as the convention counts: label, columns and, where needed, length.

        Args:
            codec: of its image.
            widths: numbers of each column.
        """
        if self.convention == "paper":
            return 0
        return LABEL_BYTES + codec.length_bytes + COLUMN_BYTES * sum(widths.values())

    def quota(self, n_seen: int) -> int | None:
        """Exemplars of each class once ``n_seen`` classes were seen; None: as many as there are or as have room."""
        if self.unbounded or self.budget is not None:
            return None
        if self.per_class is not None:
            return self.per_class
        return int(self.exemplars or 0) // n_seen

    def capacity(self, n_seen: int) -> int | None:
        """The most exemplars that may be held once ``n_seen`` classes were seen; None: their number has no limit."""
        if self.unbounded or self.budget is not None:
            return None
        return self.per_class * n_seen if self.per_class is not None else int(self.exemplars or 0)


class Exemplars:
    """The images kept, class by class in order of selection, so that a shrinking quota keeps the prefix.

    Args:
        memory: quota, selection and codec.
        image_shape: (C, H, W) of the images.
    """

    def __init__(self, memory: Memory, image_shape: tuple[int, int, int]) -> None:
        channels, height, width = image_shape
        self.memory = memory
        self.codec = memory.make_codec(image_shape)
        self.items = self.codec.encode(np.empty((0, height, width, channels), dtype=np.uint8))  # (M, ...), as stored
        self.labels = np.empty(0, dtype=np.int32)  # (M,)
        self.columns: dict[str, np.ndarray] = {}  # stored beside each image, float32 (M, W)
        self.seen = 0  # images that passed, for the reservoir

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> np.ndarray:
        """What the stored items show: uint8 (M, H, W, C)."""
        return self.codec.decode(self.items)

    @property
    def image_bytes(self) -> int:
        """Bytes of the images as stored, tables that they share included."""
        return int(self.codec.sizes(self.items).sum()) + (len(self.codec.shared) if len(self) else 0)

    def as_set(self) -> ImageSet | None:
        """The exemplars to learn from, not to write on; None when there are none."""
        if not len(self):
            return None
        images = self.images.view()
        images.flags.writeable = False
        return ImageSet(images, self.labels, columns=self._column_tensors())

    def _column_tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column.copy()) for name, column in self.columns.items()}

    @property
    def column_bytes(self) -> int:
        """Bytes of what is stored beside the images and their labels."""
        return sum(column.nbytes for column in self.columns.values())

    def as_stored(self, task: Task) -> Task:
        """The task as it is learned: with ``memory.code_new`` its images are what the codec would store of them."""
        if not self.memory.code_new:
            return task
        images = self.codec.decode(self.codec.encode(task.train.raw()))
        return dataclasses.replace(task, train=ImageSet(images, task.train.labels))

    def update(
        self,
        task: Task,
        features: Features,
        generator: torch.Generator,
        room: int | None = None,
        *,
        widths: Mapping[str, int] | None = None,
        describe: Describe | None = None,
    ) -> Tensor | None:
        """Take up the task's images and bring every class to the quota.

        Args:
            task: the task just learned.
            features: the current network's features of a set of images, (N, D); not called by random selections.
            generator: of random selections.
            room: bytes for all exemplars, in the memory's convention; given if and only if the memory has a budget.
            widths: of the columns that are stored beside each image; a column may be wider than before.
            describe: gives those columns of images that are taken up now, as they are stored.

        Returns:
            The features of the exemplars, (M, D), as far as selecting them took features and they are stored without
            loss; NaN in the rows of the others. None: of none of them.
        """
        assert (room is None) == (self.memory.budget is None), "a budget comes with room for exemplars"
        if self.memory.empty:
            return None
        known, widths = None, widths or {}
        if room is not None and room <= 0:
            self.items, self.labels, before = self.items[:0], self.labels[:0], np.empty(0, dtype=np.int64)
        elif self.memory.selection == "reservoir":
            before = self._reservoir(task.train, generator)
        else:
            item_bytes = self.memory.item_bytes(self.codec, widths)
            known, before = self._by_class(task, features, generator, room, item_bytes)
        self.seen += len(task.train)
        self._describe(before, widths, describe)
        return known

    def _describe(self, before: np.ndarray, widths: Mapping[str, int], describe: Describe | None) -> None:
        """Carry the columns of exemplars that stayed, and find those of new ones.

        Args:
            before: where each exemplar was before, int64 (M,); -1: it is new.
            widths: of the columns.
            describe: gives the columns of images.

        Raises:
            RuntimeError: it gives other columns than ``widths`` says, or a column has become narrower.
        """
        old, new = np.flatnonzero(before >= 0), np.flatnonzero(before < 0)
        columns = {name: np.full((len(before), width), np.nan, dtype=np.float32) for name, width in widths.items()}
        for name, column in self.columns.items():
            if column.shape[1] > widths.get(name, 0):
                raise RuntimeError(f"exemplar_columns: {name} had {column.shape[1]} numbers, now {widths.get(name, 0)}")
            columns[name][old, : column.shape[1]] = column[before[old]]
        if columns and len(new):
            assert describe is not None, "columns come with what describes images"
            found = describe(ImageSet(self.codec.decode(self.items[new]), self.labels[new]))
            given = {name: column.shape[1] for name, column in found.items()}
            if given != dict(widths):
                raise RuntimeError(f"describe gives columns of {given}, and exemplar_columns says {dict(widths)}")
            for name, values in found.items():
                columns[name][new] = values.float().cpu().numpy()
        self.columns = columns

    def _by_class(
        self, task: Task, features: Features, generator: torch.Generator, room: int | None, item_bytes: int
    ) -> tuple[Tensor | None, np.ndarray]:
        """Bring every class to the quota; features as ``update`` gives them, and where each exemplar was before."""
        quota = self.memory.quota(task.n_seen)
        queues: list[Queue] = []
        places: list[np.ndarray] = []  # of each class's exemplars so far
        ranked: dict[int, Tensor] = {}
        for label in range(task.n_seen):
            places.append(np.flatnonzero(self.labels == label))
            mine = self.items[places[label]]
            if label not in task.present:
                queues.append(Queue(mine, self.codec))
                continue
            candidates = task.train.of_classes([label])
            if len(mine):  # the class comes back: what was kept competes with what is new
                both = np.concatenate([self.codec.decode(mine), candidates.raw()])
                candidates = ImageSet(both, np.full(len(both), label))
            # How many have room is known only when all classes are ranked, so a budget ranks all candidates.
            order, found = self._select(candidates, quota if room is None else len(candidates), features, generator)
            queues.append(Queue(mine, self.codec, candidates, order))
            if found is not None and self.codec.lossless:
                ranked[label] = found[torch.from_numpy(order).to(found.device)]
        if room is not None:
            room -= len(self.codec.shared)
            quota = fair_quota([queue.size for queue in queues], room, item_bytes)
        items = [queue.first(quota) for queue in queues]
        stayed = [queue.before(quota) for queue in queues]
        # Position -1 is that of the -1 behind the others.
        before = np.concatenate([np.append(own, -1)[which] for own, which in zip(places, stayed, strict=True)])
        self.items = np.concatenate(items)
        self.labels = np.repeat(np.arange(task.n_seen, dtype=np.int32), [len(part) for part in items])
        if not ranked:
            return None, before
        some = next(iter(ranked.values()))
        nothing = some.new_full((max(map(len, items)), some.shape[1]), torch.nan)
        return torch.cat([ranked.get(label, nothing)[: len(part)] for label, part in enumerate(items)]), before

    def _select(
        self, candidates: ImageSet, quota: int | None, features: Features, generator: torch.Generator
    ) -> tuple[np.ndarray, Tensor | None]:
        """The best candidates in order of preference, and the features of all, if that took any."""
        if quota is None:
            return np.arange(len(candidates)), None
        if self.memory.selection == "random":
            return torch.randperm(len(candidates), generator=generator)[:quota].numpy(), None
        select, found = herding if self.memory.selection == "herding" else closest_to_mean, features(candidates)
        return select(found, quota), found

    def _reservoir(self, arriving: ImageSet, generator: torch.Generator) -> np.ndarray:
        """Let images arrive; where each exemplar was before."""
        size = int(self.memory.exemplars or 0)
        order = torch.randperm(len(arriving), generator=generator).numpy()
        slots, chosen = reservoir(self.seen, len(arriving), size, generator)
        new = slots >= len(self)  # slots that are empty: at first, and after exemplars were removed
        slots[new] = len(self) + np.arange(new.sum())
        room = max(len(self), int(slots.max(initial=-1)) + 1)
        items = np.empty((room, *self.items.shape[1:]), dtype=self.items.dtype)
        labels = np.empty(room, dtype=np.int32)
        items[: len(self)], labels[: len(self)] = self.items, self.labels
        taken = order[chosen]
        items[slots], labels[slots] = self.codec.encode(arriving.raw(taken)), arriving.labels.numpy()[taken]
        before = np.full(room, -1, dtype=np.int64)
        before[: len(self)] = np.arange(len(self))
        before[slots] = -1
        self.items, self.labels = items, labels
        return before

    def remove(self, which: np.ndarray) -> None:
        """Take exemplars out; the others keep their order.

        Args:
            which: bool (M,)
        """
        self.items, self.labels = self.items[~which], self.labels[~which]
        self.columns = {name: column[~which] for name, column in self.columns.items()}

    def state(self) -> dict[str, Tensor]:
        """The exemplars as tensors: what a checkpoint keeps."""
        columns = with_prefix("columns", self._column_tensors())
        return {**self.codec.pack(self.items), "labels": torch.from_numpy(self.labels.copy()), **columns}

    def load(self, state: dict[str, Tensor], seen: int) -> None:
        """Take back what ``state`` gave, after ``seen`` images have passed."""
        self.items, self.labels, self.seen = self.codec.unpack(state), state["labels"].numpy(), seen
        self.columns = {name: column.numpy() for name, column in under("columns", state).items()}


class Queue:
    """One class's images in order of preference, encoded only as far as they are asked for.

    Args:
        kept: items stored already; all there is, in their order, if there are no candidates.
        codec: of the items.
        candidates: the kept images, decoded, followed by new ones.
        order: of preference, positions in the candidates.
    """

    def __init__(
        self, kept: np.ndarray, codec: Codec, candidates: ImageSet | None = None, order: np.ndarray | None = None
    ) -> None:
        self.kept, self.codec, self.candidates = kept, codec, candidates
        self.order = np.arange(len(kept)) if order is None else order
        self.items = kept if candidates is None else kept[:0]

    def first(self, n: int | None) -> np.ndarray:
        """The best n items, all of them for None; fewer if there are not so many."""
        n = len(self.order) if n is None else min(n, len(self.order))
        if n > len(self.items) and self.candidates is not None:
            wanted = self.order[len(self.items) : n]
            # What was stored is not encoded a second time, which would cost a lossy codec quality.
            old = wanted < len(self.kept)
            items = np.empty((len(wanted), *self.kept.shape[1:]), dtype=self.kept.dtype)
            items[old] = self.kept[wanted[old]]
            items[~old] = self.codec.encode(self.candidates.raw(wanted[~old]))
            self.items = np.concatenate([self.items, items])
        return self.items[:n]

    def before(self, n: int | None) -> np.ndarray:
        """Where each of the best n items is among the kept ones, int64; -1: it is new."""
        wanted = self.order[:n]
        return np.where(wanted < len(self.kept), wanted, -1)

    def size(self, n: int) -> int | None:
        """Bytes of the image at position n; None if there are not so many."""
        if n >= len(self.order):
            return None
        if n >= len(self.items):
            self.first(n + 1 + n // 8)  # a few more than asked: encoding is slow, and many may not be wanted
        return int(self.codec.sizes(self.items[n : n + 1])[0])


def fair_quota(sizes: Sequence[Callable[[int], int | None]], room: int, item_bytes: int) -> int:
    """The largest number of images that every class can keep, classes with fewer images keeping all of theirs.

    Args:
        sizes: for each class, bytes of its n-th image, None where it has no such image.
        room: bytes for all classes together.
        item_bytes: bytes beside each image.

    Returns:
        q, the largest with sum over classes of the first q images' bytes <= room.
    """
    quota = 0
    while True:
        row = [size + item_bytes for of_class in sizes if (size := of_class(quota)) is not None]
        room -= sum(row)
        if not row or room < 0:
            return quota
        quota += 1
