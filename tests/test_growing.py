"""What DER and MEMO carry: one network more for each task, none of which is touched again, and one head over all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cil.memory.ledger import measure
from strategies.growing.der import DER
from strategies.growing.memo import MEMO
from tests.courses import (
    BODY,
    HEAD,
    NAMES,
    RETRAINING,
    SHALLOW,
    SIZES,
    WIDTH,
    called,
    changed_everywhere,
    cross_entropy,
    differing,
    grown_on_meta,
    numbers,
    old_and_new,
    part,
    scored_by_hand,
    scores_of,
    specialised,
    watched,
)

ALIGNING = [(DER, {"balance": "align", "auxiliary": 0.7}, True), (DER, {"balance": "none", "auxiliary": 0.0}, False)]
ALIGNING += [(MEMO, {"auxiliary": 0.7}, True), (MEMO, {"few_classes": 1, "align": False}, False)]
GROWING = [(DER, RETRAINING[0]), (DER, RETRAINING[1]), (DER, ALIGNING[0][1]), (DER, ALIGNING[1][1])]
GROWING += [(MEMO, options) for options, _ in SHALLOW]


def auxiliary_labels(y: list[int], n_old: int) -> list[int]:
    return [0 if label < n_old else label - n_old + 1 for label in y]


def aligned(head: Tensor, n_old: int) -> Tensor:
    """The head's weight with its new rows as long, on average, as its old ones."""
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in head.double().tolist()]
    gamma = (sum(lengths[:n_old]) / n_old) / (sum(lengths[n_old:]) / (len(lengths) - n_old))
    out = head.clone()
    out[n_old:] *= gamma
    return out


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
        for state, kept in ((course.grown, True), (course.stages[0].before, not options.get("fresh_head"))):
            new = part(state, "model.head")
            assert new["weight"].shape == (n_seen, (index + 1) * WIDTH)
            assert torch.equal(new["weight"][:n_old, : index * WIDTH], old["weight"]) == kept
            assert torch.equal(new["bias"][:n_old], old["bias"]) == kept


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
