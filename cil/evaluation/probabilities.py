"""Probabilities of scores, and how much an image looks like any class: found on images that were held out for it.

Scores of closed forms are no logits: those of a linear discriminant may differ by hundreds, cosines by hundredths. One
number, the temperature T, makes probabilities of them: softmax(scores / T), with the T of the smallest negative
log-likelihood on images that were not learned (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cil.data.images import ImageSet, Joined
from cil.errors import UserError, check_number
from cil.evaluation.accuracy import own_means, scores_of
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Exemplars
from cil.ops.closed_form.statistics import Statistics

KEPT = 256  # confidences that are carried: a rate of 1 in 100 falls between the second and the third of them
BINS = 15  # of the calibration error, as published


class Probabilities(Statistics):
    """The temperature of a method's scores, and the confidences of images of known classes; about a kilobyte.

    It is carried as a part of the strategy, so it is counted, checkpointed and deployed with it.
    """

    temperature: Tensor
    spread: Tensor
    images: Tensor
    confidences: Tensor
    errors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))
        self.register_buffer("spread", torch.ones((), dtype=torch.float64))  # of scores, when it was found
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))  # that it was found on
        self.register_buffer("confidences", torch.full((KEPT,), torch.nan))  # in ascending order
        self.register_buffer("errors", torch.full((2,), torch.nan, dtype=torch.float64))  # ECE before and after

    def learn(self, scores: Tensor, labels: Tensor, *, anew: bool) -> None:
        """Find the temperature of some images that were not learned.

        Args:
            scores: (N, K); -inf where a class cannot be predicted.
            labels: (N,)
            anew: forget what was found before; else it counts by its number of images.
        """
        usable = torch.isfinite(scores.gather(1, labels[:, None]).flatten())
        scores, labels = scores[usable].double(), labels[usable]
        if not len(labels):
            return
        before = 0 if anew else int(self.images)
        n, found, now = len(labels), fit_temperature(scores, labels), spread(scores)
        # Scores may have another scale than before, so temperatures are averaged in units of their spread.
        log = (n * math.log(found / now) + before * math.log(float(self.temperature / self.spread))) / (n + before)
        self.temperature = torch.full_like(self.temperature, now * math.exp(log))
        self.spread = torch.full_like(self.spread, now)
        own = self.confidence(scores).float().to(self.confidences)
        self.confidences = _both(self.confidences[: KEPT if before else 0], before, own, n)
        errors = torch.tensor(
            [calibration_error(torch.softmax(scores / t, 1), labels) for t in (1.0, float(self.temperature))]
        )
        old = self.errors.nan_to_num(nan=0.0)
        self.errors = (n * errors.to(old) + before * old) / (n + before)
        self.images = torch.full_like(self.images, n + before)

    def as_json(self) -> dict[str, float | int | None]:
        """What was found, on how many images, and the calibration errors before and after on these images."""
        before, after = (None if math.isnan(value) else value for value in self.errors.tolist())
        return {
            "temperature": float(self.temperature),
            "images": int(self.images),
            "ece_before": before,
            "ece_after": after,
        }

    def of(self, scores: Tensor) -> Tensor:
        """Probabilities, rows that sum to 1: (N, K) -> (N, K)."""
        return torch.softmax(scores.double() / float(self.temperature), dim=1)

    def confidence(self, scores: Tensor) -> Tensor:
        """How much each image looks like one of the classes: its largest probability, (N, K) -> (N,).

        Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
        Networks, ICLR 2017. Largest scores and energies tell unknown classes worse here (``benchmarks/unknown.py``).
        """
        return self.of(scores).max(1).values

    def threshold(self, rate: float) -> float:
        """The confidence below which this share of images of known classes lies.

        Args:
            rate: of images of known classes that are rejected by mistake, in (0, 1).

        Raises:
            UserError: no such share, or no image was held out to find it on.
        """
        check_number("reject", rate, above=0, below=1)
        if not int(self.images):
            raise UserError("reject: no image was held out to find a threshold on; calibrate the model with some")
        return float(torch.quantile(self.confidences.double(), rate))


def of_strategy(strategy: Strategy) -> Probabilities | None:
    """Those that a strategy carries; None: there are none."""
    return getattr(strategy, "probabilities", None)


def calibrate(
    strategy: Strategy, held: ImageSet, n_seen: int, exemplars: Exemplars, place: Place, *, alone: bool = False
) -> None:
    """Find temperature and confidences of a strategy as it is now, on images that it did not learn.

    Where there are exemplars, classes of before are looked at by theirs, which were learned, so that old classes look
    surer than they are; else what was found before counts on.

    Args:
        strategy: after a task; what is found is found in it.
        held: images of classes seen that were not learned, labels as ids; maybe none.
        n_seen: K.
        exemplars: that are carried.
        place: where to compute.
        alone: leave the exemplars out of it, and what was found before.
    """
    found = of_strategy(strategy)
    assert found is not None, "the experiment makes them"
    kept = None if alone else exemplars.as_set()
    data = held if kept is None else Joined(held, kept)
    if len(data):
        means = own_means(strategy, exemplars, n_seen, place)
        scores = scores_of(strategy, data, place, means).cpu()
        found.learn(scores, data.labels, anew=alone or kept is not None)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The T > 0 of the smallest mean of -log softmax(scores / T)[label]: (N, K), (N,) -> T.

    Searched within a factor of 10,000 around the spread of the scores.
    """
    from scipy.optimize import minimize_scalar  # a quarter of a second to import

    scale = spread(scores)
    rows = torch.arange(len(labels))

    def loss(log: float) -> float:
        return -float(torch.log_softmax(scores / math.exp(log), 1)[rows, labels].mean())

    start = math.log(scale)
    bounds = (start - math.log(1e4), start + math.log(1e4))
    grid = np.linspace(*bounds, 41)  # the loss may have several valleys
    best = grid[int(np.argmin([loss(log) for log in grid]))]
    step = grid[1] - grid[0]
    return math.exp(minimize_scalar(loss, bounds=(best - step, best + step), method="bounded").x)


def spread(scores: Tensor) -> float:
    """The standard deviation of all finite scores, (N, K) -> a number > 0."""
    finite = scores[torch.isfinite(scores)]
    return max(float(finite.std()) if len(finite) > 1 else 1.0, 1e-12)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """The expected calibration error: (N, K), (N,) -> a fraction.

    Images in bins of equal width by the probability of what is predicted; the mean over images of the distance between
    a bin's accuracy and its mean probability (Guo et al., ICML 2017, eq. 3).
    """
    found = reliability(probabilities, labels, bins)
    return float(sum(one.images * abs(one.accuracy - one.probability) for one in found) / len(labels))


class Bin(NamedTuple):
    """Images that are predicted with about the same probability: how many, its mean, and the share that is right."""

    images: int
    probability: float
    accuracy: float


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> list[Bin]:
    """Accuracy by the probability of what is predicted, in bins of equal width that have images: (N, K), (N,) -> bins.

    Guo et al., ICML 2017, figure 1.
    """
    sure, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    which = (sure * bins).ceil().long().clamp(1, bins) - 1  # (N,), bins open to the left
    parts = (which == one for one in which.unique())
    return [Bin(int(part.sum()), float(sure[part].mean()), float(right[part].mean())) for part in parts]


def auroc(known: Tensor, other: Tensor) -> float:
    """The chance that an image of a known class has more confidence than another one: (N,), (M,) -> a fraction.

    The area under the receiver operating characteristic; ties count half (Mann and Whitney 1947).
    """
    both = torch.cat([known, other]).double()
    _, inverse, counts = both.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts.double() - 1) / 2  # of each value, ties in the middle
    n, m = len(known), len(other)
    return float((ranks[inverse[:n]].sum() - n * (n + 1) / 2) / (n * m))


def _both(old: Tensor, n_old: int, new: Tensor, n_new: int) -> Tensor:
    """As many confidences as are carried, evenly out of two sets that stand for so many images: ascending (KEPT,)."""
    share = round(KEPT * n_old / (n_old + n_new))
    parts = [_evenly(part, count) for part, count in ((old, share), (new, KEPT - share)) if count]
    return torch.cat(parts).sort().values


def _evenly(values: Tensor, count: int) -> Tensor:
    """So many quantiles of some values, at the middles of equal parts."""
    at = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.quantile(values.double(), at.to(values.device)).to(values.dtype)
