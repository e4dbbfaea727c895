"""Data sets by name, from a folder of images or from an npz file: read once, checked, kept as uint8."""

from __future__ import annotations

import dataclasses
import importlib.util
import lzma
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from cil.data.images import Dataset, ImageSet
from cil.data.pictures import resize
from cil.errors import UserError, check_number, check_side, unknown
from cil.experiment.progress import Progress
from cil.units import mib
from scenarios.folders import SPLITS


class _Published(NamedTuple):
    """A data set that torchvision downloads: its class there, where its files lie, the usual normalisation."""

    reader: str
    folder: str  # below root
    files: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


PUBLISHED = {
    "cifar10": _Published(
        "CIFAR10",
        "cifar-10-batches-py",
        "the files of cifar-10-python.tar.gz",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Published(
        "CIFAR100",
        "cifar-100-python",
        "the files of cifar-100-python.tar.gz",
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
    "mnist": _Published("MNIST", "MNIST/raw", "the four unpacked idx files of MNIST", (0.1307,), (0.3081,)),
    "fashion_mnist": _Published(
        "FashionMNIST", "FashionMNIST/raw", "the four unpacked idx files of Fashion-MNIST", (0.2860,), (0.3530,)
    ),
    "svhn": _Published(
        "SVHN",
        ".",
        "train_32x32.mat and test_32x32.mat",
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
    ),
}


def load(
    spec: str,
    *,
    root: str | Path = "data",
    image_size: int | None = None,
    train_per_class: int | None = None,
    images: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a data set and check that it is whole.

    Args:
        spec: ``digits`` (comes with scikit-learn), ``cifar10``, ``cifar100``, ``mnist``, ``fashion_mnist``, ``svhn``
            (downloaded to ``root`` unless they lie there), ``folder:PATH`` (``train/CLASS/*`` and ``test/CLASS/*``
            image files in a folder or a zip file, classes in sorted order) or ``npz:PATH`` (arrays ``x_train``,
            ``y_train``, ``x_test``, ``y_test``, ``classes`` and, if you like, ``mean`` and ``std``; images stored
            without compression stay on disk and are mapped).
        root: folder of downloaded data sets.
        image_size: resize every image to this height and width in pixels, whatever its proportions; None: as stored.
        train_per_class: keep so many training images of each class, as :func:`fewer` draws them; None: all.
        images: where the decoded images of ``folder:`` lie, as :class:`scenarios.folders.Reading` has it.
        workers: processes that decode them, likewise.
        progress: told how far decoding is; None: nobody.

    Raises:
        UserError: no such data set or file, a failed download, or data that are broken, saying where.
    """
    if image_size is not None:
        check_side("image_size", image_size)
    if train_per_class is not None:
        check_number("train_per_class", train_per_class, least=1, whole=True)
    source, colon, path = spec.partition(":")
    readers: dict[str, Callable[[], Dataset]] = {"digits": _digits}
    readers |= {name: partial(_published, name, Path(root).expanduser()) for name in PUBLISHED}
    if source in ("folder", "npz"):
        if not path:
            raise UserError(f"data: '{spec}' names no file; write {source}:PATH")
        place = Path(path).expanduser()
        if not place.exists():
            raise UserError(f"data: '{spec}': there is no {place.absolute()}")
        if not place.is_file() and not (source == "folder" and place.is_dir()):
            legal = "a folder or a zip file" if source == "folder" else "a file"
            raise UserError(f"data: '{spec}': {place.absolute()} is not {legal}")
        if source == "folder":
            from scenarios import folders  # what reads them takes a while to import

            reading = folders.Reading(images, workers, progress or Progress.silent())
            dataset = folders.read(spec, place, image_size, reading)
        else:
            dataset = _npz(spec, place)
    elif source in readers and not colon:
        dataset = readers[source]()
    else:
        raise unknown("data", spec, [*readers, "folder:PATH", "npz:PATH"])
    check(dataset)
    for line in doubts(dataset):
        (progress or Progress.silent()).warn(line)
    if train_per_class is not None:
        dataset = fewer(dataset, train_per_class)
    if image_size is None or dataset.train.image_shape[1:] == (image_size, image_size):
        return dataset
    needed = sum(map(len, (dataset.train, dataset.test))) * dataset.train.image_shape[0] * image_size**2
    if needed > (free := psutil.virtual_memory().available):
        raise UserError(
            f"image_size: at {image_size} x {image_size} pixels the images of '{dataset.name}' take {mib(needed, 0)} "
            f"MiB, and {mib(free, 0)} MiB of memory are free; give a smaller one"
        )
    train, test = (
        ImageSet(resize(split.raw(), image_size), split.labels.numpy()) for split in (dataset.train, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, test=test)


def fewer(dataset: Dataset, per_class: int) -> Dataset:
    """The data set with ``per_class`` training images of each class, in their order; all test images stay.

    Which ones is drawn, since files often have an order that means something, and always alike, apart from the seeds of
    runs: two data sets with as many images of each class keep the same positions within a class.

    Args:
        dataset: whole.
        per_class: images to keep, at least 1.

    Raises:
        UserError: a class has fewer.
    """
    n_classes = len(dataset.classes)
    counts = dataset.train.counts(n_classes)
    if counts.min() < per_class:
        least = int(counts.argmin())
        raise UserError(
            f"train_per_class: {per_class}, and class {least} '{dataset.classes[least]}' of '{dataset.name}' has "
            f"{counts[least]} training images; legal: a whole number from 1 to {counts[least]}, or null for all"
        )
    draw, labels = np.random.RandomState(0), dataset.train.labels.numpy()
    own = (np.flatnonzero(labels == label) for label in range(n_classes))
    kept = np.sort(np.concatenate([rows[draw.permutation(len(rows))[:per_class]] for rows in own]))
    files = dataset.files and tuple(dataset.files[row] for row in kept)
    train = dataset.train.subset(kept)
    return dataclasses.replace(dataset, train=train, files=files, fingerprint=None, class_prints=None)


def check(dataset: Dataset) -> None:
    """See that a data set is whole: both splits of one shape, all labels in range, every class in both splits.

    Raises:
        UserError: what is wrong and where: the split, the class, the index of the first offender.
    """
    where, n_classes = f"data: '{dataset.name}'", len(dataset.classes)
    if n_classes < 2:
        raise UserError(f"{where}: {n_classes} classes; there must be 2 or more")
    known: dict[str, int] = {}
    for label, name in enumerate(dataset.classes):
        if not name.strip():
            raise UserError(f"{where}: the name of class {label} is empty; every class needs one")
        if not _encodable(name):
            raise UserError(f"{where}: the name of class {label}, {name!r}, is no text that UTF-8 can write")
        if known.setdefault(name, label) != label:
            raise UserError(f"{where}: '{name}' stands twice among the class names, for {known[name]} and for {label}")
    for split in SPLITS:
        images: ImageSet = getattr(dataset, split)
        labels = images.labels.numpy()
        outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
        if len(outside):
            raise UserError(
                f"{where}: {split} label {labels[outside[0]]} at index {outside[0]} is outside [0, {n_classes}), "
                f"{len(outside)} such labels in all"
            )
        absent = np.flatnonzero(images.counts(n_classes) == 0)
        if len(absent):
            raise UserError(
                f"{where}: class {absent[0]} '{dataset.classes[absent[0]]}' has no image in {split}, "
                f"{len(absent)} such classes in all"
            )
    if dataset.train.image_shape != dataset.test.image_shape:
        raise UserError(
            f"{where}: train images are (C, H, W) = {dataset.train.image_shape}, test images {dataset.test.image_shape}"
        )
    if not all(dataset.train.image_shape):
        raise UserError(f"{where}: images of (C, H, W) = {dataset.train.image_shape} hold nothing")
    if (dataset.mean is None) != (dataset.std is None):
        raise UserError(f"{where}: mean and std go together, one of them is missing")
    for key, values in (("mean", dataset.mean), ("std", dataset.std)):
        channels = dataset.train.image_shape[0]
        if values is None:
            continue
        if len(values) != channels or not all(0 <= value <= 1 for value in values) or (key == "std" and 0 in values):
            raise UserError(f"{where}: {key}={values}; legal: {channels} fractions of 255, one for each channel")


def doubts(dataset: Dataset) -> list[str]:
    """What may be meant and most likely is not, a sentence each: names that look alike, channels before rows."""
    where, found = f"data: '{dataset.name}'", []
    alike: dict[str, str] = {}
    for name in dataset.classes:
        plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if (other := alike.setdefault(plain, name)) != name:
            found.append(f"{where}: the classes '{other}' and '{name}' differ only in case or Unicode form")
    height, width, channels = dataset.train.base.shape[1:]
    if height in (1, 3) and channels > 4:
        n = len(dataset.train)
        found.append(
            f"{where}: train images {(n, height, width, channels)} look like (N, C, H, W); they are read as "
            f"(N, H, W, C), {height} x {width} pixels of {channels} channels. Move the channels to the end if that is "
            "not what they are."
        )
    return found


def _split(where: str, split: str, images: Any, labels: Any) -> ImageSet:
    """The image set of one split, or an error in the user's words. Accepts (N, H, W) as one channel."""
    images, labels = (a if isinstance(a, np.ndarray) else np.asarray(a) for a in (images, labels))
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{where}: {split} images are {images.dtype} of shape {images.shape}; "
            "they must be uint8 (N, H, W, C) or (N, H, W)"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{where}: {split} labels are {labels.dtype} of shape {labels.shape}; they must be integers (N,)"
        )
    if len(images) != len(labels):
        raise UserError(f"{where}: {split} has {len(images)} images but {len(labels)} labels")
    return ImageSet(images[..., None] if images.ndim == 3 else images, labels.astype(np.int64))


def _digits() -> Dataset:
    """Handwritten digits, 1797 images of 8 x 8: every fourth image of each class is for testing."""
    table = _digits_table()  # (1797, 65): 64 pixels from 0 to 16, and the label
    images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[3::4]] = True
    train_set = _split("data: 'digits'", "train", images[~test], labels[~test])
    test_set = _split("data: 'digits'", "test", images[test], labels[test])
    return Dataset("digits", train_set, test_set, tuple("0123456789"))


def _digits_table() -> np.ndarray:
    """The file that comes with scikit-learn, read without importing it, which takes a second, where it is found."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "datasets/data/digits.csv.gz"
        if path.exists():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def _published(name: str, root: Path) -> Dataset:
    """A data set as torchvision reads it: from the files in ``root``, which it downloads if they are not there."""
    about = PUBLISHED[name]
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(f"data: '{name}' is read by torchvision, which cannot be imported: {error}") from error
    read = getattr(datasets, about.reader)
    try:
        if name == "svhn":
            parts = [read(root, split=split, download=True) for split in SPLITS]
            splits = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in parts]  # from (N, C, H, W)
            classes = tuple("0123456789")
        else:
            parts = [read(root, train=split == "train", download=True) for split in SPLITS]
            splits = [(part.data, part.targets) for part in parts]
            classes = tuple(parts[0].classes)
    except Exception as error:  # torchvision passes on whatever the network, tarfile, pickle or scipy raise
        folder, reason = (root / about.folder).absolute(), " ".join(str(error).split())
        raise UserError(
            f"data: '{name}' could not be read from {folder}, nor downloaded to it ({type(error).__name__}: {reason}). "
            f"Connect to the internet, or put {about.files} into that folder, or give as root the folder in which it "
            "lies."
        ) from error
    train, test = (
        _split(f"data: '{name}'", split, np.ascontiguousarray(images), labels)
        for split, (images, labels) in zip(SPLITS, splits, strict=True)
    )
    return Dataset(name, train, test, classes, about.mean, about.std)


def _npz(spec: str, place: Path) -> Dataset:
    where = f"data: '{spec}'"
    try:
        with zipfile.ZipFile(place) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            missing = [key for key in ("x_train", "y_train", "x_test", "y_test", "classes") if key not in members]
            if missing:
                raise UserError(f"{where} lacks the arrays {', '.join(missing)}; it has {', '.join(sorted(members))}")
            arrays = {
                key: _member(where, place, archive, members[key], mapped=key.startswith("x_"))
                for key in ("x_train", "y_train", "x_test", "y_test", "classes", "mean", "std")
                if key in members
            }
    except (zipfile.BadZipFile, OSError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"{where}: {place} is not a whole npz file: {error}") from error
    classes = arrays["classes"]
    if classes.ndim != 1 or classes.dtype.kind not in "US":
        raise UserError(f"{where}: classes are {classes.dtype} of shape {classes.shape}; they must be strings (K,)")
    norm = {}
    for key in ("mean", "std"):
        if key in arrays and (arrays[key].ndim != 1 or arrays[key].dtype.kind != "f"):
            raise UserError(f"{where}: {key} is {arrays[key].dtype} of shape {arrays[key].shape}; must be floats (C,)")
        norm[key] = tuple(arrays[key].tolist()) if key in arrays else None
    return Dataset(
        place.stem,
        _split(where, "train", arrays["x_train"], arrays["y_train"]),
        _split(where, "test", arrays["x_test"], arrays["y_test"]),
        _names(where, classes),
        norm["mean"],
        norm["std"],
    )


def _names(where: str, classes: np.ndarray) -> tuple[str, ...]:
    """The names of classes, from bytes or text (K,)."""
    names = []
    for label in range(len(classes)):
        try:
            name = classes[label]
            names.append(name.decode() if isinstance(name, bytes) else str(name))
        except (ValueError, SystemError) as error:  # the second of code points that there are not
            raise UserError(f"{where}: the name of class {label} is no text that UTF-8 can write: {error}") from error
    return tuple(names)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _member(where: str, place: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, mapped: bool) -> np.ndarray:
    """One array of an npz file: mapped where it is stored as it is, else read. Pickles are refused, never opened."""
    key = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
        except ValueError as error:
            raise UserError(f"{where}: {key} is not an array: {error}") from error
        start = stream.tell()
    if dtype.hasobject:
        raise UserError(f"{where}: {key} holds pickled Python objects, which are never opened; store numbers or text")
    n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    if member.file_size != start + n_bytes:
        raise UserError(
            f"{where}: {key} is cut off: {shape} {dtype} takes {n_bytes} bytes, {member.file_size - start} are there"
        )
    if mapped and n_bytes and member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
        with place.open("rb") as file:  # numpy's own loader maps only files that hold one array
            file.seek(member.header_offset)
            local = file.read(30)  # the local header; the lengths of the name and extra field that follow it end it
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile(f"no local header of {key}")
            skip = 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        offset = member.header_offset + skip + start
        if offset + n_bytes > place.stat().st_size:
            raise zipfile.BadZipFile(f"{key} runs past the end of the file")
        return np.memmap(place, dtype, "r", offset, tuple(shape), "F" if fortran else "C")
    with archive.open(member) as stream:
        try:
            return np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{where}: {key} cannot be read: {error}") from error
