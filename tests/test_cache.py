"""The cache of features changes no result, whatever happens to it, and spares what it promises to spare."""

from __future__ import annotations

import copy
import hashlib
import json
import struct

import numpy as np
import pytest
import torch

from cil.command import config
from cil.data.augmentation import Augmentation
from cil.experiment.run import run
from cil.features import cache
from cil.features.cache import digests, on_grid
from cil.features.store import Store
from cil.learning.inference import features_of
from cil.memory.ledger import inference_bytes
from cil.nets import lookup
from cil.nets.network import Model
from cil.ops.freezing import frozen_copy
from cil.report import report
from cil.testing.lab import hoard
from tests.cached import BIG, PLAIN, ROOT, RUN, TOY, Told, experiment, images, prepared
from tools import train

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
        config.main(train.main, [*RUN, "--scenario.step", "5", *argv, "--run_dir", str(folder)])
    assert stop.value.code == 0
    return report.comparable(json.loads((folder / "results.json").read_text())), (
        (folder / "checkpoint/task001.safetensors").read_bytes()
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
        assert sums[1] == 2  # what a prediction reads is counted in a pass of one image after each task


def test_augmentation_that_crops_is_not_cached(tmp_path):
    told = Told()
    own = experiment(augmentation=Augmentation(size=6))
    features = prepared(tmp_path, own, told=told)
    assert any("crops test images" in line for line in told.lines)
    assert not Store(tmp_path, BIG).paths()
    strategy = own.fresh()
    with lookup.use(features):
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
    with lookup.use(features):
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
    with lookup.use(features):
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
    with lookup.use(features):
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
    with lookup.use(features):
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
    with lookup.use(features):
        own.fresh().features(images(own))


def test_nothing_hangs_on_the_strategy(tmp_path):
    own, features = experiment(), prepared(tmp_path)
    with lookup.use(features):
        _, strategy, _ = run(own)
        inside = {tensor.data_ptr() for tensor in strategy.state_dict().values()}
        assert [where for where, pointer in hoard(strategy) if pointer not in inside] == []
    assert features.hits > 0


def test_bytes_that_predicting_reads_include_the_backbone(tmp_path):
    own, features, x = experiment(), prepared(tmp_path), images()[:1]
    strategy = own.fresh()
    own.grow(strategy, own.scenario.tasks[0])
    due = inference_bytes(strategy, x)
    with lookup.use(features):
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
