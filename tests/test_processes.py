"""Gradient training on several processes: with the same global batches every strategy learns what one process does."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cil.errors import UserError
from cil.machine import distributed
from tests.together import NAMES, carried
from tools import train

ROOT = Path(__file__).parents[1]
WORLD = 2


def torchrun(*words: str) -> subprocess.CompletedProcess:
    """Run a program of the repository on two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    return subprocess.run([*command, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540)


def here(*words: str) -> str:
    """Run ``tools/train.py`` in this process, and return what it said."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert train.main(words) == 0
    return shown.getvalue()


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    done = torchrun("tests/together.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    differ = {}
    for name in NAMES:
        alone = carried(name)
        for rank in range(WORLD):
            state = load_file(tmp_path / f"{name}-{rank}.safetensors")
            assert state.keys() == alone.keys()
            for key, value in alone.items():
                close = 1e-9
                if name == "fetril" and key.startswith("linear"):
                    close = 1e-3  # scikit-learn's support vector machine stops at a tolerance of its own
                elif key.startswith("exemplars columns"):
                    close = 1e-6  # stored in float32
                if not torch.allclose(state[key], value, rtol=close, atol=close, equal_nan=True):
                    differ[name, rank, key] = (state[key] - value).abs().max().item()
    assert len(NAMES) >= 29 and not differ
    if Path("/proc/self/task").exists():  # where threads are found, which is Linux's
        # Those of the process group that outlive the work can abort the process when the interpreter ends.
        for rank in range(WORLD):
            threads = json.loads((tmp_path / f"threads-{rank}.json").read_text())
            assert threads["during"]
            assert threads["after"] == []


MISTAKE = """
import torch
from cil.machine import distributed
from cil.errors import UserError
from tests.together import threads
try:
    with distributed.launch(torch.device("cpu"), 2, 1):
        if distributed.rank() == 0:
            raise UserError("a mistake that the first process alone meets")
        distributed.wait()
except UserError as error:
    print(f"{error}, left: {threads()}")
except RuntimeError:
    print("the other one was told")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds threads in /proc, which is Linux's")
def test_a_mistake_in_one_process_ends_the_others(tmp_path):
    (tmp_path / "program.py").write_text(MISTAKE)
    done = torchrun(str(tmp_path / "program.py"))
    assert "the first process alone meets, left: []" in done.stdout, done.stderr
    assert "the other one was told" in done.stdout


@pytest.mark.slow
def test_accuracy_in_float32_with_batch_normalisation_is_that_of_one_process(tmp_path):
    words = ["--config", "configs/protocols/digits.yaml", "--strategy", "replay", "--precision", "32"]
    words += ["--threads", "1", "--checkpoint_every", "0", "--scenario.step", "5", "--trainer.epochs", "6"]
    here(*words, "--run_dir", str(tmp_path / "alone"))
    done = torchrun("tools/train.py", *words, "--run_dir", str(tmp_path / "both"))
    assert done.returncode == 0, done.stderr
    one, both = (results(tmp_path / name)["metrics"]["linear"]["last_accuracy"] for name in ("alone", "both"))
    error = (one * (1 - one) * 2 / 445) ** 0.5  # of the difference of two shares of the 445 test images
    assert one > 0.7
    assert abs(one - both) < 3 * error


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    words = ["--config", "configs/protocols/digits.yaml", "--strategy", "wa", "--trainer.epochs", "1"]
    words += ["--model.backbone", "tests.together.Plain", "--precision", "64", "--threads", "1"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    here(*words, "--run_dir", str(alone))
    done = torchrun("tools/train.py", *words, "--run_dir", str(both))
    assert done.returncode == 0, done.stderr
    assert results(both)["machine"]["processes"] == WORLD
    wanted = load_file(alone / "checkpoint/task004.safetensors")
    (both / "checkpoint/task004.safetensors").unlink()
    (both / "checkpoint/task004.json").unlink()
    (both / "results.json").write_text(json.dumps({**results(both), "status": "running"}))
    assert "resuming: 4 of 5 tasks done" in here(*words, "--run_dir", str(both), "--resume")
    found = load_file(both / "checkpoint/task004.safetensors")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("devices", "num_nodes", "said"),
    [(0, 1, "devices: 0"), (2, 2, "num_nodes: 2 machines need torchrun"), (1, 0, "num_nodes: 0")],
)
def test_numbers_of_processes_that_cannot_be_meant_are_refused(devices, num_nodes, said):
    with pytest.raises(UserError, match=said), distributed.launch(torch.device("cpu"), devices, num_nodes):
        pass


def test_processes_need_a_device_that_can_be_shared():
    with pytest.raises(UserError, match="on cpu or cuda, not on meta"), distributed.launch(torch.device("meta"), 2, 1):
        pass
