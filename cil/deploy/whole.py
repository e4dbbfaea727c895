"""All of a model as one network, from stored images to scores, followed by torch so that other programs can run it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import UserError
from cil.experiment.blueprint import Blueprint
from cil.learning.inference import splits
from cil.learning.place import Place
from cil.learning.strategy import Strategy


class Asked(Protocol):
    """What of a model decides its scores; :class:`cil.deploy.model.Model` is one."""

    blueprint: Blueprint
    strategy: Strategy
    place: Place

    @property
    def means(self) -> Tensor | None:
        """Of exemplars, (K, D), where the method compares features with them."""
        ...


class Whole(nn.Module):
    """Prepare images as test images are, take their features, score them: uint8 (N, H, W, C) -> float32 (N, K).

    What many images share, such as means of exemplars, is computed once, here.

    Args:
        model: on the processor, in float32.
    """

    def __init__(self, model: Asked) -> None:
        super().__init__()
        self.strategy, self.prepare, self.means = model.strategy, model.place.augmentation.test, model.means
        self.splits = splits(model.strategy)
        self.score = model.strategy.scorer() if self.splits and self.means is None else None
        names, forgotten = model.blueprint.class_names, model.blueprint.forgotten
        self.known = None if not forgotten else torch.tensor([label not in forgotten for label in range(len(names))])

    def forward(self, images: Tensor) -> Tensor:
        scores = self.scores(self.prepare(images.permute(0, 3, 1, 2))).float()
        return scores if self.known is None else scores.masked_fill(~self.known, -torch.inf)

    def scores(self, x: Tensor) -> Tensor:
        """The method's own scores of network input: (N, C, H, W) -> (N, K)."""
        if self.means is not None:
            return _nearness(self.strategy.features(x), self.means)
        if self.score is None:
            return self.strategy(x)
        return self.score(self.strategy.features(x))


def _nearness(features: Tensor, means: Tensor) -> Tensor:
    """:func:`cil.evaluation.accuracy.nearness` by products, in float64, in which they keep the digits."""
    x, y = F.normalize(features, dim=1).double(), means.double()
    squares = (x * x).sum(1, keepdim=True) + (y * y).sum(1) - 2 * x @ y.T
    return -squares.clamp_min(0).sqrt().nan_to_num(nan=torch.inf)


def followed(model: Asked) -> Any:
    """The operations of a model as a ``torch.export.ExportedProgram``, with the tensors that they need and no others.

    Args:
        model: on the processor, in float32.

    Raises:
        UserError: the strategy computes scores in a way that cannot be followed, such as by the values of an image.
    """
    channels, height, width = model.blueprint.image_shape
    example = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    n = torch.export.Dim("N", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            whole = Whole(model).eval()
            program = torch.export.export(whole, (example,), dynamic_shapes={"images": {0: n}}, strict=False)
    except Exception as error:  # whatever a strategy does that torch has no rule for
        raise UserError(
            f"{model.strategy.label} cannot be handed on, for torch cannot follow how it scores: {first_line(error)}"
        ) from error
    _reduce(program)
    return program


def first_line(error: Exception) -> str:
    """What an error of torch says, without the pages that follow."""
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _reduce(program: Any) -> None:
    """Leave out tensors that no operation reads, such as a regression's matrix, and where in which file each was."""
    inputs = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in list(program.graph_signature.input_specs):
        if spec.target is not None and not inputs[spec.arg.name].users:
            program.graph.erase_node(inputs[spec.arg.name])
            program.graph_signature.input_specs.remove(spec)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.graph_module.recompile()
