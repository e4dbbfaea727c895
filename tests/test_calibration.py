"""The report on calibrated prototypes says what the runs themselves say."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from cil.command import config
from cil.deploy import calibration
from cil.deploy.finished import reopen
from cil.errors import UserError
from cil.evaluation import few_shot
from scenarios.datasets import load
from tools import calibration as tool
from tools import train


def learned(folder, name, *more):
    words = ["--config", "configs/protocols/digits_few_shot.yaml", "--config", f"configs/strategies/{name}.yaml"]
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, [*words, "--trainer.epochs", "2", "--run_dir", str(folder), *more])
    assert stop.value.code == 0
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: learned(folder / name, name) for name in ("teen", "protonet")}


def numbers(folder):
    told = json.loads((folder / "results.json").read_text())["few_shot"]["metrics"]["linear"]
    return {name: told[name][-1] for name in few_shot.BY_TASK}


def test_before_is_protonet_and_after_is_the_run(runs):
    found = calibration.measure(reopen(runs["teen"], load))
    for told, folder in zip(found.numbers, (runs["protonet"], runs["teen"]), strict=True):
        assert told == pytest.approx(numbers(folder))
    assert found.numbers[0] != found.numbers[1]
    assert (len(found.base), len(found.new), found.session) == (6, 4, [1, 1, 2, 2])
    per_class = json.loads((runs["teen"] / "results.json").read_text())["per_class_accuracy"]["linear"]
    assert found.recall[:, 1] == pytest.approx(per_class[6:])


def test_similarities_weights_and_angles_are_those_of_loops(runs):
    run = reopen(runs["teen"], load)
    found, means = calibration.measure(run), run.strategy.prototypes.means.numpy()
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    for i in range(4):
        cosines = np.array([unit[6 + i] @ unit[b] for b in range(6)])
        weights = np.exp(16 * cosines) / np.exp(16 * cosines).sum()
        moved = 0.5 * unit[6 + i] + 0.5 * weights @ unit[:6]
        moved /= np.linalg.norm(moved)
        assert found.similarity[i] == pytest.approx(cosines)
        assert found.weights[i] == pytest.approx(weights)
        assert found.moved[i] == pytest.approx(np.degrees(np.arccos(moved @ unit[6 + i])), abs=1e-5)
        assert found.nearest[i] == pytest.approx([cosines.max(), moved @ unit[cosines.argmax()]])


def test_the_tool_writes_a_figure_and_a_table(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        config.main(tool.main, [str(runs["teen"]), "--out", str(tmp_path / "out"), "--task", "2"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert (tmp_path / "out/calibration.png").read_bytes().startswith(b"\x89PNG")
    head, *rows = csv.reader(io.StringIO((tmp_path / "out/calibration.csv").read_text()))
    found = calibration.measure(reopen(runs["teen"], load, task=2))
    assert [row[1] for row in rows] == found.new == ["6", "7"]
    best = [found.base[b] for b in found.similarity.argmax(1)]
    assert [row[head.index("base_1")] for row in rows] == best
    assert [float(row[head.index("degrees_moved")]) for row in rows] == pytest.approx(found.moved, abs=1e-4)
    assert f"{100 * found.numbers[1]['harmonic_mean']:>12.1f}" in shown


def test_more_base_classes_than_fit_are_said_to_be_left_out(runs, monkeypatch):
    found = calibration.measure(reopen(runs["teen"], load))
    monkeypatch.setattr(calibration, "SHOWN_BASE", 2)
    texts = []
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    calibration._similarity(axes, found)
    texts = [axes.get_xlabel(), *(label.get_text() for label in axes.get_xticklabels())]
    assert texts[0] == "base classes (4 with smaller weights are not shown)"
    largest = np.argsort(-found.weights.max(0))[:2]
    assert texts[1:] == [found.base[b] for b in largest]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("protonet", {}, r"ProtoNet does not calibrate prototypes; TEEN does"),
        ("teen", {"task": 1}, r"--task: no state after task 1 is kept"),
    ],
)
def test_runs_without_calibration_are_refused(runs, name, more, message):
    with pytest.raises(UserError, match=message):
        calibration.measure(reopen(runs[name], load, **more))


def test_a_folder_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out: .*file"):
        calibration.write(calibration.measure(reopen(runs["teen"], load)), tmp_path / "file")
