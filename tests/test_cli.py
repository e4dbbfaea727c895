"""The command line: a run from flags to folder, and a clear word for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cil.command import config
from cil.command.names import strategies
from cil.report import report
from tools import train

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ["--config", str(ROOT / "configs/protocols/digits.yaml")]
WA = [*DIGITS, "--config", str(ROOT / "configs/strategies/wa.yaml")]
NAMES = ", ".join(sorted(strategies()))
QUICK = ["--trainer.epochs", "1", "--checkpoint_every", "0"]


def call(argv, capsys):
    """Exit status, standard output and error stream of the training command."""
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, argv)
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


@pytest.fixture
def corrupt(tmp_path):
    path = tmp_path / "data.npz"
    images = np.zeros((20, 8, 8, 1), np.uint8)
    labels = np.arange(20) % 10
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels, classes=np.array(list("abcdefghij")))
    path.write_bytes(path.read_bytes()[:-300])
    return path


MISTAKES = {
    "misspelt option of the strategy": (
        [*WA, "--strategy.temperatur", "3"],
        ["no option 'strategy.temperatur'", "did you mean 'strategy.temperature'?", "strategy.clip_weights"],
    ),
    "misspelt option of a group": (
        [*WA, "--trainer.epoch", "3"],
        ["no option 'trainer.epoch'", "did you mean 'trainer.epochs'?", "trainer.batch_size"],
    ),
    "misspelt option": ([*WA, "--evaluator", "linear"], ["no option 'evaluator'", "did you mean 'evaluators'?"]),
    "misspelt option of the scenario": (
        [*WA, "--scenario.steps", "5"],
        ["no option 'scenario.steps'", "did you mean 'scenario.step'?", "scenario.sizes"],
    ),
    "unknown strategy": (
        [*DIGITS, "--strategy", "wa2"],
        ["strategies: no 'wa2'", "did you mean 'wa'?", f"Legal: {NAMES}."],
    ),
    "no strategy": (DIGITS, ["strategy: none is named", f"Legal: {NAMES}, or"]),
    "class path that is not there": (
        [*DIGITS, "--strategy", "strategies.rehearsal.wa.WB"],
        ["module strategies.rehearsal.wa: no 'WB'", "Legal: WA"],
    ),
    "module that is not there": (
        [*DIGITS, "--strategy", "nowhere.mine.Mine"],
        ["strategy: 'nowhere.mine.Mine' cannot be imported", "nowhere"],
    ),
    "class that is no strategy": (
        [*DIGITS, "--strategy", "cil.learning.trainer.Trainer"],
        ["'cil.learning.trainer.Trainer' is not a subclass of cil.learning.strategy.Strategy"],
    ),
    "missing data": ([*WA, "--data", "npz:nowhere.npz"], ["nowhere.npz"]),
    "unknown data": ([*WA, "--data", "digit"], ["did you mean 'digits'?", "cifar100"]),
    "wrong type": ([*WA, "--trainer.epochs", "three"], ["trainer.epochs", "int", "three"]),
    "wrong type of the strategy": ([*WA, "--strategy.temperature", "hot"], ["strategy.temperature", "float", "hot"]),
    "wrong choice": ([*WA, "--memory.selection", "hoarding"], ["memory.selection", "hoarding", "herding"]),
    "sizes beside a step": ([*WA, "--scenario.sizes", "[5, 5]"], ["step", "sizes"]),
    "sizes that do not add up": (
        [*WA, "--scenario.step", "null", "--scenario.sizes", "[5, 4]"],
        ["sizes=[5, 4]", "9 classes", "10"],
    ),
    "exemplars for an exemplar-free strategy": (
        [*DIGITS, "--strategy", "Finetune"],
        ["Finetune is exemplar-free", "100 exemplars", "set them to 0"],
    ),
    "upper bound within a budget": ([*DIGITS, "--strategy", "Joint"], ["memory.exemplars: all", "it is 100"]),
    "two quotas": ([*WA, "--memory.per_class", "5"], ["exemplars is 100, per_class is 5", "null for the other"]),
    "nearest means without exemplars": (
        [*DIGITS, "--strategy", "ICaRL", "--memory.exemplars", "0"],
        ["nearest means of exemplars need exemplars", "ICaRL"],
    ),
    "unknown evaluator": ([*WA, "--evaluators", "[linea]"], ["no 'linea'", "did you mean 'linear'?", "nearest_mean"]),
    "unknown backbone": (
        [*WA, "--model.backbone", "convnet3"],
        ["model.backbone: no 'convnet3'", "did you mean 'convnet", "cifar_resnet32"],
    ),
    "colour statistics for grey images": ([*WA, "--augmentation.preset", "cifar"], ["1 channel", "'cifar'"]),
    "value out of range": ([*WA, "--trainer.lr", "-1"], ["trainer.lr: -1.0", "> 0"]),
    "override for a task that is not there": (
        [*WA, "--trainer.per_task", "{7: {epochs: 3}}"],
        ["there is no task of index 7", "0 to 4"],
    ),
    "misspelt override": (
        [*WA, "--trainer.per_task", "{0: {epoch: 3}}"],
        ["trainer.per_task.0: no 'epoch'", "did you mean 'epochs'?"],
    ),
    "device that is not there": ([*WA, "--device", "gpu"], ["device: 'gpu' is not available"]),
    "configuration that is not there": (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    "resume and overwrite": ([*WA, "--resume", "--overwrite"], ["contradict each other"]),
    "word that stands alone": ([*WA, "wa"], ["'wa' stands alone"]),
}


@pytest.mark.parametrize(("argv", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_ends_with_status_2_and_says_what_is_legal(argv, told, capsys, tmp_path):
    status, _, err = call([*argv, "--run_dir", str(tmp_path / "run")], capsys)
    assert status == 2
    for words in told:
        assert words in err
    assert "Traceback" not in err
    assert err.count("\n") == 1  # one paragraph
    assert not (tmp_path / "run").exists()


def test_corrupt_data_are_refused(corrupt, capsys):
    status, _, err = call([*WA, "--data", f"npz:{corrupt}"], capsys)
    assert status == 2
    assert str(corrupt) in err
    assert "Traceback" not in err


def test_yaml_mistakes_name_the_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("strategy: WA\nmemory: {exemplar: 3}\n")
    status, _, err = call(["--config", str(path)], capsys)
    assert (status, str(path) in err) == (2, True)
    assert "no option 'memory.exemplar'; did you mean 'memory.exemplars'?" in err
    path.write_text("strategy: [WA\n")
    status, _, err = call(["--config", str(path)], capsys)
    assert (status, "is not YAML" in err) == (2, True)
    path.write_text("- WA\n")
    status, _, err = call(["--config", str(path)], capsys)
    assert (status, "must hold keys and values, not ['WA']" in err) == (2, True)
    path.write_text("strategy: {class_path: WA, init_args: {temperatura: 3}}\n")
    status, _, err = call(["--config", str(path)], capsys)
    assert (status, "did you mean 'strategy.temperature'?" in err) == (2, True)


def test_a_used_folder_is_refused_resumed_or_overwritten(tmp_path, capsys):
    folder = tmp_path / "run"
    argv = [*DIGITS, "--strategy", "Finetune", "--memory.exemplars", "0", *QUICK, "--run_dir", str(folder)]
    status, out, _ = call(argv, capsys)
    assert status == 0
    assert "task 5: 10 classes seen" in out
    written = (folder / "results.json").read_bytes()
    status, _, err = call(argv, capsys)
    assert status == 2
    assert f"{folder} already holds a run" in err
    assert "--resume" in err
    assert (folder / "results.json").read_bytes() == written
    status, out, _ = call([*argv, "--resume"], capsys)
    assert (status, "is complete; nothing to do" in out) == (0, True)
    status, _, err = call([*argv, "--resume", "--trainer.lr", "0.2"], capsys)
    assert (status, "trainer.lr was 0.05, is 0.2" in err) == (2, True)
    assert (folder / "results.json").read_bytes() == written
    status, _, _ = call([*argv, "--overwrite"], capsys)
    assert status == 0
    assert report.comparable(json.loads((folder / "results.json").read_text())) == report.comparable(
        json.loads(written)
    )


def test_a_run_writes_what_the_schema_says(tmp_path, capsys):
    folder = tmp_path / "run"
    status, _, _ = call([*WA, *QUICK, "--run_dir", str(folder), "--seed", "3", "--seeds", "{data: 5}"], capsys)
    assert status == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "results.json",
        "report.md",
        "events",
        "checkpoint",
    }
    content = json.loads((folder / "results.json").read_text())
    assert (content["schema"], content["status"], content["evaluator"]) == (1, "complete", "linear")
    assert content["seeds"] == {"init": 3, "data": 5, "exemplars": 3, "class_order": 1993, "stream": None}
    assert content["command"].startswith("python tools/train.py --config")
    assert content["versions"]["torch"]
    for evaluator in ("linear", "nearest_mean"):
        matrix = content["accuracy"][evaluator]
        assert [[value is None for value in row] for row in matrix] == [[k > t for k in range(5)] for t in range(5)]
        seen = content["metrics"][evaluator]["seen_accuracy"]
        assert content["metrics"][evaluator]["last_accuracy"] == pytest.approx(seen[-1])
        assert content["metrics"][evaluator]["average_incremental_accuracy"] == pytest.approx(np.mean(seen))
        assert len(content["per_class_accuracy"][evaluator]) == 10
        assert np.array(content["task_confusion"][evaluator]).sum(1) == pytest.approx(np.ones(5))
    for index, task in enumerate(content["tasks"]):
        assert task["classes"] == [2 * index, 2 * index + 1]
        assert task["seconds"] > 0
        assert task["exemplars"] == 100 // task["n_seen"] * task["n_seen"]
        sizes = task["bytes"]
        parts = sizes["parameters"] + sizes["buffers"] + sizes["exemplars"] + sizes["labels"]
        assert sizes["strict"] == parts
        assert sizes["exemplars"] == 64 * task["exemplars"]
        assert sizes["paper"] == 4 * 37824 + sizes["exemplars"]
    assert "nearest_mean" in (folder / "report.md").read_text()
    assert list((folder / "events").iterdir())
    # The resolved configuration runs again to the same numbers.
    again = tmp_path / "again"
    status, _, _ = call(["--config", str(folder / "config.yaml"), "--run_dir", str(again)], capsys)
    assert status == 0
    one, two = (report.comparable(json.loads((f / "results.json").read_text())) for f in (folder, again))
    assert one == two


def test_a_dry_run_plans_what_a_run_carries_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    status, out, _ = call([*WA, "--dry-run", "--run_dir", str(folder)], capsys)
    assert status == 0
    assert not folder.exists()
    assert "100" in out
    assert "0.152" in out  # MiB after the first task: 37,954 parameters, 258 buffers, 100 images of 64 bytes
    status, out, _ = call([*DIGITS, "--strategy", "joint", "--memory.exemplars", "all", "--dry_run"], capsys)
    assert (status, "outside any memory budget" in out) == (0, True)


def test_files_merge_from_left_to_right_and_flags_win(capsys, tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("strategy: wa\ntrainer: {epochs: 3, lr: 0.5}\nscenario: {step: 5}\n")
    second.write_text("strategy: {init_args: {temperature: 4}}\ntrainer: {epochs: 4}\n")
    argv = ["--config", str(first), "--config", str(second), "--trainer.gamma", "0.3", "--print_config"]
    status, out, _ = call(argv, capsys)
    assert status == 0
    shown = yaml.safe_load(out)
    assert shown["strategy"] == {
        "class_path": "strategies.rehearsal.wa.WA",
        "init_args": {
            **{"temperature": 4.0, "clip_weights": True, "head_bias": True},
            **{"scale_bias": False, "only_shrink": False},
        },
    }
    assert (shown["trainer"]["epochs"], shown["trainer"]["lr"], shown["trainer"]["gamma"]) == (4, 0.5, 0.3)
    assert shown["scenario"]["init_args"]["step"] == 5


def test_no_protocol_demands_a_precision_that_processors_lack():
    """Many processors do not multiply bfloat16, and would emulate it at a multiple of the time."""
    for path in sorted((ROOT / "configs/protocols").glob("*.yaml")):
        _, parsed = config.parse(["--config", str(path), "--strategy", "replay"])
        assert parsed.precision in ("auto", "32"), path.name


def test_the_help_explains_every_option(capsys):
    status, out, _ = call(["--help"], capsys)
    assert status == 0
    text = " ".join(out.split())
    for words in ("--trainer.epochs", "passes over a task's data", "--memory.exemplars", "shared equally", "--dry_run"):
        assert words in text
    status, out, _ = call(["--strategy.help", "strategies.rehearsal.wa.WA"], capsys)
    assert (status, "T of the distillation" in out) == (0, True)


def test_a_diverging_run_fails_with_its_place(tmp_path, capsys):
    folder = tmp_path / "run"
    status, out, _ = call([*WA, "--trainer.lr", "1e30", "--run_dir", str(folder)], capsys)
    assert status == 1
    content = json.loads((folder / "results.json").read_text())
    assert content["status"] == "failed"
    assert "task 1 (index 0), epoch 1 of 15" in content["error"]
    assert "trainer.lr" in " ".join(out.split())


def test_the_program_itself_exits_with_2():
    done = subprocess.run(
        [sys.executable, "tools/train.py", *WA, "--strategy.temperatur", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the command line: no option 'strategy.temperatur'")
    assert done.stderr.count("\n") == 1


def test_a_resumed_run_that_fails_keeps_what_was_learned(tmp_path, capsys):
    folder = tmp_path / "run"
    argv = [*WA, *QUICK, "--trainer.per_task", "{1: {lr: 1e30}}", "--run_dir", str(folder)]
    for more in ([], ["--resume"]):
        status, _, _ = call([*argv, *more], capsys)
        content = json.loads((folder / "results.json").read_text())
        assert (status, content["status"], len(content["tasks"])) == (1, "failed", 1)
        assert "task 2 (index 1)" in content["error"]


def test_the_kept_configuration_replaces_nothing_when_it_is_run_again(tmp_path, capsys):
    folder = tmp_path / "run"
    argv = [*DIGITS, "--strategy", "replay", *QUICK, "--run_dir", str(folder), "--overwrite"]
    assert call(argv, capsys)[0] == 0
    status, _, err = call(["--config", str(folder / "config.yaml")], capsys)
    assert (status, "already holds a run" in err) == (2, True)


def test_precision_may_be_a_number(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("precision: 32\n")
    status, out, _ = call([*WA, "--config", str(path), "--dry-run"], capsys)
    assert (status, "plan" in out) == (0, True)


def test_numbers_with_an_exponent_are_numbers(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("trainer: {weight_decay: 2e-4, per_task: {0: {weight_decay: 5e-4, epochs: 2}}}\n")
    status, out, _ = call([*WA, "--config", str(path), "--print_config"], capsys)
    assert status == 0
    shown = yaml.safe_load(out)["trainer"]
    assert shown["weight_decay"] == 0.0002
    assert list(shown["per_task"].values()) == [{"weight_decay": 0.0005, "epochs": 2}]
    status, out, _ = call([*WA, "--config", str(path), "--dry-run"], capsys)
    assert (status, "plan" in out) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ["--scenario", "FewShot"],
        ["--scenario=few_shot"],
        ["--scenario.class_path", "scenarios.few_shot.FewShot"],
        ["--config", "scenario: FewShot"],
        ["--config", "scenario: {class_path: FewShot}"],
        ["--scenario={class_path: FewShot}"],
        ["--scenario", "Online", "--scenario.order", "7", "--scenario", "FewShot"],
    ],
)
def test_a_class_that_takes_anothers_place_starts_with_its_own_defaults(words, tmp_path):
    if words[0] == "--config":
        (tmp_path / "scenario.yaml").write_text(words[1])
        words = ["--config", str(tmp_path / "scenario.yaml")]
    _, parsed = config.parse([*words, "--strategy", "ncm"])
    assert parsed.scenario.class_path == "scenarios.few_shot.FewShot"
    assert parsed.scenario.init_args.order == "natural"  # as FewShot has it; the others have 1993


def test_options_given_to_a_class_stay_when_it_is_named_again():
    words = ["--strategy", "teen", "--strategy.tau", "3", "--strategy", "TEEN", "--strategy.alpha", "0.25"]
    _, parsed = config.parse(words)
    assert (parsed.strategy.init_args.tau, parsed.strategy.init_args.alpha) == (3.0, 0.25)
    _, parsed = config.parse([*words, "--strategy", "fecam"])
    assert (parsed.strategy.init_args.tau, parsed.strategy.init_args.alpha) == (16.0, 0.25)
