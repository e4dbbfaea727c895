"""How sure methods are, and how well their confidence tells images of unknown classes.

    python benchmarks/unknown.py --data npz:data/cifar100.npz --others digits npz:data/tiny_imagenet_100perclass.npz

Of the classes of a data set 80 % are learned in two tasks on a frozen EfficientNet-Lite0, 60 images each, of which 12
are set aside; the others are unknown. For each method and seed: accuracy, calibration error before and after the
temperature, and the area under the ROC curve of known against unknown test images by three scores: the largest
probability (Hendrycks and Gimpel, ICLR 2017), which ``Model.predict(..., reject=...)`` uses, the largest score
(Hendrycks et al., ICML 2022), and the energy (Liu et al., NeurIPS 2020). Means and standard deviations over seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cil
from benchmarks.shared.runs import machine
from cil.command import config
from cil.command.session import kept
from cil.data.images import Dataset
from cil.evaluation.probabilities import auroc, calibration_error
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.provenance import Origin
from cil.experiment.run import run
from cil.features.store import Store, default_root
from cil.nets import lookup
from scenarios import datasets

METHODS = {
    "ncm": [],
    "simplecil": [],
    "slda": [],
    "knn": ["--strategy.per_class", "20"],
    "fecam": [],
    "acil": ["--strategy.width", "2000", "--strategy.gamma", "100"],
}
TESTED = 20  # test images of each class


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--others", nargs="*", default=["digits"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    whole = datasets.load(options.data, train_per_class=60)
    others = [datasets.load(spec, image_size=whole.test.image_shape[1]) for spec in options.others]
    for seed in options.seeds:
        order = np.random.default_rng(seed).permutation(len(whole.classes))
        known, unknown = np.split(order, [int(0.8 * len(order))])
        for name in options.methods:
            row = measured(name, METHODS[name], part(whole, known), part(whole, unknown), others, seed)
            found.setdefault(name, []).append(row)
            print(seed, name, " ".join(f"{value:.3f}" for value in row), file=sys.stderr, flush=True)
    kinds = ("probability", "score", "energy")
    columns = [
        "accuracy",
        "ECE before",
        "after",
        *kinds,
        *(f"probability, {Path(spec).stem}" for spec in options.others),
    ]
    columns += ["rejected of 5 %"]
    print("| method |", " | ".join(columns), "|\n| --- |", " ---: |" * len(columns))
    for name, rows in found.items():
        values = np.array(rows)
        cells = (f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(values.mean(0), values.std(0, ddof=1), strict=True))
        print(f"| {name} |", " | ".join(cells), "|")
    print(machine())


def part(data: Dataset, labels: np.ndarray) -> Dataset:
    """These classes alone, with some test images of each."""
    to = np.full(len(data.classes), -1)
    to[labels] = np.arange(len(labels))
    own = data.test.of_classes(labels.tolist())
    some = np.concatenate([np.flatnonzero(own.labels.numpy() == label)[:TESTED] for label in labels])
    train, test = data.train.of_classes(labels.tolist()).relabel(to), own.subset(some).relabel(to)
    return Dataset(data.name, train, test, tuple(data.classes[label] for label in labels), data.mean, data.std)


def measured(
    name: str, more: list[str], known: Dataset, unknown: Dataset, others: list[Dataset], seed: int
) -> list[float]:
    """One run, and what its model makes of test images."""
    argv = ["--config", f"{ROOT}/configs/backbones/efficientnet_lite0.yaml"]
    argv += ["--config", f"{ROOT}/configs/strategies/{name}.yaml", "--scenario.step", "40", "--calibration", "0.2"]
    argv += ["--seed", str(seed), "--precision", "32", "--memory.exemplars", "0", *more]
    parser, parsed = config.parse(argv)
    experiment = config.instantiate(parser, parsed, lambda *args, **options: known)
    features = experiment.known_features(Store(default_root(), 2**34), "benchmark", config.Progress.silent())
    with tempfile.TemporaryDirectory() as folder:
        origin = Origin.of(experiment, yaml.safe_load(kept(parser, parsed)))
        with lookup.use(features):
            run(experiment, checkpoints=Checkpoints(Path(folder) / "checkpoint"), origin=origin)
        model = cil.load(folder)
    ids = model.ids
    labels = torch.tensor([ids[known.classes[label]] for label in known.test.labels.tolist()])
    with lookup.use(features):
        scores = model.scores(known.test.raw())
    none = [model.scores(unknown.test.raw()), *(model.scores(list(one.test.raw()[:500])) for one in others)]
    sure = model.probabilities
    assert sure is not None
    t = float(sure.temperature)
    by = (sure.confidence, lambda s: s.max(1).values, lambda s: t * torch.logsumexp(s.double() / t, 1))
    return [
        float((scores.argmax(1) == labels).double().mean()),
        calibration_error(torch.softmax(scores.double(), 1), labels),
        calibration_error(sure.of(scores), labels),
        *(auroc(kind(scores), kind(none[0])) for kind in by),
        *(auroc(sure.confidence(scores), sure.confidence(one)) for one in none[1:]),
        float((sure.confidence(scores) < sure.threshold(0.05)).double().mean()),
    ]


if __name__ == "__main__":
    main()
