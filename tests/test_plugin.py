"""A stranger's strategy in one file outside the repository: run from YAML by its class path, and checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cil.command import config
from tools import check_strategy, train

ROOT = Path(__file__).resolve().parents[1]

PLUGIN = (ROOT / "strategies/regularisation/lwf.py").read_text()  # stands outside the repository here
DROP = "self.teacher = None  # not carried, not charged"

CONFIG = """
data: digits
scenario: {step: 5}
strategy:
  class_path: my_lab.methods.LwF
  init_args: {keep: 2}
model: {backbone: convnet2}
trainer: {epochs: 3, batch_size: 32, lr: 0.05}
threads: 1
run_dir: out
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "methods.py").write_text(PLUGIN)
    kept = f"{DROP}\n        self.old = task.train"
    (tmp_path / "my_lab" / "broken.py").write_text(PLUGIN.replace(DROP, kept))
    (tmp_path / "mine.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def call(main, *argv):
    """The status of a command line in this process."""
    with pytest.raises(SystemExit) as stop:
        config.main(main, argv)
    return stop.value.code


def start(lab, *argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *argv], cwd=lab, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_a_plugin_runs_from_yaml_by_its_class_path(lab, capsys):
    done = start(lab, str(ROOT / "tools/train.py"), "--config", "mine.yaml")
    assert done.returncode == 0, done.stderr
    content = json.loads((lab / "out" / "results.json").read_text())
    assert content["strategy"] == "my_lab.methods.LwF"
    assert content["config"]["strategy"]["init_args"] == {"keep": 2.0, "temperature": 2.0, "warm_up": 0.1}
    assert content["metrics"]["linear"]["new_task_accuracy"] > 0.5
    assert call(train.main, "--config", "mine.yaml", "--strategy.keeps", "3", "--overwrite") == 2
    assert "did you mean 'strategy.keep'?" in capsys.readouterr().err


def test_a_plugin_is_checked(lab, capsys):
    assert call(check_strategy.main, "my_lab.methods.LwF", "keep=2.0") == 0
    assert "BROKEN" not in capsys.readouterr().out
    assert call(check_strategy.main, "my_lab.broken.LwF") == 1
    assert "BROKEN nothing is carried outside the state" in capsys.readouterr().out
    assert call(check_strategy.main, "my_lab.methods.Lwf") == 2
    assert "did you mean 'LwF'?" in capsys.readouterr().err
