"""The charts of a comparison as PNG files, and the colour, marker and line that a method has in every chart."""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cil.compare.comparison import METRICS, Comparison, Row, Section, Spread
from cil.compare.runs import CATEGORIES, Setting
from cil.shown import plain
from cil.units import MIB

# Seven colours that stay at least 0.1 apart in OKLab, and 0.09 on black, when simulated for protanopia, deuteranopia
# and tritanopia (Machado et al., TVCG 2009). Beyond seven, marker and line tell methods apart.
LIGHT = ("#0072B2", "#D55E00", "#1BA784", "#9C1F5A", "#9A86F5", "#1E1E1E", "#D0A200")
DARK = ("#4AA8EC", "#F5853A", "#4FE0C4", "#C4527E", "#7F72F0", "#F0F0F0", "#E6D84A")
BOUND = ("#7A7A7A", "#9A9A9A")
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dashdot")
# The network in blues, from the largest part to the smallest, what is kept of the data in browns.
CATEGORY_COLOURS = {
    "backbone": ("#1F4E79", "#3D78B4"),
    "head": ("#5C93C4", "#6FA8DC"),
    "normalisation": ("#9CC3E4", "#A9CDEE"),
    "statistics": ("#CFE2F2", "#D5E6F5"),
    "parameters": ("#2B6197", "#3D78B4"),
    "buffers": ("#9CC3E4", "#A9CDEE"),
    "exemplars": ("#D98324", "#E0913A"),
    "labels": ("#F0C48A", "#F2CF9E"),
    "columns": ("#B5651D", "#C77F3F"),
    "lengths": ("#8A4B0F", "#A8642A"),
    "other": ("#8C8C8C", "#8C8C8C"),
}
PLOT_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v"}
PLOT_MARKERS |= {"cross": "P", "x": "X", "star": "*"}
PLOT_DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
SHARES = LinearSegmentedColormap.from_list("shares", ["#FFFFFF", "#7FB2DB", "#12395F"])


@dataclass(frozen=True)
class Style:
    """How a method is drawn: colours on white and on black, and names of marker and line as plotly has them."""

    light: str
    dark: str
    marker: str
    dash: str


def styles(comparison: Comparison) -> dict[str, Style]:
    """A style for each method, the same in every chart; upper bounds are grey and dotted."""
    bounds = {row.label for row in comparison.rows if row.upper_bound}
    found = {label: Style(*BOUND, "circle", "dot") for label in bounds}
    # The methods with the most rows get the colours that no other has.
    counts = Counter(row.label for row in comparison.rows)
    order = sorted((label for label in comparison.labels if label not in bounds), key=lambda label: -counts[label])
    for n, label in enumerate(order):
        cycle = n // len(LIGHT)
        marker = MARKERS[(n + cycle) % len(MARKERS)]
        found[label] = Style(LIGHT[n % len(LIGHT)], DARK[n % len(DARK)], marker, DASHES[cycle % len(DASHES)])
    return found


def figures(comparison: Comparison) -> dict[str, bytes]:
    """All figures as PNG: name without ending -> content."""
    looks = styles(comparison)
    return {
        "memory_curve": _memory_curve(comparison, looks),
        "task_curves": _task_curves(comparison, looks),
        "ledger": _ledger(comparison),
        "confusion": _confusion(comparison),
    }


def references(section: Section, setting: Setting) -> list[Row]:
    """Rows of other memories that may be shown beside those of one: without exemplars, and upper bounds."""
    return [row for row in section.rows if row.setting.kind in ("none", "all") and row.setting != setting]


def facets(section: Section) -> list[Setting]:
    """The memories that have a chart of their own; rows without exemplars and upper bounds are shown in each."""
    bounded = [setting for setting in section.settings if setting.kind not in ("none", "all")]
    return bounded or section.settings[:1]


def largest_share(comparison: Comparison) -> float:
    """Where the scale of all confusion charts ends: the largest share, rounded up to a tenth."""
    shares = [share for row in comparison.rows for line in row.confusion for share in line if share is not None]
    return min(1.0, math.ceil(10 * max(shares, default=1)) / 10) or 1.0


def _memory_curve(comparison: Comparison, looks: dict[str, Style]) -> bytes:
    figure, axes = _grid(2 * len(comparison.sections), 2, (4.6, 3.6))
    for index, section in enumerate(comparison.sections):
        for metric, title, place in zip(METRICS[:2], ("Average incremental", "Last"), axes[2 * index :], strict=False):
            for curve in section.curves:
                rows = [section.row(id) for id in curve.rows]
                memory = [row.final_bytes(section.convention) / MIB for row in rows]
                means, errors = _percent([row.metric(metric) for row in rows])
                place.errorbar(memory, means, errors, **_line(looks[curve.label]), capsize=2, label=curve.label)
            place.set_title(_heading(comparison, section, f"{title} accuracy over memory"))
            place.set_xlabel(f"carried at the end, MiB ({section.convention})")
            place.set_ylabel(f"{title} accuracy, %")
    return _png(figure, _method_legend(comparison, looks, bounds=False))


def _task_curves(comparison: Comparison, looks: dict[str, Style]) -> bytes:
    charts = [(section, setting) for section in comparison.sections for setting in facets(section)]
    figure, axes = _grid(len(charts), 3, (4.6, 3.6))
    for (section, setting), place in zip(charts, axes, strict=True):
        for row in [*section.at(setting), *references(section, setting)]:
            means, errors = _percent(row.seen_accuracy)
            look = looks[row.label]
            place.plot(row.classes_seen, means, **_line(look))
            if len(row.runs) > 1:
                place.fill_between(row.classes_seen, means - errors, means + errors, color=look.light, alpha=0.12, lw=0)
        place.set_title(_heading(comparison, section, setting.text))
        place.set_xlabel("classes seen")
        place.set_ylabel("accuracy on all of them, %")
        place.set_ylim(bottom=0)
    return _png(figure, _method_legend(comparison, looks, bounds=True))


def _ledger(comparison: Comparison) -> bytes:
    heights = [0.34 * len(section.rows) + 1.1 for section in comparison.sections]
    figure = Figure(figsize=(9, sum(heights) + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    shown: set[str] = set()
    for section, place in zip(comparison.sections, axes, strict=True):
        left = np.zeros(len(section.rows))
        for category in CATEGORIES:
            sizes = np.array([row.task_bytes[-1].get(category, 0) / MIB for row in section.rows])
            if sizes.any():
                shown.add(category)
                place.barh(range(len(sizes)), sizes, left=left, color=CATEGORY_COLOURS[category][0], height=0.72)
            left += sizes
        # An upper bound would leave no room for the others.
        limit = 1.05 * max(
            (size for size, row in zip(left, section.rows, strict=True) if not row.upper_bound), default=0
        )
        for number, size in enumerate(left):
            if 0 < limit < size:
                place.text(limit, number, f"{size:.0f} MiB ", ha="right", va="center", color="white", fontsize=8)
        place.set_xlim(0, limit or None)
        place.spines[["top", "right"]].set_visible(False)
        place.set_yticks(
            range(len(section.rows)), [_wrapped(_plain(row.title), 46) for row in section.rows], fontsize=8
        )
        place.margins(y=0.02)
        place.invert_yaxis()
        place.set_title(_heading(comparison, section, "Carried at the end"))
        place.set_xlabel("MiB (strict)")
        place.grid(axis="x", alpha=0.25)
    order = [category for category in CATEGORIES if category in shown]
    return _png(figure, [Patch(color=CATEGORY_COLOURS[category][0], label=category) for category in order])


def _confusion(comparison: Comparison) -> bytes:
    rows = [(section, row) for section in comparison.sections for row in section.rows]
    figure, axes = _grid(len(rows), 5, (2.5, 2.7))
    image, most = None, largest_share(comparison)
    for (section, row), place in zip(rows, axes, strict=True):
        shares = np.array([[np.nan if v is None else 100 * v for v in line] for line in row.confusion], dtype=float)
        image = place.imshow(shares, cmap=SHARES, vmin=0, vmax=100 * most)
        place.tick_params(labelsize=8)
        place.set_title(_wrapped(_heading(comparison, section, row.title), 30), fontsize=8)
        ticks = range(0, len(shares), max(1, math.ceil(len(shares) / 5)))
        place.set_xticks(ticks, [str(t + 1) for t in ticks])
        place.set_yticks(ticks, [str(t + 1) for t in ticks])
        place.set_xlabel("predicted task", fontsize=8)
        place.set_ylabel("true task", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, label="share of a task's test images, %", shrink=0.6)
    return _png(figure, [])


# --- drawing ----------------------------------------------------------------------------------------------------------


def _grid(n: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """n axes in rows of at most so many columns, each of this size in inches."""
    columns = min(columns, n)
    lines = math.ceil(n / columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines), dpi=150, layout="constrained")
    places = list(figure.subplots(lines, columns, squeeze=False).flat)
    for place in places[n:]:
        place.remove()
    for place in places[:n]:
        place.spines[["top", "right"]].set_visible(False)
    return figure, places[:n]


def _percent(spreads: list[Spread]) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations in percent; NaN and 0 where there are none."""
    means = np.array([np.nan if spread.mean is None else 100 * spread.mean for spread in spreads])
    return means, np.array([100 * (spread.deviation or 0) for spread in spreads])


def _line(look: Style) -> dict[str, Any]:
    line = {"color": look.light, "marker": PLOT_MARKERS[look.marker], "linestyle": PLOT_DASHES[look.dash]}
    return {**line, "markersize": 4.5, "linewidth": 1.6, "markeredgewidth": 0}


def _method_legend(comparison: Comparison, looks: dict[str, Style], bounds: bool) -> list[Line2D]:
    hidden = set() if bounds else {row.label for row in comparison.rows if row.upper_bound}
    labels = [label for label in comparison.labels if label not in hidden]
    return [Line2D([], [], label=_wrapped(_plain(label), 34), **_line(looks[label])) for label in labels]


def _heading(comparison: Comparison, section: Section, text: str) -> str:
    """The text, with the scenario where there are several."""
    several = len(comparison.sections) > 1
    return _plain(f"{section.name} ({section.fingerprint[:8]})\n{text}" if several else text)


def _plain(text: str) -> str:
    """Dollars would start a formula, and control characters have no shape."""
    return plain(text).replace("$", r"\$")


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""])


def _png(figure: Figure, legend: list[Line2D] | list[Patch]) -> bytes:
    if legend:
        # Outside, so that it never covers data.
        figure.legend(handles=legend, loc="outside right upper", frameon=False, fontsize=8)
    for place in figure.axes:
        place.title.set_fontsize(min(place.title.get_fontsize(), 10))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
