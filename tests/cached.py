"""Toy runs on frozen backbones with a cache, for the tests of it."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.features.store import Store
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Memory
from cil.nets.network import Model
from cil.testing.lab import toy_scenario
from strategies.baselines.replay import Replay

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {"mean": 0.5, "std": 0.5}
TOY = {"backbone": "convnet2", "weights": "random", "frozen": True, "preprocessing": PLAIN}
BIG = 2**30
RUN = ["--config", "configs/protocols/digits.yaml", "--config", "configs/backbones/random_convnet.yaml"]
RUN += ["--trainer.epochs", "2", "--checkpoint_every", "0"]


class Told(Progress):
    """Keeps every line."""

    def __init__(self):
        super().__init__(Console(quiet=True))
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    warn = say


def experiment(model=None, **options):
    made = Model(**(model or TOY))
    trainer = Trainer(epochs=2, batch_size=12, lr=0.05)
    return Experiment(toy_scenario(), lambda: Replay(made.build(1)), trainer, Memory(exemplars=18), **options)


def prepared(root, own=None, limit=BIG, told=None):
    return (own or experiment()).known_features(Store(root, limit), "machine", told or Told())


def images(own=None):
    """All images of the toy scenario, as the network sees them."""
    own = own or experiment()
    sets = [*(task.train for task in own.scenario.tasks), own.scenario.test]
    return own.place(0).augmentation.test(torch.cat([part.gather() for part in sets]))
