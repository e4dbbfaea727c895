"""The Si-Blurry stream: some classes belong to one task, others leave a part of their images to other tasks.

Moon et al., Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and Visual Prompt Tuning,
ICCV 2023; with ``mode: fixed`` close to i-Blurry of Koh et al., Online Continual Learning on Class Incremental Blurry
Task Configuration with Anytime Inference, ICLR 2022. The draws are those of the released program, one by one, so a seed
gives the stream it gives there. That program takes the stochastic mode whatever its option says, since its arguments
slip by a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from cil.data.images import Dataset
from cil.data.scenario import Scenario, ScenarioBuilder, check_whole, stream
from cil.errors import unknown

MODES = ("stochastic", "fixed")


class SiBlurry(ScenarioBuilder):
    """A stream of disjoint and blurry classes without task boundaries, each image seen once.

    Args:
        tasks: how many phases the stream has; the learner is not told.
        disjoint_percent: r_D, percent of the classes whose images all come in one phase. Their number, and that of the
            blurry classes, is rounded down to a multiple of ``tasks``; classes left over are dropped, as the
            scenario's name then says.
        blurry_percent: r_B, percent of the blurry classes' images that are mixed among phases.
        mode: ``stochastic``: how many classes and mixed images a phase has is drawn; ``fixed``: the same for all.
        seed: of all draws; null: each run's data seed.
        every: images between two measurements of accuracy.
        nfa_shift: how many images ahead near-future accuracy looks; null: the smallest of 0, 1, 2, 4, 8, ... at which
            labels alone no longer tell what comes.
    """

    by_run = ("seed",)

    def __init__(
        self,
        *,
        tasks: int = 5,
        disjoint_percent: int = 50,
        blurry_percent: int = 10,
        mode: Literal["stochastic", "fixed"] = "stochastic",
        seed: int | None = 1,
        every: int = 1000,
        nfa_shift: int | None = None,
    ) -> None:
        self.tasks, self.disjoint_percent, self.blurry_percent = tasks, disjoint_percent, blurry_percent
        self.mode, self.seed, self.every, self.nfa_shift = mode, seed, every, nfa_shift

    def __call__(self, dataset: Dataset) -> Scenario:
        """The scenario of this data set.

        Raises:
            UserError: an option is out of its range.
        """
        n_classes = len(dataset.classes)
        check_whole("tasks", self.tasks, 1, n_classes)
        check_whole("disjoint_percent", self.disjoint_percent, 0, 100)
        check_whole("blurry_percent", self.blurry_percent, 0, 100)
        seed = check_whole("seed", self.seed, 0, 2**63 - 1)
        if self.mode not in MODES:
            raise unknown("scenario.mode", self.mode, MODES)
        n_disjoint, n_blurry = class_counts(n_classes, self.tasks, self.disjoint_percent)
        phases = blurry_phases(
            dataset.train.labels.numpy(),
            n_classes,
            tasks=self.tasks,
            disjoint_percent=self.disjoint_percent,
            blurry_percent=self.blurry_percent,
            mode=self.mode,
            generator=torch.Generator().manual_seed(seed),
        )
        dropped = n_classes - n_disjoint - n_blurry
        empty = sum(not len(phase) for phase in phases)
        parts = [
            f"{dataset.name} Si-Blurry D{self.disjoint_percent} B{self.blurry_percent} {self.mode}",
            f"{self.tasks} tasks" + f" ({empty} empty)" * bool(empty),
            f"every {self.every}",
        ]
        parts += [f"{dropped} classes dropped"] * bool(dropped)
        return stream(dataset, phases, name=", ".join(parts), every=self.every, nfa_shift=self.nfa_shift)


def class_counts(n_classes: int, tasks: int, disjoint_percent: int) -> tuple[int, int]:
    """How many classes are disjoint and how many blurry, both multiples of ``tasks``; the rest is dropped."""
    n_disjoint = n_classes * disjoint_percent // 100 // tasks * tasks
    return n_disjoint, (n_classes - n_disjoint) // tasks * tasks


def blurry_phases(
    labels: np.ndarray,
    n_classes: int,
    *,
    tasks: int,
    disjoint_percent: int,
    blurry_percent: int,
    mode: str,
    generator: torch.Generator,
) -> list[np.ndarray]:
    """Positions of the images of each phase in stream order: labels (N,) -> ``tasks`` arrays, some maybe empty.

    In ``fixed`` mode up to ``tasks`` - 1 of the mixed images are left over and come in no phase.

    Args:
        labels: in [0, K).
        n_classes: K.
        tasks: number of phases.
        disjoint_percent: r_D.
        blurry_percent: r_B.
        mode: ``stochastic`` or ``fixed``.
        generator: of all draws, in this order: classes; cut points of the disjoint, of the blurry classes and of the
            mixed images (stochastic alone); the mixed images; each phase.
    """
    n_disjoint, n_blurry = class_counts(n_classes, tasks, disjoint_percent)
    order = torch.randperm(n_classes, generator=generator).numpy()
    cut = _random_cuts if mode == "stochastic" else _equal_cuts
    owners = []
    for pool in (order[:n_disjoint], order[n_disjoint : n_disjoint + n_blurry]):
        cuts = cut(len(pool), tasks, generator)
        owner = np.full(n_classes, -1)
        owner[pool] = np.repeat(np.arange(tasks), np.diff(cuts))
        owners.append(owner[labels])  # (N,) the phase that owns each image, -1 for none
    disjoint, blurry = ([np.flatnonzero(owner == phase) for phase in range(tasks)] for owner in owners)
    blurry = _mixed(blurry, blurry_percent, mode, generator)
    phases = [np.concatenate(pair) for pair in zip(disjoint, blurry, strict=True)]
    return [phase[torch.randperm(len(phase), generator=generator).numpy()] for phase in phases]


def _mixed(lists: Sequence[np.ndarray], percent: int, mode: str, generator: torch.Generator) -> list[np.ndarray]:
    """Move the first images of each list into a pool, and hand the pool's out again at random."""
    if mode == "stochastic":
        n_mixed = sum(map(len, lists)) * percent // 100
        taken = np.diff(_random_cuts(n_mixed, len(lists), generator)).tolist()
        given = taken
    else:
        taken = [len(own) * percent // 100 for own in lists]
        given = [sum(taken) // len(lists)] * len(lists)
    pool = np.concatenate([own[:n] for own, n in zip(lists, taken, strict=True)])
    pool = pool[torch.randperm(len(pool), generator=generator).numpy()]
    starts = np.cumsum([0, *given])
    return [
        np.concatenate([own[n:], pool[start : start + more]])
        for own, n, start, more in zip(lists, taken, starts, given, strict=False)
    ]


def _random_cuts(n: int, parts: int, generator: torch.Generator) -> np.ndarray:
    """0, ``parts`` - 1 draws from 0 to n - 1 in ascending order, n: (parts + 1,). A part may be empty."""
    inner = torch.randint(0, n, (parts - 1,), generator=generator).sort().values.numpy() if n else np.zeros(parts - 1)
    return np.concatenate([[0], inner, [n]]).astype(np.int64)


def _equal_cuts(n: int, parts: int, generator: torch.Generator) -> np.ndarray:
    """The cuts of n, a multiple of ``parts``, into equal parts: (parts + 1,). Draws nothing."""
    return np.arange(parts + 1) * (n // parts)
