"""Pictures as people hand them to a model, with or without the names of their classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cil.data.images import Dataset, ImageSet
from cil.data.pictures import CHANNELS, as_stored
from cil.errors import UserError, unknown
from cil.experiment.blueprint import Blueprint


class Named(NamedTuple):
    """Images as they are stored, and the name of each one's class: uint8 (N, H, W, C), N names."""

    images: np.ndarray
    names: list[str]


def several(pictures: Any) -> Iterable[Any]:
    """The pictures one by one, whether one or several were given."""
    if isinstance(pictures, np.ndarray):
        many = pictures.ndim == 4 or (pictures.ndim == 3 and pictures.shape[2] not in CHANNELS)
    else:
        many = isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes)
    return pictures if many else [pictures]


def stored(pictures: Any, blueprint: Blueprint) -> np.ndarray:
    """Pictures as the images that a model learned: uint8 (N, H, W, C).

    Args:
        pictures: a path, one of Pillow or an array (H, W[, C]) of uint8; or several of them: a list, or an array
            (N, H, W[, C]). Any size.
        blueprint: of the model.

    Raises:
        UserError: a picture cannot be read, or is of another kind.
    """
    channels, height, width = blueprint.image_shape
    found = [as_stored(picture, blueprint.image_shape) for picture in several(pictures)]
    return np.stack(found) if found else np.empty((0, height, width, channels), dtype=np.uint8)


def named(data: Any, blueprint: Blueprint) -> Named:
    """Pictures with the names of their classes.

    Args:
        data: a mapping from names to pictures as :func:`stored` takes them; or pictures and a list of as many names;
            or a :class:`Dataset`, of which the training images are taken.
        blueprint: of the model.

    Raises:
        UserError: it is none of these, there is no picture, a name is no text or empty, or a picture cannot be read.
    """
    if isinstance(data, Dataset):
        labels = data.train.labels.tolist()
        pictures, names = _of_set(data, blueprint), [data.classes[label] for label in labels]
    elif isinstance(data, Mapping):
        parts = {name: stored(own, blueprint) for name, own in data.items()}
        empty = [name for name, part in parts.items() if not len(part)]
        if empty:
            raise UserError(f"class '{empty[0]}' has no picture; leave it out or give one")
        names = [name for name, part in parts.items() for _ in range(len(part))]
        pictures = np.concatenate([stored([], blueprint), *parts.values()])
    elif isinstance(data, tuple) and len(data) == 2:
        pictures, names = stored(data[0], blueprint), list(data[1])
    else:
        raise UserError(
            "data must be a mapping from class names to pictures, a pair (pictures, names) or a Dataset, not a "
            f"{type(data).__name__}"
        )
    if len(names) != len(pictures):
        raise UserError(f"{len(pictures)} pictures but {len(names)} names of classes")
    if not names:
        raise UserError("there is no picture")
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise UserError(f"a class's name must be a text, not {wrong[0]!r}")
    return Named(pictures, [str(name) for name in names])


def known(data: Any, blueprint: Blueprint) -> ImageSet:
    """Pictures of classes that a model knows, labels as ids.

    Args:
        data: as :func:`named` takes them; None: no picture.
        blueprint: of the model.

    Raises:
        UserError: as :func:`named`, or a class is not known.
    """
    channels, height, width = blueprint.image_shape
    if data is None:
        return ImageSet(np.empty((0, height, width, channels), dtype=np.uint8), np.empty(0, dtype=np.int64))
    ids = blueprint.ids
    given = named(data, blueprint)
    for name in given.names:
        if name not in ids:
            raise unknown("class", name, ids)
    return ImageSet(given.images, np.array([ids[name] for name in given.names], dtype=np.int64))


def _of_set(data: Dataset, blueprint: Blueprint) -> np.ndarray:
    if data.train.image_shape == blueprint.image_shape:
        return data.train.raw()
    return stored(list(data.train.raw()), blueprint)
