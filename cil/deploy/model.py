"""What a run learned, in use: a model that answers about pictures, where neither its data nor its run are at hand.

A model is read from the folder of a run, finished or not, or from one file that :meth:`Model.save` wrote. Both hold the
state, the exemplars, the names of the classes and how pictures become network input; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cil.command import config as cfg
from cil.data.images import ImageSet
from cil.data.pictures import CHANNELS, as_stored
from cil.data.seeds import Seeds
from cil.errors import UserError, check_number
from cil.evaluation.accuracy import class_means, nearness
from cil.experiment.blueprint import Blueprint
from cil.experiment.checkpoint import Checkpoints, DamagedError, Moment
from cil.experiment.experiment import Experiment
from cil.experiment.provenance import Origin
from cil.files import reason, write_atomic
from cil.learning.inference import passes
from cil.learning.state import under, with_prefix
from cil.machine.device import pick_device
from cil.memory.exemplars import Exemplars
from cil.memory.ledger import measure_run
from cil.units import show

FORMAT = 1
KEY = "cil_model"


class Answer(NamedTuple):
    """One class that a picture may show: its name, its stable id, and its score; higher is likelier."""

    name: str
    id: int
    score: float


class Model:
    """A strategy after a task, with all that it takes to ask it.

    Attributes:
        strategy: in eval mode.
        exemplars: that it carries.
        classes: names of the classes it knows; a name's position is its id, which never changes.
        origin: what it was learned from.
        blueprint: the shape of what was learned.
        experiment: the run without its data.
    """

    def __init__(self, origin: Origin, blueprint: Blueprint, tensors: dict[str, Tensor], device: torch.device) -> None:
        self.origin, self.blueprint = origin, blueprint
        self.experiment = _experiment(origin, blueprint, device)
        self.strategy = self.experiment.fresh()
        for task in self.experiment.scenario.tasks:
            self.experiment.grow(self.strategy, task)
        self.strategy.load_state_dict(under("strategy", tensors))
        self.strategy.eval()
        self.exemplars = Exemplars(self.experiment.memory, blueprint.image_shape)
        self.exemplars.load(under("exemplars", tensors), 0)
        self.place = self.experiment.place(len(blueprint.tasks) - 1)
        self._means: Tensor | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.blueprint.class_names

    def __repr__(self) -> str:
        size = measure_run(self.strategy, self.exemplars)["strict"]
        return (
            f"Model({self.strategy.label}, {len(self.classes)} classes, {len(self.exemplars)} exemplars, {show(size)})"
        )

    def scores(self, pictures: Any) -> Tensor:
        """The method's own scores of some pictures, one for each class: (N, K), on the processor.

        Args:
            pictures: a path, one of Pillow or an array (H, W[, C]) of uint8; or several of them: a list, or an array
                (N, H, W[, C]). Any size; they are made as large as those that were learned.

        Raises:
            UserError: a picture cannot be read, or is of another kind.
        """
        shape = self.blueprint.image_shape
        stored = [as_stored(picture, shape) for picture in _each(pictures)]
        if not stored:
            return torch.empty(0, len(self.classes))
        images = np.stack(stored)
        data = ImageSet(images, np.zeros(len(images), dtype=np.int64))
        linear = self.strategy.evaluator == "linear"
        parts = [
            scores if linear else nearness(features, self.means)
            for features, scores in passes(self.strategy, data, self.place, need_scores=linear)
        ]
        return torch.cat(parts).float().cpu()

    @property
    def means(self) -> Tensor:
        """The means of exemplars that the method compares features with, (K, D)."""
        if self._means is None:
            name = self.strategy.evaluator
            with torch.inference_mode():
                found = class_means(self.strategy, self.exemplars, len(self.classes), self.place, [name])
            self._means = found[name]
        return self._means

    def predict(self, pictures: Any) -> list[str]:
        """The likeliest class of each picture; pictures as :meth:`scores` takes them."""
        return [self.classes[best] for best in self.scores(pictures).argmax(1).tolist()]

    def top(self, pictures: Any, k: int = 5) -> list[list[Answer]]:
        """The k likeliest classes of each picture, or all of fewer, the likeliest first.

        Args:
            pictures: as :meth:`scores` takes them.
            k: at least 1.

        Raises:
            UserError: k is no number of classes, or as for :meth:`scores`.
        """
        check_number("top", k, least=1, whole=True)
        best = self.scores(pictures).topk(min(k, len(self.classes)), dim=1)
        return [
            [Answer(self.classes[i], i, value) for i, value in zip(ids, values, strict=True)]
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def save(self, path: str | Path) -> None:
        """Write the model as one file, whole or not at all.

        Args:
            path: ends in ``.safetensors``; new.

        Raises:
            UserError: another ending, a file that is there, or one that cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise UserError(f"{path} must end in .safetensors")
        if path.exists():
            raise UserError(f"{path} is already there; give another name or remove it")
        tensors = {
            **with_prefix("strategy", self.strategy.state_dict()),
            **with_prefix("exemplars", self.exemplars.state()),
        }
        plain = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        body = {
            "format": FORMAT,
            "origin": self.origin.as_json(),
            "blueprint": self.blueprint.as_json(),
            "tensors": _digest(plain),
        }
        write_atomic(path, save_tensors(plain, {KEY: json.dumps(body)}))


def load(path: str | Path, *, task: int | None = None, device: str = "auto") -> Model:
    """The model that a run learned, or that a file holds.

    Args:
        path: the folder of a run, finished or not, or a file of :meth:`Model.save`.
        task: number of the task after which the state of a run is taken, from 1; None: the last one that is kept.
        device: where it computes: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        UserError: there is no such model, it is damaged, or was written by a version that did not say what it needs.
    """
    path, where = Path(path), pick_device(device)
    if path.is_dir():
        return _of_run(path, task, where)
    if not path.exists():
        raise UserError(f"{path}: there is no such model; give the folder of a run, or a file of Model.save")
    if task is not None:
        raise UserError(f"task: {path} is one file and holds one state; give no task")
    return _of_file(path, where)


def _of_run(folder: Path, task: int | None, device: torch.device) -> Model:
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
    return Model(Origin.from_json(origin), Blueprint.from_json(record["blueprint"]), tensors, device)


def _of_file(path: Path, device: torch.device) -> Model:
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
        return Model(Origin.from_json(body["origin"]), Blueprint.from_json(body["blueprint"]), tensors, device)
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged: {error}") from error


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _experiment(origin: Origin, blueprint: Blueprint, device: torch.device) -> Experiment:
    """The run without its data: enough to build its strategy and to prepare pictures."""
    if origin.config is None:
        raise UserError(
            "this model was learned by a program without a configuration, so it cannot be put together again"
        )
    parser, config = cfg.of_content(origin.config)
    model = config.model
    if model.weights is not None:  # the state holds them
        model.weights = "random"
    model.preprocessing, model.pretrained_classes = blueprint.preprocessing, None
    built = parser.instantiate(config)
    channels = blueprint.image_shape[0]
    experiment = Experiment(
        scenario=blueprint.scenario("a model"),
        build=lambda: built.strategy(built.model.build(channels)),
        trainer=built.trainer,
        memory=built.memory,
        augmentation=built.augmentation,
        seeds=Seeds(**origin.seeds),
        device=device,
        precision=blueprint.precision,
    )
    experiment.sized = blueprint.sized  # what a budget decided for all tasks
    return experiment


def _each(pictures: Any) -> Iterable[Any]:
    """The pictures one by one, whether one or several were given."""
    if isinstance(pictures, np.ndarray):
        several = pictures.ndim == 4 or (pictures.ndim == 3 and pictures.shape[2] not in CHANNELS)
    else:
        several = isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes)
    return pictures if several else [pictures]
