"""Features of frozen backbones, computed once and kept on disk for all runs.

The cache is content-addressed: a folder holds the features of one backbone under one arithmetic, and its name is the
hash of all that decides their bits; within it, an image is found by the hash of its own bytes. So the cache cannot
change a result, and whoever looks up an image must have it in hand.

::

    ROOT/KEY/SEGMENT/features.npy   (N, D) float32, mapped
    ROOT/KEY/SEGMENT/digests.npy    (N, 2) uint64: the images' hashes
    ROOT/KEY/SEGMENT/entry.json     counts, checksums, of what and when; its time of change is that of the last use
    ROOT/KEY/data-ID.json           which segments hold all images of a scenario
    ROOT/locks/KEY                  held by the process that computes

A segment never changes. It is written under another name and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cil.checkpoint import write_atomic
from cil.data import ImageSet, Pixels, gathered, slices
from cil.units import mib

try:
    import fcntl
except ImportError:  # not on Windows, where two processes may compute the same
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from cil.experiment import Experiment
    from cil.nets.pretrained import Pretrained
    from cil.progress import Progress
    from cil.trainer import Place

FORMAT = 1
SEGMENT = 8192  # images: what an interruption can lose
BATCH = 256
FILES = ("features.npy", "digests.npy", "entry.json")
KEY_NAME, SEGMENT_NAME = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")


# --- images -----------------------------------------------------------------------------------------------------------


def on_grid(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which images have only values k / 255, and all images as those bytes.

    Args:
        x: images in [0, 1], float32 (B, C, H, W).

    Returns:
        (B,) bool and (B, H, W, C) uint8; the bytes of an image off the grid mean nothing.
    """
    batch, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(batch, height * width * channels)  # the layout of batches, so nothing moves
    whole = (flat * 255).round_().clamp_(0, 255).to(torch.uint8)
    exact = (whole.float().div_(255) == flat).all(1)
    return exact.cpu().numpy(), whole.view(batch, height, width, channels).cpu().numpy()


def digests(images: np.ndarray) -> np.ndarray:
    """The hashes of images, BLAKE2b of 16 bytes over shape and pixels: uint8 (B, H, W, C) -> uint64 (B, 2)."""
    shape = struct.pack("<4I", *images.shape[1:], 0)
    each = (hashlib.blake2b(image, digest_size=16, person=shape).digest() for image in images)
    return np.frombuffer(b"".join(each), dtype="<u8").reshape(-1, 2)


# --- keys -------------------------------------------------------------------------------------------------------------


def conditions(device: torch.device) -> tuple[Any, ...]:
    """What decides the arithmetic now, beside the backbone: precision, threads, and settings of torch."""
    one = torch.ones(1, 1, device=device)
    return (
        device.type,
        str((one @ one).dtype),  # that of autocast, where it is on
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.mkldnn.enabled,
        torch.are_deterministic_algorithms_enabled(),
    )


def code(module: nn.Module) -> dict[str, str]:
    """The files that a network's classes are written in, hashed, and the versions of their packages, torch's aside."""
    found: dict[str, str] = {}
    for kind in {type(part) for part in module.modules()}:
        package = kind.__module__.partition(".")[0]
        if package == "torch":
            continue
        loaded, whole = sys.modules.get(kind.__module__), sys.modules.get(package)
        found[package] = str(getattr(whole, "__version__", None))
        if file := getattr(loaded, "__file__", None):
            found[kind.__module__] = _file_hash(file, os.stat(file).st_mtime_ns)
    return found


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, _changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def key_of(backbone: Pretrained, device: torch.device, machine: str) -> str:
    """The hash of all that decides the bits of a backbone's features, 64 digits.

    Args:
        backbone: frozen.
        device: where it computes.
        machine: name of the processor or GPU.
    """
    digest = hashlib.sha256()
    described = {
        "format": FORMAT,
        "architecture": [backbone.name, repr(sorted(backbone.args.items())), repr(backbone.body)],
        "preprocessing": backbone.preprocessing.as_dict() if backbone.preprocessing else None,
        "conditions": [str(value) for value in conditions(device)],
        "machine": [machine, torch.__version__, torch.backends.cpu.get_cpu_capability()],
        "code": code(backbone),
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(itertools.chain(backbone.named_parameters(), backbone.named_buffers())):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- files ------------------------------------------------------------------------------------------------------------


class Damaged(RuntimeError):
    """A segment that is incomplete or was altered; the message says how."""


@dataclass(frozen=True)
class Segment:
    """Features of some images.

    Attributes:
        path: its folder, which may be gone while this is in use.
        features: (N, D) float32, mapped.
        digests: (N, 2) uint64.
        entry: what ``entry.json`` says.
    """

    path: Path
    features: np.ndarray
    digests: np.ndarray
    entry: dict[str, Any]


class Index:
    """Finds features by hash in the segments of one key."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self.names = {segment.path.name for segment in segments}
        counts = [len(segment.digests) for segment in segments]
        every = np.concatenate([segment.digests for segment in segments])  # (N, 2)
        order = np.argsort(every[:, 0], kind="stable")
        self.first, self.second = every[order, 0], every[order, 1]
        self.segment = np.repeat(np.arange(len(segments)), counts)[order]
        self.row = np.concatenate([np.arange(count) for count in counts])[order]

    def __len__(self) -> int:
        return len(self.first)

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Positions of hashes (B, 2), -1 for what is not there: (B,)."""
        at = np.searchsorted(self.first, wanted[:, 0]).clip(max=len(self.first) - 1)
        return np.where((self.first[at] == wanted[:, 0]) & (self.second[at] == wanted[:, 1]), at, -1)

    def features(self, positions: np.ndarray) -> np.ndarray:
        """The features at positions (B,) that were found: (B, D) float32."""
        out = np.empty((len(positions), self.segments[0].features.shape[1]), dtype=np.float32)
        owners = self.segment[positions]
        for number in np.unique(owners):
            mine = owners == number
            out[mine] = self.segments[number].features[self.row[positions[mine]]]
        return out


class Store:
    """The cache on disk.

    Args:
        root: its folder; made when something is written.
        limit: bytes; the least recently used segments go first.
        warn: told in one line what was damaged.
    """

    def __init__(self, root: Path, limit: int, warn: Callable[[str], None] = lambda _: None) -> None:
        self.root, self.limit, self.warn = root, limit, warn

    def paths(self, key: str | None = None) -> list[Path]:
        """The folders of all segments, or of one key's, in order of their names; of nothing that is not the cache's."""
        found = self.root.glob(f"{key or '*'}/*")
        return sorted(p for p in found if SEGMENT_NAME.fullmatch(p.name) and KEY_NAME.fullmatch(p.parent.name))

    def read(self, path: Path) -> Segment:
        """One segment, checked.

        Raises:
            Damaged: a file is missing, cut short or altered.
            FileNotFoundError: it is not there any more.
        """
        try:
            entry = json.loads((path / "entry.json").read_bytes())
            seal = entry.pop("sha256")
            if seal != _sha256(_canonical(entry)):
                raise Damaged("entry.json is altered")
            if entry["format"] != FORMAT:
                raise Damaged(f"its format is {entry['format']}; this version reads {FORMAT}")
            arrays = []
            for name in ("features", "digests"):
                file = path / f"{name}.npy"
                if file.stat().st_size != entry["files"][name]["bytes"]:
                    raise Damaged(f"{file.name} has {file.stat().st_size} of {entry['files'][name]['bytes']} bytes")
                mapped = np.load(file, mmap_mode="r", allow_pickle=False)
                if _sha256_of(file) != entry["files"][name]["sha256"]:
                    raise Damaged(f"{file.name} is altered")
                arrays.append(mapped)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not path.exists():
                raise FileNotFoundError(path) from error
            raise Damaged(f"it cannot be read ({error})") from error
        return Segment(path, arrays[0], np.asarray(arrays[1]), entry)

    def open(self, key: str) -> Index | None:
        """All that is kept under a key, None if nothing is. Damaged segments are told and removed."""
        found = []
        for path in self.paths(key):
            try:
                segment = self.read(path)
            except FileNotFoundError:  # removed by another process since it was listed
                continue
            except Damaged as error:
                self.warn(f"feature cache: {path} is damaged and removed: {error}")
                self.remove(path)
                continue
            found.append(segment)
        return Index(found) if found else None

    def write(self, key: str, hashes: np.ndarray, features: np.ndarray, about: dict[str, Any]) -> str:
        """Keep the features of some images; the name of their segment.

        Args:
            key: of the backbone and its arithmetic.
            hashes: of the images, (N, 2) uint64.
            features: (N, D) float32.
            about: what ``entry.json`` says beside counts and checksums.

        Raises:
            OSError: the disk is full, or the folder may not be written.
        """
        name = _sha256(hashes.tobytes())[:16]
        final, part = self.root / key / name, self.root / key / f".part-{os.getpid()}-{name}"
        part.mkdir(parents=True, exist_ok=True)
        files = {}
        for kind, array in (("features", features), ("digests", hashes)):
            with (part / f"{kind}.npy").open("wb") as file:
                np.save(file, np.ascontiguousarray(array))
                file.flush()
                os.fsync(file.fileno())
            files[kind] = {"bytes": (part / f"{kind}.npy").stat().st_size, "sha256": _sha256_of(part / f"{kind}.npy")}
        entry = {"format": FORMAT, "images": len(hashes), "features": features.shape[1], "files": files}
        entry |= {"created": _now(), **about}
        write_atomic(part / "entry.json", json.dumps({**entry, "sha256": _sha256(_canonical(entry))}).encode())
        try:
            part.rename(final)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not final.exists():  # otherwise another process wrote the same
                raise
        return name

    def keys(self, beginning: str = "") -> list[str]:
        """The keys that begin so and have segments."""
        return sorted({path.parent.name for path in self.paths() if path.parent.name.startswith(beginning)})

    def clear(self, key: str) -> int:
        """Remove all that is kept under a key; the bytes."""
        size = sum(_folder_bytes(path) for path in self.paths(key))
        self.remove(self.root / key)
        return size

    def touch(self, key: str, names: set[str]) -> None:
        """Note that segments are in use."""
        for name in names:
            with contextlib.suppress(OSError):  # gone, or in a folder that may only be read
                os.utime(self.root / key / name / "entry.json")

    def remove(self, path: Path) -> None:
        """Take a segment or the folder of a key away; who has it mapped keeps it."""
        away = self.root / f".gone-{os.getpid()}-{path.parent.name[:16]}-{path.name[:16]}"
        with contextlib.suppress(OSError):
            path.rename(away)  # at once: nobody sees a part of it
        shutil.rmtree(away, ignore_errors=True)

    def summary(self, key: str) -> dict[str, Any]:
        """What is kept under a key: ``backbone``, ``size``, ``images``, ``features``, ``bytes``, ``used``; unreadable
        entries count their bytes alone."""
        out: dict[str, Any] = {"backbone": "?", "size": None, "images": 0, "features": 0, "bytes": 0, "used": 0.0}
        for path in self.paths(key):
            out["bytes"] += _folder_bytes(path)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                out["used"] = max(out["used"], (path / "entry.json").stat().st_mtime)
                entry = json.loads((path / "entry.json").read_bytes())
                out |= {name: entry[name] for name in ("backbone", "size", "features")}
                out["images"] += entry["images"]
        return out

    def evict(self, key: str = "", keep: set[str] = frozenset()) -> list[Path]:  # type: ignore[assignment]
        """Remove the least recently used segments until the rest is within the limit; those to keep of one key stay."""
        with self.locked("evict"):
            for left in self.root.glob(".gone-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            used: list[tuple[float, Path, int]] = []
            for path in self.paths():
                with contextlib.suppress(FileNotFoundError):
                    used.append(((path / "entry.json").stat().st_mtime, path, _folder_bytes(path)))
            over, gone = sum(size for _, _, size in used) - self.limit, []
            for _, path, size in sorted(used):
                if over > 0 and not (path.parent.name == key and path.name in keep):
                    self.remove(path)
                    gone.append(path)
                    over -= size
        return gone

    @contextlib.contextmanager
    def locked(self, name: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only process in here; ``waiting`` is called where another one is."""
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with (self.root / "locks" / name).open("a") as file:
            _lock(file, waiting)
            yield

    @contextlib.contextmanager
    def filling(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only process that computes for a key."""
        with self.locked(key, waiting):
            for left in (self.root / key).glob(".part-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            yield

    def holding(self, key: str, data: str, index: Index | None) -> set[str]:
        """The segments that hold all images of a scenario; none where they are not all there, or it is not known."""
        try:
            needed = set(json.loads((self.root / key / f"data-{data}.json").read_bytes())["segments"])
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return needed if index is not None and needed <= index.names else set()

    def note(self, key: str, data: str, segments: set[str]) -> None:
        """Write down that these segments hold all images of a scenario."""
        content = json.dumps({"segments": sorted(segments)}).encode()
        write_atomic(self.root / key / f"data-{data}.json", content)


def _lock(file: IO[str], waiting: Callable[[], None]) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return


# --- a run ------------------------------------------------------------------------------------------------------------


class Features:
    """What one process knows of the cache while it runs: looks features up, and computes those that are missing.

    Args:
        store: on disk.
        machine: name of the processor or GPU.
    """

    def __init__(self, store: Store, machine: str) -> None:
        self.store, self.machine = store, machine
        self.hits = self.misses = 0
        self._keys: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()
        self._open: dict[str, Index | None] = {}
        self._tested: Pixels | None = None  # the array of the scenario's test images
        self._positions: dict[str, np.ndarray] = {}  # under a key, where the features of its rows are

    def key(self, backbone: Pretrained, device: torch.device) -> str | None:
        """The key of a backbone as it is now; None where torch does not tell whether a tensor changed."""
        tensors = list(itertools.chain(backbone.parameters(), backbone.buffers()))
        if any(tensor.is_inference() for tensor in tensors):
            return None
        now = (conditions(device), [(tensor.data_ptr(), tensor._version) for tensor in tensors])
        known = self._keys.get(backbone)
        if known is None or known[0] != now:
            known = self._keys[backbone] = (now, key_of(backbone, device, self.machine))
        return known[1]

    def index(self, key: str) -> Index | None:
        """What is kept under a key; read once."""
        if key not in self._open:
            self._open[key] = self.store.open(key)
        return self._open[key]

    def look_up(self, backbone: Pretrained, x: Tensor) -> Tensor:
        """The features of images, from the cache where it has them: (B, C, H, W) -> (B, D).

        Images that are not on the grid of 256 values were augmented; they and those that are not known are computed.
        """
        key = None if backbone.preprocessing is None or _hooked(backbone) else self.key(backbone, x.device)
        index = None if key is None else self.index(key)
        if index is None:
            return backbone.compute(x)
        exact, images = on_grid(x)
        at = np.full(len(x), -1)
        at[exact] = index.find(digests(images[exact]))
        known = at >= 0
        self.hits += int(known.sum())
        self.misses += int((~known).sum())
        if not known.any():
            return backbone.compute(x)
        out = x.new_empty(len(x), backbone.num_features, dtype=torch.float32)
        out[torch.from_numpy(known).to(x.device)] = torch.from_numpy(index.features(at[known])).to(x.device)
        if not known.all():
            missing = torch.from_numpy(~known).to(x.device)
            out[missing] = backbone.compute(x[missing])
        return out

    def of_test_images(self, backbone: Pretrained, data: ImageSet, place: Place) -> Callable[[slice], Tensor] | None:
        """What reads the features of test images by their place in a set, without a look at their pixels.

        A stream is tested many times; each image is hashed only once for that.

        Args:
            backbone: frozen, within the precision of the run.
            data: test images.
            place: of the run.

        Returns:
            (a slice of the set) -> (B, D); None if the cache lacks some, or these are no test images.
        """
        if type(data) is not ImageSet or data.base is not self._tested or _hooked(backbone):
            return None
        key = self.key(backbone, place.device)
        index = None if key is None else self.index(key)
        if key is None or index is None:
            return None
        if key not in self._positions:
            self._positions[key] = np.full(len(data.base), -1)
        positions = self._positions[key]
        unknown = data.subset(np.flatnonzero(positions[data.rows] < 0))
        parts = slices(len(unknown), BATCH)
        for part, read in zip(parts, gathered(unknown, parts), strict=True):
            exact, images = on_grid(place.augmentation.test(read.to(place.device)))
            positions[unknown.rows[part]] = np.where(exact, index.find(digests(images)), -1)
        at = positions[data.rows]
        if (at < 0).any():
            return None

        def look_up(part: slice) -> Tensor:
            self.hits += len(at[part])
            return torch.from_numpy(index.features(at[part])).to(place.device)

        return look_up

    def prepare(self, experiment: Experiment, progress: Progress) -> None:
        """Compute the features of all images of a scenario that are missing, and keep them.

        A second process that wants the same waits, and uses what the first one wrote. Nothing is kept for backbones
        that do not declare their preprocessing: their images come normalised.

        Args:
            experiment: of the run; its strategy is built to know the backbone.
            progress: whom to tell.
        """
        backbone, place = cast(Any, experiment.fresh().model.backbone), experiment.place(0)
        if getattr(backbone, "preprocessing", None) is None:
            progress.say("features are not cached: model.preprocessing is not declared")
            return
        if place.augmentation.size:
            progress.say("features are not cached: the augmentation crops test images")
            return
        self._tested = experiment.scenario.test.base
        with place.autocast(), torch.no_grad():
            key = self.key(backbone, place.device)
            assert key is not None, "a fresh backbone's tensors are plain ones"
            data = _sha256(_canonical([experiment.scenario.fingerprint, place.augmentation.input_size]))[:16]
            try:
                if not self.store.holding(key, data, self.index(key)):
                    waiting = functools.partial(progress.say, "waiting for a process that computes these features")
                    with self.store.filling(key, waiting):
                        self._open.pop(key, None)  # whoever was waited for may have written it
                        if not self.store.holding(key, data, self.index(key)):
                            _Filling(self, experiment, progress, key, data).run(backbone)
                    self._open.pop(key, None)
                if held := self.store.holding(key, data, self.index(key)):
                    self.store.touch(key, held)
                    progress.say(f"features are taken from {self.store.root / key[:12]}")
            except OSError as error:
                progress.warn(f"feature cache: {self.store.root}: {error}; going on with what it holds")
                self._open.pop(key, None)


def _hooked(backbone: Pretrained) -> bool:
    """Whether somebody watches a part of the network, who is to see every image pass."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in backbone.body.modules())


class _Filling:
    """One pass over a scenario's images, in which what is missing is computed and written."""

    def __init__(self, features: Features, experiment: Experiment, progress: Progress, key: str, data: str) -> None:
        self.store, self.index = features.store, features.index(key)
        self.experiment, self.progress, self.key, self.data = experiment, progress, key, data
        self.place = experiment.place(0)
        self.used: set[str] = set()  # segments
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []  # (hashes, features)
        self.seen: set[bytes] = set()  # computed in this pass
        self.began = time.perf_counter()

    def run(self, backbone: Pretrained) -> None:
        scenario = self.experiment.scenario
        sets = [*(task.train for task in scenario.tasks), scenario.test]
        total = sum(map(len, sets))
        needed = total * (4 * backbone.num_features + 16)
        if needed > self.store.limit:
            self.progress.warn(
                f"features are not cached: of {total} images they take {mib(needed, 1)} MiB, and cache_limit is "
                f"{mib(self.store.limit, 1)} MiB"
            )
            return
        about = {
            "backbone": backbone.name,
            "size": backbone.preprocessing.size if backbone.preprocessing else None,
            "data": scenario.data_fingerprint,
            "conditions": [str(value) for value in conditions(self.place.device)],
        }
        began, computed = time.perf_counter(), 0
        with self.progress.counting("features", total) as done:
            for images in sets:
                parts = slices(len(images), BATCH)
                for read in gathered(images, parts):
                    computed += self.take(read, backbone, about)
                    done(len(read))
            self.flush(about)
        if self.used:
            self.store.note(self.key, self.data, self.used)
        seconds = time.perf_counter() - began
        self.progress.say(f"features of {computed} images computed in {seconds:.1f} s; {total} images were looked up")

    def take(self, images: Tensor, backbone: Pretrained, about: dict[str, Any]) -> int:
        """Compute what is missing of one batch, uint8 (B, C, H, W); the number of images."""
        x = self.place.augmentation.test(images.to(self.place.device))
        exact, raw = on_grid(x)
        hashes = digests(raw)
        new = exact.copy()
        if self.index is not None:
            at = self.index.find(hashes)
            new &= at < 0
            owners = np.unique(self.index.segment[at[exact & (at >= 0)]])
            self.used |= {self.index.segments[number].path.name for number in owners}
        for row in np.flatnonzero(new):
            new[row] = (name := hashes[row].tobytes()) not in self.seen
            self.seen.add(name)
        if new.any():
            features = backbone.compute(x[torch.from_numpy(new).to(x.device)]).cpu().numpy()
            self.waiting.append((hashes[new], features))
            if sum(len(part) for part, _ in self.waiting) >= SEGMENT:
                self.flush(about)
        return int(new.sum())

    def flush(self, about: dict[str, Any]) -> None:
        """Write a segment of what was computed since the last one."""
        if self.waiting:
            hashes, features = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
            seconds = round(time.perf_counter() - self.began, 3)
            self.used.add(self.store.write(self.key, hashes, features, {**about, "seconds": seconds}))
            self.store.evict(self.key, self.used)
            self.waiting, self.began = [], time.perf_counter()


_ACTIVE: ContextVar[Features | None] = ContextVar("features", default=None)


def active() -> Features | None:
    """What frozen backbones look features up in now; None: they compute."""
    return _ACTIVE.get()


def prepared(experiment: Experiment, store: Store | None, machine: str, progress: Progress) -> Features | None:
    """What a run looks features up in, with all images of its scenario; None if it has no use for it.

    Args:
        experiment: of the run.
        store: on disk; None: no cache is wanted.
        machine: name of the processor or GPU.
        progress: whom to tell.
    """
    if store is None or not experiment.outline.model.frozen:
        return None
    store.warn = progress.warn
    features = Features(store, machine)
    features.prepare(experiment, progress)
    return features


@contextlib.contextmanager
def use(features: Features | None) -> Iterator[None]:
    """Inside, frozen backbones look features up here; with None they compute all."""
    token = _ACTIVE.set(features)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def default_root() -> Path:
    """``cil-framework/features`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "cil-framework" / "features"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _folder_bytes(path: Path) -> int:
    total = 0
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            total += (path / name).stat().st_size
    return total


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
