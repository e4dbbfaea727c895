"""Change a model where it lies: the old one is whole until the new one is, whenever the program ends."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from cil import locks
from cil.deploy import model_file
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.files import check_folder
from cil.report.folder import IN_USE
from cil.verbs.learned import State


class InUse:
    """A model on disk, and where what becomes of it is written.

    Args:
        path: the folder of a run, or a file of a model.
        out: where the new model is written; None: the file itself, or ``model.safetensors`` in the folder of a run,
            which is the model of that run from then on.

    Raises:
        UserError: there is no such model; or ``out`` is there, has another ending, or lies where no file can be.
    """

    def __init__(self, path: Path, out: Path | None = None) -> None:
        if not path.exists():
            raise model_file.missing(path)
        if path.name == IN_USE and (path.parent / "checkpoint").is_dir():
            path = path.parent  # the model of a run, whose states belong to it
        self.path = path
        self.target = out or (path / IN_USE if path.is_dir() else path)
        self.elsewhere = out is not None
        model_file.check_name(self.target)
        check_folder("out", self.target.parent)
        if out is not None and out.exists():
            raise UserError(f"{out} is already there; give another name or remove it")

    def meanwhile(self, fingerprint: str) -> Path:
        """Folder that keeps the state while more is learned, so that an interrupted extension goes on.

        Args:
            fingerprint: of what is learned: another extension has another folder.
        """
        return self.target.with_name(f"{self._meanwhile}{fingerprint[:12]}")

    @property
    def _meanwhile(self) -> str:
        return f".{self.target.name}.learning-"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No other program changes the model inside.

        Raises:
            UserError: another one does, or the place cannot be written.
        """
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if self.path.is_dir():  # nor goes its run on
                stack.enter_context(locks.held(self.path / ".lock", str(self.path)))
            stack.enter_context(locks.held(self.target.with_name(f".{self.target.name}.lock"), str(self.target)))
            yield

    def write(self, state: State) -> None:
        """Put the new model in the place of the old one.

        Raises:
            UserError: it cannot be written; the old one is whole.
        """
        model_file.write(state, self.target)
        for left in self.target.parent.glob(f"{self._meanwhile}*"):
            shutil.rmtree(left, ignore_errors=True)

    def purge(self, state: State) -> int:
        """Remove states of the run that hold what its model has forgotten; gives their number.

        Every checkpoint that knows a forgotten class, or may hold a forgotten image, goes, so that no file of the model
        holds an exemplar of it. A new model that was written elsewhere leaves the old one as it is.

        Args:
            state: of the new model, which is written.
        """
        if self.elsewhere or not self.path.is_dir():
            return 0
        checkpoints = Checkpoints(self.path / "checkpoint")
        before = len(checkpoints.moments())
        first = min(state.blueprint.forgotten, default=0)
        tasks, seen = state.blueprint.tasks, 0
        clean = set()  # tasks after which nothing that was forgotten had been met
        images = any(event["did"] == "forget" and event["images"] for event in state.history)
        for index, one in enumerate(tasks):
            seen += one["new"]
            if seen <= first and not images:
                clean.add(index)
        checkpoints.prune(lambda moment: not moment.inside and moment.task in clean)
        for left in (*checkpoints.folder.glob("*.damaged*"), *checkpoints.folder.glob(".*.part")):
            left.unlink(missing_ok=True)
        return before - len(checkpoints.moments())
