"""Strategies and scenarios by name: the file that has the name, in whichever family it lies, or a class path."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cil import neighbours
from cil.data.images import Dataset
from cil.data.scenario import ScenarioBuilder
from cil.errors import UserError, unknown
from cil.learning.strategy import Strategy

CLASSES: dict[str, type] = {"strategy": Strategy, "scenario": ScenarioBuilder}
PACKAGES = {"strategy": "strategies", "scenario": "scenarios"}


def files(kind: str) -> dict[str, str]:
    """The files in which plugins of a kind are looked for: file name to module, ``{"wa": "strategies.rehearsal.wa"}``.

    Args:
        kind: ``strategy`` or ``scenario``.

    Raises:
        UserError: two files have one name, so that the name would not say which is meant.
    """
    package = PACKAGES[kind]
    found: dict[str, str] = {}
    for module in _modules(neighbours.places(package), package):
        name = module.rpartition(".")[2]
        if name in found:
            raise UserError(
                f"{package}: {found[name]} and {module} have one name, by which '{name}' would be found twice; rename "
                "one of the files"
            )
        found[name] = module
    return dict(sorted(found.items()))


def _modules(places: Iterable[str], package: str) -> Iterator[str]:
    """The modules below some folders, without importing any."""
    for place in places:
        for item in pkgutil.iter_modules([place]):
            if item.ispkg:
                yield from _modules([os.path.join(place, item.name)], f"{package}.{item.name}")
            else:
                yield f"{package}.{item.name}"


def loader() -> Callable[..., Dataset]:
    """``scenarios.datasets.load``, which the engine is handed, since it knows no data set itself."""
    load: Callable[..., Dataset] = importlib.import_module("scenarios.datasets").load
    return load


def strategies() -> dict[str, type[Strategy]]:
    """All strategies of the package ``strategies``, by file name; imports every file."""
    return {name: value for name, module in files("strategy").items() for value in _own(module, Strategy)}


def _own(module: str, base: type) -> list[type]:
    """The subclasses of ``base`` that a module defines itself; imports it."""
    values = vars(importlib.import_module(module)).values()
    return [v for v in values if inspect.isclass(v) and issubclass(v, base) and v.__module__ == module]


def find_class(kind: str, name: str) -> type:
    """The class that a configuration names.

    Args:
        kind: ``strategy`` or ``scenario``.
        name: a file of the package of that kind, a class in it, a full class path, or the path of a file:
            ``mine.py``, or ``mine.py:Mine`` where it has several. What is in none of our files may be one of the
            current folder: ``mine``.

    Raises:
        UserError: there is none; names the nearest and all legal ones.
    """
    base = CLASSES[kind]
    if re.search(r"\.py(:\w*)?$", name):
        return _in_file(kind, name, base)
    if "." in name:
        return _at_path(kind, name, base)
    wanted = name.lower().replace("_", "")
    # A file of the same name is tried first: other strategies are then never imported.
    for file, module in sorted(files(kind).items(), key=lambda item: item[0].replace("_", "") != wanted):
        try:
            own = _own(module, base)
        except ImportError:
            continue
        for value in own:
            if wanted in (value.__name__.lower(), file.replace("_", "")):
                return value
    own_file = Path(f"{name}.py")
    if name.isidentifier() and own_file.is_file() and base.__name__ in own_file.read_text(errors="replace"):
        return _in_file(kind, str(own_file), base)
    raise unknown(PACKAGES[kind], name, files(kind))


def _in_file(kind: str, text: str, base: type) -> type:
    """The class of a file outside the package, imported under the name by which it is found again."""
    found = re.fullmatch(r"(.*\.py)(?::(\w*))?", text)
    assert found is not None
    path = Path(os.path.abspath(Path(found[1]).expanduser()))
    if not path.is_file():
        raise UserError(f"{kind}: {found[1]}: there is no such file")
    module, folder = importable(path)
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{kind}: {found[1]}: Python imports files whose names have letters, digits and _ alone")
    if folder not in (os.path.abspath(entry) for entry in sys.path):
        sys.path.append(folder)  # last, so that it hides nothing
    try:
        there = importlib.import_module(module).__file__
    except ImportError as error:
        raise UserError(f"{kind}: '{text}' cannot be imported: {error}") from error
    if there is None or not os.path.samefile(there, path):
        raise UserError(f"{kind}: {found[1]}: its name, {module}, is that of {there}; give it another one")
    own = {value.__name__: value for value in _own(module, base)}
    if found[2] is None and len(own) == 1:
        return next(iter(own.values()))
    if found[2] in own:
        return own[found[2]]
    if found[2] is None and own:
        raise UserError(f"{kind}: {found[1]} has several; say which, such as {found[1]}:{next(iter(own))}")
    if not own:
        raise UserError(f"{kind}: {found[1]} has no subclass of {base.__module__}.{base.__name__}")
    raise unknown(f"{kind}: {found[1]}", found[2], own)


def importable(path: Path) -> tuple[str, str]:
    """The dotted name by which Python imports a file, and the folder from which it does.

    It is the current folder for what lies below it. Elsewhere it is the folder of the file, or, of a file in a package,
    that of the package.

    Args:
        path: absolute.
    """
    here = Path.cwd()
    parts = path.with_suffix("").parts
    if path.is_relative_to(here):
        below = parts[len(here.parts) :]
        if all(part.isidentifier() for part in below):
            return ".".join(below), str(here)
    start = len(parts) - 1
    while start > 1 and Path(*parts[:start], "__init__.py").is_file():
        start -= 1
    return ".".join(parts[start:]), str(Path(*parts[:start]))


def _at_path(kind: str, path: str, base: type) -> type:
    module, _, attribute = path.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, TypeError, ValueError) as error:  # the last two of names such as '.x'
        raise UserError(f"{kind}: '{path}' cannot be imported: {error}") from error
    except AttributeError as error:
        classes = inspect.getmembers(importlib.import_module(module), inspect.isclass)
        legal = [key for key, item in classes if issubclass(item, base) and item is not base]
        raise unknown(f"{kind}: module {module}", attribute, legal) from error
    if not (inspect.isclass(value) and issubclass(value, base)):
        raise UserError(f"{kind}: '{path}' is not a subclass of {base.__module__}.{base.__name__}")
    return value


def class_path(value: type) -> str:
    """``package.module.Class``"""
    return f"{value.__module__}.{value.__qualname__}"
