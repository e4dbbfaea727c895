"""Nothing goes on from what it was not learned from, and nothing is lost where a run cannot go on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from cil.command import config
from cil.data.images import Dataset, ImageSet
from cil.deploy.finished import reopen
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.progress import Progress
from cil.report import report
from scenarios.datasets import load
from tools import train

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
PER_CLASS = {"train": 10, "test": 4}
OWN = ["config.yaml", "results.json", "report.md", "checkpoint"]


def arrays(names=NAMES):
    """Noise with one bright column for each class."""
    draws, out = np.random.default_rng(0), {"classes": np.array(names)}
    for split, count in PER_CLASS.items():
        labels = np.repeat(np.arange(6), count)
        images = draws.integers(0, 60, (len(labels), 8, 8, 1), dtype=np.uint8)
        images[np.arange(len(labels)), :, labels] += 150
        out |= {f"x_{split}": images, f"y_{split}": labels}
    return out


def argv(folder, *more):
    """Three tasks of two classes, two epochs each, on ``folder/data.npz`` in ``folder/run``."""
    return [
        *["--strategy", "wa", "--data", f"npz:{folder / 'data.npz'}", "--run_dir", str(folder / "run")],
        *["--scenario.step", "2", "--scenario.order", "natural", "--model.backbone", "convnet2", "--precision", "32"],
        *["--trainer.epochs", "2", "--trainer.lr", "0.05", "--checkpoint_every", "1", "--memory.exemplars", "12"],
        *["--threads", "1", *more],
    ]


def call(words, capsys):
    """Exit status, and all that was told, on one line."""
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, words)
    told = capsys.readouterr()
    return stop.value.code, " ".join((told.out + told.err).split())


def content(folder):
    return json.loads((folder / "run" / "results.json").read_text())


def left(folder):
    """Every file of a run but events, with what it holds."""
    run = folder / "run"
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.relative_to(run).parts[0] != "events"
    }


def ended(folder):
    """What must not depend on how often a run was interrupted."""
    weights = {name: data for name, data in left(folder).items() if name.endswith("002.safetensors")}
    assert weights
    results = report.comparable(content(folder))
    del results["config"]  # names the file of the data, which lies elsewhere
    return weights, results


class Stopped:
    """Stops a run when so many epochs have started, in the way that it is told."""

    def __init__(self, monkeypatch, epochs, how):
        self.left, self.how, self.plain = epochs, how, Progress.epoch_starts
        monkeypatch.setattr(Progress, "epoch_starts", lambda *args: self.next(*args))

    def next(self, *args):
        self.left -= 1
        if self.left == 0:
            self.how()
        self.plain(*args)


def ctrl_c():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders: a run that is complete, and one that Ctrl-C stopped in the second epoch of its third task."""
    places = {}
    for name, epochs in (("complete", None), ("stopped", 6)):
        folder = places[name] = tmp_path_factory.mktemp(name)
        np.savez(folder / "data.npz", **arrays())
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
            if epochs:
                Stopped(patch, epochs, ctrl_c)
            config.main(train.main, argv(folder))
        assert stop.value.code == (130 if epochs else 0)
    return places


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """Make a copy of one of the two, in which the command line is the same but for the path."""

    def copy(name):
        folder = tmp_path / name
        shutil.copytree(made[name], folder)
        old, new = str(made[name]), str(folder)
        for path in [folder / "run" / "config.yaml", folder / "run" / "results.json"]:
            path.write_text(path.read_text().replace(old, new))
        for path in (folder / "run" / "checkpoint").glob("*.json"):
            sealed = json.loads(path.read_text().replace(old, new))
            reseal(path, sealed)
        return folder

    return copy


def reseal(path, sealed):
    """Write a checkpoint's record with a seal that fits, as another run would have."""
    body = {key: value for key, value in sealed.items() if key != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**body, "sha256": hashlib.sha256(text).hexdigest()}, indent=1))


def without_provenance(folder):
    """Make the checkpoints those of a version that did not write what they were learned from."""
    for path in (folder / "run" / "checkpoint").glob("*.json"):
        sealed = json.loads(path.read_text())
        for key in ("moment", "origin"):
            sealed.pop(key, None)
        reseal(path, sealed)


# --- other data ------------------------------------------------------------------------------------------------------


def pixels(data):
    data["x_train"][25] = 0


def exemplar(data):
    data["x_train"][0:10] = data["x_train"][0:10][::-1]


def test_pixels(data):
    data["x_test"][0] = 0


test_pixels.__test__ = False  # a change, no test


def labels(data):
    data["y_train"][25] = 5


def one_class_more(data):
    data["classes"] = np.array([*NAMES, "gnu"])
    for split in ("train", "test"):
        data[f"x_{split}"] = np.concatenate([data[f"x_{split}"], data[f"x_{split}"][:3]])
        data[f"y_{split}"] = np.concatenate([data[f"y_{split}"], [6] * 3])


def one_class_less(data):
    data["classes"] = data["classes"][:5]
    for split in ("train", "test"):
        kept = data[f"y_{split}"] < 5
        data[f"x_{split}"], data[f"y_{split}"] = data[f"x_{split}"][kept], data[f"y_{split}"][kept]


def renamed(data):
    data["classes"] = np.array(["ant", "bee", "cow", "dog", "eel", "fox"])


def fewer(data):
    keep = np.arange(60) != 25
    data["x_train"], data["y_train"] = data["x_train"][keep], data["y_train"][keep]


def mixed(data):
    order = np.concatenate([np.arange(60).reshape(6, 10).T.ravel()])  # within each class as before
    data["x_train"], data["y_train"] = data["x_train"][order], data["y_train"][order]


CHANGES = {
    "a pixel": (pixels, ["task 2: class 'cat': training images are other ones"]),
    "the order of a learned class": (exemplar, ["task 1: class 'ant': training images are other ones"]),
    "a test image": (test_pixels, ["task 1: class 'ant': test images are other ones"]),
    "a label": (
        labels,
        ["task 2: class 'cat': 9 training images, were 10", "task 3: class 'fox': 11 training images, were 10"],
    ),
    "an image less": (fewer, ["task 2: class 'cat': 9 training images, were 10"]),
    "a class more": (one_class_more, ["class 'gnu' is new"]),
    "a class less": (one_class_less, ["class 'fox' is gone"]),
    "another name": (renamed, ["task 2: class 'cat' is called 'cow' now"]),
    "another order": (mixed, ["the same images come in another order"]),
}


def change(folder, how):
    data = arrays()
    how(data)
    np.savez(folder / "data.npz", **data)


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_does_not_go_on_with_other_data(what, copied, capsys):
    folder, (how, told) = copied("stopped"), CHANGES[what]
    before = left(folder)
    change(folder, how)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2, said
    assert all(part in said for part in told) and str(folder / "run") in said, said
    assert left(folder) == before


def test_a_complete_run_says_that_the_data_are_others_and_what_is_to_be_done(copied, capsys):
    folder = copied("complete")
    before = left(folder)
    assert call(argv(folder, "--resume"), capsys)[0] == 0
    change(folder, one_class_more)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2, said
    assert "class 'gnu' is new" in said and "complete" in said and "--run_dir" in said
    assert "nothing to do" not in said
    assert left(folder) == before


def test_data_that_moved_within_the_same_path_are_the_same(copied, capsys, made):
    folder = copied("stopped")
    np.savez_compressed(folder / "data.npz", **arrays())
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 0 and "going on in task 3, epoch 1" in said
    assert ended(folder) == ended(made["complete"])


# --- checkpoints of before --------------------------------------------------------------------------------------------


def test_checkpoints_of_before_are_gone_on_from(copied, capsys, made):
    folder = copied("stopped")
    without_provenance(folder)
    for name in ("config.yaml", "results.json"):
        path = folder / "run" / name
        path.write_text(path.read_text().replace("strategies.rehearsal.wa.WA", "strategies.wa.WA"))
    assert "strategies.wa.WA" in (folder / "run" / "config.yaml").read_text()
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 0 and "going on in task 3, epoch 1" in said, said
    assert ended(folder) == ended(made["complete"])


@pytest.mark.parametrize("what", ["a pixel", "a class more"])
def test_of_checkpoints_of_before_results_tell_that_the_data_are_others(what, copied, capsys):
    folder, (how, told) = copied("stopped"), CHANGES[what]
    without_provenance(folder)
    before = left(folder)
    change(folder, how)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2 and "other data" in said, said
    assert what == "a pixel" or told[0] in said
    assert left(folder) == before


def test_checkpoints_of_before_without_results_are_refused(copied, capsys):
    folder = copied("stopped")
    without_provenance(folder)
    (folder / "run" / "results.json").unlink()
    before = left(folder)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2 and "does not say what it was learned from" in said and "results.json" in said, said
    assert left(folder) == before


# --- checkpoints of other runs ----------------------------------------------------------------------------------------

OTHERS = {
    "seed": (["--seed", "1"], "seed was 1, is 0"),
    "strategy": (["--strategy", "icarl"], "strategy.class_path was 'strategies.rehearsal.icarl.ICaRL', is"),
    "option": (["--trainer.lr", "0.01"], "trainer.lr was 0.01, is 0.05"),
    "tasks": (["--scenario.step", "3"], "scenario.init_args.step was 3, is 2"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(what, copied, capsys, tmp_path):
    folder, (more, told) = copied("stopped"), OTHERS[what]
    status, _ = call(argv(folder, *more, "--run_dir", str(tmp_path / "other")), capsys)
    assert status == 0
    for path in (tmp_path / "other" / "checkpoint").iterdir():
        shutil.copy(path, folder / "run" / "checkpoint")
    before = left(folder)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2, said
    assert told in said and "checkpoint/task00" in said, said
    assert left(folder) == before


@pytest.mark.parametrize("name", ["task001", "task002-stage0-epoch0001"])
def test_a_checkpoint_under_the_name_of_another_moment_is_refused(name, copied, capsys):
    folder = copied("stopped")
    place = folder / "run" / "checkpoint"
    for suffix in (".json", ".safetensors"):
        shutil.copy(place / f"task000{suffix}", place / f"{name}{suffix}")
    before = left(folder)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2, said
    assert f"{name}.json" in said and "task000" in said, said
    assert left(folder) == before


def test_a_finished_run_is_not_reopened_on_a_checkpoint_of_another_one(copied, capsys, tmp_path):
    folder = copied("complete")
    assert reopen(folder / "run", load).task == 2
    call(argv(folder, "--seed", "1", "--run_dir", str(tmp_path / "other")), capsys)
    for path in (tmp_path / "other" / "checkpoint").glob("task002*"):
        shutil.copy(path, folder / "run" / "checkpoint")
    with pytest.raises(UserError, match=r"task002.json.*seeds.init was 1, is 0"):
        reopen(folder / "run", load)


# --- what cannot be read ---------------------------------------------------------------------------------------------

NUMBERS = [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE]


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["task001.safetensors", "task001.json", "task002-stage0-epoch0001.safetensors"])
def test_a_checkpoint_that_cannot_be_read_now_stays(name, number, copied, capsys, monkeypatch):
    folder = copied("stopped")
    before, plain = left(folder), Path.read_bytes

    def failing(path):
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    status, said = call(argv(folder, "--resume"), capsys)
    monkeypatch.undo()
    assert status == 2, said
    assert name in said and os.strerror(number) in said, said
    assert left(folder) == before
    assert call(argv(folder, "--resume"), capsys)[0] == 0


@pytest.mark.parametrize("sealed", [True, False])
def test_a_checkpoint_of_a_later_format_stays(sealed, copied, capsys):
    folder = copied("stopped")
    path = folder / "run" / "checkpoint" / "task001.json"
    changed = {**json.loads(path.read_text()), "format": 7}
    if sealed:
        reseal(path, changed)
    else:
        path.write_text(json.dumps(changed))
    before = left(folder)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2, said
    assert "task001.json" in said and "format 7" in said
    assert left(folder) == before


def test_a_damaged_checkpoint_is_renamed_and_passed_over(copied, capsys, made):
    folder = copied("stopped")
    place = folder / "run" / "checkpoint"
    path = place / "task001.safetensors"
    ruin = path.read_bytes()[:-9]
    path.write_bytes(ruin)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 0 and "passed over" in said and "going on in task 2" in said
    assert (place / "task001.safetensors.damaged").read_bytes() == ruin
    assert (place / "task001.json.damaged").exists()
    assert ended(folder) == ended(made["complete"])


# --- results and configuration ----------------------------------------------------------------------------------------


def test_results_stay_when_a_run_cannot_go_on(copied, capsys, monkeypatch):
    folder = copied("stopped")
    before = left(folder)

    def fail(*_):
        raise RuntimeError("no GPU today")

    monkeypatch.setattr("cil.experiment.run.restore", fail)
    with pytest.raises(RuntimeError, match="no GPU today"):
        config.main(train.main, argv(folder, "--resume"))
    assert left(folder) == before
    assert len(content(folder)["tasks"]) == 2


RUINS = {"cut": lambda data: data[: len(data) // 3], "emptied": lambda data: b"", "a list": lambda data: b"[1, 2]\n"}


@pytest.mark.parametrize("how", RUINS)
@pytest.mark.parametrize("name", ["results.json", "config.yaml"])
@pytest.mark.parametrize("kind", ["stopped", "complete"])
def test_damaged_results_and_configurations_are_made_anew(kind, name, how, copied, capsys):
    folder = copied(kind)
    path = folder / "run" / name
    before = path.read_bytes()
    path.write_bytes(RUINS[how](before))
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 0, said
    assert name == "results.json" or kind == "complete" or path.read_bytes() == before
    assert content(folder)["status"] == "complete" and len(content(folder)["tasks"]) == 3
    if kind == "complete" and name == "results.json":
        assert report.comparable(content(folder)) == report.comparable(json.loads(before))


def test_damaged_results_without_a_checkpoint_are_one_sentence(copied, capsys):
    folder = copied("complete")
    shutil.rmtree(folder / "run" / "checkpoint")
    (folder / "run" / "results.json").write_text("{")
    before = left(folder)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2 and "results.json" in said and "damaged" in said, said
    assert left(folder) == before


def test_a_damaged_configuration_that_nothing_replaces_is_one_sentence(copied, capsys):
    folder = copied("complete")
    shutil.rmtree(folder / "run" / "checkpoint")
    (folder / "run" / "results.json").unlink()
    (folder / "run" / "config.yaml").write_text("{")
    before = left(folder)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2 and "config.yaml" in said and "damaged" in said, said
    assert left(folder) == before


# --- no room, no right to write ---------------------------------------------------------------------------------------


class Full:
    """A disk that is full from the n-th write to it on."""

    def __init__(self, monkeypatch, writes, number=errno.ENOSPC):
        self.left, self.number, self.plain = writes, number, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor):
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        self.plain(descriptor)


def parts(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_wherever_the_disk_is_full_a_run_stops_whole_and_goes_on_alike(tmp_path, capsys, made):
    np.savez(tmp_path / "data.npz", **arrays())
    where, place = set(), Checkpoints(tmp_path / "run" / "checkpoint")
    for writes in [*range(6), 5, 4, *range(6, 60)]:  # repeated, since what was written is not written again
        with pytest.MonkeyPatch.context() as patch:
            Full(patch, 2 * writes)  # the file and its folder
            status, said = call(argv(tmp_path, "--resume"), capsys)
        assert not parts(tmp_path) and not (tmp_path / "run" / ".lock").exists()
        if status == 0:
            break
        assert status == 2 and "cannot be written: No space left on device" in said, said
        where.add(Path(said.partition(" cannot be written")[0].rpartition(" ")[2]).name)
        for moment in place.moments():
            place.load(moment)
        if writes > 2:  # before, there is no room for results.json at all
            done = content(tmp_path)
            assert done["status"] == "failed"
            kept = [moment.task + 1 for moment in place.moments() if not moment.inside]
            assert len(done["tasks"]) <= max(kept, default=0)
    assert ended(tmp_path) == ended(made["complete"])
    kinds = {re.sub(r"^task\d+(-stage)?\S*(?=\.)", r"state\1", name) for name in where}
    states = {f"{moment}.{suffix}" for moment in ("state", "state-stage") for suffix in ("json", "safetensors")}
    assert kinds == {"config.yaml", "results.json", "report.md", *states}, where


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
def test_results_that_cannot_be_written_at_the_end_do_not_lie(number, copied, capsys, made, monkeypatch):
    folder, plain = copied("stopped"), os.replace

    def replace(source, target):
        if Path(target).name == "results.json" and b'"complete"' in Path(source).read_bytes():
            raise OSError(number, os.strerror(number))
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    status, said = call(argv(folder, "--resume"), capsys)
    assert status == 2 and f"results.json cannot be written: {os.strerror(number)}" in said, said
    assert content(folder)["status"] == "failed" and not parts(folder)
    monkeypatch.undo()
    assert call(argv(folder, "--resume"), capsys)[0] == 0
    assert ended(folder) == ended(made["complete"])


def test_events_that_cannot_be_written_end_no_run(tmp_path, capsys, made, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", full)
    np.savez(tmp_path / "data.npz", **arrays())
    status, said = call(argv(tmp_path), capsys)
    assert status == 0 and said.count("events are not written") == 1 and "No space left" in said, said
    assert ended(tmp_path) == ended(made["complete"])


@pytest.mark.parametrize("what", ["mkdir", "open"])
def test_a_folder_that_may_not_be_written_is_one_sentence(what, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "data.npz", **arrays())
    plain = getattr(Path, what)

    def refused(path, *args, **options):
        if path.name in ("run", ".lock"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path, *args, **options)

    monkeypatch.setattr(Path, what, refused)
    status, said = call(argv(tmp_path), capsys)
    assert status == 2 and "run_dir" in said and "Permission denied" in said, said


@contextlib.contextmanager
def mounted(place, size):
    """A small file system of its own; skips where it cannot be made."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small file system needs root: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_on_a_small_disk_a_run_stops_whole_and_goes_on_alike_when_there_is_room(tmp_path, capsys, made):
    np.savez(tmp_path / "data.npz", **arrays())
    with mounted(tmp_path / "run", "640k"):
        status, said = call(argv(tmp_path), capsys)
        assert status == 2 and "cannot be written: No space left on device" in said, said
        assert not parts(tmp_path) and content(tmp_path)["status"] == "failed"
        before = Checkpoints(tmp_path / "run" / "checkpoint").moments()
        assert before
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "run")], check=True)
        status, said = call(argv(tmp_path, "--resume"), capsys)
        assert status == 2 and "Read-only file system" in said, said
        assert Checkpoints(tmp_path / "run" / "checkpoint").moments() == before
        subprocess.run(["mount", "-o", "remount,rw,size=8m", str(tmp_path / "run")], check=True)
        status, said = call(argv(tmp_path, "--resume"), capsys)
        assert status == 0 and "resuming" in said, said
        assert ended(tmp_path) == ended(made["complete"])


def test_parts_of_files_that_a_killed_run_left_go_when_it_goes_on(copied, capsys):
    folder = copied("stopped")
    for name in (".results.json.part", "checkpoint/.task009.safetensors.part"):
        (folder / "run" / name).write_bytes(b"half")
    assert call(argv(folder, "--resume"), capsys)[0] == 0
    assert not parts(folder)


# --- signals ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_what_was_learned_and_says_so(made):
    left_behind = content(made["stopped"])
    assert (left_behind["status"], len(left_behind["tasks"])) == ("interrupted", 2)
    assert not (made["stopped"] / "run" / ".lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_a_run_as_ctrl_c_does(number, tmp_path, capsys, made, monkeypatch):
    np.savez(tmp_path / "data.npz", **arrays())
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    # Without a handler the signal would end the tests: a test that fails is enough.
    before = signal.signal(number, lambda *_: (_ for _ in ()).throw(AssertionError("not handled")))
    try:
        with monkeypatch.context() as patch:
            Stopped(patch, 6, lambda: os.kill(os.getpid(), number))
            status, said = call(argv(tmp_path), capsys)
    finally:
        signal.signal(number, before)
    assert status == 128 + number, said
    assert "interrupted" in said and number.name in said and "--resume" in said
    assert (content(tmp_path)["status"], len(content(tmp_path)["tasks"])) == ("interrupted", 2)
    assert not (tmp_path / "run" / ".lock").exists() and not parts(tmp_path)
    assert {one: signal.getsignal(one) for one in handlers} == handlers
    assert call(argv(tmp_path, "--resume"), capsys)[0] == 0
    assert ended(tmp_path) == ended(made["complete"])


def test_what_is_ignored_stays_ignored(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "data.npz", **arrays())
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        Stopped(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert call(argv(tmp_path), capsys)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminated_process_ends_as_ctrl_c_does(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    command = [sys.executable, "tools/train.py", *argv(tmp_path, "--trainer.epochs", "100000")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        for line in process.stdout:
            if "B0 Inc2 in" in line:
                break
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob("checkpoint/*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "interrupted" in said and "Traceback" not in said
    assert content(tmp_path)["status"] == "interrupted"
    assert not (tmp_path / "run" / ".lock").exists() and not parts(tmp_path)


# --- by what data are told apart --------------------------------------------------------------------------------------


def test_classes_are_told_apart_by_their_own_images_and_everything_is_read_once():
    labels = np.array([0, 1, 0, 2, 1, 0])
    images = np.arange(6 * 2 * 2, dtype=np.uint8).reshape(6, 2, 2, 1)
    split, read = ImageSet(images, labels), []
    data = Dataset("toy", split, split.subset([0, 1, 3]), ("a", "b", "c", "d")).identified(read.append)
    assert sum(read) == 6 + 3

    def sha(rows):
        return hashlib.sha256(images[rows].tobytes()).hexdigest()[:16]

    of_all, of_test = ([0, 2, 5], [1, 4], [3], []), ([0], [1], [3], [])
    for found, own, tested in zip(data.class_prints, of_all, of_test, strict=True):
        assert found == (len(own), sha(own), len(tested), sha(tested))
    assert data.identified() is data and data.sha256() == data.fingerprint


def test_images_that_are_kept_decoded_are_told_apart_as_the_files_are(tmp_path):
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.fromarray(draws.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "data" / split / name / "0.png")
    spec = f"folder:{tmp_path / 'data'}"
    expected = load(spec, images="memory").identified()
    for how in ("files", str(tmp_path / "kept"), str(tmp_path / "kept")):  # written, then found there
        found = load(spec, images=how)
        assert (found.fingerprint, found.class_prints) == (expected.fingerprint, expected.class_prints), how
    about = next((tmp_path / "kept").rglob("about.json"))
    about.write_text(json.dumps({k: v for k, v in json.loads(about.read_text()).items() if k != "class_prints"}))
    found = load(spec, images=str(tmp_path / "kept"))  # as a version of before wrote it
    assert (found.fingerprint, found.class_prints) == (expected.fingerprint, None)
