"""Real Avalanche benchmarks and strategies on small synthetic data, in both directions."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its many dependencies, some complain at import
    from avalanche.benchmarks import (
        benchmark_from_datasets,
        class_incremental_benchmark,
        nc_benchmark,
        new_instances_benchmark,
    )
    from avalanche.benchmarks.utils import _make_taskaware_classification_dataset as wrap
    from avalanche.benchmarks.utils import make_avalanche_dataset
    from avalanche.benchmarks.utils.data_attribute import DataAttribute
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

from cil.data.images import Dataset, ImageSet
from cil.errors import UserError
from scenarios.avalanche import as_uint8, from_avalanche, isolated, to_avalanche
from scenarios.class_incremental import ClassIncremental

NAMES = [f"class {label}" for label in range(10)]


class Pictures(TorchDataset):
    """A data set as torchvision's: PIL images, targets, class names, a transform of its own."""

    classes = NAMES

    def __init__(self, per_class, n_classes=10, transform=None, seed=0, mode="RGB"):
        self.targets = [label for _ in range(per_class) for label in range(n_classes)]
        shape = (len(self.targets), 6, 6, 3) if mode == "RGB" else (len(self.targets), 6, 6)
        self.pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        self.transform = transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = Image.fromarray(self.pixels[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]


def noise(image):
    """A random transform, which must never be seen: it draws from every generator and spoils the image."""
    random.random()
    np.random.rand()
    torch.rand(1)
    return torch.rand(3, 6, 6)


def pictures(**options):
    return {"train": Pictures(3, seed=1, **options), "test": Pictures(2, seed=2, **options)}


def state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def toy_scenario(channels=3, mean=None, std=None):
    rng = np.random.default_rng(5)
    train = ImageSet(rng.integers(0, 256, (40, 6, 6, channels), dtype=np.uint8), np.arange(40) % 10)
    test = ImageSet(rng.integers(0, 256, (20, 6, 6, channels), dtype=np.uint8), np.arange(20) % 10)
    return ClassIncremental(sizes=[4, 3, 3])(Dataset("toy", train, test, tuple(NAMES), mean, std))


def by_class(images):
    """The set of image contents of each label: equal whatever the order."""
    return {
        label: sorted(image.tobytes() for image in images.of_classes([label]).raw())
        for label in set(images.labels.tolist())
    }


def assert_holds(scenario, data, labels=None):
    """The scenario has exactly the images of these pictures under the right classes."""
    for split, images in (
        ("train", [pair for task in scenario.tasks for pair in zip(task.train.raw(), task.train.labels, strict=True)]),
        ("test", list(zip(scenario.test.raw(), scenario.test.labels, strict=True))),
    ):
        found = sorted((scenario.class_names[int(label)], image.tobytes()) for image, label in images)
        source = zip(data[split].targets, data[split].pixels, strict=True)
        assert found == sorted((NAMES[target], image.tobytes()) for target, image in source)


@pytest.mark.parametrize("own_transform", [None, noise])
def test_from_class_incremental_benchmark(own_transform):
    data = pictures(transform=own_transform)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    groups = {"train": (noise, None), "eval": (noise, None)}
    wrapped = {key: wrap(value, transform_groups=groups) for key, value in data.items()}
    benchmark = class_incremental_benchmark(wrapped, class_order=order, num_classes_per_exp=[5, 2, 3])
    before = state()
    scenario = from_avalanche(benchmark)
    assert state() == before
    assert [task.n_new for task in scenario.tasks] == [5, 2, 3]
    assert [{scenario.class_order[new] for new in task.new} for task in scenario.tasks] == [
        {3, 1, 4, 0, 5},
        {9, 2},
        {6, 8, 7},
    ]
    assert scenario.name == "avalanche sizes 5-2-3" and scenario.image_shape == (3, 6, 6)
    assert_holds(scenario, data)
    assert data["train"].transform is own_transform  # the user's data set is as it was
    assert from_avalanche(benchmark, name="mine").name == "mine"


@pytest.mark.parametrize("remap", [False, True])
def test_from_nc_benchmark(remap):
    data = pictures()
    with isolated():
        benchmark = nc_benchmark(
            data["train"],
            data["test"],
            5,
            task_labels=False,
            seed=4,
            class_ids_from_zero_from_first_exp=remap,
            train_transform=noise,
            eval_transform=noise,
        )
    scenario = from_avalanche(benchmark)
    assert [task.n_new for task in scenario.tasks] == [2] * 5
    assert_holds(scenario, data)  # by name: also where labels were renumbered
    if remap:
        assert scenario.class_order == tuple(range(10))
        assert scenario.class_names == tuple(NAMES[label] for label in benchmark.classes_order_original_ids)


def test_from_pieces_of_data_sets():
    """Subsets, concatenations and tensors, frozen transforms, and one test experience for all classes."""
    data = pictures()
    pixels = torch.from_numpy(data["test"].pixels).permute(0, 3, 1, 2)
    tensors = TensorDataset(pixels.float() / 255, torch.tensor(data["test"].targets))
    halves = ConcatDataset([Subset(data["train"], range(12, 30)), Subset(data["train"], range(12))])

    def part(classes):
        rows = [row for row in range(30) if halves[row][1] in classes]
        targets = [halves[row][1] for row in rows]
        frozen = wrap(Subset(halves, rows), targets=targets, transform_groups=groups)
        return frozen.freeze_transforms()

    groups = {"train": (noise, None), "eval": (noise, None)}
    test = make_avalanche_dataset(tensors, data_attributes=[DataAttribute(data["test"].targets, "targets")])
    scenario = from_avalanche(benchmark_from_datasets(train=[part({0, 7}), part(set(range(10)) - {0, 7})], test=[test]))
    assert [task.n_new for task in scenario.tasks] == [2, 8]
    assert_holds(scenario, data)


def test_the_remainder_that_avalanche_drops_is_found():
    for last in (9, 2):  # as the highest label its absence leaves no gap in the others
        order = [label for label in range(10) if label != last] + [last]
        benchmark = class_incremental_benchmark(pictures(), class_order=order, num_experiences=3)
        assert sum(len(experience.classes_in_this_experience) for experience in benchmark.train_stream) == 9
        with pytest.raises(UserError, match=rf"classes \[{last}\] of the data set .* in no train experience"):
            from_avalanche(benchmark)
        with pytest.raises(UserError, match="n_classes=10, but the benchmark has 9"):
            from_avalanche(benchmark, n_classes=10)
        chosen = from_avalanche(benchmark, n_classes=9)
        assert [task.n_new for task in chosen.tasks] == [3, 3, 3] and NAMES[last] not in chosen.class_names


def test_dropped_class_is_found_by_the_gap_where_data_have_no_labels_of_their_own():
    class Unlabelled(Pictures):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.hidden, self.targets = self.targets, None

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, index):
            return Image.fromarray(self.pixels[index]), self.hidden[index]

    data = {"train": Unlabelled(3), "test": Unlabelled(2)}
    wrapped = {key: wrap(value, targets=value.hidden, task_labels=0) for key, value in data.items()}
    benchmark = class_incremental_benchmark(wrapped, class_order=[0, 1, 2, 4, 5, 6, 7, 8, 9, 3], num_experiences=3)
    with pytest.raises(UserError, match=r"classes \[3\] are in no experience"):
        from_avalanche(benchmark)


def streams(train, test):
    """A benchmark whose experiences have just these classes."""
    data = pictures()

    def cut(split, groups):
        wrapped = wrap(data[split])
        rows = [[row for row, target in enumerate(data[split].targets) if target in group] for group in groups]
        return [wrapped.subset(chosen) for chosen in rows]

    return benchmark_from_datasets(train=cut("train", train), test=cut("test", test))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([{0, 1}, {1, 2}], [{0, 1, 2}], "class 1 is in train experiences 0 and 1"),
        ([{0, 1}, {2, 3}], [{0, 1}, {0, 1, 2, 3}], "class 0 is in test experiences 0 and 1"),
        ([{0, 1}, {2, 3}], [{0, 1, 2}], r"only in train \[3\], only in test \[\]"),
        ([{0, 1}, {2}], [{0, 1}, {2, 3}], r"only in train \[\], only in test \[3\]"),
        ([{0, 1}, {2, 3}], [{2, 3}, {0, 1}], r"test experience 0 has classes \[2, 3\], training experience 0 has"),
        ([{0, 1}, {2, 3}], [{0, 1}, {2}, {3}], r"test experience 1 has classes \[2\]"),
        ([{0, 1}, set(), {2, 3}], [{0, 1, 2, 3}], "train experience 1 is empty"),
    ],
)
def test_streams_that_do_not_agree(train, test, message):
    with pytest.raises(UserError, match=message):
        from_avalanche(streams(train, test), n_classes=4)


def test_other_kinds_of_benchmark_are_refused():
    wrapped = {key: wrap(value) for key, value in pictures().items()}
    with isolated():
        benchmark = new_instances_benchmark(wrapped["train"], wrapped["test"], 3, seed=0)
        renumbered = nc_benchmark(
            wrapped["train"], wrapped["test"], 5, task_labels=True, seed=0, class_ids_from_zero_in_each_exp=True
        )
    for wrong in (benchmark, renumbered):
        with pytest.raises(UserError, match="class 0 is in train experiences 0 and 1"):
            from_avalanche(wrong)


def test_images_of_different_sizes_are_refused():
    data = pictures()
    data["test"] = Pictures(2, mode="L")
    with pytest.raises(UserError, match=r"train images are \(C, H, W\) = \(3, 6, 6\), test images \(1, 6, 6\)"):
        from_avalanche(class_incremental_benchmark(data, class_order=list(range(10)), num_experiences=2))
    data = pictures()
    data["train"].pixels = [*data["train"].pixels[:-1], np.zeros((5, 6, 3), dtype=np.uint8)]
    with pytest.raises(UserError, match=r"train image \d+ is \(H, W, C\) = .*must be of one size"):
        from_avalanche(class_incremental_benchmark(data, class_order=list(range(10)), num_experiences=2))


def test_seeded_builders_change_the_global_generators_except_when_isolated():
    def build():
        return class_incremental_benchmark(pictures(), num_experiences=5, seed=77)

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = state()
    with isolated():
        inside = build()
        random.seed(9)
        np.random.seed(9)
    assert state() == before
    outside = build()
    assert state() != before  # the trap is there: if this fails, Avalanche has mended it
    assert from_avalanche(inside).class_order == from_avalanche(outside).class_order
    with pytest.raises(KeyError), isolated():
        torch.manual_seed(5)
        before = state()
        raise KeyError
    assert state() != before  # given back although the block failed


def test_data_sets_that_draw_as_they_are_read_leave_the_generators_alone():
    class Restless(Pictures):
        def __getitem__(self, index):
            noise(None)
            return super().__getitem__(index)

    data = {"train": Restless(3), "test": Restless(2)}
    benchmark = class_incremental_benchmark(dict(data), class_order=list(range(10)), num_experiences=5)
    before = state()
    assert_holds(from_avalanche(benchmark), data)
    assert state() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(channels):
    scenario = toy_scenario(channels)
    before = state()
    again = from_avalanche(to_avalanche(scenario))
    assert state() == before
    assert [task.n_new for task in again.tasks] == [4, 3, 3]
    assert again.class_names == scenario.class_names
    assert again.class_order == tuple(range(10))  # the benchmark's labels are the scenario's ids
    for mine, theirs in zip(scenario.tasks, again.tasks, strict=True):
        assert torch.equal(mine.train.labels, theirs.train.labels)
        assert np.array_equal(mine.train.raw(), theirs.train.raw())
    assert by_class(again.test) == by_class(scenario.test)


def test_to_avalanche_gives_what_a_strategy_reads():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    scenario = toy_scenario(mean=mean, std=std)
    benchmark = to_avalanche(scenario)
    for task, experience in zip(scenario.tasks, benchmark.train_stream, strict=True):
        assert sorted(experience.classes_in_this_experience) == list(task.new)
        image, label, task_label = experience.dataset[1]
        assert (label, task_label) == (int(task.train.labels[1]), 0)
        expected = (task.train.raw()[1] / 255 - np.array(mean)) / np.array(std)
        assert np.allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    raw = to_avalanche(scenario, train_transform=lambda x: x + 1, eval_transform=lambda x: x)
    assert torch.equal(raw.test_stream[1].dataset[0][0], scenario.test.of_classes(scenario.tasks[1].new).gather()[0])
    item = raw.train_stream[0].dataset
    assert torch.equal(item[0][0], scenario.tasks[0].train.gather()[0] + 1)
    assert torch.equal(item.eval()[0][0], scenario.tasks[0].train.gather()[0])


@pytest.mark.filterwarnings("ignore:No loggers", "ignore:Call to deprecated function")
def test_an_avalanche_strategy_trains_on_it():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 6
    pixels = rng.integers(0, 240, (6, 6, 6, 3), dtype=np.uint8)[labels]  # a pattern for each class
    pixels += rng.integers(0, 16, pixels.shape, dtype=np.uint8)
    data = Dataset("easy", ImageSet(pixels, labels), ImageSet(pixels[:12], labels[:12]), tuple("abcdef"))
    scenario = ClassIncremental(step=3, order="natural")(data)
    with isolated():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(108, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6)
        )
        strategy = Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=10,
            train_epochs=20,
            plugins=[ReplayPlugin(mem_size=30)],
            evaluator=EvaluationPlugin(loggers=[]),
        )
        for experience in to_avalanche(scenario).train_stream:
            strategy.train(experience)
    predicted = model(scenario.test.gather().float() / 255).argmax(1)
    assert (predicted == scenario.test.labels).float().mean() > 0.8


def test_to_avalanche_refuses_classes_that_come_back():
    from dataclasses import replace

    scenario = toy_scenario()
    second = replace(scenario.tasks[1], present=(0, *scenario.tasks[1].present))
    with pytest.raises(UserError, match=r"task 1 has classes \[0, 4, 5, 6\], new ones are \[4, 5, 6\]"):
        to_avalanche(replace(scenario, tasks=(scenario.tasks[0], second, scenario.tasks[2])))


LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(LEVELS),
        LEVELS,
        LEVELS.astype(np.int64),
        torch.from_numpy(LEVELS),
        torch.from_numpy(LEVELS)[None],
        torch.from_numpy(LEVELS)[None].short(),
        torch.from_numpy(LEVELS)[None] / 255,
        torch.from_numpy(LEVELS)[None].float() * (1 / 255),
        torch.from_numpy(LEVELS)[None].double() / 255,
        (torch.from_numpy(LEVELS)[None].float() / 255).half(),
    ],
)
def test_exact_images(image):
    assert np.array_equal(as_uint8(image), LEVELS[..., None])


def test_colour_keeps_its_place():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert np.array_equal(as_uint8(Image.fromarray(pixels)), pixels)
    assert np.array_equal(as_uint8(torch.from_numpy(pixels).permute(2, 0, 1) / 255), pixels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 4, 4), 0.5), "holds 0.5; float32 pixels .* k / 255"),  # 127.5 would have to be rounded
        (torch.full((1, 4, 4), -1.0), "holds -1.0"),
        (torch.full((1, 4, 4), 200.0), "holds 200.0"),
        (torch.full((1, 4, 4), float("nan")), "holds nan"),
        (torch.full((1, 4, 4), 256), "holds 256; int64 pixels"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), "holds bool"),
        (torch.rand(7, 4, 4), "which is not that of an image"),
        (torch.zeros(108), "which is not that of an image"),
        (Image.new("RGBA", (4, 4)), "mode RGBA"),
        (Image.new("I;16", (4, 4)), "mode I;16"),
        ("cat.png", "is a str"),
    ],
)
def test_images_that_cannot_be_taken_over_exactly(image, message):
    with pytest.raises(UserError, match=f"here .*{message}"):
        as_uint8(image, "here")
