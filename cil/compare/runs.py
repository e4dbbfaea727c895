"""Finished runs, asked what a comparison needs to know of their result files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cil.memory.ledger import STATE, STORED
from cil.renamed import current
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
class Run:
    """One complete run.

    Args:
        file: its result file, as it was found.
        content: of that file; see ``docs/results_schema.md``. Its shape is that of :mod:`cil.compare.shape`.
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
        found["strategy"] = current(found["strategy"])  # files of before have the module's former name
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

    def check(self) -> None:
        """Ask for everything at once, so that whatever is wrong beyond the shape of the file shows at once, too."""
        _ = (self.name, self.seeds, self.scenario, self.setting, self.options, self.codec, self.ends, self.task_sizes)
        _ = (self.task_bytes, self.image_bytes, self.full, self.seconds, self.grows, self.exemplar_free)


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
