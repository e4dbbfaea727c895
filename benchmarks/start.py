"""Seconds from the command to the first gradient step, and how much of them torch's own import takes.

    python benchmarks/start.py --rounds 5

Each round starts, in turn, a Python that only imports torch; one that also imports torch's compiler, as any step of its
optimisers does; ``tools/train.py`` with a configuration, stopped when its first step ends; and its plan. Medians
and the fastest of all rounds; files are read once before, so that the disk does not count.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Runs the tool, and ends the process where the first step ends.
UNTIL_STEP = """
import os, runpy, sys
sys.path.insert(0, "tools")
sys.argv = sys.argv[1:]
import cil.learning.trainer
step = cil.learning.trainer.Trainer.train_step
cil.learning.trainer.Trainer.train_step = lambda *words: [step(*words), os._exit(0)]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def seconds(words: list[str]) -> float:
    """How long a process of Python takes."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - begin


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", nargs="+", default=["configs/quickstart.yaml"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [word for file in arguments.config for word in ("--config", file)]
        run = ["tools/train.py", *files, "--run_dir", f"{folder}/run", "--overwrite"]
        commands = {
            "import torch": ["-c", "import torch"],
            "... and its compiler": ["-c", "import torch._dynamo"],
            "command to first step": ["-c", UNTIL_STEP, *run],
            "plan (--dry-run)": [*run, "--dry-run"],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(arguments.rounds + 1):
            for name, words in commands.items():
                one = seconds(words)
                if number:  # the first round fills the disk cache
                    taken[name].append(one)
    print(f"{', '.join(arguments.config)}; {arguments.rounds} rounds, python {platform.python_version()}, ", end="")
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n")
    print(f"{'':<24}{'median s':>10}{'fastest s':>11}")
    for name, each in taken.items():
        print(f"{name:<24}{statistics.median(each):>10.2f}{min(each):>11.2f}")


if __name__ == "__main__":
    main()
