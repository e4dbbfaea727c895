"""Batches are augmented as a loop over single images would, from the same draws."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.data.augmentation import CIFAR, IMAGENET, Augmentation, resized_crop, shifted
from cil.errors import UserError

CPU = torch.device("cpu")


def bound(shape=(3, 32, 32), mean=None, std=None, **options):
    return Augmentation(**options).bind(shape, mean, std, CPU)


def plain(shape=(3, 32, 32), **options):
    """An augmentation that leaves values between 0 and 1."""
    return bound(shape, mean=[0.0] * shape[0], std=[1.0] * shape[0], **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def corners(batch, pad, seed=0):
    return torch.randint(0, 2 * pad + 1, (2, batch), generator=seeded(seed))


def uniform(batch, seed=0):
    return torch.rand(4, batch, generator=seeded(seed))


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


# --- single steps ----------------------------------------------------------------------------------------------------


def crop_by_loop(x: np.ndarray, pad: int, top: list[int], left: list[int]) -> np.ndarray:
    batch, channels, height, width = x.shape
    out = np.zeros_like(x)
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    row, column = i + top[b] - pad, j + left[b] - pad
                    if 0 <= row < height and 0 <= column < width:
                        out[b, c, i, j] = x[b, c, row, column]
    return out


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    pad=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_crop_equals_a_loop_over_images(batch, channels, height, width, pad, seed):
    x = images(batch, channels, height, width, seed=seed)
    top, left = corners(batch, pad, seed).tolist()
    got = shifted(x, pad, corners(batch, pad, seed))
    assert got.dtype == torch.uint8
    assert np.array_equal(got.numpy(), crop_by_loop(x.numpy(), pad, top, left))


def test_every_place_of_the_crop_is_drawn():
    x = torch.zeros(2000, 1, 5, 5, dtype=torch.uint8)
    x[:, 0, 2, 2] = 1  # shows where the image went
    places = {tuple(place) for place in torch.nonzero(shifted(x, 1, corners(len(x), 1)))[:, 2:].tolist()}
    assert places == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}


def test_half_of_the_images_are_mirrored():
    x = images(1, 2, 4, 5).expand(400, -1, -1, -1)
    got = plain((2, 4, 5), flip=True).train(x, seeded())
    as_is, mirrored = x.float() / 255, x.numpy()[:, :, :, ::-1].astype(np.float32) / 255
    kept = (got == as_is).flatten(1).all(1)
    turned = (got == torch.from_numpy(mirrored.copy())).flatten(1).all(1)
    assert (kept ^ turned).all()
    assert 160 <= int(turned.sum()) <= 240  # 4 standard deviations


def test_brightness_multiplies_each_image_by_a_factor_around_one():
    x = torch.full((2000, 3, 2, 2), 100, dtype=torch.uint8)
    got = plain((3, 2, 2), brightness=0.25).train(x, seeded()) / (100 / 255)
    factor = got[:, 0, 0, 0]
    torch.testing.assert_close(got, factor.view(-1, 1, 1, 1).expand_as(got))  # one factor for the whole image
    assert 0.75 <= float(factor.min()) < 0.76
    assert 1.24 < float(factor.max()) <= 1.2500001
    assert float(factor.mean()) == pytest.approx(1, abs=0.015)


def test_brightness_stays_below_white():
    got = plain((1, 2, 2), brightness=1.0).train(torch.full((200, 1, 2, 2), 250, dtype=torch.uint8), seeded())
    assert float(got.max()) == 1
    assert float(got.min()) >= 0


def test_normalise_by_channel():
    x = torch.rand(2, 3, 4, 5)
    mean, std = [0.1, 0.5, 0.3], [0.2, 0.25, 0.4]
    got = bound(mean=mean, std=std).normalise(x.clone())
    for c in range(3):
        np.testing.assert_allclose(got[:, c], (x[:, c].numpy() - mean[c]) / std[c], rtol=1e-5, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)


# --- whole presets ---------------------------------------------------------------------------------------------------


def test_none_changes_nothing_but_scale():
    x = images(5, 2, 4, 6)
    draws = seeded()
    before = draws.get_state()
    augmentation = bound((2, 4, 6))
    got = augmentation.train(x, draws)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, (x.numpy() / 255 - 0.5) / 0.5, rtol=1e-5, atol=1e-6)
    assert torch.equal(augmentation.test(x), got)
    assert torch.equal(draws.get_state(), before)


def test_cifar_equals_a_loop_over_images():
    x = images(6, 3, 8, 7)
    got = bound((3, 8, 7), preset="cifar").train(x, seeded(5))
    draws = seeded(5)
    top, left = torch.randint(0, 9, (2, 6), generator=draws).tolist()
    mirror = (torch.rand(6, generator=draws) < 0.5).tolist()
    factor = (1 + 63 / 255 * (2 * torch.rand(6, generator=draws) - 1)).tolist()
    cropped = crop_by_loop(x.numpy(), 4, top, left)
    for b in range(6):
        image = cropped[b][:, :, ::-1] if mirror[b] else cropped[b]
        image = np.minimum(image / 255 * factor[b], 1)
        for c in range(3):
            np.testing.assert_allclose(got[b, c], (image[c] - CIFAR[0][c]) / CIFAR[1][c], rtol=1e-4, atol=1e-5)
    assert 0 < sum(mirror) < 6


@pytest.mark.parametrize(
    "options", [{"preset": "cifar"}, {"preset": "imagenet", "size": 8}, {"pad": 2}, {"flip": True}, {"brightness": 0.5}]
)
def test_draws_are_fixed_by_the_generator_and_differ_between_images(options):
    augmentation, x = bound((3, 9, 9), **options), images(1, 3, 9, 9).expand(24, -1, -1, -1)
    first, again, other = (augmentation.train(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    distinct = len(torch.unique(first.flatten(1), dim=0))
    assert distinct == 2 if options == {"flip": True} else distinct > 10


@pytest.mark.parametrize("options", [{"preset": "cifar"}, {"preset": "imagenet", "size": 8}])
def test_no_global_random_state_is_touched(options):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    augmentation = bound((3, 9, 9), **options)
    augmentation.train(images(4, 3, 9, 9), seeded())
    augmentation.test(images(4, 3, 9, 9))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("preset", ["none", "cifar"])
def test_testing_without_size_only_normalises(preset):
    x = images(3, 3, 6, 6)
    mean, std = CIFAR if preset == "cifar" else ([0.5] * 3, [0.5] * 3)
    expected = (x / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(bound((3, 6, 6), preset=preset).test(x), expected, rtol=1e-5, atol=1e-6)


# --- resized crops ---------------------------------------------------------------------------------------------------


def test_a_crop_of_a_constant_image_is_constant():
    x = torch.tensor([0, 7, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 2, 13, 9)
    for seed in range(10):
        got = resized_crop(x, 11, uniform(len(x), seed))
        assert got.shape == (3, 2, 11, 11)
        assert torch.equal(got, x[:, :, :1, :1].expand(3, 2, 11, 11))


def boxes(draws: torch.Tensor, height: int, width: int):
    """(left, top, width, height) in pixels of each image's box, from the four rows of draws in their order."""
    for area, ratio, x, y in draws.double().numpy().T:
        area = (0.08 + 0.92 * area) * height * width
        ratio = (4 / 3) ** (2 * ratio - 1)
        box_w, box_h = min(np.sqrt(area * ratio), width), min(np.sqrt(area / ratio), height)
        yield x * (width - box_w), y * (height - box_h), box_w, box_h


@pytest.mark.parametrize("direction", ["columns", "rows"])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (50, 30)])
def test_a_crop_reads_a_gradient_at_the_box_it_drew(direction, height, width):
    size, batch, step = 12, 40, 5
    ramp = torch.arange(width if direction == "columns" else height) * step
    x = ramp.expand(height, width) if direction == "columns" else ramp.view(-1, 1).expand(height, width)
    got = resized_crop(x.to(torch.uint8).expand(batch, 1, -1, -1), size, uniform(batch, 3)).double().numpy()[:, 0]
    if direction == "rows":
        got = got.transpose(0, 2, 1)
    limit, widths = len(ramp) - 1, []
    for b, (left, top, box_w, box_h) in enumerate(boxes(uniform(batch, 3), height, width)):
        start, extent = (left, box_w) if direction == "columns" else (top, box_h)
        position = np.clip(start + (np.arange(size) + 0.5) / size * extent - 0.5, 0, limit)  # pixel centres
        assert np.abs(got[b] - position * step).max() <= 0.51
        assert (np.diff(got[b], axis=1) >= 0).all()
        widths.append(box_w * box_h / (height * width))
    assert 0.05 < min(widths) < 0.3
    assert 0.8 < max(widths) <= 1


def test_the_preset_imagenet_crops_and_flips():
    ramp = (torch.arange(40) * 6).to(torch.uint8).expand(60, 3, 40, 40)
    got = bound((3, 40, 40), preset="imagenet", size=16).train(ramp, seeded())
    assert got.shape == (60, 3, 16, 16)
    falling = (got.diff(dim=3) <= 1e-6).flatten(1).all(1)
    rising = (got.diff(dim=3) >= -1e-6).flatten(1).all(1)
    assert (falling ^ rising).all()
    assert 15 <= int(falling.sum()) <= 45
    value = got * torch.tensor(IMAGENET[1]).view(1, 3, 1, 1) + torch.tensor(IMAGENET[0]).view(1, 3, 1, 1)
    assert float(value.min()) >= -1e-6
    assert float(value.max()) <= 39 * 6 / 255 + 1e-6  # nothing from outside the image, nothing brighter


def test_imagenet_images_have_224_pixels():
    assert bound((3, 8, 8), preset="imagenet").train(images(1, 3, 8, 8), seeded()).shape == (1, 3, 224, 224)
    assert bound((3, 8, 8), preset="imagenet").test(images(1, 3, 8, 8)).shape == (1, 3, 224, 224)


def test_testing_takes_the_central_seven_eighths():
    augmentation = plain(preset="imagenet", size=28)
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(augmentation.test(x), x[:, :, 2:30, 2:30].float() / 255)  # no resizing needed
    wide = images(2, 3, 32, 48)
    torch.testing.assert_close(augmentation.test(wide), wide[:, :, 2:30, 10:38].float() / 255)


def test_testing_resizes_what_it_cut():
    x = images(2, 3, 32, 32)
    half = plain(preset="imagenet", size=14).test(x)
    assert half.shape == (2, 3, 14, 14)
    framed = x.clone()
    framed[:, :, :2], framed[:, :, 30:], framed[:, :, :, :2], framed[:, :, :, 30:] = 255, 255, 255, 255
    assert torch.equal(plain(preset="imagenet", size=14).test(framed), half)
    middle = x[:, :, 2:30, 2:30].float() / 255
    # Halving with antialiasing weighs four pixels a side with 1/8, 3/8, 3/8, 1/8.
    weights = torch.tensor([1, 3, 3, 1]) / 8
    expected = torch.einsum("bcij,i,j->bc", middle[:, :, 9:13, 5:9], weights, weights)
    torch.testing.assert_close(half[:, :, 5, 3], expected, rtol=1e-5, atol=1e-5)


# --- options ---------------------------------------------------------------------------------------------------------


def test_own_values_override_those_of_the_preset():
    got = bound(preset="cifar", pad=0, flip=False, brightness=0.0)
    assert (got.pad, got.flip, got.brightness, got.size) == (0, False, 0.0, None)
    x = images(4, 3, 32, 32)
    assert torch.equal(got.train(x, seeded()), got.test(x))
    assert (bound(preset="cifar").pad, bound(preset="cifar").flip) == (4, True)
    assert bound(preset="cifar").brightness == pytest.approx(63 / 255)
    assert bound(pad=3).pad == 3


def test_statistics_come_from_the_user_then_the_data_set_then_the_preset():
    own, data = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ([0.7, 0.8, 0.9], [0.3, 0.2, 0.1])
    shape = (3, 8, 8)

    def stats(augmentation):
        return augmentation.mean.flatten().tolist(), augmentation.std.flatten().tolist()

    def chosen(preset, *given, **mine):
        return stats(Augmentation(preset=preset, **mine).bind(shape, *given, CPU))

    for preset in ("none", "cifar"):
        assert np.allclose(chosen(preset, *data, mean=own[0], std=own[1]), own)
        assert np.allclose(chosen(preset, *data), data)
        assert np.allclose(chosen(preset, *data, std=own[1]), (data[0], own[1]))
    assert np.allclose(chosen("cifar", None, None), CIFAR)
    assert np.allclose(chosen("imagenet", None, None), IMAGENET)
    assert np.allclose(chosen("none", None, None), 0.5)


def test_statistics_for_other_channels_are_refused():
    with pytest.raises(UserError, match=r"3 means .* 1 channel.*'cifar'.*augmentation\.mean"):
        bound((1, 8, 8), preset="cifar")
    with pytest.raises(UserError, match="1 means and 2 standard deviations"):
        bound((2, 8, 8), mean=[0.5], std=[0.5, 0.5])
    with pytest.raises(UserError):
        Augmentation(std=[1.0]).bind((3, 8, 8), None, None, CPU)
    assert bound((1, 8, 8), preset="cifar", mean=[0.5], std=[0.5]).mean.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "options",
    [{"pad": -1}, {"brightness": -0.1}, {"brightness": 1.5}, {"std": [1.0, 0.0, 1.0]}, {"std": [1.0, -1.0, 1.0]}],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="augmentation"):
        bound(**options)


def test_a_negative_size_is_refused():
    with pytest.raises(UserError, match="size"):
        bound(size=-8)


def test_input_is_resized_by_means_of_areas_and_then_treated_as_if_stored_so():
    x = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    small = torch.empty(5, 3, 4, 4, dtype=torch.uint8)
    for row in range(4):
        for column in range(4):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].float()
            small[:, :, row, column] = patch.mean((2, 3)).round().to(torch.uint8)
    options = {"preset": "cifar", "pad": 1}
    resized = Augmentation(**options, input_size=4).bind((3, 8, 8), None, None, torch.device("cpu"))
    plain = Augmentation(**options).bind((3, 4, 4), None, None, torch.device("cpu"))
    assert torch.equal(resized.test(x), plain.test(small))
    draws = [torch.Generator().manual_seed(9) for _ in range(2)]
    assert torch.equal(resized.train(x, draws[0]), plain.train(small, draws[1]))
    with pytest.raises(UserError, match="input_size"):
        Augmentation(input_size=0).bind((3, 8, 8), None, None, torch.device("cpu"))
