"""Replay here and in a plain loop as research code often has it: images a second, and where the time goes.

    python benchmarks/plain.py --data npz:data/cifar100.npz --classes 30 --epochs 1 --seeds 0 1 2

The plain loop below is written for this comparison: a ``Dataset`` of PIL images with torchvision's transforms, a
``DataLoader`` with workers, float32 in the default memory layout, a loader for each class for herding, one more for
each class mean, and after each task a pass over the test images for each of two classifiers, the head and the nearest
mean. Ours has the same two, tasks, network, crops and flips, batches, learning rates, and 2,000 exemplars by herding.
Each seed runs it, ours in float32, and ours in the precision that ``auto`` chooses, in turn. Images are those of
gradient steps, a second is one of the whole run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.shared.runs import Timed, experiment, machine, timed
from cil.data.seeds import seeded
from cil.errors import UserError
from cil.experiment.experiment import Experiment


class Images(Dataset[Any]):
    """PIL images, transformed one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class Plain:
    """The loop.

    Attributes:
        seconds: by part, named as the engine names its phases.
    """

    def __init__(self, own: Experiment, workers: int) -> None:
        from torchvision import transforms

        bound = own.place(0).augmentation
        mean, std = (values.flatten().tolist() for values in (bound.mean, bound.std))
        scale = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        crop = transforms.RandomCrop(own.scenario.image_shape[1:], padding=bound.pad)
        self.train_transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *scale])
        self.test_transform = transforms.Compose(scale)
        self.own, self.workers = own, workers
        self.backbone: Any = own.fresh().model.backbone.to(memory_format=torch.contiguous_format)  # as is usual
        self.head: nn.Linear = nn.Linear(self.backbone.num_features, 0)
        self.kept: dict[int, np.ndarray] = {}
        self.seconds = {"learning": 0.0, "selection": 0.0, "evaluation": 0.0}
        self.images = 0

    def loader(self, images: np.ndarray, labels: np.ndarray, transform: Any, *, shuffle: bool = False) -> Any:
        data = Images(images, labels, transform)
        return DataLoader(data, self.own.trainer.batch_size, shuffle, num_workers=self.workers)

    def run(self) -> float:
        """Learn all tasks; the accuracy on all classes at the end."""
        accuracy = 0.0
        for task in self.own.scenario.tasks:
            images, labels = task.train.raw(), task.train.labels.numpy()
            for part, work in (
                ("learning", lambda: self.learn(images, labels, task.n_seen)),  # noqa: B023 -- called at once
                ("selection", lambda: self.select(images, labels, task.n_seen)),  # noqa: B023
                ("evaluation", lambda: self.evaluate(task.n_seen)),  # noqa: B023
            ):
                begin = time.perf_counter()
                accuracy = work() or accuracy
                self.seconds[part] += time.perf_counter() - begin
        return accuracy

    def learn(self, images: np.ndarray, labels: np.ndarray, n_seen: int) -> None:
        """One task, by gradient descent."""
        trainer, old = self.own.trainer, self.head
        self.head = nn.Linear(self.backbone.num_features, n_seen)
        with torch.no_grad():
            self.head.weight[: len(old.weight)], self.head.bias[: len(old.bias)] = old.weight, old.bias
        for label, exemplars in self.kept.items():
            images = np.concatenate([images, exemplars])
            labels = np.concatenate([labels, np.full(len(exemplars), label)])
        parameters = [*self.backbone.parameters(), *self.head.parameters()]
        optimizer = torch.optim.SGD(parameters, trainer.lr, trainer.momentum, weight_decay=trainer.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trainer.epochs)
        self.backbone.train()
        for _ in range(trainer.epochs):
            for x, y in self.loader(images, labels, self.train_transform, shuffle=True):
                loss = nn.functional.cross_entropy(self.head(self.backbone(x)), y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                self.images += len(y)
            schedule.step()
        self.backbone.eval()

    @torch.no_grad()
    def features(self, images: np.ndarray) -> np.ndarray:
        """Normalised features of one class's images, through a loader of its own."""
        found = [self.backbone(x) for x, _ in self.loader(images, np.zeros(len(images)), self.test_transform)]
        features = torch.cat(found).numpy()
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def select(self, images: np.ndarray, labels: np.ndarray, n_seen: int) -> None:
        """Herding of new classes, fewer of old ones, and the mean of each class's exemplars."""
        quota = int(self.own.memory.exemplars or 0) // n_seen
        self.kept = {label: exemplars[:quota] for label, exemplars in self.kept.items()}
        for label in np.unique(labels):
            own = images[labels == label]
            features = self.features(own)
            mean, total, chosen = features.mean(0), np.zeros(features.shape[1]), []
            for count in range(1, min(quota, len(own)) + 1):
                distance = np.sqrt(((mean - (total + features) / count) ** 2).sum(1))
                distance[chosen] = np.inf
                chosen.append(int(distance.argmin()))
                total += features[chosen[-1]]
            self.kept[int(label)] = own[chosen]
        self.means = np.stack([self.features(self.kept[label]).mean(0) for label in sorted(self.kept)])

    @torch.no_grad()
    def evaluate(self, n_seen: int) -> float:
        """Accuracy on the test images of all classes seen, by the head; one more pass predicts by nearest mean."""
        test, means = self.own.scenario.test.of_classes(range(n_seen)), torch.from_numpy(self.means)
        right = {"head": 0, "nearest mean": 0}
        for classifier in right:
            for x, y in self.loader(test.raw(), test.labels.numpy(), self.test_transform):
                features = self.backbone(x)
                if classifier == "head":
                    scores = self.head(features)
                else:
                    scores = -torch.cdist(nn.functional.normalize(features), nn.functional.normalize(means))
                right[classifier] += int((scores.argmax(1) == y).sum())
        return right["head"] / len(test)


def plainly(own: Experiment, workers: int) -> Timed:
    """The run of an experiment in the plain loop."""
    with seeded(own.seeds.init, "plain"):
        loop = Plain(own, workers)
        begin = time.perf_counter()
        accuracy = loop.run()
        return Timed(time.perf_counter() - begin, loop.images, accuracy, loop.seconds)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--classes", type=int, default=30, help="learned ten at a time")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's data loaders")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of the runs")
    arguments = parser.parse_args()
    argv = ["--config", str(ROOT / "configs/protocols/cifar100_b0_10.yaml"), "--data", arguments.data]
    argv += ["--strategy", "Replay", "--trainer.epochs", str(arguments.epochs), "--trainer.schedule", "cosine"]
    argv += ["--augmentation.brightness", "0", "--evaluators", "[linear, nearest_mean]", *arguments.options]
    found: dict[str, list[Timed]] = {"plain, 32": [], "ours, 32": [], "ours, auto": []}
    for seed in arguments.seeds:
        for name, runs in found.items():
            own = experiment([*argv, "--seed", str(seed), "--precision", name.split(", ")[1]], arguments.classes)
            runs.append(plainly(own, arguments.workers) if name.startswith("plain") else timed(own))
    parts = ("learning", "selection", "evaluation")
    print("| who | images/s | ratio | " + " | ".join(f"{part}, s" for part in parts) + " | rest, s | accuracy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, runs in found.items():
        ratio = statistics.median(one.rate / other.rate for one, other in zip(runs, found["plain, 32"], strict=True))
        rate, whole = (statistics.median(getattr(one, key) for one in runs) for key in ("rate", "seconds"))
        # Images of the engine are made ready while it learns, as the loaders' are.
        phases = [{**one.phases, "learning": one.phases["learning"] + one.phases.get("data", 0)} for one in runs]
        each = [statistics.median(one[part] for one in phases) for part in parts]
        accuracy = " ".join(f"{100 * one.accuracy:.1f}" for one in runs)
        numbers = [f"{value:.1f}" for value in (*each, whole - sum(each))]
        print("| " + " | ".join([name, f"{rate:.0f}", f"{ratio:.2f}", *numbers, accuracy]) + " |")
    print(f"\nSeeds {arguments.seeds}; auto is {own.precision}; {machine()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
