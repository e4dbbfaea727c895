"""SIGTERM and SIGHUP end a program as Ctrl-C does: what is under way is left in good order."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

NAMES = ("SIGTERM", "SIGHUP")  # there is no SIGHUP on Windows
ENDING = tuple(signal.Signals[name] for name in NAMES if name in signal.Signals.__members__)


class Ended(KeyboardInterrupt):
    """A signal asked the program to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


def behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption on whose way out an error came up, such as a terminal that is gone; None: there is none."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__context__
    return found


def told(error: KeyboardInterrupt) -> tuple[str, int]:
    """What to say of an interruption, and the exit status: 128 and the number of the signal."""
    number = error.number if isinstance(error, Ended) else signal.SIGINT
    by = "" if number == signal.SIGINT else f" by {number.name}"
    return f"interrupted{by}; --resume goes on from the last checkpoint", 128 + number


@contextlib.contextmanager
def as_interruptions() -> Iterator[None]:
    """In here the first such signal raises :class:`Ended` in the main thread; later ones wait for what it began.

    A signal that is ignored stays so: ``nohup`` starts programs with SIGHUP ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, coming = os.getpid(), False

    def end(number: int, _: Any) -> None:
        nonlocal coming
        if os.getpid() != owner:  # a process forked from this one, which has nothing to leave in order
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not coming:
            coming = True
            raise Ended(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    taken = [number for number in ENDING if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)
