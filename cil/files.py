"""Files that are written whole or not at all, and places where they can be."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cil.errors import UserError, shortened


class Unwritable(UserError, OSError):
    """A file that cannot be written: a full disk, a folder that may only be read. Nothing of it is left.

    Args:
        path: of the file.
        error: what the system said.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path} cannot be written: {reason(error)}")
        self.errno, self.strerror = error.errno, reason(error)

    def __str__(self) -> str:
        return str(self.args[0])


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never a part.

    Raises:
        Unwritable: names the file and the reason; the old one is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Unwritable(path, error) from error
        raise


def reason(error: OSError) -> str:
    """What the system says of an error, such as ``No space left on device``."""
    return error.strerror or str(error)


def check_folder(key: str, path: Path, legal: str = "give a folder, or the path of one to be made") -> None:
    """Refuse a path at which there is no folder and none can be made: it, or what lies above it, is a file.

    Raises:
        UserError: names the option, the path and what stands in the way.
    """
    try:
        there = next((place for place in (path, *path.parents) if place.exists()), None)
    except OSError as error:
        raise UserError(f"{key}: {shortened(str(path))}: {os.strerror(error.errno or 0)}; {legal}") from error
    if there is not None and not there.is_dir():
        raise UserError(f"{key}: {path}" + f": {there}" * (there != path) + f" is a file; {legal}")
