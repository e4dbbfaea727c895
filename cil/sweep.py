"""A sweep: methods x budgets x seeds x protocols from one YAML file, each run a process of ``tools/train.py``.

Nothing is kept beside the run folders: what is done, what goes on and what is left is read from them, so the command
that started a sweep also continues it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from cil import config as cfg
from cil.errors import UserError, unknown
from cil.evaluation.report import percent
from cil.folder import OWN, RunFolder
from cil.memory.budget import parse_bytes
from cil.session import kept
from cil.strategy import Strategy

KEYS = ("out", "protocols", "methods", "budgets", "seeds", "set", "workers", "threads")
SIZES = ("exemplars", "per_class", "budget")  # of the memory; a run has one of them
POLL = 0.2  # seconds between two looks at the processes
PATIENCE = 10.0  # seconds that a process is given to end when asked to
TAIL = 6  # lines of a failed run's log that are shown

Options = dict[str, Any]  # dotted, as on the command line of a run


# --- the file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """Files and options that every method shares."""

    name: str
    files: tuple[str, ...]
    options: Options


@dataclass(frozen=True)
class Method:
    """Files and options of a method, and the budgets it is run at.

    With a ``memory`` of its own it is run once for each seed, whatever the budgets.
    """

    name: str
    files: tuple[str, ...]
    options: Options
    budgets: tuple[str, ...]
    memory: Options | None


@dataclass(frozen=True)
class Budget:
    """Options of the memory, and further options for single methods at this budget."""

    name: str
    memory: Options
    methods: dict[str, Options]


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


def read(path: str) -> Sweep:
    """Read the file of a sweep.

    Args:
        path: of the YAML file; ``docs/sweeps.md`` lists its keys.

    Raises:
        UserError: it cannot be read, or a key, a name or a value in it makes no sense.
    """
    content = _load(path)
    where = Path(path).name
    _refuse_unknown(where, content, KEYS)
    for key in ("out", "protocols", "methods"):
        if not content.get(key):
            raise UserError(f"{where}: '{key}' is missing")
    budgets = tuple(_budgets(f"{where}: budgets", content.get("budgets")))
    names = [budget.name for budget in budgets]
    protocols = tuple(
        Protocol(str(name), *_part(f"{where}: protocols.{name}", value))
        for name, value in _mapping(f"{where}: protocols", content["protocols"]).items()
    )
    methods = tuple(
        _method(f"{where}: methods.{name}", str(name), value, names)
        for name, value in _mapping(f"{where}: methods", content["methods"]).items()
    )
    legal = [method.name for method in methods]
    for budget in budgets:
        _refuse_unknown(f"{where}: budgets: {budget.name}: methods", budget.methods, legal)
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise UserError(f"{where}: seeds: a list of whole numbers, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds: {seeds} names a seed twice")
    return Sweep(
        out=Path(str(content["out"])),
        protocols=protocols,
        methods=methods,
        budgets=budgets,
        seeds=tuple(seeds),
        options=_options(f"{where}: set", content.get("set", {})),
        workers=None if content.get("workers") is None else _count(f"{where}: workers", content["workers"]),
        threads=_count(f"{where}: threads", content.get("threads", 1)),
    )


class _Unique(cfg.Loader):
    """Refuses a key that stands twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Unique)
    except OSError as error:
        raise UserError(f"--config: {path}: {os.strerror(error.errno or 0)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} cannot be used: {' '.join(str(error).split())}") from error
    return _mapping(f"--config: {path}", content)


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


def _method(where: str, name: str, value: Any, budgets: list[str]) -> Method:
    files, options = _part(where, value, more=("memory", "budgets", "except"))
    rest = value if isinstance(value, dict) else {}
    chosen = {}
    for key, default in (("budgets", budgets), ("except", [])):
        chosen[key] = rest.get(key, default)
        if not isinstance(chosen[key], list):
            raise UserError(f"{where}.{key}: a list of names of budgets, not {chosen[key]!r}")
        chosen[key] = [str(budget) for budget in chosen[key]]
        _refuse_unknown(f"{where}.{key}", chosen[key], budgets)
    allowed = tuple(budget for budget in budgets if budget in chosen["budgets"] and budget not in chosen["except"])
    memory = _memory(f"{where}.memory", rest["memory"]) if "memory" in rest else None
    return Method(name, files, options, allowed, memory)


def _budgets(where: str, value: Any) -> Iterator[Budget]:
    if value is None:
        yield Budget("protocol", {}, {})  # the memory that each protocol states
        return
    if not isinstance(value, (list, dict)) or not value:
        raise UserError(f"{where}: a list of budgets, or a mapping from names to budgets, not {value!r}")
    seen = set()
    for name, item in value.items() if isinstance(value, dict) else [(None, item) for item in value]:
        options = dict(item) if isinstance(item, dict) else {}
        own = options.pop("methods", {})
        given = options.pop("name", None)
        memory = _memory(f"{where}: {name or given or item}", options if isinstance(item, dict) else item)
        title = str(name or given or named(memory))
        if title in seen:
            raise UserError(f"{where}: two are called '{title}'; give them a `name`")
        seen.add(title)
        further = {
            str(method): _options(f"{where}: {title}: methods.{method}", more)
            for method, more in _mapping(f"{where}: {title}: methods", own).items()
        }
        yield Budget(title, memory, further)


def _memory(where: str, value: Any) -> Options:
    """Options of the memory, without ``memory.``; a bare value is a budget in bytes."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return {"budget": value}
    return {str(key): item for key, item in _mapping(where, value).items()}


def named(memory: Options) -> str:
    """The name of a budget that was given none, made of its options: ``exemplars-100``, ``60KiB-align-final``."""
    words = [str(memory["budget"])] if "budget" in memory else []
    words += [f"{key}-{value}" for key, value in memory.items() if key != "budget"]
    return "-".join(words) or "protocol"


def _options(where: str, value: Any) -> Options:
    """Options of ``tools/train.py``, dotted; those that a sweep sets itself are refused."""
    options = {str(key): item for key, item in cfg._dotted(_mapping(where, {} if value is None else value))}
    for key in options:
        if key in ("seed", "run_dir", "resume", "overwrite", "dry_run", "config", "print_config"):
            raise UserError(f"{where}: a sweep sets '{key}' itself for each run")
    return options


def _mapping(where: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold keys and values, not {value!r}")
    return value


def _count(where: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {value!r} must be a whole number >= 1")
    return value


def _refuse_unknown(where: str, names: Iterable[Any], legal: Iterable[str]) -> None:
    for name in names:
        if name not in legal:
            raise unknown(where, str(name), legal)


# --- the runs ---------------------------------------------------------------------------------------------------------


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

    What needs no data is checked: every name and type, and the memory's options.

    Raises:
        UserError: a command line is wrong, or two runs would share a folder; names the run.
    """
    runs: list[Run] = []
    places: dict[str, str] = {}  # folder -> run
    for protocol in sweep.protocols:
        for budget, method, argv in _cells(sweep, protocol):
            for run in _seeds(sweep, (protocol.name, budget, method), argv):
                place = str(run.folder.path).lower()  # some file systems do not tell upper from lower case
                if place in places:
                    raise UserError(
                        f"{places[place]} and {run.name} would share the folder {run.folder.path}: give a method or a "
                        "budget another name"
                    )
                places[place] = run.name
                runs.append(run)
    if not runs:
        raise UserError("there is nothing to run: every method is excluded from every budget")
    return runs


def _cells(sweep: Sweep, protocol: Protocol) -> Iterator[tuple[str, str, list[str]]]:
    """Budget, method and command line of each cell of a protocol; a method outside all budgets comes at its first."""
    common = [*_files(protocol.files), *_words(protocol.options)]
    heads, kinds, stated = {}, {}, {}
    for method in sweep.methods:
        head = [*common, *_files(method.files), *_words(sweep.options), *_words(method.options)]
        with _naming(f"{protocol.name}/{method.name}"):
            _, config = cfg.parse(head)
            heads[method.name], stated[method.name] = head, config.memory
            kinds[method.name] = cfg.find_class("strategy", config.strategy.class_path)
    once = set()
    for budget in sweep.budgets:
        for method in sweep.methods:
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
            yield name, method.name, argv


def _seeds(sweep: Sweep, place: tuple[str, str, str], argv: list[str]) -> Iterator[Run]:
    """The runs of a cell. They differ in the seed alone, so the command line is checked once."""
    parsed = None
    for seed in sweep.seeds:
        folder = sweep.out.joinpath(*map(_safe, place), f"seed{seed}")
        full = [*argv, "--seed", str(seed), "--run_dir", str(folder), "--resume"]
        if parsed is None:
            with _naming("/".join([*place, f"seed{seed}"])):
                parser, parsed = cfg.parse(full)
                memory = parser.instantiate(parsed).memory
                memory.check()
                if isinstance(memory.budget, (int, str)):
                    parse_bytes(memory.budget)
                if parsed.overwrite or parsed.dry_run:
                    raise UserError("a file sets `overwrite` or `dry_run`, which have no place in a sweep")
        one = parsed.clone()
        one.seed, one.run_dir = seed, str(folder)
        resolved = yaml.safe_load(kept(parser, one))
        yield Run(*place, seed, RunFolder(folder), tuple(full), one.threads, resolved)


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
def _naming(run: str) -> Iterator[None]:
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


# --- the processes ----------------------------------------------------------------------------------------------------

# Asks Linux to kill this process when its parent ends, whatever ends it, and then becomes the run. The parent may have
# ended before the question. Elsewhere a run survives its sweep, and the next one waits for its lock.
LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the sweep has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Job:
    """A process at work on a run."""

    run: Run
    process: subprocess.Popen[bytes]
    log: Path
    since: int  # bytes in the log before it began
    began: float
    bar: TaskID

    def tail(self) -> list[str]:
        """The last lines that the process wrote."""
        text = self.log.read_bytes()[self.since :].decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-TAIL:]


class Pool:
    """Runs processes, so many at a time, until none is left to run or a signal asks to stop.

    One thread looks at them in turn. Each must be started by the thread that lives as long as the sweep, because a
    process dies with the thread that started it.

    Args:
        program: ``tools/train.py``.
        workers: processes at a time.
        console: where to show progress: bars on a terminal, lines elsewhere.
    """

    def __init__(self, program: Path, workers: int, console: Console) -> None:
        self.program = program
        self.workers = workers
        self.console = console
        self.failed: dict[str, list[str]] = {}  # run -> why, and the end of its log
        self.signal: int | None = None
        self.jobs: list[Job] = []
        self.total = self.finished = 0
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def work(self, runs: Iterable[Run], done: int) -> None:
        """Run all that is to be run.

        Args:
            runs: not yet complete.
            done: number of runs that are complete already, for the count that is shown.
        """
        waiting = deque(runs)
        self.total, self.finished = len(waiting) + done, done
        announced: set[str] = set()
        overall = self.bars.add_task("runs", total=self.total, completed=done)
        with self._signals(), self.bars:
            try:
                while (waiting or self.jobs) and self.signal is None:
                    for job in [job for job in self.jobs if job.process.poll() is not None]:
                        self._ended(job, waiting)
                    for _ in range(len(waiting)):
                        if len(self.jobs) == self.workers:
                            break
                        self._next(waiting, announced)
                    self._show(overall)
                    time.sleep(POLL)
            finally:
                self._stop()

    def _next(self, waiting: deque[Run], announced: set[str]) -> None:
        """Start the first run that waits, or put it last if another process holds its folder."""
        run = waiting.popleft()
        holder = run.folder.holder()
        if holder is not None:
            waiting.append(run)
            if run.name not in announced:
                announced.add(run.name)
                self._say(f"{run.name} is in use by {holder}; waiting for it", always=True)
            return
        try:
            state = run.state()  # another sweep may have been at it
        except UserError as error:
            self._failed(run, str(error), [])
            return
        if state == "done":
            self._done(run, "finished by another process")
        else:
            self._say(f"start {run.name}" + (", which goes on" if state == "to resume" else ""))
            self.jobs.append(self._start(run))

    def _start(self, run: Run) -> Job:
        log = run.folder.path / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, str(self.program), *run.argv]
        if sys.platform == "linux":
            words = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *words]
        threads = {f"{library}_NUM_THREADS": str(run.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        with open(log, "ab") as file:
            file.write(f"$ {command(run)}\n".encode())
            file.flush()
            since = file.tell()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that Ctrl-C reaches the sweep alone, which then ends its processes
            )
        return Job(run, process, log, since, time.monotonic(), self.bars.add_task(run.name, total=None))

    def _ended(self, job: Job, waiting: deque[Run]) -> None:
        self.jobs.remove(job)
        self.bars.remove_task(job.bar)
        code = job.process.returncode
        if code == 0 and job.run.results():
            seconds = time.monotonic() - job.began
            self._done(job.run, f"{seconds:.0f} s, average accuracy {percent(job.run.average())} %")
        elif code and job.run.folder.holder():
            waiting.append(job.run)  # another process was faster: wait for it
        else:
            ends = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            self._failed(job.run, f"{ends}; its log is {job.log}", job.tail())

    def _done(self, run: Run, how: str) -> None:
        self.finished += 1
        self._say(f"done  {run.name}: {how} ({self.finished} of {self.total})")

    def _failed(self, run: Run, why: str, tail: list[str]) -> None:
        self.failed[run.name] = [why, *tail]
        self._say(f"FAILED {run.name}: {why}", always=True)

    def _say(self, text: str, *, always: bool = False) -> None:
        """A line; on a terminal the bars tell the rest."""
        if always or not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, overall: TaskID) -> None:
        if not self.console.is_terminal:
            return
        failed = f", {len(self.failed)} failed" if self.failed else ""
        self.bars.update(overall, completed=self.finished, description=f"runs{failed}")
        for job in self.jobs:
            results = job.run.folder.results()
            if results:
                total = len(results["scenario"]["task_sizes"])
                self.bars.update(job.bar, total=total, completed=len(results["tasks"]))

    def _stop(self) -> None:
        """End what still runs; it can be resumed."""
        for job in self.jobs:
            job.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for job in self.jobs:
            try:
                job.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM for the loop, so that neither cuts the start of a process in two."""

        def note(number: int, _: Any) -> None:
            self.signal = number

        # What is ignored stays so: a shell starts background jobs with Ctrl-C ignored.
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# --- the command ------------------------------------------------------------------------------------------------------


def sweep(path: str, *, program: Path, console: Console, workers: int | None = None, dry_run: bool = False) -> int:
    """Run what is left of a sweep.

    Args:
        path: its file.
        program: ``tools/train.py``.
        console: where to show progress and results.
        workers: processes at a time instead of the file's.
        dry_run: list the runs with their commands and states, and stop.

    Returns:
        Exit status: 0 if all runs are complete, 1 if any failed, 128 and the number of the signal that stopped it.

    Raises:
        UserError: a mistake in the file or in any run's options; nothing was started.
    """
    asked = read(path)
    workers = asked.workers if workers is None else _count("--workers", workers)
    runs = expand(asked)
    states = {}
    for run in runs:
        with _naming(run.name):
            states[run.name] = run.state()
    counts = [f"{list(states.values()).count(state)} {state}" for state in ("done", "to resume", "to run")]
    if dry_run:
        for run in runs:
            holder = run.folder.holder()
            told = f"{states[run.name]:<10}{run.name}" + (f", in use by {holder}" if holder else "")
            console.print(told, markup=False, highlight=False, soft_wrap=True)
            console.print(f"    {command(run)}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"{len(runs)} runs: {', '.join(counts)}", highlight=False)
        return 0
    left = [run for run in runs if states[run.name] != "done"]
    workers = workers or max(1, _cores() // max(run.threads for run in runs))
    console.print(f"{len(runs)} runs: {', '.join(counts)}; {workers} at a time", highlight=False)
    pool = Pool(program, workers, console)
    pool.work(left, done=len(runs) - len(left))
    if pool.signal is not None:
        stopped = f"interrupted, {len(pool.jobs)} runs stopped" if pool.jobs else "interrupted"
        console.print(f"{stopped}; the same command goes on with them", highlight=False, soft_wrap=True)
        return 128 + pool.signal
    console.print(table(runs))
    for name, (why, *tail) in pool.failed.items():
        console.print(f"{name} failed: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
        for line in tail:
            console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
    if pool.failed:
        console.print(f"{len(pool.failed)} of {len(runs)} runs failed; the same command tries them again")
    compare = ["python", "tools/compare.py", str(asked.out), "--out", str(asked.out / "report")]
    console.print(f"compare them with: {shlex.join(compare)}", markup=False, highlight=False, soft_wrap=True)
    return 1 if pool.failed else 0


def command(run: Run) -> str:
    """The command of a run as it can be typed."""
    return cfg.command(run.argv, "tools/train.py")


def table(runs: Iterable[Run]) -> Table:
    """Seeds done and mean average accuracy of each protocol, budget and method."""
    cells: dict[tuple[str, str, str], list[float | None]] = {}
    for run in runs:
        cells.setdefault((run.protocol, run.budget, run.method), []).append(run.average())
    out = Table()
    for name in ("protocol", "budget", "method"):
        out.add_column(name)
    for name in ("seeds done", "average accuracy %"):
        out.add_column(name, justify="right")
    for place, averages in cells.items():
        done = [value for value in averages if value is not None]
        mean = percent(sum(done) / len(done) if done else None)
        out.add_row(*place, f"{len(done)} of {len(averages)}", mean)
    return out


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
