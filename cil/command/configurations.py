"""Configurations by name: ``cifar100_b0_10`` is the file of that name, wherever this package is installed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cil.errors import UserError, unknown
from cil.neighbours import HOME

ROOMS = ("", "protocols", "strategies", "backbones")  # of a run's configurations, within the folder of all
SWEEPS = ("sweeps",)
ENDINGS = (".yaml", ".yml", ".json")


def folder() -> Path:
    """Where configurations lie: ``configs/`` of a checkout, or within the installed package."""
    installed = HOME / "cil/configs"
    return installed if installed.is_dir() else HOME / "configs"


def known(rooms: Iterable[str] = ROOMS) -> dict[str, Path]:
    """The configurations of some rooms by name."""
    return {path.stem: path for room in rooms for path in sorted((folder() / room).glob("*.yaml"))}


def is_path(word: str) -> bool:
    """Whether a word says where a file is, and not how a configuration is called."""
    return word.endswith(ENDINGS) or "/" in word or os.sep in word


def find(word: str, rooms: Iterable[str] = ROOMS) -> str:
    """The path of the file that a word of a command line means.

    Args:
        word: a path, which is given back; the name of a configuration, ``wa``; or that of a file in the current folder,
            with or without ``.yaml``.
        rooms: in which names are looked up.

    Raises:
        UserError: there is no such name; tells the nearest and all legal ones.
    """
    if is_path(word):
        return word
    names = known(rooms)
    if word in names:
        return str(names[word])
    for own in (word, f"{word}.yaml"):
        if os.path.exists(own):
            return own
    for others, what in ((SWEEPS, "a sweep, which `sweep` runs"), (ROOMS, "a configuration of one run")):
        if word in known(others):
            raise UserError(f"configuration: '{word}' is {what}")
    raise unknown("configuration", word, names)


def as_files(argv: Sequence[str]) -> list[str]:
    """A command line in which each name of a configuration is ``--config`` with its file.

    Names come first, ``wa --seed 3``, or stand where files stand, ``--config wa``.

    Raises:
        UserError: there is no configuration of a name.
    """
    out: list[str] = []
    leading = True
    for word in argv:
        leading &= not word.startswith("-")
        if leading:
            out += ["--config", find(word)]
        elif out and out[-1] == "--config":
            out.append(find(word))
        elif word.startswith("--config="):
            out.append(f"--config={find(word.partition('=')[2])}")
        else:
            out.append(word)
    return out


def named(path: str) -> str | None:
    """The name that stands for a file, None if it has none."""
    file = Path(os.path.abspath(path))
    return file.stem if known().get(file.stem) == file else None
