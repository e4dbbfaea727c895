"""The verbs on a model from the command line; the old model is whole until the new one is."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import cil
from cil.deploy.changing import InUse
from cil.errors import UserError
from cil.evaluation.probabilities import calibration_error
from cil.experiment.checkpoint import Checkpoints
from cil.testing.lab import equal_states
from cil.verbs import advising, judging
from strategies.rehearsal.wa import WA
from tests.models import ROOT, configuration, learned
from tools import advise, evaluate, extend, forget, predict


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of replay, its experiment, and a folder of pictures: two new classes and a known one."""
    place = tmp_path_factory.mktemp("made")
    experiment, _ = learned(place / "run", *configuration("replay"), "--memory.exemplars", "20")
    test = experiment.scenario.test
    for name, label in (("x", 0), ("y", 1), (experiment.scenario.class_names[2], 2)):
        (place / "more" / name).mkdir(parents=True)
        for i, image in enumerate(test.of_classes([label]).raw()[:9, :, :, 0]):
            Image.fromarray(255 - image).save(place / "more" / name / f"{i}.png")
    return place, experiment


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def test_extend_takes_the_place_of_the_model_of_a_run(made, run, capsys):
    before = cil.load(run)
    words = [str(run), "--data", f"folder:{made[0] / 'more'}"]
    assert extend.main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "27 pictures, 2 new classes: x, y" in told and f"known and come again: {before.classes[2]}" in told
    assert not (run / "model.safetensors").exists()
    assert extend.main(words) == 0
    assert "12 classes" in capsys.readouterr().out
    after = cil.load(run)
    assert (after.classes, after.revision) == ((*before.classes, "x", "y"), 2)
    assert after.history[1]["returned"] == [before.classes[2]]
    by_hand = before.extend(
        {name: sorted((made[0] / "more" / name).iterdir()) for name in sorted(os.listdir(made[0] / "more"))}
    )
    assert not equal_states(after.tensors(), by_hand.tensors())
    assert cil.load(run, task=2).classes == before.classes  # the run itself is as it was
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint", "model.safetensors"]
    # an extended model is extended again, and a file likewise
    after.save(run.parent / "m.safetensors")
    assert extend.main([str(run.parent / "m.safetensors"), *words[1:], "--out", str(run.parent / "n.safetensors")]) == 0
    again = cil.load(run.parent / "n.safetensors")
    assert (again.classes, again.revision) == (after.classes, 3)


def test_forget_leaves_no_exemplar_in_any_file(made, run, capsys):
    before = cil.load(run)
    extend.main([str(run), "--data", f"folder:{made[0] / 'more'}"])
    word = before.classes[7]
    images = before.exemplars.images[before.exemplars.labels == 7]
    assert len(images) and any(images[0].tobytes() in path.read_bytes() for path in run.rglob("*.safetensors"))
    assert forget.main([str(run), "--class", word]) == 0
    assert "exemplars removed" in capsys.readouterr().out
    less = cil.load(run)
    assert word not in less.classes and less.revision == 3
    assert [moment.task for moment in Checkpoints(run / "checkpoint").moments()] == [0]  # before the class came
    for path in run.rglob("*"):
        if path.is_file():
            assert not any(image.tobytes() in path.read_bytes() for image in images), path
    # killed between the new model and the end: the same command ends it
    shutil.copytree(made[0] / "run/checkpoint", run / "checkpoint", dirs_exist_ok=True)
    assert forget.main([str(run), "--class", word]) == 0
    assert cil.load(run).revision == 3
    assert [moment.task for moment in Checkpoints(run / "checkpoint").moments()] == [0]
    with pytest.raises(UserError, match="classes: no"):
        forget.main([str(run), "--class", "nonsense"])
    # given as its file, the model of a run is that of the run
    shutil.copytree(made[0] / "run/checkpoint", run / "checkpoint", dirs_exist_ok=True)
    assert forget.main([str(run / "model.safetensors"), "--class", before.classes[0]]) == 0
    assert not Checkpoints(run / "checkpoint").moments()


def test_forget_elsewhere_leaves_the_old_model(run):
    before, out = cil.load(run), run.parent / "less.safetensors"
    assert forget.main([str(run), "--class", before.classes[0], "--class", before.classes[9], "--out", str(out)]) == 0
    assert len(cil.load(out).classes) == 8 and cil.load(run).classes == before.classes
    assert len(Checkpoints(run / "checkpoint").moments()) == 2
    with pytest.raises(UserError, match="already there"):
        forget.main([str(run), "--class", before.classes[0], "--out", str(out)])


def test_evaluate_by_explicit_loops(made, run, tmp_path, capsys):
    _, experiment = made
    model = cil.load(run)
    test, names = experiment.scenario.test, experiment.scenario.class_names
    truth = [names[label] for label in test.labels]
    found = model.evaluate((test.raw(), truth))
    predicted = model.predict(test.raw())
    for i, one in enumerate(model.classes):
        for j, other in enumerate(model.classes):
            count = sum(t == one and p == other for t, p in zip(truth, predicted, strict=True))
            assert found.confusion[i, j] == count
    assert found.accuracy == np.mean([t == p for t, p in zip(truth, predicted, strict=True)])
    assert found.calibration["ece"] == pytest.approx(
        calibration_error(model.predict_proba(test.raw()), torch.as_tensor(test.labels))
    )
    assert sum(one["images"] for one in found.calibration["bins"]) == len(test)
    assert found.rejection is None and found.auroc is None
    worst = found.worst_confusions(3)
    assert worst[0][2] == max(found.confusion[i, j] for i in range(10) for j in range(10) if i != j)

    sure = model.calibrate((test.raw()[::2], truth[::2]))
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    both = sure.evaluate((np.concatenate([test.raw()[1::2, :, :, 0], noise]), [*truth[1::2], *["noise"] * 30]))
    assert both.others == {"noise": 30} and 0 <= both.auroc <= 1
    assert both.rejection[0.1]["known"] == pytest.approx(
        np.mean([name is None for name in sure.predict(test.raw()[1::2], reject=0.1)])
    )
    with pytest.raises(UserError, match="no picture is of a class that the model knows"):
        model.evaluate({"noise": noise})


def test_the_page_of_an_evaluation(made, run, tmp_path, capsys):
    out = tmp_path / "page"
    words = [str(run), "--data", "digits", "--out", str(out)]
    assert evaluate.main(words) == 0
    told = capsys.readouterr().out
    data = json.loads((out / "evaluation.json").read_text())
    assert f"{100 * data['accuracy']:.1f} % of {data['images']} pictures" in told
    page = (out / "index.html").read_text()
    assert f"{100 * data['accuracy']:.1f} %" in page and "data:image/png;base64" in page and "<script" not in page
    assert evaluate.main([*words, "--json"]) == 0  # a former page is replaced
    assert json.loads(capsys.readouterr().out)["accuracy"] == data["accuracy"]
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else than an evaluation \(mine\.txt\)"):
        evaluate.main(words)


def test_names_are_escaped_in_the_page(made, run):
    from cil.verbs.judgement_page import page

    name = "<b>$x$ & co</b>"
    confusion = np.array([[3, 1], [0, 2]])
    found = judging.Judgement("Model(x)", (name, "dog"), confusion, {name: 3}, None, None, None)
    text = page(found, [{"did": "forget", "classes": [name], "remains": [name]}])
    assert "<b>" not in text and text.count("&lt;b&gt;$x$ &amp; co&lt;/b&gt;") == 4


def test_predict_names_what_is_unknown(made, run, tmp_path, capsys):
    _, experiment = made
    test, names = experiment.scenario.test, experiment.scenario.class_names
    model = cil.load(run).calibrate((test.raw()[::2], [names[label] for label in test.labels[::2]]))
    model.save(tmp_path / "sure.safetensors")
    pictures = sorted((made[0] / "more/x").iterdir())
    wanted = model.predict(pictures, reject=0.5)
    assert None in wanted
    words = [str(tmp_path / "sure.safetensors"), str(made[0] / "more/x"), "--reject", "0.5"]
    assert predict.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["answers"][0]["name"] if one["answers"] else None for one in told] == wanted
    assert predict.main(words) == 0
    assert "unknown" in capsys.readouterr().out


def test_mistakes_are_told_before_anything_is_learned(made, run, tmp_path):
    more = f"folder:{made[0] / 'more'}"
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty/cat").mkdir(parents=True)
    (tmp_path / "broken/cat").mkdir(parents=True)
    (tmp_path / "broken/cat/a.png").write_bytes(b"no picture")
    for words, told in (
        ([str(run), "--data", f"folder:{tmp_path / 'bare'}"], "has no folder for each class"),
        ([str(run), "--data", f"folder:{tmp_path / 'empty'}"], "holds no pictures"),
        ([str(run), "--data", f"folder:{tmp_path / 'broken'}"], "cannot be read as an image"),
        ([str(run), "--data", "nonsense"], "nonsense"),
        ([str(tmp_path / "none"), "--data", more], "none: there is no such model"),
        ([str(run), "--data", more, "--out", str(tmp_path / "m.bin")], r"must end in \.safetensors"),
    ):
        with pytest.raises(UserError, match=told):
            extend.main(words)
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint"]
    place = InUse(run)
    with place.held(), pytest.raises(UserError, match="is in use by"):
        extend.main([str(run), "--data", more])


def test_a_budget_is_kept_and_a_plan_for_fewer_classes_is_told(tmp_path):
    words = ["--memory.exemplars", "null", "--memory.budget", "155KiB"]
    experiment, _ = learned(tmp_path / "run", *configuration("replay"), *words)
    model = cil.load(tmp_path / "run")
    images = experiment.scenario.test.raw()[:12]
    longer = model.extend({"x": images[:6], "y": images[6:]})
    from cil.memory.ledger import measure_run

    assert measure_run(longer.strategy, longer.exemplars)["strict"] <= 155 * 1024
    assert len(longer.exemplars) < len(model.exemplars) + 12
    from cil.verbs import extension

    told = " ".join(extension.plan(model, {"x": images}).told())
    assert "the budget stays 0.15 MiB (158720 bytes) (strict)" in told and "leaves" in told
    learned(tmp_path / "tight", *configuration("finetune"), "--memory.budget", "153KiB", "--memory.exemplars", "0")
    small = cil.load(tmp_path / "tight")
    with pytest.raises(UserError, match=r"memory\.budget: .* is less than Finetune carries after task"):
        small.extend({f"c{i}": images for i in range(40)})


def test_what_is_learned_goes_on_after_an_interruption(made, run, monkeypatch):
    model = cil.load(run)
    from cil.experiment import resume
    from cil.verbs import extension

    data = {"x": sorted((made[0] / "more/x").iterdir()), "y": sorted((made[0] / "more/y").iterdir())}
    wanted = model.extend(data).tensors()
    real, calls = resume.Keeper.save, []

    def save(self, *args):
        real(self, *args)
        calls.append(args[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(resume.Keeper, "save", save)
    planned = extension.plan(model, data)
    place = InUse(run).meanwhile(planned.origin.fingerprint)
    with pytest.raises(KeyboardInterrupt):
        planned.learn(folder=place, every=1)
    assert calls == [0] and len(Checkpoints(place).moments()) == 1
    monkeypatch.setattr(resume.Keeper, "save", real)
    trained = []
    monkeypatch.setattr(resume.Keeper, "step_done", lambda self: trained.append(1))
    state = extension.plan(model, data).learn(folder=place, every=1)
    assert not trained and not equal_states(state.tensors, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["extend", "forget"])
def test_the_old_model_is_whole_whenever_the_program_is_killed(verb, made, tmp_path):
    """Ten kills each at any moment; afterwards the model is the old one or the new one, to the last bit."""
    more = (
        ["--data", f"folder:{made[0] / 'more'}"]
        if verb == "extend"
        else ["--class", cil.load(made[0] / "run").classes[4]]
    )

    def start(run):
        command = [sys.executable, f"tools/{verb}.py", str(run), *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    old = cil.load(made[0] / "run").tensors()
    shutil.copytree(made[0] / "run", tmp_path / "whole")
    begin = time.perf_counter()
    assert start(tmp_path / "whole").wait() == 0
    takes, new = time.perf_counter() - begin, cil.load(tmp_path / "whole").tensors()
    draws = random.Random(0)
    for kill in range(10):
        run = tmp_path / f"run{kill}"
        shutil.copytree(made[0] / "run", run)
        program = start(run)
        # The first half is imports; the first kill comes before anything was changed.
        time.sleep(takes * (0.5 + 0.55 * draws.random() if kill else 0.2))
        program.send_signal(signal.SIGKILL)
        program.wait()
        tensors = cil.load(run).tensors()
        is_new = not equal_states(tensors, new) if tensors.keys() == new.keys() else False
        assert is_new or not equal_states(tensors, old)
        assert kill or not is_new
        if kill % 3 == 0 and not is_new:  # the same command again ends it
            assert start(run).wait() == 0
            assert not equal_states(cil.load(run).tensors(), new)


# --- extend or learn anew ---------------------------------------------------------------------------------------------


def test_ways_are_tried_and_judged_by_what_was_held_out(made, run, capsys):
    _, experiment = made
    place = made[0] / "old"
    if not place.exists():
        for label, name in enumerate(experiment.scenario.class_names):
            (place / name).mkdir(parents=True)
            task = next(task for task in experiment.scenario.tasks if label in task.new)
            for i, image in enumerate(task.train.of_classes([label]).raw()[:, :, :, 0]):
                Image.fromarray(image).save(place / name / f"{i:02d}.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = [str(run), "--data", f"folder:{made[0] / 'more'}", "--json"]
    assert advise.main([*words, "--old", f"folder:{place}", "--methods", "icarl,slda"]) == 0
    extended, icarl, slda, joint = json.loads(capsys.readouterr().out)
    assert (extended["name"], extended["needs_old_data"]) == ("extended with Replay", False)
    assert [way["name"] for way in (icarl, slda, joint)] == [
        "anew with icarl",
        "anew with slda",
        "jointly, from all pictures",
    ]
    for way in (extended, icarl, joint):
        assert (
            way["why_not"] is None and all(0 <= way[key] <= 1 for key in ("old", "new", "both")) and way["seconds"] > 0
        )
    assert icarl["bytes"] <= extended["bytes"]
    assert joint["bytes"] is None
    assert joint["both"] > 1 / 12
    assert advise.main(words) == 0
    alone, *others = json.loads(capsys.readouterr().out)
    assert alone["old"] is None and alone["both"] == alone["new"]
    assert {way["why_not"] for way in others} == {"the old pictures are not at hand"}
    assert advise.main(words[:-1]) == 0
    told = capsys.readouterr().out
    assert "extended" in told and "task 3: 12 classes seen; 0.15 MiB carried" in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    # at a budget, too, and by the configuration that a method comes with
    learned(place.parent / "tight", *configuration("replay"), "--memory.exemplars", "null", "--memory.budget", "160KiB")
    tight = [str(place.parent / "tight"), *words[1:], "--old", f"folder:{place}", "--methods", "wa"]
    assert advise.main(tight) == 0
    extended, wa, joint = json.loads(capsys.readouterr().out)
    assert wa["why_not"] is None and joint["why_not"] is None
    assert wa["bytes"] <= extended["bytes"] <= 160 * 1024
    assert advising._configured(WA)["init_args"] == {"clip_weights": False}
    with pytest.raises(UserError, match="strategies: no 'nonsense'"):
        advise.main([*words, "--methods", "nonsense"])
    with pytest.raises(UserError, match="there is none of class"):
        advise.main([*words, "--old", f"folder:{made[0] / 'more'}"])
