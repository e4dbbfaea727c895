"""Bytes, error and speed of each codec for exemplars: ``python benchmarks/exemplar_codecs.py --data npz:PATH``."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

import numpy as np
from PIL import features

from cil.command import config
from cil.errors import UserError
from cil.memory.codecs import CODECS, Codec, make_codec
from cil.report.report import commit
from scenarios.datasets import load

HEADER = ("codec", "bytes an image", "bytes stored once", "lossless", "mean absolute error", "encoded/s", "decoded/s")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="exemplar_codecs.py", allow_abbrev=False, description=__doc__)
    made.add_argument("--data", default="digits", help="as in tools/train.py, such as npz:data/cifar100.npz")
    made.add_argument("--root", default="data", help="where downloaded data sets are kept")
    made.add_argument("--images", type=int, default=1000, help="training images, drawn without replacement")
    made.add_argument("--quality", type=int, default=75, help="of jpeg, 1 to 95")
    made.add_argument("--rounds", type=int, default=10, help="rounds of each timing, of which the fastest counts")
    made.add_argument("--seed", type=int, default=0, help="of the draw of images")
    return made


def drawn(options: argparse.Namespace) -> np.ndarray:
    """The images, uint8 (N, H, W, C), in the order of the data set."""
    train = load(options.data, root=options.root).train
    if not 1 <= options.images <= len(train):
        raise UserError(f"--images: {options.images}; legal: 1 to {len(train)}, the training images of {options.data}")
    index = np.random.default_rng(options.seed).choice(len(train), options.images, replace=False)
    return train.raw(np.sort(index))


def seconds(work: Callable[[], np.ndarray], rounds: int) -> tuple[np.ndarray, float]:
    """What the work gives, and the processor time of its fastest round; other work on the machine counts little."""
    times = []
    for _ in range(max(1, rounds)):
        began = time.process_time()
        given = work()
        times.append(time.process_time() - began)
    return given, min(times)


def row(name: str, codec: Codec, images: np.ndarray, rounds: int) -> tuple[str, ...]:
    """The codec's line of the table; its bytes are those of the images, without their labels and lengths."""
    items, encoding = seconds(lambda: codec.encode(images), rounds)
    shown, decoding = seconds(lambda: codec.decode(items), rounds)
    error = np.abs(shown.astype(np.int16) - images).mean()
    speeds = ("-", "-") if name == "raw" else [f"{len(images) / spent:,.0f}" for spent in (encoding, decoding)]
    lossless = "yes" if np.array_equal(shown, images) else "no"
    return name, f"{codec.sizes(items).mean():,.0f}", f"{len(codec.shared):,}", lossless, f"{error:.2f}", *speeds


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    images = drawn(options)
    height, width, channels = images.shape[1:]
    rows = []
    for name in CODECS:
        codec = make_codec(name, (channels, height, width), options.quality)
        title = f"{name} {options.quality}" if name == "jpeg" else name
        rows.append(row(title, codec, images, options.rounds))
    of_pillow = ", ".join(f"{name} {features.version(name)}" for name in ("libjpeg_turbo", "webp", "zlib"))
    print(table(rows))
    print()
    print(f"{len(images):,} training images of {options.data}, {height} x {width} x {channels}, seed {options.seed};")
    print(f"images a second of processor time, the fastest of {options.rounds} rounds on one thread.")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, Pillow {version('pillow')} ({of_pillow}),")
    print(f"{os.cpu_count()}-core {platform.machine()} CPU, commit {commit()}.")
    return 0


if __name__ == "__main__":
    config.main(main)
