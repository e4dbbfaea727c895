"""Streams and generalised tasks: the sampler against one written out in loops, and the laws that every stream keeps."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.data.images import Dataset, ImageSet
from cil.data.scenario import recurring, stream
from cil.errors import UserError
from scenarios.class_incremental import ClassIncremental
from scenarios.generalised import Generalised, long_tail
from scenarios.online import Online
from scenarios.si_blurry import SiBlurry


def toy(counts, name="toy") -> Dataset:
    """So many training images of each class, mixed; an image's two pixels are its position in the set."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = labels[np.random.RandomState(5).permutation(len(labels))]
    number = np.arange(len(labels))
    pixels = np.stack([number // 256, number % 256], axis=1).astype(np.uint8).reshape(-1, 1, 2, 1)
    test = np.repeat(np.arange(len(counts)), 2)
    unseen = np.full((len(test), 1, 2, 1), 255, np.uint8)
    unseen[:, 0, 0, 0] = test
    classes = tuple(f"class {label}" for label in range(len(counts)))
    return Dataset(name, ImageSet(pixels, labels), ImageSet(unseen, test), classes)


def positions(images: ImageSet) -> list[int]:
    raw = images.raw().astype(int)
    return (raw[:, 0, 0, 0] * 256 + raw[:, 0, 1, 0]).tolist()


def by_phase(scenario) -> list[list[int]]:
    """Positions of the images of each phase, in order."""
    out = [[] for _ in scenario.phase_ends]
    for task, phase in zip(scenario.tasks, scenario.phase_of_task, strict=True):
        out[phase] += positions(task.train)
    return out


def classes_of(dataset, phases):
    labels = dataset.train.labels.tolist()
    return [{labels[i] for i in phase} for phase in phases]


def sampler_in_loops(labels, n_classes, tasks, disjoint_percent, blurry_percent, mode, seed):
    """The released sampler's steps one by one with lists: the positions of each phase, empty ones included."""
    g = torch.Generator().manual_seed(seed)
    n_dis = int(n_classes * disjoint_percent / 100) // tasks * tasks
    n_blu = (n_classes - n_dis) // tasks * tasks
    order = [int(label) for label in torch.randperm(n_classes, generator=g)]

    def cut_up(pool):
        if mode == "fixed":
            size = len(pool) // tasks
            return [pool[size * t : size * (t + 1)] for t in range(tasks)]
        if not pool:
            return [[] for _ in range(tasks)]
        cuts = sorted(int(torch.randint(0, len(pool), (1,), generator=g)) for _ in range(tasks - 1))
        ends = [*cuts, len(pool)]
        return [pool[start:end] for start, end in zip([0, *cuts], ends, strict=True)]

    disjoint, blurry = [], []
    for pool, lists in ((order[:n_dis], disjoint), (order[n_dis : n_dis + n_blu], blurry)):
        for own in cut_up(pool):
            lists.append([i for i, label in enumerate(labels) if label in own])
    if mode == "fixed":
        sizes = [len(own) * blurry_percent // 100 for own in blurry]
    else:
        mixed = sum(len(own) for own in blurry) * blurry_percent // 100
        sizes = [0] * tasks
        if mixed:
            cuts = sorted(int(torch.randint(0, mixed, (1,), generator=g)) for _ in range(tasks - 1))
            sizes = [end - start for start, end in zip([0, *cuts], [*cuts, mixed], strict=True)]
    pool = []
    for own, size in zip(blurry, sizes, strict=True):
        for _ in range(min(size, len(own))):
            pool.append(own.pop(0))
    pool = [pool[i] for i in torch.randperm(len(pool), generator=g)]
    if mode == "fixed":
        sizes = [len(pool) // tasks] * tasks
    for own, size in zip(blurry, sizes, strict=True):
        for _ in range(min(size, len(pool))):
            own.append(pool.pop(0))
    out = []
    for a, b in zip(disjoint, blurry, strict=True):
        both = a + b
        out.append([both[i] for i in torch.randperm(len(both), generator=g)])
    return out


COUNTS = (7, 3, 12, 5, 9, 4, 11, 6, 8, 10, 2)


@pytest.mark.parametrize("mode", ["stochastic", "fixed"])
@pytest.mark.parametrize(
    ("tasks", "disjoint", "blurry"), [(5, 50, 10), (5, 50, 50), (3, 0, 30), (2, 100, 0), (1, 40, 20), (4, 30, 100)]
)
def test_the_stream_is_that_of_the_sampler_in_loops(mode, tasks, disjoint, blurry):
    data = toy(COUNTS)
    for seed in range(1, 8):
        expected = sampler_in_loops(data.train.labels.tolist(), len(COUNTS), tasks, disjoint, blurry, mode, seed)
        options = {"tasks": tasks, "disjoint_percent": disjoint, "blurry_percent": blurry, "mode": mode, "seed": seed}
        scenario = SiBlurry(**options, every=7, nfa_shift=0)(data)
        assert by_phase(scenario) == [phase for phase in expected if phase]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_laws_of_si_blurry(data):
    counts = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=14))
    dataset = toy(counts)
    tasks = data.draw(st.integers(1, len(counts)))
    n, m = data.draw(st.integers(0, 100)), data.draw(st.integers(0, 100))
    mode, seed = data.draw(st.sampled_from(["stochastic", "fixed"])), data.draw(st.integers(0, 2**40))
    every = data.draw(st.integers(1, min(3, *counts)))  # no longer than the shortest stream
    make = SiBlurry(tasks=tasks, disjoint_percent=n, blurry_percent=m, mode=mode, seed=seed, every=every, nfa_shift=0)
    n_disjoint = (len(counts) * n // 100) // tasks * tasks
    n_blurry = (len(counts) - n_disjoint) // tasks * tasks
    scenario = make(dataset)
    phases = by_phase(scenario)
    every_one = [i for phase in phases for i in phase]
    assert len(every_one) == len(set(every_one)), "an image comes twice"
    labels = dataset.train.labels.tolist()
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = set(order[: n_disjoint + n_blurry])
    of_kept = {i for i, label in enumerate(labels) if label in kept}
    lost = of_kept - set(every_one)
    assert set(every_one) <= of_kept and (not lost if mode == "stochastic" else len(lost) < tasks)
    homes = classes_of(dataset, phases)
    for label in order[:n_disjoint]:
        assert sum(label in home for home in homes) == 1, "a disjoint class comes in two phases"
    if m == 0:
        assert sum(map(len, homes)) == len(kept), "with nothing mixed, each class has one phase"
    dropped = len(counts) - n_disjoint - n_blurry
    assert (f"{dropped} classes dropped" in scenario.name) == bool(dropped)
    check_stream(scenario, dataset, every_one, every)


def check_stream(scenario, dataset, in_order, every):
    """What every stream promises, whatever its phases."""
    labels, seen, exposed = dataset.train.labels.tolist(), 0, []
    assert scenario.streams and scenario.every == every
    assert positions(scenario.stretch(0, len(in_order))) == in_order
    for index, task in enumerate(scenario.tasks):
        assert not task.boundary and task.index == index and 1 <= len(task.train) <= every
        before = len(exposed)
        for label in (labels[i] for i in positions(task.train)):
            if label not in exposed:
                exposed.append(label)
        assert list(task.new) == list(range(before, len(exposed)))
        assert [exposed[label] for label in task.train.labels.tolist()] == [labels[i] for i in positions(task.train)]
        assert list(task.present) == sorted(set(task.train.labels.tolist()))
        seen += len(task.train)
        assert scenario.images_seen[index] == seen
        assert seen % every == 0 or index in scenario.phase_ends, "a cut where nothing is measured"
    assert list(scenario.class_order) == exposed
    assert scenario.class_names == tuple(f"class {label}" for label in exposed)
    assert scenario.test.labels.tolist() == sorted(list(range(len(exposed))) * 2)
    assert [exposed[label] for label in scenario.test.labels.tolist()] == scenario.test.raw()[:, 0, 0, 0].tolist()
    assert {*range(every, seen + 1, every)} <= set(scenario.images_seen.tolist())
    assert sorted(set(scenario.phases)) == list(range(len(scenario.phase_ends)))
    assert scenario.data_fingerprint == dataset.sha256()


def test_disjoint_classes_alone_make_disjoint_phases():
    data = toy(COUNTS)
    for seed in range(20):
        scenario = SiBlurry(tasks=5, disjoint_percent=100, blurry_percent=0, seed=seed, every=5, nfa_shift=0)(data)
        homes = classes_of(data, by_phase(scenario))
        assert sum(map(len, homes)) == len(set().union(*homes)) == 10  # the eleventh is dropped
        assert "1 classes dropped" in scenario.name


def test_in_fixed_mode_every_phase_has_as_many_classes_of_its_own():
    data = toy((20,) * 20)
    scenario = SiBlurry(tasks=5, disjoint_percent=50, blurry_percent=0, mode="fixed", every=10, nfa_shift=0)(data)
    assert [len(home) for home in classes_of(data, by_phase(scenario))] == [4] * 5
    blurred = SiBlurry(tasks=5, disjoint_percent=50, blurry_percent=10, mode="fixed", every=10, nfa_shift=0)(data)
    assert [len(phase) for phase in by_phase(blurred)] == [80] * 5


def test_empty_phases_are_passed_over_and_told():
    data = toy((5,) * 4)
    found = [SiBlurry(tasks=4, seed=seed, every=5, nfa_shift=0)(data) for seed in range(40)]
    told = [scenario for scenario in found if "empty" in scenario.name]
    assert told and len(told) < len(found)
    for scenario in told:
        assert len(scenario.phase_ends) < 4
        assert f"4 tasks ({4 - len(scenario.phase_ends)} empty)" in scenario.name


BUILDERS = {
    "si_blurry": lambda **more: SiBlurry(**{"tasks": 3, "every": 7, "nfa_shift": 0, **more}),
    "online": lambda **more: Online(**{"step": 4, "every": 7, "nfa_shift": 0, **more}),
    "generalised": lambda **more: Generalised(**{"tasks": 3, **more}),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_seed_gives_one_scenario_and_touches_no_global_generator(name):
    data = toy(COUNTS)
    first = BUILDERS[name](seed=4)(data)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    again = BUILDERS[name](seed=4)(data)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert again.fingerprint == first.fingerprint
    assert [positions(task.train) for task in again.tasks] == [positions(task.train) for task in first.tasks]
    other = BUILDERS[name](seed=5)(data)
    assert other.fingerprint != first.fingerprint
    assert other.data_fingerprint == first.data_fingerprint == data.sha256()
    assert ClassIncremental(step=4)(data).data_fingerprint == data.sha256()


DRAWN = {
    **{name: lambda make=make, **more: make(**{"seed": None, **more}) for name, make in BUILDERS.items()},
    "class_incremental": lambda **more: ClassIncremental(**{"step": 4, "order": None, **more}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_left_to_the_run_is_drawn_by_its_seed(name):
    data, builder = toy(COUNTS), DRAWN[name]()
    option = "order" if name == "class_incremental" else "seed"
    made = [builder.build(data, seed) for seed in (3, 4)]
    for seed, scenario in zip((3, 4), made, strict=True):
        stated = DRAWN[name](**{option: seed}).build(data, 9)
        assert (stated.fingerprint, stated.family) == (scenario.fingerprint, None)
        assert scenario.name == f"{stated.name}, {option} by run"
    assert made[0].fingerprint != made[1].fingerprint
    assert made[0].family == made[1].family
    assert getattr(builder, option) is None
    others = [DRAWN[name](**more).build(data, 3).family for more in VARIANTS[name]]
    assert len({made[0].family, DRAWN[name]().build(toy([9] * 11), 3).family, *others}) == 2 + len(others)
    with pytest.raises(UserError, match=f"{option}=None; legal"):
        builder(data)


VARIANTS = {
    "si_blurry": [{"blurry_percent": 30}, {"every": 8}],
    "online": [{"step": 3}, {"order": 5}],
    "generalised": [{"returning": 0.1}],
    "class_incremental": [{"step": 3}, {"first": 5}],
}


def test_order_and_stream_may_both_be_left_to_the_run():
    made = Online(step=4, order=None, seed=None, every=7, nfa_shift=0).build(toy(COUNTS), 3)
    assert made.fingerprint == Online(step=4, order=3, seed=3, every=7, nfa_shift=0)(toy(COUNTS)).fingerprint
    assert made.name.endswith(", order and seed by run")


def test_the_fingerprint_covers_order_cuts_and_boundaries():
    data = toy((4, 4))
    index = np.arange(8)
    swapped = index[[1, 0, 2, 3, 4, 5, 6, 7]]
    made = [
        stream(data, [index], name="", every=4, nfa_shift=0),
        stream(data, [swapped], name="", every=4, nfa_shift=0),
        stream(data, [index], name="", every=2, nfa_shift=0),
        stream(data, [index[:4], index[4:]], name="", every=4, nfa_shift=0),
        stream(toy((4, 4, 1)), [index], name="", every=4, nfa_shift=0),
        recurring(data, [index[:4], index[4:]], name=""),
        recurring(data, [index], name=""),
    ]
    assert len({scenario.fingerprint for scenario in made}) == len(made)
    # What is measured beside it and what it is called do not make another stream.
    assert stream(data, [index], name="x", every=4, nfa_shift=3).fingerprint == made[0].fingerprint


def test_a_stretch_crosses_pieces_and_ends_with_the_stream():
    data = toy((9, 8))
    order = np.random.RandomState(0).permutation(17)
    scenario = stream(data, [order[:10], order[10:]], name="", every=4, nfa_shift=0)
    assert scenario.images_seen.tolist() == [4, 8, 10, 12, 16, 17]
    for start in range(0, 22):
        for stop in (start, start + 1, start + 5, start + 30):
            assert positions(scenario.stretch(start, stop)) == order[start:stop].tolist()


def test_the_shift_is_chosen_where_labels_no_longer_tell():
    data = toy((40,) * 12)
    online = Online(step=1, order="natural", every=40)(data)  # blocks of 40 equal labels
    assert online.nfa_shift == 64  # of the powers of two the first from 39 on
    assert online.blind.shift == 64 and online.blind.accuracy == 0
    assert Online(step=12, every=40)(data).nfa_shift == 0  # all classes mixed
    assert Online(step=1, every=40, nfa_shift=3)(data).nfa_shift == 3


def test_labels_that_tell_at_every_shift_need_a_number(monkeypatch):
    monkeypatch.setattr("cil.data.blind.near_future", lambda labels, slack: None)
    with pytest.raises(UserError, match="give nfa_shift"):
        Online(step=1, every=5)(toy(COUNTS))
    assert Online(step=1, every=5, nfa_shift=9)(toy(COUNTS)).nfa_shift == 9


def test_phases_of_a_scenario_with_boundaries_are_its_tasks():
    scenario = ClassIncremental(step=3)(toy(COUNTS))
    assert scenario.phases is None and not scenario.streams and scenario.every is None
    assert scenario.phase_of_task.tolist() == list(range(4)) and scenario.phase_ends == (0, 1, 2, 3)


# --- online -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"step": 4}, {"first": 5, "step": 2}, {"sizes": [1, 9, 1]}])
def test_online_streams_the_tasks_of_the_class_incremental_scenario(options):
    data = toy(COUNTS)
    like = ClassIncremental(**options, order=7)(data)
    scenario = Online(**options, order=7, every=6, nfa_shift=0)(data)
    phases = by_phase(scenario)
    assert [sorted(phase) for phase in phases] == [sorted(positions(task.train)) for task in like.tasks]
    assert phases != [positions(task.train) for task in like.tasks]
    check_stream(scenario, data, [i for phase in phases for i in phase], 6)
    assert scenario.name.startswith(like.name)


# --- generalised ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_laws_of_generalised_tasks(data):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=10))
    dataset = toy(counts)
    tasks = data.draw(st.integers(1, len(counts)))
    returning, imbalance = data.draw(st.sampled_from([0.0, 0.4, 1.0])), data.draw(st.sampled_from([1.0, 5.0]))
    seed = data.draw(st.integers(0, 2**40))
    scenario = Generalised(tasks=tasks, returning=returning, imbalance=imbalance, seed=seed)(dataset)
    assert len(scenario.tasks) == tasks and not scenario.streams
    used = [i for task in scenario.tasks for i in positions(task.train)]
    assert len(used) == len(set(used)), "an image comes twice"
    labels, homes = dataset.train.labels.tolist(), [set() for _ in counts]
    for task in scenario.tasks:
        assert task.boundary and task.n_new >= 1
        assert set(task.new) <= set(task.present)
        assert list(task.present) == sorted(set(task.train.labels.tolist()))
        assert [scenario.class_order[y] for y in task.train.labels.tolist()] == [
            labels[i] for i in positions(task.train)
        ]
        for y in task.present:
            homes[scenario.class_order[y]].add(task.index)
    assert sorted(scenario.class_order) == list(range(len(counts)))
    if imbalance == 1:
        assert len(used) == len(labels), "an image is lost"
    for label, home in enumerate(homes):
        if returning == 0:
            assert len(home) == 1
        if returning == 1:
            first = min(home)
            kept = sum(labels[i] == label for i in used)
            assert sorted(home) == list(range(first, min(tasks, first + kept)))


def test_a_long_tail_by_hand():
    assert long_tail(100, 3, 100).tolist() == [100, 10, 1]
    assert long_tail(16, 5, 16).tolist() == [16, 8, 4, 2, 1]
    assert long_tail(500, 1, 100).tolist() == [500]
    assert long_tail(7, 4, 1).tolist() == [7] * 4
    assert long_tail(2, 3, 100).tolist() == [2, 1, 1]  # no class vanishes


def test_long_tailed_tasks_keep_the_profile_and_all_test_images():
    data = toy((50,) * 6)
    scenario = Generalised(tasks=3, imbalance=10, seed=2)(data)
    total = sum(task.train.counts(6) for task in scenario.tasks)
    expected = [int(50 * 10 ** (-c / 5) + 1e-9) for c in range(6)]
    assert sorted(total.tolist(), reverse=True) == expected
    assert scenario.test.counts(6).tolist() == [2] * 6
    # Which classes are rare does not follow the order of appearance.
    orders = {
        tuple(np.argsort(-sum(t.train.counts(6) for t in Generalised(tasks=3, imbalance=10, seed=s)(data).tasks)))
        for s in range(8)
    }
    assert len(orders) > 4


def test_sizes_of_generalised_tasks_differ_by_seed():
    data = toy((30,) * 10)
    sizes = {tuple(len(task.train) for task in Generalised(seed=seed)(data).tasks) for seed in range(10)}
    assert len(sizes) == 10


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (SiBlurry(tasks=0), "tasks=0; legal: a whole number from 1 to 11"),
        (SiBlurry(tasks=12), "tasks=12; legal"),
        (SiBlurry(tasks=2.0), "tasks=2.0; legal"),
        (SiBlurry(disjoint_percent=101), "disjoint_percent=101; legal: a whole number from 0 to 100"),
        (SiBlurry(blurry_percent=-1), "blurry_percent=-1; legal"),
        (SiBlurry(seed=-1), "seed=-1; legal"),
        (SiBlurry(mode="stochastik"), "did you mean 'stochastic'"),
        (SiBlurry(every=0), "every=0; legal: a whole number from 1 to"),
        (SiBlurry(), "every=1000; legal: a whole number from 1 to"),
        (SiBlurry(every=7, nfa_shift=1000), "nfa_shift=1000; legal"),
        (SiBlurry(every=7, nfa_shift=True), "nfa_shift=True; legal"),
        (Online(every=7), "one of step and sizes, not neither"),
        (Online(step=2, order="naturl", every=7), "did you mean 'natural'"),
        (Online(step=2, every=7, seed=1.5), "seed=1.5; legal"),
        (Generalised(tasks=12), "tasks=12; legal: a whole number from 1 to 11"),
        (Generalised(returning=1.5), "returning=1.5; legal: a probability from 0 to 1"),
        (Generalised(returning=float("nan")), "returning=nan; legal"),
        (Generalised(imbalance=0.5), "imbalance=0.5; legal: a number from 1 on"),
        (Generalised(imbalance=float("inf")), "imbalance=inf; legal"),
        (Generalised(seed="a"), "seed='a'; legal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_key_and_value(builder, message):
    with pytest.raises(UserError, match=message):
        builder(toy(COUNTS))


@pytest.mark.parametrize(
    "phases", [[], [np.array([], int)], [np.array([0, 0])], [np.array([0]), np.array([0])], [np.array([99])], [[-1]]]
)
def test_positions_that_make_no_stream_are_refused(phases):
    with pytest.raises(ValueError):
        stream(toy((4, 4)), phases, name="", every=1, nfa_shift=0)
    with pytest.raises(ValueError):
        recurring(toy((4, 4)), phases, name="")


def test_a_task_without_data_keeps_what_grow_may_know():
    task = stream(toy((4, 4)), [np.arange(8)], name="", every=4, nfa_shift=0).tasks[1]
    empty = task.without_data()
    assert len(empty.train) == 0 and dataclasses.replace(empty, train=task.train) == task
