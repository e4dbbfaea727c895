"""Forgetting: rows, means and exemplars go, sums where images are given; ids stay, and what remains is said."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import cil
from cil.command.names import strategies
from cil.data.images import Dataset
from cil.errors import UserError
from cil.learning.forgetting import LEARNED_FROM
from cil.learning.frozen import Frozen
from cil.testing.lab import equal_states
from scenarios import datasets
from tests.models import ROOT, configuration, learned, memory

FROZEN = ["--model.weights", "random", "--model.frozen", "true", "--model.preprocessing.mean", "0.4"]
FROZEN += ["--model.preprocessing.std", "0.3", "--scenario.order", "natural", "--precision", "64"]
GONE = 2  # a class of the first task
LATE = 7  # and one of the second
EXACT = {"fecam", "knn", "ncm", "protonet", "simplecil", "teen"}
RIDGE = {"acil": [], "gacil": [], "ranpac": ["--strategy.penalties", "[10]"]}


def small(name):
    decided = strategies()[name].sized_by
    return [f"--strategy.{decided}", "8"] if decided else []


def without(labels=(), images=()):
    """The loader of the digits without some classes, or without some training images."""

    def load(*args, **options):
        data = datasets.load(*args, **options)
        train = data.train.subset([i for i in range(len(data.train)) if i not in images])
        kept = [label for label in range(len(data.classes)) if label not in labels]
        to = np.full(len(data.classes), -1)
        to[kept] = np.arange(len(kept))
        parts = (part.of_classes(kept).relabel(to) for part in (train, data.test))
        return Dataset("digits", *parts, tuple(data.classes[label] for label in kept), data.mean, data.std)

    return load


def of_class(experiment, label):
    """The training images of a class."""
    task = next(task for task in experiment.scenario.tasks if label in task.new)
    return task.train.of_classes([label]).raw()


def grown_numbers(strategy, task):
    """For each tensor of the state the axes that follow the number of classes."""
    before = {name: value.shape for name, value in strategy.state_dict().items()}
    strategy.grow(task)
    found = {}
    for name, value in strategy.state_dict().items():
        axes = zip(before.get(name, value.shape), value.shape, strict=True)
        found[name] = [axis for axis, (old, new) in enumerate(axes) if new - old == task.n_new]
    return found


@pytest.mark.parametrize("name", sorted(strategies()))
def test_nothing_that_belongs_to_a_class_remains(name, tmp_path):
    experiment, _ = learned(tmp_path, *configuration(name), *memory(name), *small(name))
    model = cil.load(tmp_path)
    before, names = model.state(), model.classes
    less = model.forget([names[GONE], names[LATE]])
    assert less.classes == tuple(one for i, one in enumerate(names) if i not in (GONE, LATE))
    assert all(less.ids[one] == model.ids[one] for one in less.classes)
    assert not np.isin(less.exemplars.labels, [GONE, LATE]).any()
    kept = ~np.isin(model.exemplars.labels, [GONE, LATE])
    assert np.array_equal(less.exemplars.images, model.exemplars.images[kept])
    assert not equal_states(before.tensors, model.tensors())

    looked, tensors = 0, less.strategy.state_dict()
    three = experiment.scenario.tasks[1]
    axes = grown_numbers(cil.load(tmp_path).strategy, type(three)(2, range(10, 13), (10, 11, 12), three.train))
    for key, own in axes.items():
        for axis in own:
            rows = tensors[key].index_select(axis, torch.tensor([GONE, LATE]))
            assert not rows.any(), key
            looked += 1
    assert looked

    images = experiment.scenario.test.raw()[::7]
    scores = less.scores(images)
    assert torch.isneginf(scores[:, [GONE, LATE]]).all() and not torch.isnan(scores).any()
    assert not {names[GONE], names[LATE]} & set(less.predict(images))
    assert all(one.name for best in less.top(images, 99) for one in best)
    less.save(tmp_path / "less.safetensors")
    assert torch.equal(cil.load(tmp_path / "less.safetensors").scores(images), scores)

    # Learning goes on: what was forgotten comes again under another id.
    again = less.extend({names[GONE]: of_class(experiment, GONE), "new": images[:12]})
    assert (again.ids[names[GONE]], again.ids["new"], again.revision) == (10, 11, 3)
    assert not torch.isnan(again.scores(images)).any()


@pytest.fixture
def pair(tmp_path):
    """Makes a model of all data, and one of data in which some are missing."""

    def make(name, *more, labels=(), images=(), sizes="[5,5]", how=FROZEN):
        words = [
            *configuration(name),
            *how,
            *small(name),
            "--memory.exemplars",
            "0",
            "--scenario.step",
            "null",
            *more,
        ]
        experiment, _ = learned(tmp_path / "all", *words, "--scenario.sizes", "[5,5]")
        learned(tmp_path / "less", *words, "--scenario.sizes", sizes, load=without(labels, images))
        return experiment, cil.load(tmp_path / "all"), cil.load(tmp_path / "less")

    return make


def images_of(experiment):
    return experiment.scenario.test.raw()[::5]


@pytest.mark.parametrize("label", [GONE, LATE])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_prototypes_are_those_of_a_model_that_never_learned_the_class(name, label, pair):
    experiment, model, never = pair(name, labels=[label], sizes="[4,5]" if label < 5 else "[5,4]")
    less = model.forget(model.classes[label])
    assert less.history[-1]["remains"] == []
    kept = [i for i in range(10) if i != label]
    images = images_of(experiment)
    assert less.predict(images) == never.predict(images)
    torch.testing.assert_close(less.scores(images)[:, kept], never.scores(images), rtol=1e-5, atol=1e-6)
    # and they learn on alike
    more = {"new": images[:9], "newer": images[9:20]}
    one, other = less.extend(more), never.extend(more)
    torch.testing.assert_close(one.scores(images)[:, [*kept, 10, 11]], other.scores(images), rtol=1e-5, atol=1e-6)


def test_a_later_class_is_forgotten_exactly_where_the_backbone_learned_in_the_first_task(pair):
    how = ["--scenario.order", "natural", "--precision", "64"]
    experiment, model, never = pair("simplecil", labels=[LATE], sizes="[5,4]", how=how)
    less, images = model.forget(model.classes[LATE]), images_of(experiment)
    assert less.history[-1]["remains"] == []
    kept = [i for i in range(10) if i != LATE]
    torch.testing.assert_close(less.scores(images)[:, kept], never.scores(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["accumulated", "recursive"])
@pytest.mark.parametrize("name", sorted(RIDGE))
def test_a_regression_forgets_the_images_that_it_is_given(name, solver, pair):
    options = [*RIDGE[name], *(["--strategy.solver", solver] if name != "ranpac" else [])]
    experiment, model, never = pair(name, *options, labels=[GONE], sizes="[4,5]")
    word, kept, images = model.classes[GONE], [i for i in range(10) if i != GONE], images_of(experiment)
    given = model.forget(word, images={word: of_class(experiment, GONE)})
    assert given.history[-1]["remains"] == []
    torch.testing.assert_close(given.scores(images)[:, kept], never.scores(images), rtol=1e-4, atol=1e-6)
    blind = model.forget(word)
    assert any("X^T X" in told for told in blind.history[-1]["remains"])
    assert (blind.scores(images)[:, kept] - never.scores(images)).abs().max() > 1e-3
    more = {"new": images[:9], "newer": images[9:20]}
    one, other = given.extend(more), never.extend(more)
    torch.testing.assert_close(one.scores(images)[:, [*kept, 10, 11]], other.scores(images), rtol=1e-4, atol=1e-6)


def test_the_kernel_method_forgets_a_later_class(pair):
    experiment, model, never = pair("gkeal", labels=[LATE], sizes="[5,4]")
    word, kept, images = model.classes[LATE], [i for i in range(10) if i != LATE], images_of(experiment)
    given = model.forget(word, images={word: of_class(experiment, LATE)})
    assert given.history[-1]["remains"] == []
    torch.testing.assert_close(given.scores(images)[:, kept], never.scores(images), rtol=1e-4, atol=1e-6)
    first = model.forget(model.classes[GONE], images={model.classes[GONE]: of_class(experiment, GONE)})
    assert any("centres" in told for told in first.history[-1]["remains"])


def test_the_discriminant_comes_close_with_the_images_and_says_what_is_left(pair):
    experiment, model, never = pair("slda", labels=[GONE], sizes="[4,5]")
    word, kept, images = model.classes[GONE], [i for i in range(10) if i != GONE], images_of(experiment)
    given, blind = model.forget(word, images={word: of_class(experiment, GONE)}), model.forget(word)
    wanted = never.strategy.covariance
    near, far = ((one.strategy.covariance - wanted).norm() / wanted.norm() for one in (given, blind))
    assert near < 0.05 and near < far / 2
    torch.testing.assert_close(given.strategy.prototypes.means[kept], never.strategy.prototypes.means)
    assert "running covariance" in given.history[-1]["remains"][0]
    assert "covariance of all classes" in blind.history[-1]["remains"][0]
    assert given.scores(images).shape == (len(images), 10)


@pytest.mark.parametrize("name", [*sorted(EXACT - {"knn"}), *sorted(RIDGE)])
def test_a_single_picture_is_forgotten(name, pair):
    load = datasets.load("digits", train_per_class=12)
    gone = [int(np.flatnonzero(load.train.labels.numpy() == label)[3]) for label in (GONE, LATE)]
    pictures = load.train.raw(gone)
    experiment, model, never = pair(name, *RIDGE.get(name, []), images=gone)
    less = model.forget(images=(pictures, [model.classes[GONE], model.classes[LATE]]))
    assert less.history[-1]["remains"] == [] and less.classes == model.classes
    assert less.history[-1]["images_of"] == sorted([model.classes[GONE], model.classes[LATE]])
    images = images_of(experiment)
    torch.testing.assert_close(less.scores(images), never.scores(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.scores(images), never.scores(images), rtol=1e-4, atol=1e-5)


def test_a_neighbour_that_is_forgotten_votes_no_more(pair):
    experiment, model, _ = pair("knn")
    kept = model.strategy.kept
    own = of_class(experiment, GONE)
    less = model.forget(images={model.classes[GONE]: own})
    assert int(kept.counts[GONE]) > 0 and int(less.strategy.kept.counts[GONE]) == 0
    assert torch.equal(less.strategy.kept.features[LATE], kept.features[LATE])
    assert less.history[-1]["remains"] == [
        "the choice of the other features of their classes, which was made with them"
    ]
    one = model.forget(images={model.classes[GONE]: own[:1]})
    assert int(kept.counts[GONE]) - int(one.strategy.kept.counts[GONE]) in (0, 1)


def test_a_reservoir_with_gaps_fills_them_and_holds_nothing_else(tmp_path):
    """Slots that forgetting emptied are taken by what comes, and no slot is left without an image."""
    words = ["--memory.exemplars", "30", "--memory.selection", "reservoir"]
    experiment, _ = learned(tmp_path, *configuration("replay"), *words)
    model = cil.load(tmp_path)
    less = model.forget([model.classes[i] for i in (1, 4, 6, 8)])
    held = len(less.exemplars)
    assert held < 25
    images = experiment.scenario.test.raw()[:200]
    more = less.extend((images, ["new"] * 120 + ["newer"] * 80))
    given, old = ({image.tobytes() for image in some} for some in (images, less.exemplars.images))
    labels = more.exemplars.labels
    assert held < len(labels) <= 30 and set(labels) <= {*range(12)} - {1, 4, 6, 8}
    for image, label in zip(more.exemplars.images, labels, strict=True):
        assert image.tobytes() in (given if label >= 10 else old)


def test_images_that_were_not_learned_cannot_be_taken_out(tmp_path):
    learned(tmp_path, *configuration("acil"), "--memory.exemplars", "0", "--strategy.width", "8")
    model = cil.load(tmp_path)
    strange = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    with pytest.raises(UserError, match="it has not learned all of them as they are given"):
        model.forget(images={model.classes[0]: strange})


def test_an_exemplar_is_forgotten_wherever_it_lies(tmp_path):
    learned(tmp_path, *configuration("wa"), "--memory.exemplars", "20")
    model = cil.load(tmp_path)
    label = int(model.exemplars.labels[4])
    less = model.forget(images={model.classes[label]: model.exemplars.images[4]})
    assert len(less.exemplars) == len(model.exemplars) - 1
    assert np.array_equal(less.exemplars.images, np.delete(model.exemplars.images, 4, 0))
    assert less.history[-1]["remains"] == [LEARNED_FROM]
    assert less.history[-1]["exemplars_removed"] == 1


def test_a_backbone_that_learned_is_said_to_remember(tmp_path):
    learned(tmp_path, *configuration("simplecil"), "--memory.exemplars", "0", "--model.frozen", "false")
    model = cil.load(tmp_path)
    assert "backbone" in model.forget(model.classes[0]).history[-1]["remains"][0]
    assert model.forget(model.classes[9]).history[-1]["remains"] == []


def test_mistakes_are_told(tmp_path):
    learned(tmp_path, *configuration("simplecil"), "--memory.exemplars", "0")
    model = cil.load(tmp_path)
    picture = np.zeros((8, 8), dtype=np.uint8)
    for words, told in (
        ((["nonsense"],), "classes: no 'nonsense'"),
        ((model.classes,), "leave it at least one"),
        (((),), "nothing is to be forgotten"),
    ):
        with pytest.raises(UserError, match=told):
            model.forget(*words)
    with pytest.raises(UserError, match="class: no 'nonsense'"):
        model.forget(images={"nonsense": picture})
    with pytest.raises(UserError, match="13 images are to be forgotten of a class that learned 12"):
        model.forget(images={model.classes[1]: [picture] * 13})
    less = model.forget(model.classes[3])
    with pytest.raises(UserError, match="classes: no"):
        less.forget(model.classes[3])


def test_the_documentation_says_what_forgetting_is_for_each_strategy():
    """Every strategy has one row of the table; the exact ones are those that are tested above."""
    text = (ROOT / "docs/models.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|$", text, re.M)
    told = {name: said for names, said in rows for name in re.findall(r"`(\w+)`", names) if name in strategies()}
    assert told.keys() == strategies().keys()
    assert {name for name, said in told.items() if said == "exact"} == EXACT
    with_images = {name for name, said in told.items() if said == "exact with its images"}
    assert with_images | {"ranpac"} == RIDGE.keys() | {"gkeal"}
    assert {name for name, said in told.items() if said.startswith("of its rows")} == {
        name for name, kind in strategies().items() if not issubclass(kind, Frozen)
    }
