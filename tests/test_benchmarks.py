"""Each benchmark runs on toy data, and prints what an independent count gives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import exemplar_codecs
from cil.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def toy(tmp_path):
    """Twelve training images of 16 x 16 colour pixels, and the name of their data set."""
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    images[:, 8:] = 40  # a part without noise, which files store in few bytes
    labels = np.arange(12) % 2
    np.savez(tmp_path / "toy.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=["a", "b"])
    return images, f"npz:{tmp_path / 'toy.npz'}"


def saved(image, **options):
    out = io.BytesIO()
    Image.fromarray(image).save(out, **options)
    return out


def test_the_table_of_codecs_is_what_pillow_gives(toy, capsys):
    images, data = toy
    words = ["--data", data, "--images", "12", "--quality", "60", "--rounds", "1"]
    assert exemplar_codecs.main(words) == 0
    shown = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in shown.splitlines() if line.startswith("|")]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert list(rows) == ["raw", "png", "webp", "jpeg 60"]
    assert rows["raw"] == ["768", "0", "yes", "0.00", "-", "-"]
    png = np.mean([len(saved(image, format="png", optimize=True).getvalue()) for image in images])
    assert rows["png"][:4] == [f"{png:.0f}", "0", "yes", "0.00"]
    assert rows["webp"][1:4] == ["0", "yes", "0.00"]
    files = [saved(image, format="jpeg", quality=60) for image in images]
    own, shared, lossless, error = rows["jpeg 60"][:4]
    whole = np.mean([len(file.getvalue()) for file in files])
    assert int(own) + int(shared) + len(b"\xff\xd9") == pytest.approx(whole, abs=0.5)
    off = np.mean(
        [np.abs(np.asarray(Image.open(file), float) - image) for file, image in zip(files, images, strict=True)]
    )
    assert (lossless, error) == ("no", f"{off:.2f}")
    assert f"12 training images of {data}, 16 x 16 x 3, seed 0" in shown


def test_the_seed_chooses_the_images(toy):
    images, data = toy

    def chosen(seed):
        options = exemplar_codecs.parser().parse_args(["--data", data, "--images", "5", "--seed", str(seed)])
        return [image.tobytes() for image in exemplar_codecs.drawn(options)]

    assert chosen(0) == chosen(0) != chosen(1)
    assert len(set(chosen(0))) == 5
    assert set(chosen(0)) <= {image.tobytes() for image in images}


@pytest.mark.parametrize("n", [0, 13])
def test_more_images_than_there_are_are_refused(toy, n):
    with pytest.raises(UserError, match=rf"--images: {n}; legal: 1 to 12"):
        exemplar_codecs.main(["--data", toy[1], "--images", str(n)])


def test_each_benchmark_stands_in_the_readme_with_its_command():
    text = (BENCHMARKS / "README.md").read_text()
    names = [path.name for path in BENCHMARKS.glob("*.py")]
    assert names
    for name in names:
        assert f"    python benchmarks/{name} " in text
