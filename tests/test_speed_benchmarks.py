"""The benchmarks of speed on toy data: they run, and what they count and compare is what they say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from benchmarks import growth, latency, limit, passes, plain
from benchmarks.shared import runs
from cil.data.images import ImageSet
from cil.experiment.run import run
from cil.learning.trainer import Trainer
from cil.machine.compute import PHASES

OPTIONS = [
    "--scenario.step",
    "2",
    "--model.backbone",
    "convnet2",
    "--memory.exemplars",
    "8",
    "--trainer.batch_size",
    "4",
]


@pytest.fixture
def toy(tmp_path):
    """Six classes of six training and three test images of 8 x 8 colour pixels."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 36), ("test", 18)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 6
    np.savez(tmp_path / "toy.npz", classes=list("abcdef"), **arrays)
    return f"npz:{tmp_path / 'toy.npz'}"


def argv(toy, *words):
    return ["--config", "configs/protocols/cifar100_b0_10.yaml", "--data", toy, *OPTIONS, *words]


def printed(module, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    module.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [row for row in rows[2:] if row]


def test_runs_on_the_first_classes(toy):
    own = runs.experiment(argv(toy, "--strategy", "replay", "--trainer.epochs", "2"), 4)
    assert own.scenario.n_classes == 4
    assert sum(len(task.train) for task in own.scenario.tasks) == 24
    done = runs.timed(own)
    assert done.images == 2 * 12 + 2 * (12 + 8)
    assert 0 <= done.accuracy <= 1 and done.rate == done.images / done.seconds
    assert set(done.phases) == set(PHASES)
    assert 0 < sum(done.phases.values()) <= done.seconds


def test_the_limit_is_made_of_the_images_of_the_run(toy, monkeypatch):
    own = runs.experiment(argv(toy, "--strategy", "wa", "--trainer.epochs", "2"), 4)
    monkeypatch.setattr(limit.Step, "seconds", lambda self, steps: [0.25 * self.size] * steps)
    monkeypatch.setattr(limit, "forward_seconds", lambda strategy, images, place: 100.0)
    clock = iter(range(10**6))
    monkeypatch.setattr(limit.time, "perf_counter", lambda: float(next(clock)))
    found = limit.Limit(3)
    monkeypatch.setattr(Trainer, "descend", limit.limit_method(found.descend))
    monkeypatch.setattr(Trainer, "run_epoch", limit.limit_method(found.run_epoch))
    run(own, on_task=lambda *words: found.on_task(own, *words))
    assert found.learning == pytest.approx(0.25 * (2 * 12 + 2 * (12 + 8)))
    # new images, old exemplars, test images of all classes seen
    assert found.looking == pytest.approx(100.0 * ((12 + 0 + 6) + (12 + 8 + 12)))
    assert found.spent > 0 and found.loop > 0


def test_the_step_that_is_timed_is_a_copy(toy):
    own = runs.experiment(argv(toy, "--strategy", "replay", "--trainer.epochs", "2", "--precision", "32"), 4)
    expected = [value.clone() for value in run(own)[1].state_dict().values()]
    seconds, whole, loop = limit.measured(own, 2)
    assert seconds > 0 and whole > 0 and loop > 0
    assert Trainer.descend is limit.descend and Trainer.run_epoch is limit.run_epoch
    found = limit.Limit(2)
    limit.Trainer.descend = limit.limit_method(found.descend)
    limit.Trainer.run_epoch = limit.limit_method(found.run_epoch)
    try:
        state = run(own, on_task=lambda *words: found.on_task(own, *words))[1].state_dict()
    finally:
        limit.Trainer.descend, limit.Trainer.run_epoch = limit.descend, limit.run_epoch
    assert all(torch.equal(one, other) for one, other in zip(state.values(), expected, strict=True))


def test_the_fastest_batch_counts(toy, monkeypatch):
    own = runs.experiment(argv(toy, "--strategy", "replay"), 4)
    strategy = own.fresh()
    sizes, now = [], [0.0]
    monkeypatch.setattr(limit.time, "perf_counter", lambda: now[0])

    def slow_in_small_batches(x):
        sizes.append(len(x))
        now[0] += 2.0 if len(x) < 512 else 1.0
        return x

    monkeypatch.setattr(type(strategy), "forward", lambda self, x: slow_in_small_batches(x))
    images = ImageSet(np.zeros((512, 8, 8, 3), np.uint8), np.zeros(512))
    each = limit.forward_seconds(strategy, images, own.place(0))
    assert sorted(set(sizes)) == list(limit.BATCHES)
    assert each == 1 / 512


def test_limit_prints_a_row_for_each_method_and_number_of_epochs(toy, monkeypatch, capsys):
    words = [
        "--data",
        toy,
        "--classes",
        "4",
        "--methods",
        "replay",
        "icarl",
        "memo",
        "--epochs",
        "1",
        "2",
        "--steps",
        "1",
    ]
    rows = printed(limit, monkeypatch, capsys, *words, "--options", *OPTIONS)
    assert [row[:2] for row in rows] == [[name, str(n)] for name in ("replay", "icarl", "memo") for n in (1, 2)]


def test_the_plain_loop_learns_the_same_images(toy, monkeypatch, capsys):
    rows = printed(plain, monkeypatch, capsys, "--data", toy, "--classes", "4", "--workers", "0", "--options", *OPTIONS)
    assert [row[0] for row in rows] == ["plain, 32", "ours, 32", "ours, auto"]
    own = runs.experiment(argv(toy, "--strategy", "replay", "--trainer.epochs", "1", "--trainer.schedule", "cosine"), 4)
    loop = plain.Plain(own, 0)
    loop.run()
    assert loop.images == runs.timed(own).images == 12 + (12 + 8)
    assert {label: len(kept) for label, kept in loop.kept.items()} == dict.fromkeys(range(4), 2)
    assert loop.head.out_features == 4


def test_avalanche_gets_the_same_images(toy):
    from benchmarks import avalanche as benchmark

    for method, words in benchmark.METHODS.items():
        more = ["--config", f"configs/strategies/{method}.yaml", *words, "--trainer.epochs", "2"]
        own = runs.experiment(argv(toy, *more, "--trainer.schedule", "cosine"), 4)
        theirs = benchmark.in_avalanche(method, own, 0)
        assert theirs.images == runs.timed(own).images == 2 * 12 + 2 * (12 + 8)
        assert 0 <= theirs.accuracy <= 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents(power):
    numbers = [0, 10, 30, 100, 300, 1000]
    assert growth.exponent(numbers, [3.0, *(n**power for n in numbers[1:])]) == pytest.approx(power)


def test_growth_runs_what_its_series_say(tmp_path):
    found = growth.run(tmp_path, 2, 4, 8, 40, [])
    assert 0 < sum(found[phase] for phase in PHASES) < found["command"]
    assert found["images"] == 20 + (20 + 8)
    assert found["peak"] > 2**26
    assert (tmp_path / "4-40.npz").exists()


def test_passes_are_timed_folded_and_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr(passes, "IMAGES", 4)
    monkeypatch.setattr(passes, "BATCHES", (2, 4))
    rows = printed(passes, monkeypatch, capsys, "--rounds", "1")
    assert [row[:2] for row in rows] == [["32", "2"], ["32", "4"], ["bf16-mixed", "2"], ["bf16-mixed", "4"]]
    assert all(float(row[4]) > 0 for row in rows)


def test_one_image_is_timed_bare_in_use_and_as_in_a_run(monkeypatch, capsys):
    rows = printed(latency, monkeypatch, capsys, "--rounds", "1", "--networks", "cifar_resnet32")
    assert [row[0] for row in rows] == ["cifar_resnet32"]
    assert all(float(cell) > 0 for cell in rows[0][1:])
