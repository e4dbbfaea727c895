"""Each benchmark runs on toy data, and prints what an independent count gives."""

from __future__ import annotations

import ast
import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import exemplar_codecs, formats
from cil.command import config
from cil.deploy.finished import reopen
from cil.errors import UserError
from scenarios.datasets import load
from tools import train

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def toy(tmp_path):
    """Twelve training images of 16 x 16 colour pixels, and the name of their data set."""
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    images[:, 8:] = 40  # a part without noise, which files store in few bytes
    labels = np.arange(12) % 2
    np.savez(tmp_path / "toy.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, classes=["a", "b"])
    return images, f"npz:{tmp_path / 'toy.npz'}"


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_a_benchmark_finds_the_checkout_without_installation(file, monkeypatch):
    root = str(BENCHMARKS.parent)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", root)])
    runpy.run_path(str(file), run_name="benchmark")
    imported = {
        line.module.split(".")[0] for line in ast.parse(file.read_text()).body if isinstance(line, ast.ImportFrom)
    }
    assert root in sys.path or not imported & {"cil", "scenarios", "benchmarks"}


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


def test_the_shares_of_formats_are_those_of_the_network(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    words = ["--config", "configs/protocols/digits.yaml", "--strategy", "replay", "--trainer.epochs", "1"]
    words += ["--precision", "32", "--memory.codec", "jpeg", "--memory.quality", "20", "--run_dir", str(run_dir)]
    with pytest.raises(SystemExit):
        config.main(train.main, words)
    capsys.readouterr()
    run = reopen(run_dir, load)
    n_old, test = run.experiment.scenario.tasks[-1].n_old, run.experiment.scenario.test
    monkeypatch.setattr("sys.argv", ["formats.py", str(run_dir)])
    formats.main()
    rows = [line.strip("| ").split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    grey = [Image.open(saved(image[:, :, 0], format="jpeg", quality=20)) for image in test.raw()]
    pictures = {"as they are": test.raw(), "jpeg": np.stack([np.asarray(image)[:, :, None] for image in grey])}
    for (name, *shown), (wanted, images) in zip(rows, pictures.items(), strict=True):
        x = run.experiment.place(0).augmentation.test(torch.from_numpy(images).permute(0, 3, 1, 2))
        with torch.no_grad():
            found = run.strategy(x).argmax(1)
        right, old = (found == test.labels).double(), test.labels < n_old
        shares = right.mean(), right[old].mean(), (found[old] >= n_old).double().mean(), right[~old].mean()
        assert [name, *shown] == [wanted, *(f"{100 * float(share):.1f}" for share in shares)]
    assert rows[0][1:] != rows[1][1:]
    last = run.content["metrics"]["linear"]["last_accuracy"]
    assert rows[0][1] == f"{100 * last:.1f}"


def test_each_benchmark_stands_in_the_readme_with_its_command():
    text = (BENCHMARKS / "README.md").read_text()
    names = [path.name for path in BENCHMARKS.glob("*.py")]
    assert names
    for name in names:
        assert f"    python benchmarks/{name} " in text
