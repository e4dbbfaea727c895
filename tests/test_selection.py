"""Which epoch is kept: by hand-made accuracies, on held-out images of each class, with and without an interruption."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cil.command.names import find_class
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.experiment import Experiment
from cil.experiment.run import run
from cil.learning.best import Best
from cil.learning.place import NoWatcher
from cil.learning.selection import divide, judge
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Memory
from cil.report.report import jsonable, results
from cil.testing.lab import Lab

LAB = Lab(find_class("strategy", "protonet"))
REPLAY = Lab(find_class("strategy", "replay"))
FETRIL = Lab(find_class("strategy", "fetril"), {"classifier": "sgd"})


def experiment(lab=LAB, **options) -> Experiment:
    made = lab.experiment()
    made.trainer = Trainer(epochs=4, batch_size=8, lr=0.05, schedule="constant", **options)
    return made


def test_the_best_epoch_is_given_back_and_of_equals_the_later():
    net, marks = torch.nn.Linear(1, 1), iter([0.2, 0.7, 0.7, 0.1])
    best = Best(lambda strategy: next(marks))
    for epoch in range(4):
        torch.nn.init.constant_(net.weight, epoch)
        best.look(net)
    best.take(net)
    assert net.weight.item() == 2
    torch.nn.init.constant_(net.weight, 9)
    best.take(net)  # a stage that has ended has nothing more to give
    assert net.weight.item() == 9


def test_every_class_gives_its_share_and_no_image_is_on_both_sides():
    task = experiment().scenario.tasks[0]
    kept, held = divide(task, 0.25, seed=3)
    assert held.counts(6).tolist() == np.round(0.25 * task.train.counts(6)).tolist()
    assert (kept.counts(6) + held.counts(6)).tolist() == task.train.counts(6).tolist()
    both = {image.tobytes() for image in kept.raw()} & {image.tobytes() for image in held.raw()}
    assert not both
    again, other = divide(task, 0.25, seed=3)[1], divide(task, 0.25, seed=4)[1]
    assert np.array_equal(again.raw(), held.raw()) and not np.array_equal(other.raw(), held.raw())


def test_the_judge_counts_right_answers_of_the_head_that_learns():
    made = experiment()
    task = made.scenario.tasks[0]
    strategy = made.fresh()
    made.grow(strategy, task)
    strategy.begin(task)
    place = made.place(0)
    x = place.augmentation.test(task.train.gather())
    strategy.eval()
    with torch.no_grad():
        found = strategy.helper(strategy.model.features(x)).argmax(1)
    wanted = float((found == task.train.labels).double().mean())
    assert 0 < wanted < 1
    assert judge(task.train, place)(strategy) == pytest.approx(wanted)


class Noting(NoWatcher):
    """Keeps the state of each epoch."""

    def __init__(self):
        self.states = []

    def save(self, stage, epoch, epochs, strategy, optimizer, best):
        self.states.append({name: value.clone() for name, value in strategy.state_dict().items()})


@pytest.mark.parametrize("select_on", ["validation", "test"])
def test_a_stage_ends_with_the_state_of_its_best_epoch(select_on):
    made = experiment(REPLAY)
    task, watcher, marks = made.scenario.tasks[0], Noting(), iter([0.1, 0.9, 0.3, 0.2])
    strategy = made.fresh()
    made.grow(strategy, task)
    place = made.place(0, watcher)
    place.judge = lambda strategy: next(marks)
    made.trainer.at(place).descend(strategy, task.train)
    own = strategy.state_dict()
    assert all(torch.equal(own[name], watcher.states[1][name]) for name in own)
    assert any(not torch.equal(watcher.states[0][name], watcher.states[1][name]) for name in own)


@pytest.mark.parametrize(("lab", "task"), [(LAB, 0), (REPLAY, 0), (REPLAY, 1), (FETRIL, 1)])
def test_validation_images_are_neither_learned_nor_kept(lab, task):
    made = experiment(lab, per_task={task: {"select_on": "validation", "validation_share": 0.25}})
    learned, build = [], made.build

    def watched():
        strategy = build()
        fit = strategy.fit

        def noted(task, replay, trainer):
            learned.append(task.train)
            fit(task, replay, trainer)

        strategy.fit = noted
        return strategy

    made.build = watched
    records, _, exemplars = run(made)
    held = divide(made.scenario.tasks[task], 0.25, made.seeds.data)[1]
    hidden = {image.tobytes() for image in held.raw()}
    assert not hidden & {image.tobytes() for train in learned for image in train.raw()}
    assert not hidden & {image.tobytes() for image in exemplars.images}
    assert [record["train_images"] for record in records] == [
        len(other.train) - len(held) * (other.index == task) for other in made.scenario.tasks
    ]


def test_the_copy_of_the_best_epoch_is_held_while_training():
    records, _, _ = run(experiment(REPLAY, per_task={1: {"select_on": "validation", "validation_share": 0.25}}))
    state = [record["bytes"]["parameters"] + record["bytes"]["buffers"] for record in records]
    assert [record["training_bytes"]["best"] for record in records] == [0, state[1], *[0] * (len(records) - 2)]


def test_what_chose_the_model_is_told_wherever_it_is_shown():
    told = {}
    for name in ("last", "validation", "test"):
        made = experiment(per_task={0: {"select_on": name}})
        content = results(made, [])
        told[name] = content["selected_by"], content["name"]
    assert told == {
        "last": ("last epoch", "ProtoNet"),
        "validation": ("best epoch on validation images", "ProtoNet"),
        "test": ("best epoch on test images", "ProtoNet (oracle)"),
    }


def test_the_test_images_choose_the_epoch_that_is_best_on_them():
    states, accuracies = [], []
    for epochs in range(1, 5):
        shorter = experiment(REPLAY)
        shorter.trainer.epochs = epochs
        shorter.scenario = dataclasses.replace(shorter.scenario, tasks=shorter.scenario.tasks[:1])
        _, strategy, _ = run(shorter)
        states.append(strategy.state_dict())
        accuracies.append(judge(shorter.scenario.test.of_classes(range(2)), shorter.place(0))(strategy))
    made = experiment(REPLAY, select_on="test")
    made.scenario = shorter.scenario
    _, strategy, _ = run(made)
    best = max(range(4), key=lambda epoch: (accuracies[epoch], epoch))
    own = strategy.state_dict()
    assert all(torch.equal(own[name], states[best][name]) for name in own)


def test_an_interrupted_choice_goes_on_alike(tmp_path, monkeypatch):
    options = {"per_task": {0: {"select_on": "validation", "validation_share": 0.25}}}
    marks = iter([0.9, 0.8, 0.7, 0.6] * 2)  # the first epoch is the best, and over when the run is stopped
    monkeypatch.setattr("cil.learning.selection.judge", lambda images, place: lambda strategy: next(marks))
    whole, strategy, _ = run(experiment(**options))
    wanted = strategy.state_dict()

    class Stop(Exception):
        pass

    stopped = experiment(**options)
    checkpoints = Checkpoints(tmp_path)
    save = checkpoints.save

    def stopping(moment, tensors, record):
        save(moment, tensors, record)
        if moment.inside and moment.epoch == 3:
            raise Stop

    checkpoints.save = stopping
    with pytest.raises(Stop):
        run(stopped, checkpoints=checkpoints, checkpoint_every=1)
    rest, strategy, _ = run(experiment(**options), checkpoints=Checkpoints(tmp_path), checkpoint_every=1, resume=True)
    own = strategy.state_dict()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)
    for a, b in zip(whole, rest, strict=True):
        assert jsonable(a["evaluators"]) == jsonable(b["evaluators"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select_on": "best"}, r"trainer\.select_on: 'best' for task 0 must be last, validation or test"),
        ({"validation_share": 1.0}, r"trainer\.validation_share: 1\.0 for task 0 must be within \(0, 1\)"),
        ({"select_on": "validation"}, r"0\.1 of the 2 images of class 3 in task 3 is 0, and both parts need images"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_training(options, message):
    made = experiment(**options)
    made.memory = Memory()
    with pytest.raises(UserError, match=message):
        made.check()
