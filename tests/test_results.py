"""A run from Python: the same bits as the command, one value that tells, draws, is saved, loaded and compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import cil
from cil.compare.comparison import compare
from cil.data.images import Dataset
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.learning.state import under
from cil.testing.lab import equal_states
from scenarios import datasets
from strategies.rehearsal.wa import WA
from tools import train

SMALL = {"scenario": {"step": 5}, "model": {"backbone": "convnet2"}, "trainer": {"epochs": 1, "batch_size": 16}}
SMALL |= {"train_per_class": 12, "device": "cpu", "threads": 1, "memory": {"exemplars": 20}}


@pytest.fixture(scope="module")
def results():
    return cil.run("digits", "wa", **SMALL)


def test_it_is_the_run_of_the_command(results, tmp_path):
    words = ["digits", "wa", "--scenario.step", "5", "--model.backbone", "convnet2", "--trainer.epochs", "1"]
    words += ["--trainer.batch_size", "16", "--train_per_class", "12", "--device", "cpu", "--threads", "1"]
    assert train.main([*words, "--memory.exemplars", "20", "--run_dir", str(tmp_path / "run")]) == 0
    checkpoints = Checkpoints(tmp_path / "run/checkpoint")
    tensors, _ = checkpoints.load(checkpoints.moments()[-1])
    assert not equal_states(tensors, results.model.tensors())
    written = json.loads((tmp_path / "run/results.json").read_text())
    for key in ("accuracy", "metrics", "fingerprint", "seeds", "name"):
        assert results.content[key] == written[key], key
    assert results.accuracy == written["metrics"]["linear"]["seen_accuracy"]
    assert results.average_accuracy == pytest.approx(np.mean(results.accuracy))
    assert results.bytes == [task["bytes"]["strict"] for task in written["tasks"]]
    # saved, it is a run among others
    results.save(tmp_path / "saved")
    assert len(compare([tmp_path / "saved"]).sections[0].rows) == 1
    assert not equal_states(cil.load(tmp_path / "saved").tensors(), results.model.tensors())
    with pytest.raises(UserError, match="already holds a run"):
        results.save(tmp_path / "saved")


def test_it_tells_and_draws(results):
    told = repr(results)
    assert "WA on digits B0 Inc5" in told and f"average accuracy {100 * results.average_accuracy:.1f} %" in told
    html = results._repr_html_()
    assert html.count("<tr>") == 3 and f"{100 * results.accuracy[1]:.1f} %" in html
    line = results.plot().lines[0]
    assert list(line.get_xdata()) == [5, 10]
    assert np.allclose(line.get_ydata(), [100 * value for value in results.accuracy])


def test_a_class_and_a_data_set_of_ones_own(results):
    data = datasets.load("digits", train_per_class=12)
    options = {key: value for key, value in SMALL.items() if key != "train_per_class"}
    again = cil.run("digits", "wa", data=data, strategy=WA, **options)
    assert not equal_states(under("exemplars", again.model.tensors()), under("exemplars", results.model.tensors()))
    more = again.model.extend({"x": data.test.raw()[:5], "y": data.test.raw()[5:9]})
    assert more.classes[-2:] == ("x", "y")
    few = Dataset("mine", data.train.of_classes([0, 1]), data.test.of_classes([0, 1]), ("no", "yes"))
    options |= {"scenario": {"step": 1}, "strategy": {"class_path": "wa", "init_args": {"temperature": 3.0}}}
    own = cil.run(data=few, **options)
    assert own.model.strategy.temperature == 3.0 and own.model.classes in (("no", "yes"), ("yes", "no"))


def test_mistakes_are_those_of_the_command():
    threads = torch.get_num_threads()
    for words, options, told in (
        (("digits", "wa"), {"trainer": {"epoch": 3}}, "epochs"),
        (("digits", "nonsense"), {}, "configuration: no 'nonsense'"),
        (("digits",), {}, "strategy: none is named"),
        (("digits", "wa"), {"run_dir": "x"}, "run_dir: cil.run learns in this process"),
        (("digits", "wa"), {"memory": {"exemplars": 3}}, "less than one for each"),
    ):
        with pytest.raises(UserError, match=told):
            cil.run(*words, **options)
    assert torch.get_num_threads() == threads


def test_threads_are_those_of_before_and_what_was_learned_is_told(results):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        data = datasets.load("digits", train_per_class=3)
        made = cil.run("wa", data=data, **{**SMALL, "train_per_class": None})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert made.content["config"]["data"] == made.model.origin.config["data"] == "python:digits"
    assert "data='python:digits'" in made.content["command"]
