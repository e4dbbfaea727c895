"""The file of a sweep: its keys, and what they ask for. Options of runs are checked later, with the runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cil.command import config as cfg
from cil.command import configurations, reading
from cil.errors import UserError, unknown

KEYS = ("out", "protocols", "methods", "budgets", "seeds", "set", "workers", "threads", "gpus", "retries")

Options = dict[str, Any]  # dotted, as on the command line of a run


@dataclass(frozen=True)
class Protocol:
    """Files and options that every method shares."""

    name: str
    files: tuple[str, ...]
    options: Options


@dataclass(frozen=True)
class Method:
    """Files and options of a method, and the protocols and budgets it is run at.

    With a ``memory`` of its own it is run once for each seed, whatever the budgets.
    """

    name: str
    files: tuple[str, ...]
    options: Options
    protocols: tuple[str, ...]
    budgets: tuple[str, ...]
    memory: Options | None


@dataclass(frozen=True)
class Budget:
    """Options of the memory; for this budget alone, further options of single methods, and seeds."""

    name: str
    memory: Options
    methods: dict[str, Options]
    seeds: tuple[int, ...] | None


@dataclass(frozen=True)
class Sweep:
    """What a file asks for, its names checked and its options not yet."""

    out: Path
    protocols: tuple[Protocol, ...]
    methods: tuple[Method, ...]
    budgets: tuple[Budget, ...]
    seeds: tuple[int, ...]
    options: Options
    workers: int | None
    threads: int
    gpus: float
    retries: int


def read(path: str) -> Sweep:
    """Read the file of a sweep.

    Args:
        path: of the YAML file, or its name; ``docs/sweeps.md`` lists its keys.

    Raises:
        UserError: it cannot be read, or a key, a name or a value in it makes no sense.
    """
    path = configurations.find(path, configurations.SWEEPS)
    content = reading.read(path)
    where = Path(path).name
    if Path(path).resolve().is_relative_to(configurations.folder().resolve()):
        content = _by_name(content)
    _refuse_unknown(where, content, KEYS)
    for key in ("out", "protocols", "methods"):
        if not content.get(key):
            raise UserError(f"{where}: '{key}' is missing")
    budgets = tuple(_budgets(f"{where}: budgets", content.get("budgets")))
    names = [budget.name for budget in budgets]
    protocols = tuple(
        Protocol(str(name), *_part(f"{where}: protocols.{name}", value))
        for name, value in reading.mapping(f"{where}: protocols", content["protocols"]).items()
    )
    known = [protocol.name for protocol in protocols]
    methods = tuple(
        _method(f"{where}: methods.{name}", str(name), value, known, names)
        for name, value in reading.mapping(f"{where}: methods", content["methods"]).items()
    )
    legal = [method.name for method in methods]
    for budget in budgets:
        _refuse_unknown(f"{where}: budgets: {budget.name}: methods", budget.methods, legal)
    return Sweep(
        out=Path(str(content["out"])),
        protocols=protocols,
        methods=methods,
        budgets=budgets,
        seeds=_seeds(f"{where}: seeds", content.get("seeds", [0])),
        options=_options(f"{where}: set", content.get("set", {})),
        workers=None if content.get("workers") is None else count(f"{where}: workers", content["workers"]),
        threads=count(f"{where}: threads", content.get("threads", 1)),
        gpus=_least(f"{where}: gpus", content.get("gpus", 0), (int, float)),
        retries=_least(f"{where}: retries", content.get("retries", 2), (int,)),
    )


def _by_name(value: Any) -> Any:
    """What one of our own sweeps holds, with names for our files, whose paths there are those of a checkout."""
    if isinstance(value, dict):
        return {key: _by_name(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_by_name(item) for item in value]
    if not (isinstance(value, str) and value.startswith("configs/")):
        return value
    return configurations.named(str(configurations.folder() / value.removeprefix("configs/"))) or value


def _part(where: str, value: Any, more: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Options]:
    """Files and options of a protocol or a method; without ``more`` legal keys, all others are options."""
    if isinstance(value, str):
        return (value,), {}
    if isinstance(value, list) and value and all(isinstance(file, str) for file in value):
        return tuple(value), {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: a file, a list of files or a mapping, not {value!r}")
    rest = {key: item for key, item in value.items() if key not in ("config", "set")}
    if more is not None:
        _refuse_unknown(where, rest, ("config", "set", *more))
        rest = {}
    files = _part(f"{where}.config", value["config"])[0] if value.get("config") else ()
    return files, {**_options(where, rest), **_options(f"{where}.set", value.get("set", {}))}


def _method(where: str, name: str, value: Any, protocols: list[str], budgets: list[str]) -> Method:
    files, options = _part(where, value, more=("memory", "protocols", "budgets", "except"))
    rest = value if isinstance(value, dict) else {}

    def chosen(key: str, legal: list[str], default: list[str], kind: str) -> list[str]:
        names = rest.get(key, default)
        if not isinstance(names, list):
            raise UserError(f"{where}.{key}: a list of names of {kind}, not {names!r}")
        _refuse_unknown(f"{where}.{key}", map(str, names), legal)
        return [name for name in legal if name in map(str, names)]

    excepted = chosen("except", budgets, [], "budgets")
    allowed = [name for name in chosen("budgets", budgets, budgets, "budgets") if name not in excepted]
    only = chosen("protocols", protocols, protocols, "protocols")
    memory = _memory(f"{where}.memory", rest["memory"]) if "memory" in rest else None
    return Method(name, files, options, tuple(only), tuple(allowed), memory)


def _budgets(where: str, value: Any) -> Iterator[Budget]:
    if value is None:
        yield Budget("protocol", {}, {}, None)  # the memory that each protocol states
        return
    if not isinstance(value, (list, dict)) or not value:
        raise UserError(f"{where}: a list of budgets, or a mapping from names to budgets, not {value!r}")
    seen = set()
    for name, item in value.items() if isinstance(value, dict) else [(None, item) for item in value]:
        options = dict(item) if isinstance(item, dict) else {}
        own = options.pop("methods", {})
        given = options.pop("name", None)
        seeds = options.pop("seeds", None)
        memory = _memory(f"{where}: {name or given or item}", options if isinstance(item, dict) else item)
        title = str(name or given or named(memory))
        if title in seen:
            raise UserError(f"{where}: two are called '{title}'; give them a `name`")
        seen.add(title)
        further = {
            str(method): _options(f"{where}: {title}: methods.{method}", more)
            for method, more in reading.mapping(f"{where}: {title}: methods", own).items()
        }
        chosen = None if seeds is None else _seeds(f"{where}: {title}: seeds", seeds)
        yield Budget(title, memory, further, chosen)


def _memory(where: str, value: Any) -> Options:
    """Options of the memory, without ``memory.``; a bare value is a budget in bytes."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return {"budget": value}
    return {str(key): item for key, item in reading.mapping(where, value).items()}


def named(memory: Options) -> str:
    """The name of a budget that was given none, made of its options: ``exemplars-100``, ``60KiB-align-final``."""
    words = [str(memory["budget"])] if "budget" in memory else []
    words += [f"{key}-{value}" for key, value in memory.items() if key != "budget"]
    return "-".join(words) or "protocol"


def _options(where: str, value: Any) -> Options:
    """Options of a run, dotted; those that a sweep sets itself are refused."""
    options = {str(key): item for key, item in cfg.dotted(reading.mapping(where, {} if value is None else value))}
    for key in options:
        if key in ("seed", "run_dir", "resume", "overwrite", "dry_run", "config", "print_config"):
            raise UserError(f"{where}: a sweep sets '{key}' itself for each run")
    return options


def _seeds(where: str, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise UserError(f"{where}: a list of whole numbers, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: {seeds} names a seed twice")
    return tuple(seeds)


def count(where: str, value: Any) -> int:
    """A whole number >= 1; ``where`` names the key in the error."""
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {value!r} must be a whole number >= 1")
    return value


def _least(where: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """A number >= 0."""
    if type(value) not in kinds or value < 0:
        raise UserError(f"{where}: {value!r} must be a {'whole ' if float not in kinds else ''}number >= 0")
    return value


def _refuse_unknown(where: str, names: Iterable[Any], legal: Iterable[str]) -> None:
    for name in names:
        if name not in legal:
            raise unknown(where, str(name), legal)
