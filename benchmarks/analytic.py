"""How long analytic learning takes, and how exact it is, beside the published recursion.

    python benchmarks/analytic.py                                   # the published comparison: width 5000, batch 256
    python benchmarks/analytic.py --width 2048 --batch 128 --whole  # short enough to run the recursions to the end

The published recursion updates R = (X^T X + gamma I)^-1 for each batch by R - R X^T (I + X R X^T)^-1 X R with
``torch.inverse``. Evaluated from left to right, as Python does, the last product multiplies M x M by M x M;
``bracketed`` puts brackets around R X^T and X R; ``reused`` computes X R once. ``ours`` is
``cil.ops.closed_form.ridge.Ridge`` as strategies use it: it learns each task whole and solves once. All get the same
samples: ReLU random features of Gaussian vectors with class means.

Times are medians over ``--rounds`` of a task, taken in turn. A recursion's batches all cost the same, so without
``--whole`` ``--batches`` of them are timed and multiplied. Errors are relative (Frobenius) to the joint solution of all
samples in float64; without ``--whole`` only ours is run to the end.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cil.ops.closed_form.ridge import Ridge


def make_samples(arguments: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """One (X, Y) for each task, float32 (N, M) and (N, K); each task brings classes of its own."""
    draws = torch.Generator().manual_seed(arguments.seed)
    dim, per_task = 512, arguments.classes // arguments.tasks
    means = torch.randn(arguments.classes, dim, generator=draws)
    layer = torch.randn(dim, arguments.width, generator=draws) / dim**0.5
    tasks = []
    for t in range(arguments.tasks):
        labels = t * per_task + torch.randint(per_task, (arguments.images,), generator=draws)
        x = ((means[labels] + torch.randn(arguments.images, dim, generator=draws)) @ layer).relu()
        tasks.append((x, F.one_hot(labels, arguments.classes)))
    return tasks


def left_to_right(inverse: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The recursion as it is printed: R (M, M), W (M, K), X (n, M), Y (n, K)."""
    eye = torch.eye(len(x), dtype=x.dtype)
    inverse = inverse - inverse @ x.T @ torch.inverse(eye + x @ inverse @ x.T) @ x @ inverse
    return inverse, weight + inverse @ x.T @ (y - x @ weight)


def bracketed(inverse: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same with brackets, so that nothing multiplies M x M by M x M."""
    eye = torch.eye(len(x), dtype=x.dtype)
    inverse = inverse - (inverse @ x.T) @ (torch.inverse(eye + x @ inverse @ x.T) @ (x @ inverse))
    return inverse, weight + inverse @ (x.T @ (y - x @ weight))


def reused(inverse: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same with X R computed once; R is symmetric."""
    eye, half = torch.eye(len(x), dtype=x.dtype), x @ inverse  # (n, M)
    inverse = inverse - half.T @ (torch.inverse(eye + half @ x.T) @ half)
    return inverse, weight + inverse @ (x.T @ (y - x @ weight))


def joint(tasks: list[tuple[Tensor, Tensor]], gamma: float) -> Tensor:
    """W of all samples at once, in float64 (M, K)."""
    width, classes = tasks[0][0].shape[1], tasks[0][1].shape[1]
    gram, cross = gamma * torch.eye(width, dtype=torch.float64), torch.zeros(width, classes, dtype=torch.float64)
    for x, y in tasks:
        gram += x.double().T @ x.double()
        cross += x.double().T @ y.double()
    return torch.cholesky_solve(cross, torch.linalg.cholesky(gram))


def learn(ridge: Ridge, x: Tensor, y: Tensor) -> None:
    """One task by our regression."""
    ridge.learn(
        lambda precision: ((some.to(precision), own) for some, own in zip(x.split(2048), y.split(2048), strict=True)),
        len(x),
    )


def recursion(
    step: Callable[..., tuple[Tensor, Tensor]], precision: torch.dtype, arguments: argparse.Namespace
) -> Callable[[Tensor, Tensor, int], float]:
    """A timer of one recursion: call it with a task's samples and how many batches; the seconds of the whole task."""
    state = [torch.eye(arguments.width, dtype=precision) / arguments.gamma]
    state.append(torch.zeros(arguments.width, arguments.classes, dtype=precision))

    def run(x: Tensor, y: Tensor, batches: int) -> float:
        xs, ys = x.to(precision).split(arguments.batch), y.to(precision).split(arguments.batch)
        begin = time.perf_counter()
        for some, own in list(zip(xs, ys, strict=True))[:batches]:
            state[:] = step(*state, some, own)
        return (time.perf_counter() - begin) * len(xs) / min(batches, len(xs))

    run.state = state  # type: ignore[attr-defined]
    return run


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=5000, help="M, columns of X")
    parser.add_argument("--batch", type=int, default=256, help="samples in a batch of the recursions")
    parser.add_argument("--images", type=int, default=5000, help="samples of a task")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--gamma", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3, help="tasks that are timed, in turn with the others")
    parser.add_argument("--batches", type=int, default=2, help="batches of a recursion that are timed in a round")
    parser.add_argument("--whole", action="store_true", help="run the recursions over all tasks and show their errors")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    tasks = make_samples(arguments)
    expected = joint(tasks, arguments.gamma)
    regressions = {
        "ours": Ridge(arguments.width, arguments.gamma),
        "ours, products: float64": Ridge(arguments.width, arguments.gamma, products="float64"),
    }
    for ridge in regressions.values():
        ridge.grow(arguments.classes)
    recursions = {
        f"{name}, {str(precision)[6:]}": recursion(step, precision, arguments)
        for name, step in (("published", left_to_right), ("bracketed", bracketed), ("reused", reused))
        for precision in (torch.float64, torch.float32)
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*regressions, *recursions)}
    for number, (x, y) in enumerate(tasks):
        for name, ridge in regressions.items():
            begin = time.perf_counter()
            learn(ridge, x, y)
            seconds[name].append(time.perf_counter() - begin)
        if arguments.whole or number < arguments.rounds:
            batches = len(x) if arguments.whole else arguments.batches
            for name, run in recursions.items():
                seconds[name].append(run(x, y, batches))
    print(
        f"{arguments.tasks} tasks of {arguments.images} samples, width {arguments.width}, {arguments.classes} classes,"
    )
    print(f"batch {arguments.batch}, gamma {arguments.gamma:g}, seed {arguments.seed}; torch {torch.__version__}, ")
    print(f"python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} threads\n")
    print(f"{'':<26}{'s a task':>10}{'over ours':>11}{'error of W':>12}")
    ours = statistics.median(seconds["ours"])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        weight = regressions[name].weight if name in regressions else recursions[name].state[1].double()  # type: ignore[attr-defined]
        error = float((weight - expected).norm() / expected.norm())
        shown = f"{error:.0e}" if name in regressions or arguments.whole else "-"
        print(f"{name:<26}{middle:>10.2f}{middle / ours:>11.1f}{shown:>12}")


if __name__ == "__main__":
    main()
