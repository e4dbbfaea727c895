"""Folders of images: what is found in them, and that they read alike wherever decoded images lie."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cil.command import config
from cil.data.images import Joined
from cil.errors import UserError
from cil.experiment.progress import Progress
from cil.report import report
from scenarios import folders
from scenarios.datasets import load, resize
from tools import train

RNG = np.random.default_rng(0)


def image_file(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def image_tree(root, shape=(6, 6, 3), classes=("b", "a")):
    """Two training and one test image of each class; returns the pixels by relative path."""
    pixels = {}
    for label in classes:
        for split, count in (("train", 2), ("test", 1)):
            for index in range(count):
                relative = f"{split}/{label}/{index}.png"
                pixels[relative] = RNG.integers(0, 256, shape, dtype=np.uint8)
                image_file(root / relative, pixels[relative])
    return pixels


def zipped(root, target, prefix=""):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, prefix + path.relative_to(root).as_posix())
    return target


@pytest.mark.parametrize("form", ["folder", "nested folder", "zip", "nested zip"])
def test_image_files(form, tmp_path):
    root = tmp_path / ("pets/inner" if form == "nested folder" else "pets")
    pixels = image_tree(root)
    (root / "train/a/.hidden.png").write_bytes(b"not an image")
    (root / "train/a/notes.txt").write_text("not an image")
    (root / "README.md").write_text("neither")
    spec = tmp_path / "pets"
    if "zip" in form:
        spec = zipped(root, tmp_path / "pets.zip", "release-1/" if form == "nested zip" else "")
    data = load(f"folder:{spec}")
    assert (data.name, data.classes, data.mean) == ("pets", ("a", "b"), None)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    expected = [pixels[f"train/{key}.png"] for key in ("a/0", "a/1", "b/0", "b/1")]
    assert np.array_equal(data.train.raw(), np.stack(expected))
    assert np.array_equal(data.test.raw(), np.stack([pixels["test/a/0.png"], pixels["test/b/0.png"]]))


def test_grey_only_if_all_are_grey(tmp_path):
    image_tree(tmp_path / "x", shape=(6, 6))
    assert load(f"folder:{tmp_path / 'x'}").train.image_shape == (1, 6, 6)
    image_file(tmp_path / "x/test/a/9.png", np.zeros((6, 6, 3), dtype=np.uint8))
    data = load(f"folder:{tmp_path / 'x'}")
    assert data.train.image_shape == (3, 6, 6)
    assert np.array_equal(data.train.raw()[..., 0], data.train.raw()[..., 2])


def test_images_of_different_sizes_need_image_size(tmp_path):
    image_tree(tmp_path / "x")
    large = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image_file(tmp_path / "x/test/b/9.png", large)
    with pytest.raises(UserError, match=r"train/a/0.png is 6 x 6, test/b/9.png is 12 x 9; give image_size"):
        load(f"folder:{tmp_path / 'x'}")
    data = load(f"folder:{tmp_path / 'x'}", image_size=4)
    assert data.train.image_shape == (3, 4, 4)
    assert np.array_equal(data.test.raw()[-1], resize(large[None], 4)[0])


def test_broken_folders(tmp_path):
    root, spec = tmp_path / "x", f"folder:{tmp_path / 'x'}"
    image_tree(root)
    (root / "train/a/1.png").write_bytes((root / "train/a/0.png").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"train/a/1\.png cannot be read as an image"):
        load(spec)
    (root / "train/a/1.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"train/a/1\.png cannot be read as an image"):
        load(spec, image_size=8)
    image_file(root / "train/a/1.png", np.full((6, 6), 40000, dtype=np.uint16))
    with pytest.raises(UserError, match=r"train/a/1\.png has more than 8 bits"):
        load(spec)
    (root / "train/a/1.png").unlink()
    (root / "train/c").mkdir()
    with pytest.raises(UserError, match="class 'c' has no image in train"):
        load(spec)
    image_file(root / "train/c/0.png", np.zeros((6, 6, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="class 'c' is missing from test"):
        load(spec)
    with pytest.raises(UserError, match=r"no train/CLASS/ and test/CLASS/"):
        load(f"folder:{root / 'train'}")
    image_tree(tmp_path / "half")
    shutil.rmtree(tmp_path / "half/test")
    with pytest.raises(UserError, match="class 'a' is missing from test"):
        load(f"folder:{tmp_path / 'half'}")
    (tmp_path / "x.zip").write_bytes(b"PK nonsense")
    with pytest.raises(UserError, match=r"x\.zip is neither a folder nor a whole zip"):
        load(f"folder:{tmp_path / 'x.zip'}")


def test_broken_image_in_a_zip_is_named(tmp_path):
    image_tree(tmp_path / "x")
    target = tmp_path / "x.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((tmp_path / "x").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "x").as_posix())
        member = archive.getinfo("test/b/0.png")
    content = bytearray(target.read_bytes())
    content[member.header_offset + 30 + len("test/b/0.png") + 60] ^= 255  # one byte of the pixels
    target.write_bytes(content)
    with pytest.raises(UserError, match=r"test/b/0\.png cannot be read"):
        load(f"folder:{target}")


# -- where decoded images lie ------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces so small that workers get some."""
    monkeypatch.setattr(folders, "PIECE", 2)


class Written:
    """A progress, and what it said."""

    def __init__(self):
        self.file = io.StringIO()
        self.progress = Progress(Console(file=self.file, width=300))

    @property
    def text(self):
        return self.file.getvalue()


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_the_same_wherever_they_lie(form, size, workers, tmp_path, small_pieces, monkeypatch):
    image_tree(tmp_path / "pets", classes="abcde")
    spec = f"folder:{tmp_path / 'pets' if form == 'folder' else zipped(tmp_path / 'pets', tmp_path / 'pets.zip')}"
    expected = load(spec, image_size=size, images="memory", workers=0)
    for images in ("memory", "files", str(tmp_path / "kept"), str(tmp_path / "kept")):
        written = Written()
        data = load(spec, image_size=size, images=images, workers=workers, progress=written.progress)
        assert data.sha256() == expected.sha256()
        for split in ("train", "test"):
            one, other = getattr(data, split), getattr(expected, split)
            assert np.array_equal(one.raw(), other.raw())
            assert torch.equal(one.labels, other.labels)
            assert (one.image_shape, one.image_bytes) == (other.image_shape, other.image_bytes)
        assert (data.name, data.classes, data.files) == (expected.name, expected.classes, expected.files)
        known = images == str(tmp_path / "kept") and "decoded images written" not in written.text
        assert ("15 image files decoded in" in written.text and "images/s" in written.text) == (not known)
    assert known, "the second run decodes nothing"
    assert isinstance(data.train.base, np.memmap)


def test_streams_give_what_was_asked_for_in_that_order(tmp_path, small_pieces):
    image_tree(tmp_path / "pets", classes="abcde")
    data = load(f"folder:{tmp_path / 'pets'}", images="files", workers=2).train
    whole, state = data.raw(), torch.get_rng_state()
    parts = [torch.tensor([3, 1]), slice(8, 10), torch.tensor([], dtype=torch.int64), np.array([5]), slice(0, 7)]
    expected = [whole[part.numpy() if isinstance(part, torch.Tensor) else part] for part in parts]

    def check(stream):
        got = list(stream)
        assert len(got) == len(expected)
        assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))

    check(data.stream(parts))
    outer = data.stream(parts)
    assert np.array_equal(next(outer), expected[0])
    check(data.stream(parts))  # a second one in the middle of the first, which has the workers
    assert np.array_equal(next(outer), expected[1])
    outer.close()  # left in the middle, with parts under way
    assert not data.base._busy.locked()
    check(data.stream(parts))
    both = Joined(data.subset([9, 0, 4]), data.subset([2, 7]))
    mixed = [np.array([4, 0]), slice(0, 5), np.array([1])]
    assert all(np.array_equal(a, both.raw(part)) for a, part in zip(both.stream(mixed), mixed, strict=True))
    assert np.array_equal(both.raw(), whole[[9, 0, 4, 2, 7]])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_decode_what_is_streamed(workers, tmp_path, monkeypatch):
    image_tree(tmp_path / "pets", classes="abcde")
    here, decode = [], folders.Decoder.__call__
    monkeypatch.setattr(folders.Decoder, "__call__", lambda self, row: here.append(row) or decode(self, row))
    data = load(f"folder:{tmp_path / 'pets'}", images="files", workers=workers).train
    here.clear()
    assert sum(len(part) for part in data.stream([slice(0, 4), slice(4, 10)])) == 10
    assert len(here) == (0 if workers else 10), "what workers decode is not seen in this process"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("images", ["memory", "files", "folder"])
def test_a_broken_file_is_named_before_the_training(images, workers, tmp_path, small_pieces):
    image_tree(tmp_path / "pets", classes="abcde")
    path = tmp_path / "pets/train/d/1.png"
    path.write_bytes(path.read_bytes()[:-40])
    place, before = str(tmp_path / "kept") if images == "folder" else images, set(multiprocessing.active_children())
    for _ in range(2):
        with pytest.raises(UserError, match=r"^data: 'folder:.*train/d/1\.png cannot be read as an image"):
            load(f"folder:{tmp_path / 'pets'}", images=place, workers=workers)
    assert set(multiprocessing.active_children()) <= before
    if images == "folder":
        assert not list((tmp_path / "kept").glob("pets-*")), "nothing that is not whole has the name"
        image_file(path, np.zeros((6, 6, 3), dtype=np.uint8))
        assert len(load(f"folder:{tmp_path / 'pets'}", images=place, workers=workers).train) == 10


def test_a_folder_of_decoded_images_knows_its_files(tmp_path):
    image_tree(tmp_path / "pets")
    spec, kept = f"folder:{tmp_path / 'pets'}", tmp_path / "kept"

    def found(**options):
        load(spec, images=str(kept), **options)
        return {path.name for path in kept.glob("pets-*")}

    assert len(found()) == 1
    assert len(found(image_size=4)) == 2
    assert len(found(image_size=6)) == 3  # resized or not, to the size that they have
    os.utime(tmp_path / "pets/train/a/0.png", ns=(0, 0))
    assert len(found()) == 4
    shutil.move(tmp_path / "pets/train/a/1.png", tmp_path / "pets/train/a/2.png")
    assert len(found()) == 5
    assert len(found()) == 5
    for path in kept.glob("pets-*/train.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"pets-.* was changed since it was written; delete it"):
        found()
    for path in kept.glob("pets-*/train.npy"):
        path.unlink()
    with pytest.raises(UserError, match=r"^images: decoded images cannot be kept in .*pets-"):
        found()


def test_a_second_process_waits_and_says_so(tmp_path):
    image_tree(tmp_path / "pets")
    spec, kept = f"folder:{tmp_path / 'pets'}", str(tmp_path / "kept")
    expected = load(spec, images=kept).sha256()
    (lock,) = (tmp_path / "kept").glob(".pets-*.lock")
    hold = "import sys, time, filelock\n"
    hold += "with filelock.FileLock(sys.argv[1]): print('held', flush=True); time.sleep(1)"
    written = Written()
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert load(spec, images=kept, progress=written.progress).sha256() == expected
    assert "waiting for a process that decodes these images" in written.text
    assert other.wait() == 0


def test_a_folder_without_room_is_refused(tmp_path, monkeypatch):
    image_tree(tmp_path / "pets")
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"decoded images take 0 MiB and .*kept has 0 MiB free; make room, or give"):
        load(f"folder:{tmp_path / 'pets'}", images=str(tmp_path / "kept"))
    assert not list((tmp_path / "kept").glob("*pets-*[!k]"))


@pytest.mark.parametrize(("free", "place"), [(2 * 648, np.ndarray), (2 * 648 - 1, folders.Coded)])
def test_memory_is_used_by_default_where_there_is_enough(free, place, tmp_path, monkeypatch):
    image_tree(tmp_path / "pets")  # 6 images of 108 bytes
    monkeypatch.setattr(folders.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    written = Written()
    data = load(f"folder:{tmp_path / 'pets'}", progress=written.progress)
    assert type(data.train.base) is place
    assert ("so files are decoded whenever they are read" in written.text) == (place is folders.Coded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": ""}, "images: ''; legal: auto, memory, files or the path of a folder"),
        ({"images": __file__}, r"images: .*test_folders\.py is a file; legal: auto, memory"),
        ({"workers": -1}, "workers: -1; legal: a whole number from 0 on, or null"),
    ],
)
def test_wrong_ways_of_reading(options, message, tmp_path):
    image_tree(tmp_path / "pets")
    with pytest.raises(UserError, match=message):
        load(f"folder:{tmp_path / 'pets'}", **options)


def test_a_run_from_files_is_a_run_from_memory(tmp_path, small_pieces):
    image_tree(tmp_path / "pets", classes="abcd")
    results, sums = [], []
    for number, images in enumerate(("memory", "files", str(tmp_path / "kept"))):
        out = tmp_path / f"run{number}"
        argv = ["--data", f"folder:{tmp_path / 'pets'}", "--image_size", "8", "--scenario.step", "2"]
        argv += ["--strategy", "icarl", "--model.backbone", "convnet2", "--memory.exemplars", "4"]
        argv += ["--trainer.epochs", "2", "--trainer.batch_size", "3", "--augmentation.pad", "1", "--workers", "2"]
        with pytest.raises(SystemExit) as stop:
            config.main(train.main, [*argv, "--run_dir", str(out), "--images", images])
        assert stop.value.code == 0
        results.append(report.comparable(json.loads((out / "results.json").read_text())))
        sums.append((out / "checkpoint/task001.safetensors").read_bytes())
    assert results[0] == results[1] == results[2]
    assert sums[0] == sums[1] == sums[2]
