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
    "experiment": {"checkpoint", "progress", "resume"},  # cil.run is a function now
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
CLOSED_FORMS = ("buffers", "calibration", "covariances", "means", "nearest", "ridge", "statistics")
NOW = {f"cil.{name}": f"cil.{room}.{name}" for room, names in ROOMS.items() for name in names}
NOW |= {f"strategies.{name}": f"strategies.{family}.{name}" for family, names in FAMILIES.items() for name in names}
NOW |= {f"cil.ops.{name}": f"cil.ops.closed_form.{name}" for name in CLOSED_FORMS}
NOW |= {
    "cil.evaluation.calibration": "cil.deploy.calibration",
    "cil.evaluation.costs": "cil.report.costs",
    "cil.evaluation.few_shot_report": "cil.report.sessions",
    "cil.evaluation.report": "cil.report.report",
    "cil.evaluation.stream_report": "cil.report.stream",
}
# What went to another room than the rest of its module: {old module: {name: where it is now}}.
MOVED = {
    "cil.cache": {"active": "cil.nets.lookup", "use": "cil.nets.lookup"},
    "cil.checkpoint": {"under": "cil.learning.state", "with_prefix": "cil.learning.state", "write_atomic": "cil.files"},
    "cil.distributed": {"Learner": "cil.learning.learner", "learner": "cil.learning.learner"},
    "cil.selection": {"Best": "cil.learning.best", "TOLD": "cil.learning.best"},
}


def current(path: str) -> str:
    """The class path that a class has today: ``strategies.wa.WA`` -> ``strategies.rehearsal.wa.WA``."""
    module, dot, name = path.rpartition(".")
    return f"{NOW.get(module, module)}{dot}{name}"


def attributes_of(module: str, moved: dict[str, str] | None = None) -> Callable[[str], Any]:
    """A ``__getattr__`` for a room that has the name of a former module: it gives what that module has.

    Args:
        module: where most of the former module is now.
        moved: names that went elsewhere, with their modules.
    """

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module((moved or {}).get(name, module)), name)

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
        old, module.__spec__ = module.__spec__.name, module.__spec__.loader_state
        for name, now in MOVED.get(old, {}).items():
            vars(module).setdefault(name, getattr(importlib.import_module(now), name))


def install() -> None:
    """Let imports find old names, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
