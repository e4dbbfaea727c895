"""Replay and iCaRL here and in avalanche-lib: images a second and accuracy on one stream, network and number of epochs.

    python benchmarks/avalanche.py --data npz:data/cifar100.npz --classes 20 --epochs 2 --options --trainer.lr 0.02

Each seed runs, in turn, avalanche-lib in float32 (it has no other precision), ours in float32, and ours in the
precision that ``auto`` chooses. A second is one of the whole run: training, selection of exemplars, and evaluation of
all classes seen after each task; images are those of gradient steps. Both get the tasks, the images, the crops and
flips, ResNet-32, batches of 128, 2,000 exemplars and the schedule of learning rates.

avalanche-lib's ``ReplayPlugin`` trains on as many old images as new ones, repeating them, in batches twice as large.
Ours, as most papers do it, shuffles both together, so the same is done there with its own class-balanced buffer, which
draws exemplars by chance; ours do here, too. Its head grows with the classes, as ours does: one with rows for all
classes from the start learns to exclude those to come, and is thrown out of balance when they come. Its iCaRL, which
needs such a head, means its loss over outputs where ours sums over them, so its learning rate is multiplied, and its
weight decay divided, by their number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, in which this file would be taken for the library

from benchmarks.shared.runs import Timed, experiment, machine, timed
from cil.data.seeds import seeded
from cil.errors import UserError
from cil.experiment.experiment import Experiment

METHODS = {
    "replay": ["--memory.selection", "random", "--evaluators", "[linear]"],
    "icarl": ["--strategy.loss_form", "sigmoid", "--evaluators", "[nearest_mean]"],
}


def transforms(own: Experiment) -> tuple[Any, Any]:
    """What crops and mirrors an image (C, H, W), and what makes normalised floats of uint8, as torchvision has them."""
    from torchvision.transforms import v2

    bound = own.place(0).augmentation
    mean, std = (values.flatten().tolist() for values in (bound.mean, bound.std))
    moves = [v2.RandomCrop(own.scenario.image_shape[1:], padding=bound.pad), v2.RandomHorizontalFlip()]
    return v2.Compose(moves), v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def in_avalanche(method: str, own: Experiment, workers: int) -> Timed:
    """The same in avalanche-lib."""
    from avalanche.benchmarks.utils.utils import concat_datasets
    from avalanche.models import IncrementalClassifier
    from avalanche.training import ICaRL, Naive
    from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer
    from torch.optim.lr_scheduler import CosineAnnealingLR

    from scenarios.avalanche import to_avalanche

    n_classes, trainer = own.scenario.n_classes, own.trainer
    memory = int(own.memory.exemplars or 0)

    class Mixed(SupervisedPlugin):
        """Exemplars shuffled with new images, as in the library's own iCaRL."""

        def __init__(self) -> None:
            super().__init__()
            self.kept = ClassBalancedBuffer(memory)

        def after_train_dataset_adaptation(self, strategy: Any, **options: Any) -> None:
            if len(self.kept.buffer):
                strategy.adapted_dataset = concat_datasets((strategy.adapted_dataset, self.kept.buffer))

        def after_training_exp(self, strategy: Any, **options: Any) -> None:
            self.kept.post_adapt(strategy, strategy.experience)

    class Count(SupervisedPlugin):
        images = 0

        def before_forward(self, strategy: Any, **options: Any) -> None:
            self.images += len(strategy.mb_x)

    with seeded(own.seeds.init, "avalanche"):
        move, scale = transforms(own)
        benchmark = to_avalanche(own.scenario, train_transform=lambda image: scale(move(image)), eval_transform=scale)
        backbone: Any = own.fresh().model.backbone.to(memory_format=torch.contiguous_format)  # as its users have it
        if method == "icarl":
            head, factor = nn.Linear(backbone.num_features, n_classes), n_classes
        else:
            head, factor = IncrementalClassifier(backbone.num_features, own.scenario.tasks[0].n_new), 1
        model = nn.Sequential(backbone, head)
        optimizer = torch.optim.SGD(
            model.parameters(), trainer.lr * factor, trainer.momentum, weight_decay=trainer.weight_decay / factor
        )
        count = Count()
        schedule = LRSchedulerPlugin(CosineAnnealingLR(optimizer, trainer.epochs))
        shared: dict[str, Any] = {
            "train_mb_size": trainer.batch_size,
            "train_epochs": trainer.epochs,
            "eval_mb_size": 256,
            "evaluator": EvaluationPlugin(),
        }
        if method == "icarl":
            learner: Any = ICaRL(
                feature_extractor=backbone,
                classifier=head,
                optimizer=optimizer,
                memory_size=memory,
                buffer_transform=move,
                fixed_memory=True,
                plugins=[schedule, count],
                **shared,
            )
        else:
            learner = Naive(
                model=model,
                optimizer=optimizer,
                criterion=nn.CrossEntropyLoss(),
                plugins=[Mixed(), schedule, count],
                **shared,
            )
        sizes = SimpleNamespace(
            n_classes_per_exp=[task.n_new for task in own.scenario.tasks], classes_order=list(range(n_classes))
        )
        begin, right = time.perf_counter(), 0.0
        for number, experience in enumerate(benchmark.train_stream):
            experience.benchmark = sizes  # its iCaRL looks here
            learner.train(experience, num_workers=workers)
            right = seen_accuracy(learner, benchmark.test_stream[: number + 1])
        seconds = time.perf_counter() - begin
    return Timed(seconds, count.images, right, {})


@torch.no_grad()
def seen_accuracy(learner: Any, stream: Any) -> float:
    """On all test images of the classes seen, in batches of 256 through the library's own data sets."""
    learner.model.eval()
    right, total = 0, 0
    for experience in stream:
        for x, y, _ in torch.utils.data.DataLoader(experience.dataset.eval(), 256):
            right += int((learner.model(x).argmax(1) == y).sum())
            total += len(y)
    return right / total


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--classes", type=int, default=30, help="learned ten at a time")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=0, help="of avalanche-lib's data loaders")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of the runs")
    arguments = parser.parse_args()
    print(
        "| method | who | images/s | ratio | accuracy | standard error | difference | its standard error |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for method in arguments.methods:
        argv = ["--config", str(ROOT / "configs/protocols/cifar100_b0_10.yaml"), "--data", arguments.data]
        argv += ["--config", str(ROOT / f"configs/strategies/{method}.yaml"), *METHODS[method]]
        argv += ["--trainer.epochs", str(arguments.epochs), "--trainer.schedule", "cosine"]
        argv += ["--augmentation.brightness", "0", *arguments.options]
        found: dict[str, list[Timed]] = {"avalanche-lib, 32": [], "ours, 32": [], "ours, auto": []}
        for seed in arguments.seeds:
            for name, runs in found.items():
                precision = name.rpartition(" ")[2]
                own = experiment([*argv, "--seed", str(seed), "--precision", precision], arguments.classes)
                theirs = name.startswith("avalanche")
                runs.append(in_avalanche(method, own, arguments.workers) if theirs else timed(own))
        base = found["avalanche-lib, 32"]
        for name, runs in found.items():
            ratio = statistics.median(one.rate / other.rate for one, other in zip(runs, base, strict=True))
            mean, error = spread([100 * one.accuracy for one in runs])
            apart, its = spread([100 * (a.accuracy - b.accuracy) for a, b in zip(runs, base, strict=True)])
            rate = statistics.median(one.rate for one in runs)
            numbers = [f"{rate:.0f}", f"{ratio:.2f}", f"{mean:.1f}", f"{error:.1f}", f"{apart:+.1f}", f"{its:.1f}"]
            print("| " + " | ".join([method, name, *numbers]) + " |", flush=True)
    print(f"\nSeeds {arguments.seeds}; auto is {own.precision}; NumPy {np.__version__}, {machine()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
