"""What a sweep's command does: read, check, run what is left, and tell how it went."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from cil.command import recorded
from cil.errors import UserError, unknown
from cil.report.report import percent
from cil.sweep.engines import Engine, Local, OnRay
from cil.sweep.file import count, read
from cil.sweep.pool import Pool
from cil.sweep.runs import Run, command, expand, naming

ENGINES = ("local", "ray")


def sweep(
    path: str,
    *,
    program: str = "tools/train.py",
    start: Sequence[str] | None = None,
    console: Console,
    workers: int | None = None,
    dry_run: bool = False,
    engine: str = "local",
    address: str | None = None,
) -> int:
    """Run what is left of a sweep.

    Args:
        path: its file.
        program: ``cil train`` or ``tools/train.py``, as commands are shown.
        start: the words with which Python starts it; None: those of the program.
        console: where to show progress and results.
        workers: processes at a time instead of the file's.
        dry_run: list the runs with their commands and states, and stop.
        engine: ``local``, processes of this machine, or ``ray``.
        address: of the Ray cluster, ``auto`` for the one of this machine; None starts one here.

    Returns:
        Exit status: 0 if all runs are complete, 1 if any failed, 128 and the number of the signal that stopped it.

    Raises:
        UserError: a mistake in the file or in any run's options; nothing was started.
    """
    if engine not in ENGINES:
        raise unknown("--engine", engine, ENGINES)
    if address is not None and engine != "ray":
        raise UserError("--address: is that of a Ray cluster; give --engine ray, too")
    asked = read(path)
    workers = asked.workers if workers is None else count("--workers", workers)
    runs = expand(asked)
    states = {}
    for run in runs:
        with naming(run.name):
            states[run.name] = run.state()
    counts = [f"{list(states.values()).count(state)} {state}" for state in ("done", "to resume", "to run")]
    if dry_run:
        for run in runs:
            holder = run.folder.holder()
            told = f"{states[run.name]:<10}{run.name}" + (f", in use by {holder}" if holder else "")
            console.print(told, markup=False, highlight=False, soft_wrap=True)
            console.print(f"    {command(run, program)}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"{len(runs)} runs: {', '.join(counts)}", highlight=False)
        return 0
    left = [run for run in runs if states[run.name] != "done"]
    threads = max(run.threads for run in runs)
    where: Engine = Local() if engine == "local" else OnRay(address, workers, threads, asked.gpus, asked.retries)
    try:
        workers = workers or where.slots(threads)
        console.print(f"{len(runs)} runs: {', '.join(counts)}; {workers} at a time", highlight=False)
        pool = Pool(program, start or recorded.started(program), where, workers, console)
        pool.work(left, done=len(runs) - len(left))
    finally:
        where.stop()
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
    out = recorded.place(asked.out, program)
    compare = [*recorded.typed(recorded.other(program, "compare")), str(out), "--out", str(out / "report")]
    console.print(f"compare them with: {shlex.join(compare)}", markup=False, highlight=False, soft_wrap=True)
    return 1 if pool.failed else 0


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
