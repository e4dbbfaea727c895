"""The files of the cache: whole or not there, whoever writes, cuts, damages or clears them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cil.command import config
from cil.errors import UserError
from cil.experiment.run import run
from cil.features import cache
from cil.features.cache import digests
from cil.features.store import Store
from cil.nets import lookup
from cil.nets.pretrained import Pretrained
from cil.report import report
from cil.testing.lab import toy_scenario
from tests.cached import BIG, ROOT, RUN, Told, experiment, images, prepared
from tools import cache as tool


def only(root):
    """The one segment."""
    (path,) = Store(root, BIG).paths()
    return path


def test_a_segment_says_what_it_holds(tmp_path):
    own = experiment()
    prepared(tmp_path, own)
    entry = json.loads((only(tmp_path) / "entry.json").read_text())
    unique = len({image.tobytes() for image in images().numpy()})
    assert entry["images"] == unique == len(np.load(only(tmp_path) / "features.npy"))
    assert entry["features"] == 64
    assert entry["data"] == own.scenario.data_fingerprint
    assert entry["backbone"] == "convnet2"
    assert entry["seconds"] >= 0
    for name in ("features", "digests"):
        data = (only(tmp_path) / f"{name}.npy").read_bytes()
        assert entry["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rows = {
        tuple(row): feature
        for row, feature in zip(
            np.load(only(tmp_path) / "digests.npy").tolist(), np.load(only(tmp_path) / "features.npy"), strict=True
        )
    }
    due = own.fresh().features(images())
    for image, feature in zip(images(), due, strict=True):
        raw = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(rows[tuple(digests(raw[None])[0].tolist())], feature.numpy())


def test_a_second_run_computes_and_hashes_nothing(tmp_path, computed, monkeypatch):
    prepared(tmp_path)
    computed.clear()
    monkeypatch.setattr(cache, "digests", lambda _: pytest.fail("an image was hashed"))
    told = Told()
    prepared(tmp_path, told=told)
    assert computed == []
    assert len(told.lines) == 1 and told.lines[0].startswith("features are taken from")


def test_only_what_is_missing_is_computed(tmp_path, computed):
    prepared(tmp_path)
    computed.clear()
    own = experiment()
    own.scenario = toy_scenario((3, 3))  # the same images, in other tasks
    prepared(tmp_path, own)
    assert computed == []
    test = own.scenario.test
    flipped = test.raw()[:, :, ::-1]
    from dataclasses import replace

    from cil.data.images import ImageSet

    own = experiment()
    own.scenario = replace(
        own.scenario, test=ImageSet(np.concatenate([test.raw(), flipped]), test.labels.repeat(2)), fingerprint="other"
    )
    prepared(tmp_path, own)
    assert sum(computed) == len({image.tobytes() for image in flipped} - {image.tobytes() for image in test.raw()})


def test_an_interrupted_computation_goes_on_where_it_was(tmp_path, computed, monkeypatch):
    monkeypatch.setattr(cache, "SEGMENT", 20)
    monkeypatch.setattr(cache, "BATCH", 10)
    plain, left = Pretrained.compute, [4]

    def cut(self, x):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return plain(self, x)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pretrained, "compute", cut)
        prepared(tmp_path)
    assert [len(np.load(path / "digests.npy")) for path in Store(tmp_path, BIG).paths()] == [20]
    computed.clear()
    features, own = prepared(tmp_path), experiment()
    unique = len({image.tobytes() for image in images().numpy()})
    assert sum(computed) == unique - 20
    assert len(Store(tmp_path, BIG).paths()) > 3
    due = own.fresh().features(images())
    with lookup.use(features):
        assert torch.equal(own.fresh().features(images()), due)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit of a feature": (lambda p: flip(p / "features.npy", -1), "features.npy is altered"),
    "a bit of a hash": (lambda p: flip(p / "digests.npy", -1), "digests.npy is altered"),
    "a bit of the header": (lambda p: flip(p / "features.npy", 3), "features.npy|cannot be read"),
    "the end": (lambda p: os.truncate(p / "features.npy", 1000), "features.npy has 1000 of"),
    "all": (lambda p: os.truncate(p / "digests.npy", 0), "digests.npy has 0 of"),
    "a file": (lambda p: (p / "features.npy").unlink(), "cannot be read"),
    "the entry": (
        lambda p: (p / "entry.json").write_text((p / "entry.json").read_text().replace("convnet2", "x")),
        "entry.json is altered",
    ),
    "the entry's end": (lambda p: os.truncate(p / "entry.json", 30), "cannot be read"),
    "no entry": (lambda p: (p / "entry.json").unlink(), "cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_segment_is_told_removed_and_computed_anew(tmp_path, what):
    prepared(tmp_path)
    own, before = experiment(), (only(tmp_path) / "features.npy").read_bytes()
    due = own.fresh().features(images())
    break_, words = DAMAGE[what]
    break_(only(tmp_path))
    told = Told()
    features = prepared(tmp_path, told=told)
    lines = [line for line in told.lines if "is damaged" in line]
    assert len(lines) == 1 and "\n" not in lines[0] and re.search(words, lines[0]), told.lines
    assert (only(tmp_path) / "features.npy").read_bytes() == before
    with lookup.use(features):
        assert torch.equal(own.fresh().features(images()), due)
    assert prepared(tmp_path, told=(again := Told())) and not any("is damaged" in line for line in again.lines)


def kept(root, what):
    """Images or bytes of all keys."""
    store = Store(root, BIG)
    return sum(store.summary(key)[what] for key in Store.keys(store))


def fill(root, seed):
    """The cache of another random network."""
    from cil.data.seeds import Seeds

    own = experiment(seeds=Seeds(seed, 0, 0))
    return own, prepared(root, own)


def test_the_least_recently_used_go_first(tmp_path):
    fill(tmp_path, 0)
    (oldest,) = Store(tmp_path, BIG).paths()
    for seed in (1, 2):
        fill(tmp_path, seed)
    ages = {path: age for age, path in enumerate(Store(tmp_path, BIG).paths())}
    for path in ages:
        os.utime(path / "entry.json", (1_000, 1_000 + (path != oldest)))
    prepared(tmp_path, fill(tmp_path, 0)[0])  # used again: now it is the youngest
    gone = Store(tmp_path, kept(tmp_path, "bytes") - 1).evict()
    assert len(gone) == 1 and gone[0] != oldest
    assert len(Store(tmp_path, BIG).paths()) == 2


def test_a_segment_in_use_outlives_its_removal(tmp_path, computed):
    own, features = fill(tmp_path, 0)
    strategy = own.fresh()
    due = strategy.model.backbone.compute(images())
    with lookup.use(features):
        strategy.features(images()[:1])  # opened
        assert Store(tmp_path, 1).evict()
        assert not Store(tmp_path, BIG).paths()
        computed.clear()
        assert torch.equal(strategy.features(images()), due)
    assert computed == []
    assert not list(tmp_path.glob(".gone-*"))


def test_the_limit_holds_while_runs_come_and_go(tmp_path):
    fill(tmp_path, 0)
    size = kept(tmp_path, "bytes")
    for seed in range(1, 5):
        own = fill(tmp_path / "x", seed)[0]
        own.known_features(Store(tmp_path, int(2.5 * size)), "machine", Told())
        assert kept(tmp_path, "bytes") <= 2.5 * size


def test_features_beyond_the_limit_are_told_and_not_kept(tmp_path, computed):
    told = Told()
    features = prepared(tmp_path, limit=5_000, told=told)
    assert re.search(r"not cached: of 170 images they take 0\.0 MiB, and cache_limit is 0\.0 MiB", told.lines[0])
    assert not Store(tmp_path, BIG).paths() and computed == []
    with lookup.use(features):
        run(experiment())


def test_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    told = Told()
    features = prepared(tmp_path, told=told)
    assert "No space left on device" in told.lines[0] and "going on" in told.lines[0]
    with lookup.use(features):
        run(experiment())


@pytest.mark.slow
def test_two_processes_compute_each_image_once(tmp_path):
    argv = [*RUN, "--strategy", "finetune", "--memory.exemplars", "0", "--trainer.epochs", "1", "--threads", "1"]
    argv += ["--cache", str(tmp_path / "cache")]
    argv += ["--data", f"npz:{slow_data(tmp_path)}"]
    started = [
        subprocess.Popen(
            [sys.executable, "tools/train.py", *argv, "--run_dir", str(tmp_path / name)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("a", "b")
    ]
    told = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    computing = [re.search(r"features of (\d+) images computed", text) for text in told]
    assert sorted(int(found[1]) if found else 0 for found in computing) == [0, 3000]
    assert kept(tmp_path / "cache", "images") == 3000
    one, other = (report.comparable(json.loads((tmp_path / n / "results.json").read_text())) for n in ("a", "b"))
    assert one == other


def slow_data(folder):
    """3000 images of ten classes, so that two processes meet."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (3000, 16, 16, 1), dtype=np.uint8), np.arange(3000) % 10
    np.savez(
        folder / "data.npz",
        x_train=x[:2000],
        y_train=y[:2000],
        x_test=x[2000:],
        y_test=y[2000:],
        classes=np.array(list("abcdefghij")),
    )
    return folder / "data.npz"


def test_whoever_waits_uses_what_the_other_wrote(tmp_path, computed):
    """The lock is held by another process until the features are there."""
    own = experiment()
    prepared(tmp_path / "other", own)
    key = Store(tmp_path / "other", BIG).keys()[0]
    code = (
        "import sys, time, shutil; from pathlib import Path; from cil.features.store import Store\n"
        f"store = Store(Path({str(tmp_path / 'here')!r}), 1)\n"
        f"with store.locked({key!r}):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
        f"    shutil.copytree({str(tmp_path / 'other' / key)!r}, {str(tmp_path / 'here' / key)!r})\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"

    class Waiting(Told):
        def say(self, text):
            super().say(text)
            if "waiting" in text:
                holder.stdin.write("\n")
                holder.stdin.flush()

    computed.clear()
    prepared(tmp_path / "here", own, told=(told := Waiting()))
    holder.communicate(timeout=60)
    assert computed == []
    assert [line.split()[0] for line in told.lines] == ["waiting", "features"]


def test_leavings_of_killed_processes_are_swept(tmp_path):
    prepared(tmp_path / "x")
    key = Store(tmp_path / "x", BIG).keys()[0]
    part, gone = tmp_path / key / ".part-1-abc", tmp_path / ".gone-1-a-b"
    for folder in (part, gone):
        folder.mkdir(parents=True)
        (folder / "features.npy").write_bytes(b"half")
    prepared(tmp_path)
    assert not part.exists() and not gone.exists()
    assert len(Store(tmp_path, BIG).paths()) == 1


# --- settings and tool -----------------------------------------------------------------------------------------------


def test_settings_say_where_and_how_much(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = config.feature_store("auto", "1.5KiB")
    assert (store.root, store.limit) == (tmp_path / "cil-framework/features", 1536)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert config.feature_store("auto", 1).root == tmp_path / "home/.cache/cil-framework/features"
    assert config.feature_store("~/mine", 1).root == tmp_path / "home/mine"
    assert config.feature_store(None, "20GiB") is None
    (tmp_path / "file").write_text("")
    for given, words in (
        ((None, "20GB"), "cache_limit: '20GB' has the unit"),
        ((str(tmp_path / "file"), 1), "cache: .* is a file"),
    ):
        with pytest.raises(UserError, match=words):
            config.feature_store(*given)


def call(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        config.main(tool.main, argv)
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def test_what_is_not_the_cache_s_is_never_touched(tmp_path, capsys):
    prepared(tmp_path)
    (tmp_path / "photos" / "holiday").mkdir(parents=True)
    (tmp_path / "photos" / "holiday" / "entry.json").write_text("{}")
    assert call(["list", "--cache", str(tmp_path)], capsys)[1].count("convnet2") == 1
    Store(tmp_path, 1).evict()
    assert call(["clear", "--cache", str(tmp_path)], capsys)[0] == 0
    assert (tmp_path / "photos" / "holiday" / "entry.json").exists()
    assert not Store(tmp_path, BIG).paths()


def test_the_tool_lists_verifies_and_clears(tmp_path, capsys):
    where = ["--cache", str(tmp_path)]
    for seed in (0, 1):
        fill(tmp_path, seed)
    keys = Store(tmp_path, BIG).keys()
    status, told, _ = call(["list", *where], capsys)
    assert status == 0
    for key in keys:
        (row,) = [line for line in told.splitlines() if key[:12] in line]
        cells = row.split()
        unique = len({image.tobytes() for image in images().numpy()})
        assert cells[:5] == [key[:12], "convnet2", "-", str(unique), "64"]
        assert cells[6] == time.strftime("%Y-%m-%d", time.localtime())
    assert call(["verify", *where], capsys)[:2] == (0, "2 segments, 0 damaged\n")
    os.truncate(Store(tmp_path, BIG).paths(keys[1])[0] / "features.npy", 50)
    status, told, _ = call(["verify", *where], capsys)
    assert status == 1 and "features.npy has 50 of" in told and "2 segments, 1 damaged" in told
    assert call(["verify", "--key", keys[0][:8], *where], capsys)[0] == 0
    assert call(["clear", "--key", keys[1][:8], *where], capsys)[0] == 0
    assert Store(tmp_path, BIG).keys() == keys[:1]
    status, _, told = call(["clear", "--key", "xyz", *where], capsys)
    assert status == 2 and "begins with 'xyz'" in told
    assert "0.0 MiB removed" in call(["clear", *where], capsys)[1]
    assert Store(tmp_path, BIG).keys() == []
    assert call(["list", *where], capsys)[0] == 0
