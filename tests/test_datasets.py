"""Each source of data read from small files in its own format, and broken files told in the user's words."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import urllib.error
import zipfile

import numpy as np
import pytest
import torch

from cil.data.images import Dataset, ImageSet
from cil.errors import UserError
from scenarios import datasets
from scenarios.datasets import check, load, resize

RNG = np.random.default_rng(0)


def arrays(**changes):
    """A sound npz of 3 classes, 9 training and 3 test images of 4 x 5, with some arrays changed or (None) left out."""
    sound = {
        "x_train": RNG.integers(0, 256, (9, 4, 5, 3), dtype=np.uint8),
        "y_train": np.arange(9) % 3,
        "x_test": RNG.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8),
        "y_test": np.arange(3),
        "classes": np.array(["ant", "bee", "cow"]),
    }
    return {key: value for key, value in {**sound, **changes}.items() if value is not None}


# -- digits ------------------------------------------------------------------------------------------------------------


def test_digits_are_scaled_and_split_by_class():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert (len(data.train), len(data.test), data.train.image_shape) == (1352, 445, (1, 8, 8))
    assert data.classes == tuple("0123456789") and data.mean is None
    assert data.train.raw().max() == 255 and data.train.raw().min() == 0
    bunch = load_digits()
    for label in range(10):
        mine = np.flatnonzero(bunch.target == label)
        expected = bunch.images[mine[3::4], :, :, None] * 255 / 16
        assert np.abs(data.test.of_classes([label]).raw() - expected).max() <= 0.5
        assert len(data.train.of_classes([label])) + len(expected) == len(mine)
    assert data.sha256() == load("digits").sha256()


# -- torchvision -------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar_from_its_python_batches(name, folder, tmp_path, monkeypatch, offline):
    n_classes, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    files = {f"data_batch_{i}": 10 for i in range(1, 6)} | {"test_batch": 10}
    files, meta = (files, "batches.meta") if name == "cifar10" else ({"train": 200, "test": 100}, "meta")
    (tmp_path / folder).mkdir()
    stored = {}
    for file, n in files.items():
        stored[file] = RNG.integers(0, 256, (n, 3072), dtype=np.uint8)
        entry = {"data": stored[file], key: [i % n_classes for i in range(n)]}
        (tmp_path / folder / file).write_bytes(pickle.dumps(entry))
    names = {("label_names" if name == "cifar10" else "fine_label_names"): [f"c{i}" for i in range(n_classes)]}
    (tmp_path / folder / meta).write_bytes(pickle.dumps(names))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.exists(path))

    data = load(name, root=tmp_path)
    train = np.concatenate([stored[file] for file in files if not file.startswith("test")])
    assert np.array_equal(data.train.gather().numpy().reshape(-1, 3072), train)  # planes of red, green, blue
    assert data.train.labels.tolist() == [i % n_classes for i in range(len(train))]
    assert data.classes == tuple(f"c{i}" for i in range(n_classes)) and data.name == name
    assert len(data.mean) == len(data.std) == 3
    if name == "cifar100":
        assert (data.mean, data.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_from_its_idx_files(name, folder, tmp_path, offline):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    stored = {}
    for split, n in (("train", 20), ("t10k", 10)):
        stored[split] = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 2051, n, 28, 28) + stored[split].tobytes()
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, n) + labels.tobytes())
    data = load(name, root=str(tmp_path))
    assert data.train.image_shape == (1, 28, 28)
    assert np.array_equal(data.train.raw()[..., 0], stored["train"])
    assert np.array_equal(data.test.raw()[..., 0], stored["t10k"])
    assert data.test.labels.tolist() == list(range(10))
    assert len(data.classes) == 10 and len(data.mean) == 1
    assert load(name, root=tmp_path, image_size=32).test.image_shape == (1, 32, 32)


def test_svhn_from_its_mat_files(tmp_path, monkeypatch, offline):
    from scipy.io import savemat

    stored = {}
    for split, n in (("train", 20), ("test", 10)):
        stored[split] = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": stored[split], "y": (np.arange(n) % 10 + 1)[:, None]})
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5=None: os.path.exists(path))
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda path, md5=None: os.path.exists(path))
    data = load("svhn", root=tmp_path)
    assert np.array_equal(data.train.raw(), stored["train"].transpose(3, 0, 1, 2))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]  # the files call the digit 0 "10"


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar100", "cifar-100-python"), ("mnist", "MNIST/raw"), ("svhn", ""), ("cifar10", "")]
)
def test_failed_download_says_where_it_looked(name, folder, tmp_path, offline):
    with pytest.raises(UserError, match=f"'{name}' could not be read from {tmp_path / folder}.*no network here.*put"):
        load(name, root=tmp_path)


# -- npz ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_mapped_if_stored_uncompressed(save, tmp_path):
    content = arrays(mean=np.array([0.5, 0.4, 0.3]), std=np.array([0.1, 0.2, 0.3], dtype=np.float32))
    save(tmp_path / "insects.npz", **content)
    data = load(f"npz:{tmp_path / 'insects.npz'}")
    assert isinstance(data.train._images, np.memmap) == (save is np.savez)
    for split, images in (("train", data.train), ("test", data.test)):
        assert np.array_equal(images.raw(), content[f"x_{split}"])
        assert images.labels.tolist() == content[f"y_{split}"].tolist()
    assert (data.name, data.classes) == ("insects", ("ant", "bee", "cow"))
    assert data.mean == (0.5, 0.4, 0.3) and data.std == pytest.approx((0.1, 0.2, 0.3))


def test_npz_forms(tmp_path):
    grey = arrays(
        x_train=np.asfortranarray(RNG.integers(0, 256, (9, 4, 5), dtype=np.uint8)),
        x_test=RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8),
        y_train=(np.arange(9) % 3).astype(np.uint8),
        classes=np.array([b"ant", b"bee", b"cow"]),
    )
    np.savez(tmp_path / "grey.npz", **grey)
    data = load(f"npz:{tmp_path / 'grey.npz'}")
    assert data.train.image_shape == (1, 4, 5) and data.classes == ("ant", "bee", "cow") and data.mean is None
    assert np.array_equal(data.train.raw()[..., 0], grey["x_train"])
    resized = load(f"npz:{tmp_path / 'grey.npz'}", image_size=3)
    assert np.array_equal(resized.train.raw(), resize(grey["x_train"][..., None], 3))
    assert (resized.name, resized.classes) == (data.name, data.classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "classes": None}, "lacks the arrays x_test, classes; it has x_train, y_test, y_train"),
        ({"x_train": np.zeros((9, 4, 5, 3), dtype=np.float32)}, "train images are float32 of shape"),
        ({"x_test": np.zeros((3, 60), dtype=np.uint8)}, r"test images are uint8 of shape \(3, 60\)"),
        ({"y_train": np.arange(9) % 3 * 1.0}, "train labels are float64"),
        ({"y_train": np.arange(9).reshape(9, 1) % 3}, r"train labels are int64 of shape \(9, 1\)"),
        ({"y_train": np.arange(8) % 3}, "train has 9 images but 8 labels"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 2, 0, 3, 7])}, r"train label 3 at index 7 is outside \[0, 3\), 2 such"),
        ({"y_test": np.array([0, -1, 2])}, r"test label -1 at index 1 is outside"),
        ({"y_test": np.array([0, 2, 2])}, "class 1 'bee' has no image in test"),
        ({"y_train": np.zeros(9, dtype=int)}, "class 1 'bee' has no image in train, 2 such"),
        ({"classes": np.array(["ant"])}, "1 classes; there must be 2 or more"),
        ({"classes": np.arange(3)}, "classes are int64"),
        ({"classes": np.array(["ant", "bee", "cow"], dtype=object)}, "classes holds pickled Python objects"),
        ({"x_train": np.array([None] * 9)}, "x_train holds pickled Python objects"),
        ({"x_test": np.zeros((3, 5, 5, 3), dtype=np.uint8)}, r"train images are \(C, H, W\) = \(3, 4, 5\), test"),
        ({"x_train": np.zeros((0, 4, 5, 3), dtype=np.uint8), "y_train": np.zeros(0, int)}, "no image in train"),
        ({"mean": np.array([0.5, 0.5, 0.5])}, "mean and std go together"),
        ({"mean": np.array([125.0] * 3), "std": np.array([0.2] * 3)}, "mean=.*legal: 3 fractions of 255"),
        ({"mean": np.array([0.5] * 3), "std": np.array([0.0] * 3)}, "std=.*legal"),
        ({"mean": np.array([0.5]), "std": np.array([0.5])}, "mean=.*legal: 3 fractions"),
        ({"mean": np.array(["a"]), "std": np.array([0.5])}, "mean is <U1"),
    ],
)
def test_npz_that_is_not_whole(changes, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(**changes))
    with pytest.raises(UserError, match=message):
        load(f"npz:{tmp_path / 'x.npz'}")


def test_a_pickle_in_an_npz_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays(y_train=np.array([Bomb()], dtype=object)))
        with pytest.raises(UserError, match="y_train holds pickled"):
            load(f"npz:{tmp_path / 'x.npz'}")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_cut_or_flipped_byte_gives_anything_but_data_or_a_user_error(save, tmp_path):
    save(tmp_path / "x.npz", **arrays())
    whole, target = (tmp_path / "x.npz").read_bytes(), tmp_path / "y.npz"
    for length in range(0, len(whole), 97):
        target.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole npz"):
            load(f"npz:{target}")
    told = 0
    for position in range(0, len(whole), 11):
        broken = bytearray(whole)
        broken[position] ^= 255
        target.write_bytes(broken)
        try:
            load(f"npz:{target}")
        except UserError:
            told += 1
    assert told > 50


def test_npz_array_shorter_than_its_header(tmp_path):
    content = {key: io.BytesIO() for key in arrays()}
    for key, value in arrays().items():
        np.save(content[key], value)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key, stream in content.items():
            archive.writestr(f"{key}.npy", stream.getvalue()[: -7 if key == "x_train" else None])
    with pytest.raises(UserError, match="x_train is cut off"):
        load(f"npz:{tmp_path / 'x.npz'}")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for key, stream in content.items():
            archive.writestr(f"{key}.npy", b"plain text, no array" if key == "y_test" else stream.getvalue())
    with pytest.raises(UserError, match="y_test is not an array"):
        load(f"npz:{tmp_path / 'x.npz'}")


# -- specs, check, resize ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar-100", "data: no 'cifar-100'; did you mean 'cifar100'.*Legal: .*npz:PATH"),
        ("digits:here", "no 'digits:here'"),
        ("", "no ''"),
        ("npz:", "'npz:' names no file; write npz:PATH"),
        ("folder", "'folder' names no file"),
        ("npz:nowhere/x.npz", "there is no .*nowhere/x.npz"),
        ("folder:nowhere", "there is no .*nowhere"),
    ],
)
def test_wrong_specs(spec, message):
    with pytest.raises(UserError, match=message):
        load(spec)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "32"])
def test_wrong_image_size(size):
    with pytest.raises(UserError, match="image_size: "):
        load("digits", image_size=size)


# -- fewer images a class ----------------------------------------------------------------------------------------------


def unequal(tmp_path):
    """Images that hold their own number, five of each of two classes, six of a third, mixed."""
    labels = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1, 2, 2])
    images = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "some.npz", **arrays(x_train=images, y_train=labels))
    return f"npz:{tmp_path / 'some.npz'}", labels


def test_fewer_training_images_of_each_class(tmp_path):
    spec, labels = unequal(tmp_path)
    whole, some = load(spec), load(spec, train_per_class=3)
    kept = some.train.raw()[:, 0, 0, 0].astype(int)
    assert kept.tolist() == sorted(set(kept.tolist())) and some.train.labels.tolist() == labels[kept].tolist()
    assert some.train.counts(3).tolist() == [3, 3, 3]
    assert isinstance(some.train.base, np.memmap)  # a mapped file stays mapped
    assert np.array_equal(some.test.raw(), whole.test.raw()) and some.test.labels.tolist() == whole.test.labels.tolist()
    assert (some.name, some.classes) == (whole.name, whole.classes)
    # The first of each class are not what is meant: files have an order.
    assert kept.tolist() != sorted(np.concatenate([np.flatnonzero(labels == label)[:3] for label in range(3)]).tolist())
    assert load(spec, train_per_class=5, image_size=1).train.counts(3).tolist() == [5, 5, 5]


def test_which_images_are_kept_is_always_the_same(tmp_path):
    spec, labels = unequal(tmp_path)
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    some = load(spec, train_per_class=3)
    assert np.array_equal(np.random.get_state()[1], state)
    draw, expected = np.random.RandomState(0), []  # one generator, class after class
    for label in range(3):
        own = [position for position, given in enumerate(labels) if given == label]
        expected += [own[place] for place in draw.permutation(len(own))[:3]]
    assert some.train.rows.tolist() == sorted(expected)
    assert some.sha256() == load(spec, train_per_class=3).sha256() != load(spec).sha256()
    whole = load(spec).identified()
    assert datasets.fewer(whole, 3).identified().class_prints == some.identified().class_prints
    assert [own.train_images for own in some.identified().class_prints] == [3, 3, 3]


def test_files_of_the_images_that_are_kept():
    data = dataclasses.replace(load("digits"), files=tuple(f"{row}.png" for row in range(len(load("digits").train))))
    some = datasets.fewer(data, 4)
    assert some.files == tuple(f"{row}.png" for row in some.train.rows)


def test_more_images_than_a_class_has(tmp_path):
    spec, _ = unequal(tmp_path)
    with pytest.raises(UserError, match=r"train_per_class: 6, and class 0 'ant' of 'some' has 5 .* 1 to 5, or null"):
        load(spec, train_per_class=6)


@pytest.mark.parametrize("number", [0, -3, 2.5, True, "9"])
def test_wrong_number_of_images_of_a_class(number):
    with pytest.raises(UserError, match="train_per_class: "):
        load("digits", train_per_class=number)


def test_check_reads_the_data_set_itself():
    images = np.zeros((4, 2, 2, 1), dtype=np.uint8)
    sound = Dataset("x", ImageSet(images, [0, 1, 0, 1]), ImageSet(images[:2], [0, 1]), ("a", "b"))
    check(sound)
    with pytest.raises(UserError, match="train label 2 at index 3"):
        check(Dataset("x", ImageSet(images, [0, 1, 0, 2]), sound.test, ("a", "b")))
    with pytest.raises(UserError, match="class 0 'a' has no image in test"):
        check(Dataset("x", sound.train, ImageSet(images[:1], [1]), ("a", "b")))


def triangle(length, size):
    """The rows that average ``length`` pixels to ``size``: a triangle as wide as the shrinking, (size, length)."""
    scale = length / size
    weights = np.zeros((size, length))
    for out in range(size):
        for pixel in range(length):
            distance = abs((pixel + 0.5) - (out + 0.5) * scale) / max(scale, 1)
            weights[out, pixel] = max(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_resize_against_explicit_weights(size):
    images = RNG.integers(0, 256, (2, 9, 5, 3), dtype=np.uint8)
    expected = np.einsum("oh,nhwc,pw->nopc", triangle(9, size), images.astype(float), triangle(5, size))
    assert np.abs(resize(images, size) - expected).max() <= 0.5 + 1e-3


def test_resize_in_any_chunk():
    square = RNG.integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    assert resize(square, 4) is square  # a mapped file stays mapped
    images = RNG.integers(0, 256, (30, 600, 400, 3), dtype=np.uint8)
    together = resize(images, 64)
    assert together.dtype == np.uint8 and together.shape == (30, 64, 64, 3)
    assert np.array_equal(together, np.concatenate([resize(image[None], 64) for image in images]))


def test_loading_leaves_global_random_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    digest = hashlib.sha256(load("digits", image_size=12).train.raw().tobytes()).hexdigest()
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
    assert digest == hashlib.sha256(load("digits", image_size=12).train.raw().tobytes()).hexdigest()


def test_digits_are_those_of_scikit_learn_without_its_import(monkeypatch):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    table = datasets._digits_table()
    assert np.array_equal(table, np.column_stack([bunch.data, bunch.target]))
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    assert np.array_equal(datasets._digits_table(), table)  # where the file is not found, scikit-learn reads it
