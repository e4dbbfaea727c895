"""What a run learned, in use: a model that answers about pictures, where neither its data nor its run are at hand.

A model is read from the folder of a run, finished or not, or from one file that :meth:`Model.save` wrote. Both hold the
state, the exemplars, the names of the classes and how pictures become network input; nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cil.data.images import ImageSet
from cil.deploy import model_file
from cil.deploy.hand_on import Handed, hand_on
from cil.errors import UserError, check_number
from cil.evaluation.accuracy import own_means, scores_of
from cil.evaluation.probabilities import Probabilities, of_strategy
from cil.experiment.progress import Progress
from cil.machine.device import pick_device
from cil.memory.ledger import measure_run
from cil.units import show
from cil.verbs import calibrating, extension, forgetting
from cil.verbs.judging import Judgement, judged
from cil.verbs.learned import Learned
from cil.verbs.pictures_given import named, stored


class Answer(NamedTuple):
    """One class that a picture may show: its name, its stable id, its score, and its probability where there is one."""

    name: str
    id: int
    score: float
    probability: float | None


class Model(Learned):
    """A strategy after a task, with all that it takes to ask it, to teach it more and to hand it on.

    No verb changes a model: those that teach or forget give a new one, and the old one stays as it is.
    """

    _means: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each id, from 0; empty where a class was forgotten."""
        return self.blueprint.class_names

    @property
    def ids(self) -> dict[str, int]:
        """The stable id of each class that is known: it stays when others come or go."""
        return self.blueprint.ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that are known, in the order of their ids."""
        return tuple(self.ids)

    @property
    def revision(self) -> int:
        """1 as it was learned; each change counts one more."""
        return len(self.history)

    def __repr__(self) -> str:
        size = measure_run(self.strategy, self.exemplars)["strict"]
        return (
            f"Model({self.strategy.label}, {len(self.classes)} classes, {len(self.exemplars)} exemplars, {show(size)}, "
            f"revision {self.revision})"
        )

    # --- ask --------------------------------------------------------------------------------------------------------

    def scores(self, pictures: Any) -> Tensor:
        """The method's own scores of some pictures, one for each id: (N, K), on the processor; -inf where forgotten.

        Args:
            pictures: a path, one of Pillow or an array (H, W[, C]) of uint8; or several of them: a list, or an array
                (N, H, W[, C]). Any size; they are made as large as those that were learned.

        Raises:
            UserError: a picture cannot be read, or is of another kind.
        """
        images = stored(pictures, self.blueprint)
        if not len(images):
            return torch.empty(0, len(self.names))
        data = ImageSet(images, np.zeros(len(images), dtype=np.int64))
        found = scores_of(self.strategy, data, self.place, self.means, in_use=True).float().cpu()
        found[:, list(self.blueprint.forgotten)] = -torch.inf
        return found

    @property
    def means(self) -> Tensor | None:
        """The means of exemplars that the method compares features with, (K, D); None: it has scores of its own."""
        if self._means is None:
            with torch.inference_mode():
                self._means = own_means(self.strategy, self.exemplars, len(self.names), self.place)
        return self._means

    @property
    def probabilities(self) -> Probabilities | None:
        """What makes probabilities of scores; None: the model carries nothing that does."""
        found = of_strategy(self.strategy)
        if found is not None and int(found.images):
            return found
        return Probabilities() if self.strategy.logits and self.strategy.evaluator == "linear" else None

    def predict(self, pictures: Any, *, reject: float | None = None) -> list[str | None]:
        """The likeliest class of each picture, or None for one that resembles no class.

        Args:
            pictures: as :meth:`scores` takes them.
            reject: share of pictures of known classes that may be rejected by mistake, such as 0.05: what has less
                confidence than that share of the images that were set aside is rejected. None: nothing is.

        Raises:
            UserError: no such share, no image was set aside to know it by, or as for :meth:`scores`.
        """
        return [best[0].name if best else None for best in self.top(pictures, 1, reject=reject)]

    def predict_proba(self, pictures: Any) -> Tensor:
        """The probability of each id for each picture, rows that sum to 1: (N, K) float64; 0 where forgotten.

        Raises:
            UserError: the method's scores make no probabilities, and no image was set aside to calibrate them; or as
                for :meth:`scores`.
        """
        return self._calibrated("predict_proba").of(self.scores(pictures))

    def _calibrated(self, what: str) -> Probabilities:
        found = self.probabilities
        if found is None:
            raise UserError(
                f"{what}: the scores of {self.strategy.label} make no probabilities by themselves; calibrate the model "
                "with pictures that it has not learned (Model.calibrate), or train with calibration: 0.1"
            )
        return found

    def calibrate(self, data: Any = None) -> Model:
        """A model that knows how sure its scores are: the temperature of probabilities, and confidences to reject by.

        Both are carried from then on, and counted: about a kilobyte.

        Args:
            data: pictures that were not learned, with names of known classes, as :meth:`extend` takes them; never those
                that the model is judged by. None: the exemplars, which were learned, so that it looks surer than it is.

        Raises:
            UserError: there are no pictures, or one is of a class that is not known.
        """
        return Model(calibrating.calibrated(self, data), self.place.device)

    def top(self, pictures: Any, k: int = 5, *, reject: float | None = None) -> list[list[Answer]]:
        """The k likeliest classes of each picture, or all of fewer, the likeliest first; none of one that is rejected.

        Args:
            pictures: as :meth:`scores` takes them.
            k: at least 1.
            reject: as :meth:`predict` takes it.

        Raises:
            UserError: k is no number of classes, or as for :meth:`scores`.
        """
        check_number("top", k, least=1, whole=True)
        scores, found = self.scores(pictures), self.probabilities
        best = scores.topk(min(k, len(self.classes)), dim=1)
        shares = None if found is None else found.of(scores).gather(1, best.indices).tolist()
        out = []
        for row, (ids, values) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            own = [None] * len(ids) if shares is None else shares[row]
            out.append([Answer(self.names[i], i, *two) for i, *two in zip(ids, values, own, strict=True)])
        if reject is not None:
            found = self._calibrated("reject")
            sure = (found.confidence(scores) >= found.threshold(reject)).tolist()
            out = [best if one else [] for best, one in zip(out, sure, strict=True)]
        return out

    def evaluate(self, data: Any) -> Judgement:
        """How good the model is: accuracy, by class, confusion, calibration, and what it rejects.

        Args:
            data: pictures with the names of their classes, as :meth:`extend` takes them; those of classes that are not
                known tell how well it rejects.

        Raises:
            UserError: no picture is of a known class, or one cannot be read.
        """
        given = named(data, self.blueprint)
        return judged(repr(self), self.ids, self.scores(given.images), given.names, self.probabilities)

    # --- teach ------------------------------------------------------------------------------------------------------

    def extend(self, data: Any, *, progress: Progress | None = None) -> Model:
        """A model that has learned more: one task more, with the same options, seeds and budget.

        New classes get the ids that follow; ids of known classes stay, and their pictures are learned as those of a
        class that returns. The state is that of a run which had this task as its next.

        Args:
            data: a mapping from names of classes to pictures as :meth:`scores` takes them, or a pair of pictures and
                their names, or a :class:`cil.data.images.Dataset`, of which the training images are taken.
            progress: whom to tell; None: nobody.

        Raises:
            UserError: the pictures cannot be used, the method cannot learn them, or the budget has no room for them.
            DivergedError: the loss became NaN or infinite.
        """
        return Model(extension.plan(self, data).learn(progress=progress), self.place.device)

    def forget(self, classes: Iterable[str] = (), *, images: Any = None) -> Model:
        """A model without some classes, or without some images; ids of other classes stay.

        Rows, means and exemplars of the classes go. It is exact for methods that carry means alone, and for those that
        carry sums when the images are given; ``history[-1]["remains"]`` says what is left otherwise.

        Args:
            classes: names of classes that go as a whole.
            images: pictures with the names of their classes, as :meth:`extend` takes them: of classes that go, all that
                were learned; of others, those to forget.

        Raises:
            UserError: a class is not known, none would be left, nothing is to be forgotten, or an image cannot be read.
        """
        return Model(forgetting.forgotten(self, classes, images), self.place.device)

    # --- hand on ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the model as one file, whole or not at all.

        Args:
            path: ends in ``.safetensors``; new.

        Raises:
            UserError: another ending, a file that is there, or one that cannot be written.
        """
        path = Path(path)
        model_file.check_name(path)
        if path.exists():
            raise UserError(f"{path} is already there; give another name or remove it")
        model_file.write(self.state(), path)

    def export(self, path: str | Path) -> Handed:
        """Write all of the model as one file for other programs, from stored images to scores; it computes in float32.

        The file is checked before it is in its place: it gives the scores of the model within rounding.

        Args:
            path: ends in ``.onnx``, which onnxruntime runs (the extra ``export``), or ``.pt2``, which torch runs; new.

        Raises:
            UserError: another ending, a file that is there, a package that is missing, or a method whose scores cannot
                be written in that format.
        """
        state = self.state()
        exact = dataclasses.replace(state.blueprint, precision="32")
        return hand_on(self, lambda: Model(state._replace(blueprint=exact), torch.device("cpu")), Path(path))


def load(path: str | Path, *, task: int | None = None, device: str = "auto") -> Model:
    """The model that a run learned, or that a file holds.

    Args:
        path: the folder of a run, finished or not, or a file of :meth:`Model.save`.
        task: number of the task after which the state of a run is taken, from 1; None: the model in use, which is the
            last state that is kept, or what was made of it since.
        device: where it computes: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        UserError: there is no such model, it is damaged, or was written by a version that did not say what it needs.
    """
    where = pick_device(device)
    return Model(model_file.read(Path(path), task), where)
