"""Where a run's time went and what it computed, from ``results.json``: totals, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cil.errors import UserError
from cil.machine.compute import PHASES
from cil.units import mib


@dataclass(frozen=True)
class Costs:
    """What tasks cost together.

    Attributes:
        seconds: of the wall clock, by phase.
        images: on which gradient steps were made.
        training_flops: of gradient steps and of features for closed forms.
        forward_flops: of predicting one image at the end, None where that was not counted.
        process_bytes: the peak of the process's memory, None where the system does not tell.
        device_bytes: the peak of its GPU's, None without one.
    """

    seconds: dict[str, float]
    images: int
    training_flops: float
    forward_flops: float | None
    process_bytes: int | None
    device_bytes: int | None

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    @property
    def images_per_second(self) -> float | None:
        """Images trained on for each second of preparing them and learning; None without gradient steps."""
        busy = self.seconds["data"] + self.seconds["learning"]
        return self.images / busy if self.images and busy else None


def of_tasks(tasks: Sequence[dict[str, Any]]) -> Costs | None:
    """The costs of some tasks of ``results.json`` together; None if one does not tell, as in older files."""
    told = [task["compute"] for task in tasks if task.get("compute")]
    if not told or len(told) < len(tasks):
        return None
    forward = [one["forward_flops"] for one in told if one["forward_flops"] is not None]
    peaks = {
        kind: max((one["peak_bytes"][kind] for one in told if one["peak_bytes"][kind] is not None), default=None)
        for kind in ("process", "device")
    }
    return Costs(
        seconds={phase: sum(one["seconds"][phase] for one in told) for phase in PHASES},
        images=sum(one["images"] for one in told),
        training_flops=sum(one["training_flops"] for one in told),
        forward_flops=forward[-1] if forward else None,
        process_bytes=peaks["process"],
        device_bytes=peaks["device"],
    )


def profile(content: dict[str, Any], name: str) -> RenderableType:
    """Where the time of a run went: seconds by phase, task by task and in all, and what was computed in them.

    Args:
        content: ``results.json``, of a run that is complete or not.
        name: of the run, for the title.

    Raises:
        UserError: no task is done, or the file does not tell.
    """
    tasks = content["tasks"]
    whole = of_tasks(tasks)
    if whole is None:
        why = "no task is done yet" if not tasks else "its version did not measure yet where time went; run it again"
        raise UserError(f"{name}: {why}")
    machine = content["machine"]
    where = f"{machine['name']}, {machine['device']}, {machine['threads']} threads, precision {machine['precision']}"
    table = Table(title=f"{name} on {where}", box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for column in ("task", *PHASES, "seconds", "images/s", "TFLOP", "GFLOP/s", "peak MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    groups = _phases(content) if content.get("stream") else [[task] for task in tasks]
    for number, group in enumerate(groups, start=1):
        part = of_tasks(group)
        assert part is not None, "all tasks tell"
        table.add_row(str(number), *_cells(part))
    table.add_section()
    table.add_row("all", *_cells(whole), style="bold")
    return Group(table, _shares(whole))


def _phases(content: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The pieces of a stream, by phase."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for task in content["tasks"]:
        groups.setdefault(content["stream"]["phases"][task["task"]], []).append(task)
    return list(groups.values())


def _cells(costs: Costs) -> list[str]:
    rate, busy = costs.images_per_second, costs.seconds["data"] + costs.seconds["learning"]
    return [
        *(f"{costs.seconds[phase]:.1f}" for phase in PHASES),
        f"{costs.total:.1f}",
        "-" if rate is None else f"{rate:.0f}",
        f"{costs.training_flops / 1e12:.3g}",
        "-" if rate is None else f"{costs.training_flops / 1e9 / busy:.3g}",  # a closed form's algebra is not counted
        "-" if costs.process_bytes is None else mib(costs.process_bytes, 0),
    ]


def _shares(costs: Costs) -> Table:
    """A bar for each phase, the largest first."""
    table = Table.grid(padding=(0, 1))
    for phase, seconds in sorted(costs.seconds.items(), key=lambda item: -item[1]):
        share = seconds / costs.total if costs.total else 0.0
        table.add_row(phase, Text(f"{100 * share:.1f} %", justify="right"), Bar(1, 0, share, width=40))
    return table
