"""Randomness that can be resumed: a draw's seed is derived from what the draw is for, never from what came before."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Seeds:
    """The seeds of a run. ``--seed`` sets all three; the class order has its own in the scenario.

    Attributes:
        init: initial weights, of the network and of everything that grows.
        data: order of images, augmentation and what a network draws while it trains.
        exemplars: selection of exemplars.
    """

    init: int
    data: int
    exemplars: int


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ``derive(0, "epoch", 3, 17)``; independent for each purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator that starts at the derived seed."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextlib.contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Inside, the global generators (torch, NumPy, Python) start at the derived seed; outside, they are as before."""
    value = derive(seed, *purpose)
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
