"""MEMO: whether its shared part learns, and how gradients reach it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cil.ops.freezing import train_mode
from cil.testing.lab import TinyNet
from strategies.growing.memo import MEMO
from tests.courses import (
    BATCH,
    BODY,
    HEAD,
    SHALLOW,
    STEM,
    WIDTH,
    called,
    changed_everywhere,
    differing,
    second_task,
    specialised,
    structure,
    watched,
)


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
