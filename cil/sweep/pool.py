"""The processes of a sweep: so many at a time, each logged, ended when asked to and never left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from cil.command.signals import ENDING
from cil.errors import UserError
from cil.experiment.progress import bars
from cil.report.report import percent
from cil.sweep.engines import PATIENCE, Engine, Process
from cil.sweep.runs import Run, command

POLL = 0.2  # seconds between two looks at the processes
TAIL = 6  # lines of a failed run's log that are shown


@dataclass
class Job:
    """A process at work on a run."""

    run: Run
    process: Process
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
        program: ``cil train`` or ``tools/train.py``, as a run's log names it.
        start: the words with which Python starts it.
        engine: starts the processes.
        workers: processes at a time.
        console: where to show progress: bars on a terminal, lines elsewhere.
    """

    def __init__(self, program: str, start: Sequence[str], engine: Engine, workers: int, console: Console) -> None:
        self.program, self.start, self.engine = program, start, engine
        self.workers = workers
        self.console = console
        self.failed: dict[str, list[str]] = {}  # run -> why, and the end of its log
        self.signal: int | None = None
        self.jobs: list[Job] = []
        self.total = self.finished = 0
        self.bars = bars(console)

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
        with open(log, "ab") as file:
            file.write(f"$ {command(run, self.program)}\n".encode())
            file.flush()
            since = file.tell()
        process = self.engine.start([*self.start, *run.argv], log, run.threads)
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
        """Note Ctrl-C, SIGTERM and SIGHUP for the loop, so that none cuts the start of a process in two."""

        def note(number: int, _: Any) -> None:
            self.signal = number

        # What is ignored stays so: a shell starts background jobs with Ctrl-C ignored.
        numbers = [n for n in (signal.SIGINT, *ENDING) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
