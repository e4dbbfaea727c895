"""Runs of the engine inside a benchmark: on the first classes of a data set, timed as a whole."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from cil.command import config as cfg
from cil.data.images import Dataset
from cil.experiment.experiment import Experiment
from cil.experiment.resume import Record
from cil.experiment.run import run
from cil.machine.device import keep_freed_memory
from scenarios import datasets


def experiment(argv: Sequence[str], classes: int | None = None) -> Experiment:
    """What a command line describes, on the first classes of its data set.

    Args:
        argv: as for ``tools/train.py``.
        classes: how many; None: all.
    """

    def load(*words: Any, **options: Any) -> Dataset:
        return first_classes(datasets.load(*words, **options), classes)

    keep_freed_memory()  # as command lines do, and for whatever a run is compared with
    parser, config = cfg.parse([*argv])
    return cfg.instantiate(parser, config, load)


def first_classes(dataset: Dataset, classes: int | None) -> Dataset:
    """The data set without the classes behind the first ones; None: all of it."""
    if classes is None:
        return dataset
    kept = range(classes)
    return dataclasses.replace(
        dataset,
        train=dataset.train.of_classes(kept),
        test=dataset.test.of_classes(kept),
        classes=dataset.classes[:classes],
        fingerprint=None,
    )


@dataclasses.dataclass
class Timed:
    """A run that was timed.

    Args:
        seconds: from the first task to the end of the last.
        images: on which gradient steps were made.
        accuracy: after the last task, on all classes, by the method's own evaluator, as a fraction.
        phases: seconds by phase.
    """

    seconds: float
    images: int
    accuracy: float
    phases: dict[str, float]

    @property
    def rate(self) -> float:
        """Trained images a second."""
        return self.images / self.seconds


def timed(own: Experiment) -> Timed:
    """Run it, keeping nothing."""
    begin = time.perf_counter()
    records, strategy, _ = run(own)
    seconds = time.perf_counter() - begin
    phases: dict[str, float] = {}
    for record in records:
        for name, value in record["compute"]["seconds"].items():
            phases[name] = phases.get(name, 0.0) + value
    return Timed(seconds, trained(records), accuracy(records[-1], strategy.evaluator), phases)


def trained(records: Sequence[Record]) -> int:
    """Images on which gradient steps were made."""
    return sum(record["compute"]["images"] for record in records)


def accuracy(record: Record, evaluator: str) -> float:
    """The mean over all classes seen, as a fraction."""
    return statistics.fmean(record["evaluators"][evaluator]["per_class"])


def machine() -> str:
    """Versions and machine, for below a table."""
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads"
    )
