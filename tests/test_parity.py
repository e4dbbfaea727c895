"""docs/parity.md tells of every strategy, and what it names is there."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest

from cil.command import config
from cil.command.names import strategies
from cil.learning.trainer import Trainer
from cil.nets.resnet import CifarResNet
from tests.test_golden import METHODS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/parity.md").read_text()
ROWS = {
    name: line
    for line in TEXT.partition("## Every strategy")[2].partition("\n## ")[0].splitlines()
    for name in re.findall(r"^\| `(\w+)` \|", line)
}


@functools.cache
def functions(file: str) -> set[str]:
    """The functions of a file of tests."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_strategy_has_one_row_and_no_row_is_left_over():
    assert set(ROWS) == set(strategies())
    assert all(TEXT.count(f"\n| `{name}` |") == 1 for name in ROWS)


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"(test_\w+\.py)::(\w+)(?:\[([\w-]+)\])?", TEXT)
    assert len(named) > len(ROWS)
    for file, function, case in named:
        assert function in functions(file), f"{file}::{function}"
        assert not case or case in METHODS, case


def test_every_row_has_a_test_and_every_recording_a_row():
    for name, row in ROWS.items():
        assert re.search(r"test_\w+\.py::test_\w+", row.split(" | ")[-1]), name
    assert {case for case in METHODS if f"official_code[{case}]" in TEXT} == set(METHODS)


@pytest.mark.parametrize("name", ROWS)
def test_options_that_a_row_names_are_options(name):
    known = {key for made in (strategies()[name], Trainer, CifarResNet) for key in inspect.signature(made).parameters}
    assert set(re.findall(r"`(\w+): [^`]+`", ROWS[name])) <= known


def test_the_first_task_of_pycil_is_a_matter_of_options(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
    _, parsed = config.parse(
        ["--config", str(path), "--data", "digits", "--scenario.step", "5", "--strategy", "replay"]
    )
    trainer = Trainer(**vars(parsed.trainer))
    trainer.check(3)
    first, later = trainer.of_task(0), trainer.of_task(1)
    assert (first.epochs, first.weight_decay, first.milestones) == (200, 5e-4, [60, 120, 170])
    assert (later.epochs, later.weight_decay, later.milestones) == (170, 2e-4, [80, 120])
    assert [round(first.lr_scale(epoch), 9) for epoch in (59, 60, 120, 170)] == [1.0, 0.1, 0.01, 0.001]
