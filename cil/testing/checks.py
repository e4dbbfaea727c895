"""The conformance suite: what every strategy promises, checked on a small scenario in seconds.

Each check is a function whose docstring is the promise, over a :class:`cil.testing.lab.Lab` that runs the strategy and
watches it. ``run_checks(MyStrategy)`` runs them all; from the command line ``cil check MY_METHOD``
does so.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.experiment import plan
from cil.experiment.progress import Progress
from cil.experiment.run import run
from cil.learning.state import under
from cil.learning.strategy import Strategy
from cil.memory.exemplars import Memory
from cil.testing.lab import COUNTS, LONG, QUOTA_TOTAL, SHORT, Lab, TinyNet, equal_states, toy_dataset

# --- the promises -----------------------------------------------------------------------------------------------------


def check_parameters_kept(lab: Lab) -> None:
    """Hyper-parameters are keyword-only, documented under Args, and kept under their own names."""
    signature = inspect.signature(lab.strategy.__init__)
    model, *others = list(signature.parameters.values())[1:]
    assert model.name == "model", f"the first argument is the model, not '{model.name}'"
    strategy = lab.build()
    text = "\n".join(inspect.getdoc(place) or "" for place in lab.strategy.__mro__ if issubclass(place, Strategy))
    for parameter in others:
        name = parameter.name
        assert parameter.kind is parameter.KEYWORD_ONLY, f"'{name}' is not keyword-only"
        assert hasattr(strategy, name), f"'{name}' is not kept: self.{name} is missing"
        given = lab.init_args.get(name, parameter.default)
        assert getattr(strategy, name) == given, f"'{name}' was {given!r} and is kept as {getattr(strategy, name)!r}"
        assert re.search(rf"^\s*{name}( \(.*\))?:", text, re.M), f"'{name}' is not documented under Args"


def check_names_its_source(lab: Lab) -> None:
    """The file names authors, title, venue and year of the method; the class says in a sentence what it does."""
    module = inspect.getdoc(sys.modules[lab.strategy.__module__]) or ""
    assert re.search(r"\b(19|20)\d\d\b", module), "the file's docstring names no source with its year"
    own = (lab.strategy.__doc__ or "").strip()
    assert re.match(r"[^\n]{15,}[.:]", own), "the class's docstring does not begin with a sentence"


def check_no_numbers_beside_the_constructor(lab: Lab) -> None:
    """The file holds no numeric constants: a hyper-parameter is an argument of the constructor."""
    values = vars(sys.modules[lab.strategy.__module__]).items()
    numbers = [name for name, value in values if isinstance(value, (int, float)) and not name.startswith("__")]
    assert not numbers, f"numbers at module level: {', '.join(numbers)}"


def check_scores_every_class_seen(lab: Lab) -> None:
    """After each task there is one finite score for exactly the classes seen."""
    for moment in lab.trace():
        expected = (len(moment.scores), moment.task.n_seen)
        assert moment.scores.shape == expected, f"scores {tuple(moment.scores.shape)} where {expected} are due"
        assert torch.isfinite(moment.scores).all(), f"scores after task {moment.task.index} are not finite"


def check_learns_the_first_task(lab: Lab) -> None:
    """Two classes that are easily told apart are told apart after the first task, and others would not be."""
    first = lab.trace()[0].predictions[lab.strategy.evaluator].confusion
    accuracy = first.trace() / first.sum()
    assert accuracy >= 0.9, f"accuracy on the first task is {accuracy:.2f}; 0.90 is easy"


def check_predicting_changes_nothing(lab: Lab) -> None:
    """Predicting changes no tensor, no training mode and no random state."""
    for moment in lab.trace():
        assert not moment.look.changed, f"predicting changed {', '.join(moment.look.changed)}"


def check_scores_do_not_depend_on_the_batch(lab: Lab) -> None:
    """An image's scores are the same alone and among others."""
    for moment in lab.trace():
        together, alone = moment.look.together, moment.look.alone
        assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4), "scores differ between a batch and single images"


def check_same_seed_same_result(lab: Lab) -> None:
    """The same seed gives the same state, bit for bit, whatever was drawn before; another seed gives another."""
    first = lab.trace()
    torch.rand(17)
    for one, two in zip(first, lab.trace(again=True), strict=True):
        changed = equal_states(one.state, two.state) + equal_states(one.exemplars, two.exemplars)
        assert not changed, f"two runs with one seed differ after task {one.task.index} in {', '.join(changed)}"
    other = lab.trace(seed=1)
    assert equal_states(first[-1].state, other[-1].state), "another seed changes nothing"


def check_frozen_stays_frozen(lab: Lab) -> None:
    """What has no gradient when training starts is the same when it ends, buffers of frozen parts included."""
    lab.trace()  # the watching trainer asserts it at each descent


def check_gradients_change_no_parameter(lab: Lab) -> None:
    """What a strategy does to gradients before a step changes no parameter: the optimiser alone takes the step."""
    lab.trace()  # the watching trainer asserts it at each step


def check_freezes_its_backbone_as_tagged(lab: Lab) -> None:
    """A backbone that is tagged to learn in the first task alone keeps every bit from then on."""
    if not lab.strategy.freezes_backbone:
        return
    states = [
        {name: tensor for name, tensor in moment.state.items() if name.startswith("model.backbone.")}
        for moment in lab.trace()
    ]
    for later in states[1:]:
        changed = equal_states(states[0], later)
        assert not changed, f"after the first task {', '.join(changed)} changed"


def check_state_is_what_grow_made(lab: Lab) -> None:
    """Between tasks the state has the names, shapes and types that ``grow`` gave it."""
    experiment = lab.experiment()
    rebuilt = experiment.fresh()
    for moment in lab.trace():
        experiment.grow(rebuilt, moment.task)
        made = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in rebuilt.state_dict().items()}
        kept = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in moment.state.items()}
        extra, missing = sorted(kept.keys() - made.keys()), sorted(made.keys() - kept.keys())
        assert not extra, f"carried after task {moment.task.index}, but not made by grow: {', '.join(extra)}"
        assert not missing, f"made by grow, but gone after task {moment.task.index}: {', '.join(missing)}"
        assert made == kept, f"shapes or types differ from what grow made: {[n for n in made if made[n] != kept[n]]}"


def check_nothing_is_carried_outside_the_state(lab: Lab) -> None:
    """Between tasks no tensor, array or image is held anywhere but in the state: no hidden memory."""
    for moment in lab.trace():
        assert not moment.look.hidden, f"held outside the state_dict: {', '.join(moment.look.hidden)}"


def check_rebuilt_strategy_goes_on_alike(lab: Lab) -> None:
    """Written to disk, thrown away, rebuilt and loaded after each task, a run ends with the same bits."""
    for one, two in zip(lab.trace(), lab.trace(rebuild=True), strict=True):
        changed = equal_states(one.state, two.state) + equal_states(one.exemplars, two.exemplars)
        assert not changed, (
            f"rebuilt between tasks, the state after task {one.task.index} differs: {', '.join(changed)}"
        )
        assert torch.equal(one.scores, two.scores), f"rebuilt between tasks, scores differ after task {one.task.index}"


def check_interrupted_training_goes_on_alike(lab: Lab) -> None:
    """Stopped inside a task and resumed from its checkpoint, a run ends with the same bits."""

    class Stop(Exception):
        """The power cut."""

    class Cut(Progress):
        left = 11  # epochs until the power goes, in the second task's third

        def epoch_starts(self, *_: Any) -> None:
            self.left -= 1
            if not self.left:
                raise Stop

    whole, experiment = lab.trace()[-1], lab.experiment(epochs=LONG)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        cut = Cut(Progress.silent().console)
        try:
            run(experiment, checkpoints=checkpoints, checkpoint_every=2, progress=cut)
            return  # the strategy does not train by gradients, so there is nothing to interrupt
        except Stop:
            pass
        _, strategy, exemplars = run(experiment, checkpoints=checkpoints, checkpoint_every=2, resume=True)
    changed = equal_states(whole.state, dict(strategy.state_dict()))
    changed += equal_states(whole.exemplars, exemplars.state())
    assert not changed, f"interrupted inside a task and resumed, the final state differs in {', '.join(changed)}"


def check_touches_no_past_or_test_image(lab: Lab) -> None:
    """Training images are read in their own task alone, test images never."""
    lab.trace()  # every set stands behind a guard that is open only when it may be read


def check_quota_is_kept(lab: Lab) -> None:
    """There are never more exemplars than the memory allows, each of a class seen, unchanged from its data."""
    memory = lab.memory()
    known = {image.tobytes() for image in toy_dataset().train.raw()}
    for moment in lab.trace():
        labels = moment.exemplars["labels"]
        capacity = memory.capacity(moment.task.n_seen)
        assert capacity is None or len(labels) <= capacity, f"{len(labels)} exemplars where {capacity} are allowed"
        assert not len(labels) or int(labels.max()) < moment.task.n_seen, "an exemplar of a class not seen yet"
        strange = [i for i, image in enumerate(moment.exemplars["images"].numpy()) if image.tobytes() not in known]
        assert not strange, f"exemplars {strange} are not training images"


def check_exemplar_columns_are_as_declared(lab: Lab) -> None:
    """What lies beside exemplars has the declared widths, is each image's own, and stays as it was stored."""
    before: dict[bytes, dict[str, np.ndarray]] = {}
    for moment in lab.trace():
        columns = {name: column.numpy() for name, column in under("columns", moment.exemplars).items()}
        widths = {name: column.shape[1] for name, column in columns.items()}
        declared = {} if lab.strategy.exemplar_free else lab.build().exemplar_columns(moment.task.n_seen)
        assert widths == declared, f"columns of {widths}, declared are {declared}"
        for name, together in moment.look.described.items():
            alone = moment.look.described_alone[name]
            assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4), f"{name} depends on the other images"
        stored = {}
        for row, image in enumerate(moment.exemplars["images"].numpy()):
            key, own = image.tobytes(), {name: column[row] for name, column in columns.items()}
            for name, values in before.get(key, {}).items():
                assert own[name][: len(values)].tobytes() == values.tobytes(), f"{name} of an exemplar has changed"
            stored[key] = own
        before = stored


def check_exemplar_free_means_none(lab: Lab) -> None:
    """A strategy tagged exemplar-free is refused exemplars; another one takes them."""
    experiment = lab.experiment()
    experiment.memory = Memory(exemplars=QUOTA_TOTAL)
    refused = False
    try:
        experiment.check()
    except UserError:
        refused = True
    assert refused == (lab.strategy.exemplar_free or lab.strategy.needs_all_data), "the tag and the behaviour differ"


def check_bytes_are_as_planned(lab: Lab) -> None:
    """Grown on the meta device, without data, the strategy has the bytes that a run then measures."""
    for row, moment in zip(plan(lab.experiment()), lab.trace(), strict=True):
        assert row["bytes"] == dict(moment.size), f"planned {row['bytes']}, measured {dict(moment.size)}"


def check_takes_tasks_of_any_size(lab: Lab) -> None:
    """Tasks of different sizes and a first task of one class run to the end with finite scores."""
    for moment in lab.trace(sizes=(1, 4, 1), epochs=SHORT):
        assert moment.scores.shape[1] == moment.task.n_seen
        assert torch.isfinite(moment.scores).all()


def check_survives_classes_with_few_images(lab: Lab) -> None:
    """A class with fewer images than the exemplar quota is kept whole and scored."""
    last = lab.trace()[-1]
    quota = lab.memory().quota(last.task.n_seen)
    kept = np.bincount(last.exemplars["labels"].numpy(), minlength=len(COUNTS))
    expected = [count if quota is None else min(count, quota) for count in COUNTS]
    assert kept.tolist() == expected, f"exemplars by class {kept.tolist()}, due {expected}"
    assert torch.isfinite(last.scores).all()


def check_learns_streams_as_tagged(lab: Lab) -> None:
    """A strategy that does not need boundaries learns a stream without them, with finite scores; others are refused.

    Both with a backbone that learns and with one that is frozen.
    """
    for freeze in (False, True):
        experiment, refused = lab.stream_experiment(frozen=freeze, every=32), False
        try:
            experiment.check()
        except UserError:
            refused = True
        assert refused == experiment.build().needs_boundaries, "the tag and the behaviour differ"
        for moment in [] if refused else lab.moments(experiment, rebuild=True):
            expected = (len(moment.scores), moment.task.n_seen)
            assert moment.scores.shape == expected, f"scores {tuple(moment.scores.shape)} where {expected} are due"
            assert torch.isfinite(moment.scores).all(), f"scores after piece {moment.task.index} are not finite"


# --- running them -----------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """One check's result: its name, its promise, and what was wrong (None: kept)."""

    check: str
    promise: str
    error: str | None


def all_checks() -> dict[str, Callable[[Lab], None]]:
    """Every check by name, in the order of this file."""
    return {n.removeprefix("check_"): f for n, f in globals().items() if n.startswith("check_") and callable(f)}


def run_checks(
    strategy: type[Strategy],
    init_args: dict[str, Any] | None = None,
    backbone: Callable[..., nn.Module] = TinyNet,
) -> list[Outcome]:
    """Run every check on a strategy.

    Args:
        strategy: the class.
        init_args: hyper-parameters other than the defaults.
        backbone: makes a backbone from ``in_channels``, for strategies that need more than ``TinyNet`` offers.

    Returns:
        One outcome for each check.
    """
    lab = Lab(strategy, init_args, backbone)
    return [Outcome(name, (check.__doc__ or "").strip(), failure(check, lab)) for name, check in all_checks().items()]


def failure(check: Callable[[Lab], None], lab: Lab) -> str | None:
    """What a check found wrong, None if the promise is kept. An exception of the strategy breaks the promise, too."""
    try:
        check(lab)
    except AssertionError as error:
        return str(error) or "broken"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def report(argv: Sequence[str], program: str = "cil check") -> int:
    """Check the strategy that a command line names and print every promise; 0 if all are kept, else 1.

    Args:
        argv: the class path, name or file of a strategy, then ``name=value`` for hyper-parameters other than the
            defaults and ``backbone=package.module.callable`` for another backbone.
        program: as it was called.

    Raises:
        UserError: no such strategy, or a word that is not ``name=value``.
    """
    import yaml
    from rich.text import Text

    from cil.command.names import find_class
    from cil.nets.network import find_backbone
    from cil.shown import Terminal

    usage = f"usage: {program} NAME|FILE|package.module.Class [name=value ...] [backbone=package.module.make]"
    if not argv:
        raise UserError(usage)
    if argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    options: dict[str, Any] = {}
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not name=value")
        options[name] = yaml.safe_load(value)
    backbone = find_backbone(options.pop("backbone")) if "backbone" in options else TinyNet
    console = Terminal()
    outcomes = run_checks(find_class("strategy", argv[0]), options, backbone)
    for outcome in outcomes:
        mark = Text("kept  ", style="green") if outcome.error is None else Text("BROKEN", style="red")
        console.print(mark, outcome.check.replace("_", " "), highlight=False)
        if outcome.error is not None:
            console.print(f"       promise: {outcome.promise}", highlight=False)
            console.print(f"       found:   {outcome.error}", highlight=False)
    broken = sum(outcome.error is not None for outcome in outcomes)
    console.print(f"{len(outcomes) - broken} of {len(outcomes)} promises kept", highlight=False)
    return 1 if broken else 0
