"""What is stored of an exemplar comes back, and what is counted is what is stored."""

from __future__ import annotations

import functools
import io
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sklearn.datasets import load_digits

from cil.data.images import ImageSet
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints, Moment
from cil.learning.strategy import Strategy
from cil.memory.codecs import CODECS, make_codec
from cil.memory.exemplars import Exemplars, Memory, Queue, fair_quota
from cil.memory.ledger import measure_run
from cil.nets.network import Model
from cil.ops.herding import herding
from tests.test_exemplars import coordinates, no_features, random_task, seeded, task_of

LOSSLESS = ("raw", "png", "webp")
FILES = ("png", "webp", "jpeg")
SHAPES = ((1, 1, 1), (1, 5, 7), (3, 5, 7), (1, 8, 8), (3, 17, 33), (3, 32, 32), (1, 40, 24))  # (C, H, W)
KINDS = ("noise", "torch", "black", "white", "grey", "stripes", "one pixel", "digits")


@functools.cache
def digits(n):
    return torch.from_numpy(load_digits().images[:n] * (255 / 16))[:, None]  # (N, 1, 8, 8)


def pictures(kind, shape, n=4, seed=0):
    """Images of a kind, uint8 (N, H, W, C)."""
    channels, height, width = shape
    size = (n, height, width, channels)
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, size, dtype=np.uint8)
    if kind == "torch":
        return torch.randint(0, 256, size, generator=seeded(seed), dtype=torch.uint8).numpy()
    if kind == "stripes":
        return np.broadcast_to((np.arange(width) % 2 * 255).astype(np.uint8)[:, None], size).copy()
    if kind == "one pixel":
        out = np.zeros(size, np.uint8)
        out[:, height // 2, width // 2, rng.integers(channels)] = 255
        return out
    if kind == "digits":
        large = F.interpolate(digits(64)[seed % 32 :][: n * channels], (height, width), mode="bilinear")
        return large.reshape(n, channels, height, width).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    return np.full(size, {"black": 0, "white": 255, "grey": 77}[kind], np.uint8)


def written(image, name, **options):
    """The file that Pillow writes."""
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, name, **options)
    return out.getvalue()


def nbytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def same_items(first, second):
    """Whether two arrays of items have the same bytes."""
    return [bytes(item) for item in first] == [bytes(item) for item in second]


def through_disk(folder, tensors):
    """The tensors as a checkpoint gives them back."""
    Checkpoints(folder).save(Moment(0), tensors, {})
    return Checkpoints(folder).load(Moment(0))[0]


# --- images and items ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_of_every_kind_come_back(name, shape):
    codec = make_codec(name, shape)
    images = np.concatenate([pictures(kind, shape) for kind in KINDS])
    before = images.copy()
    shown = codec.decode(codec.encode(images))
    assert (shown.shape, shown.dtype) == (images.shape, np.uint8)
    assert np.array_equal(images, before)
    assert (name in LOSSLESS) == (name != "jpeg")
    if name in LOSSLESS:
        assert np.array_equal(shown, images)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_codec_gives_back_every_pixel(name):
    side = st.integers(1, 9)

    @settings(max_examples=60, deadline=None)
    @given(images=arrays.arrays(np.uint8, st.tuples(st.integers(0, 3), side, side, st.sampled_from([1, 3]))))
    def holds(images):
        codec = make_codec(name, (images.shape[3], *images.shape[1:3]))
        shown = codec.decode(codec.encode(images))
        assert shown.shape == images.shape
        assert shown.tobytes() == images.tobytes()

    holds()


@pytest.mark.parametrize("name", CODECS)
def test_an_item_does_not_depend_on_its_neighbours(name):
    codec, images = make_codec(name, (3, 9, 6)), pictures("noise", (3, 9, 6), n=5)
    together = codec.encode(images)
    assert same_items(together, [codec.encode(image[None])[0] for image in images])
    order = [3, 0, 4]
    assert np.array_equal(codec.decode(together[order]), codec.decode(together)[order])


@pytest.mark.parametrize("name", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_items_are_files_that_others_can_read(name, channels):
    images = pictures("digits", (channels, 20, 28))
    for image, item in zip(images, make_codec(name, (channels, 20, 28)).encode(images), strict=True):
        with Image.open(io.BytesIO(item)) as picture:
            assert (picture.format, picture.size) == (name.upper(), (28, 20))
            assert np.array_equal(np.asarray(picture.convert("L" if channels == 1 else "RGB")), image.squeeze())


def test_lossless_files_of_plain_images_are_smaller_than_raw_ones():
    images = pictures("digits", (1, 64, 64))
    for name in ("png", "webp"):
        codec = make_codec(name, (1, 64, 64))
        assert codec.sizes(codec.encode(images)).max() < 64 * 64


# --- JPEG ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 30, 75, 95])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_jpeg_item_is_the_file_of_pillow_without_what_all_files_share(shape, quality):
    codec = make_codec("jpeg", shape, quality)
    for kind in KINDS:
        images = pictures(kind, shape, n=2)
        items = codec.encode(images)
        for image, item, shown in zip(images, items, codec.decode(items), strict=True):
            file = codec.shared + item + b"\xff\xd9"
            assert file == written(image, "jpeg", quality=quality)
            with Image.open(io.BytesIO(file)) as picture:
                assert np.array_equal(np.asarray(picture).reshape(image.shape), shown)


def test_what_jpeg_files_share_is_most_of_a_small_one():
    codec = make_codec("jpeg", (3, 32, 32))
    assert len(codec.shared) > 500
    assert make_codec("jpeg", (1, 32, 32)).shared != codec.shared
    assert len({make_codec("jpeg", (3, 32, 32), quality).shared for quality in (10, 50, 90)}) == 3
    assert codec.sizes(codec.encode(pictures("black", (3, 32, 32)))).max() < 40


@pytest.mark.parametrize("kind", ["noise", "digits"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_error_of_jpeg_falls_with_its_quality(kind, channels):
    images = pictures(kind, (channels, 32, 40), n=6)
    errors, sizes = [], []
    for quality in (5, 25, 50, 75, 95):
        codec = make_codec("jpeg", (channels, 32, 40), quality)
        items = codec.encode(images)
        errors.append(float(np.abs(codec.decode(items).astype(float) - images).mean()))
        sizes.append(int(codec.sizes(items).sum()))
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert len(set(errors)) == len(set(sizes)) == 5
    if kind == "digits":
        assert errors[-1] < 4 < 8 < errors[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_jpeg_keeps_a_plain_grey(channels, value):
    codec = make_codec("jpeg", (channels, 13, 21))
    shown = codec.decode(codec.encode(np.full((1, 13, 21, channels), value, np.uint8)))
    assert np.abs(shown.astype(int) - value).max() <= 1


def test_items_are_restored_with_the_tables_that_they_were_stored_with():
    images = pictures("digits", (3, 16, 16))
    one, other = make_codec("jpeg", (3, 16, 16), 30), make_codec("jpeg", (3, 16, 16), 90)
    items = one.encode(images)
    assert np.array_equal(other.decode(other.unpack(one.pack(items))), one.decode(items))
    with pytest.raises(UserError, match="other tables"):
        other.encode(images)


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_packed_is_what_is_counted(name, shape):
    codec = make_codec(name, shape)
    for n in (0, 1, 5):
        items = codec.encode(np.concatenate([pictures("noise", shape, n - n // 2), pictures("grey", shape, n // 2)]))
        sizes, tensors = codec.sizes(items), codec.pack(items)
        assert (sizes.shape, sizes.dtype) == ((n,), np.int64)
        assert sizes.tolist() == [len(bytes(item)) for item in items]
        assert codec.length_bytes == (0 if name == "raw" else 4)
        assert nbytes(tensors) == sizes.sum() + codec.length_bytes * n + (len(codec.shared) if n else 0)
    assert (len(codec.shared) > 0) == (name == "jpeg")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_items_survive_a_checkpoint(name, shape, tmp_path):
    codec = make_codec(name, shape)
    images = np.concatenate([pictures(kind, shape, n=2) for kind in KINDS])
    items = codec.encode(images)
    fresh = make_codec(name, shape)
    restored = fresh.unpack(through_disk(tmp_path, codec.pack(items)))
    assert restored.dtype == items.dtype
    assert same_items(restored, items)
    assert np.array_equal(fresh.decode(restored), codec.decode(items))


@pytest.mark.parametrize("name", CODECS)
def test_no_items_survive_a_checkpoint_either(name, tmp_path):
    codec = make_codec(name, (1, 4, 6))
    tensors = through_disk(tmp_path, codec.pack(codec.encode(np.empty((0, 4, 6, 1), np.uint8))))
    assert nbytes(tensors) == 0
    fresh = make_codec(name, (1, 4, 6))
    restored = fresh.unpack(tensors)
    assert len(restored) == 0
    assert fresh.decode(restored).shape == (0, 4, 6, 1)
    assert fresh.shared == codec.shared


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.tuples(st.binary(max_size=6), st.integers(0, 3)), min_size=1, max_size=6))
def test_zeros_at_the_end_of_an_item_are_kept(name, parts):
    items = np.empty(len(parts), dtype=object)
    items[:] = [body + bytes(zeros) for body, zeros in parts]
    codec = make_codec(name, (1, 4, 4))
    assert same_items(codec.unpack(codec.pack(items)), items)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_codec_is_refused_with_the_legal_ones():
    with pytest.raises(UserError, match=r"memory\.codec: no 'pgn'; did you mean 'png'\? Legal: jpeg, png, raw, webp"):
        make_codec("pgn", (3, 8, 8))
    with pytest.raises(UserError, match=r"memory\.codec: no 'JPEG'; did you mean 'jpeg'"):
        Exemplars(Memory(exemplars=5, codec="JPEG"), (3, 8, 8))


@pytest.mark.parametrize("quality", [-1, 0, 96, 100])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(UserError, match=f"memory.quality: {quality} must be within 1 to 95"):
        make_codec("jpeg", (3, 8, 8), quality)


def test_every_quality_in_range_works():
    images = pictures("digits", (1, 8, 8), n=1)
    for quality in range(1, 96):
        codec = make_codec("jpeg", (1, 8, 8), quality)
        assert codec.decode(codec.encode(images)).shape == images.shape


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("name", FILES)
def test_images_that_a_file_cannot_hold_are_refused(name, channels):
    words = f"memory.codec: {name} stores images of 1 or 3 channels; these have {channels}. Use raw"
    with pytest.raises(UserError, match=words):
        make_codec(name, (channels, 8, 8))


def test_raw_stores_any_number_of_channels():
    images = pictures("noise", (4, 5, 7))
    codec = make_codec("raw", (4, 5, 7))
    assert np.array_equal(codec.decode(codec.encode(images)), images)
    assert codec.sizes(images).tolist() == [140] * 4


# --- queues ----------------------------------------------------------------------------------------------------------


class Counting:
    """A codec that remembers which images it was asked to encode."""

    def __init__(self, codec):
        self.codec, self.encoded = codec, []

    def __getattr__(self, name):
        return getattr(self.codec, name)

    def encode(self, images):
        self.encoded += [image.tobytes() for image in images]
        return self.codec.encode(images)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=25, deadline=None)
@given(n_kept=st.integers(0, 5), n_new=st.integers(0, 25), seed=st.integers(0, 999), data=st.data())
def test_a_queue_gives_the_preferred_items_and_encodes_new_images_once(name, n_kept, n_new, seed, data):
    shape = (1, 5, 6)
    codec = make_codec(name, shape)
    kept = codec.encode(pictures("noise", shape, n_kept, seed))
    new = pictures("noise", shape, n_new, seed + 1000)
    candidates = ImageSet(np.concatenate([codec.decode(kept), new]), np.zeros(n_kept + n_new))
    length = data.draw(st.integers(0, n_kept + n_new))
    order = np.random.default_rng(seed).permutation(n_kept + n_new)[:length]
    counting = Counting(codec)
    queue = Queue(kept, counting, candidates, order)
    fresh = codec.encode(new)
    expected = [kept[i] if i < n_kept else fresh[i - n_kept] for i in order]
    asked = data.draw(st.lists(st.integers(0, length + 3), max_size=5))
    for n in asked:
        if data.draw(st.booleans()):
            assert same_items(queue.first(n), expected[:n])
        else:
            assert queue.size(n) == (len(bytes(expected[n])) if n < length else None)
    assert same_items(queue.first(None), expected)
    assert counting.encoded == [new[i - n_kept].tobytes() for i in order if i >= n_kept]


@pytest.mark.parametrize("name", CODECS)
def test_a_queue_encodes_only_as_far_as_it_is_asked(name):
    images = pictures("noise", (1, 4, 4), 100)
    counting = Counting(make_codec(name, (1, 4, 4)))
    queue = Queue(counting.codec.encode(images[:0]), counting, ImageSet(images, np.zeros(100)), np.arange(100))
    queue.first(3)
    assert len(counting.encoded) == 3
    queue.size(3)
    assert len(counting.encoded) == 4
    queue.size(79)
    assert len(counting.encoded) == 79 + 1 + 9


@pytest.mark.parametrize("name", CODECS)
def test_a_queue_without_candidates_hands_out_what_is_kept(name):
    codec = make_codec(name, (1, 5, 6))
    kept = codec.encode(pictures("noise", (1, 5, 6), 4))
    queue = Queue(kept, codec)
    assert [queue.size(n) for n in range(6)] == [*codec.sizes(kept).tolist(), None, None]
    for n in (0, 2, 4, 9):
        assert same_items(queue.first(n), kept[:n])
    assert same_items(queue.first(None), kept)


# --- fair quotas -----------------------------------------------------------------------------------------------------


def fair_by_definition(sizes, room, item_bytes):
    """Try every quota from the largest down."""
    for quota in range(max(map(len, sizes), default=0), 0, -1):
        if sum(size + item_bytes for of_class in sizes for size in of_class[:quota]) <= room:
            return quota
    return 0


def askable(sizes):
    return [lambda n, own=own: own[n] if n < len(own) else None for own in sizes]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 40), max_size=8), max_size=6),
    room=st.integers(-20, 900),
    item_bytes=st.sampled_from([0, 4, 8]),
)
def test_the_fair_quota_is_the_largest_that_fits(sizes, room, item_bytes):
    assert fair_quota(askable(sizes), room, item_bytes) == fair_by_definition(sizes, room, item_bytes)


def test_fair_quotas_worked_by_hand():
    sizes = [[10, 10, 10], [30], [10, 50]]  # rows: 50, 60, 10
    for room, quota in ((49, 0), (50, 1), (109, 1), (110, 2), (119, 2), (120, 3), (9999, 3)):
        assert fair_quota(askable(sizes), room, 0) == quota
    for room, quota in ((61, 0), (62, 1), (129, 1), (130, 2), (144, 3)):  # rows: 62, 68, 14
        assert fair_quota(askable(sizes), room, 4) == quota


# --- exemplars -------------------------------------------------------------------------------------------------------

SHAPE = (1, 6, 7)


def mixed_task(counts, *, index=0, first=0, seed=0):
    """A task whose images compress differently: noise in some rows, a plain grey in the others."""
    labels = np.repeat(np.arange(first, first + len(counts)), counts)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(labels), 6, 7, 1), dtype=np.uint8)
    plain = rng.integers(0, 7, len(labels))
    for image, start in zip(images, plain, strict=True):
        image[start:] = image[0, 0]
    return task_of(ImageSet(images, labels), new=range(first, first + len(counts)), index=index)


def items_of(exemplars, label):
    return exemplars.items[exemplars.labels == label]


def ranked(task, label):
    """The images of a class, best first."""
    mine = task.train.of_classes([label])
    return mine.raw(herding(coordinates(mine), len(mine)))


@pytest.mark.parametrize("name", CODECS)
def test_a_shrinking_quota_keeps_the_items_in_front(name):
    exemplars = Exemplars(Memory(exemplars=20, codec=name), SHAPE)
    tasks = [mixed_task([12, 12], seed=1), mixed_task([12, 2, 12], index=1, first=2, seed=2)]
    tasks.append(mixed_task([12, 12], index=2, first=5, seed=3))
    exemplars.codec = Counting(exemplars.codec)
    codec = make_codec(name, SHAPE)
    for task in tasks:
        exemplars.update(task, coordinates, seeded())
        quota = 20 // task.n_seen  # 10, 4, 2
        for earlier in tasks[: task.index + 1]:
            for label in earlier.new:
                assert same_items(items_of(exemplars, label), codec.encode(ranked(earlier, label)[:quota]))
    assert len(exemplars.codec.encoded) == 2 * 10 + (4 + 2 + 4) + 2 * 2


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("budget", [None, "5KiB"])
def test_what_was_stored_is_not_encoded_again_when_its_class_comes_back(name, budget):
    memory = Memory(exemplars=0 if budget else 12, budget=budget, codec=name, quality=20)
    exemplars = Exemplars(memory, (1, 2, 2))
    first = random_task(range(0, 2), 9, seed=1)
    room = None if budget is None else len(exemplars.codec.shared) + 12 * 100
    exemplars.update(first, coordinates, seeded(), room)
    kept = [bytes(item) for item in items_of(exemplars, 0)]
    shown = {image.tobytes() for image in exemplars.images[exemplars.labels == 0]}
    assert len(kept) >= 6
    again = random_task([0, 2], 9, seed=2, index=1, new=range(2, 3))
    counting = exemplars.codec = Counting(exemplars.codec)
    exemplars.update(again, coordinates, seeded(), room)
    after = [bytes(item) for item in items_of(exemplars, 0)]
    survivors = [item for item in after if item in kept]
    assert 0 < len(survivors) < len(after)
    fresh = {image.tobytes() for image in again.train.raw()}
    assert set(counting.encoded) <= fresh
    assert not set(counting.encoded) & shown or name in LOSSLESS
    # Every item is one that was kept or the first encoding of a new image.
    legal = {bytes(item) for item in make_codec(name, (1, 2, 2), 20).encode(again.train.of_classes([0]).raw())}
    assert set(after) <= legal | set(kept)


@pytest.mark.parametrize("name", FILES)
def test_tables_are_counted_once_and_lengths_for_each(name):
    exemplars = Exemplars(Memory(exemplars=9, codec=name), SHAPE)
    strategy = Strategy(Model(backbone="convnet2").build(1))
    empty = measure_run(strategy, exemplars)
    assert (empty["exemplars"], empty["lengths"], empty["labels"]) == (0, 0, 0)
    exemplars.update(mixed_task([20, 20]), coordinates, seeded())
    size, state = measure_run(strategy, exemplars), exemplars.state()
    assert len(exemplars) == 8
    assert size["exemplars"] == sum(len(item) for item in exemplars.items) + len(exemplars.codec.shared)
    assert (size["lengths"], size["labels"]) == (32, 32)
    assert size["strict"] - empty["strict"] == nbytes(state)
    assert size["paper"] - empty["paper"] == size["exemplars"] == nbytes(state) - 64


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("convention", ["strict", "paper"])
def test_a_room_in_bytes_is_filled_fairly_and_never_exceeded(name, convention):
    memory = Memory(exemplars=0, budget=1, codec=name, convention=convention)
    codec = make_codec(name, SHAPE)
    beside = (4 if name == "raw" else 8) if convention == "strict" else 0

    @settings(max_examples=15, deadline=None)
    @given(
        groups=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3),
        rooms=st.lists(st.integers(1, 3000), min_size=3, max_size=3),
        seed=st.integers(0, 99),
    )
    def holds(groups, rooms, seed):
        exemplars = Exemplars(memory, SHAPE)
        rows = []  # of each class, its items that are left, best first
        for index, (counts, room) in enumerate(zip(groups, rooms, strict=False)):
            task = mixed_task(counts, index=index, first=len(rows), seed=seed + index)
            rows += [codec.encode(ranked(task, label)) for label in task.new]
            exemplars.update(task, coordinates, seeded(), room)
            sizes = [[len(bytes(item)) for item in row] for row in rows]
            quota = fair_by_definition(sizes, room - len(codec.shared), beside)
            rows = [row[:quota] for row in rows]
            for label, row in enumerate(rows):
                assert same_items(items_of(exemplars, label), row)
            taken = exemplars.image_bytes + beside * len(exemplars)
            assert taken <= room
            state = exemplars.state()
            assert taken == nbytes(state) - (
                0 if convention == "strict" else (4 if name == "raw" else 8) * len(exemplars)
            )
            more = sum(row[quota] + beside for row in sizes if len(row) > quota)
            shared = 0 if len(exemplars) else len(codec.shared)
            assert not more or taken + shared + more > room

    holds()


@pytest.mark.parametrize("room", [500, 2_000, 4_000])
@pytest.mark.parametrize("name", CODECS)
def test_a_room_in_bytes_encodes_few_images_more_than_it_keeps(name, room):
    exemplars = Exemplars(Memory(budget="1MiB", codec=name), SHAPE)
    exemplars.codec = Counting(exemplars.codec)
    exemplars.update(mixed_task([60, 60]), coordinates, seeded(), room + len(exemplars.codec.shared))
    quota = len(exemplars) // 2
    assert 0 < quota < 60
    assert 2 * quota <= len(exemplars.codec.encoded) <= 2 * (quota + 1 + quota // 8)


def test_a_class_with_few_images_leaves_its_room_to_the_others():
    item = 6 * 7 + 4
    exemplars = Exemplars(Memory(exemplars=0, budget=1), SHAPE)
    exemplars.update(mixed_task([9, 2, 9]), coordinates, seeded(), 12 * item)
    assert np.bincount(exemplars.labels).tolist() == [5, 2, 5]
    exemplars.update(mixed_task([1, 9], index=1, first=3), coordinates, seeded(), 12 * item)
    assert np.bincount(exemplars.labels).tolist() == [3, 2, 3, 1, 3]


def test_room_for_everything_keeps_everything():
    exemplars = Exemplars(Memory(exemplars=0, budget=1, codec="png"), SHAPE)
    exemplars.update(mixed_task([9, 2, 5]), coordinates, seeded(), 10**6)
    assert np.bincount(exemplars.labels).tolist() == [9, 2, 5]


@pytest.mark.parametrize("room", [-5, 0, 1])
@pytest.mark.parametrize("name", CODECS)
def test_where_no_image_has_room_none_is_kept(name, room):
    exemplars = Exemplars(Memory(exemplars=0, budget=1, codec=name), SHAPE)
    exemplars.update(mixed_task([5, 5]), coordinates, seeded(), 2000)
    assert len(exemplars)
    exemplars.update(mixed_task([5], index=1, first=2), coordinates, seeded(), room)
    assert len(exemplars) == 0
    assert exemplars.image_bytes == nbytes(exemplars.state()) == 0
    assert exemplars.as_set() is None


@pytest.mark.parametrize("selection", ["random", "closest_to_mean"])
def test_every_selection_works_under_a_room(selection):
    exemplars = Exemplars(Memory(exemplars=0, budget=1, codec="png", selection=selection), SHAPE)
    task = mixed_task([9, 4])
    exemplars.update(task, no_features if selection == "random" else coordinates, seeded(), 800)
    assert 0 < np.bincount(exemplars.labels)[0] < 9
    assert nbytes(exemplars.state()) <= 800
    known = {image.tobytes() for image in task.train.raw()}
    assert {image.tobytes() for image in exemplars.images} <= known


def test_a_room_comes_with_a_budget_and_only_with_one():
    with pytest.raises(AssertionError, match="budget"):
        Exemplars(Memory(exemplars=5), SHAPE).update(mixed_task([3]), coordinates, seeded(), 100)
    with pytest.raises(AssertionError, match="budget"):
        Exemplars(Memory(exemplars=0, budget=1), SHAPE).update(mixed_task([3]), coordinates, seeded())


# --- reservoir -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_reservoir_holds_the_same_images_in_every_codec(name):
    raw = Exemplars(Memory(exemplars=7, selection="reservoir"), SHAPE)
    coded = Exemplars(Memory(exemplars=7, selection="reservoir", codec=name), SHAPE)
    codec = make_codec(name, SHAPE)
    for index, counts in enumerate(([3], [4, 9], [30])):
        task = mixed_task(counts, index=index, first=(0, 1, 3)[index], seed=index)
        for exemplars in (raw, coded):
            exemplars.update(task, no_features, seeded(index))
        assert len(coded) == min(7, 3 + 13 * (index > 0))
        assert np.array_equal(coded.labels, raw.labels)
        assert same_items(coded.items, codec.encode(raw.images))
    assert coded.seen == 46


# --- going on --------------------------------------------------------------------------------------------------------

MEMORIES = {
    "quota": {"exemplars": 11},
    "reservoir": {"exemplars": 11, "selection": "reservoir"},
    "random": {"exemplars": None, "per_class": 3, "selection": "random"},
    "all": {"exemplars": "all"},
    "budget": {"exemplars": 0, "budget": 1},
    "paper budget": {"exemplars": 0, "budget": 1, "convention": "paper"},
}


@pytest.mark.parametrize(("name", "kind"), list(itertools.product(CODECS, MEMORIES)))
def test_exemplars_saved_and_loaded_after_each_task_end_alike(name, kind, tmp_path):
    memory = Memory(**MEMORIES[kind], codec=name, quality=40)
    tasks = [mixed_task([8, 8]), mixed_task([3], index=1, first=2, seed=1), mixed_task([8], index=2, first=3, seed=2)]
    room = 1300 if memory.budget else None
    whole, parts = Exemplars(memory, SHAPE), Exemplars(memory, SHAPE)
    for task in tasks:
        whole.update(task, coordinates, seeded(task.index), room)
        parts.update(task, coordinates, seeded(task.index), room)
        state = through_disk(tmp_path, parts.state())
        parts = Exemplars(memory, SHAPE)
        parts.load(state, whole.seen)
    assert len(whole) > 0
    assert same_items(whole.items, parts.items)
    assert np.array_equal(whole.labels, parts.labels)
    assert np.array_equal(whole.images, parts.images)
    assert whole.image_bytes == parts.image_bytes
    assert parts.labels.dtype == np.int32
    assert parts.seen == whole.seen


@pytest.mark.parametrize("name", CODECS)
def test_a_memory_that_holds_nothing_yet_survives_a_checkpoint(name, tmp_path):
    memory = Memory(exemplars=6, codec=name)
    restored = Exemplars(memory, SHAPE)
    restored.load(through_disk(tmp_path, Exemplars(memory, SHAPE).state()), 0)
    assert len(restored) == 0
    restored.update(mixed_task([8, 8]), coordinates, seeded())
    fresh = Exemplars(memory, SHAPE)
    fresh.update(mixed_task([8, 8]), coordinates, seeded())
    assert same_items(restored.items, fresh.items)


@pytest.mark.parametrize("name", CODECS)
def test_what_is_learned_from_is_what_the_items_show(name):
    exemplars = Exemplars(Memory(exemplars=8, codec=name), SHAPE)
    exemplars.update(mixed_task([9, 9]), coordinates, seeded())
    data = exemplars.as_set()
    assert np.array_equal(data.raw(), exemplars.codec.decode(exemplars.items))
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert not data._images.flags.writeable
