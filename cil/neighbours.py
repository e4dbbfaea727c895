"""The packages beside this one, ``strategies`` and ``scenarios``, found whatever lies in the current folder.

Their names are usual ones, and Python looks into the current folder first: a folder or file of the user's that has one
of them would take its place. So ours are looked up where this package lies. What of a user's own folder of such a name
is not ours is still found in it: ``strategies.mine`` beside ``strategies.rehearsal``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOME = Path(os.path.abspath(__file__)).parents[1]  # a checkout, or where packages are installed
NAMES = ("scenarios", "strategies")


class _Ours(MetaPathFinder):
    """Finds our modules where they lie; asked before all other finders."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        top, *inner = name.split(".")
        return PathFinder.find_spec(name, [str(HOME.joinpath(top, *inner).parent)]) if top in NAMES else None


class _Theirs(MetaPathFinder):
    """Finds what is not ours in a user's own folder of the same name; asked after all other finders."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        top, *inner = name.split(".")
        if top not in NAMES or len(inner) != 1:
            return None
        return PathFinder.find_spec(name, [os.path.join(entry or os.getcwd(), top) for entry in sys.path])


def install() -> None:
    """Let imports find our packages, once."""
    if any(isinstance(finder, _Ours) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Ours())
    sys.meta_path.append(_Theirs())
    for name in NAMES:  # a file of the user's that was imported before: Python asks nobody for what is inside a file
        there = sys.modules.get(name)
        if there is not None and not hasattr(there, "__path__"):
            there.__path__ = []


def places(name: str) -> list[str]:
    """The folders that hold our package of a name: one, and more where a program has added to its ``__path__``."""
    own = str(HOME / name)
    found = list(importlib.import_module(name).__path__)
    return found if own in found else [own]  # the user's own was imported first


def is_ours(name: str) -> bool:
    """Whether the module of a dotted name lies in one of our packages."""
    top, *inner = name.split(".")
    place = HOME.joinpath(top, *inner)
    return top in (*NAMES, __package__) and (place.is_dir() or place.with_suffix(".py").is_file())
