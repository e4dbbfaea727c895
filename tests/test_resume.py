"""A run that was killed and resumed ends with the bits of one that was not; a damaged checkpoint is reported."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cil.experiment.checkpoint import Checkpoints, DamagedError, Moment
from cil.experiment.progress import Progress
from cil.experiment.run import run
from cil.report import report
from cil.testing.lab import Lab, equal_states
from strategies.baselines.replay import Replay
from strategies.rehearsal.icarl import ICaRL
from strategies.rehearsal.wa import WA

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [
    *[sys.executable, "tools/train.py", "--config", "configs/protocols/digits.yaml", "--strategy", "wa"],
    *["--trainer.epochs", "12", "--checkpoint_every", "1", "--seed", "5"],
]
KILLS = 3


def start(folder, log, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    argv = [*COMMAND, "--run_dir", str(folder), *more]
    with open(log, "ab") as out:
        return subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)


def wait_until_it_trains(process, log, since):
    """The line that names the folder is printed right before the training starts."""
    deadline = time.monotonic() + 120
    while b"digits B0 Inc2 in" not in Path(log).read_bytes()[since:]:
        assert process.poll() is None, Path(log).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final(folder):
    """Everything a run leaves that must not depend on how often it was interrupted."""
    checkpoint = Checkpoints(folder / "checkpoint").moments()[-1]
    data = (folder / "checkpoint" / f"{checkpoint.name}.safetensors").read_bytes()
    return checkpoint, data, report.comparable(json.loads((folder / "results.json").read_text()))


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_byte_for_byte_alike(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(whole, tmp_path / "whole.log")
    wait_until_it_trains(process, tmp_path / "whole.log", 0)
    began = time.monotonic()
    assert process.wait(300) == 0
    lasted = time.monotonic() - began
    seed = int.from_bytes(os.urandom(4), "little")
    draw = random.Random(seed)
    log = tmp_path / "parts.log"
    log.touch()
    for _ in range(KILLS):
        since = log.stat().st_size
        process = start(parts, log, "--resume")
        wait_until_it_trains(process, log, since)
        time.sleep(draw.uniform(0, lasted / KILLS))
        assert process.poll() is None, f"it ended before it was killed (seed {seed})"
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    process = start(parts, log, "--resume")
    assert process.wait(300) == 0, log.read_text()
    assert final(parts) == final(whole), f"differs after kills drawn with seed {seed}"


class Stop(Exception):
    """The power cut."""


class Cut(Progress):
    """Stops a run when a number of epochs have started, and keeps what it was warned of."""

    def __init__(self, epochs):
        super().__init__(Console(quiet=True))
        self.left, self.warnings, self.lines = epochs, [], []

    def epoch_starts(self, *_):
        self.left -= 1
        if self.left == 0:
            raise Stop

    def warn(self, text):
        self.warnings.append(text)

    def say(self, text):
        self.lines.append(text)


def state(outcome):
    _, strategy, exemplars = outcome
    return {**strategy.state_dict(), **exemplars.state()}


def interrupted(folder, epochs, strategy=WA):
    checkpoints = Checkpoints(folder)
    experiment = Lab(strategy).experiment()
    with pytest.raises(Stop):
        run(experiment, checkpoints=checkpoints, checkpoint_every=3, progress=Cut(epochs))
    return checkpoints, experiment


def resumed(checkpoints, experiment):
    progress = Cut(-1)
    outcome = run(experiment, checkpoints=checkpoints, checkpoint_every=3, resume=True, progress=progress)
    return outcome, progress


@pytest.fixture(scope="module")
def whole():
    return state(run(Lab(WA).experiment()))


def test_checkpoints_are_kept_as_documented(tmp_path):
    checkpoints, _ = interrupted(tmp_path, 8 + 8 + 8)  # eight epochs a task, cut in the last of the third
    assert [moment.name for moment in checkpoints.moments()] == [
        "task000",
        "task001",
        "task002-stage0-epoch0003",
        "task002-stage0-epoch0006",
    ]


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_reported_of_the_last_task_alone_a_checkpoint_holds_of_it_alone(tmp_path, streams):
    checkpoints = Checkpoints(tmp_path)
    lab = Lab(Replay)
    run(lab.stream_experiment() if streams else lab.experiment(), checkpoints=checkpoints)
    for moment in checkpoints.moments():
        *before, last = (one["evaluators"].values() for one in checkpoints.load(moment)[1]["tasks"])
        assert all({"task_confusion", "per_class"} <= set(scores) for scores in last)
        assert not any("task_confusion" in scores for row in before for scores in row)
        assert all(("per_class" in scores) == streams for row in before for scores in row)


DAMAGE = {
    "cut short": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "one bit turned": lambda data: data[:-5] + bytes([data[-5] ^ 4]) + data[-4:],
}


@pytest.mark.parametrize(("suffix", "how"), list(itertools.product(["safetensors", "json"], DAMAGE)))
@pytest.mark.parametrize("name", ["task002-stage0-epoch0006", "task001"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, whole, name, suffix, how):
    checkpoints, experiment = interrupted(tmp_path, 24)
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    outcome, progress = resumed(checkpoints, experiment)
    assert len(progress.warnings) == 1
    assert name in progress.warnings[0]
    expected = "task 3, epoch 3" if "stage" in name else "task 2"
    assert progress.lines[0].endswith(f"going on in {expected}")
    assert not equal_states(whole, state(outcome))


def test_with_every_checkpoint_damaged_a_run_starts_anew(tmp_path, whole):
    checkpoints, experiment = interrupted(tmp_path, 24)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"ruin")
    outcome, progress = resumed(checkpoints, experiment)
    assert len(progress.warnings) >= 2
    assert not equal_states(whole, state(outcome))


def test_a_missing_half_is_damage(tmp_path):
    checkpoints, _ = interrupted(tmp_path, 12)
    (tmp_path / "task000.safetensors").unlink()
    with pytest.raises(DamagedError, match="task000"):
        checkpoints.load(Moment(0))


@pytest.mark.parametrize("cut", [1, 2, 5, 8, 9, 16, 17, 21])
def test_wherever_it_is_cut_a_run_ends_alike(tmp_path, whole, cut):
    checkpoints, experiment = interrupted(tmp_path, cut)
    outcome, _ = resumed(checkpoints, experiment)
    assert not equal_states(whole, state(outcome))


class TwoStages(ICaRL):
    """Train twice for each task, the second time with a teacher that the first made."""

    def fit(self, task, replay, trainer):
        trainer.descend(self, task.train, replay)
        with torch.no_grad():
            self.model.head.weight.mul_(0.9)
        self.begin(task)
        trainer.descend(self, task.train, replay)


@pytest.fixture(scope="module")
def in_two_stages():
    return state(run(Lab(TwoStages).experiment()))


@pytest.mark.parametrize("cut", [4, 8, 9, 13, 16, 17, 25, 31, 40, 47])
def test_training_in_two_stages_goes_on_alike(tmp_path, in_two_stages, cut):
    checkpoints, experiment = interrupted(tmp_path, cut, TwoStages)
    outcome, _ = resumed(checkpoints, experiment)
    assert not equal_states(in_two_stages, state(outcome))
