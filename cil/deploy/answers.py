"""Pictures on a disk, asked about, and the answers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cil.data.pictures import SUFFIXES
from cil.deploy.model import Answer, Model
from cil.errors import UserError
from cil.shown import plain

UNKNOWN = "unknown"  # what a picture is called that resembles no class
PART = 64  # pictures that are read before they are asked about, so that memory stays small


def asked(
    model: Model, places: Iterable[Path], top: int, reject: float | None = None
) -> list[tuple[Path, list[Answer]]]:
    """The likeliest classes of each picture; none of one that is rejected.

    Args:
        model: to ask.
        places: image files, and folders that are searched for them.
        top: classes to name for each.
        reject: as :meth:`Model.predict` takes it.

    Raises:
        UserError: there is no such place, a folder without pictures, or a file that is none.
    """
    paths = list(_found(places))
    found: list[tuple[Path, list[Answer]]] = []
    for start in range(0, len(paths), PART):
        part = paths[start : start + PART]
        found += zip(part, model.top(part, top, reject=reject), strict=True)
    return found


def table(answers: Sequence[tuple[Path, list[Answer]]]) -> Table:
    """A row for each picture and class, the likeliest first; names and paths as they are."""
    out = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    out.add_column("picture", overflow="fold")
    out.add_column("class", overflow="fold")
    out.add_column("id", justify="right")
    out.add_column("score", justify="right")
    out.add_column("probability", justify="right")
    for path, best in answers:
        if not best:
            out.add_row(Text(plain(str(path))), Text(UNKNOWN, style="italic"), "", "", "")
        for rank, one in enumerate(best):
            shown = Text(plain(str(path))) if rank == 0 else Text("")
            sure = "" if one.probability is None else f"{one.probability:.3f}"
            out.add_row(shown, Text(plain(one.name)), str(one.id), f"{one.score:.3f}", sure)
    return out


def _found(places: Iterable[Path]) -> Iterable[Path]:
    """The image files that some places name, folders in the order of their names."""
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise UserError(f"{place}: there is no such picture or folder")
            yield place
            continue
        inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not inside:
            raise UserError(f"{place} holds no pictures; endings that are looked for: {', '.join(sorted(SUFFIXES))}")
        yield from inside
