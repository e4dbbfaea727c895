"""Where a sweep's runs are computed: as processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cil.errors import UserError

# Asks Linux to kill this process when its parent ends, whatever ends it, and then becomes the run. The parent may have
# ended before the question. Elsewhere a run survives its sweep, and the next one waits for its lock.
LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the sweep has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


PATIENCE = 10.0  # seconds that a process is given to end when asked to


class Process(Protocol):
    """What a sweep needs of a run at work, as ``subprocess.Popen`` has it."""

    @property
    def returncode(self) -> Any:
        """The exit status; negative: the signal that ended it; None while it works."""
        ...

    def poll(self) -> int | None:
        """The exit status, None while it works."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended; ``subprocess.TimeoutExpired`` if it has not after so many seconds."""
        ...


class Engine(Protocol):
    """Starts runs."""

    def slots(self, threads: int) -> int:
        """How many runs with so many threads work at a time."""
        ...

    def start(self, words: list[str], log: Path, threads: int) -> Process:
        """Start a program of Python.

        Args:
            words: its path and arguments.
            log: where what it prints is appended.
            threads: it is told to compute with.
        """
        ...

    def stop(self) -> None:
        """Called at the end of a sweep."""
        ...


class Local:
    """Processes of this machine, which die with the sweep on Linux."""

    def slots(self, threads: int) -> int:
        """As many as there are processors for."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // threads)

    def start(self, words: list[str], log: Path, threads: int) -> Process:
        """A process, started by this one."""
        return opener()(words, str(log), threads, None)

    def stop(self) -> None:
        """Nothing is left to be done."""


def opener() -> Callable[[list[str], str, int, str | None], subprocess.Popen[bytes]]:
    """What starts a program of Python as a process that dies with this one.

    It is a function within a function, so that it travels by value to where this program cannot be imported.
    """
    launcher = LAUNCHER

    def open_process(words: list[str], log: str, threads: int, folder: str | None) -> subprocess.Popen[bytes]:
        command = [sys.executable, *words]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", launcher, str(os.getpid()), *command]
        limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
        with open(log, "ab") as file:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **limits, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # so that Ctrl-C reaches the sweep alone, which then ends its processes
            )

    return open_process


class OnRay:
    """Tasks of a Ray cluster, each of which runs one process. All machines see the folders under the same paths.

    Args:
        address: of the cluster, ``auto`` for the one of this machine; None starts one here for the sweep.
        workers: how many runs work at a time, where it was stated.
        threads: of a run, of which there is room for ``workers`` on a cluster that is started here.
        gpus: of each run, may be a fraction.
        retries: of a run whose worker dies.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str | None, workers: int | None, threads: int, gpus: float, retries: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray: Ray is not installed; pip install 'cil-framework[ray]'") from error
        self.ray, self.gpus, self.retries = ray, gpus, retries
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            if address is None:
                cpus = (workers or Local().slots(threads)) * threads
                ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
            else:
                _knock(address)
                ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            what = f"no Ray cluster can be used at '{address}'" if address else "no Ray cluster can be started here"
            raise UserError(f"--engine ray: {what}: {str(error).splitlines()[0]}") from error

    def slots(self, threads: int) -> int:
        """As many as the cluster has processors and GPUs for, as it is now."""
        have = self.ray.cluster_resources()
        by_cpu = have.get("CPU", 0) // threads
        return max(1, int(min(by_cpu, have.get("GPU", 0) // self.gpus) if self.gpus else by_cpu))

    def start(self, words: list[str], log: Path, threads: int) -> Process:
        """A task, which waits for room on the cluster and then starts the process there."""
        open_process, patience = opener(), PATIENCE

        def run(words: list[str], log: str, threads: int, folder: str) -> int:
            process = open_process(words, log, threads, folder)
            try:
                return process.wait()
            finally:  # cancelled: the run writes what it has, and can be resumed
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(patience)
                    except Exception:
                        process.kill()

        # Defined in here, it travels by value: workers need not import this program.
        task = self.ray.remote(num_cpus=threads, num_gpus=self.gpus, max_retries=self.retries)(run)
        return _Task(self.ray, task.remote(words, str(log.resolve()), threads, str(Path.cwd())))

    def stop(self) -> None:
        """Leave the cluster; one that was started for the sweep ends."""
        self.ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address where nobody listens at once; Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


class _Task:
    """A task of Ray as a process."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a task of Ray", timeout or 0)
        return code

    def terminate(self) -> None:
        self.ray.cancel(self.reference)

    def kill(self) -> None:
        self.ray.cancel(self.reference, force=True)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and self.ray.wait([self.reference], timeout=timeout)[0]:
            try:
                self.returncode = int(self.ray.get(self.reference))
            except self.ray.exceptions.RayError:
                self.returncode = -9  # its worker died more often than it was to be tried again, or it was cancelled
        return self.returncode
