"""Benchmarks to and from Avalanche (Lomonaco et al., Avalanche: an End-to-End Library for Continual Learning, 2021).

Two of its habits are guarded against here. ``num_experiences`` that does not divide the number of classes drops the
rest of the classes without a word: ``from_avalanche`` looks at the data beneath a benchmark and says which are gone. A
``seed`` given to one of its builders re-seeds the global generators: build inside ``with isolated():``.

Written for avalanche-lib 0.6; imported only where it is used, for it takes seconds to import.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    FlatData,
    TaskAwareSupervisedClassificationDataset,
    TransformGroups,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from cil.data.images import Dataset, ImageSet
from cil.data.scenario import Scenario, disjoint
from cil.errors import UserError


@contextmanager
def isolated() -> Iterator[None]:
    """Give back the global random state of Python, NumPy and PyTorch as it was, whatever is seeded or drawn inside."""
    python, array = random.getstate(), np.random.get_state()
    try:
        # All devices, used or not: a seed set before CUDA starts would be applied when it starts.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def from_avalanche(benchmark: Any, *, name: str | None = None, n_classes: int | None = None) -> Scenario:
    """Our scenario from a class-incremental benchmark of Avalanche: an experience becomes a task.

    Images are read as the data set beneath the benchmark gives them, without any transform, be it the benchmark's or
    that data set's own, so each pixel is as it was published. They are copied into memory. Class ids within a task
    follow the benchmark's labels.

    Args:
        benchmark: has a ``train_stream`` and a ``test_stream``. The test stream has an experience for each training
            experience, with the same classes, or a single one with all classes.
        name: the scenario's name; None: ``avalanche`` and the task sizes.
        n_classes: how many classes there are to be. Needed only where a benchmark leaves out classes of its data set on
            purpose; without it, a class left out is an error.

    Raises:
        UserError: a class is dropped, is in two experiences, or is only in train or only in test; images differ in size
            or are not exactly uint8 images.
    """
    with isolated():  # lazy streams and data sets may draw as they are read
        train = [_Stretch(experience.dataset) for experience in benchmark.train_stream]
        test = [_Stretch(experience.dataset) for experience in benchmark.test_stream]
        labels = _check_streams(train, test)
        _check_dropped(train, test, labels, n_classes)
        position = {label: place for place, label in enumerate(labels)}
        groups = [sorted(position[label] for label in stretch.classes) for stretch in train]
        dataset = Dataset(
            name="avalanche",
            train=_image_set(train, position, "train"),
            test=_image_set(test, position, "test"),
            classes=_class_names(train, labels),
        )
        if dataset.train.image_shape != dataset.test.image_shape:
            raise UserError(
                f"avalanche: train images are (C, H, W) = {dataset.train.image_shape}, "
                f"test images {dataset.test.image_shape}"
            )
        return disjoint(dataset, groups, name=name or f"avalanche sizes {'-'.join(str(len(g)) for g in groups)}")


def to_avalanche(
    scenario: Scenario,
    *,
    train_transform: Callable[[Tensor], Any] | None = None,
    eval_transform: Callable[[Tensor], Any] | None = None,
) -> CLScenario:
    """The benchmark of Avalanche that brings the scenario's tasks, on which its strategies can be trained.

    Labels are the scenario's class ids, task labels are 0, and test experience t holds the test images of task t's new
    classes. Images are read from the scenario's own arrays, not copied.

    Args:
        scenario: class-incremental, each class in one task.
        train_transform: from a uint8 image (C, H, W) to what the network reads in training; None: floats from 0 to 1,
            normalised with the scenario's mean and std if it has them.
        eval_transform: the same in evaluation.

    Raises:
        UserError: a task brings no new class or repeats an old one, or the scenario is a stream without boundaries.
    """
    if scenario.streams:
        raise UserError(
            f"avalanche: '{scenario.name}' is a stream without boundaries, and Avalanche's experiences have them; give "
            "a class-incremental scenario"
        )
    for task in scenario.tasks:
        if not task.n_new or sorted(task.present) != list(task.new):
            raise UserError(
                f"avalanche: task {task.index} has classes {sorted(task.present)}, new ones are {list(task.new)}; "
                "only scenarios in which each class comes once can be given to Avalanche"
            )
    scale = Scale(scenario.mean, scenario.std)
    groups = {"train": (train_transform or scale, None), "eval": (eval_transform or scale, None)}

    def wrap(images: ImageSet, group: str) -> AvalancheDataset:
        leaf = Leaf(images, scenario.class_names)
        wrapped = TaskAwareSupervisedClassificationDataset(
            [leaf],
            data_attributes=[
                DataAttribute(leaf.targets, "targets"),
                DataAttribute(ConstantSequence(0, len(leaf)), "targets_task_labels", use_in_getitem=True),
            ],
            transform_groups=TransformGroups(groups),
        )
        return wrapped.with_transforms(group)

    with isolated():
        benchmark = benchmark_from_datasets(
            train=[wrap(task.train, "train") for task in scenario.tasks],
            test=[wrap(scenario.test.of_classes(task.new), "eval") for task in scenario.tasks],
        )
        return with_task_labels(with_classes_timeline(benchmark))


class Leaf(TorchDataset):
    """An image set as PyTorch data sets are: item i is a uint8 tensor (C, H, W) and an int."""

    def __init__(self, images: ImageSet, classes: Sequence[str]) -> None:
        self.images = images
        self.targets = images.labels.tolist()
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images.gather(np.array([index]))[0].contiguous(), self.targets[index]


@dataclass(frozen=True)
class Scale:
    """From uint8 to floats in [0, 1], then normalised: (C, H, W) -> (C, H, W)."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, image: Tensor) -> Tensor:
        image = image.float() / 255
        if self.mean is None or self.std is None:
            return image
        return (image - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


class _Stretch:
    """The items of one experience: their labels, and the data set and row that each comes from."""

    def __init__(self, dataset: Any) -> None:
        self.labels = [int(label) for label in dataset.targets]
        self.classes = set(self.labels)
        self.sources = _sources(dataset, range(len(dataset)))


def _sources(data: Any, rows: Sequence[int]) -> list[tuple[Any, int]]:
    """(data set, row) beneath all subsets and concatenations for each of these rows."""
    if isinstance(data, AvalancheDataset):
        return _sources(data._flat_data, rows)
    if isinstance(data, Subset):
        return _sources(data.dataset, [data.indices[row] for row in rows])
    if isinstance(data, FlatData):
        if data._indices is not None:
            rows = [data._indices[row] for row in rows]
        parts = data._datasets
    elif isinstance(data, ConcatDataset):
        parts = data.datasets
    else:
        return [(data, int(row)) for row in rows]
    starts = np.cumsum([0] + [len(part) for part in parts])
    part_of = np.searchsorted(starts, np.asarray(rows, dtype=np.int64), side="right") - 1
    found: list[Any] = [None] * len(rows)
    for index in np.unique(part_of).tolist():
        mine = np.flatnonzero(part_of == index)
        beneath = _sources(parts[index], [int(rows[place] - starts[index]) for place in mine.tolist()])
        for place, source in zip(mine, beneath, strict=True):
            found[place] = source
    return found


def _check_streams(train: Sequence[_Stretch], test: Sequence[_Stretch]) -> list[int]:
    """The benchmark's labels in ascending order, if the streams are class-incremental and agree."""
    if not train or not test:
        raise UserError("avalanche: the benchmark has no train or no test experiences")
    home = _homes("train", train)
    if len(test) > 1:
        _homes("test", test)
    seen_train = set(home)
    seen_test = {label for stretch in test for label in stretch.classes}
    if seen_train != seen_test:
        raise UserError(
            f"avalanche: train and test classes differ: only in train {sorted(seen_train - seen_test)}, "
            f"only in test {sorted(seen_test - seen_train)}"
        )
    if len(test) > 1 and [s.classes for s in test] != [s.classes for s in train]:
        index = next(i for i, s in enumerate(test) if i >= len(train) or s.classes != train[i].classes)
        raise UserError(
            f"avalanche: test experience {index} has classes {sorted(test[index].classes)}, training experience "
            f"{index} has {sorted(train[index].classes) if index < len(train) else 'none: there is no such experience'}"
        )
    return sorted(seen_train)


def _homes(stream: str, stretches: Sequence[_Stretch]) -> dict[int, int]:
    """The experience of each label, or the error that it has two."""
    home: dict[int, int] = {}
    for index, stretch in enumerate(stretches):
        if not stretch.classes:
            raise UserError(f"avalanche: {stream} experience {index} is empty")
        for label in sorted(stretch.classes):
            if label in home:
                raise UserError(
                    f"avalanche: class {label} is in {stream} experiences {home[label]} and {index}; in a "
                    "class-incremental benchmark each class comes once, with its own label"
                )
            home[label] = index
    return home


def _check_dropped(
    train: Sequence[_Stretch], test: Sequence[_Stretch], labels: Sequence[int], n_classes: int | None
) -> None:
    if n_classes is not None:
        if len(labels) != n_classes:
            raise UserError(f"avalanche: n_classes={n_classes}, but the benchmark has {len(labels)} classes: {labels}")
        return
    advice = (
        "Avalanche drops the remainder where num_experiences does not divide the number of classes (give "
        "num_classes_per_exp). If they are left out on purpose, pass n_classes."
    )
    known = True
    for stream, stretches in (("train", train), ("test", test)):
        used: dict[int, list[int]] = defaultdict(list)
        leaves = {}
        for leaf, row in (source for stretch in stretches for source in stretch.sources):
            used[id(leaf)].append(row)
            leaves[id(leaf)] = leaf
        for key, rows in used.items():
            own = _own_labels(leaves[key])
            if own is None:
                known = False
                continue
            dropped = sorted(set(own) - {own[row] for row in rows})
            if dropped:
                raise UserError(
                    f"avalanche: classes {dropped} of the data set (in its own labels) are in no {stream} experience. "
                    + advice
                )
    if not known and labels[-1] != len(labels) - 1:  # the second best evidence: gaps in the benchmark's labels
        gone = sorted(set(range(labels[-1] + 1)) - set(labels))
        raise UserError(f"avalanche: classes {gone} are in no experience. {advice}")


def _own_labels(leaf: Any) -> list[int] | None:
    """The labels that a data set gives its own items, if they can be had without reading the images."""
    for key in ("targets", "labels"):
        own = getattr(leaf, key, None)
        if own is not None and len(own) == len(leaf):
            return [int(label) for label in own]
    if isinstance(leaf, TensorDataset) and len(leaf.tensors) > 1 and leaf.tensors[1].ndim == 1:
        return leaf.tensors[1].tolist()
    return None


def _class_names(train: Sequence[_Stretch], labels: Sequence[int]) -> tuple[str, ...]:
    """Names from the data set beneath, the label where it has none or several."""
    names = defaultdict(set)
    own_of: dict[int, list[int] | None] = {}
    for stretch in train:
        for label, (leaf, row) in zip(stretch.labels, stretch.sources, strict=True):
            if id(leaf) not in own_of:
                own_of[id(leaf)] = _own_labels(leaf) if isinstance(getattr(leaf, "classes", None), list) else None
            own = own_of[id(leaf)]
            if own is not None and 0 <= own[row] < len(leaf.classes):
                names[label].add(str(leaf.classes[own[row]]))
    return tuple(names[label].pop() if len(names[label]) == 1 else str(label) for label in labels)


def _image_set(stretches: Sequence[_Stretch], position: dict[int, int], stream: str) -> ImageSet:
    """All images of a stream in its order, uint8 (N, H, W, C), with labels ``position[label]``."""
    sources = [source for stretch in stretches for source in stretch.sources]
    bare = {id(leaf): _without_transforms(leaf) for leaf, _ in sources}
    images: np.ndarray | None = None
    for index, (leaf, row) in enumerate(sources):
        where = f"avalanche: {stream} image {index}"
        image = as_uint8(bare[id(leaf)][row][0], where)
        if images is None:
            images = np.empty((len(sources), *image.shape), dtype=np.uint8)
        if image.shape != images.shape[1:]:
            raise UserError(
                f"{where} is (H, W, C) = {image.shape}, those before are {images.shape[1:]}; images are read without "
                "the benchmark's transforms and must be of one size before them"
            )
        images[index] = image
    assert images is not None  # streams without images were refused
    return ImageSet(images, np.array([position[label] for stretch in stretches for label in stretch.labels]))


def _first(*values: Any) -> Any:
    return values[0] if len(values) == 1 else values


def _without_transforms(leaf: Any) -> Any:
    """The data set itself, or a shallow copy whose transforms do nothing."""
    present = [key for key in ("transform", "target_transform", "transforms") if getattr(leaf, key, None) is not None]
    if present:
        leaf = copy.copy(leaf)
        for key in present:
            setattr(leaf, key, _first)  # not None: some data sets call it without asking
    return leaf


def as_uint8(image: Any, where: str = "image") -> np.ndarray:
    """The uint8 image (H, W, C) that this is exactly: nothing is rounded away, scaled or clipped.

    Args:
        image: a PIL image of mode L or RGB; a tensor (C, H, W) or array (H, W, C), or (H, W) for grey; uint8, integers
            from 0 to 255, or floats that are k / 255.
        where: begins the error's message.

    Raises:
        UserError: it is no such image.
    """
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB"):
            raise UserError(f"{where} is a PIL image of mode {image.mode}; L and RGB can be taken over exactly")
        pixels = np.asarray(image)
    elif isinstance(image, Tensor):
        pixels = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
        if pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)  # from (C, H, W)
    elif isinstance(image, np.ndarray):
        pixels = image
    else:
        raise UserError(f"{where} is a {type(image).__name__}; legal: a PIL image, a tensor, an array")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not 1 <= pixels.shape[-1] <= 4:
        raise UserError(f"{where} has shape {tuple(image.shape)}, which is not that of an image of 1 to 4 channels")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        levels = pixels.astype(np.float64) * 255
        exact = np.abs(levels - np.rint(levels)) <= 510 * np.finfo(pixels.dtype).eps  # rounding of k / 255, no more
    elif pixels.dtype.kind in "iu":
        levels, exact = pixels, np.ones(pixels.shape, dtype=bool)
    else:
        raise UserError(f"{where} holds {pixels.dtype}, which are no pixels")
    wrong = ~(exact & (levels >= 0) & (levels <= 255))
    if wrong.any():
        legal = "k / 255 with k from 0 to 255" if pixels.dtype.kind == "f" else "from 0 to 255"
        raise UserError(f"{where} holds {pixels[wrong][0]}; {pixels.dtype} pixels can be taken over only if {legal}")
    return np.rint(levels).astype(np.uint8)
