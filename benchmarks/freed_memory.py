"""Features a second of a frozen EfficientNet-Lite0 with and without ``cil.machine.device.keep_freed_memory``.

    python benchmarks/freed_memory.py --images 384 --rounds 5

Each round starts a process with it and one without, on one thread; images are noise of 32 x 32 pixels, resized to 112
by the network's preprocessing. Seconds are those of the processor, in programs (user) and in the system, which fills
pages with zeros. The weights are random.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
MEASURE = """
import json, resource, sys, torch
from cil.machine.device import keep_freed_memory
from cil.nets.network import Model
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
plain = {"mean": 0.5, "std": 0.5, "size": 112}
net = Model(backbone="timm:tf_efficientnet_lite0", weights="random", frozen=True, preprocessing=plain).build(3).backbone
images = torch.rand(int(sys.argv[2]), 3, 32, 32)
net.compute(images[:64])
before = resource.getrusage(resource.RUSAGE_SELF)
net.compute(images)
after = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, after.ru_maxrss / 1024]))
"""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[list[float]]] = {"given back": [], "kept": []}
    for _ in range(arguments.rounds):
        for name, values in found.items():
            words = [sys.executable, "-c", MEASURE, name, str(arguments.images)]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            values.append(json.loads(done.stdout.splitlines()[-1]))
    print("| freed memory | images a processor second | user s | system s | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in found.items():
        user, system, peak = (statistics.median(column) for column in zip(*values, strict=True))
        rate = statistics.median(arguments.images / (one[0] + one[1]) for one in values)
        print(f"| {name} | {rate:.0f} | {user:.2f} | {system:.2f} | {peak:.0f} |")
    print(f"\n{arguments.images} images, {arguments.rounds} rounds; torch {torch.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
