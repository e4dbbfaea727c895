"""Runs whose folders hold models, small and by the engine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import yaml

from cil.command import config
from cil.command.names import strategies
from cil.command.session import kept
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.provenance import Origin
from cil.experiment.run import run
from scenarios import datasets

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--data", "digits", "--train_per_class", "12", "--scenario.step", "5", "--model.backbone", "convnet2"]
SMALL += ["--trainer.epochs", "1", "--trainer.batch_size", "16", "--device", "cpu", "--threads", "1"]


def learned(folder, *argv, stop_after=None, load=None):
    """A run in a folder, by the engine, with its configuration; its experiment, strategy and exemplars."""
    parser, parsed = config.parse([*SMALL, *argv])
    experiment = config.instantiate(parser, parsed, load or datasets.load)
    origin = Origin.of(experiment, yaml.safe_load(kept(parser, parsed)))

    def look(records, strategy, exemplars):
        if len(records) == stop_after:
            raise KeyboardInterrupt

    found = None
    with contextlib.suppress(KeyboardInterrupt):
        found = run(experiment, checkpoints=Checkpoints(folder / "checkpoint"), origin=origin, on_task=look)
    return experiment, found


def configuration(name):
    return ["--config", str(ROOT / f"configs/strategies/{name}.yaml")]


def memory(name):
    kind = strategies()[name]
    if kind.exemplar_free:
        return ["--memory.exemplars", "0"]
    return ["--memory.exemplars", "all" if kind.needs_all_data else "20"]
