"""Sweeps on a Ray cluster: the same runs, the same results, also when a worker dies."""

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cil.errors import UserError
from cil.report.report import comparable
from cil.sweep import command
from tests.test_sweep import DIGITS, Pretence, expand, method
from tools import train

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra 'ray')"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
METHODS = {name: {"config": method(name), "set": {"trainer.epochs": 2}} for name in ("replay", "icarl")}


def parent(pid: int) -> int:
    """The process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_a_worker(sweep: Pretence, killed: list[str]) -> None:
    """Once a run is done, kill the Ray worker that looks after one with tasks behind it and before it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not killed:
        done = sum(run.results() is not None for run in sweep.runs)
        for run in sweep.runs if done else ():
            holder = run.folder.holder()
            results = run.folder.results()
            if holder and results and 1 <= len(results["tasks"]) < len(results["scenario"]["task_sizes"]) - 1:
                os.kill(parent(int(holder.split()[-1])), signal.SIGKILL)
                killed.append(run.name)
                break
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc, which is Linux's")
def test_a_sweep_whose_worker_is_killed_ends_with_the_results_of_its_runs_alone(tmp_path):
    protocols = {"digits": {"config": DIGITS, "model.backbone": "convnet2", "threads": 1}}
    asked = {"protocols": protocols, "methods": METHODS}
    alone = expand(tmp_path, seeds=[0, 1, 2], out="alone", **asked)
    sweep = Pretence(tmp_path, [0, 1, 2], workers=2, **asked)
    killed: list[str] = []
    thread = threading.Thread(target=kill_a_worker, args=(sweep, killed))
    thread.start()
    real = Path(command.__file__).parents[2] / "tools/train.py"
    body = f"os.execv(sys.executable, [sys.executable, {str(real)!r}, *sys.argv[1:]])"
    assert sweep(body, engine="ray") == 0, sweep.shown
    thread.join()
    assert killed
    (again,) = [run for run in sweep.runs if run.name == killed[0]]
    shown = (again.folder.path / "log.txt").read_text()
    assert shown.count("precision") == 2  # begun twice
    assert "resuming:" in shown
    for one, other in zip(alone, sweep.runs, strict=True):
        assert train.main(one.argv) == 0
        wanted, found = (json.loads((run.folder.path / "results.json").read_text()) for run in (one, other))
        for content in (wanted, found):
            content["versions"] = None  # a commit in between
        assert comparable(found) == comparable(wanted), other.name


@pytest.mark.slow
def test_a_run_whose_worker_always_dies_has_failed(tmp_path):
    sweep = Pretence(tmp_path, [0, 1], retries=1, workers=1)
    assert sweep("if seed == 0: os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)", engine="ray") == 1
    assert "seed0 failed: killed by SIGKILL" in sweep.shown
    assert "done  digits/exemplars-50/replay/seed1" in sweep.shown
    assert sweep.log(0).count("seed 0 with") == 2  # tried, and tried again


@pytest.mark.slow
def test_an_interrupted_sweep_ends_its_runs(tmp_path):
    sweep = Pretence(tmp_path, [0, 1, 2], workers=2)
    mark = tmp_path / "began"
    body = f"pathlib.Path({str(mark)!r}).touch()\ntime.sleep(120)"

    def interrupt():
        while not mark.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert sweep(body, engine="ray") == 128 + signal.SIGTERM
    thread.join()
    assert "interrupted" in sweep.shown
    assert not any(run.results() for run in sweep.runs)


def test_what_cannot_be_reached_is_an_error(tmp_path):
    sweep = Pretence(tmp_path, [0])
    with pytest.raises(UserError, match=r"no 'slurm'.*local, ray"):
        sweep(engine="slurm")
    with pytest.raises(UserError, match="give --engine ray, too"):
        sweep(address="auto")
    with pytest.raises(UserError, match=r"no Ray cluster can be used at '127\.0\.0\.1:1'"):
        sweep(engine="ray", address="127.0.0.1:1")


@pytest.mark.parametrize("changes", [{"gpus": -1}, {"gpus": "two"}, {"retries": 1.5}, {"retries": True}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, changes):
    ((key, _),) = changes.items()
    with pytest.raises(UserError, match=f"{key}: .* must be a .*number >= 0"):
        Pretence(tmp_path, [0], **changes)
