"""Lock files: one process at a time, until it ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cil.errors import UserError
from cil.files import reason

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however that comes about.

    Args:
        path: of the file, which is made and removed here.
        what: is held, as messages name it.

    Raises:
        UserError: another process holds it, or the file cannot be written.
    """
    if fcntl is None:
        yield
        return
    file = _lock(path, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # before it is freed: afterwards it may be someone else's
        file.close()


def _lock(path: Path, what: str) -> IO[str]:
    for _ in range(20):  # whoever only asks for the holder has the lock for a moment
        try:
            file = path.open("a")
        except OSError as error:
            raise UserError(f"{what} cannot be written: {reason(error)}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            time.sleep(0.05)
            continue
        except OSError:  # a file system without locks
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                with contextlib.suppress(OSError):  # without room nobody learns who holds it
                    file.truncate(0)
                    print(os.getpid(), file=file, flush=True)
                return file
        file.close()  # its former holder deleted it between the opening and the locking
    raise UserError(f"{what} is in use by {_writer(path)}")


def _writer(path: Path) -> str:
    """Who wrote a lock file, which is empty for a moment."""
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def holder(path: Path) -> str | None:
    """The process that holds a lock file, as ``process 123``; None if it is free."""
    if fcntl is None:
        return None
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _writer(path)
    except OSError:  # no such file, or a file system without locks
        pass
    return None
