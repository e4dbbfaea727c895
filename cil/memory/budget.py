"""A budget in bytes becomes room for exemplars after each task.

How the network grows is found by running the strategy's ``grow`` for all tasks on the ``meta`` device, so no strategy
declares a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cil.data.scenario import Scenario
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Memory
from cil.memory.ledger import Bytes, counted, measure
from cil.units import mib, parse_bytes, show


@dataclass(frozen=True)
class Reference:
    """Another method, whose size after the last task is the budget.

    Attributes:
        build: makes it, without classes.
        exemplars: number of raw exemplars that it keeps.
        text: how the user named it.
    """

    build: Callable[[], Strategy]
    exemplars: int
    text: str


@dataclass(frozen=True)
class Budget:
    """The most that a run may carry.

    Attributes:
        bytes: of network and exemplars together.
        align: ``final`` or ``always``, see :class:`cil.memory.exemplars.Memory`.
        convention: ``strict`` or ``paper``.
        text: how the user stated it.
    """

    bytes: int
    align: str
    convention: str
    text: str


def growth(build: Callable[[], Strategy], scenario: Scenario) -> list[Bytes]:
    """What the strategy's state will take after each task, without exemplars; nothing is allocated."""
    sizes = []
    with torch.device("meta"):
        strategy = build()
        for task in scenario.tasks:
            strategy.grow(task.without_data())
            sizes.append(measure(strategy, 0, 0))
    return sizes


def resolve(memory: Memory, scenario: Scenario, reference: Reference | None) -> Budget | None:
    """The budget that a memory states; None if it states a number of exemplars.

    Args:
        memory: with a budget or without.
        scenario: whose tasks and images a reference is measured on.
        reference: what ``as`` names.

    Raises:
        UserError: the budget is no number of bytes.
    """
    if memory.budget is None:
        return None
    if reference is None:
        assert not isinstance(memory.budget, dict), "as needs a reference"
        return Budget(parse_bytes(memory.budget), memory.align, memory.convention, str(memory.budget))
    with torch.device("meta"):
        widths = reference.build().exemplar_columns(scenario.n_classes)
    raw = Memory(convention=memory.convention)
    item = scenario.test.image_bytes + raw.item_bytes(raw.make_codec(scenario.image_shape), widths)
    total = counted(growth(reference.build, scenario)[-1], memory.convention) + reference.exemplars * item
    return Budget(total, memory.align, memory.convention, f"{mib(total)}MiB as {reference.text}")


def rooms(budget: Budget, sizes: Sequence[Bytes]) -> list[int]:
    """Bytes for exemplars after each task: what the budget leaves beside the state, final or current.

    Args:
        budget: the whole.
        sizes: of the state after each task, from :func:`growth`.

    Returns:
        One number for each task; negative where the state alone is too large.
    """
    carried = [counted(size, budget.convention) for size in sizes]
    if budget.align == "final":
        return [budget.bytes - carried[-1]] * len(carried)
    return [budget.bytes - own for own in carried]


def smallest(budget: Budget, sizes: Sequence[Bytes], needed: Sequence[int]) -> int:
    """The smallest budget that leaves ``needed`` bytes for exemplars after each task."""
    return budget.bytes + max(need - room for need, room in zip(needed, rooms(budget, sizes), strict=True))


def assert_kept(budget: Budget, planned: Bytes, room: int, measured: Bytes) -> None:
    """Stop a run that carries more than was planned; that would be a fault of the engine or a strategy's secret growth.

    Args:
        budget: of the run.
        planned: the state after this task, from :func:`growth`.
        room: bytes for exemplars after this task.
        measured: what is carried.

    Raises:
        RuntimeError: more is carried than the state planned and its exemplars' room.
    """
    allowed, found = counted(planned, budget.convention) + room, counted(measured, budget.convention)
    if found > allowed:
        raise RuntimeError(f"{show(found)} are carried where the budget of {budget.text} allows {show(allowed)}")
