"""How good a model is on pictures of known classes, and how well it knows that others are none of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.errors import UserError
from cil.evaluation.probabilities import Probabilities, auroc, calibration_error, reliability


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a model made of pictures whose classes are known.

    Attributes:
        model: what it is, for people.
        names: of its classes, K of them.
        confusion: pictures by class (rows) and prediction (columns), int64 (K, K).
        others: pictures of classes that it does not know, by name.
        auroc: the chance that a picture of a known class has more confidence than one of another; None: there are none,
            or the model has no confidence.
        calibration: with probabilities, ``ece``, and of each bin of them ``images``, their mean ``probability`` and
            ``accuracy``; None: the model makes none.
        rejection: at some rates of false rejection that were asked for, the shares of pictures of ``known`` classes and
            of ``others`` that are rejected; None: no image was set aside to know thresholds by.
    """

    model: str
    names: tuple[str, ...]
    confusion: np.ndarray
    others: dict[str, int]
    auroc: float | None
    calibration: dict[str, Any] | None
    rejection: dict[float, dict[str, float | None]] | None

    @property
    def images(self) -> int:
        """Pictures of known classes."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of them that is named right."""
        return float(self.confusion.trace() / self.confusion.sum())

    @property
    def per_class(self) -> dict[str, float]:
        """The same by class, for those with pictures."""
        counts = self.confusion.sum(1)
        right = self.confusion.diagonal()
        return {name: float(r / n) for name, r, n in zip(self.names, right, counts, strict=True) if n}

    def worst_confusions(self, most: int = 10) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: (true class, what it was taken for, pictures)."""
        off = self.confusion * (1 - np.eye(len(self.names), dtype=np.int64))
        order = np.argsort(-off, axis=None, kind="stable")[:most]
        pairs = (np.unravel_index(int(at), off.shape) for at in order if off.flat[at])
        return [(self.names[i], self.names[j], int(off[i, j])) for i, j in pairs]

    def __repr__(self) -> str:
        return f"Judgement({self.images} pictures of {len(self.per_class)} classes, accuracy {self.accuracy:.3f})"

    def as_json(self) -> dict[str, Any]:
        """JSON values by name."""
        return {
            **dataclasses.asdict(self),
            "confusion": self.confusion.tolist(),
            "rejection": None if self.rejection is None else {f"{k:g}": v for k, v in self.rejection.items()},
            "images": self.images,
            "accuracy": self.accuracy,
            "per_class": self.per_class,
        }


RATES = (0.01, 0.05, 0.1)  # of false rejection


def judged(
    model: str, ids: dict[str, int], scores: Tensor, truth: list[str], probabilities: Probabilities | None
) -> Judgement:
    """What scores say about pictures of these classes.

    Args:
        model: what it is, for people.
        ids: id of each known class.
        scores: of each id, (N, K').
        truth: name of each picture's class, N of them; names that are not known are those of other classes.
        probabilities: of the model; None: it makes none.

    Raises:
        UserError: no picture is of a known class.
    """
    names = tuple(ids)
    place = {name: i for i, name in enumerate(names)}
    own = torch.tensor([name in place for name in truth])
    if not own.any():
        raise UserError(f"no picture is of a class that the model knows; it knows {', '.join(names)}")
    labels = torch.tensor([place[name] for name in truth if name in place])
    known = scores[own][:, list(ids.values())]
    best = known.topk(1, dim=1).indices[:, 0]  # of equal scores the one that answers name, too
    confusion = torch.bincount(labels * len(names) + best, minlength=len(names) ** 2)
    area = calibration = rejection = None
    if probabilities is not None:
        shares = probabilities.of(known)
        bins = [one._asdict() for one in reliability(shares, labels)]
        calibration = {"ece": calibration_error(shares, labels), "bins": bins}
        sure, unsure = probabilities.confidence(known), probabilities.confidence(scores[~own][:, list(ids.values())])
        area = auroc(sure, unsure) if len(unsure) else None
        if int(probabilities.images):
            rejection = {rate: _rejected(sure, unsure, probabilities.threshold(rate)) for rate in RATES}
    others = Counter(name for name in truth if name not in place)
    return Judgement(model, names, confusion.view(len(names), -1).numpy(), dict(others), area, calibration, rejection)


def _rejected(sure: Tensor, unsure: Tensor, threshold: float) -> dict[str, float | None]:
    return {
        "known": float((sure < threshold).double().mean()),
        "others": float((unsure < threshold).double().mean()) if len(unsure) else None,
    }
