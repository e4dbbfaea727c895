"""What every strategy carries after three tasks; by torchrun on several processes, imported on one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cil.command.names import files, find_class
from cil.experiment.run import run
from cil.machine import distributed
from cil.testing.lab import SHORT, Lab, TinyNet

# Float32 products and sums would differ with the order in which they are added.
EXACT = {"products": "float64"}
OPTIONS = {
    "acil": {"width": 40, "gamma": 1.0, **EXACT},
    "gacil": {"width": 40, "gamma": 1.0, **EXACT},
    "dsal": {"width": 40, "gamma": 1.0, "compensation_gamma": 1.0, **EXACT},
    "gkeal": {"width": 20, "gamma": 1.0, "sigma": None, **EXACT},
    "ranpac": {"width": 40, "penalties": [0.1, 1.0, 10.0], **EXACT},
}
NAMES = list(files("strategy"))


class Plain(TinyNet):
    """The toy network without batch normalisation, whose statistics are those of each process's own images."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(in_channels)
        self.stem[1] = nn.Identity()
        self.body[1] = nn.Identity()


def carried(name: str) -> dict[str, Tensor]:
    """The state and the exemplars of a strategy after three tasks in float64."""
    lab = Lab(find_class("strategy", name), OPTIONS.get(name), Plain)
    experiment = lab.experiment(sizes=(2, 2, 2), epochs=SHORT)
    experiment.precision = "64"
    _, strategy, exemplars = run(experiment)
    return {**strategy.state_dict(), **{f"exemplars {key}": value for key, value in exemplars.state().items()}}


def threads() -> list[str]:
    """Threads of this process that belong to the process group, by the name that the system shows."""
    names = (task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.launch(torch.device("cpu"), int(os.environ["LOCAL_WORLD_SIZE"]), 1):
        rank = distributed.rank()
        for name in NAMES:
            state = {key: value.contiguous() for key, value in carried(name).items()}
            save_file(state, Path(sys.argv[1]) / f"{name}-{rank}.safetensors")
        during = threads()
    (Path(sys.argv[1]) / f"threads-{rank}.json").write_text(json.dumps({"during": during, "after": threads()}))
