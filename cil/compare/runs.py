"""Result files of finished runs: found, read, checked, and asked what a comparison needs to know."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cil.errors import UserError
from cil.memory.ledger import STATE, STORED
from cil.units import mib

SCHEMA = 1
# Says where, when and on what a run was computed, or what else it reports, not what it computes. The scenario is in the
# fingerprint, the memory in the setting, the strategy's class in the name.
NO_OPTIONS = (
    *("run_dir", "resume", "overwrite", "dry_run", "checkpoint_every", "root", "data", "device", "threads"),
    *("seed", "seeds", "evaluators", "scenario"),
)
# What a file that does not say it means.
UNSAID = {"selected_by": "last epoch", "memory.codec": "raw", "memory.code_new": False}
QUOTA = ("memory.exemplars", "memory.per_class", "memory.budget", "memory.align", "memory.convention")
# Bytes carried, from the network to the exemplars. Older files do not divide parameters and buffers.
UNDIVIDED = ("parameters", "buffers")
CATEGORIES = (*STATE, *UNDIVIDED, *STORED, "other")
NEEDED = (
    *("config", "seeds", "versions", "machine", "fingerprint", "scenario", "strategy", "evaluator"),
    *("out_of_budget", "metrics", "task_confusion", "tasks", "command"),
)


@dataclass(frozen=True)
class Setting:
    """How much memory a run was allowed: a budget in bytes, a number of exemplars, none, or everything.

    Args:
        kind: ``none``, ``exemplars``, ``per_class``, ``budget`` or ``all``.
        number: exemplars, exemplars for each class, or bytes; 0 for the other two.
        convention: in which a budget counts, ``strict`` or ``paper``; empty without a budget.
        align: when a budget has to be met, ``final`` or ``always``; empty without a budget.
    """

    kind: str
    number: int = 0
    convention: str = ""
    align: str = ""

    @property
    def text(self) -> str:
        """What tables show, such as ``23.54 MiB paper`` or ``2000 exemplars``."""
        if self.kind == "budget":
            always = " at every task" if self.align == "always" else ""
            return f"{mib(self.number)} MiB {self.convention}{always}"
        names = {"none": "no exemplars", "all": "all images", "per_class": f"{self.number} exemplars a class"}
        return names.get(self.kind, f"{self.number} exemplars")

    @property
    def order(self) -> tuple[int, int, str, str]:
        """Sorts settings from the least memory of a kind to the most."""
        kinds = ("none", "exemplars", "per_class", "budget", "all")
        return kinds.index(self.kind), self.number, self.convention, self.align


@dataclass(frozen=True)
class LeftOut:
    """A result file that is not compared, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One complete run.

    Args:
        file: its result file, as it was found.
        content: of that file; see ``docs/results_schema.md``.
    """

    file: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """The method's label in tables; the class where none is given."""
        return str(self.content.get("name") or self.content["strategy"].rpartition(".")[2])

    @property
    def seeds(self) -> tuple[int, int, int]:
        """Of initial weights, data and exemplars: runs are paired where all three agree."""
        init, data, exemplars = (self.content["seeds"][key] for key in ("init", "data", "exemplars"))
        return init, data, exemplars

    @property
    def scenario(self) -> tuple[str, int]:
        """Equal for runs that are compared: those of one fingerprint or, where each run's seed draws the tasks, of one
        family, and of one number of tasks."""
        family = self.content["scenario"].get("family")
        return str(family or self.content["fingerprint"]), len(self.ends)

    @cached_property
    def setting(self) -> Setting:
        """How much memory it was allowed."""
        budget = self.content.get("budget")
        memory = self.content["config"]["memory"]
        if self.content["out_of_budget"]:
            return Setting("all")
        if budget:
            convention, align = str(budget.get("convention", "strict")), str(budget.get("align", "final"))
            return Setting("budget", int(budget["bytes"]), convention, align)
        if memory.get("per_class"):
            return Setting("per_class", int(memory["per_class"]))
        exemplars = memory.get("exemplars")
        return Setting("exemplars", int(exemplars)) if exemplars else Setting("none")

    @cached_property
    def options(self) -> dict[str, Any]:
        """What was set, named as on the command line, without seeds, places, scenario and memory; null is unset.

        The precision is the one that was computed in.
        """
        found: dict[str, Any] = {}
        for key, value in self.content["config"].items():
            if key in NO_OPTIONS:
                continue
            if key == "strategy":
                value = (value or {}).get("init_args") or {}
            if isinstance(value, dict):
                found |= {f"{key}.{name}": item for name, item in value.items()}
            else:
                found[key] = value
        found["precision"] = self.content["machine"].get("precision", found.get("precision"))
        # Two methods may share a name, and two runs of one method may report models that were chosen differently.
        found |= {key: self.content.get(key) for key in ("strategy", "selected_by", "pretrained_classes")}
        if self.codec != "jpeg":
            found.pop("memory.quality", None)  # of no use to the others
        found = {key: value for key, value in found.items() if key not in QUOTA and value != UNSAID.get(key)}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def codec(self) -> str:
        """How exemplars are stored: ``raw``, ``png``, ``webp`` or ``jpeg``."""
        return str(self.content["config"]["memory"].get("codec") or UNSAID["memory.codec"])

    def number(self, evaluator: str, metric: str) -> float | None:
        """One of the numbers of a run, by its name in the result file; of those of each session the last."""
        places = [self.content, self.content.get("few_shot") or {}, self.content.get("stream") or {}]
        for place in places:
            if metric in (own := place.get("metrics", {}).get(evaluator, {})):
                value = own[metric]
                return value[-1] if isinstance(value, list) else value
        raise KeyError(f"{self.file} has no {metric} of {evaluator}")

    @property
    def exemplar_free(self) -> bool:
        """Whether the method says that it keeps no exemplars."""
        return bool(self.content.get("exemplar_free", False))

    @property
    def ends(self) -> list[int]:
        """Indices of the tasks that are shown: all of them, or in a stream the pieces at which a phase ends."""
        phases = (self.content.get("stream") or {}).get("phases") or range(len(self.content["tasks"]))
        return [t for t in range(len(phases)) if t + 1 == len(phases) or phases[t + 1] != phases[t]]

    @property
    def task_sizes(self) -> list[int]:
        """New classes of each task that is shown."""
        sizes, starts = self.content["scenario"]["task_sizes"], [0, *(end + 1 for end in self.ends)]
        return [sum(sizes[start : end + 1]) for start, end in zip(starts, self.ends, strict=False)]

    @property
    def task_bytes(self) -> list[dict[str, int]]:
        """Bytes carried after each task by category, beside ``strict`` and ``paper``."""
        return [{**ledger(task["bytes"]), **_totals(task["bytes"])} for task in self.content["tasks"]]

    @property
    def image_bytes(self) -> float:
        """What one more exemplar costs at the end, in bytes with its label; 0 if there is none."""
        last = self.content["tasks"][-1]
        total = sum(last["bytes"].get(key, 0) for key in STORED)
        return total / last["exemplars"] if last["exemplars"] else 0.0

    @property
    def full(self) -> bool:
        """Whether no further image could be kept: none ever is, or all are."""
        tasks = self.content["tasks"]
        return tasks[-1]["exemplars"] in (0, sum(task["train_images"] for task in tasks))

    @property
    def seconds(self) -> float:
        """Over all tasks."""
        return float(sum(task["seconds"] for task in self.content["tasks"]))

    @property
    def grows(self) -> bool:
        """Whether its backbone has more bytes at the end than after the first task, by more than one percent."""
        first, last = (_backbone(self.content["tasks"][t]["bytes"]) for t in (0, -1))
        return last > 1.01 * first


def ledger(measured: dict[str, int]) -> dict[str, int]:
    """The bytes of a task by category, summing to ``strict``.

    Args:
        measured: ``bytes`` of a task in a result file. Where the network is divided into its parts these are taken,
            else parameters and buffers as they are; what no category explains is ``other``.
    """
    divided = all(key in measured for key in STATE)
    found = {key: measured.get(key, 0) for key in (*(STATE if divided else UNDIVIDED), *STORED)}
    found["other"] = measured["strict"] - sum(found.values())
    return {key: value for key, value in found.items() if value}


def _totals(measured: dict[str, int]) -> dict[str, int]:
    return {key: measured[key] for key in ("strict", "paper")}


def _backbone(measured: dict[str, int]) -> int:
    return measured.get("backbone", measured["paper"] - measured["exemplars"])


# --- finding and reading ----------------------------------------------------------------------------------------------


def read(places: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """The complete runs at some places, and what was left out.

    Args:
        places: result files, run folders, or folders to search: a folder with a ``results.json`` is a run, in another
            one every JSON file that is a result is taken.

    Raises:
        UserError: a place is not there, a file named is no result, or no complete run is found.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    seen: set[Path] = set()
    for place in map(Path, places):
        found = list(_files(place))
        if not found:
            raise UserError(
                f"{place}: no results in this folder. A run's folder has results.json, which is written as it learns."
            )
        for path, named in found:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            _take(path, named, runs, left_out)
    if not runs:
        told = "; ".join(f"{item.file}: {item.reason}" for item in left_out[:5])
        raise UserError(f"no complete run among {len(seen)} result files: {told}" + "; ..." * (len(left_out) > 5))
    return runs, left_out


def _files(place: Path) -> Iterator[tuple[Path, bool]]:
    """Result files at a place, each with whether it must be one."""
    if place.is_file():
        yield place, True
        return
    if not place.is_dir():
        raise UserError(f"{place}: {os.strerror(2)}. Give run folders, results.json files or folders that hold them.")
    for folder, below, names in os.walk(place):
        if "results.json" in names:
            below.clear()  # what else is in a run's folder are its checkpoints
            yield Path(folder, "results.json"), True
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json") and _looks_like_results(Path(folder, name)):
                yield Path(folder, name), False


def _looks_like_results(path: Path) -> bool:
    content = _json(path)
    return isinstance(content, dict) and {"schema", "status", "fingerprint"} <= set(content)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError):
        return None


def _no_number(text: str) -> float:
    """JSON has no NaN, and results write what is undefined as null."""
    raise ValueError(text)


def _take(path: Path, named: bool, runs: list[Run], left_out: list[LeftOut]) -> None:
    content = _json(path)
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path}: not a result file; results.json of a run is one (docs/results_schema.md)")
    if content["schema"] != SCHEMA:
        left_out.append(LeftOut(str(path), f"schema {content['schema']}; this version reads {SCHEMA}"))
    elif content.get("status") != "complete":
        error = f" ({content['error']})" if content.get("error") else ""
        left_out.append(LeftOut(str(path), f"status {content.get('status')}{error}"))
    elif (fault := _fault(content)) is not None:
        if named:
            raise UserError(f"{path}: {fault}, so it is not a whole result file (docs/results_schema.md)")
        left_out.append(LeftOut(str(path), fault))
    else:
        runs.append(Run(str(path), content))


def _fault(content: dict[str, Any]) -> str | None:
    """What a complete result lacks; None if nothing."""
    missing: Iterable[str] = [key for key in NEEDED if key not in content]
    if missing:
        return f"without {', '.join(missing)}"
    try:
        wanted, done = len(content["scenario"]["task_sizes"]), len(content["tasks"])
        if not done or wanted != done:
            return f"complete, but with {done} of {wanted} tasks"
        run = Run("", content)
        _ = (
            run.name,
            run.seeds,
            run.setting,
            run.options,
            run.task_bytes,
            run.image_bytes,
            run.seconds,
            run.grows,
            run.full,
            [content["tasks"][end] for end in run.ends],
        )
        scores = content["metrics"][content["evaluator"]]
        _ = [scores[key] for key in ("average_incremental_accuracy", "last_accuracy", "forgetting", "seen_accuracy")]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        return f"damaged ({type(error).__name__}: {error})"
    return None
