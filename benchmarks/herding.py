"""How long selecting exemplars by herding takes, beside the loop over candidates that the paper describes.

    python benchmarks/herding.py --rounds 5

The loop computes, for each pick, the distance of the class mean to the mean of the picks so far with each candidate
added, as iCaRL's algorithm 4 is usually written: N x D numbers for each pick. Ours keeps sums and needs one product of
a matrix and a vector. Both get the same features, in turn, and must pick the same images.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cil.ops.herding import herding

CASES = ((500, 64, 20), (500, 64, 500), (1300, 512, 20), (1300, 512, 200), (5000, 768, 100))  # N, D, picks


def by_loop(features: torch.Tensor, n: int) -> np.ndarray:
    """The picks, by the definition."""
    v = features.double().numpy()
    v = v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-8)
    mean, total = v.mean(0), np.zeros(v.shape[1])
    chosen: list[int] = []
    for k in range(1, n + 1):
        distances = np.sqrt((((total + v) / k - mean) ** 2).sum(1))
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
        total += v[chosen[-1]]
    return np.array(chosen)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draws = torch.Generator().manual_seed(arguments.seed)
    print(f"medians of {arguments.rounds} rounds, seed {arguments.seed}; torch {torch.__version__}, ", end="")
    print(f"python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads\n")
    print(f"{'candidates':>10}{'features':>10}{'picks':>7}{'loop ms':>10}{'ours ms':>10}{'ratio':>8}  same")
    for n, dim, picks in CASES:
        features = torch.randn(n, dim, generator=draws).relu()
        seconds: dict[str, list[float]] = {"loop": [], "ours": []}
        found = {}
        for _ in range(arguments.rounds):
            for name, select in (("loop", by_loop), ("ours", herding)):
                begin = time.perf_counter()
                found[name] = select(features, picks)
                seconds[name].append(time.perf_counter() - begin)
        loop, ours = (1000 * statistics.median(seconds[name]) for name in ("loop", "ours"))
        same = "yes" if np.array_equal(found["loop"], found["ours"]) else "no"
        print(f"{n:>10}{dim:>10}{picks:>7}{loop:>10.1f}{ours:>10.2f}{loop / ours:>8.1f}  {same}")


if __name__ == "__main__":
    main()
