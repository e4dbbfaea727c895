"""Accuracy by class in a comparison: means over seeds, the best and the worst classes, and where they are shown."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from cil.compare.classes import best, listed, of_run, worst
from cil.compare.comparison import compare
from cil.compare.page import page
from cil.compare.runs import Run
from cil.compare.tables import as_csv, as_json, terminal
from tests.result_files import put, result, write

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]


def told(*values, seed=0, names=NAMES, **options):
    content = result("WA", seed, **options)
    put(content, "per_class_accuracy.linear", list(values))
    put(content, "scenario.class_names", names)
    return content


def compared(tmp_path, *contents):
    return compare(write(tmp_path, *contents))


TWO = (told(0.1, 0.8, 0.5, 0.0, 0.3, 0.9), told(0.3, 0.8, 0.7, 0.0, 0.5, 0.5, seed=1))


def test_means_and_deviations_are_over_seeds(tmp_path):
    row = compared(tmp_path, *TWO).rows[0]
    assert list(row.class_means) == NAMES
    assert row.class_means == pytest.approx(dict(zip(NAMES, (0.2, 0.8, 0.6, 0.0, 0.4, 0.7), strict=True)))
    assert row.class_accuracy["ant"].deviation == pytest.approx(0.2 / 2**0.5)
    assert best(row.class_means) == ["bee", "fox", "cat"]
    assert worst(row.class_means) == ["dog", "ant", "elk"]


def test_classes_are_paired_by_name_where_each_seed_has_its_own_order(tmp_path):
    shuffled = ["fox", "ant", "bee", "cat", "dog"]
    contents = [told(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), told(0.8, 0.3, 0.4, 0.5, 0.6, seed=1, names=shuffled)]
    for seed, content in enumerate(contents):
        put(content, "scenario.family", "e" * 64)
        put(content, "fingerprint", str(seed) * 64)
    row = compared(tmp_path, *contents).rows[0]
    assert row.class_means == pytest.approx({"ant": 0.2, "bee": 0.3, "cat": 0.4, "dog": 0.5, "elk": 0.5, "fox": 0.7})
    assert [one.n for one in row.class_accuracy.values()] == [2, 2, 2, 2, 1, 2]


def test_a_class_without_test_images_or_name_or_with_anothers_name():
    run = Run("", told(0.1, None, 0.2, 0.3, names=["a", "b", "a"]))
    assert of_run(run, "linear") == {"a (class 0)": 0.1, "a (class 2)": 0.2, "class 3": 0.3}
    assert of_run(run, "nearest_mean") == {}


def test_equal_classes_are_counted_and_no_class_is_best_and_worst():
    accuracy = {"a": 0.0, "b": 0.0001, "c": 0.0, "d": 0.0, "e": 0.5, "f": 0.5, "g": 0.6, "h": 0.7}
    assert listed(worst(accuracy), accuracy) == "a 0.0, c 0.0, d 0.0 (1 more)"
    assert listed(best(accuracy, 1), accuracy) == "h 70.0"
    assert (best({"a": 0.1, "b": 0.2, "c": 0.3}), worst({"a": 0.1, "b": 0.2, "c": 0.3})) == (["c"], ["a"])
    assert best({"a": 0.5}) == worst({"a": 0.5}) == ["a"]


def test_every_output_has_them(tmp_path):
    comparison = compared(tmp_path, *TWO)
    (row,) = as_json(comparison, [])["scenarios"][0]["rows"]
    assert row["class_accuracy"]["names"] == NAMES
    assert row["class_accuracy"]["mean"] == pytest.approx([0.2, 0.8, 0.6, 0.0, 0.4, 0.7])
    assert row["class_accuracy"]["deviation"][3] == 0
    (line,) = csv.DictReader(io.StringIO(as_csv(comparison)))
    assert (line["best_class"], line["worst_class"], float(line["worst_class_accuracy"])) == ("bee", "dog", 0.0)
    assert float(line["best_class_accuracy"]) == pytest.approx(0.8)
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal(comparison, []))
    assert "bee 80.0" in console.file.getvalue() and "dog 0.0" in console.file.getvalue()
    text = page(comparison, [])
    assert "bee 80.0, fox 70.0, cat 60.0" in text and "dog 0.0, ant 20.0, elk 40.0" in text
    assert 'href="#classes-0"' in text and 'data-chart="classes"' in text


def test_files_that_do_not_tell_have_no_such_part(tmp_path):
    silent = told(seed=1)
    put(silent, "per_class_accuracy", None)
    comparison = compared(tmp_path, TWO[0], silent)
    assert as_json(comparison, [])["scenarios"][0]["rows"][0]["class_accuracy"] is None
    (line,) = csv.DictReader(io.StringIO(as_csv(comparison)))
    assert (line["best_class"], line["worst_class_accuracy"]) == ("", "")
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal(comparison, []))
    text = page(comparison, [])
    assert "worst class" not in console.file.getvalue()
    assert "classes-0" not in text and 'data-chart="classes"' not in text
