"""Features on disk, by the hash of the image that they are of.

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
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cil.files import write_atomic

try:
    import fcntl
except ImportError:  # not on Windows, where two processes may compute the same
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
FILES = ("features.npy", "digests.npy", "entry.json")
KEY_NAME, SEGMENT_NAME = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{16}")


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
            if seal != sha256(canonical(entry)):
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
        name = sha256(hashes.tobytes())[:16]
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
        write_atomic(part / "entry.json", json.dumps({**entry, "sha256": sha256(canonical(entry))}).encode())
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


def default_root() -> Path:
    """``cil-framework/features`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "cil-framework" / "features"


def sha256(data: bytes) -> str:
    """64 digits."""
    return hashlib.sha256(data).hexdigest()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _folder_bytes(path: Path) -> int:
    total = 0
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            total += (path / name).stat().st_size
    return total


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
