"""From stored bytes to network input: whole batches are cropped, flipped, jittered and normalised on the device.

Every draw is made for each image on its own, by a CPU ``torch.Generator``, so that the same seed gives the same images
on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.errors import UserError, check_number, check_side

CIFAR = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PRESETS: dict[str, dict[str, Any]] = {
    "none": {"pad": 0, "flip": False, "brightness": 0.0, "size": None, "input_size": None, "stats": None},
    "cifar": {"pad": 4, "flip": True, "brightness": 63 / 255, "size": None, "input_size": None, "stats": CIFAR},
    "imagenet": {"pad": 0, "flip": True, "brightness": 0.0, "size": 224, "input_size": None, "stats": IMAGENET},
}


class Augmentation:
    """How batches of uint8 images become network input, in training and in testing.

    Args:
        preset: ``none`` (normalise only), ``cifar`` (crop with padding 4, flip, brightness 63/255) or ``imagenet``
            (random resized crop to 224 pixels and flip; in testing the central 7/8 resized to 224 pixels).
        pad: pixels of zero padding before a random crop of the original size; null takes the preset's.
        flip: whether to mirror half of the images; null takes the preset's.
        brightness: b draws a factor from [1 - b, 1 + b] for each image; null takes the preset's.
        size: side of a random resized crop in pixels (Szegedy et al., Going Deeper with Convolutions, CVPR 2015,
            section 6); null takes the preset's.
        input_size: side in pixels to which every batch is resized first, by averaging areas; images stay as large as
            they are stored. Null takes the preset's.
        mean: channel means as fractions of 255; null takes the data set's, else the preset's, else 0.5.
        std: channel standard deviations; null takes the data set's, else the preset's, else 0.5.
    """

    def __init__(
        self,
        *,
        preset: Literal["none", "cifar", "imagenet"] = "none",
        pad: int | None = None,
        flip: bool | None = None,
        brightness: float | None = None,
        size: int | None = None,
        input_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        self.preset, self.pad, self.flip, self.brightness, self.size = preset, pad, flip, brightness, size
        self.input_size, self.mean, self.std = input_size, mean, std

    def bind(
        self,
        image_shape: tuple[int, int, int],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        device: torch.device,
    ) -> Bound:
        """The augmentation for these images: channel statistics resolved and moved to the device.

        Args:
            image_shape: (C, H, W) as stored.
            mean: the data set's own means, None if it has no convention.
            std: the data set's own standard deviations, likewise.
            device: where batches are augmented.

        Raises:
            UserError: the statistics do not fit the number of channels, or a value is out of range.
        """
        preset = PRESETS[self.preset]
        chosen = {key: preset[key] if (own := getattr(self, key)) is None else own for key in preset if key != "stats"}
        channels = image_shape[0]
        preset_mean, preset_std = preset["stats"] or ([0.5] * channels, [0.5] * channels)
        means = list(self.mean or mean or preset_mean)
        stds = list(self.std or std or preset_std)
        if len(means) != channels or len(stds) != channels:
            raise UserError(
                f"augmentation: {len(means)} means and {len(stds)} standard deviations for images of {channels} "
                f"channel(s); preset '{self.preset}' is made for 3. Give augmentation.mean and augmentation.std."
            )
        for key in ("size", "input_size"):
            if chosen[key] is not None:
                check_side(f"augmentation.{key}", chosen[key])
        height, width = image_shape[1:] if chosen["input_size"] is None else [chosen["input_size"]] * 2
        if not 0 <= chosen["pad"] < min(height, width):
            raise UserError(
                f"augmentation.pad: {chosen['pad']} must be >= 0 and less than a side of the images, which are "
                f"{height} x {width}; a crop would show nothing of them"
            )
        check_number("augmentation.brightness", chosen["brightness"], least=0, most=1)
        for key, values in (("mean", means), ("std", stds)):
            for value in values:
                check_number(f"augmentation.{key}", value, above=0 if key == "std" else None)
        return Bound(**chosen, mean=torch.tensor(means, device=device), std=torch.tensor(stds, device=device))


class Bound:
    """An augmentation with everything resolved: call ``train`` or ``test`` on a uint8 batch."""

    def __init__(
        self,
        *,
        pad: int,
        flip: bool,
        brightness: float,
        size: int | None,
        mean: Tensor,
        std: Tensor,
        input_size: int | None = None,
    ) -> None:
        self.pad, self.flip, self.brightness, self.size, self.input_size = pad, flip, brightness, size, input_size
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def train(
        self, x: Tensor, generator: torch.Generator, *, of: int | None = None, part: slice = slice(None)
    ) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H', W'), randomly cropped, flipped, jittered, normalised.

        Args:
            x: a batch, or a part of one.
            generator: drawn from for every image of the whole batch, so that parts are augmented as the whole would be.
            of: images of the whole batch; None: x is all of it.
            part: which of them x is.
        """
        x, of = self.resize(x), len(x) if of is None else of
        if self.size:
            x = resized_crop(x, self.size, torch.rand(4, of, generator=generator)[:, part])
        elif self.pad:
            x = shifted(x, self.pad, torch.randint(0, 2 * self.pad + 1, (2, of), generator=generator)[:, part])
        if self.flip:
            x = mirrored(x, torch.rand(of, generator=generator)[part].lt(0.5))
        x = x.float().div_(255)
        if self.brightness:
            factor = 1 + self.brightness * (2 * torch.rand(of, generator=generator)[part] - 1)
            x.mul_(factor.to(x.device).view(-1, 1, 1, 1)).clamp_(max=1)
        return self.normalise(x)

    def test(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H', W'), without any draw."""
        x = self.resize(x)
        if self.size:
            height, width = x.shape[2:]
            side = round(min(height, width) * 7 / 8)
            top, left = (height - side) // 2, (width - side) // 2
            x = x[:, :, top : top + side, left : left + side].float()
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return self.normalise(x.float().div_(255))

    def resize(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> uint8 (B, C, S, S), each pixel the rounded mean of the area that it covers."""
        if self.input_size is None or x.shape[2:] == (self.input_size, self.input_size):
            return x
        return F.interpolate(x.float(), (self.input_size, self.input_size), mode="area").round_().to(torch.uint8)

    def normalise(self, x: Tensor) -> Tensor:
        """float (B, C, H, W) in [0, 1], which is overwritten -> channel means 0 and deviations 1 over the data set."""
        channels, _, width = x.shape[1:]
        rows = x.permute(0, 2, 3, 1).contiguous().flatten(2)  # (B, H, W C): long rows are faster than few channels
        mean, std = (values.view(channels).repeat(width) for values in (self.mean, self.std))
        x = rows.sub_(mean).div_(std).unflatten(2, (width, channels)).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=torch.channels_last)


def shifted(x: Tensor, pad: int, corners: Tensor) -> Tensor:
    """Crop each image at its own place out of itself padded with zeros.

    Args:
        x: (B, C, H, W).
        pad: zeros on each side.
        corners: top and left of each crop, (2, B), from 0 to 2 * pad.

    Returns:
        (B, C, H, W)
    """
    batch, channels, height, width = x.shape
    top, left = corners.to(x.device)
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad)).flatten(2)  # (B, H + 2p, (W + 2p) C)
    # All crops there are, as a view, (B, 2p + 1, 2p + 1, H, W C): rows of pixels are copied as a whole.
    crops = rows.unfold(1, height, 1).unfold(2, width * channels, channels)
    chosen = crops[torch.arange(batch, device=x.device), top, left]
    return chosen.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


def mirrored(x: Tensor, which: Tensor) -> Tensor:
    """Images of which some are flipped from left to right.

    Args:
        x: (B, C, H, W).
        which: (B,) bool.
    """
    rows = which.nonzero().flatten().to(x.device)
    x = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    x[rows] = x[rows].flip(2)
    return x.permute(0, 3, 1, 2)


def resized_crop(x: Tensor, size: int, draw: Tensor) -> Tensor:
    """Cut a box of 8-100 % of the area and aspect ratio 3/4-4/3 from each image and resize it to size x size.

    The box is clamped to the image; resampling is bilinear.

    Args:
        x: uint8 (B, C, H, W).
        size: side of the result.
        draw: uniform in [0, 1), (4, B): area, aspect ratio and the two coordinates of the centre.

    Returns:
        uint8 (B, C, size, size)
    """
    batch, _, height, width = x.shape
    area = (0.08 + 0.92 * draw[0]) * height * width
    ratio = torch.exp((2 * draw[1] - 1) * torch.log(torch.tensor(4 / 3)))
    box_w = (area * ratio).sqrt().clamp(max=width) / width  # fractions of the image
    box_h = (area / ratio).sqrt().clamp(max=height) / height
    centre_x = (1 - box_w) * (2 * draw[2] - 1)  # in [-1, 1], the box stays inside
    centre_y = (1 - box_h) * (2 * draw[3] - 1)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = box_w, centre_x, box_h, centre_y
    grid = F.affine_grid(theta.to(x.device), [batch, x.shape[1], size, size], align_corners=False)
    out = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)
