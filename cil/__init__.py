"""Class-incremental learning: one loop, one state, every byte counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil import neighbours, renamed

if TYPE_CHECKING:  # it would import torch
    from cil.data.images import Dataset
    from cil.deploy.model import Model
    from cil.deploy.results import Results

__version__ = "0.1.0"

renamed.install()
neighbours.install()


def run(*configurations: str, data: str | Dataset | None = None, progress: bool = False, **options: Any) -> Results:
    """Learn all tasks, in one call: :func:`cil.deploy.results.run`."""
    from cil.deploy import results

    return results.run(*configurations, data=data, progress=progress, **options)


def load(path: str | Path, *, task: int | None = None, device: str = "auto") -> Model:
    """The model that a run learned, or that a file holds: :func:`cil.deploy.model.load`."""
    from cil.deploy import model

    return model.load(path, task=task, device=device)
