"""Make a model forget classes, or single images: rows, means, exemplars, and their part of sums where it is known."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from cil.data.images import ClassPrint, ImageSet
from cil.errors import UserError, unknown
from cil.experiment.blueprint import Blueprint
from cil.experiment.provenance import Origin
from cil.experiment.resume import Start
from cil.learning.forgetting import Forgotten
from cil.learning.inference import features_of
from cil.memory.exemplars import Exemplars
from cil.nets import lookup
from cil.verbs.learned import Learned, State, event, plain
from cil.verbs.pictures_given import known, named


@lookup.one_size()
def forgotten(learned: Learned, classes: Iterable[str], images: Any = None) -> State:
    """What is left of a model that forgets some classes, or some images.

    The ids of other classes stay, and those that went are never used again. What the method cannot take out is said in
    the history, under ``remains``.

    Args:
        learned: the model; it stays as it is.
        classes: names of classes that go as a whole.
        images: pictures with the names of their classes, as :func:`cil.verbs.pictures_given.named` takes them: of the
            classes that go, all that were learned, which makes forgetting exact where sums are carried; of others,
            those that are to be forgotten. None: there are none.

    Raises:
        UserError: a class is not known, none would be left, nothing is to be forgotten, or an image cannot be read.
    """
    blueprint = learned.blueprint
    ids = blueprint.ids
    names = _known(classes, ids)
    if names and len(names) == len(ids):
        raise UserError("a model that forgets all of its classes knows nothing; leave it at least one")
    data = known(images, blueprint)
    if not names and not len(data):
        raise UserError("nothing is to be forgotten: give names of classes, or images")
    gone = tuple(ids[name] for name in names)
    first = blueprint.tasks[0]["new"]
    with learned.computing():
        start = learned.start(learned.experiment)
        strategy, exemplars = start.strategy.eval(), start.exemplars
        with torch.no_grad():
            features = features_of(strategy, data, learned.place) if len(data) else _no_features(start, learned)
            labels = data.labels.to(features.device)
            some = {*gone, *labels.tolist()}
            what = Forgotten(gone, any(label < first for label in some), features, labels)
            remains = strategy.forget(what)
        held = len(exemplars)
        exemplars.remove(_exemplars_of(exemplars, gone, data))
    singles = sorted({blueprint.class_names[label] for label in labels.tolist()} - set(names))
    made = event(
        "forget",
        classes=list(names),
        images=len(data),
        images_of=singles,
        exemplars_removed=held - len(exemplars),
        remains=remains,
        data=fingerprint(data.raw()),
    )
    return State(
        _origin(learned, gone), _blueprint(learned, gone), plain(strategy, exemplars), (*learned.history, made)
    )


def done_before(learned: Learned, classes: Iterable[str], images: Any = None) -> bool:
    """Whether this was the last thing that was done to a model: a program may have been killed right after it."""
    last = learned.history[-1]
    names = [classes] if isinstance(classes, str) else list(dict.fromkeys(classes))
    if last["did"] != "forget" or last["classes"] != names:
        return False
    if images is None:
        return last["data"] is None
    given = named(images, learned.blueprint)
    return last["data"] == fingerprint(given.images)


def fingerprint(images: np.ndarray) -> str | None:
    """By what images that were given are known again: uint8 (N, H, W, C); None: there are none."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()[:16] if len(images) else None


def _known(classes: Iterable[str], ids: dict[str, int]) -> tuple[str, ...]:
    if isinstance(classes, str):
        classes = [classes]
    names = tuple(dict.fromkeys(classes))
    for name in names:
        if name not in ids:
            raise unknown("classes", str(name), ids)
    return names


def _no_features(start: Start, learned: Learned) -> torch.Tensor:
    return torch.empty(0, start.strategy.model.num_features, device=learned.place.device)


def _exemplars_of(exemplars: Exemplars, classes: tuple[int, ...], data: ImageSet) -> np.ndarray:
    """Which exemplars go: those of these classes, and those that show one of these images; bool (M,)."""
    out = np.isin(exemplars.labels, classes)
    if len(data) and len(exemplars):
        codec = exemplars.codec
        shown = {image.tobytes() for image in codec.decode(codec.encode(data.raw()))}
        out |= np.array([image.tobytes() in shown for image in exemplars.images])
    return out


def _blueprint(learned: Learned, gone: tuple[int, ...]) -> Blueprint:
    before = learned.blueprint
    names = tuple("" if label in gone else name for label, name in enumerate(before.class_names))
    return dataclasses.replace(before, class_names=names, forgotten=tuple(sorted({*before.forgotten, *gone})))


def _origin(learned: Learned, gone: tuple[int, ...]) -> Origin:
    """What it was learned from, without the names and the hashes of what was forgotten."""
    before = learned.origin
    names = tuple("" if label in gone else name for label, name in enumerate(before.class_names))
    prints = before.class_prints
    if prints is not None:
        nothing = ClassPrint(0, "", 0, "")
        prints = tuple(nothing if label in gone else one for label, one in enumerate(prints))
    return dataclasses.replace(before, class_names=names, class_prints=prints)
