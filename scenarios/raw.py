"""What is done to decoded images before they are a data set."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

SPLITS = ("train", "test")


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 images (N, H, W, C) to (N, size, size, C): bilinear, antialiased where they shrink."""
    n, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    out = np.empty((n, size, size, channels), dtype=np.uint8)
    chunk = max(1, 2**24 // (channels * max(height * width, size * size)))  # 64 MiB of float32
    for start in range(0, n, chunk):
        piece = torch.from_numpy(np.array(images[start : start + chunk])).permute(0, 3, 1, 2).float()  # (B, C, H, W)
        # In float32 and rounded here: the uint8 kernels differ by a level from one processor to the next.
        piece = F.interpolate(piece, (size, size), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + chunk] = piece.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return out
