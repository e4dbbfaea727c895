"""What a run learns from: named in its checkpoints, and compared before anything goes on from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cil import renamed
from cil.data.images import ClassPrint
from cil.errors import UserError
from cil.experiment.experiment import Experiment

# Where a run is written, how it is told to go on, what it need not compute again and how many processes share the work
# do not change its results.
FREE = (
    "run_dir",
    "resume",
    "overwrite",
    "dry_run",
    "checkpoint_every",
    "root",
    "images",
    "workers",
    "cache",
    "cache_limit",
    "devices",
    "num_nodes",
)
MOST = 6  # differences that a message names


@dataclass(frozen=True)
class Origin:
    """What decides the numbers of a run.

    Attributes:
        strategy: class path.
        seeds: ``init``, ``data`` and ``exemplars``.
        fingerprint: of the scenario, see ``cil.data.scenario.Scenario``.
        task_sizes: new classes of each task.
        class_names: in order of appearance.
        class_prints: of their images; None where they are not known by class.
        config: the resolved configuration without what is ``FREE``; None where there is none, as in a program of one's
            own.
    """

    strategy: str
    seeds: dict[str, int]
    fingerprint: str
    task_sizes: tuple[int, ...]
    class_names: tuple[str, ...]
    class_prints: tuple[ClassPrint, ...] | None = None
    config: dict[str, Any] | None = None

    @classmethod
    def of(cls, experiment: Experiment, config: dict[str, Any] | None = None) -> Origin:
        """Of an experiment, with the configuration that it was made of."""
        scenario, kind = experiment.scenario, type(experiment.outline)
        return cls(
            strategy=f"{kind.__module__}.{kind.__qualname__}",
            seeds=dict(vars(experiment.seeds)),
            fingerprint=scenario.fingerprint,
            task_sizes=tuple(task.n_new for task in scenario.tasks),
            class_names=scenario.class_names,
            class_prints=scenario.class_prints,
            config=None if config is None else {key: value for key, value in config.items() if key not in FREE},
        )

    @classmethod
    def of_results(cls, content: dict[str, Any]) -> Origin:
        """What ``results.json`` tells of it: the data by their fingerprint alone."""
        scenario, seeds = content["scenario"], content["seeds"]
        return cls(
            strategy=content["strategy"],
            seeds={name: seeds[name] for name in ("init", "data", "exemplars")},
            fingerprint=content["fingerprint"],
            task_sizes=tuple(scenario["task_sizes"]),
            class_names=tuple(scenario["class_names"]),
            config=content["config"],
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Origin:
        """What ``as_json`` gave, read back."""
        known = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        prints = known["class_prints"]
        known |= {key: tuple(known[key]) for key in ("task_sizes", "class_names")}
        known["class_prints"] = None if prints is None else tuple(ClassPrint(*one) for one in prints)
        return cls(**known)

    def as_json(self) -> dict[str, Any]:
        """JSON values by attribute."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def assert_same(self, now: Origin, where: Path, remedy: str) -> None:
        """Refuse to go on from what was learned otherwise.

        Args:
            now: of the run that is to go on.
            where: the file or folder that holds what was learned, for the message.
            remedy: what the user can do, likewise.

        Raises:
            UserError: names what differs, options first.
        """
        if self.config is not None and now.config is not None:
            different = changed(self.config, now.config)
        else:
            mine, others = ({"seeds": one.seeds, "strategy": one.strategy} for one in (self, now))
            different = changed(mine, others)
        if different:
            raise UserError(f"{where} was run with another configuration: {'; '.join(different)}. {remedy}")
        different = self.other_data(now)
        if different:
            more = [f"and {len(different) - MOST} differences more"] * (len(different) > MOST)
            raise UserError(f"{where} learned from other data: {'; '.join([*different[:MOST], *more])}. {remedy}")

    def other_data(self, now: Origin) -> list[str]:
        """How the data differ, in words; nothing if they are the same."""
        if (self.fingerprint, self.class_names) == (now.fingerprint, now.class_names):
            return []
        by_class = self.class_prints is not None and now.class_prints is not None
        was, is_ = (dict(zip(one.class_names, one.class_prints or (), strict=False)) for one in (self, now))
        gone = [name for name in self.class_names if name not in now.class_names]
        new = [name for name in now.class_names if name not in self.class_names]
        found = []
        for name in self.class_names:
            place = f"task {self._task_of(name) + 1}: class '{name}'"
            if name in gone:
                called = next((other for other in new if by_class and is_[other] == was[name]), None)
                if called is None:
                    found.append(f"class '{name}' is gone")
                else:
                    new.remove(called)
                    found.append(f"{place} is called '{called}' now")
            elif by_class:
                found += [f"{place}: {words}" for words in _other_images(was[name], is_[name])]
        found += [f"class '{name}' is new" for name in new]
        if not found and self.class_names != now.class_names:
            found = ["the classes appear in another order"]
        if not found and self.task_sizes != now.task_sizes:
            found = [f"tasks bring {now.task_sizes} classes, and brought {self.task_sizes}"]
        if not found and by_class:
            found = ["the same images come in another order"]
        return found or [f"fingerprint {now.fingerprint[:8]}, was {self.fingerprint[:8]}"]

    def _task_of(self, name: str) -> int:
        position, ends = self.class_names.index(name), 0
        for task, size in enumerate(self.task_sizes):
            ends += size
            if position < ends:
                return task
        return len(self.task_sizes) - 1


def _other_images(was: ClassPrint, now: ClassPrint) -> list[str]:
    """How the images of a class differ."""
    out = []
    for kind, before, after in (("training", was[:2], now[:2]), ("test", was[2:], now[2:])):
        if before[0] != after[0]:
            out.append(f"{after[0]} {kind} images, were {before[0]}")
        elif before != after:
            out.append(f"{kind} images are other ones")
    return out


def changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The options that decide numbers and differ, as ``trainer.lr was 0.1, is 0.2``.

    A class that has another path today is the same class.
    """
    before, after = _flat(was), _flat(now)
    return [
        f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key.split(".")[0] not in FREE
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): renamed.current(value) if isinstance(value, str) else value}
