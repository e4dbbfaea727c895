"""Small runs of the methods that add networks, watched stage by stage, and their losses by explicit loops."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.experiment.run import run
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.nets.heads import LinearHead
from cil.nets.network import Model, Network
from cil.testing.lab import Lab, TinyNet
from strategies.growing.der import DER

WIDTH = TinyNet.num_features
NAMES = tuple(TinyNet().state_dict())
STEM = tuple(name for name in NAMES if name.startswith("stem."))
BODY = tuple(name for name in NAMES if name.startswith("body."))
HEAD = ("weight", "bias")
SIZES = (2, 2, 1, 1)  # the fourth class, of the second task, has two training images
RATES = {"epochs": 3, "lr": 0.05, "schedule": "cosine", "per_task": {1: {"epochs": 2, "lr": 0.02}}}
BATCH = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(5))

# Options under which the methods are watched.
RETRAINING = [{}, {"temperature": 3.0, "retrain_epochs": 1.0, "retrain_schedule": "trainer", "fresh_head": True}]
SHALLOW = [  # whether the shared part goes on learning after a first task of two classes
    ({"auxiliary": 0.7}, True),
    ({"few_classes": 1, "align": False}, False),
    ({"train_shallow": "yes", "few_classes": 1}, True),
    ({"train_shallow": "no", "auxiliary": 0.0}, False),
]
TUNED = {"temperature": 3.0, "keep": 0.6, "beta_boost": 0.9, "beta_compress": 0.8, "compress_epochs": 0.5}
VARIANTS = [
    {"scored": "compressed"},
    {"scored": "boosted", **TUNED},
    {"scored": "compressed", "beta_boost": 0.0, "beta_compress": 0.0},
]

State = dict[str, Tensor]


# --- a small experiment, watched -------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One call of ``descend``: what it was given, the state before and after it, and the loss of a batch after it."""

    data: np.ndarray  # images of each class
    replay: np.ndarray
    images: ImageSet
    epochs: int  # of the trainer, before
    learns: set[str]
    before: State
    after: State = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    epochs_after: int = 0
    decays: list[float] = field(default_factory=list)
    loss: float = 0.0
    y: list[int] = field(default_factory=list)


@dataclass
class Course:
    """One task: the state that ``grow`` made, the stages, and what was carried after the end."""

    grown: State
    stages: list[Stage] = field(default_factory=list)
    ended: State = field(default_factory=dict)
    label: str = ""
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    exemplars: np.ndarray = field(default_factory=lambda: np.empty(0))
    bytes: dict[str, int] = field(default_factory=dict)


def called(value: object) -> str:
    """A parameter's name in a report."""
    return value.__name__ if isinstance(value, type) else str(value)


def state_of(module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Watched(Trainer):
    """Notes what each stage was given and what it did."""

    def __init__(self, courses: list[Course], **options: Any) -> None:
        super().__init__(**options)
        self.courses = courses

    def descend(self, strategy, data, replay=None, *, epochs=None, options=None):
        kept = np.zeros(6, dtype=np.int64) if replay is None else replay.counts(6)
        grouped = {id(parameter) for group in strategy.parameter_groups() for parameter in group["params"]}
        learns = {name for name, parameter in strategy.named_parameters() if id(parameter) in grouped}
        assert learns == {name for name, parameter in strategy.named_parameters() if parameter.requires_grad}
        stage = Stage(data.counts(6), kept, data, self.epochs, learns, state_of(strategy))
        self.courses[-1].stages.append(stage)
        super().descend(strategy, data, replay, epochs=epochs, options=options)
        stage.after, stage.epochs_after = state_of(strategy), self.epochs
        stage.y = [k % strategy.model.head.n_classes for k in range(len(BATCH))]
        with torch.no_grad():
            stage.loss = strategy.loss(BATCH, torch.tensor(stage.y)).item()

    def run_epoch(self, strategy, data, optimizer, stage, epoch):
        loss = super().run_epoch(strategy, data, optimizer, stage, epoch)
        self.courses[-1].stages[-1].rates.append(optimizer.param_groups[0]["lr"])
        self.courses[-1].stages[-1].decays.append(optimizer.param_groups[0]["weight_decay"])
        return loss


class Listed(Trainer):
    """A trainer that trains nothing and notes how long each stage would be."""

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs=epochs)
        self.lengths = []

    def descend(self, strategy, data, replay=None, *, epochs=None, options=None):
        self.lengths.append(self.epochs if epochs is None else epochs)


def drive(kind, *, sizes=SIZES, memory=None, trainer=None, **options) -> list[Course]:
    """Learn the toy tasks and note, for each, what happened."""
    courses: list[Course] = []
    experiment = Lab(kind, options).experiment(sizes=sizes)
    experiment.trainer = Watched(courses, **{"batch_size": 12, **(trainer or RATES)})
    experiment.memory, experiment.evaluators = memory or experiment.memory, ("linear",)
    grow = experiment.grow

    def noted(strategy, task):
        grow(strategy, task)
        courses.append(Course(state_of(strategy)))

    def after(records, strategy, exemplars):
        course = courses[-1]
        course.ended, course.label, course.bytes = state_of(strategy), strategy.label, records[-1]["bytes"]
        course.exemplars = np.bincount(exemplars.labels, minlength=6)
        with torch.no_grad():
            course.scores = strategy(BATCH)

    experiment.grow = noted
    run(experiment, on_task=after)
    return courses


@functools.cache
def watched(kind, **options) -> list[Course]:
    """The same experiment for every test that only looks at it."""
    return drive(kind, **options)


def part(state: State, prefix: str) -> State:
    """The tensors under a prefix, by what follows it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}


def differing(one: State, other: State) -> list[str]:
    """Names in which two states differ in any bit."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name].numpy().tobytes() != other[name].numpy().tobytes()]


def changed_everywhere(one: State, other: State) -> bool:
    """Whether every parameter and statistic has moved."""
    return len(differing(one, other)) == len(one)


def numbers(names) -> int:
    """Values of these parameters of a ``TinyNet``."""
    sizes = dict(TinyNet().named_parameters())
    return sum(sizes[name].numel() for name in names if name in sizes)


# --- losses by loops -------------------------------------------------------------------------------------------------


def rows_of(net: State, x: Tensor = BATCH) -> list[list[float]]:
    """Features of a ``TinyNet`` in this state, as it predicts."""
    fresh = TinyNet()
    fresh.load_state_dict(net)
    with torch.no_grad():
        return fresh.eval()(x).double().tolist()


def joined(*parts: list[list[float]]) -> list[list[float]]:
    """Features of several networks, one after the other."""
    return [[value for piece in pieces for value in piece] for pieces in zip(*parts, strict=True)]


def scores_of(rows: list[list[float]], head: State) -> list[list[float]]:
    weight, bias = head["weight"].double().tolist(), head["bias"].double().tolist()
    return [
        [b + sum(w * value for w, value in zip(line, row, strict=True)) for line, b in zip(weight, bias, strict=True)]
        for row in rows
    ]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: list[list[float]], y: list[int], divisors: list[float] | None = None) -> float:
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        divided = row if divisors is None else [value / d for value, d in zip(row, divisors, strict=True)]
        total -= math.log(softmax(divided)[label])
    return total / len(y)


def old_and_new(courses: list[Course]) -> list[tuple[int, int, Course]]:
    """(K_old, K, course) of each task after the first."""
    starts = np.cumsum((0, *SIZES)).tolist()
    return [(starts[index], starts[index + 1], course) for index, course in enumerate(courses)][1:]


def specialised(kind, index: int) -> str:
    """Where the network of a task is in the state."""
    if index:
        return f"later.{index - 1}"
    return "model.backbone" if kind is DER else "model.backbone.body"


def scored_by_hand(kind, state: State, n_tasks: int) -> tuple[list[list[list[float]]], list[list[float]]]:
    """(features of each task's network, scores) of a state, by loops from the features on."""
    backbone = part(state, "model.backbone")
    nets = [backbone]
    for index in range(1, n_tasks):
        later = part(state, f"later.{index - 1}")
        nets.append(later if kind is DER else {**backbone, **{f"body.{name}": value for name, value in later.items()}})
    rows = [rows_of(net) for net in nets]
    return rows, scores_of(joined(*rows), part(state, "model.head"))


def structure(new: range, index: int) -> Task:
    """A task without data."""
    return Task(index, new, tuple(new), ImageSet(np.empty((0, 8, 8, 1), np.uint8), np.empty(0)))


def second_task(kind, first: int = 2, new: int = 2, **options) -> Strategy:
    """A strategy about to learn its second task."""
    torch.manual_seed(0)
    strategy = kind(Network(TinyNet(), LinearHead(WIDTH)), **options)
    for task in (structure(range(first), 0), structure(range(first, first + new), 1)):
        strategy.grow(task)
        strategy.requires_grad_(True)
        strategy.begin(task)
    return strategy


def grown_on_meta(kind, name: str, sizes: tuple[int, ...], **options) -> tuple[Strategy, int]:
    """The strategy after the last of these tasks, and the numbers of parameters of its networks without heads."""
    with torch.device("meta"):
        strategy = kind(Model(backbone=name).build(3), **options)
        seen = 0
        for index, n_new in enumerate(sizes):
            strategy.grow(structure(range(seen, seen + n_new), index))
            seen += n_new
    assert all(tensor.is_meta for tensor in strategy.state_dict().values())
    heads = {name for name, _ in strategy.named_parameters() if ".head." in name}
    return strategy, sum(p.numel() for name, p in strategy.named_parameters() if name not in heads)
