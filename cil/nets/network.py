"""The network a strategy starts from: a backbone and a head without classes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from cil.errors import UserError, unknown
from cil.nets import convnet, resnet
from cil.nets.heads import CosineHead, LinearHead

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    **{f"cifar_resnet{depth}": partial(resnet.cifar, depth) for depth in (14, 20, 26, 32, 44)},
    **{f"resnet{depth}": partial(resnet.imagenet, depth) for depth in resnet.LAYERS},
    "convnet2": convnet.convnet2,
    "convnet4": convnet.convnet4,
}


@runtime_checkable
class Backbone(Protocol):
    """Anything that maps images (B, C, H, W) to features (B, D) and says D in ``num_features``."""

    num_features: int

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Splittable(Backbone, Protocol):
    """A backbone in a general and a specialised part: calling it is ``pool(deep(shallow(x)))``."""

    @property
    def deep(self) -> nn.Module:
        """The specialised part, (B, C', H', W') -> (B, D, H'', W''): what is copied for each task."""
        ...

    def shallow(self, x: Tensor) -> Tensor:
        """The general part, (B, C, H, W) -> (B, C', H', W')."""
        ...

    def pool(self, x: Tensor) -> Tensor:
        """(B, D, H'', W'') -> (B, D)"""
        ...


class Network(nn.Module):
    """A backbone and a head that grows with the classes.

    Args:
        backbone: images (B, C, H, W) -> features (B, D), with ``num_features`` = D.
        head: features (B, D) -> scores (B, K), with ``grow(n_new)``.
        make: builds a network like this one, freshly initialised and without classes.
    """

    def __init__(
        self, backbone: nn.Module, head: LinearHead | CosineHead, make: Callable[[], Network] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.make = make
        self.frozen = False

    @property
    def num_features(self) -> int:
        """D, of the backbone."""
        return int(cast(Backbone, self.backbone).num_features)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)"""
        return self.head(self.features(x))

    def auxiliary_head(self, n_classes: int) -> LinearHead:
        """A fresh head on the features of one backbone, beside the network's own: (B, D) -> (B, n_classes)."""
        head = LinearHead(self.num_features)
        head.grow(n_classes)
        return head.to(self.head.weight.device)

    def reinitialise(self) -> None:
        """Forget everything: fresh weights and statistics for the same classes.

        Raises:
            ValueError: the network does not know how it was made.
        """
        if self.make is None:
            raise ValueError("this network was built without `make`, so it cannot be built again")
        fresh = self.make()
        fresh.head.grow(self.head.n_classes)
        self.load_state_dict(fresh.state_dict())


class Model:
    """Which network a run uses.

    Args:
        backbone: ``cifar_resnet14|20|26|32|44``, ``resnet10|18|26|34|50``, ``convnet2``, ``convnet4``, or the dotted
            path of a callable that takes ``in_channels`` and returns a module with ``num_features``.
        backbone_args: further arguments of the backbone, such as ``{stem: 3x3}`` for the ImageNet ResNets.
        head: ``linear``, or ``cosine`` (a learned scale times the cosine).
        head_args: further arguments of the head, such as ``{scale: 16}`` for the cosine head.
    """

    def __init__(
        self,
        *,
        backbone: str = "cifar_resnet32",
        backbone_args: dict[str, Any] | None = None,
        head: Literal["linear", "cosine"] = "linear",
        head_args: dict[str, Any] | None = None,
    ) -> None:
        self.backbone, self.backbone_args, self.head, self.head_args = backbone, backbone_args, head, head_args

    def build(self, in_channels: int) -> Network:
        """A freshly initialised network with no class.

        Args:
            in_channels: channels of the images.

        Raises:
            UserError: unknown backbone, or arguments that it does not take.
        """
        make = find_backbone(self.backbone)
        try:
            backbone = make(in_channels=in_channels, **(self.backbone_args or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"model.backbone_args: '{self.backbone}' refused them: {error}") from error
        if not isinstance(backbone, nn.Module) or not isinstance(backbone, Backbone):
            raise UserError(f"model.backbone: '{self.backbone}' gave no torch module with an attribute num_features")
        heads: dict[str, Any] = {"linear": LinearHead, "cosine": CosineHead}
        if self.head not in heads:
            raise unknown("model.head", self.head, heads)
        try:
            head = heads[self.head](backbone.num_features, **(self.head_args or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"model.head_args: the {self.head} head refused them: {error}") from error
        return Network(cast(nn.Module, backbone), head, partial(self.build, in_channels))


def find_backbone(name: str) -> Callable[..., nn.Module]:
    """The callable that makes a backbone from ``in_channels``: one of ``BACKBONES`` or a dotted path.

    Raises:
        UserError: there is none of that name.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if "." not in name:
        raise unknown("model.backbone", name, BACKBONES)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"model.backbone: '{name}' cannot be imported: {error}") from error
