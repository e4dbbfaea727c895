"""Backbones with weights from elsewhere, and what belongs to such weights: preprocessing and classes.

Weights come from a file of tensors, from an installed package that ships one, or from timm's hub. Nothing is unpickled.
A frozen backbone never learns, and in a run it gives an image the same features, bit for bit, whatever batch it comes
in (:func:`cil.nets.lookup.one_size`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import UserError, check_number, check_side, nearest, unknown
from cil.nets import lookup
from cil.ops.freezing import freeze

TIMM = "timm:"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
NO_FILE = (None, "random", "hub")
LEGAL = "null, random, hub, package:NAME, or the path of a file that ends in " + ", ".join(SUFFIXES)
# What tensors of weights may hold; integers and truth are those of counters and masks.
KINDS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
INTERPOLATIONS = ("bicubic", "bilinear", "area")
# First parts of the names that classifiers have in published files.
CLASSIFIERS = frozenset({"fc", "_fc", "linear", "head", "heads", "head_dist", "classifier", "last_linear", "logits"})
COUNTER = "num_batches_tracked"  # old files do not have it, and in eval mode nothing reads it
# Images in one pass of a frozen backbone: always the same, since other shapes may be computed in another order of sums.
# At 32, CIFAR ResNets are as fast as they get, and larger networks hardly depend on it.
CHUNK = 32


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone does to images (B, C, H, W) in [0, 1] before anything else.

    Attributes:
        mean: of each channel, (C,), taken off.
        std: of each channel, (C,), divided by.
        size: side in pixels to which images are resized; None keeps theirs.
        interpolation: ``bicubic``, ``bilinear``, or ``area``, which averages and rounds to the 256 stored values.
        antialias: whether bicubic and bilinear interpolation smooth when they make smaller.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    interpolation: str = "bicubic"
    antialias: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Images in [0, 1] (B, C, H, W) -> network input (B, C, size, size)."""
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            shape = (self.size, self.size)
            if self.interpolation == "area":
                x = F.interpolate(x * 255, shape, mode="area").round() / 255
            else:
                x = F.interpolate(x, shape, mode=self.interpolation, antialias=self.antialias, align_corners=False)
                x = x.clamp(0, 1)  # a bicubic kernel overshoots
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def as_dict(self) -> dict[str, Any]:
        """The values as YAML and JSON have them."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}


class Pretrained(nn.Module):
    """A backbone with what belongs to its weights.

    Attributes:
        num_features: D.
        pretrained_classes: names of the classes that the weights were trained on; None: not known.
        stream: ``{"data": fingerprint of the data set, "classes": [names]}`` where the weights were learned by an
            earlier run; None elsewhere.

    Args:
        body: network input (B, C, H, W) -> features (B, D).
        name: of the architecture.
        args: further arguments that it was made with.
        preprocessing: what is done to images in [0, 1] first; None: they come normalised.
        frozen: never learned.
    """

    pretrained_classes: list[str] | None = None
    stream: dict[str, Any] | None = None

    def __init__(
        self,
        body: nn.Module,
        name: str,
        args: dict[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.name, self.args, self.preprocessing, self.frozen = body, name, args or {}, preprocessing, frozen
        self.num_features = int(cast(Any, body).num_features)
        if frozen:
            freeze(self)

    def train(self, mode: bool = True) -> Pretrained:
        """A frozen backbone stays in eval mode."""
        return super().train(mode and not self.frozen)

    def prepare(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> input of the body."""
        return x if self.preprocessing is None else self.preprocessing(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D); a frozen backbone's features may come from the cache, or from passes of one size."""
        if not self.frozen:
            return self.body(self.prepare(x))
        features = lookup.active()
        if features is not None:
            found = features.look_up(self, x)
        else:
            found = self.compute(x) if lookup.in_one_size() else self.predict(x)
        return found.to(x.dtype)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """The features of a frozen backbone for a batch as it is: what :meth:`compute` gives, within rounding."""
        return self.body(self.prepare(self._precise(x))).float()

    def _precise(self, x: Tensor) -> Tensor:
        """Images in the weights' precision."""
        return x.to(next((weight.dtype for weight in self.body.parameters()), x.dtype))

    @torch.no_grad()
    def compute(self, x: Tensor) -> Tensor:
        """The features of a frozen backbone, computed in its weights' precision without gradient: -> (B, D) in float32.

        Passes have ``CHUNK`` images, the last filled up with repetitions, in one layout of memory: so the arithmetic of
        an image does not depend on its batch.
        """
        parts = [x.new_empty(0, self.num_features, dtype=torch.float32)]
        x = self._precise(x)
        for start in range(0, len(x), CHUNK):
            own = x[start : start + CHUNK]
            full = own[torch.arange(CHUNK, device=x.device) % len(own)]
            chunk = torch.empty_like(full, memory_format=torch.channels_last).copy_(full)
            parts.append(self.body(self.prepare(chunk)).float()[: len(own)])
        return torch.cat(parts)

    @torch.no_grad()
    def check(self, x: Tensor) -> None:
        """See that the backbone takes an image.

        Args:
            x: as the augmentation gives it, (1, C, H, W).

        Raises:
            UserError: it does not, or gives no features (1, D).
        """
        training = self.body.training
        shape = " x ".join(map(str, x.shape[1:]))
        try:
            features = self.body.eval()(self.prepare(x))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"model.backbone: '{self.name}' does not take images of {shape}: {error}. model.preprocessing.size or "
                "model.backbone_args may help."
            ) from error
        finally:
            self.body.train(training)
        if tuple(features.shape) != (1, self.num_features):
            raise UserError(
                f"model.backbone: '{self.name}' gives {tuple(features.shape)} for an image of {shape}; features "
                f"(1, {self.num_features}) are due"
            )


class SplittablePretrained(Pretrained):
    """The same of a backbone in a general and a specialised part."""

    @property
    def deep(self) -> nn.Module:
        """The specialised part of the body."""
        return cast(Any, self.body).deep

    def shallow(self, x: Tensor) -> Tensor:
        """Preprocessing and the general part of the body, (B, C, H, W) -> (B, C', H', W')."""
        return cast(Any, self.body).shallow(self.prepare(x))

    def pool(self, x: Tensor) -> Tensor:
        """(B, D, H'', W'') -> (B, D)"""
        return cast(Any, self.body).pool(x)


class Recipe(Protocol):
    """The options of :class:`cil.nets.network.Model` that are read here."""

    backbone: str
    backbone_args: dict[str, Any] | None
    weights: str | None
    frozen: bool
    preprocessing: dict[str, Any] | None
    pretrained_classes: list[str] | str | None


def build(recipe: Recipe, in_channels: int, make: Callable[..., nn.Module], file: Weights | None) -> nn.Module:
    """The backbone that a model asks for, with its weights; plain where nothing is asked for beyond a fresh one.

    Args:
        recipe: the model.
        in_channels: channels of the images.
        make: builds the fresh backbone from further arguments.
        file: what ``recipe.weights`` names, where that is a file.

    Raises:
        UserError: options that contradict each other, weights that are not there or do not fit.
    """
    name, weights = recipe.backbone, recipe.weights
    if recipe.frozen and weights is None and "." not in name.removeprefix(TIMM):
        raise UserError(
            "model.frozen: a backbone that never learns needs model.weights; write random for random features"
        )
    if weights == "hub" and not name.startswith(TIMM):
        raise UserError(f"model.weights: hub is timm's; '{name}' is none of its networks, write {TIMM}NAME")
    config = timm_config(name.removeprefix(TIMM)) if name.startswith(TIMM) else {}
    args = dict(recipe.backbone_args or {})
    preprocessing = declared(recipe, file, config, in_channels)
    side = preprocessing.size if preprocessing and config.get("fixed_input_size") else None
    if side is not None and args.setdefault("img_size", side) != side:
        raise UserError(
            f"model.backbone_args: img_size {args['img_size']} contradicts model.preprocessing.size {side}; give one "
            "of them"
        )
    body = make(**args, **({"pretrained": True} if weights == "hub" else {}))
    if not isinstance(body, nn.Module) or not hasattr(body, "num_features"):
        raise UserError(f"model.backbone: '{name}' gave no torch module with an attribute num_features")
    options = (weights, recipe.preprocessing, recipe.pretrained_classes)
    if not (recipe.frozen or name.startswith(TIMM) or any(option is not None for option in options)):
        return body
    dropped = load(body, file, name) if file else {}
    splits = all(hasattr(body, part) for part in ("deep", "shallow", "pool")) and not recipe.frozen
    kind = SplittablePretrained if splits else Pretrained
    out = kind(body, name, recipe.backbone_args, preprocessing, frozen=recipe.frozen)
    out.pretrained_classes = classes(recipe, file, config, dropped)
    out.stream = file.json("stream", dict) if file else None
    return out


# --- what belongs to weights ------------------------------------------------------------------------------------------


def declared(recipe: Recipe, file: Weights | None, config: Mapping[str, Any], in_channels: int) -> Preprocessing | None:
    """The preprocessing: of the model's options, else of the file's metadata, else of timm, key by key; None: of none.

    Args:
        recipe: the model.
        file: its weights, if they come from a file.
        config: timm's configuration of the network, if it is one of timm's.
        in_channels: channels of the images, C.

    Raises:
        UserError: an unknown key, a value out of range, mean and std not given or not for C channels.
    """
    own = recipe.preprocessing or {}
    keys = [field.name for field in dataclasses.fields(Preprocessing)]
    for key in own:
        if key not in keys:
            raise unknown("model.preprocessing", str(key), keys)
    known: dict[str, Any] = {}
    if config and recipe.weights not in (None, "random"):
        side = (recipe.backbone_args or {}).get("img_size", config["input_size"][-1])
        known = {"size": side, **{key: config[key] for key in ("mean", "std", "interpolation")}}
    if file:
        known |= file.json("preprocessing", dict) or {}
    values = {key: value for key, value in (known | own).items() if key in keys}
    if not values:
        return None
    where = "model.preprocessing"
    for key in ("mean", "std"):
        given = values.get(key)
        if given is None:
            raise UserError(f"{where}: {key} is not given, and the weights do not bring it")
        numbers = list(given) if isinstance(given, list | tuple) else [given] * in_channels
        if len(numbers) != in_channels:
            raise UserError(f"{where}.{key}: {given} must be a number, or one for each of {in_channels} channel(s)")
        for number in numbers:
            check_number(f"{where}.{key}", number, above=0 if key == "std" else None)
        values[key] = tuple(float(v) for v in numbers)
    size = values.get("size")
    if size is not None:
        check_side(f"{where}.size", size)
    if values.get("interpolation", "bicubic") not in INTERPOLATIONS:
        raise unknown(f"{where}.interpolation", str(values["interpolation"]), INTERPOLATIONS)
    if not isinstance(values.get("antialias", True), bool):
        raise UserError(f"{where}.antialias: {values['antialias']!r} must be true or false")
    return Preprocessing(**values)


def classes(
    recipe: Recipe, file: Weights | None, config: Mapping[str, Any], dropped: Mapping[str, Tensor]
) -> list[str] | None:
    """Names of the classes that the weights were trained on: as the model says, else the file's metadata, else those of
    ImageNet-1k for weights of timm, and for files for a network of timm that came with a classifier of 1000 classes.

    Raises:
        UserError: a list that is not one of names, or a file that cannot be read.
    """
    own = recipe.pretrained_classes
    if isinstance(own, str):
        try:
            own = [line.strip() for line in Path(own).expanduser().read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"model.pretrained_classes: {own} cannot be read as a file of names: {error}") from error
    if own is not None:
        return list(own)
    if file and (found := file.json("classes", list)) is not None:
        return [str(name) for name in found]
    rows = {len(tensor) for name, tensor in dropped.items() if name.endswith("weight")}
    if config.get("num_classes") == 1000 and (recipe.weights == "hub" or rows == {1000}):
        return list(_imagenet())
    return None


@functools.cache
def _imagenet() -> tuple[str, ...]:
    """Names of the classes of ImageNet-1k, synonyms after commas."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions())


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Tensors of a file by name, in its order.

    Attributes:
        where: the file, for messages.
        tensors: by name.
        ordered: whether their order is that of the network they come from; safetensors files are sorted instead.
        metadata: text by key, of a safetensors file.
    """

    where: str
    tensors: dict[str, Tensor]
    ordered: bool
    metadata: dict[str, str]

    def json(self, key: str, kind: type) -> Any:
        """The value of a metadata key that holds JSON of a kind; None where the key is absent.

        Raises:
            UserError: it holds something else.
        """
        if key not in self.metadata:
            return None
        try:
            value = json.loads(self.metadata[key])
        except ValueError as error:
            raise UserError(f"model.weights: {self.where}: metadata key '{key}' is not JSON: {error}") from error
        if value is not None and not isinstance(value, kind):
            raise UserError(f"model.weights: {self.where}: metadata key '{key}' is no {kind.__name__}")
        return value


def read(spec: str) -> Weights:
    """The tensors of a file of weights.

    Args:
        spec: a path, or ``package:NAME`` for an installed package that ships one such file.

    Raises:
        UserError: no such file or package, or not a file of tensors.
    """
    path = _in_package(spec.removeprefix("package:")) if spec.startswith("package:") else Path(spec).expanduser()
    if path.suffix not in SUFFIXES:
        raise UserError(f"model.weights: '{spec}'; legal: {LEGAL}")
    if not path.is_file():
        raise UserError(f"model.weights: there is no file {path.absolute()}; legal: {LEGAL}")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                content: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"model.weights: {path} cannot be read as tensors: {reason}") from error
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = [content[key] for key in ("state_dict", "model", "model_state_dict") if key in content]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"model.weights: {path} holds no state_dict, that is tensors by name")
    for name, tensor in content.items():
        kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
        if kind not in KINDS:
            raise UserError(f"model.weights: {path}: tensor '{name}' is {kind}; legal: {', '.join(KINDS)}")
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    return Weights(spec, tensors, path.suffix != ".safetensors", metadata)


def _in_package(name: str) -> Path:
    """The one file of weights in an installed package, which is not imported."""
    module = name.replace("-", "_")
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(f"model.weights: package:{name}: no package '{module}' is installed here")
    folders = list(spec.submodule_search_locations or [])
    found = sorted(path for folder in folders for path in Path(folder).rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        raise UserError(
            f"model.weights: package:{name} holds {len(found)} files of weights "
            f"({', '.join(path.name for path in found[:5]) or 'none'}); it must be one. Give its path instead."
        )
    return found[0]


def load(body: nn.Module, file: Weights, name: str) -> dict[str, Tensor]:
    """Give a network the tensors of a file, as float32 where the network's are.

    Tensors are matched by name. Where names differ, they are matched by order if kind (``weight``, ``running_mean``)
    and shape of all agree: the order of a network's own file, or, where files are sorted, that of names which differ by
    renaming alone, such as ``layer1.0`` for ``stage1.0``. A classifier in the file is left out.

    Args:
        body: the network; on the ``meta`` device only names and shapes are compared.
        file: tensors.
        name: of the network, for messages.

    Returns:
        The classifier that was left out, by name.

    Raises:
        UserError: they do not fit; names some that are missing, unexpected or of another shape.
    """
    wanted = {key: value for key, value in body.state_dict().items() if not key.endswith(COUNTER)}
    given = {key: value for key, value in file.tensors.items() if not key.endswith(COUNTER)}
    extra = {key: value for key, value in given.items() if key not in wanted}
    dropped = {key: value for key, value in extra.items() if key.split(".")[0] in CLASSIFIERS}
    found = {key: _resampled(body, key, value) for key, value in given.items() if key not in dropped}
    pairs = _by_name(wanted, found) or _by_order(wanted, found, file.ordered)
    if pairs is None:
        raise UserError(_misfit(name, file, wanted, found))
    if any(not torch.isfinite(found[key]).all() for key in pairs.values() if found[key].is_floating_point()):
        raise UserError(f"model.weights: {file.where} holds values that are NaN or infinite")
    if not any(value.is_meta for value in wanted.values()):
        with torch.no_grad():
            for key, own in wanted.items():
                own.copy_(found[pairs[key]])
            for key, own in body.state_dict().items():
                if key.endswith(COUNTER):
                    theirs = pairs[key.replace(COUNTER, "running_mean")].replace("running_mean", COUNTER)
                    own.copy_(file.tensors.get(theirs, own))
    return dropped


def _shapes(tensors: Mapping[str, Tensor], names: Iterable[str]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name.rpartition(".")[2], tuple(tensors[name].shape)) for name in names]


def _by_name(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, str] | None:
    fits = wanted.keys() == found.keys() and all(wanted[name].shape == found[name].shape for name in wanted)
    return {name: name for name in wanted} if fits else None


def _by_order(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], ordered: bool) -> dict[str, str] | None:
    if ordered and _shapes(wanted, wanted) == _shapes(found, found):
        return dict(zip(wanted, found, strict=True))
    ours, theirs = sorted(wanted), sorted(found)
    if _shapes(wanted, ours) != _shapes(found, theirs):
        return None
    renamed: set[tuple[str, str]] = set()
    for our, their in zip(ours, theirs, strict=True):
        if our.count(".") != their.count("."):
            return None
        renamed |= set(zip(our.split("."), their.split("."), strict=True))
    one_to_one = len({a for a, _ in renamed}) == len({b for _, b in renamed}) == len(renamed)
    return dict(zip(ours, theirs, strict=True)) if one_to_one else None


def _misfit(name: str, file: Weights, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What does not fit, in one paragraph."""

    def some(names: list[str]) -> str:
        return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "none"

    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    both = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    shapes = [f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}" for key in both]
    told = f" The file says that it is of {file.metadata['architecture']}." if "architecture" in file.metadata else ""
    return (
        f"model.weights: {file.where} does not fit '{name}': missing {some(missing)}; unexpected {some(unexpected)}; "
        f"of another shape {some(shapes)}. The file has {len(found)} tensors without a classifier, the network "
        f"{len(wanted)}.{told}"
    )


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            "model.backbone: networks of timm need its package; install the extra: pip install "
            "'cil-framework[pretrained]'"
        ) from error
    return timm


def timm_config(name: str) -> dict[str, Any]:
    """timm's configuration of a network: input size, normalisation, number of classes.

    Raises:
        UserError: timm is not installed or has no network of that name.
    """
    timm = _timm()
    if not timm.is_model(name):
        legal = timm.list_models()
        hint = nearest(name.partition(".")[0], legal)
        raise UserError(
            f"model.backbone: timm has no '{name}'; {hint}timm.list_models() names its {len(legal)} networks"
        )
    found = timm.get_pretrained_cfg(name, allow_unregistered=False) if "." in name else timm.get_pretrained_cfg(name)
    return {} if found is None else found.to_dict()


def timm_network(name: str, in_channels: int = 3, pretrained: bool = False, **args: Any) -> nn.Module:
    """A network of timm without its classifier: (B, C, H, W) -> pooled features (B, D).

    Args:
        name: as timm has it.
        in_channels: channels of the images.
        pretrained: with the weights of timm's hub; on the ``meta`` device there are none.
        args: handed to ``timm.create_model``.

    Raises:
        UserError: there is none of that name, or the hub cannot be reached.
        ValueError: arguments that the network does not take.
    """
    timm_config(name)
    meta = torch.get_default_device().type == "meta"
    # Some networks compute with tensors when they are made, which needs values: made here, then moved.
    with torch.device("cpu"), torch.random.fork_rng(devices=(), enabled=meta):
        try:
            net = _timm().create_model(
                name, pretrained=pretrained and not meta, num_classes=0, in_chans=in_channels, **args
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(str(error) or "an argument is out of range") from error
        except Exception as error:  # whatever the hub's client raises without a network
            if not pretrained:
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"model.weights: hub: the weights of '{name}' cannot be fetched: {reason}") from error
    net.num_features = int(getattr(net, "head_hidden_size", None) or net.num_features)
    return net.to("meta") if meta else net


def _resampled(body: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The positional embedding of a vision transformer at the size of its network, any other tensor as it is."""
    own = getattr(body, name, None) if name == "pos_embed" else None
    if own is None or own.shape == tensor.shape or "timm" not in sys.modules:
        return tensor
    grid: Any = getattr(getattr(body, "patch_embed", None), "grid_size", None)
    prefix = 0 if getattr(body, "no_embed_class", False) else getattr(body, "num_prefix_tokens", 0)
    square = round(max(0, tensor.shape[1] - prefix) ** 0.5) if tensor.ndim == 3 else 0
    fits = grid is not None and square > 0 and square**2 + prefix == tensor.shape[1]
    if not fits or own.shape[1] != prefix + grid[0] * grid[1]:
        return tensor  # which is then told as a shape that does not fit
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(tensor.float(), list(grid), [square, square], num_prefix_tokens=prefix)
