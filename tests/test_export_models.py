"""A whole model for other programs: one file whose scores are the model's, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import cil
from cil.command.names import strategies
from cil.deploy import hand_on, handed_files
from cil.deploy.hand_on import described
from cil.deploy.model import Model
from cil.errors import UserError
from cil.memory.ledger import measure_run
from cil.nets.pretrained import Pretrained
from tests.models import ROOT, configuration, learned, memory
from tools import export

ort = pytest.importorskip("onnxruntime")

# Each way of scoring once: a linear head, a network with a forward of its own, means of exemplars, votes, distances.
FEW = ("wa", "foster", "icarl", "knn", "fecam")
# Strategies that cannot be handed on, with what is said; there is none among those that come with the framework.
REFUSED: dict[str, str] = {}
NORMAL = ["--augmentation.mean", "[0.4]", "--augmentation.std", "[0.3]"]


def made(folder, name, *more):
    """A model of a strategy that learned two tasks, in float32, as this test compares with."""
    decided = strategies()[name].sized_by
    small = [f"--strategy.{decided}", "8"] if decided else []
    learned(folder, *configuration(name), *memory(name), *small, "--precision", "32", *more)
    return cil.load(folder, device="cpu")


def drawn(n, shape=(8, 8, 1), seed=7):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def by_onnx(path, images):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def by_torch(path, images):
    return torch.export.load(path).module()(torch.from_numpy(images)).detach().numpy()


def assert_hands_on(model, folder):
    for name, ask in (("m.onnx", by_onnx), ("m.pt2", by_torch)):
        done = model.export(folder / name)
        assert done.bytes == (folder / name).stat().st_size
        for n in (1, 2, 5, 40):  # the last one folds
            images = drawn(n)
            due = model.scores(images).numpy()
            found = ask(folder / name, images)
            assert (found.dtype, found.shape) == (np.float32, (n, 10))
            np.testing.assert_allclose(found, due, rtol=0, atol=1e-4 * max(1.0, float(np.abs(due).max())))
        assert done.difference <= 1e-4 * max(1.0, float(model.scores(drawn(40)).abs().max()))


@pytest.fixture(scope="module")
def wa(tmp_path_factory):
    return made(tmp_path_factory.mktemp("wa"), "wa")


@pytest.fixture(scope="module")
def files(wa, tmp_path_factory):
    """WA handed on in both formats."""
    folder = tmp_path_factory.mktemp("files")
    wa.export(folder / "m.onnx")
    wa.export(folder / "m.pt2")
    return folder


@pytest.mark.parametrize("name", FEW)
def test_a_file_gives_the_scores_of_its_model(name, tmp_path):
    assert_hands_on(made(tmp_path / "run", name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*strategies()} - {*FEW}))
def test_every_strategy_is_handed_on_or_says_why_not(name, tmp_path):
    model = made(tmp_path / "run", name)
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            model.export(tmp_path / "m.onnx")
    else:
        assert_hands_on(model, tmp_path)


def test_no_strategy_is_left_out():
    assert {*REFUSED} <= {*strategies()} and not {*REFUSED} & {*FEW}
    assert len(strategies()) == 29


@pytest.mark.parametrize(
    "more",
    [
        ["--model.weights", "random", "--model.frozen", "true", "--model.preprocessing.size", "11"],
        ["--augmentation.input_size", "6"],
        [*NORMAL, "--augmentation.size", "8", "--augmentation.preset", "imagenet"],
    ],
    ids=["frozen", "areas", "crop"],
)
def test_images_are_prepared_inside(more, tmp_path):
    more = (
        [*more, "--model.preprocessing.mean", "0.4", "--model.preprocessing.std", "0.3"] if "random" in more else more
    )
    assert_hands_on(made(tmp_path / "run", "slda", *more), tmp_path)


def test_a_file_needs_nothing_of_this_program(files, wa):
    images = drawn(4)
    np.save(files / "images.npy", images)
    code = (
        "import json, sys, numpy, onnxruntime\n"
        "net = onnxruntime.InferenceSession('m.onnx', providers=['CPUExecutionProvider'])\n"
        "told = json.loads(net.get_modelmeta().custom_metadata_map['cil'])\n"
        "scores, = net.run(None, {'images': numpy.load('images.npy')})\n"
        "names = [told['classes'][i] for i in scores.argmax(1)]\n"
        "print(json.dumps([names, 'torch' in sys.modules, 'cil' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=files, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [wa.predict(images), False, False]


def test_the_documented_example_names_a_picture(files, wa, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/models.md").read_text()
    code = re.search(r"```python\n(import json, numpy, onnxruntime.*?)```", text, re.S)[1]
    pixels = drawn(1)[0, :, :, 0]
    (tmp_path / "model.onnx").write_bytes((files / "m.onnx").read_bytes())
    Image.fromarray(pixels).save(tmp_path / "cat.jpg", format="PNG")  # without loss
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.strip() == wa.predict(pixels)[0]


def test_a_file_says_what_it_holds(files, wa):
    told = described(files / "m.onnx")
    assert told == described(str(files / "m.pt2"))
    assert told["classes"] == list(wa.names) and told["forgotten"] == []
    assert (told["image_shape"], told["input"]["shape"]) == ([1, 8, 8], ["N", 8, 8, 1])
    assert told["output"]["shape"] == ["N", 10]
    assert (told["method"], told["tasks"], told["revision"], told["format"]) == ("WA", 2, 1, 1)
    assert told["bytes"] == measure_run(wa.strategy, wa.exemplars)["strict"]
    assert told["pictures"]["channels"] == "L" and told["pictures"]["resized"] == [8, 8]
    session = ort.InferenceSession(files / "m.onnx", providers=["CPUExecutionProvider"])
    inside = [(one.name, one.type, one.shape) for one in (*session.get_inputs(), *session.get_outputs())]
    assert inside == [("images", "tensor(uint8)", ["N", 8, 8, 1]), ("scores", "tensor(float)", ["N", 10])]
    assert str(sys.prefix).encode() not in (files / "m.onnx").read_bytes()  # nor where it was made
    with zipfile.ZipFile(files / "m.pt2") as archive:
        assert not any(__file__.rpartition("/")[0].encode() in archive.read(name) for name in archive.namelist())


def test_a_class_that_was_forgotten_has_no_score(wa, tmp_path):
    less, gone = wa.forget(["3"]), wa.ids["3"]
    less.export(tmp_path / "m.onnx")
    images = drawn(3)
    found = by_onnx(tmp_path / "m.onnx", images)
    assert np.isneginf(found[:, gone]).all() and np.isfinite(np.delete(found, gone, 1)).all()
    np.testing.assert_allclose(found, less.scores(images).numpy(), atol=1e-4)
    told = described(tmp_path / "m.onnx")
    assert (told["classes"][gone], told["forgotten"], told["revision"]) == ("", [gone], 2)


def test_what_scoring_does_not_need_is_left_out(tmp_path):
    model = made(tmp_path / "run", "acil", "--strategy.width", "700")
    assert measure_run(model.strategy, model.exemplars)["strict"] > 2e6  # of which the matrix is most
    assert model.export(tmp_path / "m.pt2").bytes < 700_000
    assert model.export(tmp_path / "m.onnx").bytes < 700_000


def test_a_model_of_another_precision_is_handed_on_in_float32(wa, tmp_path):
    state = wa.state()
    half = Model(
        state._replace(blueprint=dataclasses.replace(state.blueprint, precision="bf16-mixed")), wa.place.device
    )
    done = half.export(tmp_path / "m.onnx")
    assert done.difference < 1e-5 < done.own_difference < 0.1
    np.testing.assert_allclose(by_onnx(tmp_path / "m.onnx", drawn(3)), wa.scores(drawn(3)).numpy(), atol=1e-4)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_no_file_is_replaced_and_other_endings_are_told(wa, tmp_path, monkeypatch):
    monkeypatch.setattr(hand_on, "followed", None)  # all of it is known before any work
    (tmp_path / "m.onnx").write_bytes(b"mine")
    for name, told in (
        ("m.onnx", "already there"),
        ("m.tflite", r"must end in \.onnx or \.pt2"),
        ("m.safetensors", r"written by Model\.save"),
        ("none/m.onnx", "there is no folder"),
    ):
        with pytest.raises(UserError, match=told):
            wa.export(tmp_path / name)
    monkeypatch.setattr(handed_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "cil-framework\[export\]"'):
        wa.export(tmp_path / "other.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_scores_that_would_be_others_are_refused_with_the_numbers(wa, tmp_path, monkeypatch, ending):
    kind = handed_files.FORMATS[f".{ending}"]
    opened = kind.opened

    def wrong_alone(data):
        answer = opened(data)
        return lambda images: answer(images) + (len(images) == 1) * np.float32(0.5)

    monkeypatch.setattr(kind, "opened", wrong_alone)
    with pytest.raises(UserError, match=r"5\.0e-01 in a batch of 1, .*e-0\d in a batch of 3.*nothing was written"):
        wa.export(tmp_path / f"m.{ending}")
    assert not list(tmp_path.iterdir())


def test_a_score_that_is_no_number_is_another_one():
    nothing = np.array([[np.nan, 0.0]])
    assert hand_on.apart(nothing, nothing) == hand_on.apart(np.zeros((1, 2)), np.zeros((1, 3))) == float("inf")
    far = np.array([[-np.inf, 1.0]])
    assert hand_on.apart(far, np.array([[-np.inf, 0.75]])) == 0.25
    assert hand_on.apart(far, np.array([[0.0, 1.0]])) == float("inf")


def test_a_strategy_that_decides_by_the_values_of_an_image_is_refused(wa, tmp_path, monkeypatch):
    monkeypatch.setattr(type(wa.strategy), "scores", lambda self, f: self.model.head(f) * (2 if f.sum() > 0 else 1))
    with pytest.raises(UserError, match="WA cannot be handed on, for torch cannot follow how it scores"):
        wa.export(tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_or_another_one_is_told(files, tmp_path):
    for ending in ("onnx", "pt2"):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes((files / f"m.{ending}").read_bytes()[:1000])
        with pytest.raises(UserError, match=r"is no file of Model\.export"):
            described(path)
        with pytest.raises(UserError, match="there is no such file"):
            described(tmp_path / f"none.{ending}")
    with pytest.raises(UserError, match="must end in"):
        described(tmp_path / "m.txt")


# --- one picture ------------------------------------------------------------------------------------------------------


def test_one_picture_is_one_picture_in_the_network(tmp_path, monkeypatch):
    frozen = ["--model.weights", "random", "--model.frozen", "true"]
    model = made(tmp_path / "run", "simplecil", *frozen)
    seen = []
    net = model.strategy.model.backbone
    assert isinstance(net, Pretrained)
    net.body.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    model.scores(drawn(1))
    model.scores(drawn(5))
    assert seen == [1, 5]


def test_one_picture_needs_no_folding(wa, monkeypatch):
    from cil.learning import inference

    monkeypatch.setattr(inference, "Folded", None)
    assert wa.scores(drawn(1)).shape == (1, 10)
    with pytest.raises(TypeError):
        wa.scores(drawn(40))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_all_formats(wa, tmp_path, capsys):
    run, out = tmp_path / "wa.safetensors", tmp_path / "out"
    wa.save(run)
    assert export.main([str(run), "--format", "onnx,torch,safetensors", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "model.pt2", "model.safetensors"]
    assert all(name in told for name in ("model.onnx", "model.pt2", "model.safetensors", "largest difference"))
    assert torch.equal(cil.load(out / "model.safetensors").scores(drawn(2)), wa.scores(drawn(2)))
    with pytest.raises(UserError, match="already there"):
        export.main([str(run), "--format", "onnx", "--out", str(out)])
    with pytest.raises(UserError, match=r"format: no 'tflite'"):
        export.main([str(run), "--format", "onnx,tflite", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
