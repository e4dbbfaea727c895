"""A stranger's strategy in one file outside the repository: run from YAML by its class path, and checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PLUGIN = (ROOT / "docs/examples/lwf.py").read_text()  # the documentation's example stands outside the repository here
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
def lab(tmp_path):
    (tmp_path / "my_lab").mkdir()
    assert PLUGIN.count("\n") < 60
    (tmp_path / "my_lab" / "methods.py").write_text(PLUGIN)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path


def call(lab, *argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *argv], cwd=lab, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_a_plugin_runs_from_yaml_by_its_class_path(lab):
    done = call(lab, str(ROOT / "tools/train.py"), "--config", "mine.yaml")
    assert done.returncode == 0, done.stderr
    content = json.loads((lab / "out" / "results.json").read_text())
    assert content["strategy"] == "my_lab.methods.LwF"
    assert content["config"]["strategy"]["init_args"] == {"keep": 2.0, "temperature": 2.0}
    assert content["metrics"]["linear"]["new_task_accuracy"] > 0.5
    wrong = call(lab, str(ROOT / "tools/train.py"), "--config", "mine.yaml", "--strategy.keeps", "3", "--overwrite")
    assert wrong.returncode == 2
    assert "did you mean 'strategy.keep'?" in wrong.stderr


def test_a_plugin_is_checked(lab):
    done = call(lab, str(ROOT / "tools/check_strategy.py"), "my_lab.methods.LwF", "keep=2.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout
    (lab / "my_lab" / "methods.py").write_text(PLUGIN.replace(DROP, f"{DROP}\n        self.old = task.train"))
    broken = call(lab, str(ROOT / "tools/check_strategy.py"), "my_lab.methods.LwF")
    assert broken.returncode == 1
    assert "BROKEN nothing is carried outside the state" in broken.stdout
    missing = call(lab, str(ROOT / "tools/check_strategy.py"), "my_lab.methods.Lwf")
    assert missing.returncode == 2
    assert "did you mean 'LwF'?" in missing.stderr
