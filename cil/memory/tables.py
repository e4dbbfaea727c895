"""Numbers of exemplars that make methods equal in bytes, derived from the networks alone.

The tables are those of Zhou et al., A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning, ICLR
2023 (Tables 2-12), and of its authors' survey (TPAMI 2024): budgets in the ``paper`` convention, float32 backbone
parameters and raw images. A budget is what its anchor carries after the last task with a stated number of exemplars;
another method keeps floor((budget - 4 * parameters) / bytes of an image). The numbers of parameters come from growing
each method on the ``meta`` device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cil.data.images import Dataset, ImageSet
from cil.data.scenario import Scenario, disjoint
from cil.learning.strategy import Strategy
from cil.memory.budget import growth
from cil.nets.network import Model

Find = Callable[[str], type[Strategy]]  # the class of a strategy's name


@dataclass(frozen=True)
class Setting:
    """Classes in tasks, and the network that methods with a single one use.

    Attributes:
        name: of data set and tasks.
        task_sizes: classes of each task.
        side: of an image, in pixels; three channels.
        backbone: of the methods with one network.
        exemplars: that the anchor keeps.
    """

    name: str
    task_sizes: tuple[int, ...]
    side: int
    backbone: str
    exemplars: int = 2000

    @property
    def image_bytes(self) -> int:
        """Bytes of a raw colour image."""
        return 3 * self.side**2


@dataclass(frozen=True)
class Row:
    """One method at one budget: bytes of the budget, parameters after the last task, exemplars."""

    setting: str
    budget: int
    strategy: str
    backbone: str
    parameters: int
    exemplars: int


def tasks(first: int, step: int, classes: int) -> tuple[int, ...]:
    """Task sizes of "B``first`` Inc``step``"; with first 0 all tasks have ``step`` classes."""
    first = first or step
    return (first, *[step] * ((classes - first) // step))


CIFAR = Setting("CIFAR-100 B0 Inc10", tasks(0, 10, 100), 32, "cifar_resnet32")
IMAGENET = Setting("ImageNet-100 B50 Inc5", tasks(50, 5, 100), 224, "resnet18")
# The networks that DER and MEMO grow by at each budget; at the first, smallest one the single network is the anchor.
GROWING = {
    CIFAR: ("convnet2", "cifar_resnet14", "cifar_resnet20", "cifar_resnet26", "cifar_resnet32"),
    IMAGENET: ("convnet4", "resnet10", "resnet18", "resnet26", "resnet34", "resnet50"),
}
ALIGNED = (
    Setting("CIFAR-100 B0 Inc5", tasks(0, 5, 100), 32, "cifar_resnet32"),
    CIFAR,
    Setting("CIFAR-100 B0 Inc20", tasks(0, 20, 100), 32, "cifar_resnet32"),
    Setting("CIFAR-100 B50 Inc5", tasks(50, 5, 100), 32, "cifar_resnet32"),
    Setting("CIFAR-100 B50 Inc10", tasks(50, 10, 100), 32, "cifar_resnet32"),
    IMAGENET,
    Setting("ImageNet-100 B0 Inc10", tasks(0, 10, 100), 224, "resnet18"),
    Setting("ImageNet-1000 B0 Inc100", tasks(0, 100, 1000), 224, "resnet18", 20_000),
)


@functools.cache
def parameters(find: Find, strategy: str, backbone: str, task_sizes: tuple[int, ...]) -> int:
    """Backbone parameters that a strategy carries after the last of these tasks."""
    kind, scenario = find(strategy), _imageless(task_sizes)
    return growth(lambda: kind(Model(backbone=backbone).build(3)), scenario)[-1]["paper"] // 4


@functools.cache
def _imageless(task_sizes: tuple[int, ...]) -> Scenario:
    """Tasks of these sizes whose classes have one pixel each: growing asks for no more."""
    classes = np.arange(sum(task_sizes))
    images = ImageSet(np.zeros((len(classes), 1, 1, 3), dtype=np.uint8), classes)
    dataset = Dataset("pixels", images, images, tuple(map(str, classes)))
    stops = np.cumsum((0, *task_sizes)).tolist()
    return disjoint(dataset, [range(a, b) for a, b in itertools.pairwise(stops)], name="pixels")


def fit(budget: int, parameters: int, image_bytes: int) -> int:
    """Raw images that a budget leaves room for beside float32 parameters, rounded down."""
    return (budget - 4 * parameters) // image_bytes


def aligned(find: Find) -> Iterator[Row]:
    """Every setting at what DER with the benchmark's network and number of exemplars carries."""
    for setting in ALIGNED:
        anchor = parameters(find, "der", setting.backbone, setting.task_sizes)
        budget = 4 * anchor + setting.exemplars * setting.image_bytes
        for strategy in ("replay", "memo", "der"):
            own = parameters(find, strategy, setting.backbone, setting.task_sizes)
            kept = fit(budget, own, setting.image_bytes)
            yield Row(setting.name, budget, strategy, setting.backbone, own, kept)


def budgets(find: Find) -> Iterator[Row]:
    """Every budget of the memory-accuracy curves: DER and MEMO grow by a network that fits, others keep theirs."""
    for setting, networks in GROWING.items():
        single = parameters(find, "replay", setting.backbone, setting.task_sizes)
        for place, network in enumerate(networks):
            anchor = parameters(find, "der", network, setting.task_sizes) if place else single
            budget = 4 * anchor + setting.exemplars * setting.image_bytes
            for strategy in ("replay", "memo", "der"):
                backbone = setting.backbone if strategy == "replay" else network
                own = parameters(find, strategy, backbone, setting.task_sizes)
                yield Row(setting.name, budget, strategy, backbone, own, fit(budget, own, setting.image_bytes))


def in_images(find: Find, setting: Setting) -> float:
    """How many images a single network weighs: the 603 of the paper's title."""
    return 4 * parameters(find, "replay", setting.backbone, setting.task_sizes) / setting.image_bytes
