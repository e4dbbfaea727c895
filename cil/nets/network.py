"""The network a strategy starts from: a backbone and a head without classes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from cil.errors import UserError, unknown
from cil.nets import convnet, pretrained, resnet
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
        frozen: whether the backbone never learns.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: LinearHead | CosineHead,
        make: Callable[[], Network] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.make = make
        self.frozen = frozen

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
        init = self.head.init if isinstance(self.head, LinearHead) else "torch"
        head = LinearHead(self.num_features, init=init)
        head.grow(n_classes)
        return head.to(self.head.weight)

    def reinitialise(self) -> None:
        """Forget everything: fresh weights and statistics for the same classes. Pretrained weights are those of the
        start again, and a frozen backbone, which learned nothing, stays.

        Raises:
            ValueError: the network does not know how it was made.
        """
        if self.make is None:
            raise ValueError("this network was built without `make`, so it cannot be built again")
        fresh = self.make()
        fresh.head.grow(self.head.n_classes)
        if self.frozen:
            self.head.load_state_dict(fresh.head.state_dict())
        else:
            self.load_state_dict(fresh.state_dict())


class Model:
    """Which network a run uses.

    Args:
        backbone: ``cifar_resnet14|20|26|32|44``, ``resnet10|18|26|34|50``, ``convnet2``, ``convnet4``, ``timm:NAME``
            for a network of timm, or the dotted path of a module class or of a function that takes ``in_channels``
            and returns a module with ``num_features``; its module is imported.
        backbone_args: further arguments of the backbone, such as ``{stem: 3x3}`` for the ImageNet ResNets.
        head: ``linear``, or ``cosine`` (a learned scale times the cosine).
        head_args: further arguments of the head, such as ``{scale: 16}`` for the cosine head or ``{init: kaiming}``
            for the linear one.
        weights: null (fresh), ``random`` (fresh, to be frozen), the path of a ``.safetensors``, ``.pth``, ``.pt`` or
            ``.bin`` file, in which ``{seed}`` stands for the run's init seed, ``package:NAME`` (an installed package
            that ships such a file), or ``hub`` (timm's own).
        frozen: whether the backbone never learns; without it, weights are where training starts.
        preprocessing: what the backbone does to images in [0, 1] before anything else: ``{size, mean, std,
            interpolation, antialias}``; null takes what belongs to the weights, else ``augmentation`` normalises.
        pretrained_classes: names of the classes that the weights were trained on, or a text file with one a line; null
            takes what belongs to the weights.
    """

    def __init__(
        self,
        *,
        backbone: str = "cifar_resnet32",
        backbone_args: dict[str, Any] | None = None,
        head: Literal["linear", "cosine"] = "linear",
        head_args: dict[str, Any] | None = None,
        weights: str | None = None,
        frozen: bool = False,
        preprocessing: dict[str, Any] | None = None,
        pretrained_classes: list[str] | str | None = None,
    ) -> None:
        self.backbone, self.backbone_args, self.head, self.head_args = backbone, backbone_args, head, head_args
        self.weights, self.frozen = weights, frozen
        self.preprocessing, self.pretrained_classes = preprocessing, pretrained_classes
        self._read: pretrained.Weights | None = None

    def build(self, in_channels: int) -> Network:
        """A network with no class, freshly initialised or with the weights it starts from.

        Args:
            in_channels: channels of the images.

        Raises:
            UserError: unknown backbone, arguments that it does not take, or weights that do not fit it.
        """
        make = find_backbone(self.backbone)

        def fresh(**args: Any) -> nn.Module:
            try:
                return make(in_channels=in_channels, **args)
            except UserError:
                raise
            except (TypeError, ValueError) as error:
                raise UserError(f"model.backbone_args: '{self.backbone}' refused them: {error}") from error

        backbone = cast(Backbone, pretrained.build(self, in_channels, fresh, self._file()))
        heads: dict[str, Any] = {"linear": LinearHead, "cosine": CosineHead}
        if self.head not in heads:
            raise unknown("model.head", self.head, heads)
        try:
            head = heads[self.head](backbone.num_features, **(self.head_args or {}))
        except (TypeError, ValueError) as error:
            raise UserError(f"model.head_args: the {self.head} head refused them: {error}") from error
        return Network(cast(nn.Module, backbone), head, partial(self.build, in_channels), self.frozen)

    def _file(self) -> pretrained.Weights | None:
        """The file of weights; read once, since a run builds its network several times."""
        if self.weights in pretrained.NO_FILE:
            return None
        if self._read is None or self._read.where != self.weights:
            self._read = pretrained.read(str(self.weights))
        return self._read


def find_backbone(name: str) -> Callable[..., nn.Module]:
    """The callable that makes a backbone from ``in_channels``: one of ``BACKBONES``, of timm, or a dotted path.

    Raises:
        UserError: there is none of that name, or what has it is no module class and no function of ``in_channels``.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(pretrained.TIMM):
        return partial(pretrained.timm_network, name.removeprefix(pretrained.TIMM))
    if "." not in name:
        raise unknown("model.backbone", name, [*BACKBONES, "timm:NAME"])
    module, _, attribute = name.rpartition(".")
    try:
        made_by = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"model.backbone: '{name}' cannot be imported: {error}") from error
    if not _makes_backbones(made_by):
        raise UserError(
            f"model.backbone: '{name}' is not called, for it is neither a subclass of torch.nn.Module nor a function "
            "with a parameter in_channels"
        )
    return made_by


def _makes_backbones(value: Any) -> bool:
    """Whether a value says that it makes a network: only then it is called, since a configuration may name anything."""
    if inspect.isclass(value):
        return issubclass(value, nn.Module)
    try:
        return callable(value) and "in_channels" in inspect.signature(value).parameters
    except (TypeError, ValueError):  # written in C
        return False
