"""The runs of a sweep, each with its folder and its command line, which is checked before any run starts."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import Namespace

from cil.command import config as cfg
from cil.command import recorded
from cil.command.names import find_class
from cil.command.session import kept
from cil.errors import UserError
from cil.learning.strategy import Strategy
from cil.report.folder import OWN, RunFolder
from cil.sweep.file import Budget, Method, Options, Protocol, Sweep, named
from cil.units import parse_bytes

SIZES = ("exemplars", "per_class", "budget")  # of the memory; a run has one of them


@dataclass(frozen=True)
class Run:
    """One run: its place in the sweep, its command line, and the configuration that it resolves to."""

    protocol: str
    budget: str
    method: str
    seed: int
    folder: RunFolder
    argv: tuple[str, ...]
    threads: int
    config: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """``protocol/budget/method/seed0``"""
        return f"{self.protocol}/{self.budget}/{self.method}/seed{self.seed}"

    def state(self) -> str:
        """``done``, ``to resume`` or ``to run``, by what the folder holds.

        Raises:
            UserError: it holds a run of another configuration.
        """
        self.folder.check(self.config, resume=True, overwrite=False)
        if self.results():
            return "done"
        return "to resume" if any((self.folder.path / name).exists() for name in OWN) else "to run"

    def results(self) -> dict[str, Any] | None:
        """What ``results.json`` holds, None before the run is complete."""
        results = self.folder.results()
        return results if results and results["status"] == "complete" else None

    def average(self) -> float | None:
        """The average incremental accuracy of the method's own evaluator, None before the run is complete."""
        results = self.results()
        return results["metrics"][results["evaluator"]]["average_incremental_accuracy"] if results else None


def expand(sweep: Sweep) -> list[Run]:
    """All runs of a sweep, protocol by protocol, budget by budget, each with its command line checked.

    What needs no data is checked: every name and type, and the memory's options, with the other method that a budget
    names.

    Raises:
        UserError: a command line is wrong, or two runs would share a folder; names the run.
    """
    runs: list[Run] = []
    places: dict[str, str] = {}  # folder -> run
    for protocol in sweep.protocols:
        for budget, method, seeds, argv in _cells(sweep, protocol):
            for run in _seeded(sweep, (protocol.name, budget, method), seeds, argv):
                place = str(run.folder.path).lower()  # some file systems do not tell upper from lower case
                if place in places:
                    raise UserError(
                        f"{places[place]} and {run.name} would share the folder {run.folder.path}: give a method or a "
                        "budget another name"
                    )
                places[place] = run.name
                runs.append(run)
    if not runs:
        raise UserError("there is nothing to run: every method is excluded from every budget or protocol")
    return runs


def _cells(sweep: Sweep, protocol: Protocol) -> Iterator[tuple[str, str, tuple[int, ...], list[str]]]:
    """Budget, method, seeds and command line of each cell; a method outside all budgets comes at its first."""
    common = [*_files(protocol.files), *_words(protocol.options)]
    heads, kinds, stated = {}, {}, {}
    methods = [method for method in sweep.methods if protocol.name in method.protocols]
    for method in methods:
        head = [*common, *_files(method.files), *_words(sweep.options), *_words(method.options)]
        with naming(f"{protocol.name}/{method.name}"):
            _, config = cfg.parse(head)
            heads[method.name], stated[method.name] = head, config.memory
            kinds[method.name] = find_class("strategy", config.strategy.class_path)
    once = set()
    for budget in sweep.budgets:
        for method in methods:
            if budget.name not in method.budgets:
                continue
            further = budget.methods.get(method.name, {})
            memory = _fixed(method, kinds[method.name], budget)
            name = budget.name
            if memory is None:
                memory = budget.memory
            elif further:
                raise UserError(
                    f"budgets: {budget.name}: methods.{method.name}: it is run once for all such budgets, so its "
                    f"options belong to methods.{method.name}.set"
                )
            elif (method.name, named(memory)) in once:
                continue
            else:
                name = named(memory)
                once.add((method.name, name))
            options = {f"memory.{key}": value for key, value in _sized(memory, stated[method.name]).items()}
            argv = [*heads[method.name], *_words(options), *_words(further)]
            if "threads" not in {**protocol.options, **sweep.options, **method.options, **further}:
                argv += ["--threads", str(sweep.threads)]
            yield name, method.name, budget.seeds or sweep.seeds, argv


def _seeded(sweep: Sweep, place: tuple[str, str, str], seeds: tuple[int, ...], argv: list[str]) -> Iterator[Run]:
    """The runs of a cell. They differ in the seed alone, so the command line is read and checked once."""
    parsed, resolved = None, {}
    for seed in seeds:
        folder = sweep.out.joinpath(*map(_safe, place), f"seed{seed}")
        full = [*argv, "--seed", str(seed), "--run_dir", str(folder), "--resume"]
        if parsed is None:
            with naming("/".join([*place, f"seed{seed}"])):
                parser, parsed = cfg.parse(full)
                built = parser.instantiate(parsed)
                built.memory.check()
                if isinstance(built.memory.budget, (int, str)):
                    parse_bytes(built.memory.budget)
                cfg.reference(built.memory.budget, built.model, channels=3)  # how many there are is in the data
                if parsed.overwrite or parsed.dry_run:
                    raise UserError("a file sets `overwrite` or `dry_run`, which have no place in a sweep")
                resolved = yaml.safe_load(kept(parser, parsed))
        own = {**resolved, "seed": seed, "run_dir": str(folder)}
        yield Run(*place, seed, RunFolder(folder), tuple(full), parsed.threads, own)


def _fixed(method: Method, kind: type[Strategy], budget: Budget) -> Options | None:
    """The memory of a method that this budget has no say in, None if it has."""
    if method.memory is not None:
        return method.memory
    if kind.needs_all_data:
        return {"exemplars": "all"}
    # Without exemplars every number of them is the same run; under a budget in bytes the engine sees to it.
    return {"exemplars": 0} if kind.exemplar_free and "budget" not in budget.memory else None


def _sized(memory: Options, stated: Namespace) -> Options:
    """The options, with null for any other size that the files state, since a run has one."""
    if all(memory.get(size) is None for size in SIZES):
        return memory
    others = [size for size in SIZES if size not in memory and stated.get(size) is not None]
    return {**dict.fromkeys(others), **memory}


@contextlib.contextmanager
def naming(run: str) -> Iterator[None]:
    """Put the run's name before a mistake."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{run}: {error}") from error


def _files(files: Iterable[str]) -> list[str]:
    return [word for file in files for word in ("--config", file)]


def _words(options: Options) -> list[str]:
    """``--key value``, the value in YAML on one line."""
    words = []
    for key, value in options.items():
        if not isinstance(value, str):
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
            value = text.removesuffix("...\n").strip()
        words += [f"--{key}", value]
    return words


def _safe(name: str) -> str:
    """The name as one that every file system takes."""
    return re.sub(r"[^\w.+=-]+", "_", name).lstrip(".") or "_"


def command(run: Run, program: str = "tools/train.py") -> str:
    """The command of a run as it can be typed, with ``cil train`` or ``tools/train.py``."""
    return recorded.command(run.argv, program, run.config)
