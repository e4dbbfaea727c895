"""Training in stages: how long each is, how the schedule stretches over it, and how an interrupted one goes on."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from cil.data.augmentation import Augmentation
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.run import run
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.learning.trainer import DivergedError
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.testing.lab import Lab, TinyNet, toy_scenario
from strategies.growing.der import DER
from strategies.growing.foster import FOSTER
from strategies.growing.memo import MEMO
from tests.courses import (
    RETRAINING,
    SHALLOW,
    VARIANTS,
    WIDTH,
    Course,
    Listed,
    Watched,
    called,
    differing,
    drive,
    second_task,
    state_of,
    watched,
)

# --- how long the stages are -----------------------------------------------------------------------------------------

SHARES = [
    *((Fraction(30, 170), 30 / 170, epochs) for epochs in (170, 340, 100, 17, 10, 1)),
    *((Fraction(130, 170), 130 / 170, epochs) for epochs in (170, 340, 100, 17, 10, 1)),
    *((Fraction(share).limit_denominator(1000), share, epochs) for share in (0.5, 0.001, 1.0) for epochs in (1, 7, 8)),
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
    (DER, RETRAINING[1], 1.0),
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


def test_a_stage_may_have_options_of_its_own():
    trainer, data = placed(epochs=4, schedule="cosine", weight_decay=0.3), toy_scenario((2, 4)).tasks[0].train
    own = {"schedule": "multistep", "milestones": [0.5], "gamma": 0.1, "weight_decay": 0.0, "lr": 0.2}
    for options in (None, own, {}):
        trainer.descend(learner(), data, options=options)
        assert (trainer.schedule, trainer.weight_decay, trainer.lr) == ("cosine", 0.3, 0.1)
        assert trainer.milestones is None
    first, second, third = trainer.courses[0].stages
    assert first.rates == third.rates == pytest.approx(cosine(0.1, 4))
    assert second.rates == pytest.approx([0.2, 0.2, 0.02, 0.02])
    assert [stage.decays[0] for stage in (first, second, third)] == [0.3, 0.0, 0.3]


@pytest.mark.parametrize("key", ["weight_decays", "select_on", "steps_per_batch"])
def test_a_stage_has_no_other_options_of_its_own(key):
    with pytest.raises(UserError, match=f"trainer: no '{key}'"):
        placed(epochs=1).descend(learner(), toy_scenario((2, 4)).tasks[0].train, options={key: 1})


def test_the_head_is_learned_anew_at_a_rate_that_falls_once():
    rates = {"epochs": 5, "lr": 0.05, "weight_decay": 0.02, "schedule": "cosine", "warmup_epochs": 1}
    for course in drive(DER, sizes=(2, 4), trainer=rates, retrain_epochs=1.2)[1:]:
        first, second = course.stages
        assert (len(first.rates), set(first.decays)) == (5, {0.02})
        assert second.rates == pytest.approx([0.05] * 3 + [0.005] * 3)
        assert set(second.decays) == {5e-4}
    plain = drive(DER, sizes=(2, 4), trainer=rates, retrain_schedule="trainer", retrain_weight_decay=None)
    assert plain[1].stages[1].rates == pytest.approx([0.025])  # its warm-up
    assert plain[1].stages[1].decays == [0.02]


@pytest.mark.parametrize(("option", "decay"), [({}, 0.0), ({"compress_weight_decay": None}, 0.02)])
def test_foster_compresses_with_a_weight_decay_of_its_own(option, decay):
    rates = {"epochs": 2, "weight_decay": 0.02, "schedule": "constant"}
    boost, compress = drive(FOSTER, sizes=(2, 4), trainer=rates, **option)[1].stages
    assert (set(boost.decays), set(compress.decays)) == ({0.02}, {decay})


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
