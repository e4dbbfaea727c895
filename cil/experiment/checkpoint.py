"""Checkpoints that hold data only, are written whole or not at all, and show when they were damaged.

A checkpoint is two files: ``NAME.safetensors`` with the tensors and ``NAME.json`` with everything else, among it the
sha256 of the tensors and of itself. The JSON file is renamed into place last, so its presence says that both are
complete. Nothing is pickled. It also says under which name it was written and, in ``origin``, what was learned from
(``cil.experiment.provenance``), so that the checkpoint of another run is told from one's own.

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

from cil.errors import UserError
from cil.files import Unwritable, reason, write_atomic

NAME = re.compile(r"task(\d+)(?:-stage(\d+)-epoch(\d+))?$")
FORMAT = 1


class DamagedError(RuntimeError):
    """A checkpoint that is proven incomplete or altered; the message names the file and what is wrong."""


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
        origin: what the run learns from, JSON values, which every checkpoint names; None: nothing is said.
    """

    def __init__(self, folder: Path, origin: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.origin = origin

    def save(self, moment: Moment, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            moment: of the run.
            tensors: by name; stored as they are, bit for bit.
            record: JSON values.

        Raises:
            UserError: the disk is full, or the folder may not be written; those written before are whole.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unwritable(self.folder, error) from error
        data = save_tensors({name: _plain(tensor) for name, tensor in tensors.items()})
        body = {"format": FORMAT, "moment": moment.name, "origin": self.origin, "record": record}
        body |= {"tensors": {"sha256": _sha256(data), "bytes": len(data)}}
        write_atomic(self.folder / f"{moment.name}.safetensors", data)
        sealed = {**body, "sha256": _sha256(_canonical(body))}
        write_atomic(self.folder / f"{moment.name}.json", json.dumps(sealed, indent=1).encode())

    def load(self, moment: Moment) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a checkpoint back: (tensors, record).

        Raises:
            DamagedError: a file is missing, cut short or altered.
            UserError: a file cannot be read now, is of a later version, or has another checkpoint's name; that proves
                no damage.
        """
        sealed, path = self._sealed(moment), self._path(moment).with_suffix(".safetensors")
        data, expected = _bytes(path), sealed["tensors"]
        if expected["sha256"] != _sha256(data):
            raise DamagedError(f"{path}: damaged ({len(data)} of {expected['bytes']} bytes)")
        return load_tensors(data), sealed["record"]

    def origin_of(self, moment: Moment) -> dict[str, Any] | None:
        """What a checkpoint was learned from; None: it was written by a version that did not say so.

        Raises:
            DamagedError, UserError: as :meth:`load`, whose tensors are not read here.
        """
        return self._sealed(moment).get("origin")

    def _path(self, moment: Moment) -> Path:
        return self.folder / f"{moment.name}.json"

    def _sealed(self, moment: Moment) -> dict[str, Any]:
        """What the JSON file holds, found whole."""
        path = self._path(moment)
        data = _bytes(path)
        try:
            sealed = json.loads(data)
            written, seal = sealed["format"], sealed.pop("sha256")
            if isinstance(written, int) and written > FORMAT:  # before its seal, which may be another one there
                raise UserError(
                    f"{path}: format {written}, of a later version of this program; this one reads {FORMAT}. Nothing "
                    "was changed"
                )
            if seal != _sha256(_canonical(sealed)):
                raise DamagedError(f"{path}: altered since it was written")
            name = sealed.get("moment", moment.name)
        except UserError:
            raise
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise DamagedError(f"{path}: cannot be read ({error})") from error
        if name != moment.name:
            raise UserError(f"{path} is the checkpoint {name} under another name; remove it, or give it its own name")
        return sealed

    def moments(self) -> list[Moment]:
        """All checkpoints that seem to be there, oldest first."""
        found = []
        for path in self.folder.glob("task*.json"):
            match = NAME.match(path.stem)
            if match:
                task, stage, epoch = match.groups()
                found.append(Moment(int(task)) if stage is None else Moment(int(task), int(stage), int(epoch)))
        return sorted(found)

    def put_aside(self, moment: Moment) -> None:
        """Rename a damaged checkpoint, so that nothing takes it for one and nobody loses it.

        Raises:
            UserError: the folder may not be written.
        """
        for suffix in (".json", ".safetensors"):
            path = self._path(moment).with_suffix(suffix)
            aside = path.with_name(f"{path.name}.damaged")
            number = 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{path.name}.damaged{number}")
            try:
                path.rename(aside)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"{path} is damaged and cannot be renamed: {reason(error)}") from error

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


def _bytes(path: Path) -> bytes:
    """What a file holds; one that is missing is damage, one that cannot be read is not."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}. Nothing was changed") from error


def _plain(tensor: Tensor) -> Tensor:
    # A copy in row-major order: safetensors refuses shared storage, and channels-last is not part of the value.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
