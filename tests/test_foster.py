"""FOSTER: the pair is boosted beside the old network and then compressed into one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from cil.experiment.run import run
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.testing.lab import QUOTA_TOTAL, Lab, TinyNet, toy_dataset, toy_scenario
from strategies.growing.foster import FOSTER, Pair
from tests.courses import (
    BATCH,
    HEAD,
    NAMES,
    SIZES,
    VARIANTS,
    WIDTH,
    Listed,
    State,
    called,
    changed_everywhere,
    cross_entropy,
    differing,
    grown_on_meta,
    joined,
    numbers,
    old_and_new,
    part,
    rows_of,
    scores_of,
    second_task,
    softmax,
    watched,
)

COMPRESSED = {f"model.backbone.{name}" for name in NAMES} | {f"model.head.{name}" for name in HEAD}
PAIR = {f"pair.{one}.{name}" for one in ("old", "new") for name in NAMES} | {f"pair.head.{name}" for name in HEAD}


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


def distilled(
    logits: list[list[float]], target: list[list[float]], temperature: float, weights: list[float] | None = None
) -> float:
    total = 0.0
    for z, t in zip(logits, target, strict=True):
        soft = [p * w for p, w in zip(softmax(t, temperature), weights or [1.0] * len(t), strict=True)]
        q = softmax(z[: len(t)], temperature)
        total -= sum(p / sum(soft) * math.log(value) for p, value in zip(soft, q, strict=True))
    return total / len(logits)


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


def test_the_pair_goes_before_anything_is_evaluated():
    order = []

    class Told(FOSTER):
        def end(self, task):
            super().end(task)
            order.append(("end", self.pair is None))

        def selected(self, task):
            super().selected(task)
            order.append(("selected", self.pair is None))

        def features(self, x):
            order.append(("features", self.pair is None))
            return super().features(x)

    run(Lab(Told, {}).experiment(sizes=(2, 4)))
    last = order[[index for index, (name, _) in enumerate(order) if name == "end"][-1] :]
    assert [step for index, step in enumerate(last) if not index or step != last[index - 1]] == [
        *[("end", False), ("features", False), ("selected", True), ("features", True)]
    ]


def test_a_class_without_images_weighs_like_one_with_a_single_image():
    class Weighed(Listed):
        def descend(self, strategy, data, replay=None, *, epochs=None, options=None):
            self.lengths.append(strategy.weights.tolist())

    strategy, trainer = second_task(FOSTER, beta_compress=0.5), Weighed(1)
    strategy.fit(toy_scenario((2, 2, 2)).tasks[1], None, trainer)
    for weights, beta in zip(trainer.lengths, (0.96, 0.5), strict=True):
        assert weights == pytest.approx(effective([1, 1, 24, 2], beta), rel=1e-5)


@pytest.mark.parametrize(("index", "beta"), [(1, 0.9), (2, 0.8), (3, 0.8)])
def test_new_classes_may_count_a_given_number_of_images_and_each_task_its_own_beta(index, beta):
    class Weighed(Listed):
        def descend(self, strategy, data, replay=None, *, epochs=None, options=None):
            self.lengths.append(strategy.weights.tolist())

    strategy, trainer = second_task(FOSTER, beta_boost=[0.9, 0.8], images=500), Weighed(1)
    task = toy_scenario((2, 2, 2)).tasks[1]
    strategy.fit(dataclasses.replace(task, index=index), toy_scenario((2, 2, 2)).tasks[0].train, trainer)
    for weights, own in zip(trainer.lengths, (beta, 0.97), strict=True):
        assert weights == pytest.approx(effective([24, 24, 500, 500], own), rel=1e-6)


@pytest.mark.parametrize("options", VARIANTS, ids=called)
def test_foster_minimises_the_losses_of_the_paper(options):
    courses = watched(FOSTER, **options)
    settings = {"temperature": 2.0, "keep": 1.0, "beta_boost": 0.96, "beta_compress": 0.97, **options}
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


@pytest.mark.parametrize(("scored", "networks"), [("compressed", 1), ("boosted", 3)])
def test_foster_has_the_size_of_one_network_or_of_three(scored, networks):
    strategy, total = grown_on_meta(FOSTER, "cifar_resnet32", (10,) * 10, scored=scored)
    assert total == networks * 463_504
    heads = 100 * 65 + (100 * 129 if networks == 3 else 0)
    assert sum(parameter.numel() for parameter in strategy.parameters()) == total + heads
