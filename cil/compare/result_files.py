"""Result files: found, read one by one, and packed into one file for a sweep.

A file that cannot be read, or is not whole, is left out by name and stops no other. A packed file, ``runs.jsonl.xz``,
holds one result a line, each with the path at which it would lie below the folder of the packed file; wherever such a
path is shown, compared or given as a place, it means the same as if the file lay there.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pydantic_core import from_json

from cil.compare import shape
from cil.compare.runs import SCHEMA, Run
from cil.errors import UserError
from cil.files import write_atomic

RESULTS = "results.json"
PACKED = "runs.jsonl.xz"
# Of one file, unpacked. A run of 54 measurements has 0.1 MB.
LARGEST = 2**29
# Of a result's keys, how many a JSON file must have to be meant as one.
MEANT = 3
LONGEST = 300  # characters of a file's own words in a reason


@dataclass(frozen=True)
class LeftOut:
    """A result file that is not compared, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` wrote: the file, its size in bytes, the number of runs in it, and what it left out."""

    path: Path
    size: int
    runs: int
    left_out: list[LeftOut]


class UnreadableError(ValueError):
    """Why the content of one file cannot be had."""


def read(places: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """The complete runs at some places, and what was left out.

    Args:
        places: result files, run folders, or folders to search: a folder with a ``results.json`` is a run, of another
            one all packed results and every JSON file that is meant as a result are taken. A place that is not there
            may be one inside a packed file above it.

    Raises:
        UserError: a place is not there or holds no results, or no complete run is found.
    """
    runs, left_out = [], []
    for _, item in _taken(places):
        if isinstance(item, Run):
            runs.append(item)
        else:
            left_out.append(item)
    if not runs:
        raise _nothing(left_out)
    return runs, left_out


def pack(places: Sequence[str | Path], folder: Path, *, overwrite: bool = False) -> Packed:
    """Write the complete runs at some places into ``runs.jsonl.xz``; equal runs give equal bytes.

    Each keeps its path below its place; a run folder or a file that is itself a place keeps its own name. Contents are
    kept whole. The packed file may be among the places, so runs can be added to it.

    Args:
        places: as in :func:`read`.
        folder: where the packed file goes; made if it is not there.
        overwrite: replace a packed file that is there.

    Raises:
        UserError: the file is there and is not to be replaced, or would lose what cannot be read of a packed file; two
            runs would have one path; there is nothing complete to pack, or too much for one file; or the folder cannot
            be written.
    """
    path = folder / PACKED
    if path.exists() and not overwrite:
        raise UserError(f"--out: {path} is there already; give --overwrite to replace it, or another folder")
    lines: dict[str, bytes] = {}
    origin: dict[str, str] = {}
    left_out = []
    for name, item in _taken(places):
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        if name in lines:
            raise UserError(
                f"{origin[name]} and {item.file} would both be {name}: give the folder above them as one place"
            )
        origin[name] = item.file
        line = {"file": name, "results": item.content}
        lines[name] = json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if not lines:
        raise _nothing(left_out)
    inside = [item for item in left_out if Path(item.file).name == PACKED or not os.path.exists(item.file)]
    if inside and path.exists():
        raise UserError(f"--out: {path} would lose {inside[0].file} ({inside[0].reason}); name another folder")
    data = b"".join(lines.values())
    if len(data) > LARGEST:
        raise UserError(f"--out: {len(data)} bytes of results are too much for one file; pack folders one by one")
    small = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, small)
    except OSError as error:
        raise UserError(f"--out: {folder}: {error.strerror}") from error
    return Packed(path, len(small), len(lines), left_out)


def _nothing(left_out: list[LeftOut]) -> UserError:
    told = "; ".join(f"{item.file}: {item.reason}" for item in left_out[:5])
    n = len(left_out)
    return UserError(f"no complete run among {n} result file{'s' * (n > 1)}: {told}" + "; ..." * (n > 5))


# --- which of them are results ----------------------------------------------------------------------------------------


def _taken(places: Sequence[str | Path]) -> Iterator[tuple[str, Run | LeftOut]]:
    """Every result file at some places, once: its path below the place, and the run or why it is none."""
    seen: set[Path] = set()
    for place in map(Path, places):
        found = False
        for path, content in _files(place):
            found = True
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            item = content if isinstance(content, LeftOut) else _run(_shown(path), content)
            yield _name(path, place) if isinstance(item, Run) else "", item
        if not found:
            raise UserError(
                f"{place}: no results in this folder. A run's folder has {RESULTS}, which is written as it learns."
            )


def _name(path: Path, place: Path) -> str:
    """A result's path below a place; below the folder around it where the place is a file or a run's folder."""
    below = path.relative_to(place.parent if path == place or place.name == PACKED else place)
    return str(PurePosixPath(place.name, RESULTS) if below == Path(RESULTS) else PurePosixPath(below))


def _shown(path: Path) -> str:
    """A path as text that can be written anywhere, also if its name is no text in the system's encoding."""
    return os.fsencode(path).decode(errors="replace")


def _run(file: str, content: Any) -> Run | LeftOut:
    """The run of a result file, or why there is none."""
    if not isinstance(content, dict) or "schema" not in content:
        return LeftOut(file, f"not a result file; {RESULTS} of a run is one (docs/results_schema.md)")
    if content["schema"] != SCHEMA:
        return LeftOut(file, f"schema {_brief(content['schema'])}; this version reads {SCHEMA}")
    if content.get("status") != "complete":
        error = f" ({_brief(content['error'])})" if content.get("error") else ""
        return LeftOut(file, f"status {_brief(content.get('status'))}{error}")
    if (fault := shape.fault(content)) is not None:
        return LeftOut(file, f"not a whole result file (docs/results_schema.md): {fault}")
    run = Run(file, content)
    try:
        run.check()
    except Exception as error:  # whatever it is, it concerns this file alone
        return LeftOut(file, f"damaged ({type(error).__name__}: {error})")
    return run


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


# --- finding and reading ----------------------------------------------------------------------------------------------


def _files(place: Path) -> Iterator[tuple[Path, Any]]:
    """Result files at a place, each with its content, or with :class:`LeftOut` where it cannot be read."""
    if os.path.isfile(place):
        yield from _members(place, place.parent) if place.name == PACKED else [(place, _content(place))]
        return
    if not os.path.isdir(place):
        above = next((folder for folder in place.parents if os.path.isfile(folder / PACKED)), None)
        inside = list(_members(above / PACKED, place)) if above else []
        if not inside:
            raise UserError(f"{place}: {os.strerror(2)}. Give run folders, result files or folders that hold them.")
        yield from inside
        return
    for folder, below, names in os.walk(place):
        if PACKED in names:
            yield from _members(Path(folder, PACKED), Path(folder))
        if RESULTS in names:
            below.clear()  # what else is in a run's folder are its checkpoints
            yield Path(folder, RESULTS), _content(Path(folder, RESULTS))
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".json")):
            content = _content(path)
            if isinstance(content, LeftOut) or (isinstance(content, dict) and len(shape.KEYS & {*content}) >= MEANT):
                yield path, content


def _members(packed: Path, place: Path) -> Iterator[tuple[Path, Any]]:
    """The results in a packed file at or below a place, in their order; a bad line is named by its number.

    One that also lies unpacked where its path says is passed over: what lies there counts.
    """
    try:
        lines = _bytes(packed).split(b"\n")
    except UnreadableError as error:
        yield packed, LeftOut(_shown(packed), str(error))
        return
    seen = set()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            content = _parsed(line)
            path = packed.parent / _inside(content)
            if path in seen:
                raise UnreadableError(f"a second {path.relative_to(packed.parent)}")
        except UnreadableError as error:
            where = packed.with_name(f"{packed.name} line {number}")
            yield where, LeftOut(_shown(where), str(error))
            continue
        seen.add(path)
        if place in (path, *path.parents) and not os.path.exists(path):
            yield path, content["results"]


def _inside(line: Any) -> PurePosixPath:
    """The path that a line of a packed file gives."""
    if not isinstance(line, dict) or not isinstance(line.get("file"), str) or "results" not in line:
        raise UnreadableError("not a line of packed results, which has 'file' and 'results'")
    path = PurePosixPath(line["file"])
    if path.is_absolute() or ".." in path.parts or "\0" in line["file"] or not path.name:
        raise UnreadableError(f"{line['file']!r} is no path below the folder")
    return path


def _content(path: Path) -> Any:
    """What a JSON file holds, or :class:`LeftOut`."""
    try:
        return _parsed(_bytes(path))
    except UnreadableError as error:
        return LeftOut(_shown(path), str(error))


def _bytes(path: Path) -> bytes:
    """What a file holds, unpacked if its name says that it is packed.

    Raises:
        UnreadableError: it is no file, damaged or too large, or the system refuses.
    """
    if not os.path.isfile(path):
        raise UnreadableError("not a regular file")
    try:
        file: IO[bytes]
        with lzma.open(path) if path.name == PACKED else open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except (lzma.LZMAError, EOFError) as error:
        raise UnreadableError(f"damaged ({error})") from error
    if len(data) > LARGEST:
        raise UnreadableError(f"more than {LARGEST} bytes")
    return data


def _parsed(data: bytes) -> Any:
    """JSON in UTF-8, of numbers that are finite: results write what is undefined as null.

    Raises:
        UnreadableError: it is something else, or nested too deep.
    """
    try:
        content = from_json(data, allow_inf_nan=False)
        json.dumps(content, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        raise UnreadableError(f"not JSON ({error})") from error
    return content
