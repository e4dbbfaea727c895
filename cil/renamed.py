"""Modules under the names that they had before, so that plugins and files written then still work.

``cil.strategy`` is ``cil.learning.strategy`` now, and an import of the former gives the latter, the same module. New
code uses the new names; for the old ones there is a ``DeprecationWarning``, which Python shows with ``-W default``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

ROOMS = {
    "command": {"config", "session"},
    "data": {"augmentation", "scenario", "seeds"},
    "deploy": {"export", "finished"},
    "experiment": {"checkpoint", "progress", "resume", "run"},
    "features": {"cache", "store"},
    "learning": {"frozen", "inference", "selection", "strategy", "trainer"},
    "machine": {"compute", "distributed"},
    "report": {"folder"},
    "testing": {"checks", "lab"},
}
FAMILIES = {
    "analytic": {"acil", "dsal", "gacil", "gkeal", "ranpac"},
    "baselines": {"finetune", "joint", "replay"},
    "growing": {"der", "foster", "memo"},
    "prototypes": {"fecam", "fetril", "knn", "ncm", "protonet", "simplecil", "slda", "teen"},
    "rehearsal": {"icarl", "wa"},
}
NOW = {f"cil.{name}": f"cil.{room}.{name}" for room, names in ROOMS.items() for name in names}
NOW |= {f"strategies.{name}": f"strategies.{family}.{name}" for family, names in FAMILIES.items() for name in names}
NOW |= {
    "cil.evaluation.calibration": "cil.deploy.calibration",
    "cil.evaluation.costs": "cil.report.costs",
    "cil.evaluation.report": "cil.report.report",
}


def current(path: str) -> str:
    """The class path that a class has today: ``strategies.wa.WA`` -> ``strategies.rehearsal.wa.WA``."""
    module, dot, name = path.rpartition(".")
    return f"{NOW.get(module, module)}{dot}{name}"


def attributes_of(module: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for a room that has the name of a former module: it gives what that module has."""

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(module), name)

    return find


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name: the module that has the new one."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in NOW else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is {NOW[spec.name]} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(NOW[spec.name])
        spec.loader_state = module.__spec__  # importing replaces it by the spec of the old name
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let imports find old names, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
