"""The cache of features changes no result, whatever happens to it, and spares what it promises to spare."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cil import cache, config
from cil.augmentation import Augmentation
from cil.cache import Store, digests, on_grid
from cil.errors import UserError
from cil.evaluation import report
from cil.experiment import Experiment
from cil.inference import features_of
from cil.lab import hoard, toy_scenario
from cil.memory.exemplars import Memory
from cil.memory.ledger import inference_bytes
from cil.nets.network import Model
from cil.nets.pretrained import Pretrained
from cil.ops.freezing import frozen_copy
from cil.progress import Progress
from cil.run import run
from cil.trainer import Trainer
from strategies.replay import Replay
from tools import cache as tool
from tools import train

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {"mean": 0.5, "std": 0.5}
TOY = {"backbone": "convnet2", "weights": "random", "frozen": True, "preprocessing": PLAIN}
BIG = 2**30


class Told(Progress):
    """Keeps every line."""

    def __init__(self):
        super().__init__(Console(quiet=True))
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    warn = say


@pytest.fixture
def computed(monkeypatch):
    """Numbers of images that frozen backbones computed, call by call."""
    counts, plain = [], Pretrained.compute

    def counting(self, x):
        counts.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(Pretrained, "compute", counting)
    return counts


def experiment(model=None, **options):
    made = Model(**(model or TOY))
    trainer = Trainer(epochs=2, batch_size=12, lr=0.05)
    return Experiment(toy_scenario(), lambda: Replay(made.build(1)), trainer, Memory(exemplars=18), **options)


def prepared(root, own=None, limit=BIG, told=None):
    return cache.prepared(own or experiment(), Store(root, limit), "machine", told or Told())


def images(own=None):
    """All images of the toy scenario, as the network sees them."""
    own = own or experiment()
    sets = [*(task.train for task in own.scenario.tasks), own.scenario.test]
    return own.place(0).augmentation.test(torch.cat([part.gather() for part in sets]))


# --- images ----------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_shape_and_pixels():
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    for image, own in zip(x, digests(x), strict=True):
        person = struct.pack("<IIII", 4, 6, 3, 0)
        due = hashlib.blake2b(bytes(image.flatten().tolist()), digest_size=16, person=person).digest()
        assert own.astype("<u8").tobytes() == due
    assert not np.array_equal(digests(x), digests(x.reshape(5, 6, 4, 3)))
    assert digests(x[:0]).shape == (0, 2)


def test_only_images_of_256_values_are_on_the_grid():
    whole = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    x = whole.float() / 255
    x = x.contiguous(memory_format=torch.channels_last)
    x[1, 2, 7, 3] = torch.nextafter(x[1, 2, 7, 3], torch.tensor(2.0))
    x[2, 0, 0, 0] = -1 / 255
    exact, raw = on_grid(x)
    assert exact.tolist() == [True, False, False, True]
    assert np.array_equal(raw[0], whole[0].permute(1, 2, 0).numpy())


# --- results ---------------------------------------------------------------------------------------------------------

RUN = ["--config", "configs/protocols/digits.yaml", "--config", "configs/backbones/random_convnet.yaml"]
RUN += ["--trainer.epochs", "2", "--checkpoint_every", "0"]
KINDS = {
    "replay": ["--strategy", "replay"],
    "finetune": ["--strategy", "finetune", "--memory.exemplars", "0"],
    "nearest mean": ["--strategy", "icarl", "--evaluators", "[linear, nearest_mean, nearest_mean_flip]"],
    "augmented": ["--strategy", "replay", "--augmentation.pad", "1", "--augmentation.flip", "true"],
    "smaller images": ["--strategy", "replay", "--augmentation.input_size", "6"],
    "encoded exemplars": ["--strategy", "replay", "--memory.codec", "jpeg"],
    "bf16": ["--strategy", "replay", "--precision", "bf16-mixed"],
    "float64": ["--strategy", "acil", "--memory.exemplars", "0", "--strategy.width", "64", "--precision", "64"],
    "another scenario": ["--strategy", "replay", "--scenario.order", "natural"],
}


def finished(folder, argv):
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, [*RUN, *argv, "--run_dir", str(folder)])
    assert stop.value.code == 0
    return report.comparable(json.loads((folder / "results.json").read_text())), (
        (folder / "checkpoint/task004.safetensors").read_bytes()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_alike_without_with_an_empty_and_with_a_full_cache(kind, tmp_path, computed):
    where, sums = ["--cache", str(tmp_path / "cache")], []
    off = finished(tmp_path / "off", [*KINDS[kind], "--cache", "null"])
    for name in ("cold", "warm"):
        computed.clear()
        one = finished(tmp_path / name, [*KINDS[kind], *where])
        assert one == off
        sums.append(sum(computed))
    spared = 1797 if kind != "augmented" else 1700  # some images are changed by nothing
    assert sums[0] - sums[1] >= spared - 5  # a few images are there twice
    if kind in ("replay", "finetune", "smaller images", "bf16", "float64", "another scenario"):
        assert sums[1] == 5  # reads are counted in a pass of one image after each task


def test_augmentation_that_crops_is_not_cached(tmp_path):
    told = Told()
    own = experiment(augmentation=Augmentation(size=6))
    features = prepared(tmp_path, own, told=told)
    assert any("crops test images" in line for line in told.lines)
    assert not Store(tmp_path, BIG).paths()
    strategy = own.fresh()
    with cache.use(features):
        assert torch.equal(strategy.features(images(own)), strategy.model.backbone.compute(images(own)))


def test_a_resumed_run_may_use_another_cache(tmp_path):
    argv = [*RUN, *KINDS["replay"], "--run_dir", str(tmp_path / "run")]
    for more in (["--cache", str(tmp_path / "a")], ["--cache", "null", "--cache_limit", "3MiB", "--resume"]):
        with pytest.raises(SystemExit) as stop:
            config.main(train.main, [*argv, *more])
        assert stop.value.code == 0


# --- look-ups --------------------------------------------------------------------------------------------------------


def test_what_is_kept_has_the_bits_of_what_is_computed(tmp_path, computed):
    own, features = experiment(), prepared(tmp_path)
    strategy, x = own.fresh(), images()
    due = strategy.model.backbone.compute(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    strange = torch.rand(9, 1, 8, 8)
    with cache.use(features):
        computed.clear()
        assert torch.equal(strategy.features(x[order]), due[order])
        assert torch.equal(strategy.features(x[:1]), due[:1])
        assert sum(computed) == 0
        mixed = strategy.features(torch.cat([x[:5], strange, x[5:9]]))
        assert computed == [9]
        assert strategy.features(x[:0]).shape == (0, 64)
        almost = x[:4] + 1e-4  # would be rounded to what is kept
        assert torch.equal(strategy.features(almost), strategy.model.backbone.compute(almost))
    assert torch.equal(mixed[:5], due[:5]) and torch.equal(mixed[14:], due[5:9])
    assert torch.equal(mixed[5:14], strategy.features(strange))
    assert (features.hits, features.misses) == (len(x) + 1 + 9, 9 + 4)
    computed.clear()
    strategy.features(x[:3])
    assert computed == [3]  # outside, everything is computed


def test_the_pixels_of_a_test_image_are_looked_at_once(tmp_path, computed, monkeypatch):
    own, features = experiment(), prepared(tmp_path)
    strategy, place, test = own.fresh(), own.place(0), own.scenario.test
    own.grow(strategy, own.scenario.tasks[0])
    due = features_of(strategy, test, place)
    hashed = []
    monkeypatch.setattr(cache, "digests", lambda images: hashed.append(len(images)) or digests(images))
    computed.clear()
    with cache.use(features):
        for classes in (range(2), range(6), range(1, 4)):
            some = test.of_classes(classes)
            wanted = due[torch.isin(test.labels, torch.tensor(list(classes)))]
            assert torch.equal(features_of(strategy, some, place), wanted)
        assert (sum(hashed), sum(computed)) == (len(test), 0)
        features_of(strategy, own.scenario.tasks[0].train, place)
        assert sum(hashed) > len(test)  # training images are seen in every pass
        # Whoever watches the network sees every image, and new weights are other features.
        watched = []
        handle = strategy.model.backbone.body.register_forward_hook(lambda *_: watched.append(1))
        assert torch.equal(features_of(strategy, test, place), due)
        assert watched
        handle.remove()
        with torch.no_grad():
            next(strategy.model.backbone.parameters()).add_(1)
        assert not torch.equal(features_of(strategy, test, place), due)


def test_copies_find_what_their_original_has_and_changed_weights_do_not(tmp_path, computed):
    strategy, features, x = experiment().fresh(), prepared(tmp_path), images()[:7]
    with cache.use(features):
        due = strategy.features(x)
        computed.clear()
        assert torch.equal(frozen_copy(strategy).features(x), due)
        other = copy.deepcopy(strategy)
        assert torch.equal(other.features(x), due)
        assert computed == []
        with torch.no_grad():
            next(other.model.backbone.parameters()).mul_(1.5)
        changed = other.features(x)
        assert computed == [7]
        other.model.backbone.body.load_state_dict(strategy.model.backbone.body.state_dict())
        assert torch.equal(other.features(x), due)
        assert computed == [7]
    assert not torch.equal(changed, due)


def test_a_hook_within_the_network_sees_every_image(tmp_path, computed):
    strategy, features, x = experiment().fresh(), prepared(tmp_path), images()[:7]
    computed.clear()
    handle = strategy.model.backbone.body.blocks[0].register_forward_hook(lambda *_: None)
    with cache.use(features):
        strategy.features(x)
        assert computed == [7]
        handle.remove()
        strategy.features(x)
    assert computed == [7]


def test_backbones_that_learn_or_declare_no_preprocessing_are_left_alone(tmp_path):
    told = Told()
    assert prepared(tmp_path, experiment({**TOY, "frozen": False}), told=told) is None
    assert told.lines == []
    features = prepared(tmp_path, own := experiment({**TOY, "preprocessing": None}), told=told)
    assert told.lines == ["features are not cached: model.preprocessing is not declared"]
    assert not Store(tmp_path, BIG).paths()
    with cache.use(features):
        own.fresh().features(images(own))


def test_nothing_hangs_on_the_strategy(tmp_path):
    own, features = experiment(), prepared(tmp_path)
    with cache.use(features):
        _, strategy, _ = run(own)
        inside = {tensor.data_ptr() for tensor in strategy.state_dict().values()}
        assert [where for where, pointer in hoard(strategy) if pointer not in inside] == []
    assert features.hits > 0


def test_bytes_that_predicting_reads_include_the_backbone(tmp_path):
    own, features, x = experiment(), prepared(tmp_path), images()[:1]
    strategy = own.fresh()
    own.grow(strategy, own.scenario.tasks[0])
    due = inference_bytes(strategy, x)
    with cache.use(features):
        assert inference_bytes(strategy, x) == due > 4 * 1_000


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_that_of_all_that_decides_the_bits(monkeypatch):
    cpu = torch.device("cpu")
    backbone = experiment().fresh().model.backbone

    def key(other=backbone, machine="m"):
        return cache.key_of(other, cpu, machine)

    def made(**more):
        torch.manual_seed(0)
        return Model(**{**TOY, **more}).build(1).backbone

    base = key()
    assert key(copy.deepcopy(backbone)) == base == key(copy.deepcopy(backbone).to(memory_format=torch.channels_last))
    found = [
        base,
        key(machine="other"),
        key(experiment({**TOY, "preprocessing": {**PLAIN, "size": 8}}).fresh().model.backbone),
    ]
    weights = copy.deepcopy(backbone)
    with torch.no_grad():
        next(weights.parameters())[0, 0, 0, 0] += 1e-6
    found.append(key(weights))
    named = copy.deepcopy(backbone)
    named.name = "another"
    found.append(key(named))
    shaped = copy.deepcopy(backbone)
    shaped.body.blocks[0][0].stride = (2, 2)
    found.append(key(shaped))
    with torch.autocast("cpu", torch.bfloat16):
        found.append(key())
    torch.set_num_threads(2)
    found.append(key())
    torch.set_num_threads(1)
    monkeypatch.setattr(cache, "_file_hash", lambda *_: "edited")
    found.append(key())
    assert len(set(found)) == len(found)
    assert key(made()) == key(made())


def test_the_code_of_a_network_is_what_its_classes_are_written_in():
    backbone = experiment().fresh().model.backbone
    for name in ("cil.nets.pretrained", "cil.nets.convnet"):
        file = ROOT / f"{name.replace('.', '/')}.py"
        assert cache.code(backbone)[name] == hashlib.sha256(file.read_bytes()).hexdigest()
    import timm

    net = Model(backbone="timm:test_resnet", weights="random", frozen=True).build(3).backbone
    assert cache.code(net)["timm"] == timm.__version__
    assert "timm.models.resnet" in cache.code(net)


# --- files -----------------------------------------------------------------------------------------------------------


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

    from cil.data import ImageSet

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
    with cache.use(features):
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
    with cache.use(features):
        assert torch.equal(own.fresh().features(images()), due)
    assert prepared(tmp_path, told=(again := Told())) and not any("is damaged" in line for line in again.lines)


def kept(root, what):
    """Images or bytes of all keys."""
    store = Store(root, BIG)
    return sum(store.summary(key)[what] for key in Store.keys(store))


def fill(root, seed):
    """The cache of another random network."""
    from cil.seeds import Seeds

    own = experiment(seeds=Seeds(seed, 0, 0))
    return own, prepared(root, own)


def test_the_least_recently_used_go_first(tmp_path):
    fill(tmp_path, 0)
    size = kept(tmp_path, "bytes")
    (oldest,) = Store(tmp_path, BIG).paths()
    for seed in (1, 2):
        fill(tmp_path, seed)
    ages = {path: age for age, path in enumerate(Store(tmp_path, BIG).paths())}
    for path in ages:
        os.utime(path / "entry.json", (1_000, 1_000 + (path != oldest)))
    prepared(tmp_path, fill(tmp_path, 0)[0])  # used again: now it is the youngest
    gone = Store(tmp_path, 2 * size).evict()
    assert len(gone) == 1 and gone[0] != oldest
    assert len(Store(tmp_path, BIG).paths()) == 2


def test_a_segment_in_use_outlives_its_removal(tmp_path, computed):
    own, features = fill(tmp_path, 0)
    strategy = own.fresh()
    due = strategy.model.backbone.compute(images())
    with cache.use(features):
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
        cache.prepared(own, Store(tmp_path, int(2.5 * size)), "machine", Told())
        assert kept(tmp_path, "bytes") <= 2.5 * size


def test_features_beyond_the_limit_are_told_and_not_kept(tmp_path, computed):
    told = Told()
    features = prepared(tmp_path, limit=5_000, told=told)
    assert re.search(r"not cached: of 170 images they take 0\.0 MiB, and cache_limit is 0\.0 MiB", told.lines[0])
    assert not Store(tmp_path, BIG).paths() and computed == []
    with cache.use(features):
        run(experiment())


def test_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    told = Told()
    features = prepared(tmp_path, told=told)
    assert "No space left on device" in told.lines[0] and "going on" in told.lines[0]
    with cache.use(features):
        run(experiment())


def test_two_processes_compute_each_image_once(tmp_path):
    argv = [*RUN, *KINDS["finetune"], "--trainer.epochs", "1", "--cache", str(tmp_path / "cache"), "--threads", "1"]
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
        "import sys, time, shutil; from pathlib import Path; from cil.cache import Store\n"
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
