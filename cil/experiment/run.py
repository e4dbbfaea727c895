"""The whole experiment: for each task grow, learn, select exemplars, evaluate, count, checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor

from cil.data.scenario import Scenario, Task
from cil.data.seeds import Seeds, generator, seeded
from cil.evaluation import few_shot, metrics
from cil.evaluation.accuracy import Predictions, evaluate
from cil.evaluation.probabilities import calibrate, of_strategy
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.experiment import Experiment
from cil.experiment.progress import Progress
from cil.experiment.provenance import Origin
from cil.experiment.resume import Keeper, Record, Start, restore, save_boundary
from cil.learning.inference import described, features_of
from cil.learning.place import Place
from cil.learning.selection import hold_out, set_aside
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.machine.compute import Compute, Flops, peak_memory, reset_peak
from cil.memory.budget import assert_kept
from cil.memory.exemplars import Exemplars
from cil.memory.ledger import Bytes, inference_bytes, measure_run
from cil.nets import lookup
from cil.ops.freezing import freeze


@lookup.one_size()
def run(
    experiment: Experiment,
    *,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int = 0,
    resume: bool = False,
    progress: Progress | None = None,
    on_task: Callable[[list[Record], Strategy, Exemplars], None] | None = None,
    origin: Origin | None = None,
    start: Start | None = None,
) -> tuple[list[Record], Strategy, Exemplars]:
    """Learn all tasks.

    Args:
        experiment: what to run; checked first.
        checkpoints: where to write the state after each task, or None to write nothing.
        checkpoint_every: also write inside a task, each time this many epochs are done; 0: only after tasks.
        resume: go on from the newest intact checkpoint.
        progress: whom to tell.
        on_task: called after each task, and once when a run goes on, with all records so far and the state.
        origin: what decides the run's numbers, named in checkpoints and compared with theirs; None: what is known of it
            without a configuration.
        start: a state to begin from, with some tasks done, instead of the first task; changed here.

    Returns:
        One record for each task learned here, the strategy and the exemplars after the last.

    Raises:
        UserError: the experiment cannot work, a checkpoint to go on from cannot be read or is not of this run, or a new
            one cannot be written.
        DivergedError: the loss became NaN or infinite.
    """
    experiment.check()
    scenario, progress = experiment.scenario, progress or Progress.silent()
    if checkpoints:
        checkpoints = copy.copy(checkpoints)  # the caller's stays as it is
        checkpoints.origin = (origin or Origin.of(experiment)).as_json()
    start = start or Start(experiment)
    if resume and checkpoints:
        start = restore(experiment, checkpoints, progress, start)
    strategy, exemplars, records = start.strategy, start.exemplars, start.records
    evaluators, limits = experiment.scored_by(strategy), experiment.limits()
    if on_task and resume:
        on_task(records, strategy, exemplars)
    with progress.tasks(len(scenario.tasks), done=start.done):
        for task in scenario.tasks[start.done :]:
            compute, start.compute = start.compute, Compute()
            reset_peak(experiment.device)
            # A stream's state is written where a phase ends: one for each piece may be more than is learned in it.
            ends = task.boundary or task.index in scenario.phase_ends
            inside = checkpoints if task.boundary else None
            keeper = Keeper(task, inside, checkpoint_every, start.inside, progress, compute)
            place = experiment.place(task.index, keeper)
            place.compute = compute
            trainer = experiment.trainer.at(place)
            aside = None
            if experiment.calibration:
                task, aside = set_aside(task, experiment.calibration, experiment.seeds.data)
            task = hold_out(task, trainer, scenario, experiment.seeds.data)
            stored = len(exemplars) if experiment.memory.codec != "raw" else 0
            decoded = (stored + len(task.train) * experiment.memory.code_new) * scenario.test.image_bytes
            with compute.phase("other"):
                with compute.phase("evaluation"):
                    ahead = None if task.boundary else foresee(strategy, task, exemplars, scenario, place)
                with compute.phase("learning"):
                    learn(strategy, exemplars.as_stored(task), exemplars, trainer, experiment)
                with compute.phase("selection"):
                    known = select(strategy, task, exemplars, place, experiment.seeds, limits.rooms[task.index])
                    if aside is not None:
                        calibrate(strategy, aside, task.n_seen, exemplars, place)
                seen = scenario.test.of_classes(range(task.n_seen))
                with compute.phase("evaluation"):
                    predictions = (
                        evaluate(strategy, seen, task.n_seen, exemplars, evaluators, place, known) if len(seen) else {}
                    )
                size = measure_run(strategy, exemplars)
                if limits.budget:
                    assert_kept(limits.budget, limits.sizes[task.index], limits.rooms[task.index] or 0, size)
                needed, forward_flops = needed_to_predict(strategy, task, place) if ends else (None, None)
            record = make_record(scenario, task, predictions, size, len(exemplars), trainer, compute)
            record["training_bytes"] = held_while_training(trainer, size, decoded)
            record["inference_bytes"] = needed
            record["compute"] = {
                **compute.state(),
                "forward_flops": forward_flops,
                "peak_bytes": peak_memory(experiment.device),
            }
            if aside is not None and (found := of_strategy(strategy)) is not None:
                record["calibration"] = found.as_json()
            if ahead:
                record["near_future"] = ahead
            records.append(record)
            start.inside = {}
            if checkpoints and ends:
                with compute.phase("checkpoint"):
                    save_boundary(checkpoints, task, strategy, exemplars, records, experiment)
                record["compute"] |= compute.state()
            if on_task:
                on_task(records, strategy, exemplars)
            progress.task_done(task, predictions, size, ended=told(scenario, task) if ends else None)
    return records, strategy, exemplars


def told(scenario: Scenario, task: Task) -> str:
    """What has ended with this task, for people: the task, or a phase of a stream."""
    if task.boundary:
        return f"task {task.index + 1}"
    return f"phase {scenario.phase_of_task[task.index] + 1}, {scenario.images_seen[task.index]} images"


def foresee(strategy: Strategy, task: Task, exemplars: Exemplars, scenario: Scenario, place: Place) -> dict[str, int]:
    """How many of the images to come the strategy, as it is before this piece, gets right by its own evaluator.

    They are as many as the piece has, ``nfa_shift`` images ahead of it; with a shift of 0 they are the piece itself.
    Images of classes not seen yet count as missed.
    """
    start = int(scenario.images_seen[task.index]) - len(task.train) + scenario.nfa_shift
    images = scenario.stretch(start, start + len(task.train))
    known, own, right = images.of_classes(range(task.n_old)), strategy.evaluator, 0
    if len(known):
        right = int(evaluate(strategy, known, task.n_old, exemplars, (own,), place)[own].confusion.trace())
    return {"images": len(images), "right": right}


def learn(strategy: Strategy, task: Task, exemplars: Exemplars, trainer: Trainer, experiment: Experiment) -> None:
    """The strategy's four steps for one task, each with its own derived seed."""
    seeds = experiment.seeds
    experiment.grow(strategy, task)
    strategy.requires_grad_(True)  # which parameters learn is decided anew for each task, so it is not state
    if strategy.model.frozen:
        freeze(strategy.model.backbone)
    strategy.eval()
    with seeded(seeds.init, "begin", task.index):
        strategy.begin(task)
    with seeded(seeds.data, "fit", task.index):
        strategy.fit(task, exemplars.as_set(), trainer)
    strategy.eval()
    with seeded(seeds.data, "end", task.index):
        strategy.end(task)
    strategy.eval()


def select(
    strategy: Strategy, task: Task, exemplars: Exemplars, place: Place, seeds: Seeds, room: int | None = None
) -> Tensor | None:
    """Choose the exemplars to keep, with the features of the network as it is after the task; ``room`` is in bytes.

    Gives those of the exemplars' features that were needed for it, as ``Exemplars.update`` does, unless the strategy
    went on from there (``selected``).
    """
    draws = generator(seeds.exemplars, "select", task.index)
    known = exemplars.update(
        task,
        lambda data: features_of(strategy, data, place),
        draws,
        room,
        widths=strategy.exemplar_columns(task.n_seen),
        describe=lambda data: described(strategy, data, place),
    )
    capacity = exemplars.memory.capacity(task.n_seen)
    if capacity is not None and len(exemplars) > capacity:
        raise RuntimeError(f"{len(exemplars)} exemplars after task {task.index}, the memory allows {capacity}")
    if type(strategy).selected is Strategy.selected:
        return known
    with seeded(seeds.data, "selected", task.index):
        strategy.selected(task)
    return None  # features of what is left may be others


def held_while_training(trainer: Trainer, carried: Bytes, decoded: int) -> dict[str, int]:
    """Bytes that were held while the task was learned and are not carried.

    Teachers and other modules that went away, the optimiser's state, the copy of the best epoch where one is selected,
    and decoded copies of encoded exemplars.
    """
    teachers = max(0, trainer.peak_state - carried["parameters"] - carried["buffers"])
    return {
        "teachers": teachers,
        "optimizer": trainer.peak_optimizer,
        "best": trainer.peak_best,
        "decoded": decoded,
    }


def needed_to_predict(strategy: Strategy, task: Task, place: Place) -> tuple[int, int]:
    """What the method's own evaluator needs: bytes of the state that it reads, class means included, and operations."""
    n_means = 0 if strategy.evaluator == "linear" else task.n_seen
    x = place.augmentation.test(task.train.gather(slice(0, 1)).to(place.device)).to(place.dtype)
    with Flops() as counted, lookup.one_size(False):
        needed = inference_bytes(strategy, x, n_means=n_means)
    return needed, counted.total


def make_record(
    scenario: Scenario,
    task: Task,
    predictions: dict[str, Predictions],
    size: Bytes,
    n_exemplars: int,
    trainer: Trainer,
    compute: Compute,
) -> Record:
    """What one task adds to ``results.json``; the schema is described in ``docs/results_schema.md``."""
    owner = scenario.task_of_class[: task.n_seen]
    phase = scenario.phase_of_task[owner]
    scores = {}
    for name, seen in predictions.items():
        inference, within = metrics.task_inference_decomposition(seen.confusion, phase)
        scores[name] = {
            "accuracy_row": metrics.accuracy_row(seen.confusion, owner, len(scenario.tasks)).tolist(),
            "top5": seen.top5,
            "per_class": metrics.per_class_accuracy(seen.confusion).tolist(),
            "task_confusion": metrics.task_confusion(seen.confusion, phase).tolist(),
            "task_inference": inference,
            "within_task": within,
        }
        if scenario.base_classes is not None:
            scores[name]["few_shot"] = few_shot.after_task(seen.confusion, scenario.base_classes)
    return {
        "task": task.index,
        "classes": list(task.new),
        "n_seen": task.n_seen,
        "train_images": len(task.train),
        "seconds": sum(compute.seconds.values()),
        "images_per_second": trainer.images / trainer.seconds if trainer.seconds else None,
        "exemplars": n_exemplars,
        "bytes": dict(size),
        "evaluators": scores,
    }
