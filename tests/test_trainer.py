"""The gradient loop, compared with loops written out by hand, and what it promises about seeds and failures."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cil.data.augmentation import Augmentation
from cil.data.images import FeatureSet, ImageSet
from cil.data.seeds import derive, generator, seeded
from cil.errors import UserError
from cil.learning.place import NoWatcher, Place
from cil.learning.strategy import Strategy
from cil.learning.trainer import DivergedError, Trainer, split_batches
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.freezing import freeze

SHAPE = (1, 3, 3)
CPU = torch.device("cpu")


class Tiny(nn.Module):
    """Nine pixels to four features; with batch statistics, so that train and eval mode differ."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.linear(x.flatten(1)))


class Learner(Strategy):
    """Cross-entropy; remembers the labels of each batch."""

    def __init__(self, model):
        super().__init__(model)
        self.batches = []

    def loss(self, x, y):
        self.batches.append(y.tolist())
        return super().loss(x, y)


def learner(kind=Learner, classes=3):
    with seeded(7, "weights"):
        strategy = kind(Network(Tiny(), LinearHead(4)))
        strategy.model.head.grow(classes)
    return strategy


def images(n=23, classes=3, seed=0, first=0):
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 3, 3, 1), dtype=np.uint8), first + np.arange(n) % classes)


def place(task=0, seed=0, watcher=None, **options):
    bound = Augmentation(**options).bind(SHAPE, None, None, CPU)
    return Place(task, seed, bound, watcher=watcher or NoWatcher())


def trainer(where=None, **options):
    return Trainer(**{"epochs": 2, "batch_size": 5, "lr": 0.1, **options}).at(where or place())


class Rates(NoWatcher):
    """Remembers the learning rate and the loss of each epoch."""

    def __init__(self):
        self.rates, self.losses, self.starts = [], [], []

    def epoch_starts(self, stage, epoch, epochs, steps):
        self.starts.append((stage, epoch, epochs, steps))

    def epoch_done(self, stage, epoch, epochs, loss, lr):
        self.rates.append(lr)
        self.losses.append(loss)


def weights(strategy):
    return {name: value.clone() for name, value in strategy.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- schedules -------------------------------------------------------------------------------------------------------


def rates(**options):
    """Learning rate of each epoch, as a run reports it."""
    watcher = Rates()
    trainer(place(watcher=watcher), batch_size=100, **options).descend(learner(), images(6))
    return watcher.rates


@pytest.mark.parametrize("milestones", [[3, 5], [0.5, 5], [5, 0.5], [3.0, 0.8]])
def test_multistep_decays_at_absolute_and_fractional_milestones(milestones):
    # 0.5 of 6 epochs is 3, 0.8 of them 4.8, so the sixth epoch is the first beyond it.
    expected = [0.2, 0.2, 0.2, 0.1, 0.1, 0.05]
    assert rates(epochs=6, lr=0.2, gamma=0.5, milestones=milestones) == pytest.approx(expected)


def test_multistep_without_milestones_is_constant():
    assert rates(epochs=3, lr=0.2) == rates(epochs=3, lr=0.2, schedule="constant") == [0.2] * 3


def test_the_published_schedule_of_170_epochs():
    used = Trainer(epochs=170, lr=0.1, milestones=[80, 120])
    assert [used.lr_scale(epoch) for epoch in (0, 79, 80, 119, 120, 169)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("fraction", "epochs", "first"), [(0.55, 100, 55), (0.07, 100, 7), (0.14, 50, 7)])
def test_a_fraction_means_the_epoch_that_it_names(fraction, epochs, first):
    used = Trainer(epochs=epochs, milestones=[fraction])
    assert used.lr_scale(first - 1) == 1
    assert used.lr_scale(first) == pytest.approx(0.1)


def test_cosine_goes_from_lr_to_min_lr():
    # eta = 0.1 + 0.4 * (1 + cos(pi * e / 4)) / 2
    expected = [0.5, 0.1 + 0.2 * (1 + 2**-0.5), 0.3, 0.1 + 0.2 * (1 - 2**-0.5)]
    assert rates(epochs=4, lr=0.5, min_lr=0.1, schedule="cosine") == pytest.approx(expected)


def test_cosine_equals_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, 0.01)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(epochs=7, lr=0.3, min_lr=0.01, schedule="cosine") == pytest.approx(expected)


def test_warmup_rises_linearly_then_hands_over():
    assert rates(epochs=5, lr=0.4, warmup_epochs=3, milestones=[4]) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.04])
    got = rates(epochs=5, lr=0.3, warmup_epochs=2, schedule="cosine")
    assert got == pytest.approx([0.1, 0.2, 0.3, 0.225, 0.075])  # 0.15 * (1 + cos(pi * {0, 1, 2} / 3))
    assert rates(epochs=3, lr=0.3, warmup_epochs=2, schedule="constant") == pytest.approx([0.1, 0.2, 0.3])


class TwoRates(Learner):
    """The head learns at a tenth of a rate of its own."""

    def parameter_groups(self):
        return [
            {"params": list(self.model.backbone.parameters())},
            {"params": list(self.model.head.parameters()), "lr": 0.01, "weight_decay": 0.0},
        ]


@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
def test_a_group_keeps_its_own_rate_under_the_schedule(schedule):
    strategy, seen = learner(TwoRates), []

    class Groups(NoWatcher):
        def save(self, stage, epoch, epochs, strategy, optimizer, best):
            seen.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])

    trainer(place(watcher=Groups()), schedule=schedule, milestones=[1], weight_decay=0.3).descend(strategy, images())
    later = 0.5 if schedule == "cosine" else 0.1
    assert np.allclose(seen, [[(0.1, 0.3), (0.01, 0)], [(0.1 * later, 0.3), (0.01 * later, 0)]])


# --- the loop --------------------------------------------------------------------------------------------------------


def by_hand(strategy, data, where, optimizer, epochs, rate, size=5, clip=None, smoothing=0.0):
    """The same training, written out: fresh optimiser, shuffled batches, forward, backward, step."""
    losses = []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch)
        draws = generator(where.seed, "batches", where.task, 0, epoch)
        order = torch.randperm(len(data), generator=draws)
        strategy.train()
        total = []
        for start in range(0, len(order), size):
            index = order[start : start + size]
            x = where.augmentation.train(data.gather(index), draws)
            logp = F.log_softmax(strategy.model(x), 1)
            right = logp[torch.arange(len(index)), data.labels[index]]
            loss = -((1 - smoothing) * right + smoothing * logp.mean(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                squares = sum((p.grad**2).sum() for p in strategy.parameters())
                factor = min(1.0, clip / float(squares.sqrt()))
                for p in strategy.parameters():
                    p.grad *= factor
            optimizer.step()
            total.append(float(loss.detach()))
        losses.append(sum(total) / len(total))
    strategy.eval()
    return losses


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({}, lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=2e-4)),
        ({"momentum": 0.0, "weight_decay": 0.0}, lambda p: torch.optim.SGD(p)),
        (
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, momentum=0.8, nesterov=True, weight_decay=0.1),
        ),
        ({"optimizer": "adamw", "weight_decay": 0.05}, lambda p: torch.optim.AdamW(p, weight_decay=0.05)),
        ({"clip_grad": 0.05}, lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=2e-4)),
        ({"label_smoothing": 0.3}, lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=2e-4)),
    ],
)
@pytest.mark.parametrize("augmentation", [{}, {"pad": 1, "flip": True, "brightness": 0.2}])
def test_descend_equals_a_loop_by_hand(options, make, augmentation):
    data, watcher = images(23), Rates()
    where = place(task=2, seed=5, watcher=watcher, **augmentation)
    got, expected = learner(), learner()
    trainer(where, epochs=3, schedule="multistep", milestones=[2], **options).descend(got, data)
    losses = by_hand(
        expected,
        data,
        where,
        make(expected.parameters()),
        3,
        lambda epoch: 0.1 if epoch < 2 else 0.01,
        clip=options.get("clip_grad"),
        smoothing=options.get("label_smoothing", 0.0),
    )
    for name, value in weights(expected).items():
        torch.testing.assert_close(got.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert watcher.losses == pytest.approx(losses, rel=1e-4)
    assert watcher.starts == [(0, epoch, 3, 5) for epoch in range(3)]
    assert not same(weights(got), weights(learner()))


@pytest.mark.parametrize("clip", [0.5, None, 1e6])
def test_clipping_bounds_the_length_of_a_step(clip):
    class Steep(Learner):
        def loss(self, x, y):
            return 1000 * super().loss(x, y)

    strategy, before = learner(Steep), learner(Steep)
    where = trainer(epochs=1, batch_size=100, lr=1.0, momentum=0.0, weight_decay=0.0, clip_grad=clip)
    where.descend(strategy, images(6))
    pairs = zip(strategy.parameters(), before.parameters(), strict=True)
    length = math.sqrt(sum(float(((a - b).detach().double() ** 2).sum()) for a, b in pairs))
    if clip == 0.5:
        assert length == pytest.approx(0.5, rel=1e-4)
    else:
        assert length > 100


def test_exemplars_are_learned_with_the_new_images():
    data, replay = images(10, first=1, classes=2), images(7, classes=1)
    strategy = learner()
    trainer(epochs=2).descend(strategy, data, replay)
    epochs = [[*itertools.chain(*part)] for part in (strategy.batches[:4], strategy.batches[4:])]
    for seen in epochs:
        assert sorted(seen) == sorted([*data.labels.tolist(), *replay.labels.tolist()])
    assert epochs[0] != epochs[1]
    assert any(0 in batch and max(batch) > 0 for batch in strategy.batches)
    alone, empty = learner(), learner()
    trainer().descend(alone, data)
    trainer().descend(empty, data, replay.subset(np.arange(0)))
    assert same(weights(alone), weights(empty))


def test_smoothing_reaches_the_loss_and_is_taken_back():
    class Watching(Learner):
        def loss(self, x, y):
            self.seen = self.label_smoothing
            if self.fail:
                raise RuntimeError("on purpose")
            return super().loss(x, y)

    for fail in (False, True):
        strategy = learner(Watching)
        strategy.fail = fail
        with pytest.raises(RuntimeError, match="on purpose") if fail else contextlib.nullcontext():
            trainer(label_smoothing=0.25).descend(strategy, images())
        assert strategy.seen == 0.25
        assert strategy.label_smoothing == 0
        assert not strategy.training
        assert all(parameter.grad is None for parameter in strategy.parameters())


def test_stages_draw_different_batches_and_are_counted():
    used, strategy = trainer(epochs=1), learner()
    used.descend(strategy, images(20))
    used.descend(strategy, images(20))
    first, second = strategy.batches[:4], strategy.batches[4:]
    assert first != second
    assert (used.stage, used.images) == (2, 40)
    assert used.seconds > 0


@pytest.mark.parametrize("done", [1, 2])
def test_a_resumed_stage_ends_with_the_same_bits(done):
    class Saving(NoWatcher):
        def save(self, stage, epoch, epochs, strategy, optimizer, best):
            if epoch + 1 == done:
                self.kept = weights(strategy), copy.deepcopy(optimizer.state_dict())

    class Resuming(NoWatcher):
        def restore(self, stage, strategy, optimizer, best):
            strategy.load_state_dict(saving.kept[0])
            optimizer.load_state_dict(saving.kept[1])
            return done

    saving, whole, rest = Saving(), learner(), learner()
    options = {"epochs": 3, "schedule": "cosine"}
    trainer(place(watcher=saving, pad=1), **options).descend(whole, images())
    trainer(place(watcher=Resuming(), pad=1), **options).descend(rest, images())
    assert same(weights(whole), weights(rest))


def test_a_trainer_without_place_says_so():
    with pytest.raises(RuntimeError, match=r"trainer\.at"):
        Trainer(epochs=1).descend(learner(), images())


# --- options ---------------------------------------------------------------------------------------------------------


def test_tasks_may_have_options_of_their_own():
    common = Trainer(epochs=3, lr=0.1, per_task={1: {"epochs": 1, "lr": 0.5}, 2: {"optimizer": "adamw"}})
    common.check(3)
    one, two = common.at(place(1)), common.at(place(2))
    assert (one.epochs, one.lr, one.optimizer) == (1, 0.5, "sgd")
    assert (two.epochs, two.lr, two.optimizer) == (3, 0.1, "adamw")
    assert (common.epochs, common.lr, common.place) == (3, 0.1, None)
    watcher = Rates()
    common.at(place(1, watcher=watcher)).descend(learner(), images())
    assert watcher.rates == [0.5]


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 1},
        {"optimizer": "adam"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": "fast"},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-4},
        {"schedule": "step"},
        {"milestones": [0]},
        {"milestones": 80},
        {"gamma": 0},
        {"min_lr": -1},
        {"warmup_epochs": -1},
        {"clip_grad": 0},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
    ],
    ids=str,
)
def test_impossible_options_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(UserError, match=f"trainer.{name}: .* for task 0 must be"):
        Trainer(**options).check(2)
    with pytest.raises(UserError, match=f"trainer.{name}: .* for task 1 must be"):
        Trainer(per_task={1: options}).check(2)


def test_what_per_task_names_must_exist():
    with pytest.raises(UserError, match=r"per_task: there is no task of index 3; .* 0 to 2"):
        Trainer(per_task={3: {"epochs": 1}}).check(3)
    with pytest.raises(UserError, match=r"per_task.1: no 'epoch'; did you mean 'epochs'"):
        Trainer(per_task={1: {"epoch": 1}}).check(3)
    with pytest.raises(UserError, match="momentum"):
        Trainer(nesterov=True, momentum=0.0).check(1)


def test_a_task_named_by_text_is_obeyed_or_refused():
    used = Trainer(epochs=3, per_task={"1": {"epochs": 1}})
    try:
        used.check(2)
    except UserError:
        return
    assert used.at(place(1)).epochs == 1


def test_sound_options_pass():
    Trainer().check(10)
    Trainer(optimizer="adamw", lr=1e-3, schedule="cosine", min_lr=1e-5, warmup_epochs=5, clip_grad=1.0).check(1)
    Trainer(milestones=[0.5, 120], label_smoothing=0.1, per_task={0: {"nesterov": True}}).check(1)


# --- failures and freezing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_says_where(bad):
    class Failing(Learner):
        def loss(self, x, y):
            return super().loss(x, y) * (bad if len(self.batches) == 7 else 1)  # the second of the second epoch

    strategy = learner(Failing)
    with pytest.raises(DivergedError, match=rf"{bad} in task 4 \(index 3\), epoch 2 of 4, step 2 of 5\b"):
        trainer(place(task=3), epochs=4).descend(strategy, images(23))
    assert len(strategy.batches) == 7
    assert not strategy.training


def test_what_is_frozen_keeps_every_bit_while_the_rest_learns():
    class Watching(Learner):
        def loss(self, x, y):
            self.modes.add((self.model.backbone.training, self.model.backbone.norm.training, self.model.head.training))
            return super().loss(x, y)

    strategy = learner(Watching)
    strategy.modes = set()
    freeze(strategy.model.backbone)
    before = weights(strategy)
    trainer(epochs=2, weight_decay=0.1).descend(strategy, images())
    assert strategy.modes == {(False, False, True)}
    after = weights(strategy)
    for name, value in before.items():
        assert torch.equal(after[name], value) == name.startswith("model.backbone"), name


def test_what_learns_uses_batch_statistics():
    strategy = learner()
    freeze(strategy.model.backbone.linear)
    before = weights(strategy)
    trainer(epochs=1).descend(strategy, images())
    after = weights(strategy)
    assert torch.equal(after["model.backbone.linear.weight"], before["model.backbone.linear.weight"])
    assert not torch.equal(after["model.backbone.norm.running_mean"], before["model.backbone.norm.running_mean"])
    assert after["model.backbone.norm.num_batches_tracked"] == 5


# --- features --------------------------------------------------------------------------------------------------------


class OnFeatures(Learner):
    """Learns its head from features; remembers those of each step."""

    def __init__(self, model):
        super().__init__(model)
        self.rows = []

    def loss(self, x, y):
        self.rows.append(x.clone())
        self.batches.append(y.tolist())
        return self.classification(self.model.head(x), y)


def test_features_and_labels_must_be_as_many():
    with pytest.raises(ValueError, match="3 features but 4 labels"):
        FeatureSet(torch.rand(3, 2), torch.zeros(4, dtype=torch.int64))
    known = FeatureSet(torch.arange(8.0).view(4, 2), torch.tensor([3, 1, 2, 0]))
    assert len(known) == 4
    assert known.gather(torch.tensor([2, 0])).tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_a_stage_on_features_sees_each_once_an_epoch_as_it_is():
    x, y = torch.randn(23, 4, generator=generator(0, "x")), torch.arange(23) % 3
    strategy = learner(OnFeatures)
    freeze(strategy.model.backbone)
    before = weights(strategy)
    watcher = Rates()
    used = trainer(place(watcher=watcher, preset="none", pad=1, flip=True, brightness=0.5))
    used.place.augmentation.train = None  # not asked
    used.descend(strategy, FeatureSet(x, y))
    assert watcher.starts == [(0, 0, 2, 5), (0, 1, 2, 5)]
    pairs = sorted([*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True))
    for epoch in range(2):
        steps = slice(5 * epoch, 5 * epoch + 5)
        rows, labels = torch.cat(strategy.rows[steps]), itertools.chain.from_iterable(strategy.batches[steps])
        assert sorted([*row, label] for row, label in zip(rows.tolist(), labels, strict=True)) == pairs
    assert torch.cat(strategy.rows[:5]).tolist() != torch.cat(strategy.rows[5:]).tolist()  # shuffled
    changed = {name for name, value in weights(strategy).items() if not torch.equal(value, before[name])}
    assert changed == {"model.head.weight", "model.head.bias"}
    assert used.images == 46


def test_a_stage_on_features_is_the_loop_written_out():
    x, y = torch.randn(17, 4, generator=generator(1, "x")), torch.arange(17) % 3
    strategy = learner(OnFeatures)
    freeze(strategy.model.backbone)
    weight, bias = (part.detach().clone().requires_grad_() for part in strategy.model.head.parameters())
    optimizer = torch.optim.SGD([weight, bias], 0.1, 0.9, weight_decay=0.01)
    trainer(place(task=2, seed=5), weight_decay=0.01).descend(strategy, FeatureSet(x, y))
    for epoch in range(2):
        order = torch.randperm(17, generator=generator(5, "batches", 2, 0, epoch))
        for index in split_batches(order, 5):
            optimizer.zero_grad()
            F.cross_entropy(x[index] @ weight.T + bias, y[index]).backward()
            optimizer.step()
    torch.testing.assert_close(strategy.model.head.weight, weight)
    torch.testing.assert_close(strategy.model.head.bias, bias)


def test_exemplars_are_not_mixed_with_features():
    features = FeatureSet(torch.rand(6, 4), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="exemplars are images and cannot be mixed with features"):
        trainer().descend(learner(OnFeatures), features, images(3))
    trainer().descend(learner(OnFeatures), features, images(3).subset(np.arange(0)))  # none is none


class Steps(Rates):
    """Counts steps, too."""

    done = 0

    def step_done(self):
        self.done += 1


def test_features_are_extracted_in_order_as_they_are_tested_and_counted():
    strategy, data, watcher = learner(), images(600, seed=3).subset(np.random.default_rng(0).permutation(600)), Steps()
    used = trainer(place(watcher=watcher, preset="none", pad=1, flip=True, brightness=0.5))
    used.stage, used.images, used.seconds = 2, 100, 5.0
    strategy.train()
    before, draws = weights(strategy), torch.get_rng_state()
    features, labels = used.extract(strategy, data)
    assert same(before, weights(strategy))  # batch statistics included
    assert torch.equal(draws, torch.get_rng_state())
    assert labels.tolist() == data.labels.tolist()
    assert (features.dtype, labels.dtype) == (torch.float32, torch.int64)
    with torch.no_grad():
        expected = [strategy.eval().features(used.place.augmentation.test(data.gather([i])))[0] for i in range(600)]
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert used.images == 700
    assert 5 < used.seconds < 65
    assert used.stage == 2  # no stage of its own
    assert watcher.starts == [(2, 0, 1, 10)]  # 600 images, 64 at a time
    assert watcher.done == 10


def test_extracted_features_can_be_learned_from():
    strategy = learner()
    features, labels = trainer().extract(strategy, images())
    assert not features.requires_grad
    F.cross_entropy(strategy.model.head(features), labels).backward()
    assert strategy.model.head.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in strategy.model.backbone.parameters())


def test_features_of_a_strategy_that_defines_its_own():
    class Doubled(Learner):
        def features(self, x):
            return 2 * super().features(x)

    one, two = (trainer().extract(learner(kind), images())[0] for kind in (Learner, Doubled))
    assert torch.equal(two, 2 * one)


# --- batches ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 300), size=st.integers(2, 70))
def test_batches_hold_every_index_once_and_never_end_with_one_image(n, size):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    batches = list(split_batches(order, size))
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == size for batch in batches[:-1])
    assert len(batches[-1]) <= size + 1
    assert len(batches[-1]) >= min(2, n)
    if n % size != 1:
        assert len(batches) == -(-n // size)


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (4, [4]), (5, [5]), (6, [4, 2]), (8, [4, 4]), (9, [4, 5]), (13, [4, 4, 5])]
)
def test_batches_of_four(n, sizes):
    assert [len(batch) for batch in split_batches(torch.arange(n), 4)] == sizes


# --- seeds -----------------------------------------------------------------------------------------------------------


class Noisy(Learner):
    """Draws from every global generator while it learns."""

    def loss(self, x, y):
        x = F.dropout(x, 0.3) + random.random() + float(np.random.rand())
        return super().loss(x, y)


def learned(where, junk=0):
    torch.manual_seed(junk)
    np.random.seed(junk)
    random.seed(junk)
    strategy = learner(Noisy)
    trainer(where).descend(strategy, images())
    return strategy


def test_the_same_seed_gives_the_same_weights_and_another_others():
    first = learned(place(seed=1, preset="none", pad=1))
    assert same(weights(first), weights(learned(place(seed=1, preset="none", pad=1), junk=9)))
    for other in (place(seed=2, preset="none", pad=1), place(task=1, seed=1, preset="none", pad=1)):
        different = learned(other)
        assert different.batches != first.batches
        assert not same(weights(first), weights(different))


def test_the_global_random_state_is_untouched():
    strategy = learner(Noisy)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2], random.getstate()
    trainer(place(preset="none", pad=1, flip=True)).descend(strategy, images())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert np.random.get_state()[2] == before[2]
    assert random.getstate() == before[3]


def test_seeds_are_derived_from_the_purpose():
    purposes = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 11), (0, "a", 1, 1), (0, "a1")]
    assert len({derive(*purpose) for purpose in purposes}) == len(purposes)
    assert all(0 <= derive(*purpose) < 2**63 for purpose in purposes)
    assert derive(0, "epoch", 3, 17) == derive(0, "epoch", 3, 17)
    first = torch.rand(3, generator=generator(4, "x"))
    assert torch.equal(first, torch.rand(3, generator=generator(4, "x")))


def test_seeded_restores_the_state_after_an_error():
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError), seeded(0, "x"):
        inside = float(torch.rand(())), random.random(), np.random.rand()
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    with seeded(0, "x"):
        assert inside == (float(torch.rand(())), random.random(), np.random.rand())
