"""The comparison of runs: every number recomputed from the result files, rows, labels, files, mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import statistics

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import ttest_rel

from cil.command import config
from cil.compare import fairness, report_folder
from cil.compare.comparison import compare
from cil.compare.figures import styles
from cil.compare.report_folder import FILES
from cil.compare.tables import as_csv, as_json, terminal
from tests.result_files import IMAGE, LABEL, ROOT, published, put, real, result, write
from tools import compare as tool

MIB = 2**20
METRICS = ("average_incremental_accuracy", "last_accuracy", "forgetting")


def compared(tmp_path, *contents, **options):
    return compare(write(tmp_path, *contents), **options)


def labels(comparison):
    return [row.label for row in comparison.rows]


def seeds(n=3, name="WA", base=0.4, step=0.02, **options):
    """Results that differ in their seed, each a little better than the one before."""
    return [
        result(name, seed, seen=(0.8, base + 0.1 + step * seed, base + step * seed), **options) for seed in range(n)
    ]


def call(argv, capsys):
    """Exit status, standard output and error stream of the command."""
    with pytest.raises(SystemExit) as stop:
        config.main(tool.main, [str(word) for word in argv])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


# --- tasks drawn by seed ----------------------------------------------------------------------------------------------


def test_runs_whose_seeds_draw_the_tasks_are_one_row(tmp_path):
    """Phases end at other pieces with each seed, and bring other numbers of classes."""
    contents = seeds(2)
    for seed, (content, phases) in enumerate(zip(contents, ([0, 0, 1], [0, 1, 1]), strict=True)):
        put(content, "scenario.family", "e" * 64)
        put(content, "fingerprint", str(seed) * 64)
        put(content, "stream", {"phases": phases})
    section = compared(tmp_path, *contents).sections[0]
    row = section.rows[0]
    assert (section.fingerprint, len(row.runs)) == ("e" * 64, 2)
    assert row.classes_seen == [3, 6]  # 4 and 2 after the first phase
    first, last = row.seen_accuracy
    seen = [content["metrics"]["linear"]["seen_accuracy"] for content in contents]
    assert first.mean == pytest.approx((seen[0][1] + seen[1][0]) / 2)
    assert last.mean == pytest.approx((seen[0][2] + seen[1][2]) / 2)
    assert len(row.task_bytes) == 2


def test_other_numbers_of_phases_are_no_common_row(tmp_path):
    contents = seeds(2)
    for content, phases in zip(contents, ([0, 0, 1], [0, 1, 2]), strict=True):
        put(content, "scenario.family", "e" * 64)
        put(content, "stream", {"phases": phases})
    assert [len(section.rows[0].runs) for section in compared(tmp_path, *contents).sections] == [1, 1]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_every_number_of_a_row_follows_from_its_files(tmp_path):
    contents = [*seeds(3, "WA", exemplars=20), *seeds(2, "DER", 0.5, 0.03, backbone=(40_000, 80_000, 120_000))]
    comparison = compared(tmp_path, *contents)
    lines = {line["method"]: line for line in csv.DictReader(io.StringIO(as_csv(comparison)))}
    assert set(lines) == {"WA", "DER"}
    for name, line in lines.items():
        own = [content for content in contents if content["strategy"].endswith(name)]
        assert int(line["n_seeds"]) == len(own)
        for metric in METRICS:
            values = [content["metrics"]["linear"][metric] for content in own]
            assert float(line[f"{metric}_mean"]) == pytest.approx(sum(values) / len(values), abs=1e-12)
            squares = sum((value - sum(values) / len(values)) ** 2 for value in values)
            assert float(line[f"{metric}_std"]) == pytest.approx((squares / (len(values) - 1)) ** 0.5, abs=1e-12)
        backbone = 120_000 if name == "DER" else 40_000
        strict = backbone + 600 + 500 + 20 * (IMAGE + LABEL)
        assert int(line["strict_bytes"]) == strict
        assert float(line["strict_mib"]) == pytest.approx(strict / 1024 / 1024)
        assert int(line["paper_bytes"]) == backbone + 20 * IMAGE
        parts = {"backbone": backbone, "head": 600, "normalisation": 500, "exemplars": 20 * IMAGE, "labels": 20 * LABEL}
        assert {key: int(line[f"{key}_bytes"]) for key in parts} == parts
        assert int(line["other_bytes"]) == 0
        assert int(line["exemplars"]) == 20
        assert float(line["seconds_mean"]) == 10 + 11 + 12
        assert float(line["seconds_std"]) == 0


def test_csv_and_json_agree(tmp_path):
    contents = [*seeds(3), *seeds(2, "DER", budget=102_620), result("Joint", exemplars=500, change=UPPER_BOUND)]
    comparison = compared(tmp_path, *contents)
    content = as_json(comparison, [])
    rows = [(scenario, row) for scenario in content["scenarios"] for row in scenario["rows"]]
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert [line["id"] for line in lines] == [row["id"] for _, row in rows] == ["row1", "row2", "row3"]
    for line, (scenario, row) in zip(lines, rows, strict=True):
        wanted = {
            "scenario": scenario["name"],
            "fingerprint": scenario["fingerprint"],
            **{key: row[key] for key in ("method", "evaluator", "codec", "exemplars")},
            "memory": row["setting"]["text"],
            "upper_bound": str(row["upper_bound"]).lower(),
            "seeds": " ".join(row["seeds"]),
            "n_seeds": len(row["runs"]),
            **{
                f"{m}_{short}": row[m][long]
                for m in METRICS
                for short, long in (("mean", "mean"), ("std", "deviation"))
            },
            **{
                f"{key}_bytes": row["bytes"].get(key, 0)
                for key in ("strict", "paper", "backbone", "exemplars", "labels")
            },
            "seconds_mean": row["seconds"]["mean"],
        }
        assert {key: line[key] for key in wanted} == {key: "" if v is None else str(v) for key, v in wanted.items()}


def test_json_holds_the_curves_over_tasks_and_the_confusion(tmp_path):
    contents = seeds(2)
    put(contents[1], "task_confusion.linear.0.0", 1.0)
    contents[0]["task_confusion"]["linear"][1] = [None, None, None]  # a task without test images
    (row,) = as_json(compared(tmp_path, *contents), [])["scenarios"][0]["rows"]
    assert row["tasks"]["classes_seen"] == [2, 4, 6]
    for t, spread in enumerate(row["tasks"]["seen_accuracy"]):
        values = [content["metrics"]["linear"]["seen_accuracy"][t] for content in contents]
        assert spread["mean"] == pytest.approx(np.mean(values))
        assert spread["deviation"] == pytest.approx(np.std(values, ddof=1))
    first = contents[0]["task_confusion"]["linear"][0][0]
    assert row["task_confusion"][0][0] == pytest.approx((first + 1) / 2)
    assert row["task_confusion"][1] == [None, None, None]


def test_published_runs_give_the_published_table():
    comparison = compare([ROOT / "results/cifar100_b0_10_short"])
    for row in comparison.rows:
        short = row.first.name.lower()
        values = []
        for content in (json.loads(text) for name, text in published().items() if name.startswith(f"{short}-seed")):
            values.append(content["metrics"][content["evaluator"]]["last_accuracy"])
        assert row.metric("last_accuracy").mean == pytest.approx(statistics.mean(values))
        assert row.metric("last_accuracy").deviation == pytest.approx(statistics.stdev(values))
        assert row.final_bytes("strict") == content["tasks"][-1]["bytes"]["strict"]
    assert labels(comparison) == ["Finetune", "ICaRL (nearest_mean)", "Replay", "WA", "Joint"]


def test_a_stream_whose_last_phase_brings_no_class_has_a_smaller_confusion(tmp_path):
    contents = seeds(2)
    contents[1]["task_confusion"]["linear"] = [[0.5, 0.5], [None, None]]
    first = contents[0]["task_confusion"]["linear"]
    row = as_json(compared(tmp_path, *contents), [])["scenarios"][0]["rows"][0]["task_confusion"]
    assert row[0] == pytest.approx([(first[0][0] + 0.5) / 2, (first[0][1] + 0.5) / 2, first[0][2] / 2])
    assert row[2] == [None, None, None]


def test_one_seed_has_no_deviation_and_undefined_values_no_mean(tmp_path):
    alone = compared(tmp_path / "a", result()).rows[0]
    assert (alone.metric("last_accuracy").mean, alone.metric("last_accuracy").deviation) == (0.4, None)
    contents = seeds(2)
    contents[0]["metrics"]["linear"]["forgetting"] = None
    row = compared(tmp_path / "b", *contents).rows[0]
    assert row.metric("forgetting").mean is None


def test_encoded_exemplars_differ_in_bytes_between_seeds(tmp_path):
    contents = seeds(2)
    for content, size in zip(contents, (1000, 1501), strict=True):
        content["config"]["memory"] |= {"codec": "jpeg", "quality": 75}
        last = content["tasks"][-1]["bytes"]
        last["strict"] += size - last["exemplars"]
        last["exemplars"] = size
    row = compared(tmp_path, *contents).rows[0]
    assert row.task_bytes[-1]["exemplars"] == 1250.5
    assert row.first.codec == "jpeg"


def test_what_is_held_while_training_and_to_predict(tmp_path):
    contents = seeds(2)
    for content in contents:
        for t, task in enumerate(content["tasks"]):
            task["training_bytes"] = {"teachers": (0, 500, 100)[t], "optimizer": 300, "decoded": 7}
            task["inference_bytes"] = 1000 + t
    told = compared(tmp_path / "a", *contents).rows[0]
    assert (told.cost("training_bytes"), told.cost("inference_bytes")) == (807, 1002)
    untold = compared(tmp_path / "b", result()).rows[0]
    assert untold.cost("training_bytes") is None


# --- rows and labels --------------------------------------------------------------------------------------------------

UPPER_BOUND = {"out_of_budget": True, "config.memory.exemplars": "all"}
SAME_ROW = {
    "threads": {"config.threads": 8, "machine.threads": 8},
    "device": {"config.device": "cuda", "machine.device": "cuda"},
    "precision that becomes the same": {"config.precision": "auto"},
    "place": {"config.run_dir": "elsewhere", "config.root": "elsewhere", "config.data": "cifar100"},
    "command": {"command": "python other.py"},
    "times": {"started": "later", "tasks.0.seconds": 99.0},
    "versions": {"versions.torch": "9.9", "versions.commit": "abc"},
    "other evaluators": {"config.evaluators": ["linear"]},
    "checkpoints": {"config.checkpoint_every": 3},
    "what older files do not say": {"config.memory.codec": "raw", "config.memory.quality": 75},
    "last epoch": {"selected_by": "last epoch"},
    "no budget": {"config.memory.budget": None, "config.memory.align": "final", "config.memory.convention": "strict"},
}
OTHER_ROW = {
    "option of the strategy": ({"config.strategy.init_args.temperature": 3.0}, "WA (temperature 3.0)"),
    "epochs": ({"config.trainer.epochs": 170}, "WA (epochs 170)"),
    "augmentation": ({"config.augmentation.pad": 4}, "WA (pad 4)"),
    "selection": ({"config.memory.selection": "random"}, "WA (selection random)"),
    "codec": ({"config.memory.codec": "jpeg", "config.memory.quality": 75}, "WA (codec jpeg; quality 75)"),
    "stored raw": ({"config.memory.codec": "png"}, "WA (codec raw)"),
    "backbone": ({"config.model.backbone": "convnet2"}, "WA (backbone convnet2)"),
    "precision": ({"machine.precision": "32"}, "WA (precision 32)"),
    "class": ({"strategy": "mine.WA"}, "WA (strategy mine.WA)"),
    "choice of model": ({"selected_by": "best epoch"}, "WA (selected_by best epoch)"),
    "memory": ({"config.memory.exemplars": 30}, "WA"),
    "label": ({"name": "WA (mine)"}, "WA (mine)"),
}


@pytest.mark.parametrize("change", SAME_ROW.values(), ids=SAME_ROW)
def test_runs_that_differ_in_this_are_one_row(tmp_path, change):
    comparison = compared(tmp_path, result(seed=0), result(seed=1, change=change))
    assert [(row.label, len(row.runs)) for row in comparison.rows] == [("WA", 2)]


def test_a_strategy_that_moved_into_a_room_is_the_same_method(tmp_path):
    """Files of before name the module as it was called then."""
    contents = [result("WA", 0), result("WA", 1, change={"strategy": "strategies.rehearsal.wa.WA"})]
    assert contents[0]["strategy"] == "strategies.wa.WA"
    comparison = compared(tmp_path, *contents)
    assert [(row.label, len(row.runs)) for row in comparison.rows] == [("WA", 2)]


@pytest.mark.parametrize(("change", "label"), OTHER_ROW.values(), ids=OTHER_ROW)
def test_runs_that_differ_in_this_are_two_rows(tmp_path, change, label):
    comparison = compared(tmp_path, result(seed=0), result(seed=1, change=change))
    assert len(comparison.rows) == 2
    assert label in labels(comparison)
    assert not any("null" in found for found in labels(comparison))
    assert len({row.title for row in comparison.rows}) == 2


def test_a_budget_is_a_memory_of_its_own(tmp_path):
    contents = [result(seed=0), result(seed=0, budget=102_620), result(seed=0, budget=102_620, convention="paper")]
    comparison = compared(tmp_path, *contents, result(seed=0, change={"config.memory.per_class": 5}))
    assert [row.setting.text for row in comparison.rows] == [
        *("20 exemplars", "5 exemplars a class", "0.10 MiB paper", "0.10 MiB strict")
    ]
    assert {row.label for row in comparison.rows} == {"WA"}


def test_a_network_that_changes_with_the_budget_alone_is_one_curve(tmp_path):
    small = result("DER", budget=50_000, backbone=20_000, change={"config.model.backbone": "convnet2"})
    comparison = compared(tmp_path / "a", small, result("DER", budget=102_620))
    assert labels(comparison) == ["DER", "DER"]
    assert [row.differing["model.backbone"] for row in comparison.rows] == ["convnet2", "cifar_resnet32"]
    comparison = compared(tmp_path / "b", small, result("DER", budget=50_000))
    assert sorted(labels(comparison)) == ["DER (backbone cifar_resnet32)", "DER (backbone convnet2)"]


def test_many_differing_options_still_give_distinct_labels(tmp_path):
    keys = ("epochs", "lr", "batch_size", "weight_decay")
    contents = [result(change={f"config.trainer.{key}": 7 + n for key in keys[:-1]}) for n in (0, 0)]
    put(contents[1], "config.trainer.weight_decay", 0.5)
    contents.append(result(change={f"config.trainer.{key}": 9 for key in keys}))
    found = labels(compared(tmp_path, *contents))
    assert len(set(found)) == 3
    assert all("..." in label for label in found)
    assert {label[-2:] for label in found if "epochs 7" in label} == {"#1", "#2"}


def test_the_evaluator_is_named_unless_it_is_linear(tmp_path):
    content = result("ICaRL")
    for key in ("metrics", "task_confusion"):
        content[key]["nearest_mean"] = json.loads(json.dumps(content[key]["linear"]))
    content["metrics"]["nearest_mean"]["last_accuracy"] = 0.9
    content["evaluator"] = "nearest_mean"
    row = compared(tmp_path, content).rows[0]
    assert (row.label, row.metric("last_accuracy").mean) == ("ICaRL (nearest_mean)", 0.9)
    row = compare([tmp_path], "linear").rows[0]
    assert (row.label, row.metric("last_accuracy").mean) == ("ICaRL", 0.4)


def test_runs_without_the_wanted_evaluator_are_left_out(tmp_path):
    with_means = result("ICaRL")
    for key in ("metrics", "task_confusion"):
        with_means[key]["nearest_mean"] = with_means[key]["linear"]
    comparison = compared(tmp_path, with_means, result("WA"), evaluator="nearest_mean")
    assert labels(comparison) == ["ICaRL (nearest_mean)"]
    assert [item.reason for item in comparison.left_out] == ["not scored by nearest_mean"]


def test_scenarios_are_kept_apart(tmp_path):
    other = result("DER", change={"fingerprint": "f" * 64, "scenario.name": "other"})
    comparison = compared(tmp_path, result("WA"), other)
    assert [(section.name, len(section.rows)) for section in comparison.sections] == [
        ("cifar100 B0 Inc10", 1),
        ("other", 1),
    ]
    assert not any(section.pairs for section in comparison.sections)


def test_the_same_experiment_and_seed_counts_once(tmp_path):
    comparison = compared(tmp_path, result(), result(), result(seed=1, seen=(0.8, 0.7, 0.5)))
    assert [len(row.runs) for row in comparison.rows] == [2]
    assert len(comparison.left_out) == len(comparison.repeated) == 1


def test_a_method_has_one_colour_and_the_first_seven_are_distinct(tmp_path):
    names = ("A", "B", "C", "D", "E", "F", "G", "H")
    contents = [result(name, exemplars=n) for name in names for n in (10, 20)]
    joint = result("Joint", exemplars=500, change=UPPER_BOUND)
    found = styles(compared(tmp_path, *contents, joint))
    assert set(found) == {*names, "Joint"}
    assert len({look.light for look in found.values()}) == len({look.dark for look in found.values()}) == 8
    assert len({(look.light, look.marker, look.dash) for look in found.values()}) == 9


# --- differences ------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_paired_t_test(tmp_path):
    a = (0.50, 0.47, 0.55, 0.52)
    b = (0.44, 0.45, 0.47, 0.49)
    contents = [result("A", n, seen=(0.8, 0.6, value)) for n, value in enumerate(a)]
    contents += [result("B", n, seen=(0.8, 0.6, value)) for n, value in enumerate(b)]
    section = compared(tmp_path, *contents).sections[0]
    pair = next(pair for pair in section.pairs if pair.metric == "last_accuracy")
    wanted = ttest_rel(a, b).confidence_interval(0.95)
    assert (section.row(pair.first).label, section.row(pair.second).label, pair.n) == ("A", "B", 4)
    assert pair.mean == pytest.approx(np.mean(np.subtract(a, b)))
    assert (pair.low, pair.high) == pytest.approx((wanted.low, wanted.high))
    assert pair.clear == (wanted.low > 0)


def test_only_common_seeds_are_paired(tmp_path):
    contents = [result("A", n, seen=(0.8, 0.7, 0.5 + n / 10)) for n in (0, 1, 2)]
    contents += [result("B", n, seen=(0.8, 0.6, 0.3)) for n in (1, 2, 5)]
    pair = compared(tmp_path, *contents).sections[0].pairs[1]
    assert (pair.metric, pair.n) == ("last_accuracy", 2)
    assert pair.mean == pytest.approx((0.6 + 0.7) / 2 - 0.3)
    other = ttest_rel((0.6, 0.7), (0.3, 0.3)).confidence_interval(0.95)
    assert pair.high == pytest.approx(other.high)


@pytest.mark.parametrize("theirs", [(0,), (7, 8)])
def test_too_few_seeds_have_no_interval(tmp_path, theirs):
    contents = [*seeds(2, "A"), *(result("B", n) for n in theirs)]
    pair = compared(tmp_path, *contents).sections[0].pairs[0]
    assert (pair.low, pair.high, pair.verdict) == (None, None, "too few seeds")
    assert pair.n == (1 if theirs == (0,) else 0)


def test_only_equal_memories_are_paired(tmp_path):
    joint = result("Joint", exemplars=500, change=UPPER_BOUND)
    contents = [result("A"), result("B"), result("A", exemplars=30), result("C", exemplars=0), joint]
    section = compared(tmp_path, *contents, result("Joint2", exemplars=500, change=UPPER_BOUND)).sections[0]
    found = {(section.row(pair.first).title, section.row(pair.second).title) for pair in section.pairs}
    assert found == {("A, 20 exemplars", "B, 20 exemplars")}


# --- curves over memory -----------------------------------------------------------------------------------------------


def test_areas_of_a_worked_example(tmp_path):
    """A goes from 0.5 at 1 MiB to 0.7 at 3 MiB, B is 0.6 throughout (last accuracy), so both have the area 1.2."""
    contents = []
    for size, last in ((1, 0.5), (3, 0.7)):
        for name, accuracy in (("A", last), ("B", 0.6)):
            rest = 1100 + 20 * (IMAGE + LABEL)
            sizes = {"backbone": size * MIB - rest, "budget": size * MIB}
            contents.append(result(name, seen=(0.9, 0.9, accuracy), **sizes))
    section = compared(tmp_path, *contents).sections[0]
    own = {curve.label: curve.measures["strict"] for curve in section.curves}
    assert {label: measures.area_last for label, measures in own.items()} == pytest.approx({"A": 1.2, "B": 1.2})
    assert own["A"].normalised_last == pytest.approx(0.6)
    assert own["B"].area_average == pytest.approx(0.8 * 2)
    assert own["B"].apm_start == pytest.approx(80 / 1)
    assert own["A"].apm_end == pytest.approx(100 * (0.9 + 0.9 + 0.7) / 3 / 3)
    assert (own["A"].low, own["A"].high) == (1, 3)
    assert not any(measures.not_comparable for measures in own.values())
    paper = section.curves[0].measures["paper"]
    assert paper.high == pytest.approx(3 - (1100 + 20 * LABEL) / MIB)


def test_one_memory_has_no_area_and_two_points_at_one_memory_none_either(tmp_path):
    contents = [result("A"), result("B"), result("B", change={"config.memory.per_class": 3})]
    section = compared(tmp_path, *contents).sections[0]
    assert [curve.measures["strict"].area_last for curve in section.curves] == [None, None]
    assert section.curves[0].measures["strict"].apm_start is not None


def test_ranges_that_differ_by_more_than_a_percent_are_flagged(tmp_path):
    contents = [result(name, exemplars=n) for name in ("A", "B") for n in (20, 200)]
    contents += [result("C", exemplars=20), result("C", exemplars=190), result("D")]
    section = compared(tmp_path / "a", *contents).sections[0]
    own = {curve.label: curve.measures["strict"].not_comparable for curve in section.curves}
    assert own == {"A": ("C",), "B": ("C",), "C": ("A", "B"), "D": ()}


def test_the_convention_is_that_of_the_budgets(tmp_path):
    paper = [result("A", budget=101_440, convention="paper"), result("B", exemplars=10)]
    assert compared(tmp_path / "a", *paper).sections[0].convention == "paper"
    assert compared(tmp_path / "b", *paper, result("C", budget=102_620)).sections[0].convention == "strict"
    assert compared(tmp_path / "c", result("A")).sections[0].convention == "strict"


def test_upper_bounds_have_a_row_and_no_curve(tmp_path):
    comparison = compared(tmp_path, result("A"), result("Joint", exemplars=500, change=UPPER_BOUND))
    assert [(row.label, row.upper_bound) for row in comparison.rows] == [("A", False), ("Joint", True)]
    assert [curve.label for curve in comparison.sections[0].curves] == ["A"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_runs_are_found_as_folders_files_and_by_searching(tmp_path):
    folder = tmp_path / "runs"
    places = write(folder, result(seed=0), result(seed=1))
    (folder / "run0/checkpoint").mkdir()
    (folder / "run0/checkpoint/task000.json").write_text(json.dumps(real()))  # never looked at
    (folder / "other.json").write_text('{"some": "thing"}')
    (folder / ".hidden").mkdir()
    shutil.copy(folder / "run1/results.json", folder / ".hidden/results.json")
    (folder / "copied").mkdir()
    (folder / "copied/wa-seed2.json").write_text(json.dumps(result(seed=2)))
    found = [compare([folder]), compare([*places, folder / "copied/wa-seed2.json"]), compare([folder, *places])]
    for comparison in found:
        assert len(comparison.rows) == 1
        assert [run.seeds[0] for run in comparison.rows[0].runs] == [0, 1, 2]
        assert not comparison.left_out


def test_unfinished_runs_are_left_out_by_name(tmp_path):
    failed = result(seed=2, change={"status": "failed", "error": "loss is NaN"})
    running = result(seed=1, change={"status": "running"})
    later = result(seed=3, change={"schema": 2})
    comparison = compared(tmp_path, result(seed=0), running, failed, later)
    assert [len(row.runs) for row in comparison.rows] == [1]
    assert [(item.file[len(str(tmp_path)) + 1 :], item.reason) for item in comparison.left_out] == [
        ("run1/results.json", "status running"),
        ("run2/results.json", "status failed (loss is NaN)"),
        ("run3/results.json", "schema 2; this version reads 1"),
    ]


def _text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


MISTAKES = {
    "place that is not there": (lambda p: [p / "nowhere"], ["nowhere", "No such file"]),
    "folder without results": (lambda p: [_text(p / "empty/notes.txt", "").parent], ["empty", "no results"]),
    "file that is no result": (lambda p: [_text(p / "a.json", '{"a": 1}')], ["a.json", "not a result file"]),
    "file that is not JSON": (lambda p: [_text(p / "a.json", "nonsense")], ["a.json", "not JSON"]),
    "file with NaN": (lambda p: [_text(p / "a.json", '{"schema": NaN}')], ["a.json", "not JSON"]),
    "file that lacks a part": (
        lambda p: write(p, result(change={"metrics": None})),
        ["results.json", "metrics is missing", "not a whole result file"],
    ),
    "file with damage inside": (
        lambda p: write(p, result(change={"tasks.2.bytes": {}})),
        ["results.json", "tasks.2.bytes.strict is missing"],
    ),
    "complete file without all tasks": (lambda p: write(p, _cut(result())), ["2 of 3 tasks"]),
    "nothing complete": (lambda p: write(p, result(change={"status": "running"})), ["no complete run", "running"]),
    "evaluator that nothing has": (
        lambda p: [*write(p, result()), "--evaluator", "nearest_mean"],
        ["--evaluator", "nearest_mean", "Legal: linear"],
    ),
    "nothing to compare": (lambda p: [], ["required: runs", "usage"]),
    "unknown flag": (lambda p: [*write(p, result()), "--strct"], ["--strct"]),
}


def _cut(content):
    content["tasks"].pop()
    return content


@pytest.mark.parametrize(("places", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_paragraph_and_nothing_is_written(tmp_path, capsys, places, told):
    status, out, error = call([*places(tmp_path / "in"), "--out", tmp_path / "report"], capsys)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in told), error
    assert not (tmp_path / "report").exists()


# --- the report -------------------------------------------------------------------------------------------------------


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_report_is_written_and_replaced(tmp_path, capsys):
    places = write(tmp_path / "in", *seeds(2, "A"), *seeds(2, "B", 0.5))
    out = tmp_path / "deep/report"
    status, text, _ = call([*places, "--out", out], capsys)
    assert status == 0
    assert f"written to {out}" in text.replace("\n", "")
    first = snapshot(out)
    assert set(first) == set(FILES)
    for name in FILES:
        if name.endswith(".png"):
            Image.open(out / name).verify()
    content = json.loads(first["comparison.json"])
    assert [finding["level"] for finding in content["findings"]].count("problem") == 0
    assert {run["command"] for row in content["scenarios"][0]["rows"] for run in row["runs"]} == {
        f"python tools/train.py --strategy {name} --seed {seed}" for name in "AB" for seed in (0, 1)
    }
    assert call([*places[:2], "--out", out], capsys)[0] == 0
    assert snapshot(out)["comparison.csv"] != first["comparison.csv"]
    assert call([*places, "--out", out], capsys)[0] == 0
    assert snapshot(out) == first  # no time, no place of its own: the same runs give the same report


def test_a_folder_with_something_else_is_refused(tmp_path, capsys):
    places = write(tmp_path / "in", result())
    cases = {
        "other": ("notes.txt", "mine", "something else"),
        "page": ("index.html", "<html>my page</html>", "not written as a report"),
        "data": ("comparison.json", '{"a": 1}', "not written as a report"),
        "list": ("comparison.json", "[]", "not written as a report"),
    }
    for name, (file, text, told) in cases.items():
        path = _text(tmp_path / name / file, text)
        status, _, error = call([*places, "--out", path.parent], capsys)
        assert (status, told in error) == (2, True), name
        assert snapshot(path.parent) == {file: text.encode()}
    status, _, error = call([*places, "--out", _text(tmp_path / "file", "")], capsys)
    assert (status, "is a file" in error) == (2, True)


def test_an_interrupted_report_can_be_written_again(tmp_path, capsys, monkeypatch):
    places = write(tmp_path / "in", result())
    assert call([*places, "--out", tmp_path / "report"], capsys)[0] == 0
    whole, done = report_folder.write_atomic, []

    def stops(path, data):
        if len(done) == 3:
            raise OSError(28, "No space left on device")
        done.append(path)
        whole(path, data)

    monkeypatch.setattr(report_folder, "write_atomic", stops)
    status, _, error = call([*places, "--out", tmp_path / "report"], capsys)
    assert (status, "No space left" in error) == (2, True)
    # new and old files are mixed, so what would say that all are there is gone
    assert set(os.listdir(tmp_path / "report")) == set(FILES) - {"comparison.json"}
    monkeypatch.undo()
    assert call([*places, "--out", tmp_path / "report"], capsys)[0] == 0
    assert set(os.listdir(tmp_path / "report")) == set(FILES)


def test_strict_turns_a_problem_into_a_status_and_still_writes(tmp_path, capsys):
    unfair = write(tmp_path / "a", *seeds(2, "A"), *seeds(2, "B", change={"config.trainer.epochs": 170}))
    assert call([*unfair, "--out", tmp_path / "r"], capsys)[0] == 0
    status, out, _ = call([*unfair, "--out", tmp_path / "s", "--strict"], capsys)
    assert (status, set(os.listdir(tmp_path / "s"))) == (1, set(FILES))
    assert out.startswith("problem different-epochs")
    noted = write(tmp_path / "b", *seeds(2, "A"), *seeds(2, "B", change={"versions.torch": "1.0"}))
    status, out, _ = call([*noted, "--out", tmp_path / "t", "--strict"], capsys)
    assert (status, out.startswith("note different-versions")) == (0, True)


def test_the_terminal_shows_whole_numbers_in_eighty_columns(tmp_path):
    long = [result("A" * 30, n, exemplars=50_000, budget=200 * MIB, backbone=40 * MIB) for n in range(3)]
    comparison = compared(tmp_path, *long, *seeds(3, "WA"), *seeds(2, "WA", exemplars=30), *seeds(3, "DER", 0.3))
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(comparison, fairness.findings(comparison)))
    text = console.file.getvalue()
    assert "…" not in text
    for row in comparison.rows:
        spread = row.metric("average_incremental_accuracy")
        assert f"{100 * spread.mean:.1f} ± {100 * spread.deviation:.1f}" in text
        assert f"{row.final_bytes('strict') / MIB:.2f}" in text
    assert "MiB" in text
    assert text.index("budget-not-met") < text.index("WA")


def test_names_are_shown_as_they_are(tmp_path, capsys):
    places = write(tmp_path / "in", *seeds(2, change={"name": "[bold]x[/bold] $\\frac{$ <i>"}))
    status, out, _ = call([*places, "--out", tmp_path / "report"], capsys)
    assert status == 0
    assert "[bold]x[/" in out
