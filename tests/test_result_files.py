"""Result files: a bad one is named and the others are compared; packed ones mean what unpacked ones do."""

from __future__ import annotations

import functools
import json
import lzma
import os
import random
import sys
from pathlib import Path

import pytest

from cil.command import config
from cil.compare import fairness, shape
from cil.compare import result_files as files
from cil.compare.comparison import compare
from cil.compare.tables import as_csv, as_json
from cil.errors import UserError
from cil.machine.compute import PHASES
from cil.report import report
from tests.result_files import ROOT, put, real, result, write
from tools import pack as tool

N = 3  # tasks of a toy result


@functools.cache
def _whole() -> str:
    """A result with everything that a comparison reads: of a budget, of few-shot sessions, and of a stream."""
    content = result(budget=102_620)
    lists = {key: [0.8, 0.6, 0.4] for key in ("accuracy", "base_accuracy", "new_accuracy", "harmonic_mean")}
    for key, value in {
        "name": "WA",
        "exemplar_free": False,
        "selected_by": "last epoch",
        "pretrained_classes": ["tench", "goldfish"],
        "pretrained_stream": ["apple"],
        "scenario.family": "e" * 64,
        "stream": {"phases": [0, 0, 1], "images_seen": [5, 10, 15], "metrics": {"linear": {"anytime_area": 0.5}}},
        "few_shot": {"metrics": {"linear": {**lists, "performance_drop": 0.4}}},
    }.items():
        put(content, key, value)
    for task in content["tasks"]:
        task["training_bytes"] = {"teachers": 0, "optimizer": 300}
        task["inference_bytes"] = 1000
        task["compute"] = {
            **{"seconds": dict.fromkeys(PHASES, 1.0), "images": 1000, "training_flops": 1e9, "forward_flops": 100},
            "peak_bytes": {"process": 10**9, "device": None},
        }
    return json.dumps(content)


def whole(seed: int = 0):
    content = json.loads(_whole())
    content["seeds"] |= {"init": seed, "data": seed, "exemplars": seed}
    return content


def paths(value, of=()):
    """The place of every value; of a list the first and, if these are objects, the last."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*of, key)
            yield from paths(item, (*of, key))
    elif isinstance(value, list) and value:
        for index in {0, len(value) - 1} if isinstance(value[0], dict) else {0}:
            yield (*of, index)
            yield from paths(value[index], (*of, index))


DROPPED = object()
DEEP = functools.reduce(lambda inside, _: [inside], range(150), 0)
# What any value of a result file is replaced by; texts after RAW stand in the file as they are.
RAW = "raw:"
VALUES = {
    **{"dropped": DROPPED, "null": None, "text": "abc", "number as text": "1", "true": True, "fraction": 0.5},
    **{
        "list": [],
        "list of lists": [[1, 2], [3]],
        "list of nulls": [None] * N,
        "list of objects": [{}],
        "nested": DEEP,
    },
    **{"object": {}, "object of text": {"linear": "a"}, "negative": -1, "2**63": 2**63, "huge": RAW + "9" * 400},
    **{"1e300": 1e300, "1e999": RAW + "1e999", "NaN": RAW + "NaN", "surrogate": RAW + r'"\ud800"'},
    **{"nested": DEEP, "deep": RAW + "[" * 3000 + "]" * 3000},
}
NO_JSON = [VALUES[name] for name in ("1e999", "NaN", "surrogate", "deep")]


def mutant(content, path, value) -> bytes:
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is DROPPED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    text = json.dumps(content)
    if isinstance(value, str) and value.startswith(RAW):
        text = text.replace(json.dumps(value), value.removeprefix(RAW))
    return text.encode()


def told(comparison) -> tuple[set[str], dict[str, str]]:
    """Files that are compared, and those left out with the reason, after everything that is shown was made."""
    found = fairness.findings(comparison)
    json.dumps(as_json(comparison, found), allow_nan=False).encode()
    as_csv(comparison).encode()
    read = {run.file for row in comparison.rows for run in row.runs}
    return read, {item.file: item.reason for item in comparison.left_out}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_whatever_stands_in_a_file_it_is_read_or_named_and_the_rest_is_compared(tmp_path, value):
    good = {str(tmp_path / f"good{seed}.json") for seed in (0, 1)}
    for seed, path in enumerate(sorted(good)):
        Path(path).write_text(json.dumps(whole(seed)))
    made = {}
    for number, path in enumerate(paths(whole()), 2):
        file = tmp_path / f"{number:03}-{'.'.join(map(str, path))}.json"
        file.write_bytes(mutant(whole(number), path, value))
        made[str(file)] = path
    assert len(made) > 200
    found, left_out = told(compare([tmp_path]))
    assert found | left_out.keys() == {*made, *good}
    assert good <= found
    assert all(reason and "\n" not in reason and len(reason) < 1000 for reason in left_out.values())
    if value in NO_JSON:
        assert found == good


def _flipped(text: bytes) -> dict[str, bytes]:
    """Some bytes of a file replaced by others."""
    draw = random.Random(0)
    files = {}
    for number in range(100):
        changed = bytearray(text)
        for _ in range(draw.choice((1, 1, 5, 50))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        files[f"flipped {number}"] = bytes(changed)
    return files


def test_damaged_files_are_named_and_the_rest_is_compared(tmp_path):
    text = json.dumps(whole(1)).encode()
    name = json.dumps({**whole(1), "name": "Größe"}, ensure_ascii=False)
    broken = {
        **{f"cut at {at}": text[:at] for at in range(0, len(text), 97)},
        **{"latin-1": name.encode("latin-1"), "utf-16": name.encode("utf-16"), "binary": bytes(range(256)) * 10},
        **{"surrogate": name.encode().replace("ö".encode(), b"\xed\xa0\x80"), "NUL": b"\0" * 1000},
        **{"two": text + text, "deep": b'{"schema":' * 3000 + b"1" + b"}" * 3000, "unclosed": b"[" * 100_000},
    }
    other = {"null": b"null", "list": b"[]", "text": b'"text"', "number": b"7", "empty object": b"{}"}
    made = {**broken, **other, **_flipped(text)}
    for kind, data in made.items():
        (tmp_path / f"{kind}.json").write_bytes(data)
    (tmp_path / "good.json").write_text(json.dumps(whole(0)))
    found, left_out = told(compare([tmp_path]))
    assert str(tmp_path / "good.json") in found
    assert {str(tmp_path / f"{kind}.json") for kind in broken} <= left_out.keys()
    # In a folder that is searched, JSON that was never meant as a result is passed over. Named, it is told.
    assert not {str(tmp_path / f"{kind}.json") for kind in other} & (found | left_out.keys())
    places = [tmp_path / f"{kind}.json" for kind in made]
    found, left_out = told(compare([tmp_path / "good.json", *places]))
    assert found | left_out.keys() == {*map(str, places), str(tmp_path / "good.json")}
    assert {str(tmp_path / f"{kind}.json") for kind in (*broken, *other)} <= left_out.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such files")
def test_what_is_no_file_or_has_no_name_is_named_all_the_same(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(whole(0)))
    (tmp_path / "folder.json").mkdir()
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / os.fsdecode(b"\xff.json")).write_bytes(b"{")
    assert told(compare([tmp_path]))[1] == {
        str(tmp_path / "dangling.json"): "not a regular file",
        str(tmp_path / "pipe.json"): "not a regular file",
        str(tmp_path / "�.json"): "not JSON (EOF while parsing an object at line 1 column 1)",
    }


def test_a_named_file_that_is_bad_stops_nothing_and_alone_is_a_mistake(tmp_path):
    good, bad = write(tmp_path, whole(0), {**whole(1), "metrics": {}})
    assert told(compare([bad, good]))[1] == {
        f"{bad}/results.json": "not a whole result file (docs/results_schema.md): "
        "metrics are without linear, the evaluator"
    }
    with pytest.raises(UserError, match=r"no complete run among 1 result file: .*metrics are without linear"):
        compare([bad])
    with pytest.raises(UserError, match=r"nowhere: No such file"):
        compare([good, tmp_path / "nowhere"])


def test_numbers_of_which_no_mean_is_known_are_no_numbers(tmp_path):
    """A number that is finite alone and not in a sum, and lists that do not fit the tasks."""
    faults = {
        "tasks.0.seconds": (1e308, "tasks.0.seconds should be less than or equal to 1000"),
        "metrics.linear.last_accuracy": (35.9, "metrics.linear.last_accuracy should be less than or equal to 1"),
        "metrics.linear.seen_accuracy": ([0.5], "metrics.linear.seen_accuracy has 1 of 3 tasks"),
        "task_confusion.linear": ([[0.5, 0.5]], "task_confusion.linear is not square"),
        "stream.phases": ([0], "stream.phases has 1 of 3 pieces"),
        "few_shot.metrics": ({"a": 1}, "few_shot.metrics.a should be an object"),
        "tasks.1.compute.seconds": ({"data": 1.0}, "tasks.1.compute.seconds is without learning"),
        "out_of_budget": ("false", "out_of_budget should be a valid boolean"),
    }
    for key, (value, fault) in faults.items():
        content = whole()
        put(content, key, value)
        assert shape.fault(content).startswith(fault), key


def test_published_files_of_all_versions_are_whole():
    lines = sum(len(packed(path.parent)) for path in (ROOT / "results").rglob(files.PACKED))
    alone = len(list((ROOT / "results").rglob("results.json")))
    found, left_out = files.read([ROOT / "results"])
    assert (len(found), left_out) == (lines + alone, [])
    assert lines + alone >= 624, "published runs are gone"


# --- packed -----------------------------------------------------------------------------------------------------------


def packed(folder: Path):
    with lzma.open(folder / files.PACKED) as file:
        return [json.loads(line) for line in file]


def call(capsys, *argv):
    """Exit status, standard output and error stream of the command."""
    with pytest.raises(SystemExit) as stop:
        config.main(tool.main, [str(word) for word in argv])
    out, error = capsys.readouterr()
    return stop.value.code, out, error


@pytest.fixture
def runs(tmp_path):
    """A sweep of two protocols with a failed run and a loose file of one run."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        write(folder / "b0", result("A", seed), result("B", seed))
    write(folder / "b50", result("A", 0, change={"scenario.name": "other", "fingerprint": "f" * 64}))
    write(folder / "b50", result("A", 1, change={"status": "failed", "error": "loss is NaN"}))
    (folder / "one.json").write_text(json.dumps({**result("C"), "name": "Größe", "command": "a\nb"}))
    return folder


def test_what_is_packed_compares_as_it_did_and_keeps_every_name(tmp_path, runs, capsys):
    before = as_json(compare([runs]), [])
    assert {row["name"] for scenario in before["scenarios"] for row in scenario["rows"]} == {"A", "B", "Größe"}
    status, out, _ = call(capsys, runs, "--out", tmp_path / "small")
    assert status == 0
    assert f"left out: {runs}/b50/run1/results.json: status failed (loss is NaN)" in out
    assert f"6 runs, {(tmp_path / 'small' / files.PACKED).stat().st_size} bytes" in out
    contents = {line["file"]: line["results"] for line in packed(tmp_path / "small")}
    assert {*contents} == {"one.json", *(f"b0/run{n}/results.json" for n in range(4)), "b50/run0/results.json"}
    for file, content in contents.items():
        assert json.dumps(content) == json.dumps(json.loads((runs / file).read_text()))
    os.rename(runs, tmp_path / "elsewhere")
    os.rename(tmp_path / "small", runs)  # so that names are those of before
    left_out = before.pop("left_out")
    after = as_json(compare([runs]), [])
    assert (len(left_out), after.pop("left_out")) == (1, [])
    assert json.dumps(after) == json.dumps(before)
    assert as_json(compare([runs / files.PACKED]), []) == {**after, "left_out": []}


def test_a_place_inside_a_packed_file_means_what_it_meant(tmp_path, runs):
    files.pack([runs], tmp_path / "small")
    for place, n in {"b0": 4, "b0/run1": 1, "b0/run1/results.json": 1, "one.json": 1, "b50": 1}.items():
        told, left_out = files.read([tmp_path / "small" / place])
        assert (len(told), left_out) == (n, [])
        assert [run.content for run in told] == [run.content for run in files.read([runs / place])[0]]
        assert {run.file for run in told} <= {str(tmp_path / "small" / path.relative_to(runs)) for path in _all(runs)}
    assert len(files.read([tmp_path / "small/b0", tmp_path / "small", tmp_path / "small/one.json"])[0]) == 6
    for place in ("b", "b0/run", "b0/run9", "one.json/x"):
        with pytest.raises(UserError, match="No such file"):
            files.read([tmp_path / "small" / place])


def _all(folder):
    return list(folder.rglob("*.json"))


def test_packing_again_gives_the_same_bytes_and_adds_what_is_new(tmp_path, runs, capsys):
    out = tmp_path / "small"
    files.pack([runs], out)
    first = (out / files.PACKED).read_bytes()
    status, _, error = call(capsys, runs, "--out", out)
    assert status == 2
    assert "is there already; give --overwrite" in error
    assert (out / files.PACKED).read_bytes() == first
    files.pack([out], out, overwrite=True)
    assert (out / files.PACKED).read_bytes() == first
    more = write(tmp_path / "more/b0/new", result("A", 2))
    assert call(capsys, out, tmp_path / "more", "--out", out, "--overwrite")[0] == 0
    assert [line["file"] for line in packed(out)][-1] == "b0/new/run0/results.json"
    assert len(packed(out)) == 7
    files.pack(more, tmp_path / "alone")
    assert [line["file"] for line in packed(tmp_path / "alone")] == ["run0/results.json"]
    assert os.listdir(out) == [files.PACKED]


PACK_MISTAKES = {
    "nothing there": (lambda p: [p / "nowhere", "--out", p / "x"], "nowhere: No such file"),
    "nothing complete": (lambda p: [p / "b50/run1", "--out", p / "x"], "no complete run among 1 result file"),
    "one name twice": (lambda p: [p / "b0/run0", p / "b50/run0", "--out", p / "x"], "would both be run0/results.json"),
    "a file in the way": (lambda p: [p, "--out", p / "one.json"], "--out: "),
    "no place to write": (lambda p: [p], "required: --out"),
}


@pytest.mark.parametrize(("argv", "message"), PACK_MISTAKES.values(), ids=PACK_MISTAKES)
def test_mistakes_in_packing_write_nothing(runs, capsys, argv, message):
    before = sorted(runs.rglob("*"))
    status, out, error = call(capsys, *argv(runs))
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(runs.rglob("*")) == before


def test_packing_that_cannot_write_says_so_and_keeps_what_was_there(tmp_path, runs, monkeypatch):
    out = tmp_path / "small"
    files.pack([runs / "b0"], out)
    before = (out / files.PACKED).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        files.pack([runs], out, overwrite=True)
    assert (out / files.PACKED).read_bytes() == before


def test_a_packed_file_is_not_replaced_by_what_can_still_be_read_of_it(tmp_path, runs):
    out = tmp_path / "small"
    files.pack([runs], out)
    lines = lzma.decompress((out / files.PACKED).read_bytes()).splitlines(keepends=True)
    more = tmp_path / "more"
    write(more, result("A", 2))
    for damaged in (lzma.compress(b"{" + b"".join(lines)), (out / files.PACKED).read_bytes()[:-9]):
        (out / files.PACKED).write_bytes(damaged)
        with pytest.raises(UserError, match=r"would lose .*runs.jsonl.xz"):
            files.pack([out, more], out, overwrite=True)
        assert (out / files.PACKED).read_bytes() == damaged
    assert files.pack([out, more], tmp_path / "new").runs == 1


def test_a_file_that_lies_unpacked_beside_counts(tmp_path, runs):
    files.pack([runs], runs)
    assert files.read([runs]) == files.read([runs])
    (runs / "one.json").write_text(json.dumps({**result("C"), "name": "newer"}))
    assert [run.name for run in files.read([runs])[0]].count("newer") == 1
    assert not [run for run in files.read([runs])[0] if run.name == "Größe"]


def test_bad_lines_and_damage_are_named_and_the_rest_is_compared(tmp_path, runs):
    good = [json.dumps({"file": f"{n}.json", "results": result("A", n)}).encode() for n in range(3)]
    bad = {
        b"nonsense": "not JSON",
        b"[1]": "not a line of packed results",
        b'{"file": 1, "results": {}}': "not a line of packed results",
        b'{"file": "../up.json", "results": {}}': "no path below the folder",
        b'{"file": "/etc/up.json", "results": {}}': "no path below the folder",
        rb'{"file": "a\u0000", "results": {}}': "no path below the folder",
        b'{"file": "", "results": {}}': "no path below the folder",
        b'{"file": "0.json", "results": {}}': "a second 0.json",
        b'{"results": ' + b"[" * 3000: "not JSON",
    }
    lines = [good[0], *bad, good[1], b"", b'{"file": "' + b"x" * 5000 + b'", "results": []}', good[2]]
    path = tmp_path / "in" / files.PACKED
    path.parent.mkdir()
    whole = lzma.compress(b"\n".join(lines))
    path.write_bytes(whole)
    found, left_out = told(compare([path.parent]))
    assert found == {str(path.parent / f"{n}.json") for n in range(3)}
    for number, reason in enumerate(bad.values(), 2):
        assert reason in left_out.pop(f"{path} line {number}")
    assert [*left_out.values()] == ["not a result file; results.json of a run is one (docs/results_schema.md)"]
    for data in (whole[:-200], whole[:300] + b"x" + whole[301:], b"nonsense", b""):
        path.write_bytes(data)
        found, left_out = told(compare([path.parent, runs / "one.json"]))
        assert (found, {*left_out}) == ({str(runs / "one.json")}, {str(path)})
        with pytest.raises(UserError, match="no complete run among 1"):
            compare([path.parent / "0.json"])


def _wide(path):
    path.write_text(" " * 10_001)
    return path


def test_what_unpacks_without_end_is_left_out(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 10_000)
    path = tmp_path / files.PACKED
    path.write_bytes(lzma.compress(b" " * 10_001))
    with pytest.raises(UserError, match="more than 10000 bytes"):
        files.read([path])
    with pytest.raises(UserError, match="more than 10000 bytes"):
        files.read([_wide(tmp_path / "wide.json")])
    with pytest.raises(UserError, match="too much for one file"):
        files.pack([runs], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- as a run writes it -----------------------------------------------------------------------------------------------


def test_results_are_written_with_a_line_for_each_row_of_a_matrix():
    content = {
        **{"empty": [], "none": {}, "text": "ü\n", "tasks": [{"bytes": {"strict": 1}}, {"top5": None}]},
        "accuracy": {"linear": [[0.1, None], [1e-9, 2]]},
    }
    text = report.readable(content)
    assert json.loads(text) == content
    assert [line.strip() for line in text.split("\n")] == [
        *("{", '"empty": [],', '"none": {},', r'"text": "\u00fc\n",'),
        *('"tasks": [', "{", '"bytes": {"strict": 1}', "},", '{"top5": null}', "],"),
        *('"accuracy": {', '"linear": [', "[0.1, null],", "[1e-09, 2]", "]", "}", "}"),
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.readable({"a": [[float("nan")]]})


def test_a_written_result_has_few_lines_and_every_number():
    content = real()
    text = report.readable(content)
    assert json.loads(text) == content
    assert text.count("\n") < 250
    assert json.dumps(content, indent=1).count("\n") > 1300
