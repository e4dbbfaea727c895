"""From a picture as people have it to an image as a data set stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from cil.errors import UserError
from cil.files import reason

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow opens no others here
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CHANNELS = (1, 3, 4)  # of an array that is one picture


def resize(images: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Resize uint8 images (N, H, W, C) to (N, height, width, C): bilinear, antialiased where they shrink.

    Args:
        images: as they are.
        height: in pixels.
        width: in pixels; None: the height.
    """
    n, before_height, before_width, channels = images.shape
    width = height if width is None else width
    if (before_height, before_width) == (height, width):
        return images
    out = np.empty((n, height, width, channels), dtype=np.uint8)
    chunk = max(1, 2**24 // (channels * max(before_height * before_width, height * width)))  # 64 MiB of float32
    for start in range(0, n, chunk):
        piece = torch.from_numpy(np.array(images[start : start + chunk])).permute(0, 3, 1, 2).float()  # (B, C, H, W)
        # In float32 and rounded here: the uint8 kernels differ by a level from one processor to the next.
        piece = F.interpolate(piece, (height, width), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + chunk] = piece.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return out


def as_stored(picture: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """A picture as the images of a data set are stored: turned as its EXIF data say, in their channels and size.

    Args:
        picture: a path; a picture of Pillow; an array of uint8, (H, W) or (H, W, C) with one, three or four channels.
        shape: (C, H, W) of the stored images, C one or three.

    Returns:
        uint8 (H, W, C)

    Raises:
        UserError: it is none of these, or the file cannot be read as an image.
    """
    channels, height, width = shape
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture, formats=FORMATS) as opened:
                return as_stored(opened, shape)
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            why = reason(error) if isinstance(error, OSError) and error.errno else error
            raise UserError(f"{picture} cannot be read as an image: {why}") from error
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
            raise UserError(
                f"a picture must be a path, one of Pillow, or uint8 (H, W) or (H, W, 1, 3 or 4), not {array.dtype} "
                f"{array.shape}"
            )
        picture = Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    turned = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(turned)
    return resize(pixels.reshape(1, *pixels.shape[:2], channels), height, width)[0]
