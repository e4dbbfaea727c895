"""The backbone of a run as a file of weights that another run can start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from cil.data.images import Dataset
from cil.deploy.finished import reopen
from cil.errors import UserError
from cil.experiment.experiment import Experiment
from cil.files import write_atomic
from cil.learning.strategy import Strategy
from cil.nets.pretrained import Preprocessing, Pretrained


def export(
    run_dir: Path, out: Path, load: Callable[..., Dataset], *, task: int | None = None, half: bool = False
) -> dict[str, str]:
    """Write the backbone that a run ended with, and what belongs to it, whole or not at all.

    Args:
        run_dir: folder of the run.
        out: the safetensors file to write; new.
        load: ``scenarios.datasets.load``.
        task: number of the task after which the state is taken, from 1; None: the last of a finished run.
        half: store float16 instead of float32.

    Returns:
        The file's metadata: ``architecture``, ``classes``, ``preprocessing``, ``stream``, ``task``, ``command`` and
        ``versions``, the values JSON.

    Raises:
        UserError: no such run or state, a file that is there, or a method whose features are not those of one backbone.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out: {out} must end in .safetensors")
    if out.exists():
        raise UserError(f"--out: {out} is already there; give another name or remove it")
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    run = reopen(run_dir, load, task=task)
    strategy, experiment = run.strategy, run.experiment
    _assert_one_backbone(strategy, experiment)
    described = metadata(strategy, experiment, run.config.model, run.task)
    described |= {key: json.dumps(run.content[key]) for key in ("command", "versions")}
    backbone = strategy.model.backbone
    state = (backbone.body if isinstance(backbone, Pretrained) else backbone).state_dict()
    write_atomic(out, save_tensors({name: _stored(value, half) for name, value in state.items()}, described))
    return described


def metadata(strategy: Strategy, experiment: Experiment, model: Any, task: int) -> dict[str, str]:
    """What belongs to a backbone's weights, as JSON by key.

    Args:
        strategy: after the task.
        experiment: of the run.
        model: the options of :class:`cil.nets.network.Model` that it was built from.
        task: index of the last task learned.
    """
    scenario, backbone = experiment.scenario, strategy.model.backbone
    until = scenario.tasks[0 if strategy.freezes_backbone else task].n_seen
    learned = [] if strategy.model.frozen else list(scenario.class_names[:until])
    earlier = [name for name in getattr(backbone, "pretrained_classes", None) or [] if name not in learned]
    stream = getattr(backbone, "stream", None)
    if learned:
        same = stream is not None and stream["data"] == scenario.data_fingerprint
        before = [name for name in stream["classes"] if name not in learned] if stream and same else []
        stream = {"data": scenario.data_fingerprint, "classes": before + learned}
    built = {
        "backbone": model.backbone,
        "backbone_args": model.backbone_args or {},
        "in_channels": scenario.image_shape[0],
    }
    values = {
        "architecture": built,
        "classes": earlier + learned,
        "preprocessing": preprocessing(experiment).as_dict(),
        "stream": stream,
        "task": task + 1,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def preprocessing(experiment: Experiment) -> Preprocessing:
    """What a run did to test images before its backbone: the backbone's own, or the augmentation's size and statistics.

    A central crop, as in the preset ``imagenet``, is not part of it.
    """
    if experiment.preprocessing is not None:
        return experiment.preprocessing
    bound, (_, height, width) = experiment.place(0).augmentation, experiment.scenario.image_shape
    mean, std = (tuple(value.flatten().tolist()) for value in (bound.mean, bound.std))
    if bound.size:
        return Preprocessing(mean, std, bound.size, "bilinear")
    return Preprocessing(mean, std, bound.input_size or (height if height == width else None), "area")


@torch.no_grad()
def _assert_one_backbone(strategy: Strategy, experiment: Experiment) -> None:
    images = experiment.scenario.test.gather(slice(0, 2)).to(experiment.device)
    place = experiment.place(0)
    x = place.augmentation.test(images).to(place.dtype)
    own, whole = strategy.model.backbone(x), strategy.features(x)
    if own.shape != whole.shape or not torch.equal(own, whole):
        raise UserError(f"{type(strategy).__name__}'s features are not those of one backbone, so none can be exported")


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if half and tensor.is_floating_point() else tensor.clone()
