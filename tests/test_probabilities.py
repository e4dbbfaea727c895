"""Probabilities of scores and rejection: against known temperatures, explicit loops, scikit-learn, and on runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import cil
from cil.data.images import Dataset
from cil.errors import UserError
from cil.evaluation.probabilities import KEPT, Probabilities, auroc, calibration_error, fit_temperature
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.run import run
from cil.learning.selection import set_aside
from cil.testing.lab import equal_states, toy_scenario
from tests.models import configuration, learned, memory

SHARE = ["--calibration", "0.25"]


def drawn(n=4000, k=6, temperature=2.5, seed=0):
    """Scores, and labels that their softmax at this temperature gives."""
    draws = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(n, k, generator=draws, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(scores / temperature, 1), 1, generator=draws).flatten()
    return scores, labels


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_temperature_is_found_whatever_the_scale_of_scores(scale):
    scores, labels = drawn()
    assert fit_temperature(scale * scores, labels) == pytest.approx(2.5 * scale, rel=0.06)
    # no neighbour is better
    loss = [
        torch.nn.functional.cross_entropy(scores / t, labels)
        for t in fit_temperature(scores, labels) * torch.tensor([0.98, 1.0, 1.02])
    ]
    assert loss[1] < loss[0] and loss[1] < loss[2]


def test_the_calibration_error_by_explicit_loops():
    scores, labels = drawn(300)
    shares = torch.softmax(scores, 1)
    sure, predicted = shares.max(1)
    wanted = 0.0
    for low in range(15):
        inside = [i for i in range(300) if low / 15 < sure[i] <= (low + 1) / 15]
        if inside:
            right = np.mean([float(predicted[i] == labels[i]) for i in inside])
            wanted += len(inside) / 300 * abs(right - np.mean([float(sure[i]) for i in inside]))
    assert calibration_error(shares, labels) == pytest.approx(wanted, abs=1e-12)
    assert calibration_error(torch.eye(4)[[0, 1, 2, 3]], torch.arange(4)) == 0


def test_the_area_is_that_of_scikit_learn():
    draws = np.random.default_rng(0)
    known, other = draws.integers(0, 20, 200), draws.integers(-8, 12, 150)  # with ties
    wanted = roc_auc_score(np.repeat([1, 0], [200, 150]), np.concatenate([known, other]))
    assert auroc(torch.tensor(known), torch.tensor(other)) == pytest.approx(wanted, abs=1e-12)


def test_what_is_found_counts_by_its_images():
    one, other = drawn(3000, temperature=1.0, seed=1), drawn(1000, temperature=4.0, seed=2)
    found = Probabilities()
    found.learn(*one, anew=False)
    first = float(found.temperature)
    assert int(found.images) == 3000
    found.learn(*other, anew=False)
    second = fit_temperature(*other)
    first, second = first / float(one[0].std()), second / float(other[0].std())  # in units of the scores' spread
    assert float(found.temperature) == pytest.approx(first**0.75 * second**0.25 * float(other[0].std()))
    assert int(found.images) == 4000 and torch.equal(found.confidences, found.confidences.sort().values)
    found.learn(*other, anew=True)
    assert float(found.temperature) == pytest.approx(fit_temperature(*other)) and int(found.images) == 1000
    for rate in (0.05, 0.5):
        below = (found.confidence(other[0]) < found.threshold(rate)).double().mean()
        assert float(below) == pytest.approx(rate, abs=2 / KEPT)
    nothing = Probabilities()
    nothing.learn(torch.full((2, 3), -torch.inf), torch.tensor([0, 1]), anew=False)
    assert int(nothing.images) == 0
    with pytest.raises(UserError, match="no image was held out"):
        nothing.threshold(0.05)
    with pytest.raises(UserError, match=r"reject: 1\.5 must be"):
        found.threshold(1.5)


def test_images_are_set_aside_by_class():
    task = toy_scenario().tasks[0]
    kept, held = set_aside(task, 0.25, 7)
    counts, all_ = held.counts(task.n_seen), task.train.counts(task.n_seen)
    assert np.array_equal(counts, np.minimum(np.rint(0.25 * all_), all_ - 1))
    assert np.array_equal(kept.train.counts(task.n_seen) + counts, all_)
    together = {image.tobytes() for image in (*kept.train.raw(), *held.raw())}
    assert together == {image.tobytes() for image in task.train.raw()}
    one, none = set_aside(task, 0.01, 7)
    assert not len(none) and len(one.train) == len(task.train)


@pytest.mark.parametrize("name", ["slda", "acil", "knn", "icarl", "replay", "der"])
def test_a_run_finds_them_carries_them_and_goes_on_with_them(name, tmp_path):
    small = ["--strategy.width", "32"] if name == "acil" else []
    words = [*configuration(name), *memory(name), *small, *SHARE]
    experiment, (records, strategy, exemplars) = learned(tmp_path, *words)
    told = records[-1]["calibration"]
    assert told["images"] == (
        35 if len(exemplars) else 30
    )  # 3 of 12 of each class; exemplars, and those of the last task
    assert records[-1]["train_images"] < len(experiment.scenario.tasks[1].train)
    plain = learned(tmp_path / "plain", *words[: -len(SHARE)])[1]
    extra = sum(t.numel() * t.element_size() for t in strategy.probabilities.state_dict().values())
    assert records[-1]["bytes"]["statistics"] == plain[0][-1]["bytes"]["statistics"] + extra
    assert 1000 < extra < 1100

    model, first = cil.load(tmp_path), cil.load(tmp_path, task=1)
    images = experiment.scenario.test.raw()[::3]
    shares = model.predict_proba(images)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(images), dtype=torch.float64))
    assert torch.equal(shares.argmax(1), model.scores(images).argmax(1))
    one = model.predict_proba(images[0])  # by itself, which rounds otherwise than in a batch
    assert model.top(images[0], 2)[0][0].probability == float(one.max())
    again, _, _ = run(experiment, checkpoints=Checkpoints(tmp_path / "checkpoint"), resume=True)
    assert again[-1]["calibration"] == told
    names = experiment.scenario.class_names
    more = experiment.scenario.tasks[1].train
    longer = first.extend(Dataset("more", more, experiment.scenario.test, names))
    assert not equal_states(model.tensors(), longer.tensors())


def test_scores_that_are_no_logits_are_calibrated(tmp_path):
    experiment, _ = learned(tmp_path, *configuration("slda"), *memory("slda"), "--trainer.epochs", "3")
    model = cil.load(tmp_path)
    with pytest.raises(UserError, match="scores of SLDA make no probabilities by themselves"):
        model.predict_proba(experiment.scenario.test.raw()[:2])
    with pytest.raises(UserError, match="keeps no exemplars to calibrate it with"):
        model.calibrate()
    test, names = experiment.scenario.test, experiment.scenario.class_names
    half, other = test.subset(np.arange(0, len(test), 2)), test.subset(np.arange(1, len(test), 2))
    sure = model.calibrate((half.raw(), [names[label] for label in half.labels]))
    assert torch.equal(sure.scores(other.raw()), model.scores(other.raw()))
    before, after = (
        calibration_error(shares, other.labels)
        for shares in (torch.softmax(model.scores(other.raw()).double(), 1), sure.predict_proba(other.raw()))
    )
    assert after < 0.7 * before
    told = sure.history[-1]
    assert told["did"] == "calibrate" and told["ece_after"] < told["ece_before"]
    sure.save(tmp_path / "sure.safetensors")
    assert torch.equal(
        cil.load(tmp_path / "sure.safetensors").predict_proba(other.raw()), sure.predict_proba(other.raw())
    )
    # it stays when more is learned
    assert sure.extend({"noise": other.raw()[:5]}).probabilities.temperature == sure.probabilities.temperature

    rejected = [name is None for name in sure.predict(other.raw(), reject=0.1)]
    assert 0.02 < np.mean(rejected) < 0.25
    assert None not in sure.predict(other.raw())
    with pytest.raises(UserError, match="class: no 'noise'"):
        model.calibrate({"noise": other.raw()[:5]})


def test_logits_make_probabilities_without_more_and_exemplars_calibrate_them(tmp_path):
    experiment, _ = learned(tmp_path, *configuration("replay"), "--memory.exemplars", "40")
    model, images = cil.load(tmp_path), experiment.scenario.test.raw()[:9]
    torch.testing.assert_close(model.predict_proba(images), torch.softmax(model.scores(images).double(), 1))
    with pytest.raises(UserError, match="no image was held out"):
        model.predict(images, reject=0.05)
    surer = model.calibrate()
    assert surer.history[-1]["exemplars"] is True and int(surer.probabilities.images) == 40


def test_a_share_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match=r"calibration: 1\.5 must be"):
        learned(tmp_path, *configuration("slda"), *memory("slda"), "--calibration", "1.5")
