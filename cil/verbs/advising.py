"""Extend a model or learn anew? Each way is tried on a part of the pictures, and judged by the rest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cil.command import configurations, reading
from cil.command.names import class_path, find_class
from cil.data.images import Dataset, ImageSet
from cil.data.scenario import Scenario, recurring
from cil.data.seeds import generator
from cil.errors import UserError, check_number
from cil.evaluation.accuracy import own_means, scores_of
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.experiment.run import run
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Exemplars
from cil.memory.ledger import measure_run
from cil.verbs import extension
from cil.verbs.learned import Learned, put_together
from cil.verbs.pictures_given import Named, named


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to a model that knows the new classes, too.

    Attributes:
        name: for people.
        old: accuracy on pictures of classes known before that were held out, or None where there were none to judge by.
        new: likewise of the new classes.
        both: of all held-out pictures together.
        bytes: that it carries in the end, counted strictly.
        seconds: of learning.
        needs_old_data: whether it has to see the old pictures again.
        why_not: why it could not be tried; None: it was.
    """

    name: str
    old: float | None = None
    new: float | None = None
    both: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    needs_old_data: bool = True
    why_not: str | None = None


ON_FROZEN = ("slda", "simplecil", "ranpac")  # what else is worth a try where a backbone is frozen, the first two
ON_LEARNING = ("replay", "icarl", "wa")  # and where it learns
JOINT = "joint"


def ways(
    learned: Learned,
    data: Any,
    *,
    old: Any = None,
    methods: Sequence[str] | None = None,
    share: float = 0.2,
    progress: Progress | None = None,
) -> Iterator[Way]:
    """Ways to a model that knows more, each tried on a part of the pictures and judged by the rest.

    Extending needs the new pictures alone. Other methods, at the bytes that the extended model takes, and learning
    everything jointly have to see the old ones again.

    Args:
        learned: the model as it is; it stays so.
        data: the new pictures with the names of their classes, as :func:`cil.verbs.pictures_given.named` takes them.
        old: the pictures that the model was learned from, likewise; None: they are not at hand.
        methods: strategies to try beside the model's own; None: two that suit its backbone.
        share: of the pictures of each class, held out to judge by.
        progress: whom to tell.

    Yields:
        One way after another, as soon as it was tried.

    Raises:
        UserError: pictures cannot be used, no such strategy, or a share that leaves a class without pictures.
    """
    check_number("share", share, above=0, below=1)
    blueprint = learned.blueprint
    seed = learned.experiment.seeds.data
    new, new_held = _divided(named(data, blueprint), share, seed, "new")
    frozen = learned.strategy.model.frozen
    own = type(learned.strategy).__module__.rpartition(".")[2]
    suited = [name for name in (ON_FROZEN if frozen else ON_LEARNING) if name != own][:2]
    names = list(suited if methods is None else methods)
    kinds = {name: find_class("strategy", name) for name in [*names, JOINT]}
    old_part = old_held = None
    if old is not None:
        before = _only(named(old, blueprint), list(blueprint.ids))
        old_part, old_held = _divided(before, share, seed, "old")
    with learned.computing():
        extended = _extended(learned, new, new_held, old_held, progress)
        yield extended
        for name, kind in kinds.items():
            label = "jointly, from all pictures" if name == JOINT else f"anew with {name}"
            if old_part is None or old_held is None:
                yield Way(label, why_not="the old pictures are not at hand")
                continue
            if name == JOINT:
                memory: dict[str, Any] = {"exemplars": "all"}
                scenario = _scenario(learned, [_joined(old_part, new)], _joined(old_held, new_held))
            else:
                memory = {"exemplars": None, "budget": extended.bytes, "convention": "strict"}
                scenario = _scenario(learned, [*_by_task(learned, old_part), new], _joined(old_held, new_held))
            yield _anew(learned, label, kind, memory, scenario, set(old_held.names), progress)


def _extended(learned: Learned, new: Named, new_held: Named, old_held: Named | None, progress: Progress | None) -> Way:
    begin = time.perf_counter()
    state = extension.plan(learned, (new.images, new.names)).learn(progress=progress)
    seconds = time.perf_counter() - begin
    made = Learned(state, learned.place.device)
    right = _right(made, new_held)
    old = None if old_held is None else _right(made, old_held)
    size = measure_run(made.strategy, made.exemplars)["strict"]
    both = float(np.concatenate([right] if old is None else [old, right]).mean())
    return Way(
        f"extended with {made.strategy.label}",
        None if old is None else float(old.mean()),
        float(right.mean()),
        both,
        size,
        seconds,
        needs_old_data=False,
    )


def _anew(
    learned: Learned,
    label: str,
    kind: type,
    memory: dict[str, Any],
    scenario: Scenario,
    old_names: set[str],
    progress: Progress | None,
) -> Way:
    assert learned.origin.config is not None, "a model has a configuration"
    config = {**learned.origin.config, "strategy": _configured(kind)}
    kept = {**config["memory"], "exemplars": 0, "per_class": None, "budget": None, "selection": "herding"}
    config |= {"memory": {**kept, **memory}, "calibration": None, "evaluators": None}
    begin = time.perf_counter()
    try:
        blueprint = dataclasses.replace(learned.blueprint, calibrated=False)
        experiment, _ = put_together(
            config, learned.origin.seeds, blueprint, learned.place.device, scenario=scenario, anew=True
        )
        _, strategy, exemplars = run(experiment, progress=progress)
    except UserError as error:
        return Way(label, why_not=str(error))
    seconds = time.perf_counter() - begin
    test = scenario.test
    right = _of_set(experiment, strategy, exemplars, test) == test.labels.numpy()
    known = np.array([scenario.class_names[label] in old_names for label in test.labels.tolist()])
    size = None if memory["exemplars"] == "all" else measure_run(strategy, exemplars)["strict"]
    return Way(label, float(right[known].mean()), float(right[~known].mean()), float(right.mean()), size, seconds)


def _configured(kind: type) -> dict[str, Any]:
    """A strategy as its configuration has it, where it comes with one; else with the defaults of its constructor."""
    file = configurations.known(("strategies",)).get(kind.__module__.rpartition(".")[2])
    given = {} if file is None else reading.read(str(file)).get("strategy")
    options = given.get("init_args") if isinstance(given, dict) else None
    return {"class_path": class_path(kind), "init_args": options or {}}


def _right(made: Learned, held: Named) -> np.ndarray:
    """Which held-out pictures a model names right: bool (N,)."""
    labels = np.array([made.blueprint.ids[name] for name in held.names], dtype=np.int64)
    return _of_set(made.experiment, made.strategy, made.exemplars, ImageSet(held.images, labels)) == labels


def _of_set(experiment: Experiment, strategy: Strategy, exemplars: Exemplars, data: ImageSet) -> np.ndarray:
    """What a strategy predicts, int64 (N,)."""
    place = experiment.place(0)
    means = own_means(strategy, exemplars, experiment.scenario.n_classes, place)
    return scores_of(strategy, data, place, means).topk(1, dim=1).indices[:, 0].cpu().numpy()


def _divided(given: Named, share: float, seed: int, what: str) -> tuple[Named, Named]:
    """Pictures to learn from, and those held out: of each class the same share, one at least on either side."""
    names, draws = np.array(given.names), generator(seed, "advise", what)
    out = np.zeros(len(names), dtype=bool)
    for name in dict.fromkeys(given.names):
        own = np.flatnonzero(names == name)
        if len(own) < 2:
            raise UserError(f"class '{name}' has one picture; to judge by, two are needed")
        n = min(max(round(share * len(own)), 1), len(own) - 1)
        out[own[torch.randperm(len(own), generator=draws).numpy()[:n]]] = True
    return _taken(given, ~out), _taken(given, out)


def _taken(given: Named, which: np.ndarray) -> Named:
    return Named(given.images[which], [name for name, one in zip(given.names, which, strict=True) if one])


def _only(given: Named, names: Sequence[str]) -> Named:
    """The pictures of these classes.

    Raises:
        UserError: a class has none.
    """
    for name in names:
        if name not in set(given.names):
            raise UserError(f"old pictures: there is none of class '{name}', which the model knows")
    return _taken(given, np.isin(given.names, names))


def _joined(*parts: Named) -> Named:
    return Named(np.concatenate([part.images for part in parts]), [name for part in parts for name in part.names])


def _by_task(learned: Learned, old: Named) -> list[Named]:
    """The old pictures as the tasks brought their classes; what comes back later is learned when it first came."""
    names, parts, start = learned.blueprint.class_names, [], 0
    for one in learned.blueprint.tasks:
        own = [name for name in names[start : start + one["new"]] if name]
        start += one["new"]
        if own:
            parts.append(_only(old, own))
    return parts


def _scenario(learned: Learned, parts: Sequence[Named], held: Named) -> Scenario:
    """A task for each part, all held-out pictures as test images."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    ids = {name: label for label, name in enumerate(names)}

    def labelled(one: Named) -> ImageSet:
        return ImageSet(one.images, np.array([ids[name] for name in one.names], dtype=np.int64))

    whole, ends = _joined(*parts), np.cumsum([len(part.names) for part in parts])
    blueprint = learned.blueprint
    data = Dataset("advice", labelled(whole), labelled(held), names, blueprint.mean, blueprint.std)
    return recurring(data, np.split(np.arange(len(whole.names)), ends[:-1]), name="advice")
