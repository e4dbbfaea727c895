"""How close whole runs come to the time of their forward, backward and optimiser steps alone.

    python benchmarks/limit.py --data npz:data/cifar100.npz --classes 30 --epochs 1 10

For each method a run learns the first classes, ten at a time. Beside it, in the same process and between its epochs,
the method's own loss on one batch that is ready, teachers included, with backward and optimiser step and nothing else,
is timed on a copy. The limit of a run is that time for all images that it trained on, and the time of one forward pass,
at whatever batch size is fastest, for every image that the protocol has to look at: the new images, out of which
exemplars are chosen, the old exemplars, for class means, and the test images. Times of the limit are not part of the
run's. The loop is what ``Trainer.run_epoch`` takes over what its steps alone would.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.shared.runs import experiment, machine
from cil.data.images import ImageSet
from cil.errors import UserError
from cil.experiment.experiment import Experiment
from cil.experiment.run import run
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Exemplars
from cil.nets.folding import Folded
from cil.ops.freezing import train_mode

BATCHES = (32, 64, 128, 256, 512)  # of forward passes


class Limit:
    """The time of a run that cannot be done without, measured while it goes on.

    Attributes:
        learning: seconds of the steps of all trained images.
        looking: seconds of forward passes over all images to be looked at.
        loop: seconds of the loops around those steps.
        spent: seconds that measuring took, which are not the run's.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.learning = self.looking = self.loop = self.spent = 0.0
        self.old: int = 0  # exemplars before the task
        self._step: Any = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what only measures."""
        begin = time.perf_counter()
        yield
        self.spent += time.perf_counter() - begin

    def descend(self, own: Trainer, strategy: Strategy, data: Any, *words: Any, **options: Any) -> None:
        """In place of ``Trainer.descend``: prepares the step that is timed, and goes on."""
        with self.aside():
            self._step = Step(own, strategy, data)
        descend(own, strategy, data, *words, **options)

    def run_epoch(self, own: Trainer, *words: Any) -> float:
        """In place of ``Trainer.run_epoch``: times steps before and after it."""
        with self.aside():
            before = self._step.seconds(self.steps)
        begin, images = time.perf_counter(), own.images
        loss = run_epoch(own, *words)
        self.loop += time.perf_counter() - begin
        with self.aside():
            each = statistics.median(before + self._step.seconds(self.steps)) / self._step.size
        self.learning += each * (own.images - images)
        return loss

    def on_task(self, own: Experiment, records: list[Any], strategy: Strategy, exemplars: Exemplars) -> None:
        """After a task: times forward passes."""
        with self.aside():
            task = own.scenario.tasks[len(records) - 1]
            seen = own.scenario.test.of_classes(range(task.n_seen))
            each = forward_seconds(strategy, seen, own.place(task.index))
            self.looking += each * (len(task.train) + self.old + len(seen))
            self.old = len(exemplars)


descend, run_epoch = Trainer.descend, Trainer.run_epoch


class Step:
    """A method's gradient step on one batch that is ready, on a copy of the method."""

    def __init__(self, own: Trainer, strategy: Strategy, data: ImageSet) -> None:
        place = own.placed()
        strategy.label_smoothing = own.label_smoothing
        self.strategy = copy.deepcopy(strategy)
        del strategy.label_smoothing
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: own.batch_size]
        self.size = len(rows)
        self.x = place.augmentation.train(data.gather(rows), torch.Generator().manual_seed(0)).to(place.dtype)
        self.y, self.place = data.labels[rows], place
        self.optimizer = own.make_optimizer(self.strategy)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # the copy stays as it is
        train_mode(self.strategy)
        self.seconds(2)

    def seconds(self, steps: int) -> list[float]:
        """Of each of some steps."""
        found = []
        for _ in range(steps):
            begin = time.perf_counter()
            with self.place.autocast():
                loss: Tensor = self.strategy.loss(self.x, self.y)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            found.append(time.perf_counter() - begin)
        return found


@torch.inference_mode()
def forward_seconds(strategy: Strategy, images: ImageSet, place: Place) -> float:
    """Of one image's features and scores, with norms folded, at the batch size at which that is fastest."""
    folded = Folded(strategy.eval())
    found = []
    for size in BATCHES:
        x = place.augmentation.test(images.gather(slice(0, size))).to(place.dtype)
        taken = []
        for _ in range(4):
            begin = time.perf_counter()
            with place.autocast(), folded.standing_in():
                strategy(x)
            taken.append(time.perf_counter() - begin)
        found.append(statistics.median(taken[1:]) / len(x))
    return min(found)


def measured(own: Experiment, steps: int) -> tuple[float, float, float]:
    """Seconds of a run, the run over its limit, and the loop over its steps."""
    limit = Limit(steps)
    Trainer.descend = limit_method(limit.descend)  # type: ignore[method-assign]
    Trainer.run_epoch = limit_method(limit.run_epoch)  # type: ignore[method-assign]
    try:
        begin = time.perf_counter()
        run(own, on_task=lambda *words: limit.on_task(own, *words))
        seconds = time.perf_counter() - begin - limit.spent
    finally:
        Trainer.descend, Trainer.run_epoch = descend, run_epoch  # type: ignore[method-assign]
    return seconds, seconds / (limit.learning + limit.looking), limit.loop / limit.learning


def limit_method(of: Any) -> Any:
    """A function that stands in for a method of the trainer."""
    return lambda own, *words, **options: of(own, *words, **options)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--classes", type=int, default=30, help="learned ten at a time")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--methods", nargs="+", default=["replay", "icarl", "wa", "memo"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed before and after each epoch")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of the runs")
    arguments = parser.parse_args()
    print("| method | epochs | seconds | run / limit | loop / steps |\n| --- | ---: | ---: | ---: | ---: |")
    for method in arguments.methods:
        for epochs in arguments.epochs:
            argv = ["--config", str(ROOT / "configs/protocols/cifar100_b0_10.yaml"), "--data", arguments.data]
            argv += ["--config", str(ROOT / f"configs/strategies/{method}.yaml"), "--precision", arguments.precision]
            argv += ["--trainer.epochs", str(epochs), *arguments.options]
            own = experiment(argv, arguments.classes)
            found = [measured(own, arguments.steps) for _ in range(arguments.rounds)]
            seconds, whole, loop = (statistics.median(values) for values in zip(*found, strict=True))
            print(f"| {method} | {epochs} | {seconds:.1f} | {whole:.3f} | {loop:.3f} |", flush=True)
    print(f"\n{arguments.rounds} rounds, seed 0; precision {own.precision}; {machine()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
