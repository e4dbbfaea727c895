"""Learning a stream without boundaries: its batches, what is refused, resumption, and what a run leaves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from cil.command import config
from cil.command.names import strategies
from cil.command.session import plan_table
from cil.data.augmentation import Augmentation
from cil.data.images import ImageSet
from cil.data.scenario import stream
from cil.data.seeds import Seeds
from cil.errors import UserError
from cil.experiment.checkpoint import Checkpoints
from cil.experiment.experiment import Experiment, plan
from cil.experiment.progress import Progress
from cil.experiment.resume import lasting
from cil.experiment.run import run
from cil.learning.place import NoWatcher, Place
from cil.learning.strategy import Strategy
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Memory
from cil.nets.heads import LinearHead
from cil.nets.network import Network
from cil.report import report
from cil.testing.lab import Lab, equal_states, toy_dataset, toy_scenario, toy_stream
from scenarios.generalised import Generalised
from strategies.baselines.finetune import Finetune
from strategies.baselines.joint import Joint
from strategies.baselines.replay import Replay
from strategies.rehearsal.wa import WA
from tools import compare, train

ROOT = Path(__file__).resolve().parents[1]
STREAM = ROOT / "configs/protocols/digits_si_blurry.yaml"


# --- the gradient loop ------------------------------------------------------------------------------------------------


class Flat(torch.nn.Module):
    """Four pixels to three features."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x.flatten(1))


class Noting(Strategy):
    """Replay that notes the first pixel of each image of each batch, which is its number."""

    def __init__(self, model):
        super().__init__(model)
        self.batches = []

    def loss(self, x, y):
        self.batches.append((x[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist())
        return super().loss(x, y)


def numbered(n, first=0):
    pixels = np.broadcast_to(np.arange(first, first + n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 1))
    return ImageSet(pixels, np.arange(n) % 2)


class Steps(NoWatcher):
    """Remembers how many steps were announced and done."""

    announced = done = 0

    def epoch_starts(self, stage, epoch, epochs, steps):
        self.announced += steps

    def step_done(self):
        self.done += 1


def streamed(n_new, n_kept, *, seed=0, **options):
    """The batches of one pass, as numbers of images: new ones from 0, exemplars from 100."""
    strategy = Noting(Network(Flat(), LinearHead(3)))
    strategy.model.head.grow(2)
    bound = Augmentation(preset="none").bind((1, 2, 2), (0.5,), (0.5,), torch.device("cpu"))
    watcher = Steps()
    place = Place(0, seed, bound, watcher=watcher, ordered=True)
    trainer = Trainer(epochs=1, lr=0.01, schedule="constant", **options).at(place)
    trainer.descend(strategy, numbered(n_new), numbered(n_kept, first=100) if n_kept else None)
    assert watcher.announced == watcher.done == len(strategy.batches)
    return strategy.batches, trainer


def test_a_stream_is_passed_in_its_order_once():
    batches, _ = streamed(11, 0, batch_size=4)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert streamed(9, 0, batch_size=4)[0] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]  # one image alone has no statistics


def test_each_batch_is_joined_by_as_many_different_exemplars():
    batches, _ = streamed(40, 30, batch_size=10)
    assert [batch[:10] for batch in batches] == [list(range(start, start + 10)) for start in range(0, 40, 10)]
    for batch in batches:
        kept = batch[10:]
        assert len(kept) == len(set(kept)) == 10 and set(kept) <= set(range(100, 130))
    assert len({tuple(batch[10:]) for batch in batches}) == 4, "the same exemplars at every step"


def test_few_exemplars_are_all_taken():
    for batch in streamed(20, 3, batch_size=5)[0]:
        assert sorted(batch[5:]) == [100, 101, 102]


def test_exemplars_are_drawn_uniformly():
    counts = Counter()
    for seed in range(150):
        for batch in streamed(16, 8, batch_size=4, seed=seed)[0]:
            counts.update(batch[4:])
    n, p = 600, 0.5  # each batch takes half of them
    assert all(abs(counts[100 + i] - n * p) < 5 * math.sqrt(n * p * (1 - p)) for i in range(8))


def test_steps_on_a_batch_draw_exemplars_anew():
    batches, _ = streamed(8, 50, batch_size=4, steps_per_batch=3)
    assert [batch[:4] for batch in batches] == [[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]] * 3
    assert len({tuple(batch[4:]) for batch in batches}) == 6


@pytest.mark.parametrize("steps", [1, 3])
def test_the_work_done_is_the_steps_times_their_images(steps):
    batches, trainer = streamed(12, 20, batch_size=4, steps_per_batch=steps)
    assert trainer.images == (4 + 4) * steps * 3 == sum(map(len, batches))


def test_the_same_seed_draws_the_same_exemplars():
    assert streamed(12, 20, batch_size=4)[0] == streamed(12, 20, batch_size=4)[0]
    assert streamed(12, 20, batch_size=4)[0] != streamed(12, 20, batch_size=4, seed=1)[0]


def test_a_second_pass_is_refused():
    bound = Augmentation(preset="none").bind((1, 2, 2), None, None, torch.device("cpu"))
    trainer = Trainer(epochs=1).at(Place(0, 0, bound, ordered=True))
    strategy = Noting(Network(Flat(), LinearHead(3)))
    strategy.model.head.grow(2)
    with pytest.raises(RuntimeError, match="2 passes over a stream"):
        trainer.descend(strategy, numbered(4), epochs=2)


# --- what is refused --------------------------------------------------------------------------------------------------


def experiment(strategy=Replay, **options):
    made = Lab(strategy).stream_experiment()
    for name, value in options.items():
        setattr(made.trainer, name, value)
    return made


def test_a_strategy_that_needs_boundaries_is_refused_before_any_training():
    made = experiment(WA)
    made.trainer.epochs = 170  # the first thing to say is that the method cannot learn it at all
    with pytest.raises(UserError, match=r"WA needs to know where tasks begin, and 'toy stream'.*such as Replay"):
        made.check()
    with pytest.raises(UserError, match="WA needs"):
        run(made)
    with pytest.raises(UserError, match="WA needs"):
        plan(made)


def test_the_tags_are_as_documented():
    assert {name for name, kind in strategies().items() if not kind.needs_boundaries} >= {
        "finetune",
        "joint",
        "replay",
    }
    assert Strategy.needs_boundaries and WA.needs_boundaries


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 5}, r"trainer.epochs: 5 on a stream without boundaries must be 1: .*steps_per_batch"),
        ({"per_task": {3: {"epochs": 2}}}, "trainer.epochs: 2"),
        ({"warmup_epochs": 2}, "trainer.warmup_epochs: 2 on a stream without boundaries must be 0"),
        ({"steps_per_batch": 0}, "trainer.steps_per_batch: 0 for task 0 must be an integer >= 1"),
    ],
)
def test_options_that_make_no_sense_on_a_stream_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        experiment(**options).check()


def test_steps_on_a_batch_are_for_streams():
    made = Lab(Replay).experiment()
    made.trainer.steps_per_batch = 3
    with pytest.raises(UserError, match=r"steps_per_batch: 3 is for streams without boundaries.*give 1"):
        made.check()


def test_avalanche_has_no_streams():
    from scenarios.avalanche import to_avalanche  # takes seconds

    toy = toy_dataset()
    order = np.argsort(toy.train.labels.numpy(), kind="stable")
    whole = stream(toy, [order[:48], order[48:]], name="two phases of whole classes", every=100, nfa_shift=0)
    with pytest.raises(UserError, match="'two phases of whole classes' is a stream without boundaries"):
        to_avalanche(whole)


# --- runs -------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """The power cut."""


class Cut(Progress):
    """Stops a run when a number of pieces have started; keeps what was said."""

    def __init__(self, pieces=-1):
        super().__init__(Console(quiet=True))
        self.left, self.lines = pieces, []

    def epoch_starts(self, *_):
        self.left -= 1
        if self.left == 0:
            raise Stop

    def say(self, text):
        self.lines.append(text)


def state(outcome):
    _, strategy, exemplars = outcome
    return {**strategy.state_dict(), **exemplars.state()}


def untimed(records):
    """Records as a resumed run has them, without what differs from time to time."""
    times = ("seconds", "images_per_second", "compute")
    kept = [*map(lasting, records[:-1]), *records[-1:]]
    kept = [{key: value for key, value in record.items() if key not in times} for record in kept]
    return report.jsonable(kept)  # without NaN, which equals nothing


@pytest.fixture(scope="module")
def whole():
    return run(experiment())


def test_the_state_is_written_at_the_ends_of_phases_alone(tmp_path, whole):
    made, checkpoints = experiment(), Checkpoints(tmp_path)
    ends = made.scenario.phase_ends
    assert ends == (4, 8) and len(made.scenario.tasks) == 9
    with pytest.raises(Stop):
        run(made, checkpoints=checkpoints, checkpoint_every=1, progress=Cut(5))
    assert checkpoints.moments() == []
    run(made, checkpoints=checkpoints, checkpoint_every=1)
    assert [moment.name for moment in checkpoints.moments()] == ["task004", "task008"]


@pytest.mark.parametrize("pieces", [2, 5, 6, 7, 9])
def test_wherever_it_is_cut_a_run_on_a_stream_ends_alike(tmp_path, whole, pieces):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(Stop):
        run(experiment(), checkpoints=checkpoints, checkpoint_every=1, progress=Cut(pieces))
    progress = Cut()
    again = run(experiment(), checkpoints=checkpoints, checkpoint_every=1, resume=True, progress=progress)
    assert not equal_states(state(whole), state(again))
    assert untimed(again[0]) == untimed(whole[0])
    resumed = [line for line in progress.lines if line.startswith("resuming")]
    assert resumed == (["resuming: 5 of 9 pieces done, going on in piece 6"] if pieces > 5 else [])


def test_the_state_before_is_used_when_the_last_is_damaged(tmp_path, whole):
    checkpoints = Checkpoints(tmp_path)
    run(experiment(), checkpoints=checkpoints)
    (tmp_path / "task008.safetensors").write_bytes(b"ruin")
    again = run(experiment(), checkpoints=checkpoints, resume=True, progress=Cut())
    assert not equal_states(state(whole), state(again))


def test_a_line_is_said_for_each_phase_alone():
    progress = Cut()
    run(experiment(), progress=progress)
    said = [line.split(":")[0] for line in progress.lines]
    assert said == ["phase 1, 69 images", "phase 2, 122 images"]


class Eager(Replay):
    """Replay whose own evaluator is the nearest mean."""

    evaluator = "nearest_mean"


@pytest.mark.parametrize("shift", [0, 5, 40, 121])
def test_near_future_accuracy_is_of_weights_that_have_not_seen_the_piece(shift):
    made = experiment()
    old = made.scenario
    order = np.concatenate([task.train._index for task in old.tasks])
    phases = [order[: old.images_seen[4]], order[old.images_seen[4] :]]
    made.scenario = stream(toy_dataset(), phases, name="toy stream", every=16, nfa_shift=shift)
    everything = made.scenario.stretch(0, len(order))
    guesses = {}  # what the strategy after each piece predicts of the whole stream

    def watch(records, strategy, exemplars):
        place = made.place(records[-1]["task"])
        with torch.inference_mode():
            scores = strategy(place.augmentation.test(everything.gather()))
        guesses[records[-1]["task"]] = scores.argmax(1).tolist()

    records, _, _ = run(made, on_task=watch)
    labels, seen = everything.labels.tolist(), [0, *made.scenario.images_seen.tolist()]
    for task, record in enumerate(records):
        which = [i for i in range(seen[task] + shift, seen[task + 1] + shift) if i < len(labels)]
        right = sum(guesses[task - 1][i] == labels[i] for i in which) if task else 0
        assert record["near_future"] == {"images": len(which), "right": right}
    assert sum(record["near_future"]["images"] for record in records) == len(labels) - shift


def test_near_future_accuracy_is_of_the_methods_own_evaluator():
    own, linear = run(experiment(Eager))[0], run(experiment())[0]
    assert untimed(own)[0]["near_future"]["right"] == 0  # nothing is known before the first piece
    assert [r["near_future"]["images"] for r in own] == [r["near_future"]["images"] for r in linear]
    assert [r["near_future"] for r in own] != [r["near_future"] for r in linear]


def test_a_stream_may_follow_a_task_whose_boundary_is_known():
    made = experiment()
    tasks = made.scenario.tasks
    made.scenario = dataclasses.replace(made.scenario, tasks=(dataclasses.replace(tasks[0], boundary=True), *tasks[1:]))
    records = run(made)[0]
    assert ["near_future" in record for record in records] == [False] + [True] * 8
    found = report.results(made, records)["stream"]
    for line in (found["near_future"]["running"], found["blind"]["running"]):
        assert line[0] is None and None not in line[1:]  # nothing was foreseen before the stream began
    hits = made.scenario.blind.hits
    assert found["blind"]["accuracy"] == pytest.approx(hits[16:].mean())


def test_a_frozen_model_has_its_plain_accuracy_in_the_near_future():
    class Frozen(Finetune):
        """Predict the class 0, whatever comes."""

        def fit(self, task, replay, trainer):
            pass

        def forward(self, x):
            scores = super().forward(x) * 0
            scores[:, 0] = 1
            return scores

    made = experiment(Frozen)
    made.scenario = stream(toy_dataset(), [np.random.RandomState(1).permutation(122)], name="", every=16, nfa_shift=0)
    content = report.results(made, run(made)[0])
    labels = made.scenario.stretch(0, 122).labels.numpy()
    # The first piece is predicted by a model that knows no class.
    assert content["stream"]["near_future"]["accuracy"] == pytest.approx((labels[16:] == 0).sum() / 122)


def guess_by_hand(labels, window):
    """The most frequent of the last labels; among equals the one seen last."""
    recent = labels[-window:]
    counts = Counter(recent)
    return next(label for label in reversed(recent) if counts[label] == max(counts.values()))


def test_results_tell_what_the_records_hold(whole):
    records, made = whole[0], experiment()
    content = json.loads(json.dumps(report.results(made, records), allow_nan=False))
    found, scenario = content["stream"], made.scenario
    assert (found["every"], found["nfa_shift"]) == (16, 0)
    assert found["images_seen"] == [16, 32, 48, 64, 69, 80, 96, 112, 122]
    assert found["phases"] == [0] * 5 + [1] * 4
    counts = scenario.test.counts(scenario.n_classes)
    for name in ("linear", "nearest_mean"):
        per_class = [record["evaluators"][name]["per_class"] for record in records]
        after = [sum(a * n for a, n in zip(row, counts, strict=False)) / sum(counts[: len(row)]) for row in per_class]
        assert content["metrics"][name]["seen_accuracy"] == pytest.approx(after)
        measures = found["metrics"][name]
        due = [a for a, n in zip(after, found["images_seen"], strict=True) if n % 16 == 0]
        widths = [16, 16, 16, 16, 5, 11, 16, 16, 10]
        assert len(due) == 7
        assert measures["anytime_accuracy"] == pytest.approx(sum(due) / 7)
        assert measures["anytime_area"] == pytest.approx(sum(a * w for a, w in zip(after, widths, strict=True)) / 122)
        assert measures["average_accuracy"] == pytest.approx((after[4] + after[8]) / 2)
        assert measures["last_accuracy"] == pytest.approx(after[8])
        falls = [b - e for b, e in zip(per_class[4], per_class[8], strict=False) if b > 0]
        assert measures["class_forgetting"] == pytest.approx(sum(falls) / len(falls))
        # Metrics that count tasks count phases.
        assert content["metrics"][name]["average_incremental_accuracy"] == pytest.approx((after[4] + after[8]) / 2)
        assert content["metrics"][name]["last_accuracy"] == pytest.approx(after[8])
        first = sum(a * n for a, n in zip(per_class[8], counts, strict=False))  # all classes come in the first phase
        assert found["accuracy"][name][1] == pytest.approx([first / sum(counts), None])
        assert len(content["task_confusion"][name]) == 1
        assert len(content["accuracy"][name]) == 9
    rights = [record["near_future"]["right"] for record in records]
    assert found["near_future"]["running"] == pytest.approx(np.cumsum(rights) / np.array(found["images_seen"]))
    labels = scenario.stretch(0, 122).labels.tolist()
    best = {k: sum(guess_by_hand(labels[:t], k) == labels[t] for t in range(1, 122)) for k in (1, 2, 5, 10, 20, 30)}
    assert found["blind"]["accuracy"] >= max(best.values()) / 122 - 1e-12
    k = found["blind"]["window"]
    hits = [False] + [guess_by_hand(labels[:t], k) == labels[t] for t in range(1, 122)]
    running = [sum(hits[:n]) / n for n in found["images_seen"]]
    assert found["blind"]["running"] == pytest.approx(running)
    assert found["blind"]["majority"] == max(Counter(labels).values()) / 122


@pytest.mark.parametrize("done", range(10))
def test_a_run_in_progress_can_be_reported(whole, done):
    content = json.loads(json.dumps(report.results(experiment(), whole[0][:done]), allow_nan=False))
    found = content["stream"]
    ended = sum(end < done for end in (4, 8))
    measures = found["metrics"]["linear"]
    assert (measures["anytime_accuracy"] is None) == (measures["anytime_area"] is None) == (done == 0)
    assert (measures["average_accuracy"] is None) == (ended == 0)
    assert (measures["class_forgetting"] is None) == (ended < 2)
    assert [value is None for value in found["near_future"]["running"]] == [task >= done for task in range(9)]
    shown = {**content, "command": "", "seeds": {}, "versions": {}, "machine": {}}
    assert len(report.accuracy_rows(content, "linear")[1]) == ended
    report.markdown(shown)


def test_scenarios_with_boundaries_have_no_stream():
    lab = Lab(Replay)
    made = lab.experiment()
    made.trainer.epochs = 1
    records = run(made)[0]
    assert report.results(made, records)["stream"] is None
    assert all("near_future" not in record for record in records)


def test_tables_of_many_pieces_stay_short():
    made = experiment()
    order = np.concatenate([task.train._index for task in made.scenario.tasks])
    parts = np.split(order, [60])
    made.scenario = stream(toy_dataset(), parts, name="toy stream", every=2, nfa_shift=0)
    assert len(made.scenario.tasks) == 61
    progress = Cut()
    records = run(made, progress=progress)[0]
    content = report.jsonable(report.results(made, records))
    content = {**content, "command": "", "seeds": {}, "versions": {}, "machine": {}}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report.terminal(content))
        console.print(plan_table(made))
    text = capture.get()
    assert len(text.splitlines()) < 40 and len(report.markdown(content).splitlines()) < 60
    assert "…" not in text, "a column is cut"
    assert len(progress.lines) == 2
    assert "anytime accuracy, every 2 " in text and "blind classifier" in text and "61 pieces" in text


@pytest.mark.parametrize("budget", [{"exemplars": 18}, {"per_class": 2}, {"exemplars": 12, "selection": "reservoir"}])
def test_a_plan_is_met_piece_by_piece(budget):
    made = experiment()
    made.memory = Memory(**{"exemplars": None, **budget})
    for row, record in zip(plan(made), run(made)[0], strict=True):
        assert row["bytes"] == record["bytes"] and row["exemplars"] == record["exemplars"]


@pytest.mark.parametrize("align", ["final", "always"])
def test_a_budget_in_bytes_is_kept_on_a_stream(align):
    made = experiment()
    made.memory = Memory(exemplars=None, budget="7KiB", align=align)
    records = run(made)[0]
    assert all(record["bytes"]["strict"] <= 7 * 1024 for record in records)
    assert records[-1]["bytes"]["strict"] > 7 * 1024 - 6 * 68  # within one image of each class


def test_joint_training_on_a_stream_goes_on_from_its_weights():
    made = Lab(Joint).stream_experiment()
    heads = []
    run(
        made, on_task=lambda records, strategy, _: heads.append(strategy.model.backbone.stem[0].weight.detach().clone())
    )
    moved = [float((a - b).norm()) for a, b in itertools.pairwise(heads)]
    made.seeds = Seeds(9, 9, 9)
    fresh = float((heads[0] - made.fresh().model.backbone.stem[0].weight.detach()).norm())
    assert max(moved) < fresh / 2, "it started from other weights"


def test_fine_tuning_compares_all_classes_on_a_stream_and_a_tasks_own_elsewhere():
    def gradient_rows(scenario, task):
        strategy = Lab(Finetune).build()
        for one in scenario.tasks[: task + 1]:
            strategy.grow(one)
        strategy.begin(scenario.tasks[task])
        data = scenario.tasks[task].train
        strategy.loss(data.gather().float() / 255, data.labels).backward()
        rows = strategy.model.head.weight.grad.abs().sum(1)
        return torch.nonzero(rows).flatten().tolist()

    assert gradient_rows(toy_stream(), 1) == [0, 1, 2, 3, 4]  # two of them are not in the piece
    assert gradient_rows(toy_scenario(), 2) == [3, 4, 5]
    returning = Generalised(tasks=3, returning=0.5, seed=3)(toy_dataset())
    assert gradient_rows(returning, 2) == list(returning.tasks[2].present) == [0, 2, 5]


@pytest.mark.parametrize("name", sorted(strategies()))
def test_every_strategy_learns_tasks_in_which_classes_return(name):
    lab = Lab(strategies()[name])
    made = lab.experiment()
    made.scenario = Generalised(tasks=3, returning=0.5, seed=3)(toy_dataset())
    made.trainer.epochs = 2
    for moment in lab.moments(made, rebuild=True):
        assert moment.scores.shape[1] == moment.task.n_seen
        assert torch.isfinite(moment.scores).all()


# --- from the command line --------------------------------------------------------------------------------------------

COMMAND = [
    *["--config", str(STREAM), "--strategy", "replay", "--trainer.steps_per_batch", "1"],
    *["--checkpoint_every", "1", "--scenario.every", "250", "--threads", "1"],
]


def start(folder, log):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as out:
        argv = [sys.executable, "tools/train.py", *COMMAND, "--run_dir", str(folder)]
        return subprocess.Popen(argv, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)


def final(folder):
    moments = Checkpoints(folder / "checkpoint").moments()
    data = (folder / "checkpoint" / f"{moments[-1].name}.safetensors").read_bytes()
    return moments, data, report.comparable(json.loads((folder / "results.json").read_text()))


@pytest.mark.slow
def test_a_killed_run_on_a_stream_goes_on_to_the_same_bytes(tmp_path, capsys):
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "parts.log"
    assert train.main([*COMMAND, "--run_dir", str(whole)]) == 0
    process, deadline = start(parts, log), time.monotonic() + 200
    while b"phase 3, " not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    capsys.readouterr()
    assert train.main([*COMMAND, "--run_dir", str(parts), "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out
    assert final(parts) == final(whole)
    content = final(whole)[2]
    assert content["status"] == "complete" and content["seeds"]["stream"] == 22
    assert len(content["tasks"]) == 10 and len(content["stream"]["accuracy"]["linear"]) == 5
    # Beside other runs it is compared by phase.
    assert compare.main([str(whole), "--out", str(tmp_path / "report")]) == 0
    scenario = json.loads((tmp_path / "report/comparison.json").read_text())["scenarios"][0]
    assert scenario["task_sizes"] == [3, 2, 1, 2, 2]
    curve = scenario["rows"][0]["tasks"]
    ends = [
        task
        for task, phase in enumerate(content["stream"]["phases"])
        if phase not in content["stream"]["phases"][task + 1 :]
    ]
    assert curve["classes_seen"] == [3, 5, 6, 8, 10]
    seen = content["metrics"]["linear"]["seen_accuracy"]
    assert [spread["mean"] for spread in curve["seen_accuracy"]] == [seen[end] for end in ends]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--strategy", "wa"], ["WA needs to know where tasks begin", "Si-Blurry", "needs_boundaries = False"]),
        (["--strategy", "replay", "--trainer.epochs", "3"], ["trainer.epochs: 3", "must be 1"]),
        (["--strategy", "replay", "--scenario.every", "0"], ["every=0", "legal"]),
        (["--strategy", "replay", "--scenario.evry", "9"], ["no option 'scenario.evry'", "'scenario.every'"]),
    ],
)
def test_a_mistake_about_streams_ends_with_status_2(more, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, ["--config", str(STREAM), *more, "--run_dir", str(tmp_path / "run")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    for words in told:
        assert words in err
    assert not (tmp_path / "run").exists()


def test_a_stream_needs_no_experiment_of_its_own():
    assert isinstance(experiment(), Experiment) and experiment().place(0).ordered
    assert not Lab(Replay).experiment().place(0).ordered


def test_a_stream_left_to_the_seed_is_told_and_goes_on_as_it_began(tmp_path, capsys):
    def learn(seed, *more):
        place = tmp_path / str(seed)
        words = ["--config", str(ROOT / "configs/strategies/slda.yaml"), "--model.weights", "random"]
        words += ["--model.frozen", "true", "--scenario.seed", "null"]
        with pytest.raises(SystemExit) as stop:
            config.main(
                train.main, ["--config", str(STREAM), *words, "--seed", str(seed), "--run_dir", str(place), *more]
            )
        assert stop.value.code == 0
        return json.loads((place / "results.json").read_text())

    first, second = learn(21), learn(22)
    stated = learn(22, "--scenario.seed", "22", "--overwrite", "true")
    assert [content["seeds"]["stream"] for content in (first, second, stated)] == [21, 22, 22]
    assert first["fingerprint"] != second["fingerprint"] == stated["fingerprint"]
    assert first["scenario"]["family"] == second["scenario"]["family"] is not None
    assert stated["scenario"]["family"] is None
    assert second["metrics"] == stated["metrics"]
    capsys.readouterr()
    assert learn(21, "--resume", "true") == first
    assert "nothing to do" in capsys.readouterr().out
