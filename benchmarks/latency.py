"""Milliseconds for one image on a frozen backbone: a model in use, the bare network, and the passes of a run.

    python benchmarks/latency.py --rounds 200

Random weights, which cost what trained ones cost; images as large as each network expects. All ways take turns in each
round; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.shared.runs import machine
from cil.machine.device import keep_freed_memory
from cil.nets import lookup
from cil.nets.network import Model
from cil.nets.pretrained import Pretrained

NETWORKS = {"cifar_resnet32": 32, "resnet18": 224, "timm:efficientnet_lite0": 224}


@torch.inference_mode()
def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    rounds, names = vars(parser.parse_args()).values()
    keep_freed_memory()
    torch.set_num_threads(1)
    print("| network | bare ms | in use ms | in use / bare | pass of a run ms | pass / bare |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        preprocessing = {"mean": 0.5, "std": 0.25}
        net = Model(backbone=name, weights="random", frozen=True, preprocessing=preprocessing).build(3).eval()
        backbone = net.backbone
        assert isinstance(backbone, Pretrained)
        x = torch.rand(1, 3, NETWORKS[name], NETWORKS[name])
        normalised = backbone.prepare(x)
        took: dict[str, list[float]] = {"bare": [], "use": [], "run": []}
        for number in range(rounds + 3):
            for way, seconds in took.items():
                with lookup.one_size(way == "run"):
                    begin = time.perf_counter()
                    backbone.body(normalised) if way == "bare" else net.features(x)
                    if number >= 3:  # the first rounds warm up
                        seconds.append(time.perf_counter() - begin)
        bare, use, run = (1000 * statistics.median(seconds) for seconds in took.values())
        print(f"| {name} | {bare:.2f} | {use:.2f} | {use / bare:.2f} | {run:.2f} | {run / bare:.1f} |")
    print(f"\n{rounds} rounds, one thread; {machine()}")


if __name__ == "__main__":
    main()
