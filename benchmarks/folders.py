"""Images a second from a folder of JPEG files: decoded into memory, mapped from a folder, and decoded batch by batch.

    python benchmarks/folders.py --images 2000 --workers 0 1 2

The files are made first: noise on a smooth picture, 500 x 375 pixels, quality 90, as large as those of
ImageNet. A pass reads every training image once in shuffled batches of 128, as an epoch does, without learning from
them. Medians over interleaved rounds; all files are in the operating system's memory by then.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cil.data.images import ImageSet, gathered
from cil.errors import UserError
from cil.learning.trainer import split_batches
from scenarios.datasets import load

SIZE, BATCH = (375, 500), 128  # (H, W) of a file; images read at a time


def write(folder: Path, count: int) -> None:
    """Image files of two classes, ``count`` to train on and a tenth as many to test."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", max(2, count // 10))):
        for index in range(number):
            smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
                SIZE[::-1], Image.Resampling.BICUBIC
            )
            noisy = np.asarray(smooth).astype(np.int16) + rng.integers(-12, 13, (*SIZE, 1), dtype=np.int16)
            path = folder / split / "ab"[index % 2] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def rate(images: ImageSet) -> float:
    """Images a second of one shuffled pass."""
    order = list(split_batches(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)), BATCH))
    begin = time.perf_counter()
    read = sum(len(batch) for batch in gathered(images, order))
    assert read == len(images)
    return read / (time.perf_counter() - begin)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "files", arguments.images)
        spec = f"folder:{folder}/files"

        def opened(images: str, workers: int) -> ImageSet:
            return load(spec, image_size=arguments.size, images=images, workers=workers).train

        begin = time.perf_counter()
        sets = {"mapped from a folder": opened(f"{folder}/decoded", max(arguments.workers))}
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        opened(f"{folder}/decoded", max(arguments.workers))
        second = time.perf_counter() - begin
        sets["in memory"] = opened("memory", max(arguments.workers))
        for workers in arguments.workers:
            who = f"{workers} workers" if workers else f"threads of this process ({torch.get_num_threads()})"
            sets[f"decoded by {who}"] = opened("files", workers)
        rates: dict[str, list[float]] = {name: [] for name in sets}
        for _ in range(arguments.rounds):
            for name, images in sets.items():
                rates[name].append(rate(images))
    print("| images | images/s | lowest to highest |\n| --- | ---: | ---: |")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} to {max(found):,.0f} |")
    print(
        f"\nOpening the folder of decoded images took {first:.1f} s when it was written, decoding included, and "
        f"{second:.1f} s from then on. {arguments.images} files, resized to {arguments.size} x {arguments.size}; torch "
        f"{torch.__version__}."
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
