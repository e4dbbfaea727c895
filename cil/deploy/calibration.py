"""What calibrated prototypes changed: which base classes new ones resemble, how far they moved, and what that decided.

For a finished few-shot run of a method that moves the prototypes of new classes, such as TEEN.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cil import shown
from cil.deploy.finished import Finished
from cil.errors import UserError
from cil.evaluation import few_shot
from cil.files import write_atomic
from cil.learning.inference import features_of
from cil.ops.closed_form.calibration import similarity_weights
from cil.ops.closed_form.means import ClassMeans

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_BASE = 30  # base classes in the figure
NAMED = 3  # most similar base classes in the table


@runtime_checkable
class Calibrating(Protocol):
    """A strategy with prototypes of which those of new classes are moved by those of base classes."""

    prototypes: ClassMeans
    n_base: int
    tau: float

    def rows(self) -> Tensor:
        """Prototypes as they score, (K, D)."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Before and after, for N new and B base classes.

    Attributes:
        method: name of the run's method.
        scenario: name of its scenario.
        base: names of the base classes.
        new: names of the new classes.
        session: of each new class, from 1.
        similarity: cosine between plain prototypes of new and base classes, (N, B).
        weights: what each new class takes of each base class, (N, B), rows sum to 1.
        moved: angle between plain and calibrated prototype in degrees, (N,).
        nearest: cosine with the most similar base class before and after, (N, 2).
        recall: accuracy of each new class before and after, (N, 2).
        numbers: of ``cil.evaluation.few_shot.after_task`` before and after.
    """

    method: str
    scenario: str
    base: list[str]
    new: list[str]
    session: list[int]
    similarity: np.ndarray
    weights: np.ndarray
    moved: np.ndarray
    nearest: np.ndarray
    recall: np.ndarray
    numbers: tuple[dict[str, float], dict[str, float]]


def measure(run: Finished) -> Calibration:
    """Score the test images of a finished run with and without calibration.

    Raises:
        UserError: the method calibrates no prototypes, or there is no new class.
    """
    strategy, scenario = run.strategy, run.experiment.scenario
    if not isinstance(strategy, Calibrating):
        raise UserError(f"{run.content['name']} does not calibrate prototypes; TEEN does")
    seen = scenario.tasks[run.task].n_seen
    n = strategy.n_base
    if seen <= n:
        raise UserError(f"after task {run.task + 1} there are no new classes, so nothing was calibrated")
    test = scenario.test.of_classes(range(seen))
    features = F.normalize(features_of(strategy, test, run.experiment.place(run.task)).double(), dim=1)
    plain, rows = (F.normalize(part, dim=1) for part in (strategy.prototypes.means, strategy.rows()))
    confusions = [_confusion(features @ own.T, test.labels, seen) for own in (plain, rows)]
    similarity = plain[n:] @ plain[:n].T  # (N, B)
    most = similarity.argmax(1)
    after = (rows[n:] * plain[most]).sum(1)
    angles = torch.rad2deg(torch.acos((plain[n:] * rows[n:]).sum(1).clamp(-1, 1)))
    owner = scenario.task_of_class
    return Calibration(
        method=run.content["name"],
        scenario=scenario.name,
        base=list(scenario.class_names[:n]),
        new=list(scenario.class_names[n:seen]),
        session=owner[n:seen].tolist(),
        similarity=similarity.numpy(force=True),
        weights=similarity_weights(plain[n:], plain[:n], strategy.tau).numpy(force=True),
        moved=angles.numpy(force=True),
        nearest=torch.stack([similarity.max(1).values, after], 1).numpy(force=True),
        recall=np.stack([np.diagonal(c)[n:] / c.sum(1)[n:] for c in confusions], 1),
        numbers=(few_shot.after_task(confusions[0], n), few_shot.after_task(confusions[1], n)),
    )


def _confusion(scores: Tensor, labels: Tensor, k: int) -> np.ndarray:
    pairs = labels * k + scores.argmax(1).cpu()
    return torch.bincount(pairs, minlength=k * k).view(k, k).numpy()


def as_csv(found: Calibration) -> str:
    """A line for each new class."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    likes = [name for rank in range(1, NAMED + 1) for name in (f"base_{rank}", f"cosine_{rank}", f"weight_{rank}")]
    ends = ["degrees_moved", "cosine_after", "accuracy_before", "accuracy_after"]
    writer.writerow(["session", "class", *likes, *ends])
    for i, name in enumerate(found.new):
        order = np.argsort(-found.similarity[i], kind="stable")[:NAMED]
        cells = [(found.base[b], f"{found.similarity[i, b]:.4f}", f"{found.weights[i, b]:.4f}") for b in order]
        cells += [("", "", "")] * (NAMED - len(order))
        numbers = (found.moved[i], found.nearest[i, 1], *found.recall[i])
        line = [found.session[i], name, *(c for group in cells for c in group), *(f"{v:.4f}" for v in numbers)]
        writer.writerow(map(shown.cell, line))
    return file.getvalue()


def lines(found: Calibration) -> list[str]:
    """What changed in all, for people: percent without and with calibration."""
    before, after = found.numbers
    told = [f"{'in %, after the last session':<32}{'plain':>8}{'calibrated':>12}"]
    for name in few_shot.BY_TASK:
        label = name.replace("_", " ")
        told.append(f"{label:<32}{100 * before[name]:>8.1f}{100 * after[name]:>12.1f}")
    turn = f"{found.moved.mean():.1f} degrees on average, at most {found.moved.max():.1f}"
    return [*told, f"prototypes of new classes moved by {turn}"]


def figure(found: Calibration) -> bytes:
    """The three charts as PNG: similarity of new and base classes, how prototypes moved, and what that decided."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(found.new)
    height = max(4.2, 1.6 + 0.16 * n)
    canvas = Figure(figsize=(15, height), layout="constrained", dpi=120)
    left, middle, right = canvas.subplots(1, 3, width_ratios=(2.2, 1, 1))
    image = _similarity(left, found)
    canvas.colorbar(image, ax=left, label="cosine of plain prototypes", shrink=0.8)
    _moves(middle, found)
    _decisions(right, found)
    canvas.suptitle(_drawn(f"{found.method} on {found.scenario}"), fontsize=11)
    file = io.BytesIO()
    FigureCanvasAgg(canvas).print_png(file)
    return file.getvalue()


def _similarity(axes: Axes, found: Calibration) -> Any:
    """The base classes that weigh most, most similar columns first; a dot marks each new class's largest weight."""
    columns = np.argsort(-found.weights.max(0), kind="stable")[:SHOWN_BASE]
    image = axes.imshow(found.similarity[:, columns], cmap="Blues", aspect="auto", interpolation="nearest")
    place = {int(base): x for x, base in enumerate(columns)}
    largest = found.weights.argmax(1)
    marked = [(place[int(base)], line) for line, base in enumerate(largest) if int(base) in place]
    x, y = zip(*marked, strict=True)
    axes.scatter(x, y, s=10, color="#D55E00")
    axes.set_xticks(range(len(columns)), [_short(found.base[base]) for base in columns], rotation=90, fontsize=6)
    axes.set_yticks(range(len(found.new)), [_short(name) for name in found.new], fontsize=6)
    rest = len(found.base) - len(columns)
    axes.set_xlabel("base classes" + f" ({rest} with smaller weights are not shown)" * (rest > 0))
    axes.set_ylabel("new classes, session by session")
    axes.set_title("Which base classes new ones resemble (dot: the one that weighs most)", fontsize=10)
    return image


def _moves(axes: Axes, found: Calibration) -> None:
    """An arrow for each new class from its cosine before to that after."""
    y = np.arange(len(found.new))
    axes.hlines(y, found.nearest[:, 0], found.nearest[:, 1], color="#9CC3E4", linewidth=1.2)
    axes.scatter(found.nearest[:, 0], y, s=10, color="#8C8C8C", label="plain")
    axes.scatter(found.nearest[:, 1], y, s=14, color="#0072B2", label="calibrated", marker=">")
    axes.set_ylim(len(found.new) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel("cosine with the most similar base class")
    axes.set_title(f"How far they moved: {found.moved.mean():.1f}° on average", fontsize=10)
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _decisions(axes: Axes, found: Calibration) -> None:
    """Points for the new classes, larger where several fall together, and the numbers of all classes."""
    top = math.ceil(10 * max(0.1, float(np.nanmax(found.recall)))) * 10
    axes.plot([0, top], [0, top], color="#8C8C8C", linewidth=1, linestyle=":")
    places, counts = np.unique(100 * found.recall, axis=0, return_counts=True)
    axes.scatter(places[:, 0], places[:, 1], s=16 * counts, color="#0072B2", alpha=0.8, linewidth=0)
    axes.set_aspect("equal", anchor="N")
    axes.set_xlim(-2, top + 2)
    axes.set_ylim(-2, top + 2)
    axes.set_xlabel("accuracy of a new class, plain, %")
    axes.set_ylabel("calibrated, %")
    before, after = found.numbers
    keys = (("base", "base_accuracy"), ("new", "new_accuracy"), ("harmonic mean", "harmonic_mean"))
    told = "\n".join(f"{name} {100 * before[key]:.1f} → {100 * after[key]:.1f} %" for name, key in keys)
    axes.text(0.03, 0.97, told, transform=axes.transAxes, va="top", fontsize=8)
    axes.set_title("What that decided", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    return _drawn(name if len(name) <= 18 else "…" + name[-17:])


def _drawn(text: str) -> str:
    """Dollars would start a formula, and control characters have no shape."""
    return shown.plain(text).replace("$", r"\$")


def write(found: Calibration, out: Path) -> list[Path]:
    """Write ``calibration.png`` and ``calibration.csv`` to a folder, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    contents = {"calibration.png": figure(found), "calibration.csv": as_csv(found).encode()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomic(out / name, content)
    except OSError as error:
        raise UserError(f"--out: {out}: {error.strerror}") from error
    return [out / name for name in contents]
