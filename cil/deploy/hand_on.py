"""A whole model for other programs: one file, written once it is seen to give the scores of the model."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cil.deploy.handed_files import FORMATS, INPUT, OUTPUT, Answer, format_of
from cil.deploy.whole import Asked, followed
from cil.errors import UserError, unknown
from cil.files import check_folder, reason, write_atomic
from cil.memory.exemplars import Exemplars
from cil.memory.ledger import measure_run

FORMAT = 1  # of what a file says of itself
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}  # the last is written by Model.save
IMAGES = 16  # on which a file is checked
BATCHES = (1, 3, IMAGES)
TOLERANCE = 1e-4  # of scores, relative to the largest where that is above 1


class Given(Asked, Protocol):
    """A model that is handed on."""

    exemplars: Exemplars

    @property
    def revision(self) -> int:
        """1 as it was learned; each change counts one more."""
        ...

    def scores(self, pictures: Any) -> Tensor:
        """(N, K)"""
        ...


class Handed(NamedTuple):
    """A file that was written.

    Attributes:
        path: where it lies.
        bytes: its size.
        difference: the largest between a score of the file and one of the model in float32.
        own_difference: the same to the model in the precision in which it computes itself.
    """

    path: Path
    bytes: int
    difference: float
    own_difference: float


def hand_on(model: Given, exactly: Callable[[], Given], path: Path) -> Handed:
    """Write all of a model as one file for other programs, whole or not at all; legal endings: ``.onnx``, ``.pt2``.

    What comes out takes uint8 images (N, H, W, C) of the size that the model stores and gives its scores, float32
    (N, K). It is run on real images, where the model carries some, and written once its scores are the model's.

    Args:
        model: as it is.
        exactly: makes the same on the processor, in float32.
        path: new; its ending says which format.

    Raises:
        UserError: another ending, a file that is there, a package that is missing, a strategy whose scores cannot be
            followed or would be other ones, or a place that cannot be written.
    """
    kind = format_of(path)
    _assert_new(path)
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}")
    kind.check()
    exact = exactly()
    data = kind.made(followed(exact), json.dumps(metadata(model)))
    answer, images = kind.opened(data), seen(exact)
    difference = compared(answer, exact.scores(images), images, path)
    own = apart(answer(images), model.scores(images).numpy())
    write_atomic(path, data)
    return Handed(path, len(data), difference, own)


def targets(formats: str, folder: Path) -> list[Path]:
    """The files that a folder will hold of a model, all seen to be possible before any is written.

    Args:
        formats: out of ``onnx``, ``torch`` and ``safetensors``, with commas between them.
        folder: is made where it is not.

    Raises:
        UserError: another format, a file that is there, or a package that is missing.
    """
    names = [name.strip() for name in formats.split(",")]
    for name in names:
        if name not in ENDINGS:
            raise unknown("format", name, ENDINGS)
    paths = [folder / f"model{ENDINGS[name]}" for name in dict.fromkeys(names)]
    check_folder("out", folder)
    for path in paths:
        _assert_new(path)
        if path.suffix in FORMATS:
            FORMATS[path.suffix].check()
    return paths


def _assert_new(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} is already there; give another name or remove it")


def metadata(model: Given) -> dict[str, Any]:
    """What a file says of itself: JSON values that another program needs to use it, and where it comes from."""
    blueprint = model.blueprint
    channels, height, width = blueprint.image_shape
    names = list(blueprint.class_names)
    return {
        "format": FORMAT,
        "classes": names,  # by position, which is a class's id
        "forgotten": list(blueprint.forgotten),
        "image_shape": list(blueprint.image_shape),
        "input": {"name": INPUT, "type": "uint8", "shape": ["N", height, width, channels]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["N", len(names)]},
        "pictures": {
            "turned": "as EXIF says",
            "channels": "L" if channels == 1 else "RGB",
            "resized": [height, width],
            "resampling": "bilinear, antialiased, rounded to uint8",
        },
        "bytes": measure_run(model.strategy, model.exemplars)["strict"],
        "method": model.strategy.label,
        "tasks": len(blueprint.tasks),
        "revision": model.revision,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def seen(model: Given) -> np.ndarray:
    """Images to check with: exemplars, as far as there are some, and drawn ones, uint8 (IMAGES, H, W, C)."""
    channels, height, width = model.blueprint.image_shape
    drawn = np.random.default_rng(0).integers(0, 256, (IMAGES, height, width, channels), dtype=np.uint8)
    kept = model.exemplars.as_set()
    if kept is not None:
        at = np.unique(np.linspace(0, len(kept) - 1, IMAGES).astype(int))
        drawn[: len(at)] = kept.subset(at).raw()
    return drawn


def compared(answer: Answer, expected: Tensor, images: np.ndarray, path: Path) -> float:
    """The largest difference of a score, over batches of several sizes.

    Args:
        answer: the file at work.
        expected: scores of the model, (N, K).
        images: uint8 (N, H, W, C).
        path: of the file, as it is told.

    Raises:
        UserError: it is more than rounding makes.
    """
    due = expected.numpy()
    finite = np.abs(due[np.isfinite(due)])
    allowed = TOLERANCE * max(1.0, float(finite.max(initial=0.0)))
    found = {n: apart(answer(images[:n]), due[:n]) for n in BATCHES}
    worst = max(found.values())
    if not worst < allowed:
        each = ", ".join(f"{difference:.1e} in a batch of {n}" for n, difference in found.items())
        raise UserError(
            f"{path}: its scores would not be those of the model: they differ by up to {each}, and {allowed:.1e} is "
            "allowed; nothing was written"
        )
    return worst


def apart(found: np.ndarray, due: np.ndarray) -> float:
    """The largest difference of two arrays of scores; infinite where only one is, or one is not a number."""
    if found.shape != due.shape or np.isnan(found).any() or np.isnan(due).any():
        return float("inf")
    same = found == due  # also -inf, of classes without score
    return float(np.abs(np.subtract(found, due, where=~same, out=np.zeros_like(due))).max(initial=0.0))


def described(path: str | Path) -> dict[str, Any]:
    """What a file of :func:`hand_on` says of itself, as :func:`metadata` has it.

    Raises:
        UserError: there is no such file, or it is none of those.
    """
    path = Path(path)
    kind = format_of(path)
    strange = UserError(f"{path} is no file of Model.export")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        told = json.loads(kind.told(path))
        written = told["format"]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # of each package its own
        raise strange from error
    if not isinstance(written, int) or written > FORMAT:
        raise UserError(f"{path}: format {written}, of a later version of this program; this one reads {FORMAT}")
    return told
