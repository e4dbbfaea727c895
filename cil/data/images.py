"""Images as they are kept: uint8 arrays, read by index, never converted before a batch needs them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Pixels(Protocol):
    """What images are read from: an array, or what reads like one, such as files that are decoded when they are read.

    It may have ``stream``, like ``ImageSet.stream`` with arrays of rows, to prepare some batches ahead.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)"""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8"""

    @property
    def ndim(self) -> int:
        """4"""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


class ImageSet:
    """Labelled uint8 images: a view, by index, of one or more arrays in memory or mapped from disk.

    Args:
        images: uint8 array (N, H, W, C), in memory, a ``numpy.memmap``, or what reads like one.
        labels: int64 labels (N,), one for each image of the view.
        index: which rows of ``images`` the view shows, (N,); all of them by default.
        columns: what is known of each image beside its label, by name, (N, W).

    Raises:
        ValueError: images are not (N, H, W, C) uint8, or labels, columns and rows differ in number.
    """

    def __init__(
        self,
        images: Pixels,
        labels: np.ndarray | Tensor,
        index: np.ndarray | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (N, H, W, C), not {images.dtype} {tuple(images.shape)}")
        self._images = images
        self._index = np.arange(len(images)) if index is None else np.asarray(index, dtype=np.int64)
        self.labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        if len(self.labels) != len(self._index):
            raise ValueError(f"{len(self._index)} images but {len(self.labels)} labels")
        self.columns = dict(columns or {})
        for name, column in self.columns.items():
            if len(column) != len(self._index):
                raise ValueError(f"{len(self._index)} images but {len(column)} rows of {name}")

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images of {self.image_shape})"

    @property
    def base(self) -> Pixels:
        """What this is a view of, uint8 (M, H, W, C)."""
        return self._images

    @property
    def rows(self) -> np.ndarray:
        """Which rows of ``base`` it shows, int64 (N,)."""
        return self._index

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        height, width, channels = self._images.shape[1:]
        return channels, height, width

    @property
    def image_bytes(self) -> int:
        """Bytes of one image as stored: C * H * W, a byte for each value."""
        return int(np.prod(self._images.shape[1:]))

    def raw(self, index: np.ndarray | Tensor | slice = slice(None)) -> np.ndarray:
        """The images at these positions as they are stored: uint8 (B, H, W, C)."""
        if isinstance(index, Tensor):
            index = index.numpy()
        return np.asarray(self._images[self._index[index]])

    def stream(self, parts: Sequence[np.ndarray | Tensor | slice]) -> Iterator[np.ndarray]:
        """The images at each of these positions in turn, uint8 (B, H, W, C); files are decoded some parts ahead."""
        ahead = getattr(self._images, "stream", None)
        if ahead is None:
            return map(self.raw, parts)
        return ahead([self._index[part.numpy() if isinstance(part, Tensor) else part] for part in parts])

    def gather(self, index: np.ndarray | Tensor | slice = slice(None)) -> Tensor:
        """The images at these positions for the network: uint8 (B, C, H, W), channels last in memory."""
        return torch.from_numpy(self.raw(index)).permute(0, 3, 1, 2)

    def subset(self, index: np.ndarray | Tensor | Sequence[int]) -> ImageSet:
        """The view that shows only these positions, in this order. No image is copied."""
        index = np.asarray(index, dtype=np.int64)
        rows = torch.from_numpy(index)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return ImageSet(self._images, self.labels[rows], self._index[index], columns)

    def of_classes(self, classes: Sequence[int]) -> ImageSet:
        """The view of the images of these classes, in the order of the whole set."""
        keep = torch.isin(self.labels, torch.as_tensor(list(classes), dtype=torch.int64))
        return self.subset(torch.nonzero(keep).flatten().numpy())

    def relabel(self, mapping: np.ndarray) -> ImageSet:
        """The same images with label ``mapping[y]`` in place of y; ``mapping`` is an int array (K,)."""
        return ImageSet(self._images, np.asarray(mapping)[self.labels.numpy()], self._index, self.columns)

    def counts(self, n_classes: int) -> np.ndarray:
        """Images of each class, (K,)."""
        return np.bincount(self.labels.numpy(), minlength=n_classes)

    def fingerprints(
        self, n_classes: int, done: Callable[[int], None] = lambda images: None
    ) -> tuple[str, list[tuple[int, str]]]:
        """Fingerprint of shapes, pixels and labels, and of each class the number of its images and their fingerprint.

        Everything is read once, in pieces, so that mapped files stay on disk.

        Args:
            n_classes: K; labels are in [0, K).
            done: called after each piece with the number of its images.
        """
        whole = hashlib.sha256(repr((len(self), self.image_shape)).encode())
        labels = self.labels.numpy()
        whole.update(labels.tobytes())
        own = [hashlib.sha256() for _ in range(n_classes)]
        parts = slices(len(self), max(1, 2**24 // max(1, self.image_bytes)))  # 16 MiB
        for part, piece in zip(parts, self.stream(parts), strict=True):
            whole.update(np.ascontiguousarray(piece).data)
            order = np.argsort(labels[part], kind="stable")
            present, starts = np.unique(labels[part][order], return_index=True)
            for label, images in zip(present, np.split(piece[order], starts[1:]), strict=True):
                own[label].update(np.ascontiguousarray(images).data)
            done(len(piece))
        found = zip(self.counts(n_classes).tolist(), own, strict=True)
        return whole.hexdigest(), [(count, digest.hexdigest()[:16]) for count, digest in found]


class Joined(ImageSet):
    """Several image sets read as one, in order, without copying: new data followed by exemplars.

    A column that a part does not have is NaN there.
    """

    def __init__(self, *parts: ImageSet) -> None:
        shapes = {part.image_shape for part in parts}
        if len(shapes) != 1:
            raise ValueError(f"image sets of different shapes cannot be joined: {sorted(shapes)}")
        self._parts = parts
        self._starts = np.cumsum([0] + [len(part) for part in parts])
        self._shape = shapes.pop()
        self.labels = torch.cat([part.labels for part in parts])
        known = {name: column for part in parts for name, column in part.columns.items()}
        self.columns = {
            name: torch.cat([p.columns.get(name, like.new_full((len(p), *like.shape[1:]), torch.nan)) for p in parts])
            for name, like in known.items()
        }

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self._shape))

    def raw(self, index: np.ndarray | Tensor | slice = slice(None)) -> np.ndarray:
        index = np.arange(len(self))[index.numpy() if isinstance(index, Tensor) else index]
        channels, height, width = self._shape
        out = np.empty((len(index), height, width, channels), dtype=np.uint8)
        for part, start, stop in zip(self._parts, self._starts, self._starts[1:], strict=False):
            mine = (index >= start) & (index < stop)
            out[mine] = part.raw(index[mine] - start)
        return out

    def stream(self, parts: Sequence[np.ndarray | Tensor | slice]) -> Iterator[np.ndarray]:
        whole = np.arange(len(self))
        rows = [whole[part.numpy() if isinstance(part, Tensor) else part] for part in parts]
        bounds = list(zip(self._starts, self._starts[1:], strict=False))
        mine = [[(own >= start) & (own < stop) for own in rows] for start, stop in bounds]
        found = [
            part.stream([own[some] - start for own, some in zip(rows, which, strict=True)])
            for part, which, (start, _) in zip(self._parts, mine, bounds, strict=True)
        ]
        channels, height, width = self._shape
        for number, own in enumerate(rows):
            out = np.empty((len(own), height, width, channels), dtype=np.uint8)
            for which, images in zip(mine, found, strict=True):
                out[which[number]] = next(images)
            yield out

    def subset(self, index: np.ndarray | Tensor | Sequence[int]) -> ImageSet:
        index = np.asarray(index, dtype=np.int64)
        rows = torch.from_numpy(index)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return ImageSet(self.raw(index), self.labels[rows], columns=columns)

    def relabel(self, mapping: np.ndarray) -> ImageSet:
        return Joined(*(part.relabel(mapping) for part in self._parts))


def slices(n: int, size: int) -> list[slice]:
    """The positions of n things, ``size`` at a time, the last fewer."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def gathered(data: ImageSet | OnDevice | FeatureSet, parts: Sequence[Any]) -> Iterator[Tensor]:
    """``data.gather`` of each part in turn; where images have to be decoded, the next parts are on their way."""
    if isinstance(data, ImageSet):
        return (torch.from_numpy(images).permute(0, 3, 1, 2) for images in data.stream(parts))
    return map(data.gather, parts)


class OnDevice:
    """Images that lie on a device as a whole, from where batches are gathered without a transfer.

    Args:
        data: what to put there.
        device: where.
    """

    def __init__(self, data: ImageSet, device: torch.device) -> None:
        self.images = torch.from_numpy(data.raw()).to(device)  # (N, H, W, C)
        self.labels = data.labels

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: Tensor) -> Tensor:
        """The images at these positions: uint8 (B, C, H, W), channels last in memory."""
        return self.images[index.to(self.images.device)].permute(0, 3, 1, 2)


def near(data: ImageSet, device: torch.device) -> ImageSet | OnDevice:
    """The images where they are read fastest: on a GPU that has four times the room, else as they are."""
    if device.type != "cuda":
        return data
    free, _ = torch.cuda.mem_get_info(device)
    return OnDevice(data, device) if 4 * len(data) * data.image_bytes <= free else data


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU while the program goes on, through memory that it reads by itself."""
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class FeatureSet:
    """Labelled features that a strategy has computed, for a stage of gradient descent on them alone.

    ``Trainer.descend`` reads it as it reads images; nothing is augmented, and ``loss`` gets features (B, D).

    Args:
        features: (N, D) floats.
        labels: int64 (N,).
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        if len(features) != len(labels):
            raise ValueError(f"{len(features)} features but {len(labels)} labels")
        self.features, self.labels = features, labels.cpu()

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: Tensor) -> Tensor:
        """The features at these positions, (B, D)."""
        return self.features[index.to(self.features.device)]


class ClassPrint(NamedTuple):
    """By what the images of a class are told from others: how many there are, and 16 digits of their pixels' sha256."""

    train_images: int
    train: str
    test_images: int
    test: str


@dataclass(frozen=True)
class Dataset:
    """A data set as it was published: two splits, original labels, names.

    Attributes:
        name: as written in the configuration, without directories.
        train: training images, labels in [0, K).
        test: test images, labels in [0, K).
        classes: the K class names in label order.
        mean: channel means of the usual normalisation of this data set, (C,), as fractions of 255; None: no convention.
        std: channel standard deviations, (C,).
        files: path of each training image below the data set's folder; None where images do not come from files.
        fingerprint: of shapes, pixels and labels of both splits, sha256, where it is known without reading everything.
        class_prints: of each class, likewise.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    files: tuple[str, ...] | None = None
    fingerprint: str | None = None
    class_prints: tuple[ClassPrint, ...] | None = None

    def identified(self, done: Callable[[int], None] = lambda images: None) -> Dataset:
        """The same with its fingerprints known; ``done`` is called as by ``ImageSet.fingerprints``."""
        if self.fingerprint is not None:
            return self
        (train, of_train), (test, of_test) = (
            split.fingerprints(len(self.classes), done) for split in (self.train, self.test)
        )
        prints = tuple(ClassPrint(*one, *other) for one, other in zip(of_train, of_test, strict=True))
        whole = hashlib.sha256((train + test).encode()).hexdigest()
        return dataclasses.replace(self, fingerprint=whole, class_prints=prints)

    def sha256(self) -> str:
        """Fingerprint of the pixels and labels of both splits."""
        known = self.identified().fingerprint
        assert known is not None
        return known
