"""Pictures for a model that lie on a disk: a data set as runs read it, or a folder of classes without splits."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cil.data.images import Dataset
from cil.data.pictures import SUFFIXES
from cil.errors import UserError
from cil.experiment.blueprint import Blueprint

FOLDER = "folder:"


def read(
    spec: str, blueprint: Blueprint, load: Callable[..., Dataset], *, root: str = "data", split: str = "train"
) -> Any:
    """Pictures with the names of their classes, as the verbs of a model take them.

    Args:
        spec: as ``--data`` of a run, or ``folder:PATH`` of a folder that has one folder for each class, all of whose
            pictures are taken.
        blueprint: of the model; images are made as large as it has learned.
        load: ``scenarios.datasets.load``.
        root: where downloaded data sets are kept.
        split: ``train`` or ``test``: which images of a data set with both are taken.

    Raises:
        UserError: there is no such data set, or a folder without pictures.
    """
    plain = Path(spec.removeprefix(FOLDER))
    if spec.startswith(FOLDER) and plain.is_dir() and not (plain / "train").is_dir():
        return classes_below(plain)
    _, height, width = blueprint.image_shape
    data = load(spec, root=root, image_size=height if height == width else None)
    return data if split == "train" else dataclasses.replace(data, train=data.test)


def arguments(parser: ArgumentParser, *, changes: bool = False) -> None:
    """What commands on a model take: the model, where data sets are kept, and where a changed model is written.

    Args:
        parser: of the command.
        changes: whether the command changes the model.
    """
    parser.add_argument("model", type=Path, help="folder of a run, or a file of Model.save")
    parser.add_argument("--root", default="data", help="where downloaded data sets are kept")
    if changes:
        parser.add_argument("--out", type=Path, help="new file for the new model; else it takes the place of the old")


def classes_below(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class: those below the folder of its name, in the order of their names.

    Raises:
        UserError: there is no such folder, or one without pictures.
    """
    found = {
        own.name: sorted(path for path in own.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        for own in sorted(folder.iterdir())
        if own.is_dir() and not own.name.startswith(".")
    }
    if not found:
        raise UserError(f"{folder} has no folder for each class; give one with pictures in FOLDER/CLASS/")
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        legal = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{folder / empty[0]} holds no pictures; endings that are looked for: {legal}")
    return found
