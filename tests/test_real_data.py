"""The published protocols on the images they were published for. CIL_CIFAR100 names an npz file of all of CIFAR-100."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cil.command import config
from tools import train

ROOT = Path(__file__).resolve().parents[1]
DATA = os.environ.get("CIL_CIFAR100")
pytestmark = pytest.mark.skipif(not DATA, reason="CIL_CIFAR100 does not name an npz file of CIFAR-100")

# Protocol, strategy, further options, expected task sizes.
RUNS = {
    "b50_10": ("cifar100_b50_10", "wa", [], [50] + [10] * 5),
    "b0_5": ("cifar100_b0_5", "replay", [], [5] * 20),
    "b0_20": ("cifar100_b0_20", "icarl", [], [20] * 5),
    "uneven": (
        "cifar100_b0_10",
        "finetune",
        ["--scenario.step", "null", "--scenario.sizes", "[40, 7, 23, 1, 29]"],
        [40, 7, 23, 1, 29],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_protocol_runs_on_all_of_cifar100(name, tmp_path):
    protocol, strategy, options, sizes = RUNS[name]
    argv = [
        *["--config", str(ROOT / f"configs/protocols/{protocol}.yaml")],
        *["--config", str(ROOT / f"configs/strategies/{strategy}.yaml"), *options],
        *["--data", f"npz:{DATA}", "--run_dir", str(tmp_path / "run")],
        # As small and short as it can be: what is tested is the way to the end, not the accuracy.
        *["--image_size", "8", "--trainer.epochs", "1", "--model.backbone", "convnet2", "--threads", "1"],
    ]
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, argv)
    assert stop.value.code == 0
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["scenario"]["task_sizes"] == sizes
    assert content["scenario"]["class_order"][:5] == [68, 56, 78, 8, 23]
    assert sum(task["train_images"] for task in content["tasks"]) == 50_000
    n = np.array(sizes)
    matrix = np.array(content["accuracy"][content["evaluator"]], dtype=float)
    seen = [(matrix[t, : t + 1] * n[: t + 1]).sum() / n[: t + 1].sum() for t in range(len(n))]
    scores = content["metrics"][content["evaluator"]]
    assert scores["seen_accuracy"] == pytest.approx(seen)
    assert scores["average_incremental_accuracy"] == pytest.approx(np.mean(seen))
    last = [matrix[:-1, k][k:].max() - matrix[-1, k] for k in range(len(n) - 1)]
    assert scores["forgetting"] == pytest.approx(np.mean(last))
    assert scores["last_accuracy"] > 0.01
    if strategy != "finetune":
        assert [task["exemplars"] for task in content["tasks"]][-1] == 2000
