"""Evaluators against explicit loops over single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cil.evaluation import accuracy
from cil.evaluation.accuracy import class_means, evaluate
from cil.experiment.run import learn, run, select
from cil.learning.inference import features_of
from cil.memory.exemplars import Exemplars, Memory
from cil.testing.lab import Lab
from strategies.baselines.replay import Replay
from strategies.rehearsal.icarl import ICaRL


class Doubled(Replay):
    """Scores that are not the head's of the features alone. Nowhere, 2020."""

    def forward(self, x):
        return super().forward(x) + super().forward(x.flip(3))


@pytest.fixture(scope="module", params=[Replay, ICaRL, Doubled])
def learned(request):
    """A strategy after two tasks, with its exemplars and the place it was trained at."""
    experiment = Lab(request.param).experiment()
    strategy, exemplars = experiment.fresh(), Exemplars(Memory(exemplars=18), (1, 8, 8))
    for task in experiment.scenario.tasks[:2]:
        place = experiment.place(task.index)
        learn(strategy, task, exemplars, experiment.trainer.at(place), experiment)
        select(strategy, task, exemplars, place, experiment.seeds)
    test = experiment.scenario.test.of_classes(range(3))
    return strategy, exemplars, test, place


def unit(v):
    return v / np.linalg.norm(v)


def single(strategy, image, place, flip=False):
    """One image's features and scores, in float64 NumPy arrays."""
    x = place.augmentation.test(torch.from_numpy(image[None]).permute(0, 3, 1, 2))
    x = x.flip(3) if flip else x
    with torch.no_grad():
        return strategy.features(x)[0].double().numpy(), strategy(x)[0].double().numpy()


@torch.no_grad()
def expected(strategy, exemplars, test, place, evaluator):
    """(confusion, top5) by a loop over images."""
    flips = (False, True) if evaluator == "nearest_mean_flip" else (False,)
    means = []
    for label in range(3):
        images = exemplars.images[exemplars.labels == label]
        vectors = [np.mean([unit(single(strategy, i, place, f)[0]) for f in flips], axis=0) for i in images]
        means.append(unit(np.mean(vectors, axis=0)))
    confusion = np.zeros((3, 3), dtype=int)
    for image, label in zip(test.raw(), test.labels.tolist(), strict=True):
        features, scores = single(strategy, image, place)
        if evaluator != "linear":
            scores = -np.array([np.linalg.norm(unit(features) - mean) for mean in means])
        confusion[label, scores.argmax()] += 1
    return confusion


@pytest.mark.parametrize("order", [1, -1])
def test_evaluators_agree_with_a_loop_in_any_order(learned, order):
    strategy, exemplars, test, place = learned
    names = ("linear", "nearest_mean", "nearest_mean_flip")[::order]
    seen = evaluate(strategy, test, 3, exemplars, names, place)
    assert tuple(seen) == names
    for name in names:
        assert seen[name].confusion.tolist() == expected(strategy, exemplars, test, place, name).tolist()
        assert seen[name].top5 == 1.0  # there are three classes


def test_the_evaluators_differ_where_the_network_is_untrained():
    experiment = Lab(Replay).experiment()
    strategy, exemplars = experiment.fresh(), Exemplars(Memory(exemplars=18), (1, 8, 8))
    task, place = experiment.scenario.tasks[0], experiment.place(0)
    experiment.grow(strategy, task)
    select(strategy, task, exemplars, place, experiment.seeds)
    test = experiment.scenario.test.of_classes(range(2))
    seen = evaluate(strategy, test, 2, exemplars, ("nearest_mean", "linear"), place)
    assert seen["linear"].confusion.tolist() != seen["nearest_mean"].confusion.tolist()


@pytest.mark.parametrize("names", [["nearest_mean"], ["nearest_mean_flip", "nearest_mean"]])
def test_known_features_are_not_computed_again(learned, names, monkeypatch):
    strategy, exemplars, _, place = learned
    expected = class_means(strategy, exemplars, 3, place, names)
    known = features_of(strategy, exemplars.as_set(), place)
    known[exemplars.labels == 2] = torch.nan
    before, computed = known.clone(), []

    def counting(strategy, data, place, *, flip=False):
        computed.append((len(data), flip))
        return features_of(strategy, data, place, flip=flip)

    monkeypatch.setattr(accuracy, "features_of", counting)
    found = class_means(strategy, exemplars, 3, place, names, known)
    assert found.keys() == expected.keys() == set(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
    unknown = int((exemplars.labels == 2).sum())
    assert 0 < unknown < len(exemplars)
    assert computed == [(unknown, False), (len(exemplars), True)][: len(names)]
    torch.testing.assert_close(known, before, equal_nan=True)


def test_a_run_computes_features_of_old_exemplars_alone(monkeypatch):
    computed = []

    def counting(strategy, data, place, *, flip=False):
        computed.append(sorted(set(data.labels.tolist())))
        return features_of(strategy, data, place, flip=flip)

    monkeypatch.setattr(accuracy, "features_of", counting)
    run(Lab(ICaRL).experiment(sizes=(2, 2, 2)))
    assert computed == [[0, 1], [0, 1, 2, 3]]  # none after the first task, whose exemplars are all new


def test_a_class_without_exemplars_has_no_mean_and_is_never_predicted(learned):
    strategy, exemplars, test, place = learned
    fewer = Exemplars(exemplars.memory, (1, 8, 8))
    keep = exemplars.labels != 1
    fewer.items, fewer.labels = exemplars.items[keep], exemplars.labels[keep]
    means = class_means(strategy, fewer, 3, place, ["nearest_mean"])["nearest_mean"]
    assert torch.isnan(means[1]).all()
    seen = evaluate(strategy, test, 3, fewer, ("nearest_mean",), place)
    assert seen["nearest_mean"].confusion[:, 1].sum() == 0
    assert seen["nearest_mean"].confusion.sum() == len(test)


def test_top5_counts_the_five_best():
    experiment = Lab(Replay).experiment(sizes=(6,))
    strategy, exemplars = experiment.fresh(), Exemplars(Memory(exemplars=18), (1, 8, 8))
    experiment.grow(strategy, experiment.scenario.tasks[0])
    place, test = experiment.place(0), experiment.scenario.test
    seen = evaluate(strategy, test, 6, exemplars, ("linear",), place)
    hits = 0
    for image, label in zip(test.raw(), test.labels.tolist(), strict=True):
        hits += label in np.argsort(-single(strategy, image, place)[1])[:5]
    assert seen["linear"].top5 == pytest.approx(hits / len(test))
    assert seen["linear"].top5 < 1


def test_features_come_in_order_and_without_augmentation(learned):
    strategy, _, test, place = learned
    features = features_of(strategy, test, place)
    for index in (0, 7, 23):
        one = single(strategy, test.raw()[index], place)[0]
        assert features[index].numpy() == pytest.approx(one, abs=1e-5)
