"""What a run learned, in use: loaded without its data, asked, saved as one file, refused where it is none."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cil
from cil.command.names import strategies
from cil.data.images import Dataset
from cil.data.pictures import as_stored, resize
from cil.errors import UserError
from cil.evaluation.accuracy import evaluate
from cil.experiment.checkpoint import Checkpoints, Moment
from cil.learning.inference import passes
from cil.nets import lookup
from cil.testing.lab import equal_states
from scenarios import datasets
from tests.models import ROOT, configuration, learned, memory
from tools import predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of WA."""
    place = tmp_path_factory.mktemp("run")
    learned(place, *configuration("wa"), "--memory.exemplars", "20")
    return place


@pytest.mark.parametrize("name", sorted(strategies()))
def test_a_model_scores_as_its_run_did_and_extended_is_that_of_a_longer_run(name, tmp_path, monkeypatch):
    decided = strategies()[name].sized_by
    small = [f"--strategy.{decided}", "8"] if decided else []
    experiment, (_, strategy, exemplars) = learned(tmp_path, *configuration(name), *memory(name), *small)
    monkeypatch.setattr(datasets, "load", None)  # no data set can be read
    model = cil.load(tmp_path, device="cpu")
    assert not equal_states(dict(strategy.state_dict()), dict(model.strategy.state_dict()))
    assert not equal_states(exemplars.state(), model.exemplars.state())
    assert model.classes == experiment.scenario.class_names
    test = experiment.scenario.test.subset(np.arange(40))
    place = experiment.place(1)
    with lookup.one_size(False):
        own = torch.cat([scores for _, scores in passes(strategy, test, place)])
    found = model.scores(test.raw())
    assert found.shape == (40, 10)
    if strategy.evaluator == "linear":
        torch.testing.assert_close(found, own.float(), rtol=1e-4, atol=1e-4)
    right = evaluate(strategy, test, 10, exemplars, (strategy.evaluator,), place)[strategy.evaluator].confusion.trace()
    labels = test.labels.numpy()
    names = [experiment.scenario.class_names[label] for label in labels]
    assert sum(one == other for one, other in zip(model.predict(test.raw()), names, strict=True)) == right

    more = experiment.scenario.tasks[1].train
    before = cil.load(tmp_path, task=1)
    old = before.state()
    extended = before.extend(Dataset("more", more, experiment.scenario.test, experiment.scenario.class_names))
    assert not equal_states(model.tensors(), extended.tensors())
    assert not equal_states(old.tensors, before.tensors())
    assert (extended.classes, extended.revision) == (model.classes, 2)
    assert extended.blueprint == model.blueprint


def test_a_run_that_is_not_finished_has_a_model_after_each_task_that_is_kept(tmp_path):
    learned(tmp_path, *configuration("replay"), "--memory.exemplars", "20", stop_after=2)
    model = cil.load(tmp_path)
    assert len(model.classes) == 10
    first = cil.load(tmp_path, task=1)
    assert first.classes == model.classes[:5]
    assert first.scores(np.zeros((8, 8), dtype=np.uint8)).shape == (1, 5)
    with pytest.raises(UserError, match=r"no state after task 3 is kept in .*; there are: 1, 2"):
        cil.load(tmp_path, task=3)


def test_a_frozen_backbone_needs_no_file_of_weights(tmp_path):
    weights = tmp_path / "weights.safetensors"
    learned(tmp_path / "first", *configuration("finetune"), "--memory.exemplars", "0")
    state = cil.load(tmp_path / "first").strategy.model.backbone.state_dict()
    save_file({name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}, weights)
    frozen = ["--model.weights", str(weights), "--model.frozen", "true", "--model.preprocessing.mean", "0.4"]
    frozen += ["--model.preprocessing.std", "0.3", "--model.preprocessing.size", "10"]
    _, (_, strategy, _) = learned(tmp_path / "second", *configuration("slda"), "--memory.exemplars", "0", *frozen)
    weights.unlink()
    model = cil.load(tmp_path / "second")
    assert model.strategy.model.backbone.preprocessing.size == 10
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(strategy(x), model.strategy(x))


def test_what_a_budget_decided_stays(tmp_path):
    budget = ["--memory.exemplars", "null", "--memory.budget", "300KiB", "--strategy.width", "null"]
    _, (_, strategy, _) = learned(tmp_path, *configuration("acil"), *budget)
    model = cil.load(tmp_path, task=1)
    assert model.strategy.width == strategy.width


# --- one file ---------------------------------------------------------------------------------------------------------


def test_one_file_holds_the_same_model(folder, tmp_path):
    model, path = cil.load(folder), tmp_path / "model.safetensors"
    model.save(path)
    again = cil.load(path)
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    assert torch.equal(model.scores(images), again.scores(images))
    assert not equal_states(model.exemplars.state(), again.exemplars.state())
    assert (again.classes, again.origin, again.blueprint) == (model.classes, model.origin, model.blueprint)
    with pytest.raises(UserError, match="already there"):
        model.save(path)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        model.save(tmp_path / "model.bin")
    with pytest.raises(UserError, match="holds one state"):
        cil.load(path, task=1)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_file_is_refused(folder, tmp_path, where, cut):
    path = tmp_path / "model.safetensors"
    cil.load(folder).save(path)
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        cil.load(path)


def test_what_is_no_model_is_refused(folder, tmp_path):
    for name, data in (("a.safetensors", b""), ("b.safetensors", b"\xff" * 100), ("c.onnx", b"{}" * 40)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"is no file of Model\.save"):
            cil.load(tmp_path / name)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is no file of Model\.save"):
        cil.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="there is no such model"):
        cil.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="there is no state after a task"):
        cil.load(tmp_path)


def test_a_run_that_says_too_little_is_told(tmp_path):
    learned(tmp_path, *configuration("replay"), "--memory.exemplars", "20")
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    tensors, record = checkpoints.load(Moment(1))
    origin = checkpoints.origin_of(Moment(1))
    blueprint = record.pop("blueprint")
    Checkpoints(checkpoints.folder, origin).save(Moment(1), tensors, record)
    with pytest.raises(UserError, match="did not note what a model needs"):
        cil.load(tmp_path)
    Checkpoints(checkpoints.folder, {**origin, "config": None}).save(
        Moment(1), tensors, {**record, "blueprint": blueprint}
    )
    with pytest.raises(UserError, match="without a configuration"):
        cil.load(tmp_path)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_of_every_kind_become_stored_images(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    path = tmp_path / "grey.png"
    Image.fromarray(pixels).save(path)
    for picture in (pixels, pixels[:, :, None], Image.fromarray(pixels), path, str(path)):
        assert np.array_equal(as_stored(picture, (1, 8, 8)), pixels[:, :, None])
    assert np.array_equal(as_stored(pixels, (3, 8, 8)), np.repeat(pixels[:, :, None], 3, 2))
    colours = np.random.default_rng(2).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert np.array_equal(as_stored(colours, (3, 8, 8)), resize(colours[None], 8)[0])
    assert np.array_equal(as_stored(colours, (3, 6, 10)), resize(colours[None], 6, 10)[0])
    opaque = np.concatenate([colours, np.full((12, 20, 1), 255, dtype=np.uint8)], 2)
    assert np.array_equal(as_stored(opaque, (3, 12, 20)), colours)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(as_stored(tmp_path / "turned.png", (1, 3, 2))[:, :, 0], np.rot90(pixels, -1))


def test_one_or_several_pictures(folder):
    model = cil.load(folder)
    grey = np.random.default_rng(3).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    several = model.scores(grey)
    assert torch.equal(model.scores(list(grey)), several)
    assert torch.equal(model.scores(grey[..., None]), several)
    assert several.shape == (4, 10) and model.scores(grey[0]).shape == (1, 10)
    assert model.scores([]).shape == (0, 10) and model.predict([]) == []
    assert model.predict(grey) == [best[0].name for best in model.top(grey, 3)]
    for best, scores in zip(model.top(grey, 3), several, strict=True):
        assert [one.score for one in best] == sorted(scores.tolist(), reverse=True)[:3]
        assert all(model.classes[one.id] == one.name for one in best)
    assert len(model.top(grey[0], 99)[0]) == 10


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8)), np.zeros((2, 2, 2, 2, 2), dtype=np.uint8), "nothing.png", 3, [np.zeros(4, dtype=np.uint8)]],
)
def test_what_is_no_picture_is_refused(folder, wrong):
    with pytest.raises(UserError, match=r"picture|cannot be read as an image"):
        cil.load(folder).scores(wrong)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures and a text, and a single picture beside it."""
    draws = np.random.default_rng(4)
    (tmp_path / "some/more").mkdir(parents=True)
    for name in ("some/b.png", "some/a[red].png", "some/more/c.JPG", "one.png"):
        Image.fromarray(draws.integers(0, 256, (10, 9), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "some/notes.txt").write_text("no picture")
    return tmp_path


def test_the_command_answers_for_files_and_folders(folder, pictures, capsys):
    model = cil.load(folder)
    words = [str(folder), str(pictures / "some"), str(pictures / "one.png")]
    assert predict.main([*words, "--json", "--top", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = ["a[red].png", "b.png", "c.JPG", "one.png"]
    assert [Path(one["picture"]).name for one in told] == names
    for one in told:
        best = model.top(one["picture"], 2)[0]
        assert [(a["name"], a["id"]) for a in one["answers"]] == [(a.name, a.id) for a in best]
    assert predict.main([*words, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [Path(row["picture"]).name for row in rows] == names
    assert [row["name"] for row in rows] == [one["answers"][0]["name"] for one in told]
    assert predict.main(words) == 0
    shown = capsys.readouterr().out
    assert "a[red].png" in shown and rows[0]["name"] in shown


def test_mistakes_of_the_command_are_told(folder, pictures):
    for words, told in (
        ([str(pictures / "none.png")], "no such picture or folder"),
        ([str(pictures / "some/notes.txt")], "cannot be read as an image"),
        ([str(pictures / "one.png"), "--top", "0"], "top"),
        ([str(pictures / "one.png"), "--task", "9"], "no state after task 9"),
        ([str(folder)], "holds no pictures"),
    ):
        with pytest.raises(UserError, match=told):
            predict.main([str(folder), *words])


def test_importing_the_package_is_light():
    code = "import sys, cil; print('torch' in sys.modules, callable(cil.load))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_model_tells_what_it_is(folder):
    assert repr(cil.load(folder)).startswith("Model(WA, 10 classes, 20 exemplars, ")
