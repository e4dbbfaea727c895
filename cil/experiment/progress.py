"""Shows how far a run is, on the terminal and in TensorBoard event files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from cil.memory.ledger import Bytes
from cil.units import mib

if TYPE_CHECKING:
    from cil.data.scenario import Task
    from cil.evaluation.accuracy import Predictions


def bars(console: Console) -> Bars:
    """Bars with what is done, how many of how many, time and time left; nothing where there is no terminal."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


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
        self.writer: Any = None
        if events is not None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import, so only when it is used

            self.writer = SummaryWriter(str(events))
        self.epochs = 0

    @classmethod
    def silent(cls) -> Progress:
        """Shows nothing."""
        return cls(Console(quiet=True))

    def say(self, text: str) -> None:
        """A line for the user."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

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
            self.writer.add_scalar(f"loss/stage{stage}", loss, step)
            self.writer.add_scalar(f"lr/stage{stage}", lr, step)

    def task_done(
        self, task: Task, predictions: dict[str, Predictions], size: Bytes, *, ended: str | None = None
    ) -> None:
        """A task was learned and evaluated; ``ended`` names what has come to its end, None: nothing worth a line."""
        accuracy = {name: seen.confusion.trace() / seen.confusion.sum() for name, seen in predictions.items()}
        if self.writer is not None:
            for name, value in accuracy.items():
                self.writer.add_scalar(f"accuracy/{name}", value, task.index)
            for name, value in size.items():
                self.writer.add_scalar(f"bytes/{name}", value, task.index)
            self.writer.flush()
        if self.of_tasks is not None:
            self.bars.advance(self.of_tasks)
        if ended is None:
            return
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items())
        self.say(f"{ended}: {task.n_seen} classes seen; {shown}; {mib(size['strict'])} MiB carried")
