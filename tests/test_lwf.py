"""LwF: its loss worked by hand, and what the warm-up leaves alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cil.experiment.run import run
from cil.learning.trainer import Trainer
from cil.nets.heads import CosineHead, LinearHead
from cil.nets.network import Network
from cil.testing.lab import Lab, TinyNet
from strategies.regularisation.lwf import LwF
from tests.courses import structure


class Given(nn.Module):
    """Features that are the images themselves."""

    num_features = 4

    def forward(self, x):
        return x


def told(own, teacher, student, **options):
    """LwF of four classes, two of them old, whose columns are the features, but for the teacher's."""
    strategy = LwF(Network(Given(), LinearHead(4)), **options)
    for task in (structure(range(2), 0), structure(range(2, 4), 1)):
        strategy.grow(task)
        strategy.begin(task)
    strategy.own = own
    with torch.no_grad():
        strategy.model.head.weight.copy_(torch.eye(4))
        strategy.model.head.bias.zero_()
        for row, value in enumerate(teacher):
            strategy.teacher.head.weight[row], strategy.teacher.head.bias[row] = 0, value
        return float(strategy.loss(torch.tensor([student]), torch.tensor([2])))


def test_the_loss_worked_by_hand():
    learn = math.log(1 + math.exp(-1))  # class 2 scores 1 more than class 3, and older columns do not count
    share = 1 / (1 + math.exp(0.5))  # the teacher's first column at T = 2, whose scores are 0 and 1
    first, second = -math.log(1 + math.exp(-0.5)), -math.log(1 + math.exp(0.5))  # of the student's 1 and 0
    keep = -(share * first + (1 - share) * second)
    assert (learn, keep) == pytest.approx((0.313262, 0.785307), abs=1e-6)
    scores = [1.0, 0.0, 2.0, 1.0]
    assert told([2, 3], [0.0, 1.0], scores) == pytest.approx(learn + keep, abs=1e-6)
    assert told([2, 3], [0.0, 1.0], scores, keep=3.0) == pytest.approx(2.669182, abs=1e-6)
    assert told([2, 3], [0.0, 1.0], scores, temperature=1.0) != pytest.approx(learn + keep, abs=1e-2)
    # Where class 0 returns it is learned beside the new ones, and kept beside the old ones.
    among_three = -math.log(math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(1)))
    assert told([0, 2, 3], [0.0, 1.0], scores) == pytest.approx(among_three + keep, abs=1e-6)


def stages_of(monkeypatch, **options):
    """Each stage: (task, epochs asked for, names that changed, whether old rows of the head did)."""
    stages, descend = [], Trainer.descend

    def watched(self, strategy, data, replay=None, *, epochs=None, drawn=0):
        before = {name: value.clone() for name, value in strategy.model.state_dict().items()}
        descend(self, strategy, data, replay, epochs=epochs, drawn=drawn)
        after, n_old = strategy.model.state_dict(), strategy.n_old
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        same = all(torch.equal(after[f"head.{n}"][:n_old], before[f"head.{n}"][:n_old]) for n in ("weight", "bias"))
        stages.append((self.placed().task, epochs, changed, not same))

    monkeypatch.setattr(Trainer, "descend", watched)
    run(Lab(LwF, options).experiment(epochs=(2, 4, 4)))
    return stages


def test_new_rows_warm_up_alone(monkeypatch):
    first, *later = stages_of(monkeypatch, warm_up=0.5)
    assert first[:2] == (0, None)
    warm, together = later[::2], later[1::2]
    assert [stage[:2] for stage in warm] == [(1, 2), (2, 2)]
    assert [stage[:2] for stage in together] == [(1, None), (2, None)]
    assert all(stage[2] == {"head.weight", "head.bias"} and not stage[3] for stage in warm)
    assert all("backbone.body.1.running_mean" in stage[2] and stage[3] for stage in together)


def test_without_a_warm_up_there_is_one_stage(monkeypatch):
    assert [stage[:2] for stage in stages_of(monkeypatch, warm_up=0.0)] == [(0, None), (1, None), (2, None)]


def test_a_cosine_heads_scale_is_shared_and_waits_too(monkeypatch):
    monkeypatch.setattr(Lab, "network", lambda self: Network(TinyNet(), CosineHead(12)))
    monkeypatch.setattr(LwF, "end", lambda self, task: None)
    scales, stepped = set(), LwF.stepped

    def watched(self):
        stepped(self)
        if self.warming:
            scales.add((self.n_old, float(self.model.head.scale)))

    monkeypatch.setattr(LwF, "stepped", watched)
    run(Lab(LwF).experiment(epochs=(1, 2, 2)))
    assert len(scales) == 2  # one for each task that warms up


def test_a_frozen_backbone_stays_frozen():
    experiment = Lab(LwF).experiment(epochs=(1, 1, 1))

    def build():
        strategy = Lab(LwF).build()
        strategy.model.frozen = True
        return strategy

    experiment.build = build
    before = experiment.fresh().model.backbone.state_dict()
    after = run(experiment)[1].model.backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_the_documentation_shows_the_strategy_as_it_is():
    root = Path(__file__).parents[1]
    text = (root / "docs/strategies.md").read_text().split("## A method from a paper")[1]
    shown = text.split("```python\n")[1].split("```")[0]
    assert (root / "strategies/regularisation/lwf.py").read_text().endswith(shown)
