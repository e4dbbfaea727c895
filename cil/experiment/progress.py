"""Shows how far a run is, on the terminal and in TensorBoard event files."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from cil.data.scenario import Task
from cil.evaluation.accuracy import Predictions
from cil.files import reason
from cil.memory.ledger import Bytes
from cil.shown import Terminal
from cil.units import mib


def bars(console: Console) -> Bars:
    """Bars with what is done, how many of how many, time and time left; nothing where there is no terminal."""
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class Events:
    """TensorBoard's event file of a run, written by this thread, so that whoever writes learns that it failed.

    Args:
        folder: of event files; made here.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # a while to import, so only when it is used
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.records = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Numbers by name at a step."""
        values = [self.summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        self._add(step=step, summary=self.summary(value=values))

    def flush(self) -> None:
        """Hand on to the system what was written."""
        self.records.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self.records.close()

    def _add(self, **fields: Any) -> None:
        self.records.write(self.event(wall_time=time.time(), **fields).SerializeToString())


class Progress:
    """Bars for tasks, epochs and steps with the time left, a line for each task, and event files.

    Args:
        console: where to write.
        events: folder of the TensorBoard files; None writes none.
    """

    def __init__(self, console: Console, events: Path | None = None) -> None:
        self.console = console
        self.bars = bars(console)
        self.of_tasks: TaskID | None = None
        self.of_steps: TaskID | None = None
        self.writer: Events | None = None
        if events is not None:
            with self._writing():
                self.writer = Events(events)

    @classmethod
    def silent(cls) -> Progress:
        """Shows nothing."""
        return cls(Terminal(quiet=True))

    def say(self, text: str) -> None:
        """A line for the user."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around what writes events: a run is not ended by what only shows it, so it goes on without them."""
        try:
            yield
        except OSError as error:
            self.writer = None
            self.warn(f"events are not written any more: {reason(error)}")

    @contextlib.contextmanager
    def tasks(self, total: int, done: int) -> Iterator[None]:
        """Around a whole run of ``total`` tasks, ``done`` of them finished earlier."""
        with self.bars:
            self.of_tasks = self.bars.add_task("tasks", total=total, completed=done)
            self.of_steps = self.bars.add_task("", total=1)
            try:
                yield
            finally:
                if self.writer is not None:
                    with self._writing():
                        self.writer.close()

    @contextlib.contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Around work on ``total`` things before the tasks; what it gives is called with the number of those done."""
        with self.bars:
            bar = self.bars.add_task(what, total=total)
            try:
                yield lambda done: self.bars.advance(bar, done)
            finally:
                self.bars.remove_task(bar)

    def epoch_starts(self, task: Task, stage: int, epoch: int, epochs: int, steps: int) -> None:
        """A pass over ``steps`` batches starts."""
        kind = "task" if task.boundary else "piece"
        where = f"{kind} {task.index + 1}" + (f", stage {stage + 1}" if stage else "")
        if self.of_steps is not None:
            if epoch == 0 or self.bars.tasks[1].total != steps * epochs:
                self.bars.reset(self.of_steps, total=steps * epochs, completed=steps * epoch)
            self.bars.update(self.of_steps, description=f"{where}, epoch {epoch + 1}/{epochs}")

    def step_done(self) -> None:
        """A batch was learned."""
        if self.of_steps is not None:
            self.bars.advance(self.of_steps)

    def epoch_done(self, task: Task, stage: int, epoch: int, epochs: int, loss: float, lr: float) -> None:
        """A pass ended with this mean loss at this learning rate."""
        if self.writer is not None:
            step = task.index * epochs + epoch
            with self._writing():
                self.writer.write(step, {f"loss/stage{stage}": loss, f"lr/stage{stage}": lr})

    def task_done(
        self, task: Task, predictions: dict[str, Predictions], size: Bytes, *, ended: str | None = None
    ) -> None:
        """A task was learned and evaluated; ``ended`` names what has come to its end, None: nothing worth a line."""
        accuracy = {name: seen.confusion.trace() / seen.confusion.sum() for name, seen in predictions.items()}
        if self.writer is not None:
            scalars: dict[str, Any] = {f"accuracy/{name}": value for name, value in accuracy.items()}
            scalars |= {f"bytes/{name}": value for name, value in size.items()}
            with self._writing():
                self.writer.write(task.index, scalars)
                self.writer.flush()
        if self.of_tasks is not None:
            self.bars.advance(self.of_tasks)
        if ended is None:
            return
        shown = [f"{name} {100 * value:.1f} %" for name, value in accuracy.items()]
        parts = [
            f"{task.n_seen} classes seen",
            *([", ".join(shown)] if shown else []),
            f"{mib(size['strict'])} MiB carried",
        ]
        self.say(f"{ended}: {'; '.join(parts)}")
