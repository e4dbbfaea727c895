"""Folders and zip files of images: listed, checked, and decoded into uint8 batches of one size by worker processes.

Decoded images lie in memory; or in a folder, where they are decoded once for all runs and mapped from then on; or
nowhere, and workers decode the next batches while one is learned. The pixels, and so the results, are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import lzma
import os
import shutil
import signal
import threading
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
import psutil
import torch
from filelock import BaseFileLock, FileLock, Timeout
from torch.utils.data import DataLoader

from cil.data.images import ClassPrint, Dataset, ImageSet, slices
from cil.data.pictures import FORMATS, SUFFIXES, resize
from cil.errors import UserError
from cil.experiment.progress import Progress
from cil.files import check_folder, write_atomic
from cil.units import mib

SPLITS = ("train", "test")
PLACES = ("auto", "memory", "files")
PIECE = 64  # images that are decoded at a time where no batch says how many
FORMAT = 1  # of the folders of decoded images


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Args:
        images: where decoded images lie: ``memory``; ``files``, which are decoded whenever they are read; ``auto``,
            memory if they take at most half of what is free there, else files; or the path of a folder, in which they
            are decoded once and from which they are mapped.
        workers: processes that decode; 0: threads of this process. None: as many as this process has threads.
        progress: told how far decoding is, and how fast it was.

    Raises:
        UserError: the place or the number of workers is none of these.
    """

    images: str = "auto"
    workers: int | None = None
    progress: Progress = field(default_factory=Progress.silent)

    def __post_init__(self) -> None:
        legal = f"legal: {', '.join(PLACES)} or the path of a folder"
        if not self.images:
            raise UserError(f"images: '{self.images}'; {legal}")
        if self.folder is not None:
            check_folder("images", self.folder, legal)
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers: {self.workers}; legal: a whole number from 0 on, or null")

    @property
    def folder(self) -> Path | None:
        """Where decoded images are kept; None: nowhere."""
        return None if self.images in PLACES else Path(self.images).expanduser()

    @property
    def processes(self) -> int:
        """The number of workers."""
        return torch.get_num_threads() if self.workers is None else self.workers


@dataclass(frozen=True, slots=True)
class File:
    """An image file, in a folder or a zip file.

    Args:
        path: below the data set's folder.
        place: the file itself, or the zip file that it is in.
        member: its name in the zip file; empty outside.
    """

    path: str
    place: str
    member: str = ""

    def open(self) -> IO[bytes]:
        """The stream of its bytes."""
        return _archive(self.place, os.getpid()).open(self.member) if self.member else open(self.place, "rb")

    def version(self) -> tuple[int, int]:
        """What changes with its content: bytes and time of change, or bytes and checksum in a zip file."""
        if self.member:
            info = _archive(self.place, os.getpid()).getinfo(self.member)
            return info.file_size, info.CRC
        status = os.stat(self.place)
        return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _archive(place: str, process: int) -> zipfile.ZipFile:
    """A zip file as this process reads it: processes that share an open file would move each other's place in it."""
    return zipfile.ZipFile(place)


def read(spec: str, place: Path, image_size: int | None, reading: Reading) -> Dataset:
    """A folder or zip file of ``train/CLASS/*`` and ``test/CLASS/*``, classes in sorted order.

    Other files and hidden ones are left out; EXIF rotation is not applied.

    Args:
        spec: as the user wrote it, for errors.
        place: the folder or zip file.
        image_size: side in pixels to which images are resized; None: all have one size.
        reading: where decoded images lie and who decodes.

    Raises:
        UserError: it is not laid out so, an image cannot be decoded, or images differ in size; names the file.
    """
    name, found = _listed(spec, place)
    classes = tuple(sorted({*found["train"], *found["test"]}))
    if not classes:
        raise UserError(f"data: '{spec}' holds no train/CLASS/ and test/CLASS/ folders of images")
    for split in SPLITS:
        for label in classes:
            if not found[split].get(label):
                wrong = "has no image in" if label in found[split] else "is missing from"
                raise UserError(f"data: '{spec}': class '{label}' {wrong} {split}")
    files = {split: [file for label in classes for file in found[split][label]] for split in SPLITS}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(found[split][label]) for label in classes]) for split in SPLITS
    }
    shape = _shape(spec, files, image_size)
    coded = [Coded(Decoder(spec, files[split], shape, image_size is not None), reading) for split in SPLITS]
    train, test = (ImageSet(pixels, labels[split]) for pixels, split in zip(coded, SPLITS, strict=True))
    bare = Dataset(name, train, test, classes, files=tuple(file.path for file in files["train"]))
    if reading.folder is not None:
        return _mapped(bare, coded, reading.folder, reading)
    needed, free = sum(pixels.nbytes for pixels in coded), psutil.virtual_memory().available
    if reading.images == "memory" or (reading.images == "auto" and needed <= free / 2):
        arrays = [np.empty(pixels.shape, np.uint8) for pixels in coded]
        with _told(bare, reading) as done:
            for array, own in zip(arrays, (train, test), strict=True):
                for part, images in _decoded(own, done):
                    array[part] = images
        return _on(bare, arrays)
    if reading.images == "auto":
        reading.progress.say(
            f"{name}: decoded images take {mib(needed, 0)} MiB, more than half of the {mib(free, 0)} MiB that are "
            "free, so files are decoded whenever they are read; --images FOLDER would keep them"
        )
    with _told(bare, reading) as done:  # each is decoded once now, so that a broken one is found before the training
        return bare.identified(done)


# --- decoding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoder:
    """Decodes image files; what workers get.

    Args:
        spec: as the user wrote it, for errors.
        files: one for each image.
        shape: (H, W, C) of the images, C = 1 or 3.
        resized: whether they are resized to it; else it is theirs.
    """

    spec: str
    files: Sequence[File]
    shape: tuple[int, int, int]
    resized: bool

    def __call__(self, row: int) -> np.ndarray:
        """One image, uint8 (H, W, C)."""
        height, _, channels = self.shape
        mode = "L" if channels == 1 else "RGB"
        pixels = np.asarray(_opened(self.spec, self.files[row], lambda image: image.convert(mode)))
        pixels = pixels.reshape(*pixels.shape[:2], channels)
        return resize(pixels[None], height)[0] if self.resized else pixels

    def batch(self, images: Iterable[np.ndarray], n: int) -> np.ndarray:
        """n images as one array, uint8 (n, H, W, C)."""
        out = np.empty((n, *self.shape), np.uint8)
        for row, image in enumerate(images):
            out[row] = image
        return out

    def __getitems__(self, rows: Sequence[int]) -> np.ndarray | UserError:
        """A batch, uint8 (B, H, W, C), or what was wrong.

        An array comes from a worker through a pipe, where a tensor would come through shared memory, which is scarce in
        containers.
        """
        try:
            return self.batch(map(self, rows), len(rows))
        except UserError as error:
            return error


class Coded:
    """Image files in place of an array: uint8 (N, H, W, C), decoded when it is read.

    Attributes:
        shape: (N, H, W, C).
        nbytes: of all images, decoded.

    Args:
        decoder: decodes the files.
        reading: by whom.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, decoder: Decoder, reading: Reading) -> None:
        self.decoder, self.reading = decoder, reading
        self.shape = len(decoder.files), *decoder.shape
        self.nbytes = int(np.prod(self.shape, dtype=object))
        self._plan = Plan()
        self._loader: DataLoader[Any] | None = None
        self._busy = threading.Lock()  # workers serve one stream at a time

    def __len__(self) -> int:
        return len(self.decoder.files)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images of these rows."""
        rows = np.arange(len(self))[rows]
        out, parts = np.empty((len(rows), *self.shape[1:]), np.uint8), slices(len(rows), PIECE)
        for part, images in zip(parts, self.stream([rows[part] for part in parts]), strict=True):
            out[part] = images
        return out

    def stream(self, batches: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The images of each batch of rows in turn, uint8 (B, H, W, C); workers decode some batches ahead.

        Raises:
            UserError: a file cannot be decoded; names it.
        """
        if len(batches) < 2 or not self.reading.processes or not self._busy.acquire(blocking=False):
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # decoding leaves the interpreter lock
                for rows in batches:
                    yield self.decoder.batch(threads.map(self.decoder, rows), len(rows))
            return
        try:
            self._plan.batches = batches
            for images in self._workers():
                if isinstance(images, UserError):
                    raise images
                yield images
        except UserError:
            # Ends the workers now: once the frames of the error are garbage, they are waited for in vain.
            self._loader = None
            raise
        finally:
            self._busy.release()

    def _workers(self) -> DataLoader[Any]:
        if self._loader is None:
            self._loader = DataLoader(
                cast(Any, self.decoder),
                batch_sampler=self._plan,
                num_workers=self.reading.processes,
                collate_fn=_as_it_is,
                persistent_workers=True,
                worker_init_fn=_deaf,
                generator=torch.Generator(),  # else it would draw from torch's own
            )
        return self._loader


class Plan:
    """The batches of rows that workers are to decode next."""

    batches: Sequence[np.ndarray] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _as_it_is(batch: Any) -> Any:
    return batch


def _deaf(worker: int) -> None:
    """An interruption from the keyboard is the main process's matter."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _opened(spec: str, file: File, read: Callable[[Any], Any]) -> Any:
    """What ``read`` makes of the opened image, or an error that names the file."""
    from PIL import Image

    broken = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
    try:
        with file.open() as stream, Image.open(stream, formats=FORMATS) as image:
            return read(image)
    except (*broken, Image.DecompressionBombError) as error:
        raise UserError(f"data: '{spec}': {file.path} cannot be read as an image: {error}") from error


# --- what is there ---------------------------------------------------------------------------------------------------


def _listed(spec: str, place: Path) -> tuple[str, dict[str, dict[str, list[File]]]]:
    """The name of the data set, and its image files by split and class."""
    if place.is_dir():
        name = place.resolve().name
        try:
            tree = {path.relative_to(place).as_posix(): path for path in sorted(_below(place))}
        except OSError as error:
            raise UserError(f"data: '{spec}': {place} cannot be read: {error}") from error
        folders = [relative for relative, path in tree.items() if path.is_dir()]
        files = {relative: File(relative, str(path)) for relative, path in tree.items() if path.is_file()}
        return name, _sorted(folders, files)
    _archive.cache_clear()  # a file of this name may have been another one
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"data: '{spec}': {place} is neither a folder nor a whole zip file: {error}") from error
    folders = [member.filename.rstrip("/") for member in members if member.is_dir()]
    names = [member.filename for member in members if not member.is_dir()]
    return place.stem, _sorted(folders, {name: File(name, str(place), name) for name in names})


def _below(place: Path) -> Iterator[Path]:
    """What may belong to a data set: what lies at the top, and in the folders of its splits there or one deeper."""
    tops = [path for path in place.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
    yield from tops
    folders = [path for path in tops if path.is_dir()]
    base = folders[0] if len(folders) == 1 and folders[0].name not in SPLITS else place
    if base != place:
        yield from base.iterdir()
    for split in SPLITS:
        yield from (base / split).rglob("*")


def _sorted(folders: Sequence[str], files: dict[str, File]) -> dict[str, dict[str, list[File]]]:
    paths = {path: PurePosixPath(path).parts for path in sorted({*folders, *files})}
    paths = {
        path: parts
        for path, parts in paths.items()
        if parts and parts[0] != "__MACOSX" and not any(part.startswith(".") for part in parts)
    }
    known = set(folders)
    tops = {parts[0] for parts in paths.values() if len(parts) > 1 or parts[0] in known}
    depth = 1 if len(tops) == 1 and not tops & set(SPLITS) else 0  # all below one folder, as archives often are
    found: dict[str, dict[str, list[File]]] = {split: defaultdict(list) for split in SPLITS}
    for path, parts in paths.items():
        parts = parts[depth:]
        if len(parts) < 2 or parts[0] not in SPLITS:
            continue
        if len(parts) == 2 and path in known:
            found[parts[0]][parts[1]] += []  # a class folder, perhaps empty
        if len(parts) > 2 and path in files and PurePosixPath(path).suffix.lower() in SUFFIXES:
            found[parts[0]][parts[1]].append(files[path])
    return found


def _shape(spec: str, files: dict[str, list[File]], image_size: int | None) -> tuple[int, int, int]:
    """(H, W, C) of all images: one channel if all are grey."""
    every = [file for split in SPLITS for file in files[split]]
    with ThreadPoolExecutor(8) as threads:  # a disk serves several at a time
        headers = list(threads.map(partial(_header, spec), every))
    channels = 1 if all(mode in ("1", "L", "LA") for mode, _ in headers) else 3
    if image_size is not None:
        return image_size, image_size, channels
    height, width = headers[0][1]
    for file, (_, other) in zip(every, headers, strict=True):
        if other != (height, width):
            raise UserError(
                f"data: '{spec}': images differ in size: {every[0].path} is {width} x {height}, "
                f"{file.path} is {other[1]} x {other[0]}; give image_size to resize them all"
            )
    return height, width, channels


def _header(spec: str, file: File) -> tuple[str, tuple[int, int]]:
    """Mode and (H, W), without decoding."""
    mode, (width, height) = _opened(spec, file, lambda image: (image.mode, image.size))
    if mode.startswith(("I", "F")):  # converting these would clip without a word
        raise UserError(f"data: '{spec}': {file.path} has more than 8 bits a channel (mode {mode}); convert it first")
    return mode, (height, width)


# --- all images at once ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(dataset: Dataset, reading: Reading) -> Iterator[Callable[[int], None]]:
    """Around decoding a whole data set; what it gives is called with the number of images decoded."""
    began, total = time.perf_counter(), len(dataset.train) + len(dataset.test)
    with reading.progress.counting("image files", total) as done:
        yield done
    seconds = time.perf_counter() - began
    reading.progress.say(
        f"{dataset.name}: {total} image files decoded in {seconds:.1f} s ({total / seconds:.0f} images/s)"
    )


def _decoded(split: ImageSet, done: Callable[[int], None]) -> Iterator[tuple[slice, np.ndarray]]:
    """All images of a split in turn: their positions, and uint8 (B, H, W, C)."""
    parts = slices(len(split), PIECE)
    for part, images in zip(parts, split.stream(parts), strict=True):
        yield part, images
        done(len(images))


def _on(dataset: Dataset, images: Sequence[np.ndarray], about: dict[str, Any] | None = None) -> Dataset:
    """The data set on these arrays, with its fingerprints where they were written down."""
    train, test = (ImageSet(a, split.labels) for a, split in zip(images, (dataset.train, dataset.test), strict=True))
    whole, prints = (None, None) if about is None else (about["fingerprint"], about.get("class_prints"))
    by_class = None if prints is None else tuple(ClassPrint(*one) for one in prints)  # earlier versions wrote none
    return dataclasses.replace(dataset, train=train, test=test, fingerprint=whole, class_prints=by_class)


def _mapped(dataset: Dataset, coded: Sequence[Coded], folder: Path, reading: Reading) -> Dataset:
    """The data set on arrays mapped from the folder, where they are written if it does not have them.

    They lie in a folder named after the data set and what its files are: names, versions, labels, mode and size.

    Raises:
        UserError: the folder cannot be written or has no room, or what is in it was changed.
    """
    files = [
        [file.path, *file.version(), label]
        for pixels, split in zip(coded, (dataset.train, dataset.test), strict=True)
        for file, label in zip(pixels.decoder.files, split.labels.tolist(), strict=True)
    ]
    shapes = [list(pixels.shape) for pixels in coded]
    key = hashlib.sha256(json.dumps([FORMAT, shapes, coded[0].decoder.resized, files]).encode()).hexdigest()[:16]
    target = folder / f"{dataset.name}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(FileLock(folder / f".{target.name}.lock"), reading):
            if not target.exists():
                _write(dataset, coded, target, reading)
        about = json.loads((target / "about.json").read_text())
        paths = [target / f"{split}.npy" for split in SPLITS]
        if not isinstance(about["fingerprint"], str) or about["written"] != [_written(path) for path in paths]:
            raise ValueError("it is another one than was written")
        images = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"images: decoded images cannot be kept in {target}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"images: {target} was changed since it was written; delete it, and it is written anew"
        ) from error
    return _on(dataset, images, about)


@contextlib.contextmanager
def _alone(lock: BaseFileLock, reading: Reading) -> Iterator[None]:
    """In here no other process writes these images."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reading.progress.say("waiting for a process that decodes these images")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(dataset: Dataset, coded: Sequence[Coded], target: Path, reading: Reading) -> None:
    needed, free = sum(pixels.nbytes for pixels in coded), shutil.disk_usage(target.parent).free
    if needed > free:
        raise UserError(
            f"images: decoded images take {mib(needed, 0)} MiB and {target.parent} has {mib(free, 0)} MiB free; make "
            "room, or give images: files"
        )
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was interrupted
    part.mkdir()
    paths = [part / f"{split}.npy" for split in SPLITS]
    with _told(dataset, reading) as done:
        for path, pixels, split in zip(paths, coded, (dataset.train, dataset.test), strict=True):
            with path.open("wb") as file:  # a mapped array would end the process on a full disk
                header = {"descr": "|u1", "fortran_order": False, "shape": pixels.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _, images in _decoded(split, done):
                    file.write(images.tobytes())
                file.flush()
                os.fsync(file.fileno())
    known = _on(dataset, [np.load(path, mmap_mode="r") for path in paths]).identified()
    about: dict[str, Any] = {"fingerprint": known.fingerprint, "class_prints": known.class_prints}
    about |= {"written": [_written(path) for path in paths]}
    write_atomic(part / "about.json", json.dumps(about).encode())
    part.rename(target)
    reading.progress.say(f"{dataset.name}: {mib(needed, 0)} MiB of decoded images written to {target}")


def _written(path: Path) -> list[int]:
    """Bytes and time of change of a file, by which a later change is seen."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
