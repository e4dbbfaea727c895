"""Features of frozen backbones, computed once and kept on disk (:mod:`cil.features.store`) for all runs.

The cache is content-addressed: a key is the hash of all that decides the bits of a backbone's features, and under it
an image is found by the hash of its own bytes. So the cache cannot change a result, and whoever looks up an image must
have it in hand.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import struct
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cil.data.images import ImageSet, Pixels, gathered, slices
from cil.data.scenario import Scenario
from cil.features.store import FORMAT, Index, Store, canonical, sha256
from cil.learning.place import Place
from cil.nets.pretrained import Pretrained
from cil.units import mib

SEGMENT = 8192  # images: what an interruption can lose
BATCH = 256


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


# --- a run ------------------------------------------------------------------------------------------------------------


class Progress(Protocol):
    """Who is told how far the work is."""

    def say(self, text: str) -> None:
        """A line for the user."""
        ...

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        ...

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Around work on ``total`` things; what it gives is called with the number of those done."""
        ...


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

    def of_test_images(
        self, backbone: Pretrained, data: ImageSet, prepare: Callable[[Tensor], Tensor], device: torch.device
    ) -> Callable[[slice], Tensor] | None:
        """What reads the features of test images by their place in a set, without a look at their pixels.

        A stream is tested many times; each image is hashed only once for that.

        Args:
            backbone: frozen, within the precision of the run.
            data: test images.
            prepare: from bytes to network input, uint8 (B, C, H, W) -> (B, C, H, W), without augmentation.
            device: where features are wanted.

        Returns:
            (a slice of the set) -> (B, D); None if the cache lacks some, or these are no test images.
        """
        if type(data) is not ImageSet or data.base is not self._tested or _hooked(backbone):
            return None
        key = self.key(backbone, device)
        index = None if key is None else self.index(key)
        if key is None or index is None:
            return None
        if key not in self._positions:
            self._positions[key] = np.full(len(data.base), -1)
        positions = self._positions[key]
        unknown = data.subset(np.flatnonzero(positions[data.rows] < 0))
        parts = slices(len(unknown), BATCH)
        for part, read in zip(parts, gathered(unknown, parts), strict=True):
            exact, images = on_grid(prepare(read.to(device)))
            positions[unknown.rows[part]] = np.where(exact, index.find(digests(images)), -1)
        at = positions[data.rows]
        if (at < 0).any():
            return None

        def look_up(part: slice) -> Tensor:
            self.hits += len(at[part])
            return torch.from_numpy(index.features(at[part])).to(device)

        return look_up

    def prepare(self, backbone: Pretrained, scenario: Scenario, place: Place, progress: Progress) -> None:
        """Compute the features of all images of a scenario that are missing, and keep them.

        A second process that wants the same waits, and uses what the first one wrote. Nothing is kept for backbones
        that do not declare their preprocessing: their images come normalised.

        Args:
            backbone: frozen.
            scenario: whose images are meant.
            place: of the run's first task.
            progress: whom to tell.
        """
        if backbone.preprocessing is None:
            progress.say("features are not cached: model.preprocessing is not declared")
            return
        if place.augmentation.size:
            progress.say("features are not cached: the augmentation crops test images")
            return
        self._tested = scenario.test.base
        with place.autocast(), torch.no_grad():
            key = self.key(backbone, place.device)
            assert key is not None, "a fresh backbone's tensors are plain ones"
            data = sha256(canonical([scenario.fingerprint, place.augmentation.input_size]))[:16]
            try:
                if not self.store.holding(key, data, self.index(key)):
                    waiting = functools.partial(progress.say, "waiting for a process that computes these features")
                    with self.store.filling(key, waiting):
                        self._open.pop(key, None)  # whoever was waited for may have written it
                        if not self.store.holding(key, data, self.index(key)):
                            _Filling(self, scenario, place, progress, key, data).run(backbone)
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

    def __init__(
        self, features: Features, scenario: Scenario, place: Place, progress: Progress, key: str, data: str
    ) -> None:
        self.store, self.index = features.store, features.index(key)
        self.scenario, self.place, self.progress, self.key, self.data = scenario, place, progress, key, data
        self.used: set[str] = set()  # segments
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []  # (hashes, features)
        self.seen: set[bytes] = set()  # computed in this pass
        self.began = time.perf_counter()

    def run(self, backbone: Pretrained) -> None:
        scenario = self.scenario
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
