"""How exemplars are stored: raw bytes, a lossless file format, or JPEG. What is stored is what counts.

A codec turns images (N, H, W, C) into an array of N items and back. The items of ``raw`` are the images themselves;
those of the others are byte strings of different lengths.
"""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cil.errors import UserError, unknown

CODECS = ("raw", "png", "webp", "jpeg")
END_OF_IMAGE = b"\xff\xd9"


class Codec(Protocol):
    """What the memory asks of a codec.

    Attributes:
        length_bytes: bytes that say where an item ends, for each item; 0 if all are equally long.
        shared: bytes stored once for all items.
        lossless: whether images come back as they were.
    """

    length_bytes: int
    shared: bytes
    lossless: bool

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, H, W, C) -> N items."""
        ...

    def decode(self, items: np.ndarray) -> np.ndarray:
        """N items -> images uint8 (N, H, W, C)."""
        ...

    def sizes(self, items: np.ndarray) -> np.ndarray:
        """Bytes of each item, int64 (N,), without its length."""
        ...

    def pack(self, items: np.ndarray) -> dict[str, Tensor]:
        """The items as tensors for a checkpoint, byte for byte what is counted."""
        ...

    def unpack(self, tensors: dict[str, Tensor]) -> np.ndarray:
        """The items that ``pack`` wrote."""
        ...


def make_codec(name: str, image_shape: tuple[int, int, int], quality: int = 75) -> Codec:
    """The codec of this name for images of this shape.

    Args:
        name: one of ``CODECS``.
        image_shape: (C, H, W).
        quality: of JPEG, 1 to 95.

    Raises:
        UserError: unknown name, a quality out of range, or images that a file format cannot hold.
    """
    if name not in CODECS:
        raise unknown("memory.codec", name, CODECS)
    if name == "raw":
        return Raw(image_shape)
    if image_shape[0] not in (1, 3):
        raise UserError(f"memory.codec: {name} stores images of 1 or 3 channels; these have {image_shape[0]}. Use raw.")
    if name == "jpeg":
        if not 1 <= quality <= 95:
            raise UserError(f"memory.quality: {quality} must be within 1 to 95")
        return Jpeg(image_shape, quality)
    return Lossless(name, image_shape)


class Raw:
    """The pixels as they are: C * H * W bytes an image."""

    length_bytes = 0
    shared = b""
    lossless = True

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        channels, height, width = image_shape
        self.shape = (height, width, channels)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The images."""
        return images

    def decode(self, items: np.ndarray) -> np.ndarray:
        """The items."""
        return items

    def sizes(self, items: np.ndarray) -> np.ndarray:
        """All the same."""
        return np.full(len(items), int(np.prod(self.shape)), dtype=np.int64)

    def pack(self, items: np.ndarray) -> dict[str, Tensor]:
        """``images``, uint8 (N, H, W, C)."""
        return {"images": torch.from_numpy(np.ascontiguousarray(items))}

    def unpack(self, tensors: dict[str, Tensor]) -> np.ndarray:
        """``images``."""
        return tensors["images"].numpy()


class _Files:
    """Items are byte strings, each with its length in four bytes."""

    length_bytes = 4
    shared = b""
    lossless = True

    def __init__(self, name: str, image_shape: tuple[int, int, int], options: dict[str, Any]) -> None:
        channels, height, width = image_shape
        self.name, self.shape, self.options = name, (height, width, channels), options

    def encode(self, images: np.ndarray) -> np.ndarray:
        return _objects([self._strip(self._save(image)) for image in images])

    def decode(self, items: np.ndarray) -> np.ndarray:
        out = np.empty((len(items), *self.shape), dtype=np.uint8)
        for image, item in zip(out, items, strict=True):
            with Image.open(io.BytesIO(self._restore(item)), formats=[self.name.upper()]) as picture:
                # WebP knows colour only: a grey image comes back with three equal channels.
                image[:] = np.asarray(picture).reshape(*self.shape[:2], -1)[:, :, : self.shape[2]]
        return out

    def sizes(self, items: np.ndarray) -> np.ndarray:
        return np.array([len(item) for item in items], dtype=np.int64)

    def pack(self, items: np.ndarray) -> dict[str, Tensor]:
        data = np.frombuffer(b"".join(items), dtype=np.uint8).copy()
        shared = np.frombuffer(self.shared, dtype=np.uint8).copy() if len(items) else np.empty(0, np.uint8)
        tensors = {"data": data, "lengths": self.sizes(items).astype(np.int32), "shared": shared}
        return {name: torch.from_numpy(array) for name, array in tensors.items()}

    def unpack(self, tensors: dict[str, Tensor]) -> np.ndarray:
        self.shared = tensors["shared"].numpy().tobytes() or self.shared
        stops = np.cumsum(tensors["lengths"].numpy().astype(np.int64))
        data = tensors["data"].numpy().tobytes()
        return _objects([data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)])

    def _save(self, image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image[:, :, 0] if self.shape[2] == 1 else image).save(out, self.name, **self.options)
        return out.getvalue()

    def _strip(self, file: bytes) -> bytes:
        return file

    def _restore(self, item: bytes) -> bytes:
        return item


class Lossless(_Files):
    """PNG or lossless WebP: every pixel comes back. Tiny images and noise may take more bytes than raw ones.

    Args:
        name: ``png`` or ``webp``.
        image_shape: (C, H, W).
    """

    def __init__(self, name: str, image_shape: tuple[int, int, int]) -> None:
        options = {"optimize": True} if name == "png" else {"lossless": True, "quality": 0, "method": 1}
        super().__init__(name, image_shape, options)


class Jpeg(_Files):
    """JPEG: images lose detail. The tables in front of every file are the same, so they are stored once.

    Args:
        image_shape: (C, H, W).
        quality: 1 to 95, as Pillow counts it.
    """

    lossless = False

    def __init__(self, image_shape: tuple[int, int, int], quality: int) -> None:
        super().__init__("jpeg", image_shape, {"quality": quality})
        file = self._save(np.zeros(self.shape, dtype=np.uint8))
        scan = file.index(b"\xff\xda")  # start of scan; what follows its own header is the image
        self.shared = file[: scan + 2 + int.from_bytes(file[scan + 2 : scan + 4], "big")]

    def _strip(self, file: bytes) -> bytes:
        if not (file.startswith(self.shared) and file.endswith(END_OF_IMAGE)):
            raise UserError(
                "memory.codec: the JPEG exemplars kept so far have other tables than this installation of Pillow "
                "writes, so none can be added to them; go on with the Pillow that wrote them"
            )
        return file[len(self.shared) : -len(END_OF_IMAGE)]

    def _restore(self, item: bytes) -> bytes:
        return self.shared + item + END_OF_IMAGE


def _objects(items: list[bytes]) -> np.ndarray:
    """An array whose N elements are byte strings; numpy on its own would cut zeros at their ends."""
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
