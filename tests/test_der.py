"""DER: what its two stages learn; in the second the head is learned anew on balanced data."""

from __future__ import annotations

import math

import pytest

from cil.memory.exemplars import Memory
from cil.testing.lab import TinyNet, toy_scenario
from strategies.growing.der import DER
from tests.courses import (
    HEAD,
    RETRAINING,
    SIZES,
    WIDTH,
    called,
    changed_everywhere,
    cross_entropy,
    differing,
    drive,
    old_and_new,
    part,
    scored_by_hand,
    specialised,
    watched,
)


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


def test_der_keeps_its_head_of_old_features_or_draws_it_anew():
    for options, fresh in (({}, False), ({"fresh_head": True}, True)):
        courses = watched(DER, **options)
        for index, (n_old, _, course) in enumerate(old_and_new(courses), start=1):
            head, before = part(course.stages[0].before, "model.head"), part(courses[index - 1].ended, "model.head")
            same = head["weight"][:n_old, : index * WIDTH] == before["weight"], head["bias"][:n_old] == before["bias"]
            assert not any(values.any() for values in same) if fresh else all(values.all() for values in same)


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
