"""Runs of official code on a tiny problem (``tests/golden``), and the same runs on this engine.

A recording has the order of images in every epoch, the values of every layer that was made anew, and what came of them:
the loss of every step, exemplars, scores and predictions after every task. The engine is given the former, and the test
compares the latter.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cil.data.augmentation import Augmentation
from cil.data.images import Dataset, ImageSet
from cil.data.scenario import Scenario, disjoint
from cil.evaluation.accuracy import class_means, nearness
from cil.experiment.experiment import Experiment
from cil.experiment.run import run
from cil.learning.inference import features_of
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Memory
from cil.nets.heads import LinearHead
from cil.nets.network import Network

FOLDER = Path(__file__).parent / "golden"


@functools.cache
def problem() -> dict[str, np.ndarray]:
    """Images, labels and start weights."""
    with np.load(FOLDER / "problem.npz") as file:
        return dict(file)


@functools.cache
def recording(name: str) -> dict[str, Any]:
    """What was recorded of a method."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@functools.cache
def scenario() -> Scenario:
    """Six classes in three tasks of two."""
    stored = problem()
    train, test = (ImageSet(stored[f"{s}_images"], stored[f"{s}_labels"].astype(np.int64)) for s in ("train", "test"))
    data = Dataset("recorded", train, test, tuple("abcdef"), mean=(0.0,) * 3, std=(1.0,) * 3)
    return disjoint(data, [[0, 1], [2, 3], [4, 5]], name="recorded")


def block(inside: int, outside: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


class Net(nn.Module):
    """The recordings' network: 8 features."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = block(3, 6, 1), block(6, 8, 2)

    def shallow(self, x: Tensor) -> Tensor:
        return self.first(x)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.deep(self.shallow(x)))


def network(head: nn.Module | None = None) -> Network:
    """The stored network and a head, a linear one if none is given, in float64."""
    net = Network(Net(), LinearHead(Net.num_features) if head is None else head).double()
    with torch.no_grad():
        net.backbone.first[0].weight.copy_(torch.from_numpy(problem()["shallow_conv"]))
        net.backbone.deep[0].weight.copy_(torch.from_numpy(problem()["deep_conv"]))
    return net


class Exact:
    """Images / 255 in float64, where the engine's own augmentation computes in float32."""

    size = None

    def test(self, images: Tensor) -> Tensor:
        return images.double() / 255

    def train(self, images: Tensor, draws: torch.Generator, *, of: int, part: slice) -> Tensor:
        return self.test(images)


class Replayed(Trainer):
    """The gradient loop with the batches of a recording; keeps the loss of every step."""

    def __init__(self, record: dict[str, Any]) -> None:
        given = record["optimiser"]
        given = given if "lr" in given else next(iter(given.values()))
        options = {key: given[key] for key in ("lr", "momentum", "weight_decay")}
        super().__init__(epochs=3, batch_size=10, schedule="constant", **options)
        self.record, self.losses, self.epoch = record, {}, 0

    def descend(self, *args, **kwargs):
        self.epoch = 0
        super().descend(*args, **kwargs)

    def recorded(self, stage: int) -> dict[str, Any]:
        return self.record["tasks"][self.placed().task]["stages"][stage]

    def gradients_of(self, strategy, data, loss=None, **options):
        if self.draws is not None:  # within a step
            return super().gradients_of(strategy, data, loss, **options)
        self.stage, self.epoch, own = self.stage + 1, 0, []

        def noted(x, y):
            own.append(loss(x, y))
            return own[-1]

        found = super().gradients_of(strategy, data, noted, **options)
        self.losses[self.placed().task, self.stage - 1] = [float(one) for one in own]
        return found

    def shuffled(self, n, draws):
        given = self.recorded(self.stage - 1)
        epoch, self.epoch = given["epochs"][self.epoch], self.epoch + 1
        positions = epoch.get("positions")
        if positions is None:
            place = {image: position for position, image in enumerate(given["dataset"])}
            positions = [place[image] for image in epoch["order"]]
        assert sorted(positions) == list(range(n)), "the recording has other images in this stage"
        return list(torch.tensor(positions).split(10))

    def train_step(self, *args):
        loss = super().train_step(*args)
        self.losses.setdefault((self.placed().task, self.stage - 1), []).append(float(loss))
        return loss


@dataclass
class After:
    """What the engine has after a task."""

    logits: np.ndarray  # (36, K)
    exemplars: list[int]  # numbers of training images
    predictions: list[int]  # of the test images of the classes seen
    nearest: list[int] | None  # the same by nearest means of exemplars
    strategy: Strategy = field(repr=False)


def fill(head: LinearHead, fresh: dict[str, Any], n_old: int = 0) -> None:
    """Give a head's new rows and columns the values that were recorded; rows before ``n_old`` keep theirs."""
    with torch.no_grad():
        rows = torch.tensor(fresh["new_rows_weight"], dtype=torch.float64)[n_old:]
        head.weight[len(head.weight) - len(rows) :] = rows
        if fresh.get("new_rows_bias") is not None and head.bias is not None:
            bias = torch.tensor(fresh["new_rows_bias"], dtype=torch.float64)[n_old:]
            head.bias[len(head.weight) - len(rows) :] = bias
        if fresh.get("old_rows_new_columns") is not None:
            block = torch.tensor(fresh["old_rows_new_columns"], dtype=torch.float64)
            head.weight[: len(block), head.weight.shape[1] - block.shape[1] :] = block


def replay(
    record: dict[str, Any],
    build: Callable[[], Strategy],
    heads: dict[str, Callable[[Strategy], LinearHead | None]],
    *,
    exemplars: int = 12,
    prepare: Callable[[Any, dict[str, Any], int], None] = lambda strategy, record, task: None,
) -> tuple[list[After], Replayed]:
    """Run a recording's problem on the engine.

    Args:
        record: of :func:`recording`.
        build: makes the strategy.
        heads: where the values of each ``fresh`` layer go once the strategy has begun a task.
        exemplars: kept in all.
        prepare: gives the strategy what else was recorded, once it has begun a task: (strategy, recording, task).
    """
    trainer = Replayed(record)
    images = {image.tobytes(): number for number, image in enumerate(problem()["train_images"])}
    made, found = scenario(), []

    class Given(Experiment):
        def place(self, task: int, watcher: Any = None) -> Any:
            place = super().place(task, watcher)
            place.augmentation = cast(Any, Exact())
            return place

        def fresh(self) -> Strategy:
            strategy = super().fresh()
            plain = strategy.begin

            def begin(task: Any) -> None:
                plain(task)
                prepare(strategy, record, task.index)
                for key, values in record["tasks"][task.index]["fresh"].items():
                    if key in heads and (head := heads[key](strategy)) is not None:
                        # The student starts with the old rows, though values for all rows were drawn.
                        fill(head, values, task.n_old if key == "student_head" else 0)

            strategy.begin = begin  # type: ignore[method-assign]
            return strategy

    memory = Memory(exemplars=exemplars)
    experiment = Given(made, build, trainer, memory, Augmentation(), precision="64")

    def look(records: list[Any], strategy: Strategy, kept: Any) -> None:
        n_seen, place = made.tasks[len(records) - 1].n_seen, experiment.place(len(records) - 1)
        with torch.no_grad():
            x = place.augmentation.test(made.test.gather())
            logits = strategy(x)
            seen = made.test.of_classes(range(n_seen))
            own = strategy(place.augmentation.test(seen.gather()))
            data, nearest = kept.as_set(), None
            if data is not None:
                means = class_means(strategy, kept, n_seen, place, ["nearest_mean"])["nearest_mean"]
                nearest = nearness(features_of(strategy, seen, place), means).argmax(1).tolist()
        numbers = [] if data is None else [images[image.tobytes()] for image in data.raw()]
        found.append(After(logits.numpy(), numbers, own.argmax(1).tolist(), nearest, strategy))

    run(experiment, on_task=look)
    return found, trainer
