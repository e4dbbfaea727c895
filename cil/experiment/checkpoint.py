"""Checkpoints that hold data only, are written whole or not at all, and show when they were damaged.

A checkpoint is two files: ``NAME.safetensors`` with the tensors and ``NAME.json`` with everything else, among it the
sha256 of the tensors and of itself. The JSON file is renamed into place last, so its presence says that both are
complete. Nothing is pickled.

Names: ``task003`` is the state after task 3 (strategy and exemplars); ``task004-stage0-epoch0010`` is the state inside
task 4, in its first call of ``descend`` after ten epochs (strategy, teachers included, and optimiser). The state inside
a task continues from the one after the task before, whose exemplars it needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.optim import Optimizer

from cil.files import write_atomic

NAME = re.compile(r"task(\d+)(?:-stage(\d+)-epoch(\d+))?$")
FORMAT = 1


class DamagedError(RuntimeError):
    """A checkpoint that is incomplete or was altered; the message names the file and what is wrong."""


@dataclass(frozen=True, order=True)
class Moment:
    """When a checkpoint was taken: after ``task``, or inside it after ``epoch`` epochs of ``stage``.

    A moment inside a task comes before the end of the task: ``stage`` and ``epoch`` of an end are infinite.
    """

    task: int
    stage: float = float("inf")
    epoch: float = float("inf")

    @property
    def inside(self) -> bool:
        return self.stage != float("inf")

    @property
    def name(self) -> str:
        return f"task{self.task:03d}" + (f"-stage{self.stage:.0f}-epoch{self.epoch:04.0f}" if self.inside else "")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, moment: Moment, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            moment: of the run.
            tensors: by name; stored as they are, bit for bit.
            record: JSON values.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        data = save_tensors({name: _plain(tensor) for name, tensor in tensors.items()})
        body = {"format": FORMAT, "record": record, "tensors": {"sha256": _sha256(data), "bytes": len(data)}}
        write_atomic(self.folder / f"{moment.name}.safetensors", data)
        sealed = {**body, "sha256": _sha256(_canonical(body))}
        write_atomic(self.folder / f"{moment.name}.json", json.dumps(sealed, indent=1).encode())

    def load(self, moment: Moment) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a checkpoint back: (tensors, record).

        Raises:
            DamagedError: a file is missing, cut short or altered.
        """
        path = self.folder / f"{moment.name}.json"
        try:
            sealed = json.loads(path.read_bytes())
            seal = sealed.pop("sha256")
            data = path.with_suffix(".safetensors").read_bytes()
            if seal != _sha256(_canonical(sealed)):
                raise DamagedError(f"{path}: altered since it was written")
            if sealed["tensors"]["sha256"] != _sha256(data):
                expected = sealed["tensors"]["bytes"]
                raise DamagedError(f"{path.with_suffix('.safetensors')}: damaged ({len(data)} of {expected} bytes)")
            if sealed["format"] != FORMAT:
                raise DamagedError(f"{path}: format {sealed['format']}; this version reads {FORMAT}")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DamagedError(f"{path}: cannot be read ({error})") from error
        return load_tensors(data), sealed["record"]

    def moments(self) -> list[Moment]:
        """All checkpoints that seem to be there, oldest first."""
        found = []
        for path in self.folder.glob("task*.json"):
            match = NAME.match(path.stem)
            if match:
                task, stage, epoch = match.groups()
                found.append(Moment(int(task)) if stage is None else Moment(int(task), int(stage), int(epoch)))
        return sorted(found)

    def prune(self, keep: Callable[[Moment], bool]) -> None:
        """Delete every checkpoint that ``keep`` does not want; the JSON file goes first, so no ruin looks whole."""
        for moment in self.moments():
            if not keep(moment):
                (self.folder / f"{moment.name}.json").unlink(missing_ok=True)
                (self.folder / f"{moment.name}.safetensors").unlink(missing_ok=True)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state (momenta, moments, step counts) as named tensors; hyper-parameters are not part of it."""
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give a fresh optimiser over the same parameters the state that ``optimizer_tensors`` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensor: Tensor) -> Tensor:
    # A copy in row-major order: safetensors refuses shared storage, and channels-last is not part of the value.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
