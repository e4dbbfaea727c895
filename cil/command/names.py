"""Strategies and scenarios by name: the file that has the name, in whichever family it lies, or a class path."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

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
    package = importlib.import_module(PACKAGES[kind])
    found: dict[str, str] = {}
    for item in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        name = item.name.rpartition(".")[2]
        if item.ispkg:
            continue
        if name in found:
            raise UserError(
                f"{package.__name__}: {found[name]} and {item.name} have one name, by which '{name}' would be found "
                "twice; rename one of the files"
            )
        found[name] = item.name
    return dict(sorted(found.items()))


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
        name: a file of the package of that kind, a class in it, or a full class path.

    Raises:
        UserError: there is none; names the nearest and all legal ones.
    """
    base = CLASSES[kind]
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
    raise unknown(PACKAGES[kind], name, files(kind))


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
