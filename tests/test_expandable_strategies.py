"""DER, MEMO and FOSTER add networks: what grows, what stays as it is, what each stage learns and by which loss."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cil.augmentation import Augmentation
from cil.checkpoint import Checkpoints
from cil.data import ImageSet
from cil.lab import QUOTA_TOTAL, Lab, TinyNet, toy_dataset, toy_scenario
from cil.memory.exemplars import Memory
from cil.memory.ledger import measure
from cil.nets.heads import LinearHead
from cil.nets.network import Model, Network
from cil.ops.freezing import train_mode
from cil.run import run
from cil.scenario import Task
from cil.strategy import Strategy
from cil.trainer import DivergedError, Place, Trainer
from strategies.der import DER
from strategies.foster import FOSTER, Pair
from strategies.memo import MEMO

WIDTH = TinyNet.num_features
NAMES = tuple(TinyNet().state_dict())
STEM = tuple(name for name in NAMES if name.startswith("stem."))
BODY = tuple(name for name in NAMES if name.startswith("body."))
HEAD = ("weight", "bias")
SIZES = (2, 2, 1, 1)  # the fourth class, of the second task, has two training images
RATES = {"epochs": 3, "lr": 0.05, "schedule": "cosine", "per_task": {1: {"epochs": 2, "lr": 0.02}}}
BATCH = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(5))

State = dict[str, Tensor]


# --- a small experiment, watched -------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One call of ``descend``: what it was given, the state before and after it, and the loss of a batch after it."""

    data: np.ndarray  # images of each class
    replay: np.ndarray
    images: ImageSet
    epochs: int  # of the trainer, before
    learns: set[str]
    before: State
    after: State = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    epochs_after: int = 0
    loss: float = 0.0
    y: list[int] = field(default_factory=list)


@dataclass
class Course:
    """One task: the state that ``grow`` made, the stages, and what was carried after the end."""

    grown: State
    stages: list[Stage] = field(default_factory=list)
    ended: State = field(default_factory=dict)
    label: str = ""
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    exemplars: np.ndarray = field(default_factory=lambda: np.empty(0))
    bytes: dict[str, int] = field(default_factory=dict)


def called(value: object) -> str:
    """A parameter's name in a report."""
    return value.__name__ if isinstance(value, type) else str(value)


def state_of(module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Watched(Trainer):
    """Notes what each stage was given and what it did."""

    def __init__(self, courses: list[Course], **options: Any) -> None:
        super().__init__(**options)
        self.courses = courses

    def descend(self, strategy, data, replay=None, *, epochs=None):
        kept = np.zeros(6, dtype=np.int64) if replay is None else replay.counts(6)
        grouped = {id(parameter) for group in strategy.parameter_groups() for parameter in group["params"]}
        learns = {name for name, parameter in strategy.named_parameters() if id(parameter) in grouped}
        assert learns == {name for name, parameter in strategy.named_parameters() if parameter.requires_grad}
        stage = Stage(data.counts(6), kept, data, self.epochs, learns, state_of(strategy))
        self.courses[-1].stages.append(stage)
        super().descend(strategy, data, replay, epochs=epochs)
        stage.after, stage.epochs_after = state_of(strategy), self.epochs
        stage.y = [k % strategy.model.head.n_classes for k in range(len(BATCH))]
        with torch.no_grad():
            stage.loss = strategy.loss(BATCH, torch.tensor(stage.y)).item()

    def run_epoch(self, strategy, data, optimizer, stage, epoch):
        loss = super().run_epoch(strategy, data, optimizer, stage, epoch)
        self.courses[-1].stages[-1].rates.append(optimizer.param_groups[0]["lr"])
        return loss


def drive(kind, *, sizes=SIZES, memory=None, trainer=None, **options) -> list[Course]:
    """Learn the toy tasks and note, for each, what happened."""
    courses: list[Course] = []
    experiment = Lab(kind, options).experiment(sizes=sizes)
    experiment.trainer = Watched(courses, **{"batch_size": 12, **(trainer or RATES)})
    experiment.memory, experiment.evaluators = memory or experiment.memory, ("linear",)
    grow = experiment.grow

    def noted(strategy, task):
        grow(strategy, task)
        courses.append(Course(state_of(strategy)))

    def after(records, strategy, exemplars):
        course = courses[-1]
        course.ended, course.label, course.bytes = state_of(strategy), strategy.label, records[-1]["bytes"]
        course.exemplars = np.bincount(exemplars.labels, minlength=6)
        with torch.no_grad():
            course.scores = strategy(BATCH)

    experiment.grow = noted
    run(experiment, on_task=after)
    return courses


@functools.cache
def watched(kind, **options) -> list[Course]:
    """The same experiment for every test that only looks at it."""
    return drive(kind, **options)


def part(state: State, prefix: str) -> State:
    """The tensors under a prefix, by what follows it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in state.items() if name.startswith(f"{prefix}.")}


def differing(one: State, other: State) -> list[str]:
    """Names in which two states differ in any bit."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name].numpy().tobytes() != other[name].numpy().tobytes()]


def changed_everywhere(one: State, other: State) -> bool:
    """Whether every parameter and statistic has moved."""
    return len(differing(one, other)) == len(one)


def numbers(names) -> int:
    """Values of these parameters of a ``TinyNet``."""
    sizes = dict(TinyNet().named_parameters())
    return sum(sizes[name].numel() for name in names if name in sizes)


# --- losses by loops -------------------------------------------------------------------------------------------------


def rows_of(net: State, x: Tensor = BATCH) -> list[list[float]]:
    """Features of a ``TinyNet`` in this state, as it predicts."""
    fresh = TinyNet()
    fresh.load_state_dict(net)
    with torch.no_grad():
        return fresh.eval()(x).double().tolist()


def joined(*parts: list[list[float]]) -> list[list[float]]:
    """Features of several networks, one after the other."""
    return [[value for piece in pieces for value in piece] for pieces in zip(*parts, strict=True)]


def scores_of(rows: list[list[float]], head: State) -> list[list[float]]:
    weight, bias = head["weight"].double().tolist(), head["bias"].double().tolist()
    return [
        [b + sum(w * value for w, value in zip(line, row, strict=True)) for line, b in zip(weight, bias, strict=True)]
        for row in rows
    ]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(logits: list[list[float]], y: list[int], divisors: list[float] | None = None) -> float:
    total = 0.0
    for row, label in zip(logits, y, strict=True):
        divided = row if divisors is None else [value / d for value, d in zip(row, divisors, strict=True)]
        total -= math.log(softmax(divided)[label])
    return total / len(y)


def distilled(
    logits: list[list[float]], target: list[list[float]], temperature: float, weights: list[float] | None = None
) -> float:
    total = 0.0
    for z, t in zip(logits, target, strict=True):
        soft = [p * w for p, w in zip(softmax(t, temperature), weights or [1.0] * len(t), strict=True)]
        q = softmax(z[: len(t)], temperature)
        total -= sum(p / sum(soft) * math.log(value) for p, value in zip(soft, q, strict=True))
    return total / len(logits)


def auxiliary_labels(y: list[int], n_old: int) -> list[int]:
    return [0 if label < n_old else label - n_old + 1 for label in y]


def aligned(head: Tensor, n_old: int) -> Tensor:
    """The head's weight with its new rows as long, on average, as its old ones."""
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in head.double().tolist()]
    gamma = (sum(lengths[:n_old]) / n_old) / (sum(lengths[n_old:]) / (len(lengths) - n_old))
    out = head.clone()
    out[n_old:] *= gamma
    return out


def old_and_new(courses: list[Course]) -> list[tuple[int, int, Course]]:
    """(K_old, K, course) of each task after the first."""
    starts = np.cumsum((0, *SIZES)).tolist()
    return [(starts[index], starts[index + 1], course) for index, course in enumerate(courses)][1:]


# --- what DER and MEMO carry -----------------------------------------------------------------------------------------

RETRAINING = [{}, {"temperature": 3.0, "retrain_epochs": 0.5}]
ALIGNING = [(DER, {"balance": "align", "auxiliary": 0.7}, True), (DER, {"balance": "none", "auxiliary": 0.0}, False)]
ALIGNING += [(MEMO, {"auxiliary": 0.7}, True), (MEMO, {"few_classes": 1, "align": False}, False)]
SHALLOW = [  # whether the shared part goes on learning after a first task of two classes
    ({"auxiliary": 0.7}, True),
    ({"few_classes": 1, "align": False}, False),
    ({"train_shallow": "yes", "few_classes": 1}, True),
    ({"train_shallow": "no", "auxiliary": 0.0}, False),
]
GROWING = [(DER, RETRAINING[0]), (DER, RETRAINING[1]), (DER, ALIGNING[0][1]), (DER, ALIGNING[1][1])]
GROWING += [(MEMO, options) for options, _ in SHALLOW]


def specialised(kind, index: int) -> str:
    """Where the network of a task is in the state."""
    if index:
        return f"later.{index - 1}"
    return "model.backbone" if kind is DER else "model.backbone.body"


@pytest.mark.parametrize(("kind", "options"), GROWING, ids=called)
def test_the_state_grows_by_exactly_one_network_a_task(kind, options):
    own = NAMES if kind is DER else [name.removeprefix("body.") for name in BODY]
    expected = {f"model.backbone.{name}" for name in NAMES} | {f"model.head.{name}" for name in HEAD}
    for index, course in enumerate(watched(kind, **options)):
        if index:
            expected |= {f"{specialised(kind, index)}.{name}" for name in own}
        assert set(course.grown) == set(course.ended) == expected
        head = 4 * sum(SIZES[: index + 1]) * ((index + 1) * WIDTH + 1)
        assert course.bytes["head"] == head
        networks = numbers(NAMES) + index * numbers(NAMES if kind is DER else BODY)
        assert course.bytes["parameters"] == 4 * networks + head


@pytest.mark.parametrize(("kind", "options"), GROWING, ids=called)
def test_what_a_task_has_learned_is_never_touched_again(kind, options):
    courses = watched(kind, **options)
    for index, course in enumerate(courses):
        where = specialised(kind, index)
        learned = part(course.ended, where)
        assert any(name.endswith("running_mean") for name in learned)
        assert changed_everywhere(part(course.grown, where), learned)
        for later in courses[index + 1 :]:
            states = [later.grown, later.ended, *(state for s in later.stages for state in (s.before, s.after))]
            for state in states:
                assert not differing(part(state, where), learned)


@pytest.mark.parametrize(("kind", "options"), GROWING, ids=called)
def test_a_new_network_starts_as_the_one_before_it(kind, options):
    courses = watched(kind, **options)
    for index in range(1, len(courses)):
        before, now = courses[index - 1].ended, courses[index]
        former = part(before, specialised(kind, index - 1))
        for state in (now.grown, now.stages[0].before):
            assert not differing(part(state, specialised(kind, index)), former)


@pytest.mark.parametrize(("kind", "options"), GROWING, ids=called)
def test_the_old_head_is_a_corner_of_the_new_one(kind, options):
    courses = watched(kind, **options)
    for index, (n_old, n_seen, course) in enumerate(old_and_new(courses), start=1):
        old = part(courses[index - 1].ended, "model.head")
        for state in (course.grown, course.stages[0].before):
            new = part(state, "model.head")
            assert new["weight"].shape == (n_seen, (index + 1) * WIDTH)
            assert torch.equal(new["weight"][:n_old, : index * WIDTH], old["weight"])
            assert torch.equal(new["bias"][:n_old], old["bias"])


def scored_by_hand(kind, state: State, n_tasks: int) -> tuple[list[list[list[float]]], list[list[float]]]:
    """(features of each task's network, scores) of a state, by loops from the features on."""
    backbone = part(state, "model.backbone")
    nets = [backbone]
    for index in range(1, n_tasks):
        later = part(state, f"later.{index - 1}")
        nets.append(later if kind is DER else {**backbone, **{f"body.{name}": value for name, value in later.items()}})
    rows = [rows_of(net) for net in nets]
    return rows, scores_of(joined(*rows), part(state, "model.head"))


@pytest.mark.parametrize(("kind", "options"), GROWING, ids=called)
def test_scores_are_the_head_over_all_features(kind, options):
    for index, course in enumerate(watched(kind, **options)):
        _, expected = scored_by_hand(kind, course.ended, index + 1)
        np.testing.assert_allclose(course.scores.numpy(), expected, rtol=1e-4, atol=1e-5)
        assert course.label == kind.__name__


@pytest.mark.parametrize(("kind", "options"), GROWING, ids=called)
def test_the_loss_is_that_of_all_features_plus_that_of_the_new_ones(kind, options):
    courses = watched(kind, **options)
    weight = options.get("auxiliary", 1.0)
    first = courses[0].stages[0]
    assert first.loss == pytest.approx(cross_entropy(scored_by_hand(kind, first.after, 1)[1], first.y), rel=1e-4)
    for index, (n_old, n_seen, course) in enumerate(old_and_new(courses), start=1):
        stage = course.stages[0]
        rows, logits = scored_by_hand(kind, stage.after, index + 1)
        expected = cross_entropy(logits, stage.y)
        assert {label >= n_old for label in stage.y} == {False, True}
        if weight:
            helper = part(stage.after, "helper")
            assert helper["weight"].shape == (n_seen - n_old + 1, WIDTH)
            own = cross_entropy(scores_of(rows[-1], helper), auxiliary_labels(stage.y, n_old))
            assert own > 1e-3
            expected += weight * own
        else:
            assert not part(stage.after, "helper")
        assert stage.loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kind", "options", "balanced"), ALIGNING, ids=called)
def test_the_new_rows_become_as_long_as_the_old_ones(kind, options, balanced):
    courses = watched(kind, **options)
    assert not differing(courses[0].ended, courses[0].stages[-1].after)
    for n_old, _, course in old_and_new(courses):
        assert len(course.stages) == 1
        learned = {n: t for n, t in course.stages[0].after.items() if not n.startswith("helper.")}
        if not balanced:
            assert not differing(course.ended, learned)
            continue
        assert differing(course.ended, learned) == ["model.head.weight"]
        before, after = learned["model.head.weight"], course.ended["model.head.weight"]
        assert torch.equal(after[:n_old], before[:n_old])
        torch.testing.assert_close(after, aligned(before, n_old), rtol=1e-5, atol=0)
        norms = after.double().norm(dim=1)
        assert float(norms[:n_old].mean()) == pytest.approx(float(norms[n_old:].mean()), rel=1e-6)


# --- DER: the second stage -------------------------------------------------------------------------------------------


def test_der_learns_its_newest_backbone_the_head_and_a_helper():
    for index, course in enumerate(watched(DER)):
        stage = course.stages[0]
        learned = {name for name, _ in TinyNet().named_parameters()}
        expected = {f"{specialised(DER, index)}.{name}" for name in learned} | {f"model.head.{name}" for name in HEAD}
        assert stage.learns == expected | ({f"helper.{name}" for name in HEAD} if index else set())
        assert stage.data.tolist() == toy_scenario(SIZES).tasks[index].train.counts(6).tolist()
        assert len(course.stages) == (2 if index else 1)


def test_der_learns_its_head_anew_on_as_many_images_of_each_class():
    courses = watched(DER)
    kept = [[9, 9, 0, 0, 0, 0], [4, 4, 4, 2, 0, 0], [3, 3, 3, 2, 3, 0]]
    taken = [[0, 0, 9, 2, 0, 0], [0, 0, 0, 0, 4, 0], [0, 0, 0, 0, 0, 3]]
    assert [course.exemplars.tolist() for course in courses[:-1]] == kept
    for index, course in enumerate(courses[1:]):
        first, second = course.stages
        assert first.replay.tolist() == second.replay.tolist() == kept[index]
        assert second.data.tolist() == taken[index]
        train = [image.tobytes() for image in toy_scenario(SIZES).tasks[index + 1].train.raw()]
        images = [image.tobytes() for image in second.images.raw()]
        assert len(set(images)) == len(images)
        assert set(images) <= set(train)


def test_der_draws_the_balanced_images_from_the_whole_class():
    courses = watched(DER)
    train = toy_scenario(SIZES).tasks[1].train.of_classes([2])
    order = [image.tobytes() for image in train.raw()]
    chosen = [order.index(image.tobytes()) for image in courses[1].stages[1].images.of_classes([2]).raw()]
    assert len(chosen) == 9
    assert sorted(chosen) != list(range(9))


def test_der_learns_nothing_but_a_fresh_head_in_the_second_stage():
    for index, (_, n_seen, course) in enumerate(old_and_new(watched(DER)), start=1):
        first, second = course.stages
        assert second.learns == {"model.head.weight", "model.head.bias"}
        assert not part(second.before, "helper")
        networks = {name: tensor for name, tensor in second.before.items() if not name.startswith("model.head.")}
        assert not differing(networks, {name: second.after[name] for name in networks})
        assert not differing(networks, {name: first.after[name] for name in networks})
        learned, fresh, last = (part(s, "model.head") for s in (first.after, second.before, second.after))
        assert (fresh["weight"] != learned["weight"]).all()
        bound = 1 / math.sqrt((index + 1) * WIDTH)
        assert fresh["weight"].shape == (n_seen, (index + 1) * WIDTH)
        assert float(fresh["weight"].abs().max()) <= bound
        assert float(fresh["bias"].abs().max()) <= bound
        assert changed_everywhere(fresh, last)
        assert not differing(course.ended, second.after)


@pytest.mark.parametrize("options", RETRAINING, ids=called)
def test_der_divides_scores_while_it_learns_the_head_anew(options):
    temperature = options.get("temperature", 5.0)
    for index, course in enumerate(watched(DER, **options)[1:], start=1):
        stage = course.stages[1]
        _, logits = scored_by_hand(DER, stage.after, index + 1)
        expected = cross_entropy(logits, stage.y, [temperature] * len(logits[0]))
        assert stage.loss == pytest.approx(expected, rel=1e-4)
        assert stage.loss != pytest.approx(cross_entropy(logits, stage.y), rel=1e-3)


def test_der_without_exemplars_has_no_second_stage():
    courses = drive(DER, sizes=(2, 3, 1), memory=Memory(exemplars=0), trainer={"epochs": 1})
    assert [len(course.stages) for course in courses] == [1, 1, 1]
    assert not any(stage.replay.any() for course in courses for stage in course.stages)


# --- MEMO: the shared part -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "learns"), SHALLOW, ids=called)
def test_memo_learns_its_shared_part_when_it_is_told_to(options, learns):
    courses = watched(MEMO, **options)
    learned = {name for name, _ in TinyNet().named_parameters()}
    body = {name.removeprefix("body.") for name in BODY} & {name.removeprefix("body.") for name in learned}
    for index, course in enumerate(courses):
        (stage,) = course.stages
        stem = {name: stage.before[f"model.backbone.{name}"] for name in STEM}
        after = {name: stage.after[f"model.backbone.{name}"] for name in STEM}
        assert changed_everywhere(stem, after) if learns or not index else not differing(stem, after)
        expected = {f"{specialised(MEMO, index)}.{name}" for name in body} | {f"model.head.{name}" for name in HEAD}
        if learns or not index:
            expected |= {f"model.backbone.{name}" for name in STEM if name in learned}
        if index and options.get("auxiliary", 1.0):
            expected |= {f"helper.{name}" for name in HEAD}
        assert stage.learns == expected
        replay = courses[index - 1].exemplars if index else np.zeros(6, dtype=np.int64)
        assert stage.replay.tolist() == replay.tolist()


def structure(new: range, index: int) -> Task:
    """A task without data."""
    return Task(index, new, tuple(new), ImageSet(np.empty((0, 8, 8, 1), np.uint8), np.empty(0)))


def second_task(kind, first: int = 2, new: int = 2, **options) -> Strategy:
    """A strategy about to learn its second task."""
    torch.manual_seed(0)
    strategy = kind(Network(TinyNet(), LinearHead(WIDTH)), **options)
    for task in (structure(range(first), 0), structure(range(first, first + new), 1)):
        strategy.grow(task)
        strategy.requires_grad_(True)
        strategy.begin(task)
    return strategy


@pytest.mark.parametrize(("first", "learns"), [(1, True), (19, True), (20, True), (21, False), (50, False)])
def test_memo_takes_twenty_classes_for_few(first, learns):
    strategy = second_task(MEMO, first)
    stem = [parameter.requires_grad for parameter in strategy.model.backbone.stem.parameters()]
    assert stem == [learns] * 3
    assert not any(parameter.requires_grad for parameter in strategy.model.backbone.body.parameters())
    assert all(parameter.requires_grad for parameter in strategy.later.parameters())
    train_mode(strategy)
    assert strategy.model.backbone.stem[1].training == learns
    assert not strategy.model.backbone.body[1].training
    assert strategy.later[0][1].training


def test_memo_asks_how_large_the_first_task_was_and_no_other():
    strategy = second_task(MEMO, 2, 60)
    strategy.grow(structure(range(62, 65), 2))
    strategy.requires_grad_(True)
    strategy.begin(structure(range(62, 65), 2))
    assert all(parameter.requires_grad for parameter in strategy.model.backbone.stem.parameters())


def test_gradients_reach_the_shared_part_through_frozen_stages():
    strategy = second_task(MEMO, auxiliary=0.0).double().eval()
    with torch.no_grad():
        strategy.model.head.weight[:, WIDTH:] = 0  # the new stage has no say
    x, y = BATCH.double(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    strategy.loss(x, y).backward()
    weight = strategy.model.backbone.stem[0].weight
    assert all(parameter.grad is None for parameter in strategy.model.backbone.body.parameters())
    assert not any(parameter.grad.any() for parameter in strategy.later.parameters())
    for place in [(0, 0, 0, 0), (3, 0, 1, 2), (7, 0, 2, 2)]:
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                kept = weight[place].item()
                weight[place] += step
                losses.append(strategy.loss(x, y).item())
                weight[place] = kept
        slope = (losses[0] - losses[1]) / 2e-5
        assert abs(slope) > 1e-6
        assert weight.grad[place].item() == pytest.approx(slope, rel=1e-4)


def test_no_gradient_reaches_a_shared_part_that_is_frozen():
    strategy = second_task(MEMO, train_shallow="no")
    train_mode(strategy)
    strategy.loss(BATCH, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])).backward()
    assert all(parameter.grad is None for parameter in strategy.model.backbone.parameters())
    assert all(parameter.grad.any() for parameter in strategy.later[0][0].parameters())


# --- FOSTER ----------------------------------------------------------------------------------------------------------

COMPRESSED = {f"model.backbone.{name}" for name in NAMES} | {f"model.head.{name}" for name in HEAD}
PAIR = {f"pair.{one}.{name}" for one in ("old", "new") for name in NAMES} | {f"pair.head.{name}" for name in HEAD}
TUNED = {"temperature": 3.0, "keep": 0.6, "beta_boost": 0.9, "beta_compress": 0.8, "compress_epochs": 0.5}
VARIANTS = [
    {"scored": "compressed"},
    {"scored": "boosted", **TUNED},
    {"scored": "compressed", "beta_boost": 0.0, "beta_compress": 0.0},
]


def of(state: State, names: set[str]) -> State:
    return {name: state[name] for name in names}


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_carries_the_network_that_it_scores_and_says_which(options):
    for index, course in enumerate(watched(FOSTER, **options)):
        boosted = options["scored"] == "boosted" and index > 0
        assert set(course.grown) == set(course.ended) == COMPRESSED | (PAIR if boosted else set())
        assert course.bytes["backbone"] == 4 * numbers(NAMES) * (3 if boosted else 1)
        n_seen = sum(SIZES[: index + 1])
        assert course.bytes["head"] == 4 * n_seen * (WIDTH + 1 + (2 * WIDTH + 1 if boosted else 0))
        assert course.label == f"FOSTER ({options['scored']})"


def foster_scores(state: State, which: str) -> list[list[float]]:
    """Scores of the single network or of the pair, by loops from the features on."""
    if which == "compressed":
        return scores_of(rows_of(part(state, "model.backbone")), part(state, "model.head"))
    rows = joined(rows_of(part(state, "pair.old")), rows_of(part(state, "pair.new")))
    return scores_of(rows, part(state, "pair.head"))


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_predicts_with_the_network_that_it_names(options):
    for index, course in enumerate(watched(FOSTER, **options)):
        expected = foster_scores(course.ended, options["scored"] if index else "compressed")
        np.testing.assert_allclose(course.scores.numpy(), expected, rtol=1e-4, atol=1e-5)
        if index and options["scored"] == "boosted":
            assert not np.allclose(course.scores.numpy(), foster_scores(course.ended, "compressed"), rtol=1e-2)


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_starts_the_pair_from_the_compressed_network(options):
    courses = watched(FOSTER, **options)
    for index, (n_old, n_seen, course) in enumerate(old_and_new(courses), start=1):
        before = courses[index - 1].ended
        for state in [course.stages[0].before, *([course.grown] if options["scored"] == "boosted" else [])]:
            for one in ("old", "new"):
                assert not differing(part(state, f"pair.{one}"), part(before, "model.backbone"))
            head, old = part(state, "pair.head"), part(before, "model.head")
            assert head["weight"].shape == (n_seen, 2 * WIDTH)
            assert torch.equal(head["weight"][:n_old, :WIDTH], old["weight"])
            assert torch.equal(head["bias"][:n_old], old["bias"])


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_boosts_without_touching_the_old_network(options):
    courses = watched(FOSTER, **options)
    learned = {name for name, _ in TinyNet().named_parameters()}
    for course in courses[1:]:
        boost = course.stages[0]
        expected = {f"pair.new.{name}" for name in learned} | {
            f"{h}.{n}" for h in ("pair.head", "helper") for n in HEAD
        }
        assert boost.learns == expected
        moves = ("pair.new.", "pair.head.", "helper.")
        changed = set(differing(boost.before, boost.after))
        assert changed == {name for name in boost.before if name.startswith(moves)}
        still = boost.before.keys() - changed
        assert still >= COMPRESSED | {f"pair.old.{name}" for name in NAMES}


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_compresses_without_touching_the_pair(options):
    courses = watched(FOSTER, **options)
    for index, (n_old, _, course) in enumerate(old_and_new(courses), start=1):
        boost, compress = course.stages
        assert compress.learns == {name for name in COMPRESSED if "running" not in name and "num_" not in name}
        for state in (compress.before, compress.after):
            assert set(state) >= COMPRESSED | PAIR
            rest = set(state) - COMPRESSED
            assert not differing(of(state, rest), of(boost.after, rest))
        before = courses[index - 1].ended
        assert not differing(part(compress.before, "model.backbone"), part(before, "model.backbone"))
        assert not differing(part(compress.before, "model"), part(course.grown, "model"))
        assert torch.equal(compress.before["model.head.weight"][:n_old], before["model.head.weight"])
        assert torch.equal(compress.before["model.head.bias"][:n_old], before["model.head.bias"])
        assert changed_everywhere(part(compress.before, "model"), part(compress.after, "model"))
        assert not differing(course.ended, of(compress.after, set(course.ended)))


def counts_by_hand(index: int) -> list[int]:
    """Images of each class seen in a task: its own and the exemplars kept before it, from the data alone."""
    seen = sum(SIZES[:index])
    whole = toy_dataset().train.counts(6).tolist()
    new = whole[seen : seen + SIZES[index]]
    return [min(count, QUOTA_TOTAL // seen) for count in whole[:seen]] + new


def effective(counts: list[int], beta: float) -> list[float]:
    """Weights by the effective number of images, by loops, with mean 1."""
    inverse = [1 / sum(beta**power for power in range(count)) for count in counts]
    return [value * len(counts) / sum(inverse) for value in inverse]


def test_the_counts_by_hand_are_those_of_the_stages():
    assert counts_by_hand(1) == [9, 9, 24, 2]
    assert counts_by_hand(2) == [4, 4, 4, 2, 24]
    for index, course in enumerate(watched(FOSTER, scored="compressed")[1:], start=1):
        boost, compress = course.stages
        for stage in (boost, compress):
            assert (stage.data + stage.replay)[: len(counts_by_hand(index))].tolist() == counts_by_hand(index)
        assert np.array_equal(boost.images.raw(), compress.images.raw())


def test_a_class_without_images_weighs_like_one_with_a_single_image():
    class Weighed(Listed):
        def descend(self, strategy, data, replay=None, *, epochs=None):
            self.lengths.append(strategy.weights.tolist())

    strategy, trainer = second_task(FOSTER, beta_compress=0.5), Weighed(1)
    strategy.fit(toy_scenario((2, 2, 2)).tasks[1], None, trainer)
    for weights, beta in zip(trainer.lengths, (0.97, 0.5), strict=True):
        assert weights == pytest.approx(effective([1, 1, 24, 2], beta), rel=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_minimises_the_losses_of_the_paper(options):
    courses = watched(FOSTER, **options)
    settings = {"temperature": 2.0, "keep": 1.0, "beta_boost": 0.97, "beta_compress": 0.97, **options}
    first = courses[0].stages[0]
    assert first.loss == pytest.approx(cross_entropy(foster_scores(first.after, "compressed"), first.y), rel=1e-4)
    for index, course in enumerate(courses[1:], start=1):
        boost, compress = course.stages
        counts = counts_by_hand(index)
        logits = foster_scores(boost.after, "pair")
        own = scores_of(rows_of(part(boost.after, "pair.new")), part(boost.after, "helper"))
        old = foster_scores(courses[index - 1].ended, "compressed")
        expected = cross_entropy(logits, boost.y, effective(counts, settings["beta_boost"]))
        expected += cross_entropy(own, boost.y) + settings["keep"] * distilled(logits, old, settings["temperature"])
        assert boost.loss == pytest.approx(expected, rel=1e-4)
        student, pair = foster_scores(compress.after, "compressed"), foster_scores(compress.after, "pair")
        weights = effective(counts, settings["beta_compress"])
        assert compress.loss == pytest.approx(distilled(student, pair, settings["temperature"], weights), rel=1e-4)


def test_a_pair_starts_with_the_old_scores_of_a_head_without_bias():
    torch.manual_seed(0)
    network = Network(TinyNet(), LinearHead(WIDTH, bias=False)).eval()
    network.head.grow(3)
    old = network(BATCH)
    network.head.grow(2)
    pair = Pair(network).eval()
    with torch.no_grad():
        pair.head.weight[:3, WIDTH:] = 0  # the new features have no say
        torch.testing.assert_close(pair.head(pair.features(BATCH))[:, :3], old)


# --- how long the stages are -----------------------------------------------------------------------------------------


class Listed(Trainer):
    """A trainer that trains nothing and notes how long each stage would be."""

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs=epochs)
        self.lengths = []

    def descend(self, strategy, data, replay=None, *, epochs=None):
        self.lengths.append(self.epochs if epochs is None else epochs)


SHARES = [
    *((Fraction(30, 170), 30 / 170, epochs) for epochs in (170, 340, 100, 17, 10, 1)),
    *((Fraction(130, 170), 130 / 170, epochs) for epochs in (170, 340, 100, 17, 10, 1)),
    *((Fraction(share).limit_denominator(1000), share, epochs) for share in (0.5, 0.001, 1.0) for epochs in (1, 7, 8)),
    (Fraction(0), 0.0, 5),
]


@pytest.mark.parametrize(("kind", "option"), [(DER, "retrain_epochs"), (FOSTER, "compress_epochs")])
@pytest.mark.parametrize(("exact", "share", "epochs"), SHARES)
def test_the_second_stage_takes_its_share_of_the_epochs_and_at_least_one(kind, option, exact, share, epochs):
    strategy, trainer = second_task(kind, **{option: share}), Listed(epochs)
    train = toy_scenario((2, 2, 2)).tasks
    strategy.fit(train[1], train[0].train, trainer)
    assert trainer.lengths == [epochs, max(1, math.ceil(exact * epochs))]


@pytest.mark.parametrize("kind", [DER, FOSTER, MEMO])
def test_a_first_task_is_learned_in_one_stage(kind):
    strategy, trainer = kind(Network(TinyNet(), LinearHead(WIDTH))), Listed(7)
    task = toy_scenario((2, 2, 2)).tasks[0]
    strategy.grow(task)
    strategy.begin(task)
    strategy.fit(task, None, trainer)
    assert trainer.lengths == [7]


def cosine(lr: float, epochs: int) -> list[float]:
    return [lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in range(epochs)]


STRETCHED = [
    (DER, RETRAINING[0], 30 / 170),
    (DER, RETRAINING[1], 0.5),
    (FOSTER, VARIANTS[0], 130 / 170),
    (FOSTER, VARIANTS[1], 0.5),
    (MEMO, SHALLOW[0][0], None),
]


@pytest.mark.parametrize(("kind", "options", "share"), STRETCHED, ids=called)
def test_the_schedule_stretches_over_each_stage(kind, options, share):
    for index, course in enumerate(watched(kind, **options)):
        whole, lr = (2, 0.02) if index == 1 else (3, 0.05)
        lengths = [whole] if share is None or not index else [whole, math.ceil(share * whole)]
        assert [len(stage.rates) for stage in course.stages] == lengths
        for stage, length in zip(course.stages, lengths, strict=True):
            assert stage.rates == pytest.approx(cosine(lr, length))
            assert stage.epochs == stage.epochs_after == whole


def placed(**options) -> Watched:
    bound = Augmentation().bind((1, 8, 8), None, None, torch.device("cpu"))
    return Watched([Course({})], **{"batch_size": 12, "lr": 0.1, **options}).at(Place(0, 0, bound))


def learner() -> Strategy:
    strategy = Strategy(Network(TinyNet(), LinearHead(WIDTH)))
    strategy.model.head.grow(2)
    return strategy


def test_epochs_of_a_stage_hold_for_that_stage_alone():
    trainer, data = placed(epochs=4, schedule="cosine"), toy_scenario((2, 4)).tasks[0].train
    for epochs in (None, 2, 6, None):
        trainer.descend(learner(), data, epochs=epochs)
        assert trainer.epochs == 4
    assert [len(stage.rates) for stage in trainer.courses[0].stages] == [4, 2, 6, 4]
    for stage in trainer.courses[0].stages:
        assert stage.rates == pytest.approx(cosine(0.1, len(stage.rates)))


def test_fractions_of_a_multistep_schedule_are_those_of_the_stage():
    trainer, data = placed(epochs=8, milestones=[0.5, 3]), toy_scenario((2, 4)).tasks[0].train
    trainer.descend(learner(), data, epochs=4)  # after 2 and after 3 epochs
    trainer.descend(learner(), data)  # after 3 and after 4 epochs
    first, second = (stage.rates for stage in trainer.courses[0].stages)
    assert first == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert second == pytest.approx([0.1] * 3 + [0.01] + [0.001] * 4)


def test_a_stage_that_fails_leaves_the_trainer_as_it_was():
    class Broken(Strategy):
        def loss(self, x, y):
            return super().loss(x, y) * math.nan

    trainer, strategy = placed(epochs=4), Broken(learner().model)
    with pytest.raises(DivergedError, match="epoch 1 of 2"):
        trainer.descend(strategy, toy_scenario((2, 4)).tasks[0].train, epochs=2)
    assert trainer.epochs == 4


# --- going on in a second stage --------------------------------------------------------------------------------------


class Cut(Watched):
    """Stops like a power cut, in the second epoch of the second stage of the second task."""

    def run_epoch(self, strategy, data, optimizer, stage, epoch):
        if (self.place.task, stage, epoch) == (1, 1, 1):
            raise KeyboardInterrupt
        return super().run_epoch(strategy, data, optimizer, stage, epoch)


@pytest.mark.parametrize(
    ("kind", "options"), [(DER, {"retrain_epochs": 1.0}), (FOSTER, {"scored": "boosted"})], ids=str
)
def test_a_second_stage_that_was_interrupted_ends_alike(kind, options, tmp_path):
    def experiment(trainer=Watched):
        made = Lab(kind, options).experiment(sizes=(2, 4))
        made.trainer = trainer([Course({})], epochs=2, batch_size=12, schedule="cosine")
        made.evaluators = ("linear",)
        return made

    _, whole, _ = run(experiment())
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(experiment(Cut), checkpoints=checkpoints, checkpoint_every=1)
    assert max(checkpoints.moments()).name == "task001-stage1-epoch0001"
    _, strategy, _ = run(experiment(), checkpoints=checkpoints, resume=True)
    assert not differing(state_of(strategy), state_of(whole))


# --- published sizes -------------------------------------------------------------------------------------------------

TENS, FIFTY = (10,) * 10, (50, *(5,) * 10)
# Zhou et al., A Model or 603 Exemplars, ICLR 2023, Tables 2-12: parameters of the networks after the last task.
TOTALS = [
    ("convnet2", TENS, 389_760, 372_480),
    ("cifar_resnet14", TENS, 1_718_560, 1_337_680),
    ("cifar_resnet20", TENS, 2_690_720, 2_100_752),
    ("cifar_resnet26", TENS, 3_662_880, 2_863_824),
    ("cifar_resnet32", TENS, 4_635_040, 3_626_896),
    ("convnet4", FIFTY, 9_968_640, 6_819_840),
]


def grown_on_meta(kind, name: str, sizes: tuple[int, ...], **options) -> tuple[Strategy, int]:
    """The strategy after the last of these tasks, and the numbers of parameters of its networks without heads."""
    with torch.device("meta"):
        strategy = kind(Model(backbone=name).build(3), **options)
        seen = 0
        for index, n_new in enumerate(sizes):
            strategy.grow(structure(range(seen, seen + n_new), index))
            seen += n_new
    assert all(tensor.is_meta for tensor in strategy.state_dict().values())
    heads = {name for name, _ in strategy.named_parameters() if ".head." in name}
    return strategy, sum(p.numel() for name, p in strategy.named_parameters() if name not in heads)


@pytest.mark.parametrize(("name", "sizes", "der", "memo"), TOTALS, ids=called)
def test_der_and_memo_have_the_published_sizes(name, sizes, der, memo):
    for kind, expected in ((DER, der), (MEMO, memo)):
        strategy, total = grown_on_meta(kind, name, sizes)
        width = strategy.model.num_features
        assert total == expected
        assert strategy.model.head.weight.shape == (100, len(sizes) * width)
        size = measure(strategy, 0, 0)
        assert size["paper"] == size["backbone"] == 4 * expected
        assert size["parameters"] == 4 * (expected + 100 * (len(sizes) * width + 1))


@pytest.mark.parametrize(("scored", "networks"), [("compressed", 1), ("boosted", 3)])
def test_foster_has_the_size_of_one_network_or_of_three(scored, networks):
    strategy, total = grown_on_meta(FOSTER, "cifar_resnet32", TENS, scored=scored)
    assert total == networks * 463_504
    heads = 100 * 65 + (100 * 129 if networks == 3 else 0)
    assert sum(parameter.numel() for parameter in strategy.parameters()) == total + heads
