"""The folder of a run: ``config.yaml``, ``results.json``, ``report.md``, ``events/`` and ``checkpoint/``.

While a process writes there, it holds a lock on ``.lock``. What a sweep records of its processes is in ``log.txt``.
Neither makes a folder a used one, and ``--overwrite`` keeps the log.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cil import locks
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints, DamagedError
from cil.experiment.provenance import Origin, changed
from cil.files import check_folder, reason, write_atomic
from cil.report import report

TELLING = {"config", "seeds", "fingerprint", "scenario", "strategy"}  # of results.json, what a run learned from
IN_USE = "model.safetensors"  # what a model became that was taught more, or made to forget, since the run
OWN = ("config.yaml", "results.json", "report.md", "events", "checkpoint", IN_USE)


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
            UserError: the folder holds a run and neither flag is given, both are, it resumes another configuration, or
                what is there does not tell of which one it is.
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")
        check_folder("run_dir", self.path)
        used = [name for name in OWN if (self.path / name).exists()]
        if used and not (resume or overwrite):
            raise UserError(
                f"run_dir: {self.path} already holds a run ({', '.join(used)}). Give --resume to go on with it, "
                "--overwrite to replace it, or another --run_dir."
            )
        if resume:
            where, before = self._configuration()
            different = changed(before, config) if before is not None else []
            if different:
                raise UserError(f"--resume: {where} was run with another configuration: {'; '.join(different)}")

    def check_data(self, now: Origin) -> None:
        """Refuse to go on with what was learned from other data, before anything is changed.

        Args:
            now: what the run to come learns from.

        Raises:
            UserError: names what differs, and what is to be done.
        """
        content = self.results()
        told = Origin.of_results(content) if content is not None and content.keys() >= TELLING else None
        if told is not None and not told.other_data(now):
            return
        newest = next((origin for _, origin in self._origins() if origin is not None), None)
        if told is None or (newest is not None and newest.fingerprint == told.fingerprint):
            told = newest  # which knows classes apart
        if told is None:
            return
        remedy = "Give it the data that it learned, or learn anew: --overwrite, or another --run_dir"
        if content is not None and content["status"] == "complete":
            remedy = (
                "The run is complete, and --resume does not extend it with more data; to learn all of them give "
                "another --run_dir, or --overwrite"
            )
        told.assert_same(replace(now, config=told.config), self.path, remedy)

    def _configuration(self) -> tuple[Path, dict[str, Any] | None]:
        """The configuration of the run that is here, by the first of its files that tells, and its place; None: no run.

        Raises:
            UserError: a file is damaged, and no other one tells what it held.
        """
        content, origins = self.results(), self._origins()
        if content is not None and "config" in content:
            return self.path, content["config"]
        if not origins:
            self._assert_whole("results.json", content)
        for path, origin in origins:
            if origin is None:
                raise UserError(
                    f"--resume: {path} does not say what it was learned from, as earlier versions wrote it, and "
                    "results.json, which tells, is missing or damaged; learn anew with --overwrite or another --run_dir"
                )
            if origin.config is not None:
                return path, origin.config
        config = self._read("config.yaml")
        self._assert_whole("config.yaml", config)
        return self.path, config

    def _origins(self) -> list[tuple[Path, Origin | None]]:
        """What the checkpoints that are not damaged were learned from, the newest first; None: it is not told."""
        found: list[tuple[Path, Origin | None]] = []
        for moment in reversed(self.checkpoints.moments()):
            with contextlib.suppress(DamagedError):
                told = self.checkpoints.origin_of(moment)
                path = self.checkpoints.folder / f"{moment.name}.json"
                found.append((path, None if told is None else Origin.from_json(told)))
        return found

    def _assert_whole(self, name: str, content: dict[str, Any] | None) -> None:
        if content is None and (self.path / name).exists():
            raise UserError(
                f"--resume: {self.path / name} is damaged, and there is no checkpoint to make it anew from; learn anew "
                "with --overwrite or another --run_dir"
            )

    def _read(self, name: str) -> dict[str, Any] | None:
        """The keys and values of a file, None if it is missing or damaged."""
        path = self.path / name
        try:
            text = path.read_text()
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}. Nothing was changed") from error
        except (ValueError, yaml.YAMLError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    @contextlib.contextmanager
    def open(self, config_text: str, *, overwrite: bool) -> Iterator[None]:
        """Hold the folder; make it, empty it of a former run if asked to, and write the configuration.

        Raises:
            UserError: another process holds it, or it cannot be written; nothing was changed.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir: {self.path} cannot be made: {reason(error)}") from error
        with locks.held(self.path / ".lock", f"run_dir: {self.path}"):
            try:
                if overwrite:
                    for name in OWN:
                        path = self.path / name
                        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                for part in [*self.path.glob(".*.part"), *self.checkpoints.folder.glob(".*.part")]:
                    part.unlink(missing_ok=True)  # of a run that was killed
            except OSError as error:
                raise UserError(f"run_dir: {self.path} cannot be changed: {reason(error)}") from error
            write_atomic(self.path / "config.yaml", config_text.encode())
            yield

    def mend(self, config_text: str) -> None:
        """Write the configuration of a complete run anew if it is missing or damaged."""
        if self._read("config.yaml") is None:
            with self.open(config_text, overwrite=False):
                pass

    def holder(self) -> str | None:
        """The process that holds the folder, as ``process 123``; None if it is free."""
        return locks.holder(self.path / ".lock")

    def results(self) -> dict[str, Any] | None:
        """The results so far, None if there are none, or none that can be understood.

        Raises:
            UserError: the file cannot be read now.
        """
        content = self._read("results.json")
        return content if content is not None and "status" in content else None

    def write(self, content: dict[str, Any]) -> None:
        """Write ``report.md`` and ``results.json``.

        Raises:
            UserError: the disk is full, or the folder may not be written.
        """
        write_atomic(self.path / "report.md", report.markdown(content).encode())
        write_atomic(self.path / "results.json", (report.readable(content) + "\n").encode())

    def mark_failed(self) -> None:
        """Say in ``results.json`` that the run does not go on, where there is no room to write it anew: in place."""
        was, failed = b'"status": "running"', b'"status": "failed" '
        with contextlib.suppress(OSError, ValueError), (self.path / "results.json").open("r+b") as file:
            file.seek(file.read().index(was))
            file.write(failed)
