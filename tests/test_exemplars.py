"""Exemplars are selected as the definitions say, quotas hold, and bytes are those of the state."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from cil.data.images import ImageSet
from cil.data.scenario import Task
from cil.errors import UserError
from cil.learning.state import state_bytes
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Exemplars, Memory, reservoir
from cil.memory.ledger import STATE, STORED, Bytes, measure, measure_run
from cil.nets.heads import CosineHead, LinearHead
from cil.nets.network import Model, Network
from cil.ops.herding import closest_to_mean, herding
from cil.units import mib

TOY = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 1], [1, 3], [-1, 1]], dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normalised(features: torch.Tensor) -> np.ndarray:
    v = features.double().numpy()
    return np.array([row / (math.sqrt(sum(value * value for value in row)) + 1e-8) for row in v])


def herding_by_definition(features: torch.Tensor, n: int) -> list[int]:
    """At each step try every image that is left and compare the mean of the chosen with the class mean."""
    v = normalised(features)
    mean, chosen = v.sum(0) / len(v), []
    for _ in range(min(n, len(v))):
        best, least = -1, math.inf
        for i in range(len(v)):
            if i in chosen:
                continue
            distance = float(np.linalg.norm(mean - v[[*chosen, i]].sum(0) / (len(chosen) + 1)))
            if distance < least - 1e-12:
                best, least = i, distance
        chosen.append(best)
    return chosen


# --- selections ------------------------------------------------------------------------------------------------------


def test_herding_of_the_toy_vectors():
    assert herding(TOY, 6).tolist() == [4, 2, 1, 0, 5, 3]
    assert herding(TOY, 3).tolist() == [4, 2, 1]
    assert herding(TOY, 99).tolist() == [4, 2, 1, 0, 5, 3]
    assert herding(TOY, 0).tolist() == []
    assert herding(TOY, 2).dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 14), d=st.integers(2, 6), picks=st.integers(0, 16), seed=st.integers(0, 9999))
def test_herding_equals_its_definition(n, d, picks, seed):
    features = torch.randn(n, d, generator=seeded(seed)) * 10 ** torch.rand(n, 1, generator=seeded(seed + 1))
    v, chosen = normalised(features), herding(features, picks).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, picks)
    for k, pick in enumerate(chosen):  # step by step, because rounding decides between equally good images
        distance = {i: np.linalg.norm(v.mean(0) - v[[*chosen[:k], i]].mean(0)) for i in range(n) if i not in chosen[:k]}
        assert distance[pick] <= min(distance.values()) + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_herding_equals_its_definition_pick_by_pick(seed):
    features = torch.randn(30, 8, generator=seeded(seed))
    assert herding(features, 20).tolist() == herding_by_definition(features, 20)


def test_herding_breaks_ties_by_the_lowest_index():
    assert herding(torch.ones(5, 3), 4).tolist() == [0, 1, 2, 3]


def test_herding_takes_features_of_length_zero():
    features = torch.tensor([[0.0, 0], [3, 0], [0, 2]])
    assert herding(features, 3).tolist() == herding_by_definition(features, 3)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), picks=st.integers(0, 14), seed=st.integers(0, 9999))
def test_closest_to_mean_sorts_by_distance(n, picks, seed):
    features = torch.randn(n, 4, generator=seeded(seed))
    v = normalised(features)
    distance, chosen = np.linalg.norm(v - v.mean(0), axis=1), closest_to_mean(features, picks).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, picks)
    np.testing.assert_allclose(distance[chosen], sorted(distance)[:picks], atol=1e-9)


def test_closest_to_mean_compares_normalised_features():
    features = torch.tensor([[1.0, 0], [100, 1], [0, 1], [1, 0.1]])
    assert closest_to_mean(features, 2).tolist() == [3, 1]


# --- reservoir -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seen=st.integers(0, 30),
    n=st.integers(0, 40),
    size=st.integers(0, 12),
    seed=st.integers(0, 9999),
)
def test_the_reservoir_equals_algorithm_r(seen, n, size, seed):
    slots, items = reservoir(seen, n, size, seeded(seed))
    draws = torch.rand(n, generator=seeded(seed), dtype=torch.float64).tolist()
    held = {}
    for item in range(n):
        position = seen + item
        slot = position if position < size else int(draws[item] * (position + 1))
        if slot < size:
            held[slot] = item
    assert dict(zip(slots.tolist(), items.tolist(), strict=True)) == held
    assert len(set(slots.tolist())) == len(slots)


def task_of(train, *, new=range(0, 1), present=None, index=0):
    return Task(index, new, tuple(new if present is None else present), train)


def numbered(n, first=0, label=0):
    """Images whose two bytes hold their number."""
    number = np.arange(first, first + n)
    pixels = np.stack([number % 256, number // 256], 1).astype(np.uint8).reshape(n, 1, 2, 1)
    return ImageSet(pixels, np.full(n, label))


def numbers(exemplars):
    return (exemplars.images[:, 0, 0, 0].astype(int) + 256 * exemplars.images[:, 0, 1, 0].astype(int)).tolist()


def no_features(data):
    raise AssertionError("a random selection does not look at features")


def test_every_image_of_the_stream_is_kept_with_the_same_probability():
    size, parts, runs = 6, (4, 15, 11), 1500
    kept = np.zeros(sum(parts))
    for run in range(runs):
        exemplars, draws = Exemplars(Memory(exemplars=size, selection="reservoir"), (1, 1, 2)), seeded(run)
        for index, start in enumerate(itertools.accumulate((0, *parts[:-1]))):
            train = numbered(parts[index], start)
            exemplars.update(task_of(train, index=index), no_features, draws)
        held = numbers(exemplars)
        assert len(set(held)) == size
        kept[held] += 1
    # Variances shrink by 1 - size / N because each run keeps exactly `size` images.
    expected = runs * size / sum(parts)
    statistic = ((kept - expected) ** 2 / (expected * (1 - size / sum(parts)))).sum() * (1 - 1 / sum(parts))
    assert 0.001 < stats.chi2.sf(statistic, sum(parts) - 1) < 0.9999


def test_a_reservoir_fills_up_first_and_keeps_labels_with_images():
    exemplars, draws = Exemplars(Memory(exemplars=10, selection="reservoir"), (1, 1, 2)), seeded()
    exemplars.update(task_of(numbered(4, 0, label=0)), no_features, draws)
    assert sorted(numbers(exemplars)) == [0, 1, 2, 3]
    exemplars.update(task_of(numbered(50, 100, label=1), new=range(1, 2)), no_features, draws)
    assert len(exemplars) == 10
    assert exemplars.seen == 54
    assert exemplars.labels.tolist() == [int(number >= 100) for number in numbers(exemplars)]
    assert 1 in exemplars.labels


# --- quotas ----------------------------------------------------------------------------------------------------------


def coordinates(data):
    """Features for tests: the stored bytes themselves, so that selections can be worked out apart."""
    return torch.from_numpy(data.raw().reshape(len(data), -1).astype(np.float64))


def random_task(classes, per_class, *, index=0, seed=0, new=None):
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(classes), per_class)
    rng.shuffle(labels)
    images = rng.integers(0, 256, (len(labels), 2, 2, 1), dtype=np.uint8)
    return task_of(
        ImageSet(images, labels), new=new or range(classes[0], classes[-1] + 1), present=classes, index=index
    )


def of_class(exemplars, label):
    return exemplars.images[exemplars.labels == label]


def check_class(exemplars, label, candidates, quota, select):
    """The images kept of a class are the first ``quota`` that a selection by definition names."""
    order = select(coordinates(candidates), len(candidates))
    assert np.array_equal(of_class(exemplars, label), candidates.raw(np.array(order, dtype=np.int64))[:quota])


@pytest.mark.parametrize("selection", ["herding", "closest_to_mean"])
def test_the_quota_shrinks_to_the_prefix(selection):
    definition = {"herding": herding_by_definition, "closest_to_mean": closest_to_mean}[selection]
    exemplars = Exemplars(Memory(exemplars=25, selection=selection), (1, 2, 2))
    tasks = [random_task(range(0, 2), 20, seed=1), random_task(range(2, 5), 20, index=1, seed=2)]
    tasks += [random_task(range(5, 7), 20, index=2, seed=3)]
    for task in tasks:
        exemplars.update(task, coordinates, seeded())
        quota = 25 // task.n_seen  # 12, 5, 3
        assert np.bincount(exemplars.labels).tolist() == [quota] * task.n_seen
        assert exemplars.labels.tolist() == sorted(exemplars.labels.tolist())
        for earlier in tasks[: task.index + 1]:
            for label in earlier.present:
                check_class(exemplars, label, earlier.train.of_classes([label]), quota, definition)


def test_a_class_with_fewer_images_than_its_quota_keeps_them_all():
    exemplars = Exemplars(Memory(exemplars=20), (1, 2, 2))
    few = random_task(range(0, 2), 3, seed=1)
    exemplars.update(few, coordinates, seeded())
    assert np.bincount(exemplars.labels).tolist() == [3, 3]
    exemplars.update(random_task(range(2, 4), 30, index=1), coordinates, seeded())
    assert np.bincount(exemplars.labels).tolist() == [3, 3, 5, 5]


def test_more_classes_than_exemplars_leave_none():
    exemplars = Exemplars(Memory(exemplars=2), (1, 2, 2))
    exemplars.update(random_task(range(0, 2), 3), coordinates, seeded())
    assert len(exemplars) == 2
    exemplars.update(random_task(range(2, 4), 3, index=1), coordinates, seeded())
    assert len(exemplars) == 0
    assert exemplars.as_set() is None


def test_per_class_keeps_the_same_number_of_each():
    memory = Memory(exemplars=None, per_class=4)
    exemplars = Exemplars(memory, (1, 2, 2))
    exemplars.update(random_task(range(0, 2), 9, seed=1), coordinates, seeded())
    before = exemplars.images.copy()
    exemplars.update(random_task(range(2, 5), 9, seed=2, index=1), coordinates, seeded())
    assert np.bincount(exemplars.labels).tolist() == [4] * 5
    assert np.array_equal(exemplars.images[:8], before)
    assert (memory.quota(7), memory.capacity(7)) == (4, 28)


@pytest.mark.parametrize("selection", ["herding", "closest_to_mean"])
@pytest.mark.parametrize("codec", ["raw", "png"])
def test_features_that_selecting_took_are_those_of_the_exemplars(selection, codec):
    exemplars = Exemplars(Memory(exemplars=25, selection=selection, codec=codec), (1, 2, 2))
    starts = 0, 2, 5
    for index, classes in enumerate((range(0, 2), range(2, 5), range(1, 6))):  # some return in the third
        task = random_task(classes, 9, index=index, seed=index, new=range(starts[index], max(classes) + 1))
        known = exemplars.update(task, coordinates, seeded())
        data = exemplars.as_set()
        present = torch.isin(data.labels, torch.tensor(list(classes)))
        assert torch.equal(known[present], coordinates(data)[present])
        assert known[~present].isnan().all()


@pytest.mark.parametrize("options", [{"selection": "random"}, {"selection": "reservoir"}, {"codec": "jpeg"}])
def test_no_feature_is_known_of_exemplars_that_took_none_or_are_not_what_they_were(options):
    exemplars = Exemplars(Memory(exemplars=8, **options), (1, 2, 2))
    assert exemplars.update(random_task(range(0, 2), 9), coordinates, seeded()) is None


def test_all_keeps_every_image():
    memory = Memory(exemplars="all")
    exemplars = Exemplars(memory, (1, 2, 2))
    tasks = [random_task(range(0, 2), 9, seed=1), random_task(range(2, 5), 9, seed=2, index=1)]
    for task in tasks:
        exemplars.update(task, no_features, seeded())
    expected = np.concatenate([task.train.of_classes([label]).raw() for task in tasks for label in task.present])
    assert np.array_equal(exemplars.images, expected)
    assert np.bincount(exemplars.labels).tolist() == [9] * 5
    assert memory.quota(5) is None
    assert memory.capacity(5) is None
    assert memory.unbounded
    assert not memory.empty


def test_random_keeps_a_sample_without_repetition():
    def kept(seed):
        exemplars = Exemplars(Memory(exemplars=8, selection="random"), (1, 1, 2))
        exemplars.update(task_of(numbered(40)), no_features, seeded(seed))
        return numbers(exemplars)

    assert len(set(kept(0))) == 8
    assert kept(0) == kept(0)
    assert len({tuple(kept(seed)) for seed in range(5)}) == 5
    counts = np.bincount(np.concatenate([kept(seed) for seed in range(300)]), minlength=40)
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("memory", [Memory(exemplars=6), Memory(exemplars="all")])
def test_a_class_that_comes_back_competes_with_what_was_kept(memory):
    exemplars = Exemplars(memory, (1, 2, 2))
    first = random_task(range(0, 2), 9, seed=1)
    exemplars.update(first, coordinates, seeded())
    kept, other = of_class(exemplars, 0).copy(), of_class(exemplars, 1).copy()
    again = random_task([0, 2], 9, seed=2, index=1, new=range(2, 3))
    exemplars.update(again, coordinates, seeded())
    both = np.concatenate([kept, again.train.of_classes([0]).raw()])
    if memory.unbounded:
        assert np.array_equal(of_class(exemplars, 0), both)
        return
    candidates = ImageSet(both, np.zeros(len(both)))
    check_class(exemplars, 0, candidates, 2, herding_by_definition)
    assert np.array_equal(of_class(exemplars, 1), other[:2])
    assert np.bincount(exemplars.labels).tolist() == [2, 2, 2]


def test_an_empty_memory_keeps_nothing():
    for memory in (Memory(), Memory(exemplars=None, per_class=0)):
        memory.check()
        assert memory.empty
        exemplars = Exemplars(memory, (1, 2, 2))
        exemplars.update(random_task(range(0, 2), 3), no_features, seeded())
        assert len(exemplars) == 0
        assert exemplars.as_set() is None


@pytest.mark.parametrize(("total", "seen", "quota"), [(2000, 10, 200), (2000, 100, 20), (2000, 30, 66), (5, 6, 0)])
def test_the_quota_is_the_total_over_the_classes_rounded_down(total, seen, quota):
    assert Memory(exemplars=total).quota(seen) == quota
    assert Memory(exemplars=total).capacity(seen) == total


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 20}, "exemplars .*per_class or budget.*exemplars is 0, per_class is 20"),
        ({"exemplars": None}, "exemplars is None, per_class is None"),
        ({"exemplars": "all", "per_class": 1}, "per_class is 1"),
        ({"exemplars": -1}, "memory.exemplars: -1 must be an integer >= 0, or all"),
        ({"exemplars": None, "per_class": -2}, "memory.per_class: -2 must be an integer >= 0"),
        ({"exemplars": None, "per_class": 5, "selection": "reservoir"}, "memory.selection: reservoir needs a total"),
        ({"exemplars": "all", "selection": "reservoir"}, "memory.selection: reservoir needs a total"),
    ],
)
def test_contradictory_quotas_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Memory(**options).check()


def test_an_unknown_selection_is_refused():
    with pytest.raises(UserError, match="selection"):
        Memory(exemplars=10, selection="hearding").check()


@pytest.mark.parametrize("selection", ["herding", "reservoir"])
def test_exemplars_restored_from_their_state_go_on_alike(selection):
    memory = Memory(exemplars=7, selection=selection)
    kept = Exemplars(memory, (1, 2, 2))
    kept.update(random_task(range(0, 3), 9, seed=1), coordinates, seeded())
    state = kept.state()
    assert {name: value.dtype for name, value in state.items()} == {"images": torch.uint8, "labels": torch.int32}
    restored = Exemplars(memory, (1, 2, 2))
    restored.load({name: value.clone() for name, value in state.items()}, kept.seen)
    for exemplars in (kept, restored):
        exemplars.update(random_task(range(3, 5), 9, seed=2, index=1), coordinates, seeded(1))
    assert np.array_equal(kept.images, restored.images)
    assert np.array_equal(kept.labels, restored.labels)
    assert kept.seen == restored.seen == 45
    assert restored.labels.dtype == np.int32


def test_exemplars_are_read_as_a_labelled_set():
    exemplars = Exemplars(Memory(exemplars=4), (1, 2, 2))
    task = random_task(range(0, 2), 5)
    exemplars.update(task, coordinates, seeded())
    data = exemplars.as_set()
    assert np.array_equal(data.raw(), exemplars.images)
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.labels.dtype == torch.int64
    for image, label in zip(data.raw(), data.labels.tolist(), strict=True):
        assert any(np.array_equal(image, other) for other in task.train.of_classes([label]).raw())


# --- bytes -----------------------------------------------------------------------------------------------------------


class Holding(Strategy):
    """Keeps all kinds of tensors beside its model."""

    def __init__(self, model):
        super().__init__(model)
        self.register_buffer("means", torch.zeros(3, 5, dtype=torch.float64))
        self.register_buffer("scratch", torch.zeros(1000), persistent=False)
        self.register_buffer("small", torch.zeros(7, dtype=torch.uint8))
        self.tied = self.model.head.weight
        self.again = self.means
        self.plain = torch.zeros(1000)
        self.extra = nn.Parameter(torch.zeros(11, dtype=torch.bfloat16))

    def tie(self):
        self.register_buffer("same_means", self.means)


def test_what_the_strategy_holds_itself_is_statistics():
    network = Model(backbone="cifar_resnet14").build(1)
    network.head.grow(5)
    strategy = Strategy(network)
    strategy.register_buffer("gram", torch.zeros(8, 8, dtype=torch.float64))
    strategy.prompts = nn.Parameter(torch.zeros(3, 7))
    size = measure(strategy, 0, 0)
    assert size["statistics"] == 8 * 64 + 4 * 21
    assert size["parameters"] + size["buffers"] == sum(
        size[name] for name in ("backbone", "head", "normalisation", "statistics")
    )


def by_hand(strategy):
    """Bytes of the distinct tensors in the state_dict, told apart by where their data lies."""
    values = {(value.data_ptr(), value.dtype, value.shape): value for value in strategy.state_dict().values()}
    return sum(value.numel() * value.element_size() for value in values.values())


@pytest.mark.parametrize("head", [LinearHead, CosineHead, lambda d: CosineHead(d, learn_scale=False)])
def test_bytes_are_those_of_the_state_each_tensor_once(head):
    network = Model(backbone="cifar_resnet14").build(1)
    network.head = head(64)
    network.head.grow(5)
    strategy = Holding(network)
    strategy.tie()
    size = measure(strategy, 0, 0)
    parameters, buffers = size["parameters"], size["buffers"]
    assert state_bytes(strategy) == parameters + buffers == size["strict"]
    assert parameters + buffers == by_hand(strategy)
    learned = sum(value.numel() * value.element_size() for value in strategy.parameters())
    assert parameters == learned
    batch_norm = 13 * 8 + sum(2 * 4 * m.num_features for m in strategy.modules() if isinstance(m, nn.BatchNorm2d))
    scale = 4 if isinstance(network.head, CosineHead) and "scale" in dict(network.head.named_buffers()) else 0
    assert buffers == batch_norm + 15 * 8 + 7 + scale


def test_strict_counts_everything_and_paper_what_the_paper_counts():
    network = Model().build(3)
    network.head.grow(100)
    size = measure(Strategy(network), 2000, 2000 * 3 * 32 * 32)
    assert size["paper"] == 4 * 463_504 + 2000 * 3072
    assert size["parameters"] == 4 * (463_504 + 100 * 64 + 100)
    assert size["exemplars"] == 2000 * 3072
    assert size["labels"] == 8000
    assert size["buffers"] == sum(b.numel() * b.element_size() for b in network.buffers())
    parts = ("parameters", "buffers", "exemplars", "labels")
    assert size["strict"] == sum(size[part] for part in parts)
    assert size["backbone"] == 4 * 463_504
    assert size["head"] == 4 * (100 * 64 + 100)
    assert size["normalisation"] == size["buffers"]
    assert size["statistics"] == size["lengths"] == 0
    assert size["paper"] / 2**20 == pytest.approx(7.63, abs=0.005)


def test_bytes_are_the_same_on_the_meta_device():
    def grown():
        network = Model(backbone="cifar_resnet14", head="cosine").build(3)
        network.head.grow(7)
        return measure(Strategy(network), 3, 36)

    real = grown()
    with torch.device("meta"):
        assert grown() == real


def test_a_second_network_is_counted_while_it_is_held():
    network = Network(Model(backbone="convnet2").build(1).backbone, LinearHead(64))
    strategy = Strategy(network)
    alone = measure(strategy, 0, 0)
    strategy.teacher = Network(Model(backbone="convnet2").build(1).backbone, LinearHead(64)).requires_grad_(False)
    both = measure(strategy, 0, 0)
    assert both["strict"] == 2 * alone["strict"]
    assert both["paper"] == 2 * alone["paper"]
    strategy.teacher = None
    assert measure(strategy, 0, 0) == alone


def test_a_run_carries_its_exemplars_as_they_are_stored():
    network = Model(backbone="convnet2").build(1)
    exemplars = Exemplars(Memory(exemplars=5), (1, 2, 2))
    empty = measure_run(Strategy(network), exemplars)
    assert (empty["exemplars"], empty["labels"]) == (0, 0)
    exemplars.update(random_task(range(0, 2), 9), coordinates, seeded())
    size = measure_run(Strategy(network), exemplars)
    state = exemplars.state()
    assert size["exemplars"] == state["images"].numel() == 4 * 4
    assert size["labels"] == state["labels"].numel() * state["labels"].element_size() == 4 * 4
    assert size["strict"] - empty["strict"] == 32
    assert size["paper"] - empty["paper"] == 16


def test_every_category_is_a_key_of_the_measured_bytes():
    totals = {"parameters", "buffers", "strict", "paper"}
    assert {*STATE, *STORED} == set(Bytes.__annotations__) - totals
    assert not set(STATE) & set(STORED)


def test_a_mib_has_two_to_the_twentieth_bytes():
    assert (mib(3 * 2**19), mib(2**20 + 2**10, 3), mib(None)) == ("1.50", "1.001", "-")
