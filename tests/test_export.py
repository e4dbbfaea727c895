"""A run's backbone becomes a file that another run starts from, with the same features."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from cil.command import config
from cil.compare.comparison import compare
from cil.experiment.checkpoint import Checkpoints, Moment
from cil.learning.state import under
from cil.nets.network import Model
from scenarios.datasets import load
from tools import export, train

RUN = ["--config", "configs/protocols/digits.yaml", "--trainer.epochs", "1", "--checkpoint_every", "0"]


def call(program, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        config.main(program.main, [str(word) for word in argv])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def trained(folder, *more):
    with pytest.raises(SystemExit):
        config.main(train.main, [*RUN, "--run_dir", str(folder), *more])
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    more = ("--strategy", "replay", "--augmentation.mean", "[0.3]", "--augmentation.std", "[0.4]")
    return trained(tmp_path_factory.mktemp("runs") / "replay", *more)


def opened(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, {  # noqa: SIM118
            key: json.loads(value) for key, value in file.metadata().items()
        }


def test_the_file_holds_the_backbone_and_what_belongs_to_it(finished, tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    status, told, _ = call(export, [finished, "--out", out], capsys)
    assert status == 0
    assert f"--model.backbone convnet2 --model.weights {out} --model.frozen true" in told
    tensors, metadata = opened(out)
    state = under("strategy", Checkpoints(finished / "checkpoint").load(Moment(4))[0])
    due = {n.removeprefix("model.backbone."): v for n, v in state.items() if n.startswith("model.backbone.")}
    assert tensors.keys() == due.keys()
    assert all(torch.equal(tensors[name], due[name]) for name in due)
    results = json.loads((finished / "results.json").read_text())
    assert metadata["architecture"] == {"backbone": "convnet2", "backbone_args": {}, "in_channels": 1}
    assert sorted(metadata["classes"]) == list("0123456789")
    assert metadata["preprocessing"] == {
        "mean": [pytest.approx(0.3)],
        "std": [pytest.approx(0.4)],
        "size": 8,
        "interpolation": "area",
        "antialias": True,
    }
    assert metadata["stream"] == {"data": load("digits").sha256(), "classes": metadata["classes"]}
    assert metadata["task"] == 5
    assert metadata["command"] == results["command"]
    assert metadata["versions"] == results["versions"]


def test_another_run_has_the_same_features(finished, tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    call(export, [finished, "--out", out], capsys)
    parser, parsed = config.parse(["--config", str(finished / "config.yaml")])
    former = config.instantiate(parser, parsed, load)
    x = load("digits").test.gather(slice(0, 40))
    strategy = former.fresh()
    for task in former.scenario.tasks:
        former.grow(strategy, task)
    strategy.load_state_dict(under("strategy", Checkpoints(finished / "checkpoint").load(Moment(4))[0]))
    due = strategy.eval().features(former.place(0).augmentation.test(x)).detach()
    own = Model(backbone="convnet2", weights=str(out), frozen=True).build(1).features(x.float() / 255)
    torch.testing.assert_close(own, due)
    assert float(due.std()) > 0.01


def test_a_frozen_run_from_the_file_declares_its_classes(finished, tmp_path, capsys):
    out, folder = tmp_path / "w.safetensors", tmp_path / "second"
    call(export, [finished, "--out", out, "--task", 4], capsys)
    argv = [*RUN, "--strategy", "finetune", "--memory.exemplars", 0, "--run_dir", folder]
    argv += ["--model.backbone", "convnet2", "--model.weights", out, "--model.frozen", "true"]
    assert call(train, argv, capsys)[0] == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["pretrained_classes"] == results["pretrained_stream"] == results["scenario"]["class_names"][:8]
    again = tmp_path / "again.safetensors"
    assert call(export, [folder, "--out", again], capsys)[0] == 0  # what is frozen learned nothing
    assert opened(again)[1]["classes"] == opened(out)[1]["classes"]
    assert opened(again)[1]["stream"] == opened(out)[1]["stream"]
    assert all(torch.equal(a, b) for a, b in zip(opened(again)[0].values(), opened(out)[0].values(), strict=True))


@pytest.mark.parametrize(("strategy", "classes"), [("protonet", 2), ("finetune", 10)])
def test_a_backbone_declares_the_classes_it_learned(tmp_path, capsys, strategy, classes):
    run_dir, out = (
        trained(tmp_path / "run", "--config", f"configs/strategies/{strategy}.yaml"),
        tmp_path / "w.safetensors",
    )
    assert call(export, [run_dir, "--out", out], capsys)[0] == 0
    metadata = opened(out)[1]
    results = json.loads((run_dir / "results.json").read_text())
    assert metadata["classes"] == results["scenario"]["class_names"][:classes]
    assert metadata["stream"]["classes"] == metadata["classes"]


def test_halves_are_stored_and_loaded(finished, tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    call(export, [finished, "--out", out, "--half"], capsys)
    assert {value.dtype for value in opened(out)[0].values()} == {torch.float16, torch.int64}
    net = Model(backbone="convnet2", weights=str(out), frozen=True).build(1)
    assert {parameter.dtype for parameter in net.backbone.parameters()} == {torch.float32}


def test_input_size_and_crops_are_kept(tmp_path):
    from cil.data.augmentation import Augmentation
    from cil.deploy.export import preprocessing
    from cil.experiment.experiment import Experiment
    from cil.learning.trainer import Trainer
    from cil.nets.pretrained import Preprocessing
    from cil.testing.lab import toy_scenario
    from strategies.baselines.finetune import Finetune

    def build():
        return Finetune(Model(backbone="convnet2").build(1))

    def due(**options):
        augmentation = Augmentation(mean=[0.25], std=[0.5], **options)
        experiment = Experiment(toy_scenario(), build, Trainer(), augmentation=augmentation)
        return preprocessing(experiment)

    assert due() == Preprocessing((0.25,), (0.5,), 8, "area")
    assert due(input_size=4) == Preprocessing((0.25,), (0.5,), 4, "area")
    assert due(size=6) == Preprocessing((0.25,), (0.5,), 6, "bilinear")


@pytest.fixture
def broken(finished, tmp_path):
    """A copy of the run with one thing wrong."""

    def make(what):
        folder = tmp_path / "copy"
        shutil.copytree(finished, folder)
        results = json.loads((folder / "results.json").read_text())
        if what == "unfinished":
            results["status"] = "failed"
        if what == "other data":
            results["fingerprint"] = "0" * 64
        (folder / "results.json").write_text(json.dumps(results))
        if what == "damaged":
            (folder / "checkpoint/task004.safetensors").write_bytes(b"cut")
        if what == "no results":
            (folder / "results.json").unlink()
        return folder

    return make


@pytest.mark.parametrize(
    ("what", "more", "words"),
    [
        ("unfinished", [], ["not finished (failed)", "--task N"]),
        ("other data", [], ["learned from other data", "was 00000000"]),
        ("damaged", [], ["task004.safetensors: damaged"]),
        ("no results", [], ["holds no run"]),
        ("fine", ["--task", 2], ["no state after task 2 is kept", "there are: 4, 5"]),
        ("fine", ["--task", 0], ["no state after task 0 is kept"]),
    ],
)
def test_what_cannot_be_exported_is_told(broken, tmp_path, capsys, what, more, words):
    out = tmp_path / "w.safetensors"
    status, _, told = call(export, [broken(what), "--out", out, *more], capsys)
    assert status == 2
    assert all(word in told for word in words), told
    assert not out.exists()


def test_no_file_is_replaced(finished, tmp_path, capsys):
    (tmp_path / "w.safetensors").write_bytes(b"mine")
    for name, word in (("w.safetensors", "already there"), ("w.pth", "must end in"), ("no/w.safetensors", "no folder")):
        status, _, told = call(export, [finished, "--out", tmp_path / name], capsys)
        assert status == 2
        assert word in told
    assert (tmp_path / "w.safetensors").read_bytes() == b"mine"


def test_features_of_several_backbones_are_refused(tmp_path, capsys):
    folder = trained(tmp_path / "der", "--strategy", "der", "--memory.exemplars", "20")
    status, _, told = call(export, [folder, "--out", tmp_path / "w.safetensors"], capsys)
    assert status == 2
    assert "DER's features are not those of one backbone" in told


def test_each_seed_may_start_from_weights_of_its_own(finished, tmp_path, capsys):
    weights = [tmp_path / f"w-{seed}.safetensors" for seed in (3, 4)]
    call(export, [finished, "--out", weights[0]], capsys)
    call(export, [finished, "--out", weights[1], "--half"], capsys)
    more = ("--config", "configs/strategies/ncm.yaml", "--model.frozen", "true", "--seeds.data", "0")
    pattern = str(tmp_path / "w-{seed}.safetensors")
    states = []
    for seed in (3, 4):
        for name in (pattern, str(weights[seed - 3])):
            folder = tmp_path / f"run{len(states)}"
            trained(folder, *more, "--seed", str(seed), "--model.weights", name)
            states.append(under("strategy", Checkpoints(folder / "checkpoint").load(Moment(4))[0]))
    for by_pattern, by_name in (states[:2], states[2:]):
        assert all(torch.equal(by_pattern[key], by_name[key]) for key in by_name)
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    section = compare([tmp_path / "run0", tmp_path / "run2"]).sections[0]
    assert [len(row.runs) for row in section.rows] == [2]
    status, _, err = call(train, [*RUN, *more, "--seed", "5", "--model.weights", pattern], capsys)
    assert status == 2 and "w-5.safetensors" in err
