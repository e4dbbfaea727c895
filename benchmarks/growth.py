"""Seconds and memory of runs as tasks, classes, exemplars and images grow.

    python benchmarks/growth.py

Replay with a network of two small convolutions, which leaves the time to what is around it, on noise of 8 x 8 pixels,
one epoch a task, each run a process of its own, from images that are mapped from a file. One number grows at a time:

    tasks       5 to 100, of 1,000 classes and 20,000 images in all
    classes     10 to 1,000, in 10 tasks, 20,000 images in all
    exemplars   0 to 20,000, in 10 tasks, 20,000 images of 100 classes in all
    images      1,000 to 1,000,000 of 100 classes, in 5 tasks

The exponent is the slope of log(seconds), or of log(bytes), over log(number), fitted to the larger half of the points,
where what does not grow weighs less: 1 is linear. Trained images are the new ones and the exemplars of each task. Each
task is followed by a test on all classes seen (5,000 images, at the end), a selection of exemplars and a checkpoint, so
there is as much of these as there are tasks. The seconds of the command are those of its whole process, the import of
torch and the files it writes included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.shared.runs import machine
from cil.units import mib

TEST = 5000
# Of each run (tasks, classes, exemplars, images), by the number that grows.
SERIES = {
    "tasks": [(tasks, 1000, 2000, 20_000) for tasks in (5, 10, 20, 50, 100)],
    "classes": [(10, classes, 2000, 20_000) for classes in (10, 30, 100, 300, 1000)],
    "exemplars": [(10, 100, exemplars, 20_000) for exemplars in (0, 500, 2000, 8000, 20_000)],
    "images": [(5, 100, 1000, images) for images in (1000, 10_000, 100_000, 300_000, 1_000_000)],
}
NUMBERS = ("tasks", "classes", "exemplars", "images")


def write(path: Path, classes: int, images: int) -> None:
    """Noise with labels in turn, as an npz file that is mapped."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", images), ("test", max(TEST, classes))):
        arrays[f"x_{split}"] = rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % classes
    np.savez(path, classes=np.array([f"c{k}" for k in range(classes)]), **arrays)


def run(folder: Path, tasks: int, classes: int, exemplars: int, images: int, options: list[str]) -> dict[str, float]:
    """Trained images, seconds by phase and of the whole command, and the peak of memory in bytes, of one run."""
    data, out = folder / f"{classes}-{images}.npz", folder / "run"
    if not data.exists():
        write(data, classes, images)
    words = ["--strategy", "replay", "--data", f"npz:{data}", "--run_dir", str(out), "--overwrite"]
    words += ["--scenario.step", str(classes // tasks), "--memory.exemplars", str(exemplars), "--trainer.epochs", "1"]
    words += ["--model.backbone", "cil.testing.lab.TinyNet", "--evaluators", "[linear]", "--precision", "32", *options]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "tools/train.py", *words], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(done.stderr)
    records = json.loads((out / "results.json").read_text())["tasks"]
    assert len(records) == tasks
    phases: dict[str, float] = {}
    for record in records:
        for phase, own in record["compute"]["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + own
    peak = max(record["compute"]["peak_bytes"]["process"] for record in records)
    return {
        **phases,
        "images": sum(record["compute"]["images"] for record in records),
        "command": seconds,
        "peak": peak,
    }


def exponent(numbers: list[int], values: list[float]) -> float:
    """The slope of log(value) over log(number), for the larger half of the numbers."""
    points = [(n, value) for n, value in zip(numbers, values, strict=True) if n and value]
    x, y = np.log(np.array(points[len(points) // 2 :], dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=[*SERIES], default=[*SERIES])
    parser.add_argument("--share", type=float, default=1.0, help="of images and exemplars, for a quick look")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of the runs")
    arguments = parser.parse_args()
    parts = ("learning", "selection", "evaluation", "checkpoint", "command")
    head = ["series", "number", "trained images", *(f"{part}, s" for part in parts), "peak, MiB"]
    print("| " + " | ".join(head) + " |\n| --- |" + " ---: |" * (len(head) - 1))
    with tempfile.TemporaryDirectory() as folder:
        for series in arguments.series:
            numbers, found = [], []
            for tasks, classes, exemplars, images in SERIES[series]:
                fewer = [max(classes, int(count * arguments.share)) if count else 0 for count in (exemplars, images)]
                sizes = [tasks, classes, *fewer]
                numbers.append(sizes[NUMBERS.index(series)])
                found.append(run(Path(folder), *sizes, arguments.options))
                found[-1]["learning"] += found[-1]["data"]
                cells = [f"{found[-1]['images']:,}", *(f"{found[-1][part]:.1f}" for part in parts)]
                print(
                    "| " + " | ".join([series, f"{numbers[-1]:,}", *cells, mib(found[-1]["peak"], 0)]) + " |",
                    flush=True,
                )
            slopes = [f"{exponent(numbers, [one[part] for one in found]):.2f}" for part in ("images", *parts, "peak")]
            print("| " + " | ".join([series, "exponent", *slopes]) + " |", flush=True)
    print(f"\nSeed 0; {machine()}")


if __name__ == "__main__":
    main()
