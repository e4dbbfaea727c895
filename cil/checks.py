"""The conformance suite: what every strategy promises, checked on a small scenario in seconds.

Each check is a function whose docstring is the promise. ``run_checks(MyStrategy)`` runs them all;
``python tools/check_strategy.py my_package.mine.MyStrategy`` does so from the command line. The scenario has tasks
of two, one and three classes, images of 8 x 8 pixels, and one class with fewer images than the exemplar quota.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import random
import re
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

from cil.checkpoint import Checkpoints
from cil.data import Dataset, ImageSet
from cil.errors import UserError
from cil.evaluation.accuracy import Predictions, evaluate
from cil.experiment import Experiment, plan
from cil.memory.exemplars import Exemplars, Memory
from cil.memory.ledger import Bytes, measure_run
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.progress import Progress
from cil.resume import restore, save_boundary
from cil.run import learn, run, select
from cil.scenario import Scenario, Task, disjoint, stream
from cil.seeds import Seeds
from cil.strategy import Strategy
from cil.trainer import NoWatcher, Trainer

SIZES = (2, 1, 3)
COUNTS = (24, 24, 24, 2, 24, 24)  # training images of each class; the fourth has fewer than the quota
QUOTA_TOTAL = 18


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


def toy_stream() -> Scenario:
    """The toy classes in two blurry phases without a boundary, in pieces of at most 16 images; some bring no class."""
    labels, draws = toy_dataset().train.labels.numpy(), np.random.default_rng(11)
    early = (labels < 3) ^ (draws.random(len(labels)) < 0.1)  # a tenth of the images comes in the other phase
    phases = [draws.permutation(np.flatnonzero(part)) for part in (early, ~early)]
    return stream(toy_dataset(), phases, name="toy stream", every=16, nfa_shift=0)


@dataclass
class Moment:
    """What a strategy was after a task."""

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
        self.strategy, self.init_args, self.backbone = strategy, init_args or {}, backbone
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

    def experiment(self, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> Experiment:
        """The toy experiment with this seed."""
        trainer = Trainer(epochs=8, batch_size=12, lr=0.05, weight_decay=1e-4)
        seeds = Seeds(seed, seed, seed)
        return Experiment(toy_scenario(sizes), self.build, trainer, self.memory(), seeds=seeds)

    def stream_experiment(self) -> Experiment:
        """The toy stream, each image seen once."""
        trainer = Trainer(epochs=1, batch_size=6, lr=0.05, weight_decay=1e-4)
        return Experiment(toy_stream(), self.build, trainer, self.memory())

    def trace(self, seed: int = 0, sizes: tuple[int, ...] = SIZES, rebuild: bool = False) -> list[Moment]:
        """The state after each task; with ``rebuild`` everything is written, thrown away and read back in between."""
        key = (seed, sizes, rebuild)
        if key not in self._traces:
            self._traces[key] = list(self.moments(self.experiment(seed, sizes), rebuild=rebuild))
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
                test_guard.open = True
                seen = test.of_classes(range(task.n_seen))
                names = experiment.scored_by(strategy)
                predictions = evaluate(strategy, seen, task.n_seen, exemplars, names, place)
                with torch.inference_mode():
                    scores = strategy(place.augmentation.test(seen.gather()))
                test_guard.open = False
                state = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
                size = measure_run(strategy, exemplars)
                yield Moment(task, state, exemplars.state(), predictions, size, scores)
                if rebuild:
                    checkpoints = Checkpoints(Path(folder))
                    save_boundary(checkpoints, task, strategy, exemplars, [{}] * (task.index + 1))
                    start = restore(experiment, checkpoints, Progress.silent())
                    strategy, exemplars = start.strategy, start.exemplars


class WatchingTrainer(Trainer):
    """A trainer that asserts that what is frozen when it starts is the same, bit for bit, when it ends."""

    def __init__(self, like: Trainer) -> None:
        self.__dict__.update(copy.copy(like).__dict__)

    def descend(
        self, strategy: Strategy, data: ImageSet, replay: ImageSet | None = None, *, epochs: int | None = None
    ) -> None:
        before = {name: tensor.clone() for name, tensor in frozen(strategy).items()}
        super().descend(strategy, data, replay, epochs=epochs)
        after = dict(strategy.state_dict())
        changed = [name for name, tensor in before.items() if name in after and not torch.equal(tensor, after[name])]
        assert not changed, f"frozen, yet changed while training: {', '.join(changed)}"


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
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


# --- the promises -----------------------------------------------------------------------------------------------------


def check_parameters_kept(lab: Lab) -> None:
    """Hyper-parameters are keyword-only, documented under Args, and kept under their own names."""
    signature = inspect.signature(lab.strategy.__init__)
    model, *others = list(signature.parameters.values())[1:]
    assert model.name == "model", f"the first argument is the model, not '{model.name}'"
    strategy = lab.build()
    text = "\n".join(inspect.getdoc(place) or "" for place in lab.strategy.__mro__ if issubclass(place, Strategy))
    for parameter in others:
        name = parameter.name
        assert parameter.kind is parameter.KEYWORD_ONLY, f"'{name}' is not keyword-only"
        assert hasattr(strategy, name), f"'{name}' is not kept: self.{name} is missing"
        given = lab.init_args.get(name, parameter.default)
        assert getattr(strategy, name) == given, f"'{name}' was {given!r} and is kept as {getattr(strategy, name)!r}"
        assert re.search(rf"^\s*{name}( \(.*\))?:", text, re.M), f"'{name}' is not documented under Args"


def check_names_its_source(lab: Lab) -> None:
    """The file names authors, title, venue and year of the method; the class says in a sentence what it does."""
    module = inspect.getdoc(sys.modules[lab.strategy.__module__]) or ""
    assert re.search(r"\b(19|20)\d\d\b", module), "the file's docstring names no source with its year"
    own = (lab.strategy.__doc__ or "").strip()
    assert re.match(r"[^\n]{15,}[.:]", own), "the class's docstring does not begin with a sentence"


def check_no_numbers_beside_the_constructor(lab: Lab) -> None:
    """The file holds no numeric constants: a hyper-parameter is an argument of the constructor."""
    values = vars(sys.modules[lab.strategy.__module__]).items()
    numbers = [name for name, value in values if isinstance(value, (int, float)) and not name.startswith("__")]
    assert not numbers, f"numbers at module level: {', '.join(numbers)}"


def check_scores_every_class_seen(lab: Lab) -> None:
    """After each task there is one finite score for exactly the classes seen."""
    for moment in lab.trace():
        expected = (len(moment.scores), moment.task.n_seen)
        assert moment.scores.shape == expected, f"scores {tuple(moment.scores.shape)} where {expected} are due"
        assert torch.isfinite(moment.scores).all(), f"scores after task {moment.task.index} are not finite"


def check_learns_the_first_task(lab: Lab) -> None:
    """Two classes that are easily told apart are told apart after the first task, and others would not be."""
    first = lab.trace()[0].predictions[lab.strategy.evaluator].confusion
    accuracy = first.trace() / first.sum()
    assert accuracy >= 0.9, f"accuracy on the first task is {accuracy:.2f}; 0.90 is easy"


def check_predicting_changes_nothing(lab: Lab) -> None:
    """Predicting changes no tensor, no training mode and no random state."""
    x = torch.rand(5, 1, 8, 8)

    def snapshot(strategy: Strategy) -> tuple[Any, ...]:
        tensors = {name: tensor.clone() for name, tensor in strategy.state_dict().items()}
        modes = [module.training for module in strategy.modules()]
        draws = torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())
        return tensors, modes, draws

    def watch(strategy: Strategy) -> None:
        tensors, modes, draws = snapshot(strategy)
        with torch.inference_mode():
            strategy(x)
            strategy.features(x)
        after = snapshot(strategy)
        changed = equal_states(tensors, after[0])
        assert not changed, f"predicting changed {', '.join(changed)}"
        assert modes == after[1], "predicting changed a training mode"
        assert draws == after[2], "predicting drew from a global random generator"

    list(lab.moments(lab.experiment(), watch=watch))


def check_scores_do_not_depend_on_the_batch(lab: Lab) -> None:
    """An image's scores are the same alone and among others."""
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    def watch(strategy: Strategy) -> None:
        with torch.inference_mode():
            together = strategy(x)
            alone = torch.cat([strategy(one[None]) for one in x])
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4), "scores differ between a batch and single images"

    list(lab.moments(lab.experiment(), watch=watch))


def check_same_seed_same_result(lab: Lab) -> None:
    """The same seed gives the same state, bit for bit, whatever was drawn before; another seed gives another."""
    first = lab.trace()
    torch.rand(17)
    second = list(lab.moments(lab.experiment()))
    for one, two in zip(first, second, strict=True):
        changed = equal_states(one.state, two.state) + equal_states(one.exemplars, two.exemplars)
        assert not changed, f"two runs with one seed differ after task {one.task.index} in {', '.join(changed)}"
    other = lab.trace(seed=1)
    assert equal_states(first[-1].state, other[-1].state), "another seed changes nothing"


def check_frozen_stays_frozen(lab: Lab) -> None:
    """What has no gradient when training starts is the same when it ends, buffers of frozen parts included."""
    lab.trace()  # the watching trainer asserts it at each descent


def check_state_is_what_grow_made(lab: Lab) -> None:
    """Between tasks the state has the names, shapes and types that ``grow`` gave it."""
    experiment = lab.experiment()
    rebuilt = experiment.fresh()
    for moment in lab.trace():
        experiment.grow(rebuilt, moment.task)
        made = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in rebuilt.state_dict().items()}
        kept = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in moment.state.items()}
        extra, missing = sorted(kept.keys() - made.keys()), sorted(made.keys() - kept.keys())
        assert not extra, f"carried after task {moment.task.index}, but not made by grow: {', '.join(extra)}"
        assert not missing, f"made by grow, but gone after task {moment.task.index}: {', '.join(missing)}"
        assert made == kept, f"shapes or types differ from what grow made: {[n for n in made if made[n] != kept[n]]}"


def check_nothing_is_carried_outside_the_state(lab: Lab) -> None:
    """Between tasks no tensor, array or image is held anywhere but in the state: no hidden memory."""

    def watch(strategy: Strategy) -> None:
        inside = {tensor.data_ptr() for tensor in strategy.state_dict().values()}
        inside |= {tensor.data_ptr() for tensor in strategy.buffers()}  # rebuilt by the constructor or grow
        hidden = [where for where, pointer in hoard(strategy) if pointer not in inside]
        assert not hidden, f"held outside the state_dict: {', '.join(sorted(set(hidden)))}"

    list(lab.moments(lab.experiment(), watch=watch))


def check_rebuilt_strategy_goes_on_alike(lab: Lab) -> None:
    """Written to disk, thrown away, rebuilt and loaded after each task, a run ends with the same bits."""
    for one, two in zip(lab.trace(), lab.trace(rebuild=True), strict=True):
        changed = equal_states(one.state, two.state) + equal_states(one.exemplars, two.exemplars)
        assert not changed, (
            f"rebuilt between tasks, the state after task {one.task.index} differs: {', '.join(changed)}"
        )
        assert torch.equal(one.scores, two.scores), f"rebuilt between tasks, scores differ after task {one.task.index}"


def check_interrupted_training_goes_on_alike(lab: Lab) -> None:
    """Stopped inside a task and resumed from its checkpoint, a run ends with the same bits."""

    class Stop(Exception):
        """The power cut."""

    class Cut(Progress):
        left = 13  # epochs until the power goes

        def epoch_starts(self, *_: Any) -> None:
            self.left -= 1
            if not self.left:
                raise Stop

    whole = lab.trace()[-1]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        cut = Cut(Progress.silent().console)
        try:
            run(lab.experiment(), checkpoints=checkpoints, checkpoint_every=2, progress=cut)
            return  # the strategy does not train by gradients, so there is nothing to interrupt
        except Stop:
            pass
        _, strategy, exemplars = run(lab.experiment(), checkpoints=checkpoints, checkpoint_every=2, resume=True)
    changed = equal_states(whole.state, dict(strategy.state_dict()))
    changed += equal_states(whole.exemplars, exemplars.state())
    assert not changed, f"interrupted inside a task and resumed, the final state differs in {', '.join(changed)}"


def check_touches_no_past_or_test_image(lab: Lab) -> None:
    """Training images are read in their own task alone, test images never."""
    lab.trace()  # every set stands behind a guard that is open only when it may be read


def check_quota_is_kept(lab: Lab) -> None:
    """There are never more exemplars than the memory allows, each of a class seen, unchanged from its data."""
    memory = lab.memory()
    known = {image.tobytes() for image in toy_dataset().train.raw()}
    for moment in lab.trace():
        labels = moment.exemplars["labels"]
        capacity = memory.capacity(moment.task.n_seen)
        assert capacity is None or len(labels) <= capacity, f"{len(labels)} exemplars where {capacity} are allowed"
        assert not len(labels) or int(labels.max()) < moment.task.n_seen, "an exemplar of a class not seen yet"
        strange = [i for i, image in enumerate(moment.exemplars["images"].numpy()) if image.tobytes() not in known]
        assert not strange, f"exemplars {strange} are not training images"


def check_exemplar_free_means_none(lab: Lab) -> None:
    """A strategy tagged exemplar-free is refused exemplars; another one takes them."""
    experiment = lab.experiment()
    experiment.memory = Memory(exemplars=QUOTA_TOTAL)
    refused = False
    try:
        experiment.check()
    except UserError:
        refused = True
    assert refused == (lab.strategy.exemplar_free or lab.strategy.needs_all_data), "the tag and the behaviour differ"


def check_bytes_are_as_planned(lab: Lab) -> None:
    """Grown on the meta device, without data, the strategy has the bytes that a run then measures."""
    for row, moment in zip(plan(lab.experiment()), lab.trace(), strict=True):
        assert row["bytes"] == dict(moment.size), f"planned {row['bytes']}, measured {dict(moment.size)}"


def check_takes_tasks_of_any_size(lab: Lab) -> None:
    """Tasks of different sizes and a first task of one class run to the end with finite scores."""
    for moment in lab.trace(sizes=(1, 4, 1)):
        assert moment.scores.shape[1] == moment.task.n_seen
        assert torch.isfinite(moment.scores).all()


def check_survives_classes_with_few_images(lab: Lab) -> None:
    """A class with fewer images than the exemplar quota is kept whole and scored."""
    last = lab.trace()[-1]
    quota = lab.memory().quota(last.task.n_seen)
    kept = np.bincount(last.exemplars["labels"].numpy(), minlength=len(COUNTS))
    expected = [count if quota is None else min(count, quota) for count in COUNTS]
    assert kept.tolist() == expected, f"exemplars by class {kept.tolist()}, due {expected}"
    assert torch.isfinite(last.scores).all()


def check_learns_streams_as_tagged(lab: Lab) -> None:
    """Tagged as not needing boundaries, a strategy learns a stream with finite scores; else it is refused."""
    experiment, refused = lab.stream_experiment(), False
    try:
        experiment.check()
    except UserError:
        refused = True
    assert refused == lab.strategy.needs_boundaries, "the tag and the behaviour differ"
    for moment in [] if refused else lab.moments(experiment, rebuild=True):
        expected = (len(moment.scores), moment.task.n_seen)
        assert moment.scores.shape == expected, f"scores {tuple(moment.scores.shape)} where {expected} are due"
        assert torch.isfinite(moment.scores).all(), f"scores after piece {moment.task.index} are not finite"


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


# --- running them -----------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """One check's result: its name, its promise, and what was wrong (None: kept)."""

    check: str
    promise: str
    error: str | None


def all_checks() -> dict[str, Callable[[Lab], None]]:
    """Every check by name, in the order of this file."""
    return {n.removeprefix("check_"): f for n, f in globals().items() if n.startswith("check_") and callable(f)}


def run_checks(
    strategy: type[Strategy],
    init_args: dict[str, Any] | None = None,
    backbone: Callable[..., nn.Module] = TinyNet,
) -> list[Outcome]:
    """Run every check on a strategy.

    Args:
        strategy: the class.
        init_args: hyper-parameters other than the defaults.
        backbone: makes a backbone from ``in_channels``, for strategies that need more than ``TinyNet`` offers.

    Returns:
        One outcome for each check.
    """
    lab = Lab(strategy, init_args, backbone)
    return [Outcome(name, (check.__doc__ or "").strip(), failure(check, lab)) for name, check in all_checks().items()]


def failure(check: Callable[[Lab], None], lab: Lab) -> str | None:
    """What a check found wrong, None if the promise is kept. An exception of the strategy breaks the promise, too."""
    try:
        check(lab)
    except AssertionError as error:
        return str(error) or "broken"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def report(argv: list[str]) -> int:
    """Check the strategy that a command line names and print every promise; 0 if all are kept, else 1.

    Args:
        argv: the class path or name of a strategy, then ``name=value`` for hyper-parameters other than the defaults and
            ``backbone=package.module.callable`` for another backbone.

    Raises:
        UserError: no such strategy, or a word that is not ``name=value``.
    """
    import yaml
    from rich.console import Console

    from cil.config import find_class
    from cil.nets.network import find_backbone

    if not argv or argv[0] in ("-h", "--help"):
        raise UserError("usage: check_strategy.py package.module.Class [name=value ...] [backbone=package.module.make]")
    options: dict[str, Any] = {}
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not name=value")
        options[name] = yaml.safe_load(value)
    backbone = find_backbone(options.pop("backbone")) if "backbone" in options else TinyNet
    console = Console()
    outcomes = run_checks(find_class("strategy", argv[0]), options, backbone)
    for outcome in outcomes:
        mark = "[green]kept  [/green]" if outcome.error is None else "[red]BROKEN[/red]"
        console.print(f"{mark} {outcome.check.replace('_', ' ')}", highlight=False)
        if outcome.error is not None:
            console.print(f"       promise: {outcome.promise}", markup=False, highlight=False)
            console.print(f"       found:   {outcome.error}", markup=False, highlight=False)
    broken = sum(outcome.error is not None for outcome in outcomes)
    console.print(f"{len(outcomes) - broken} of {len(outcomes)} promises kept", highlight=False)
    return 1 if broken else 0
