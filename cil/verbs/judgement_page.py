"""A judgement as one HTML page that needs nothing else, and as the files of a folder."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cil.errors import UserError
from cil.files import check_folder, write_atomic
from cil.shown import plain
from cil.verbs.judging import Judgement

PAGE, DATA = "index.html", "evaluation.json"
NAMED = 40  # classes whose names fit beside a confusion matrix


def check(folder: Path) -> None:
    """Refuse a folder that holds anything but a former evaluation.

    Raises:
        UserError: names what is in the way.
    """
    check_folder("--out", folder)
    other = [path.name for path in folder.iterdir() if path.name not in (PAGE, DATA)] if folder.exists() else []
    if other:
        raise UserError(
            f"--out: {folder} holds something else than an evaluation ({', '.join(other[:3])}); name another"
        )


def write(judgement: Judgement, history: list[dict[str, Any]], folder: Path) -> None:
    """Write ``evaluation.json`` and ``index.html``, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / PAGE, page(judgement, history).encode())
    write_atomic(folder / DATA, json.dumps({**judgement.as_json(), "history": history}, indent=1).encode())


def page(judgement: Judgement, history: list[dict[str, Any]]) -> str:
    """The page as text; names are escaped, and there is no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["plain"] = plain
    return environment.get_template("evaluation.html").render(
        judged=judgement,
        classes=sorted(judgement.per_class.items(), key=lambda pair: pair[1]),
        counts=dict(zip(judgement.names, judgement.confusion.sum(1).tolist(), strict=True)),
        mistakes=judgement.worst_confusions(),
        confusion=_png(_confusion(judgement)),
        reliability=_png(_reliability(judgement)) if judgement.calibration else None,
        history=history,
    )


def _confusion(judgement: Judgement) -> Figure:
    """Rows of true classes, columns of predictions, each row as shares of its pictures."""
    size = min(9.0, 3.5 + 0.14 * len(judgement.names))
    figure, axes = _figure(size, size)
    shares = judgement.confusion / np.maximum(judgement.confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if len(judgement.names) <= NAMED:
        at, names = range(len(judgement.names)), [plain(name)[:24] for name in judgement.names]
        axes.set_xticks(at, names, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(at, names, fontsize=7, parse_math=False)
    return figure


def _reliability(judgement: Judgement) -> Figure:
    """Accuracy over probability; what lies on the diagonal is as sure as it is right."""
    figure, axes = _figure(4.2, 4.2)
    assert judgement.calibration is not None
    bins = judgement.calibration["bins"]
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="dashed")
    largest = max(one["images"] for one in bins)
    axes.scatter(
        [one["probability"] for one in bins],
        [one["accuracy"] for one in bins],
        s=[20 + 180 * one["images"] / largest for one in bins],
        color="#0072B2",
    )
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="mean probability", ylabel="accuracy")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Figure) -> str:
    """As an address that holds the picture itself."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
