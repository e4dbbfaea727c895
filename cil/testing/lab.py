"""Where strategies are watched: toy data, guards before images, and runs that note what a strategy does.

The scenario has tasks of two, one and three classes, images of 8 x 8 pixels, and one class with fewer images than the
exemplar quota.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import random
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data.images import Dataset, ImageSet
from cil.data.scenario import Scenario, Task, disjoint, stream
from cil.data.seeds import Seeds
from cil.evaluation.accuracy import Predictions, evaluate
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.experiment.resume import restore, save_boundary
from cil.experiment.run import learn, select
from cil.learning.place import NoWatcher
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Exemplars, Memory
from cil.memory.ledger import Bytes, measure_run
from cil.nets.heads import LinearHead
from cil.nets.network import Network

SIZES = (2, 1, 3)
COUNTS = (24, 24, 24, 2, 24, 24)  # training images of each class; the fourth has fewer than the quota
QUOTA_TOTAL = 18
LONG, SHORT = (8, 4, 4), (2, 2, 2)  # epochs of each task: so that the first is learned; so that it has been trained


class TinyNet(nn.Module):
    """Two convolutions with batch normalisation: enough to show leaks of statistics, small enough to run in seconds."""

    num_features = 12

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())

    @property
    def deep(self) -> nn.Module:
        """The second convolution."""
        return self.body

    def shallow(self, x: Tensor) -> Tensor:
        """The first convolution, (B, C, H, W) -> (B, 8, h, w)."""
        return self.stem(x)

    def pool(self, x: Tensor) -> Tensor:
        """(B, 12, h, w) -> (B, 12)"""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 12)"""
        return self.pool(self.deep(self.shallow(x)))


class GuardedSet(ImageSet):
    """Images that may be read only while their guard is open."""

    guard: Guard

    def raw(self, index: Any = slice(None)) -> np.ndarray:
        if not self.guard.open:
            raise AssertionError(f"{self.guard.name} was read when it is out of reach")
        return super().raw(index)

    def subset(self, index: Any) -> ImageSet:
        return guarded(super().subset(index), self.guard)

    def relabel(self, mapping: np.ndarray) -> ImageSet:
        return guarded(super().relabel(mapping), self.guard)


@dataclass
class Guard:
    """Whether some images may be read now, and what they are called."""

    name: str
    open: bool = False


def guarded(images: ImageSet, guard: Guard) -> GuardedSet:
    """The same images behind a guard."""
    out = GuardedSet(images._images, images.labels, images._index)
    out.guard = guard
    return out


@functools.cache
def toy_dataset() -> Dataset:
    """Six classes of 8 x 8 grey images: a pattern for each class, with noise."""
    rng = np.random.default_rng(7)
    patterns = F.interpolate(torch.from_numpy(rng.uniform(0, 255, (len(COUNTS), 1, 4, 4))), (8, 8), mode="bilinear")

    def split(counts: tuple[int, ...]) -> ImageSet:
        labels = np.repeat(np.arange(len(counts)), counts)
        noisy = patterns.numpy()[labels, 0] + rng.normal(0, 25, (len(labels), 8, 8))
        return ImageSet(noisy.clip(0, 255).astype(np.uint8)[..., None], labels)

    return Dataset("toy", split(COUNTS), split((8,) * len(COUNTS)), tuple("abcdef"))


def toy_scenario(sizes: tuple[int, ...] = SIZES) -> Scenario:
    """The toy classes in tasks of these sizes."""
    starts = np.cumsum((0, *sizes)).tolist()
    return disjoint(toy_dataset(), [range(a, b) for a, b in itertools.pairwise(starts)], name="toy")


def toy_stream(every: int = 16) -> Scenario:
    """The toy classes in two blurry phases without a boundary, in pieces of so many images; some bring no class."""
    labels, draws = toy_dataset().train.labels.numpy(), np.random.default_rng(11)
    early = (labels < 3) ^ (draws.random(len(labels)) < 0.1)  # a tenth of the images comes in the other phase
    phases = [draws.permutation(np.flatnonzero(part)) for part in (early, ~early)]
    return stream(toy_dataset(), phases, name="toy stream", every=every, nfa_shift=0)


@dataclass
class Look:
    """What some images show of a strategy between two tasks.

    Attributes:
        hidden: where it holds tensors or arrays that are not in its state.
        changed: what predicting changed.
        together: scores of the images in one batch.
        alone: scores of the same images one by one.
        described: what would be stored beside the images in one batch, by name.
        described_alone: beside the same images one by one.
    """

    hidden: list[str]
    changed: list[str]
    together: Tensor
    alone: Tensor
    described: dict[str, Tensor]
    described_alone: dict[str, Tensor]


@dataclass
class Moment:
    """What a strategy was after a task."""

    look: Look
    task: Task
    state: dict[str, Tensor]
    exemplars: dict[str, Tensor]
    predictions: dict[str, Predictions]
    size: Bytes
    scores: Tensor


class Lab:
    """Runs one strategy on the toy scenario, watched.

    Args:
        strategy: the class under test.
        init_args: its hyper-parameters.
        backbone: makes the backbone from ``in_channels``.
    """

    def __init__(
        self,
        strategy: type[Strategy],
        init_args: dict[str, Any] | None = None,
        backbone: Callable[..., nn.Module] = TinyNet,
    ) -> None:
        small = {strategy.sized_by: 32} if strategy.sized_by else {}  # what a budget would decide
        self.strategy, self.init_args, self.backbone = strategy, small | (init_args or {}), backbone
        self._traces: dict[tuple[Any, ...], list[Moment]] = {}

    def network(self) -> Network:
        """Backbone and head before the first task."""
        backbone = self.backbone(in_channels=1)
        return Network(backbone, LinearHead(int(backbone.num_features)), self.network)  # type: ignore[arg-type]

    def build(self) -> Strategy:
        """The strategy before its first task."""
        return self.strategy(self.network(), **self.init_args)

    def memory(self) -> Memory:
        """The exemplars that the strategy's tags call for."""
        if self.strategy.needs_all_data:
            return Memory(exemplars="all")
        return Memory(exemplars=0 if self.strategy.exemplar_free else QUOTA_TOTAL)

    def experiment(
        self, seed: int = 0, sizes: tuple[int, ...] = SIZES, epochs: tuple[int, ...] | None = None
    ) -> Experiment:
        """The toy experiment with this seed; eight epochs a task if none are given."""
        per_task = {index: {"epochs": n} for index, n in enumerate(epochs or ())}
        trainer = Trainer(epochs=8, batch_size=12, lr=0.05, weight_decay=1e-4, per_task=per_task)
        seeds = Seeds(seed, seed, seed)
        return Experiment(toy_scenario(sizes), self.build, trainer, self.memory(), seeds=seeds)

    def stream_experiment(self, *, frozen: bool = False, every: int = 16) -> Experiment:
        """The toy stream in pieces of ``every`` images, each seen once; with ``frozen`` the backbone never learns."""
        trainer = Trainer(epochs=1, batch_size=6, lr=0.05, weight_decay=1e-4)

        def build() -> Strategy:
            strategy = self.build()
            strategy.model.frozen = frozen
            return strategy

        return Experiment(toy_stream(every), build, trainer, self.memory())

    def trace(
        self,
        seed: int = 0,
        sizes: tuple[int, ...] = SIZES,
        epochs: tuple[int, ...] = LONG,
        rebuild: bool = False,
        again: bool = False,
    ) -> list[Moment]:
        """What the strategy was after each task; the same arguments give the run that was made before.

        Args:
            seed: of the run.
            sizes: classes of each task.
            epochs: of each task.
            rebuild: everything is written, thrown away and read back between tasks.
            again: run it once more.
        """
        key = (seed, sizes, epochs, rebuild, again)
        if key not in self._traces:
            self._traces[key] = list(self.moments(self.experiment(seed, sizes, epochs), rebuild=rebuild))
        return self._traces[key]

    def moments(
        self, experiment: Experiment, *, rebuild: bool = False, watch: Callable[[Strategy], None] | None = None
    ) -> Iterator[Moment]:
        """Learn the tasks one by one, with old training images and all test images out of reach."""
        torch.manual_seed(0)
        scenario, rooms = experiment.scenario, experiment.limits().rooms
        strategy, exemplars = experiment.fresh(), Exemplars(experiment.memory, scenario.image_shape)
        test_guard = Guard("a test image")
        test = guarded(scenario.test, test_guard)
        with tempfile.TemporaryDirectory() as folder:
            for task in scenario.tasks:
                guard = Guard(f"training data of task {task.index}", open=True)
                guarded_task = Task(task.index, task.new, task.present, guarded(task.train, guard), task.boundary)
                place = experiment.place(task.index, NoWatcher())
                trainer = WatchingTrainer(experiment.trainer).at(place)
                learn(strategy, guarded_task, exemplars, trainer, experiment)
                guard.open = True
                select(strategy, guarded_task, exemplars, place, experiment.seeds, rooms[task.index])
                guard.open = False
                if watch:
                    watch(strategy)
                seen_between = look(strategy)
                test_guard.open = True
                seen = test.of_classes(range(task.n_seen))
                names = experiment.scored_by(strategy)
                predictions = evaluate(strategy, seen, task.n_seen, exemplars, names, place)
                with torch.inference_mode():
                    scores = strategy(place.augmentation.test(seen.gather()))
                test_guard.open = False
                state = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
                size = measure_run(strategy, exemplars)
                yield Moment(seen_between, task, state, exemplars.state(), predictions, size, scores)
                if rebuild:
                    checkpoints = Checkpoints(Path(folder))
                    save_boundary(checkpoints, task, strategy, exemplars, [{}] * (task.index + 1), experiment)
                    start = restore(experiment, checkpoints, Progress.silent())
                    strategy, exemplars = start.strategy, start.exemplars


class WatchingTrainer(Trainer):
    """A trainer that asserts what a strategy may not do while it learns.

    What is frozen when it starts is the same, bit for bit, when it ends; ``gradients`` changes no parameter.
    """

    def __init__(self, like: Trainer) -> None:
        self.__dict__.update(copy.copy(like).__dict__)

    def descend(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        before = {name: tensor.clone() for name, tensor in frozen(strategy).items()}
        with watched_gradients(strategy):
            super().descend(strategy, *args, **kwargs)
        after = dict(strategy.state_dict())
        changed = [name for name, tensor in before.items() if name in after and not torch.equal(tensor, after[name])]
        assert not changed, f"frozen, yet changed while training: {', '.join(changed)}"


@contextlib.contextmanager
def watched_gradients(strategy: Strategy) -> Iterator[None]:
    """In here ``gradients`` asserts that it changes no parameter."""
    plain = strategy.gradients

    def watched(trainer: Any) -> None:
        before = [parameter.detach().clone() for parameter in strategy.parameters()]
        plain(trainer)
        same = all(map(torch.equal, before, strategy.parameters()))
        assert same, "gradients changed a parameter; the optimiser does that, or stepped"

    if type(strategy).gradients is not Strategy.gradients:
        vars(strategy)["gradients"] = watched
    try:
        yield
    finally:
        vars(strategy).pop("gradients", None)


def frozen(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Frozen parameters, and the buffers of subtrees whose parameters are all frozen, by name."""
    out: dict[str, Tensor] = {}
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return {f"{prefix}{name}": tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    for name, parameter in module.named_parameters(prefix.rstrip("."), recurse=False):
        if not parameter.requires_grad:
            out[name] = parameter
    for name, child in module.named_children():
        out.update(frozen(child, f"{prefix}{name}."))
    return out


def equal_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names in which two states differ, in presence, shape, type or any bit."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if n not in one or n not in other or not _same(one[n], other[n])]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return False
    return torch.equal(torch.where(one.isnan(), 0, one), torch.where(other.isnan(), 0, other))


@torch.inference_mode()
def look(strategy: Strategy) -> Look:
    """Show some images to a strategy, and see what that changes."""
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    inside = {tensor.data_ptr() for tensor in strategy.state_dict().values()}
    inside |= {tensor.data_ptr() for tensor in strategy.buffers()}  # rebuilt by the constructor or grow
    hidden = sorted({where for where, pointer in hoard(strategy) if pointer not in inside})
    tensors = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
    modes, draws = _modes(strategy), _draws()
    together, _ = strategy(x), strategy.features(x)
    alone = torch.cat([strategy(one[None]) for one in x])
    described, each = strategy.describe(x), [strategy.describe(one[None]) for one in x]
    described_alone = {name: torch.cat([one[name] for one in each]) for name in described}
    changed = equal_states(tensors, dict(strategy.state_dict()))
    changed += ["a training mode"] * (modes != _modes(strategy))
    changed += ["a global random generator"] * (draws != _draws())
    return Look(hidden, changed, together, alone, described, described_alone)


def _modes(strategy: Strategy) -> list[bool]:
    return [module.training for module in strategy.modules()]


def _draws() -> tuple[Any, ...]:
    """States of the global random generators."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state())


def hoard(strategy: Strategy) -> Iterator[tuple[str, int]]:
    """(where, data pointer) of every tensor and array that the strategy, its class or its file holds on to."""
    module = sys.modules[type(strategy).__module__]
    roots: list[tuple[str, Any]] = [("self", vars(strategy))]
    roots += [
        (place.__name__, dict(vars(place))) for place in type(strategy).__mro__ if place.__module__ == module.__name__
    ]
    roots += [(f"global {name}", value) for name, value in vars(module).items() if _container(value)]
    seen: set[int] = set()
    stack = roots
    while stack:
        where, value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield where, value.data_ptr()
            stack.append((f"{where}.grad", value.grad))
        elif isinstance(value, np.ndarray):
            yield where, value.ctypes.data
        elif isinstance(value, dict):
            stack += [(f"{where}.{key}" if isinstance(key, str) else where, item) for key, item in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack += [(f"{where}[{i}]", item) for i, item in enumerate(value)]
        elif isinstance(value, types.MethodType):
            stack += [(where, value.__self__)]
        elif isinstance(value, (types.FunctionType, functools.partial)):
            cells = getattr(value, "__closure__", None) or ()
            stack += [(f"{where} (closure)", cell.cell_contents) for cell in cells]
        elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType, Lab)):
            stack.append((where, vars(value)))  # a Lab is met where the network's recipe leads back here


def _container(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, dict, list, set)) and not isinstance(value, types.ModuleType)
