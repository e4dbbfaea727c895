"""What was learned, put together again without its data: a strategy, its exemplars and the run without images."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cil.command import config as cfg
from cil.data.images import ImageSet
from cil.data.scenario import Scenario
from cil.data.seeds import Seeds
from cil.errors import UserError
from cil.experiment.blueprint import Blueprint
from cil.experiment.experiment import Experiment
from cil.experiment.provenance import Origin
from cil.experiment.resume import Start
from cil.learning.state import under, with_prefix
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Exemplars

Event = dict[str, Any]  # JSON values: what was done to a model, and when


def event(did: str, **more: Any) -> Event:
    """One entry of a model's history.

    Args:
        did: the verb.
        more: JSON values that say to what.
    """
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"did": did, **more, "when": when, "torch": torch.__version__}


class State(NamedTuple):
    """All that a model is, as values.

    Attributes:
        origin: what it was learned from.
        blueprint: the shape of what was learned.
        tensors: the strategy's state and the exemplars, by name.
        history: what was done to it, the first that it was learned; its length is the model's revision.
    """

    origin: Origin
    blueprint: Blueprint
    tensors: dict[str, Tensor]
    history: tuple[Event, ...]


class Learned:
    """A strategy after a task, with its exemplars and the run that it belongs to.

    Args:
        state: what was learned.
        device: where to compute.

    Attributes:
        origin: what it was learned from.
        blueprint: the shape of what was learned.
        history: what was done to it.
        experiment: the run without its data.
        strategy: in eval mode.
        exemplars: that it carries.
        place: where it computes.
        threads: of the processor, that the run computed with; None: all.
    """

    def __init__(self, state: State, device: torch.device) -> None:
        self.origin, self.blueprint, self.history = state.origin, state.blueprint, state.history
        if state.origin.config is None:
            raise UserError(
                "this model was learned by a program without a configuration, so it cannot be put together again"
            )
        config, seeds = state.origin.config, state.origin.seeds
        self.experiment, self.threads = put_together(config, seeds, state.blueprint, device)
        start = self.start(self.experiment, state.tensors)
        self.strategy, self.exemplars = start.strategy, start.exemplars
        self.strategy.eval()
        self.place = self.experiment.place(len(self.blueprint.tasks) - 1)

    def start(self, experiment: Experiment, tensors: dict[str, Tensor] | None = None) -> Start:
        """A copy of the state, from which a run with these tasks, and maybe more, can go on.

        Args:
            experiment: whose first tasks are those that were learned.
            tensors: the state; None: as it is now.
        """
        tensors = self.tensors() if tensors is None else tensors
        start = Start(experiment)
        start.done = len(self.blueprint.tasks)
        for task in experiment.scenario.tasks[: start.done]:
            experiment.grow(start.strategy, task)
        start.strategy.load_state_dict(under("strategy", tensors))
        start.exemplars.load(under("exemplars", tensors), self.blueprint.images_seen)
        return start

    def tensors(self) -> dict[str, Tensor]:
        """The state as plain tensors, a copy."""
        return plain(self.strategy, self.exemplars)

    def state(self) -> State:
        """All of it as values."""
        return State(self.origin, self.blueprint, self.tensors(), self.history)

    def longer(self, images: ImageSet, names: tuple[str, ...]) -> Experiment:
        """The run with one task more.

        Args:
            images: of that task, labels as ids.
            names: of classes that are new in it.
        """
        scenario = self.blueprint.scenario(self.experiment.scenario.name, images, names)
        longer = dataclasses.replace(self.experiment, scenario=scenario)
        longer.sized = self.blueprint.sized
        return longer

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """As many processor threads inside as the run had, so that bits are the same; outside as before."""
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def plain(strategy: Strategy, exemplars: Exemplars) -> dict[str, Tensor]:
    """What is carried as plain tensors, a copy: on the processor, in row-major order."""
    named = {**with_prefix("strategy", strategy.state_dict()), **with_prefix("exemplars", exemplars.state())}
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}


def _once(build: Callable[[], Strategy]) -> Callable[[], Strategy]:
    """Build a strategy once on each device and copy it from then on: its weights come from a state anyhow."""
    made: dict[str, Strategy] = {}

    def copied() -> Strategy:
        where = str(torch.get_default_device())
        if where not in made:
            made[where] = build()
        return copy.deepcopy(made[where])

    return copied


def put_together(
    config: dict[str, Any],
    seeds: dict[str, int],
    blueprint: Blueprint,
    device: torch.device,
    *,
    scenario: Scenario | None = None,
    anew: bool = False,
) -> tuple[Experiment, int | None]:
    """A run of a configuration that was kept, and its processor threads.

    Args:
        config: as a run keeps it.
        seeds: of the run.
        blueprint: of what was learned: how pictures are prepared.
        device: where to compute.
        scenario: of the run; None: that of the blueprint, without images, which is enough to build its strategy.
        anew: it is to learn from the start: pretrained weights are read, and what a budget decides is decided.

    Raises:
        UserError: a class, a file of weights or an option is not there any more.
    """
    parser, parsed = cfg.of_content(config)
    model = parsed.model
    if not anew:
        model.preprocessing, model.pretrained_classes = blueprint.preprocessing, None
        if model.weights is not None:  # the state holds them
            model.weights = "random"
    built = parser.instantiate(parsed)
    if anew and built.model.weights:
        built.model.weights = built.model.weights.replace("{seed}", str(seeds["init"]))
    if not anew and blueprint.budget is not None:  # in bytes: what else it was stated as may need the data
        built.memory.budget = blueprint.budget
    channels = blueprint.image_shape[0]

    def build() -> Strategy:
        return cast(Strategy, built.strategy(built.model.build(channels)))

    experiment = Experiment(
        scenario=scenario or blueprint.scenario("a model"),
        build=build if anew else _once(build),
        trainer=built.trainer,
        memory=built.memory,
        augmentation=built.augmentation,
        seeds=Seeds(**seeds),
        evaluators=tuple(built.evaluators or ()),
        device=device,
        precision=blueprint.precision,
        compile=built.compile,
        calibration=0.0 if built.calibration is None and blueprint.calibrated else built.calibration,
    )
    if not anew:
        experiment.sized = blueprint.sized  # what a budget decided for all tasks
    return experiment, built.threads
