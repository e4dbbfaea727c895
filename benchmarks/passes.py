"""Images a second in passes without learning: by batch, precision, and with batch normalisation folded or not.

    python benchmarks/passes.py --rounds 5

The network is a fresh ResNet-32, the images are 512 of 32 x 32 colour pixels, ready in memory. All combinations run in
turn in each round; medians of the rounds. Beside them stands how far folding moves a feature, relative to the largest
one, and what folding all convolutions takes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.shared.runs import machine
from cil.machine.device import autocast, keep_freed_memory
from cil.nets import resnet
from cil.nets.folding import Folded

IMAGES, BATCHES, PRECISIONS = 512, (32, 64, 128, 256, 512), ("32", "bf16-mixed")


@torch.inference_mode()
def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    net = resnet.cifar(32).eval().to(memory_format=torch.channels_last)
    x = torch.randn(IMAGES, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    Folded(net)  # the first time its modules are followed, too
    begin = time.perf_counter()
    folded = Folded(net)
    took = time.perf_counter() - begin
    rates: dict[tuple[str, int, bool], list[float]] = {}
    for number in range(arguments.rounds + 1):
        for precision, batch, fold in itertools.product(PRECISIONS, BATCHES, (False, True)):
            begin = time.perf_counter()
            for part in x.split(batch):
                with autocast(x.device, precision), folded.standing_in() if fold else contextlib.nullcontext():
                    net(part)
            if number:  # the first round warms up
                rates.setdefault((precision, batch, fold), []).append(IMAGES / (time.perf_counter() - begin))
    plain = net(x)
    with folded.standing_in():
        apart = float((net(x) - plain).abs().max() / plain.abs().max())
    print("| precision | batch | images/s | folded | ratio |\n| --- | ---: | ---: | ---: | ---: |")
    for precision, batch in itertools.product(PRECISIONS, BATCHES):
        as_is, lean = (statistics.median(rates[precision, batch, fold]) for fold in (False, True))
        print(f"| {precision} | {batch} | {as_is:,.0f} | {lean:,.0f} | {lean / as_is:.2f} |")
    print(
        f"\nFolding {len(folded.pairs)} convolutions takes {1000 * took:.1f} ms, and moves a float32 feature by at most"
    )
    print(f"{apart:.0e} of the largest. {arguments.rounds} rounds; {machine()}")


if __name__ == "__main__":
    main()
