"""The few-shot scenario: base classes with all their images, then sessions of a few classes with a few images each.

Tao et al., Few-Shot Class-Incremental Learning, CVPR 2020. Their sessions, and those of Zhang et al., Few-Shot
Incremental Learning with Continually Evolved Classifiers, CVPR 2021, are published as lists of images, which ``lists``
reads; without them the shots are drawn here.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from cil.data.images import Dataset
from cil.data.scenario import Scenario, ScenarioBuilder, check_whole, recurring
from cil.errors import UserError, unknown
from scenarios.class_incremental import class_order

PICKS = ("random", "first")


class FewShot(ScenarioBuilder):
    """A first task with all images of the base classes, then "n-way k-shot" sessions.

    After each session all test images of the classes seen are tested.

    Args:
        base: classes of the first task, with all their training images.
        way: classes of each session; the base classes and the sessions must take up all classes.
        shots: training images of each class of a session.
        pick: which images those are: ``random``, or ``first`` for those that come first in the data set.
        lists: a folder with a text file ``session_2.txt``, ``session_3.txt``, ... for each session (the first task is
            session 1), as they are published. Each line is the position of a training image, from 0, or the name of
            its file; the images must be of the session's classes, ``shots`` of each. Null: images are picked.
        order: the order of the classes: "natural" for the order of the labels, as published results have it, a seed,
            all labels written out, or null for another order with each run's data seed.
        seed: of the random pick; null: each run's data seed.
    """

    by_run = ("order", "seed")

    def __init__(
        self,
        *,
        base: int = 60,
        way: int = 5,
        shots: int = 5,
        pick: Literal["random", "first"] = "random",
        lists: str | None = None,
        order: int | str | list[int] | None = "natural",
        seed: int | None = 1,
    ) -> None:
        self.base, self.way, self.shots, self.pick = base, way, shots, pick
        self.lists, self.order, self.seed = lists, order, seed

    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario of this data set.

        Raises:
            UserError: an option is out of its range, the classes cannot be shared out, a class has too few images, or
                a list names an image that is not there or not of its session.
        """
        n_classes = len(dataset.classes)
        base = check_whole("base", self.base, 1, n_classes - 1)
        way = check_whole("way", self.way, 1, n_classes - base)
        shots = check_whole("shots", self.shots, 1, len(dataset.train))
        seed = check_whole("seed", self.seed, 0, 2**32 - 1)
        if self.pick not in PICKS:
            raise unknown("scenario.pick", self.pick, PICKS)
        if (n_classes - base) % way:
            raise UserError(
                f"scenario: base={base} leaves {n_classes - base} of {n_classes} classes, which way={way} does not "
                "divide; a session of another size would be another protocol"
            )
        order = class_order(n_classes, self.order)
        sessions = [order[start : start + way] for start in range(base, n_classes, way)]
        labels = dataset.train.labels.numpy()
        if self.lists is not None:
            picked = listed(dataset, Path(self.lists).expanduser(), sessions, shots)
        else:
            draws = np.random.RandomState(seed) if self.pick == "random" else None
            picked = [[shots_of(dataset, label, shots, draws) for label in session] for session in sessions]
        first = [np.flatnonzero(labels == label) for label in order[:base]]
        how = "listed" if self.lists is not None else self.pick
        made = recurring(
            dataset,
            [np.concatenate(groups) for groups in (first, *picked)],
            name=f"{dataset.name} few-shot {base} + {len(sessions)} x {way}-way {shots}-shot, {how}",
        )
        return dataclasses.replace(made, base_classes=base)


def shots_of(dataset: Dataset, label: int, shots: int, draws: np.random.RandomState | None) -> np.ndarray:
    """Positions of the training images of a class that a session gets: (shots,), ascending.

    Args:
        dataset: the data.
        label: of the class.
        shots: how many.
        draws: chooses them at random; None: the first ones.

    Raises:
        UserError: the class has fewer images.
    """
    own = np.flatnonzero(dataset.train.labels.numpy() == label)
    if len(own) < shots:
        raise UserError(
            f"scenario: shots={shots}, and class {label} '{dataset.classes[label]}' has {len(own)} training images"
        )
    return own[:shots] if draws is None else np.sort(own[draws.permutation(len(own))[:shots]])


def listed(dataset: Dataset, folder: Path, sessions: Sequence[Sequence[int]], shots: int) -> list[list[np.ndarray]]:
    """Positions of the images that published lists name: for each session and each of its classes (shots,).

    Args:
        dataset: the data; its ``files`` are what lists of names are looked up in.
        folder: of ``session_2.txt`` and so on.
        sessions: the labels of each session's classes.
        shots: images that each class must have.

    Raises:
        UserError: a file cannot be read; a line is no image of the data, an image of another session's class, or named
            twice; or a class has another number of images.
    """
    names: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, file in enumerate(dataset.files or ()):
        names[_tail(file)].append(index)
    labels, out = dataset.train.labels.numpy(), []
    for number, session in enumerate(sessions, 2):
        path = folder / f"session_{number}.txt"
        where = f"scenario.lists: {path}"
        try:
            lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        found = np.array([_position(line, where, names, len(labels)) for line in lines], np.int64)
        for line, index in zip(lines, found, strict=True):
            if labels[index] not in session:
                raise UserError(
                    f"{where}: '{line}' is an image of class {labels[index]} '{dataset.classes[labels[index]]}', and "
                    f"the session's classes are {list(session)}. Is scenario.order that of the lists, and are the "
                    "training images in their published order?"
                )
        groups = [found[labels[found] == label] for label in session]
        for label, own in zip(session, groups, strict=True):
            if len(own) != shots or len(np.unique(own)) != shots:
                raise UserError(
                    f"{where} names {len(np.unique(own))} images, in {len(own)} lines, of class {label} "
                    f"'{dataset.classes[label]}'; shots={shots}"
                )
        out.append(groups)
    return out


def _tail(file: str) -> tuple[str, ...]:
    """Class folder and file name: what lists and data sets agree in, wherever the images lie."""
    return PurePosixPath(file).parts[-2:]


def _position(line: str, where: str, names: dict[tuple[str, ...], list[int]], n: int) -> int:
    if line.isdigit():
        if int(line) >= n:
            raise UserError(f"{where}: there is no training image {line}; the data have {n}, numbered from 0")
        return int(line)
    if not names:
        raise UserError(f"{where} names files, '{line}' first; data from a folder have file names, these have none")
    found = names.get(_tail(line), [])
    if len(found) != 1:
        raise UserError(f"{where}: {len(found) or 'no'} training images are called {'/'.join(_tail(line))}")
    return found[0]
