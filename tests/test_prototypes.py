"""Strategies that carry class means, against loops over samples, scikit-learn and arrays made by hand."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC

from cil.data.images import FeatureSet
from cil.experiment.experiment import plan
from cil.experiment.run import run
from cil.learning.trainer import Trainer
from cil.memory.ledger import STATE
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.ops.closed_form.means import ClassMeans
from cil.report import report
from cil.testing.lab import Lab, equal_states, toy_dataset
from strategies.prototypes.fetril import FeTrIL, with_absent_classes
from strategies.prototypes.ncm import NCM
from strategies.prototypes.simplecil import SimpleCIL
from strategies.prototypes.slda import SLDA
from tests.courses import called, cross_entropy, scores_of, structure
from tests.lessons import Lesson, backbone_of, in_order, returning, so_far, taught, teach

KINDS = [SimpleCIL, NCM, SLDA, FeTrIL]
SVC = {"classifier": "svc"}
SGD = {"classifier": "sgd"}


def means_of(lesson: Lesson) -> np.ndarray:
    return lesson.state["prototypes.means"].numpy()


def by_loops(x: np.ndarray, y: np.ndarray, n: int) -> np.ndarray:
    """Means of classes, a class without images at zero, (K, D)."""
    sums, counts = [[0.0] * x.shape[1] for _ in range(n)], [0] * n
    for row, label in zip(x.tolist(), y.tolist(), strict=True):
        counts[label] += 1
        sums[label] = [total + value for total, value in zip(sums[label], row, strict=True)]
    return np.array([[value / max(1, count) for value in row] for row, count in zip(sums, counts, strict=True)])


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=called)
def test_the_backbone_learns_in_the_first_task_and_keeps_every_bit_from_then_on(kind):
    lessons = taught(kind, frozen=False)
    fresh = Lab(kind).experiment().fresh().state_dict()
    untrained = {n: t.numpy().tobytes() for n, t in fresh.items() if n.startswith("model.backbone.")}
    first = backbone_of(lessons[0])
    assert len(first) == 12
    assert not [name for name in first if first[name] == untrained[name]]
    assert all(backbone_of(lesson) == first for lesson in lessons[1:])
    frozen = taught(kind)
    assert all(backbone_of(lesson) == untrained for lesson in frozen)


@pytest.mark.parametrize("kind", KINDS, ids=called)
@pytest.mark.parametrize("stream", ["new classes", "returning classes"])
def test_means_are_those_of_all_images_of_a_class(kind, stream):
    lessons = taught(kind) if stream == "new classes" else teach(kind, returning())
    for lesson, x, y in so_far(lessons):
        n_seen = lesson.task.n_seen
        np.testing.assert_allclose(means_of(lesson), by_loops(x, y, n_seen), rtol=1e-9, atol=1e-12)
        assert lesson.state["prototypes.counts"].tolist() == np.bincount(y, minlength=n_seen).tolist()


# 12 features: a mean has 12 float64, its count 8 bytes; so have the discriminant's row and bias. The covariance is half
# of 12 x 12 float64; the linear head of FeTrIL has 12 weights and a bias in float32.
@pytest.mark.parametrize(
    ("kind", "statistics", "head"),
    [
        (SimpleCIL, 0, 12 * 8 + 8),
        (NCM, 0, 12 * 8 + 8),
        (SLDA, 78 * 8, 2 * (12 * 8 + 8)),
        (FeTrIL, 0, 12 * 8 + 8 + 13 * 4),
    ],
    ids=called,
)
def test_every_byte_of_a_small_case(kind, statistics, head):
    for n_seen, lesson in zip((2, 3, 6), taught(kind), strict=True):
        counted = {name: lesson.size[name] for name in STATE}
        assert counted == {
            "backbone": 4 * (8 * 9 + 16 + 12 * 8 * 9 + 24),
            "head": n_seen * head,
            "normalisation": 4 * (16 + 24) + 2 * 8,
            "statistics": statistics,
        }
        assert lesson.size["strict"] == sum(counted.values())
        assert lesson.size["paper"] == counted["backbone"]


@st.composite
def pieces(draw, n_classes=4, width=3):
    """Labelled vectors, and where the stream of them is cut in two ways."""
    n = draw(st.integers(1, 40))
    seed, scale = draw(st.integers(0, 10**6)), draw(st.sampled_from([1e-3, 1.0, 30.0]))
    draws = torch.Generator().manual_seed(seed)
    x = scale * (torch.randn(n, width, generator=draws) + 2 * torch.randn(1, width, generator=draws))
    y = torch.randint(n_classes, (n,), generator=draws)
    cuts = [sorted(draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else [] for _ in range(2)]
    return x, y, cuts


def cut(x: torch.Tensor, y: torch.Tensor, where: list[int]):
    return zip(torch.tensor_split(x, where), torch.tensor_split(y, where), strict=True)


@settings(max_examples=60, deadline=None)
@given(pieces())
def test_means_do_not_depend_on_where_a_stream_is_cut(stream):
    x, y, cuts = stream
    for where in cuts:
        means = ClassMeans(3)
        means.grow(1)
        means.grow(3)
        for part, own in cut(x, y, where):
            means.learn(part, own)
        expected = by_loops(x.double().numpy(), y.numpy(), 4)
        np.testing.assert_allclose(means.means.numpy(), expected, rtol=1e-9, atol=1e-9 * float(x.abs().max()))
        assert means.counts.tolist() == torch.bincount(y, minlength=4).tolist()


# --- SimpleCIL and nearest means --------------------------------------------------------------------------------------


def cosine(one: list[float], two: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, two, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in two))


@pytest.mark.parametrize("frozen", [True, False])
def test_simplecil_scores_by_the_cosine_with_class_means(frozen):
    for lesson, x, y in so_far(taught(SimpleCIL, frozen=frozen)):
        means = by_loops(x, y, lesson.task.n_seen).tolist()
        expected = [[cosine(row, mean) for mean in means] for row in lesson.test.astype(np.float64).tolist()]
        np.testing.assert_allclose(lesson.scores, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [SimpleCIL, NCM], ids=called)
def test_tasks_one_by_one_are_as_all_at_once_and_new_classes_change_no_old_score(kind):
    lessons, whole = taught(kind), teach(kind, in_order((tuple(range(6)),)))[0]
    assert not equal_states(lessons[-1].state, whole.state)
    for before, after in zip(lessons, [*lessons[1:], whole], strict=True):
        own = {n: t for n, t in before.state.items() if n.startswith("prototypes.")}
        assert not equal_states(own, {name: after.state[name][: before.task.n_seen] for name in own})
        # Their rows are the same bits; the product with more rows may round otherwise in the last one.
        np.testing.assert_allclose(after.scores[:, : before.task.n_seen], before.scores, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [SimpleCIL, NCM, SLDA], ids=called)
def test_the_order_of_tasks_permutes_classes_alone(kind):
    one, other = taught(kind)[-1], teach(kind, in_order(((4, 2, 5), (0,), (3, 1))))[-1]
    order = [4, 2, 5, 0, 3, 1]
    np.testing.assert_allclose(means_of(other), means_of(one)[order], rtol=1e-12)
    if kind is not SLDA:  # whose covariance weighs an image by its place in the stream
        np.testing.assert_allclose(other.scores, one.scores[:, order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_ncm_decides_as_scikit_learn_and_scores_by_distance(frozen):
    for lesson, x, y in so_far(taught(NCM, frozen=frozen)):
        test = lesson.test.astype(np.float64)
        assert lesson.scores.argmax(1).tolist() == NearestCentroid().fit(x, y).predict(test).tolist()
        means = by_loops(x, y, lesson.task.n_seen).tolist()
        expected = [[-math.dist(row, mean) for mean in means] for row in test.tolist()]
        np.testing.assert_allclose(lesson.scores, expected, rtol=1e-6, atol=1e-9)


# --- SLDA -------------------------------------------------------------------------------------------------------------


def one_by_one(x: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (K, D) and covariance (D, D) by the published update of one vector after another.

    The first vector of a class has no mean to differ from, and differs by nothing.
    """
    means, counts, sigma = np.zeros((n, x.shape[1])), [0] * n, np.zeros((x.shape[1], x.shape[1]))
    for seen, (row, label) in enumerate(zip(x, y.tolist(), strict=True)):
        delta = row - means[label] if counts[label] else 0 * row
        sigma = (seen * sigma + seen / (seen + 1) * np.outer(delta, delta)) / (seen + 1)
        means[label] += (row - means[label]) / (counts[label] + 1)
        counts[label] += 1
    return means, sigma


def discriminant(test: np.ndarray, means: np.ndarray, sigma: np.ndarray, shrinkage: float) -> np.ndarray:
    """mu Lambda x - mu Lambda mu / 2 with Lambda = ((1 - e) Sigma + e I)^-1, one score at a time."""
    inverse = np.linalg.inv((1 - shrinkage) * sigma + shrinkage * np.eye(len(sigma)))
    return np.array([[mean @ inverse @ row - mean @ inverse @ mean / 2 for mean in means] for row in test])


def unpacked(values: torch.Tensor, n: int) -> np.ndarray:
    """A symmetric matrix from its lower triangle, row by row."""
    numbers = iter(values.tolist())
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            out[i, j] = out[j, i] = next(numbers)
    return out


def slda(width: int, **options) -> SLDA:
    """The strategy on plain vectors."""
    backbone = torch.nn.Identity()
    backbone.num_features = width
    return SLDA(Network(backbone, LinearHead(width)), **options)


@settings(max_examples=60, deadline=None)
@given(pieces())
def test_slda_is_the_update_of_one_vector_after_another_wherever_the_stream_is_cut(stream):
    x, y, cuts = stream
    means, sigma = one_by_one(x.double().numpy(), y.numpy(), 4)
    scale = float(x.abs().max())
    for where in cuts:
        strategy = slda(3, shrinkage=0.1)
        strategy.grow(structure(range(4), 0))
        for part, own in cut(x, y, where):
            strategy.observe(structure(range(4, 4), 1), part, own, trainer=None)
        np.testing.assert_allclose(strategy.prototypes.means.numpy(), means, rtol=1e-9, atol=1e-9 * scale)
        found = unpacked(strategy.covariance, 3)
        np.testing.assert_allclose(found, sigma, rtol=1e-8, atol=1e-9 * scale**2)
        assert int(strategy.prototypes.counts.sum()) == len(x)
        expected = discriminant(x.double().numpy(), means, sigma, 0.1)
        np.testing.assert_allclose(strategy.scores(x).numpy(), expected, rtol=1e-6, atol=1e-7 * (1 + scale**2))


@pytest.mark.parametrize("stream", ["new classes", "returning classes"])
@pytest.mark.parametrize("shrinkage", [1e-4, 0.3])
def test_slda_in_a_run_is_the_same_update(stream, shrinkage):
    scenario = None if stream == "new classes" else returning()
    for lesson, x, y in so_far(teach(SLDA, scenario, shrinkage=shrinkage)):
        means, sigma = one_by_one(x, y, lesson.task.n_seen)
        np.testing.assert_allclose(unpacked(lesson.state["covariance"], 12), sigma, rtol=1e-8, atol=1e-14)
        np.testing.assert_allclose(means_of(lesson), means, rtol=1e-9)
        expected = discriminant(lesson.test.astype(np.float64), means, sigma, shrinkage)
        np.testing.assert_allclose(lesson.scores, expected, rtol=1e-7, atol=1e-7 * abs(expected).max())


def test_slda_with_the_identity_for_a_covariance_decides_as_nearest_means(monkeypatch):
    usual = taught(SLDA)
    monkeypatch.setattr(
        "strategies.prototypes.slda.streamed", lambda covariance, *_: torch.eye(len(covariance)).double()
    )
    for lesson, near, other in zip(teach(SLDA), taught(NCM), usual, strict=True):
        assert lesson.scores.argmax(1).tolist() == near.scores.argmax(1).tolist()
        assert abs(lesson.scores - other.scores).max() > 0.1
        # A score is |x|^2 / 2 short of half the squared distance.
        short = (lesson.test.astype(np.float64) ** 2).sum(1, keepdims=True) / 2
        np.testing.assert_allclose(short - lesson.scores, near.scores**2 / 2, rtol=1e-6, atol=1e-9)


# --- FeTrIL -----------------------------------------------------------------------------------------------------------


def translated(lesson: Lesson, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The task's features, and those moved to each class absent from it, by loops in float32."""
    x, y = list(lesson.x), lesson.y.tolist()
    present = sorted(set(y))
    here = {label: lesson.x[lesson.y == label].astype(np.float64).mean(0).astype(np.float32) for label in present}
    for absent in range(len(means)):
        if absent in present:
            continue
        target = means[absent].astype(np.float32)
        nearest = max(present, key=lambda label, to=target: cosine(here[label].tolist(), to.tolist()))
        x += [row - here[nearest] + target for row in lesson.x[lesson.y == nearest]]
        y += [absent] * int((lesson.y == nearest).sum())
    return np.array(x), np.array(y)


def test_pseudo_features_of_an_absent_class_have_its_mean_and_the_shape_of_the_most_similar_class():
    lessons = taught(FeTrIL)
    for lesson in lessons[1:]:
        means, n_old = means_of(lesson), lesson.task.n_old
        x, y = with_absent_classes(
            torch.from_numpy(lesson.x), torch.from_numpy(lesson.y), torch.from_numpy(means).float()
        )
        assert x.dtype == torch.float32
        x, y = x.numpy(), y.numpy()
        np.testing.assert_array_equal(x[: len(lesson.x)], lesson.x)
        np.testing.assert_array_equal(y[: len(lesson.y)], lesson.y)
        for old in range(n_old):
            own = x[y == old].astype(np.float64)
            np.testing.assert_allclose(own.mean(0), means[old], rtol=1e-5, atol=1e-6)
            similar = [cosine(means[old].tolist(), means[new].tolist()) for new in lesson.task.new]
            source = lesson.x[lesson.y == n_old + similar.index(max(similar))].astype(np.float64)
            np.testing.assert_allclose(own - own.mean(0), source - source.mean(0), rtol=1e-4, atol=1e-6)


def test_the_most_similar_class_is_not_the_nearest_one():
    # Class 0 points where class 2 does, which is far away; class 1 is near and points elsewhere.
    means = torch.tensor([[1.0, 0.0], [0.8, 0.8], [9.0, 0.5]])
    features = torch.tensor([[0.7, 0.8], [0.9, 0.8], [8.0, 0.5], [10.0, 0.5]])
    x, y = with_absent_classes(features, torch.tensor([1, 1, 2, 2]), means)
    assert y.tolist() == [1, 1, 2, 2, 0, 0]
    torch.testing.assert_close(x[4:], torch.tensor([[0.0, 0.0], [2.0, 0.0]]), rtol=0, atol=1e-6)
    x, y = with_absent_classes(features, torch.tensor([1, 1, 2, 2]), means, "euclidean")
    assert y.tolist() == [1, 1, 2, 2, 0, 0]
    torch.testing.assert_close(x[4:], torch.tensor([[0.9, 0.0], [1.1, 0.0]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_linear_head_that_goes_on_starts_from_its_rows(frozen, monkeypatch):
    starts, ends, descend = [], [], Trainer.descend

    def noted(self, strategy, data, *args, **kwargs):
        starts.append((isinstance(data, FeatureSet), strategy.linear.weight.detach().clone()))
        descend(self, strategy, data, *args, **kwargs)
        ends.append(strategy.linear.weight.detach().clone())

    monkeypatch.setattr(Trainer, "descend", noted)
    lessons = teach(FeTrIL, frozen=frozen, restart=False, **SGD)
    assert [features for features, _ in starts] == [frozen, True, True]  # with the backbone, where that learns
    for (_, start), before in zip(starts[1:], ends, strict=False):
        assert torch.equal(start[: len(before)], before)
    for lesson, end in zip(lessons, ends, strict=True):
        assert torch.equal(lesson.state["linear.weight"], end)
        assert "helper.weight" not in lesson.state
    assert not any(torch.equal(start, end) for (_, start), end in zip(starts, ends, strict=True))


def test_a_class_that_returns_is_learned_from_its_features_alone_and_moved_by_their_own_mean():
    means = torch.tensor([[3.0, 0.0], [0.0, 2.0]])  # of class 1, images came before
    features = torch.tensor([[0.0, 1.0], [0.0, 5.0]])
    x, y = with_absent_classes(features, torch.tensor([1, 1]), means)
    assert y.tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(x[2:], torch.tensor([[3.0, -2.0], [3.0, 2.0]]))


@pytest.mark.parametrize("stream", ["new classes", "returning classes"])
@pytest.mark.parametrize(("penalty", "unit"), [(1.0, True), (0.01, False)])
def test_fetril_is_the_support_vector_machine_of_the_same_arrays(stream, penalty, unit):
    options = {"penalty": penalty, "unit_length": unit, **SVC}
    lessons = teach(FeTrIL, None if stream == "new classes" else returning(), **options)
    for lesson in lessons:
        (x, y), test = translated(lesson, means_of(lesson)), lesson.test
        if unit:
            x, test = (np.array([row / math.sqrt(float(row @ row)) for row in rows]) for rows in (x, test))
        assert sorted(set(y.tolist())) == list(range(lesson.task.n_seen))
        machine = LinearSVC(C=penalty, dual="auto", random_state=0).fit(x, y)
        expected = machine.decision_function(test)
        if lesson.task.n_seen == 2:  # one hyperplane
            expected = np.stack([-expected, expected], 1)
        np.testing.assert_allclose(lesson.scores, expected, rtol=1e-4, atol=1e-5)
        assert lesson.scores.argmax(1).tolist() == machine.predict(test).tolist()


@functools.cache
def watched_stages() -> tuple[list[dict], list[Lesson]]:
    """What each stage of gradient descent on features was given and did, while the backbone must not be asked."""
    stages: list[dict] = []
    descend = Trainer.descend

    def refuse(*_):
        raise AssertionError("the backbone was asked for features")

    def noted(self, strategy, data, replay=None, *, epochs=None):
        if not isinstance(data, FeatureSet):
            assert not strategy.prototypes.counts.any()  # the first task's images
            return descend(self, strategy, data, replay, epochs=epochs)
        before = {name: value.clone() for name, value in strategy.linear.state_dict().items()}
        learns = {name for name, parameter in strategy.named_parameters() if parameter.requires_grad}
        guard = strategy.model.backbone.register_forward_pre_hook(refuse)
        descend(self, strategy, data, replay, epochs=epochs)
        guard.remove()
        stages.append({"data": data, "replay": replay, "before": before, "learns": learns})
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "descend", noted)
        lessons = teach(FeTrIL, frozen=False, **SGD)
    return stages, lessons


def test_fetril_by_gradients_learns_a_fresh_linear_head_on_features_alone():
    stages, lessons = watched_stages()
    bound, learned = 1 / math.sqrt(12), None
    for stage, lesson in zip(stages, lessons, strict=True):
        x, y = translated(lesson, means_of(lesson))
        torch.testing.assert_close(stage["data"].features, torch.from_numpy(x), rtol=1e-5, atol=1e-5)
        assert stage["data"].labels.tolist() == y.tolist()
        assert stage["replay"] is None
        assert stage["learns"] - {"model.head.weight", "model.head.bias"} == {"linear.weight", "linear.bias"}
        after = {name: lesson.state[f"linear.{name}"] for name in ("weight", "bias")}
        for name, fresh in stage["before"].items():
            assert float(fresh.abs().max()) <= bound
            assert (fresh != after[name]).all()
            if learned is not None:
                assert (fresh[: len(learned[name])] != learned[name]).all()
        learned = after
    assert all(backbone_of(lesson) == backbone_of(lessons[0]) for lesson in lessons)


def test_fetril_by_gradients_fits_the_features_that_it_is_given():
    stages, lessons = watched_stages()
    for stage, lesson in zip(stages, lessons, strict=True):
        head = {name: lesson.state[f"linear.{name}"] for name in ("weight", "bias")}
        rows, labels = stage["data"].features.tolist(), stage["data"].labels.tolist()
        last, first = (cross_entropy(scores_of(rows, own), labels) for own in (head, stage["before"]))
        assert last < 0.7 * first
        expected = scores_of(lesson.test.tolist(), head)
        np.testing.assert_allclose(lesson.scores, expected, rtol=1e-4, atol=1e-5)


def test_fetril_scores_features_and_images_by_the_loss_of_each():
    torch.manual_seed(0)
    strategy = Lab(FeTrIL, SGD).build()
    task = structure(range(3), 0)
    strategy.grow(task)
    strategy.begin(task)
    x, y = torch.randn(7, 12), torch.arange(7) % 3
    head = {name: value.detach() for name, value in strategy.linear.state_dict().items()}
    assert strategy.loss(x, y).item() == pytest.approx(cross_entropy(scores_of(x.tolist(), head), y.tolist()), rel=1e-5)
    images = torch.rand(7, 1, 8, 8)
    strategy.eval()
    with torch.no_grad():
        rows = strategy.features(images).tolist()
        helper = {name: value.detach() for name, value in strategy.helper.state_dict().items()}
        found = float(strategy.loss(images, y))
    assert found == pytest.approx(cross_entropy(scores_of(rows, helper), y.tolist()), rel=1e-5)


@pytest.mark.parametrize("options", [SVC, SGD], ids=str)
def test_fetril_with_a_single_class_has_a_score_for_it(options):
    lessons = teach(FeTrIL, in_order(((0,), (1, 2, 3, 4, 5))), **options)
    assert lessons[0].scores.shape == (len(toy_dataset().test), 1)
    assert np.isfinite(lessons[0].scores).all()
    assert np.isfinite(lessons[1].scores).all()
    assert len(set(lessons[1].scores.argmax(1).tolist())) > (4 if options is SVC else 0)


def test_a_whole_run_with_returning_classes_carries_what_was_planned():
    experiment = Lab(FeTrIL).experiment()
    experiment.scenario = returning()
    records, _, _ = run(experiment)
    assert [row["bytes"] for row in plan(experiment)] == [record["bytes"] for record in records]
    assert [record["classes"] for record in records] == [[0, 1], [2, 3], [4, 5], []]
    assert report.results(experiment, records)["accuracy"]["linear"][-1][-1] is None  # the last task owns no class
