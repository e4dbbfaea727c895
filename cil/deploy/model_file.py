"""Where a model's state lies: in the checkpoints of a run, or in one file that holds data only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cil.errors import UserError
from cil.experiment.blueprint import Blueprint
from cil.experiment.checkpoint import Checkpoints, DamagedError, Moment
from cil.experiment.provenance import Origin
from cil.files import reason, write_atomic
from cil.report.folder import IN_USE
from cil.verbs.learned import Event, State

FORMAT = 1
KEY = "cil_model"


def read(path: Path, task: int | None = None) -> State:
    """What a run learned, or what a file holds.

    Args:
        path: the folder of a run, finished or not, or a file.
        task: number of the task after which the state of a run is taken, from 1; None: the model in use, which is the
            last state that is kept, or what was made of it since.

    Raises:
        UserError: there is no such model, it is damaged, or was written by a version that did not say what it needs.
    """
    if path.is_dir():
        changed = path / IN_USE
        return of_file(changed) if task is None and changed.exists() else of_run(path, task)
    if not path.exists():
        raise missing(path)
    if task is not None:
        raise UserError(f"task: {path} is one file and holds one state; give no task")
    return of_file(path)


def missing(path: Path) -> UserError:
    """What is said where there is no model."""
    return UserError(f"{path}: there is no such model; give the folder of a run, or a file of Model.save")


def of_run(folder: Path, task: int | None) -> State:
    """The state after a task of a run, or the last one that is kept."""
    checkpoints = Checkpoints(folder / "checkpoint")
    moments = [moment for moment in checkpoints.moments() if not moment.inside]
    if not moments:
        raise UserError(f"{folder} holds no model: there is no state after a task in {checkpoints.folder}")
    wanted = moments[-1] if task is None else Moment(task - 1)
    if wanted not in moments:
        kept = ", ".join(str(moment.task + 1) for moment in moments)
        raise UserError(f"task: no state after task {task} is kept in {folder}; there are: {kept}")
    try:
        tensors, record = checkpoints.load(wanted)
        origin = checkpoints.origin_of(wanted)
    except DamagedError as error:
        raise UserError(str(error)) from error
    if origin is None or "blueprint" not in record:
        raise UserError(
            f"{folder}: this run was written by a version that did not note what a model needs; going on with it "
            "(--resume) or learning it anew does"
        )
    return State(
        Origin.from_json(origin), Blueprint.from_json(record["blueprint"]), tensors, (learned(record["tasks"]),)
    )


def learned(records: list[dict[str, Any]]) -> Event:
    """What the run did, as the first event of a model: with the accuracy on test images where it was measured."""
    last = records[-1]
    accuracy = {}
    for name, scores in last["evaluators"].items():
        row = [value for value in scores["accuracy_row"] if value is not None]
        accuracy[name] = row[: last["task"] + 1]
    return {
        "did": "learn",
        "tasks": len(records),
        "images": sum(record["train_images"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
        "accuracy": accuracy,
        "calibration": last.get("calibration"),
    }


def of_file(path: Path) -> State:
    """What a file of :func:`write` holds."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    strange = UserError(f"{path} is no file of Model.save")
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        body = json.loads(header["__metadata__"][KEY])
        written = body["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise strange from error
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(f"{path}: format {written}, of a later version of this program; this one reads {FORMAT}")
    try:
        tensors = load_tensors(data)
        if _digest(tensors) != body["tensors"]:
            raise UserError(f"{path}: damaged; its tensors are not those that were written")
        known = Origin.from_json(body["origin"]), Blueprint.from_json(body["blueprint"])
        return State(*known, tensors, tuple(body["history"]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {error}") from error


def write(state: State, path: Path) -> None:
    """Write a model as one file, whole or not at all.

    Args:
        state: of the model.
        path: ends in ``.safetensors``; what is there is replaced once the new file is whole.

    Raises:
        UserError: another ending, or it cannot be written.
    """
    check_name(path)
    body = {
        "format": FORMAT,
        "origin": state.origin.as_json(),
        "blueprint": state.blueprint.as_json(),
        "history": list(state.history),
        "tensors": _digest(state.tensors),
    }
    write_atomic(path, save_tensors(state.tensors, {KEY: json.dumps(body)}))


def check_name(path: Path) -> None:
    """Refuse a name that does not say what the file is.

    Raises:
        UserError: another ending than ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors")


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
