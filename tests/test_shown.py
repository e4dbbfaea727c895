"""Names and paths of others are printed as they are, command no terminal and compute nothing in a spreadsheet."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from cil.command import config
from cil.compare.comparison import compare
from cil.compare.figures import figures
from cil.compare.tables import as_csv
from cil.experiment.progress import Progress
from cil.shown import Terminal, cell, plain
from tests.result_files import put, real, result, write
from tools import compare as compare_tool
from tools import pack, profile, sweep, train

ROOT = Path(__file__).resolve().parents[1]
# Markup of rich, an emoji of it, the clearing of the screen, a colour in 8 bits, and a mark that turns the direction.
NAME = "[red]a[/red] [link=x]:tada: [/] \x1b[2J\x9b31m\u202e"
SHOWN = "[red]a[/red] [link=x]:tada: [/] \\x1b[2J\\x9b31m\\u202e"


def call(program, argv, capsys):
    """Exit status, standard output and error stream of a command."""
    with pytest.raises(SystemExit) as stop:
        config.main(program.main, [str(word) for word in argv])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def test_only_control_characters_are_changed():
    kept = "Ünïcode 日本\u3000語 \U0001f600 a\u200db \t\n[x]"
    assert plain(kept) == kept
    assert plain("\x00\x07\x1b]0;t\x07\r\x7f\x9b\u2028\u2066\udcff") == (
        "\\x00\\x07\\x1b]0;t\\x07\\r\\x7f\\x9b\\u2028\\u2066\\udcff"
    )


@pytest.mark.parametrize("value", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "-", "=", "-1e", "+HYPERLINK()"])
def test_formulas_become_text(value):
    assert cell(value) == f"'{value}"


@pytest.mark.parametrize("value", ["-1", "+0.5", "-1e-3", "a=1", "1-1", "", "'x", -1.5, 3, None])
def test_numbers_and_words_stay(value):
    assert cell(value) is value


def test_the_table_of_a_comparison_computes_nothing(tmp_path):
    change = {"name": "=HYPERLINK(1)", "scenario.name": "@x", "config.strategy.init_args.temperature": "-x"}
    contents = [result("WA", change=change), result("WA", change={**change, "metrics.linear.forgetting": -0.25})]
    put(contents[1], "config.strategy.init_args.temperature", "+y")
    lines = list(csv.DictReader(io.StringIO(as_csv(compare(write(tmp_path, *contents))))))
    assert {line["method"][:3] for line in lines} == {"'=H"}
    assert {line["scenario"] for line in lines} == {"'@x"}
    assert "-0.25" in {line["forgetting_mean"] for line in lines}
    assert not [value for line in lines for value in line.values() if value[:1] in tuple("=+@\t\r")]


def test_a_terminal_shows_what_it_is_given():
    file = io.StringIO()
    console = Terminal(file=file, width=200, force_terminal=True, color_system=None)
    table = Table(NAME, title=NAME, caption=NAME)
    table.add_row(NAME)
    console.print(table, NAME)
    console.print(NAME, style="red")
    console.print(Text(NAME))
    with Progress(console).counting(NAME, 2) as done:
        done(1)
    out = file.getvalue()
    assert (out.count(SHOWN), out.count(SHOWN[:30])) == (7, 8)  # the bar has no room for all of it
    assert "\x1b[2J" not in out and "\x9b" not in out and "\u202e" not in out
    assert "\x1b[?25l" in out  # the bars' own commands are left alone


def test_consoles_are_made_in_one_place_and_what_is_printed_without_one_is_plain():
    for path in [*(ROOT / "cil").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [node for node in calls if getattr(node.func, "id", None) == "Console"], path
        printed = [word for node in calls if getattr(node.func, "id", None) == "print" for word in node.args]
        assert not [word for word in printed if isinstance(word, ast.JoinedStr)], path


def test_a_run_prints_its_folder_as_it_is(tmp_path, capsys):
    argv = ["--config", ROOT / "configs/protocols/digits.yaml", "--strategy", "Finetune", "--scenario.step", "5"]
    argv += ["--memory.exemplars", "0", "--trainer.epochs", "1", "--run_dir", tmp_path / NAME]
    status, out, _ = call(train, argv, capsys)
    assert status == 0
    assert f"written to {tmp_path / SHOWN}" in out and f"in {tmp_path / SHOWN}, device" in out
    status, again, _ = call(train, [*argv, "--resume"], capsys)
    assert (status, f"{tmp_path / SHOWN} is complete" in again) == (0, True)
    status, told, _ = call(profile, [tmp_path / NAME], capsys)
    assert (status, SHOWN.split()[0] in told) == (0, True)
    assert not [sign for sign in "\x1b\x9b\u202e" if sign in out + again + told]


def test_mistakes_are_told_with_the_names_as_they_are(tmp_path, capsys):
    argv = ["--config", ROOT / "configs/protocols/digits.yaml", "--strategy", "Finetune", "--data", f"npz:{NAME}"]
    for program, words in ((train, argv), (compare_tool, [tmp_path / NAME, "--out", tmp_path / "report"])):
        status, _, err = call(program, words, capsys)
        assert (status, SHOWN in err) == (2, True)
        assert "\x1b" not in err
    path = tmp_path / os.fsdecode(b"\xff.yaml")
    status, _, err = call(sweep, ["--config", path], capsys)
    assert (status, "\\udcff.yaml" in err) == (2, True)


def test_packing_prints_its_files_as_they_are(tmp_path, capsys):
    write(tmp_path / NAME, result("WA"), result("DER", change={"status": NAME}))
    status, out, _ = call(pack, [tmp_path / NAME, "--out", tmp_path / NAME / "packed"], capsys)
    assert status == 0
    assert out.count(SHOWN) == 3 and "\x1b" not in out


def test_a_sweep_prints_its_runs_as_they_are(tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        json.dumps(
            {
                "out": str(tmp_path / NAME),
                "protocols": {"[bold]p": [str(ROOT / "configs/protocols/digits.yaml")]},
                "methods": {"[/red]": [str(ROOT / "configs/strategies/replay.yaml")]},
                "budgets": [{"exemplars": 50}],
                "seeds": [0],
            }
        )
    )
    status, out, _ = call(sweep, ["--config", path, "--dry-run"], capsys)
    assert status == 0
    assert "[bold]p" in out and "[/red]" in out and "\x1b" not in out


def test_a_comparison_prints_names_and_files_as_they_are(tmp_path, capsys):
    named = {"name": NAME, "scenario.name": f"s {NAME}", "config.trainer.schedule": NAME}
    places = write(
        tmp_path / NAME, result("WA", 0, change=named), result("DER", 1, change={"scenario.name": f"s {NAME}"})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing would be told with the character itself
        status, out, _ = call(compare_tool, [*places, "--out", tmp_path / f"{NAME}report"], capsys)
    assert status == 0
    assert "\x1b" not in out and "\x9b" not in out
    assert out.count("[red]a[/") >= 4
    page = (tmp_path / f"{NAME}report" / "index.html").read_text()
    assert "[red]a[/red] [link=x]:tada: [/]" in page


def test_a_path_that_is_no_text_is_compared(tmp_path, capsys):
    places = write(tmp_path / os.fsdecode(b"\xff"), result("WA", 0), result("WA", 1))
    status, _, _ = call(compare_tool, [*places, "--out", tmp_path / "report"], capsys)
    assert status == 0
    assert "\ufffd" in (tmp_path / "report/index.html").read_text()


def test_charts_have_no_control_characters(tmp_path):
    content = real()
    put(content, "name", "\x1b\x07x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figures(compare(write(tmp_path, content)))
