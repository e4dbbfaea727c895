"""The folder of a run: ``config.yaml``, ``results.json``, ``report.md``, ``events/`` and ``checkpoint/``.

While a process writes there, it holds a lock on ``.lock``. What a sweep records of its processes is in ``log.txt``.
Neither makes a folder a used one, and ``--overwrite`` keeps the log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.files import write_atomic
from cil.report import report

try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

OWN = ("config.yaml", "results.json", "report.md", "events", "checkpoint")


class RunFolder:
    """Reads and writes a run's files, each of them whole or not at all.

    Args:
        path: the folder; made when the run is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoint")
        self.events = path / "events"

    def check(self, config: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that is in use, before anything is changed.

        Args:
            config: the resolved configuration of the run to come.
            resume: the run goes on with what is there.
            overwrite: the run replaces what is there.

        Raises:
            UserError: the folder holds a run and neither flag is given, both are, or it resumes another configuration.
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run_dir: {self.path} is a file")
        used = [name for name in OWN if (self.path / name).exists()]
        if used and not (resume or overwrite):
            raise UserError(
                f"run_dir: {self.path} already holds a run ({', '.join(used)}). Give --resume to go on with it, "
                "--overwrite to replace it, or another --run_dir."
            )
        if resume and (self.path / "config.yaml").exists():
            before = _flat(yaml.safe_load((self.path / "config.yaml").read_text()))
            now = _flat(config)
            different = [
                f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
                for key in sorted(before.keys() | now.keys())
                if before.get(key) != now.get(key) and key.split(".")[0] not in report.FREE
            ]
            if different:
                raise UserError(f"--resume: {self.path} was run with another configuration: {'; '.join(different)}")

    @contextlib.contextmanager
    def open(self, config_text: str, *, overwrite: bool) -> Iterator[None]:
        """Hold the folder; make it, empty it of a former run if asked to, and write the configuration.

        Raises:
            UserError: another process holds it; nothing was changed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _held(self.path / ".lock"):
            if overwrite:
                for name in OWN:
                    path = self.path / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            write_atomic(self.path / "config.yaml", config_text.encode())
            yield

    def holder(self) -> str | None:
        """The process that holds the folder, as ``process 123``; None if it is free."""
        if fcntl is None:
            return None
        path = self.path / ".lock"
        try:
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _writer(path)
        except OSError:  # no such file, or a file system without locks
            pass
        return None

    def results(self) -> dict[str, Any] | None:
        """The results so far, None if there are none."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, content: dict[str, Any]) -> None:
        """Write ``results.json`` and ``report.md``."""
        write_atomic(self.path / "results.json", (report.readable(content) + "\n").encode())
        write_atomic(self.path / "report.md", report.markdown(content).encode())


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however that comes about."""
    if fcntl is None:
        yield
        return
    file = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is freed: afterwards it may be someone else's
        file.close()


def _lock(path: Path) -> IO[str]:
    for _ in range(20):  # whoever only asks for the holder has the lock for a moment
        file = path.open("a")
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
                file.truncate(0)
                print(os.getpid(), file=file, flush=True)
                return file
        file.close()  # its former holder deleted it between the opening and the locking
    raise UserError(f"run_dir: {path.parent} is in use by {_writer(path)}")


def _writer(path: Path) -> str:
    """Who wrote a lock file, which is empty for a moment."""
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
