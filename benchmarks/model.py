"""A model in use: seconds to load it, to enrol five pictures of a new class, and for one, here and by ONNX.

    python benchmarks/model.py --data npz:data/cifar100.npz --rounds 5

Each method learns 50 classes of CIFAR-100, 20 images each, on a frozen EfficientNet-Lite0, and is saved as one file and
as ONNX. Pictures are 300 x 400. All ways take turns in each round; medians of the rounds. Packages are imported before.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxruntime

import cil
from benchmarks.shared.runs import machine
from cil.data.pictures import as_stored
from cil.deploy.model import Model
from cil.nets.pretrained import Pretrained
from scenarios import datasets


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["ncm", "simplecil", "slda", "ranpac"])
    options = parser.parse_args()
    whole = datasets.load(options.data, train_per_class=20)
    first = list(range(len(whole.classes) // 2))
    parts = (part.of_classes(first) for part in (whole.train, whole.test))
    data = dataclasses.replace(whole, **dict(zip(("train", "test"), parts, strict=True)))
    data = dataclasses.replace(data, classes=whole.classes[: len(first)], fingerprint=None, class_prints=None)
    columns = ("method", "MiB", "load, s", "enrol five, s", "bare network, ms", "one picture, ms", "by ONNX, ms")
    print("| " + " | ".join(columns) + " |\n| --- |" + " ---: |" * (len(columns) - 1))
    for name in options.methods:
        print(f"| {name} | " + " | ".join(measured(name, data, options.rounds)) + " |", flush=True)
    print(f"\n{options.rounds} rounds, one thread; {machine()}")


def measured(name: str, data: datasets.Dataset, rounds: int) -> list[str]:
    """The cells of a method's row."""
    options = {"precision": "32", "threads": 1, "memory": {"exemplars": 0}, "scenario": {"step": 25}}
    options |= {"strategy": {"class_path": name, "init_args": {"width": 2000}}} if name == "ranpac" else {}
    model = cil.run("efficientnet_lite0", name, data=data, **options).model
    with tempfile.TemporaryDirectory() as folder:
        file, onnx = Path(folder) / "m.safetensors", Path(folder) / "m.onnx"
        model.save(file)
        model.export(onnx)
        limits = onnxruntime.SessionOptions()
        limits.intra_op_num_threads = 1
        net = onnxruntime.InferenceSession(onnx, limits, providers=["CPUExecutionProvider"])
        pictures = np.random.default_rng(0).integers(0, 256, (5, 300, 400, 3), dtype=np.uint8)
        shape = model.blueprint.image_shape

        backbone = model.strategy.model.backbone
        assert isinstance(backbone, Pretrained)
        stored = torch.from_numpy(as_stored(pictures[0], shape)[None]).permute(0, 3, 1, 2)
        prepared = backbone.prepare(model.place.augmentation.test(stored))

        def by_onnx() -> None:
            net.run(None, {"images": as_stored(pictures[0], shape)[None]})

        ways: dict[str, Callable[[], object]] = {
            "load": lambda: cil.load(file),
            "enrol": lambda: model.extend({"new": pictures}),
            "bare": lambda: bare(model, prepared),
            "one": lambda: one_thread(model, pictures[0]),
            "onnx": by_onnx,
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, do in ways.items():
                begin = time.perf_counter()
                do()
                if number:  # the first round warms up
                    took[way].append(time.perf_counter() - begin)
        load, enrol, alone, one, other = (statistics.median(seconds) for seconds in took.values())
        size = file.stat().st_size / 2**20
    return [f"{size:.1f}", f"{load:.2f}", f"{enrol:.2f}", *(f"{1000 * seconds:.1f}" for seconds in (alone, one, other))]


@torch.inference_mode()
def bare(model: Model, prepared: torch.Tensor) -> None:
    """The network alone, on input that is ready."""
    with model.computing():
        model.strategy.model.backbone.body(prepared)


def one_thread(model: Model, picture: np.ndarray) -> None:
    """Ask with as many threads as ONNX has here."""
    with model.computing():
        model.predict(picture)


if __name__ == "__main__":
    main()
