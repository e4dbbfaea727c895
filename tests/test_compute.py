"""Seconds by phase, floating-point operations and precision: what is measured, and what is chosen."""

import itertools
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from cil.command import config, session
from cil.data.images import OnDevice, near
from cil.errors import UserError
from cil.experiment.run import run
from cil.learning.batch import Batch
from cil.learning.learner import Compiled
from cil.machine import device as machine
from cil.machine.compute import PHASES, Compute, Flops, peak_memory
from cil.testing.lab import Lab, equal_states, toy_dataset
from scenarios.datasets import load
from strategies.analytic.acil import ACIL
from strategies.baselines.finetune import Finetune
from strategies.rehearsal.wa import WA
from tests import cached

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows 0, 1, 2, ... seconds, a second more at each look."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))


def test_each_second_belongs_to_the_innermost_phase(clock):
    compute = Compute()
    with compute.phase("other"):  # 0
        with compute.phase("learning"):  # 1
            with compute.phase("data"):  # 2
                pass  # 3
            with compute.phase("data"):  # 4
                pass  # 5
        with compute.phase("evaluation"):  # 6, 7
            pass  # 8
    assert compute.seconds == {
        **dict.fromkeys(PHASES, 0.0),
        "other": 3.0,
        "learning": 3.0,
        "data": 2.0,
        "evaluation": 1.0,
    }


def test_a_phase_that_fails_still_ends(clock):
    compute = Compute()
    with pytest.raises(ValueError), compute.phase("other"), compute.phase("learning"):
        raise ValueError
    with compute.phase("selection"):
        pass
    assert (compute.seconds["selection"], compute.seconds["learning"]) == (1.0, 1.0)


def test_costs_go_on_after_an_interruption(clock):
    before = Compute(images=3, training_flops=7.0)
    with before.phase("data"):
        state = before.state()
    after = Compute()
    after.load(state)
    with after.phase("data"):
        pass
    assert (after.seconds["data"], after.images, after.training_flops) == (2.0, 3, 7.0)


def test_operations_are_those_of_the_layers():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(5 * 6 * 6, 7, bias=False))
    x = torch.randn(2, 3, 6, 6)
    forward = 2 * 2 * (36 * 5 * 3 * 9 + 180 * 7)  # two for each multiplication with addition, two images
    with Flops() as counted, torch.no_grad():
        net(x)
    assert counted.total == forward
    with Flops() as counted:
        net(x).sum().backward()
    # Backward: twice the forward pass, less the gradient of the images, which nobody asks for.
    assert counted.total == 3 * forward - 2 * 2 * 36 * 5 * 3 * 9


def test_what_a_strategy_does_itself_is_learning(monkeypatch):
    slow = 0.2
    monkeypatch.setattr(Finetune, "fit", lambda *_: time.sleep(slow))
    records, _, _ = run(Lab(Finetune).experiment())
    for record in records:
        assert record["compute"]["seconds"]["learning"] >= slow


@pytest.mark.parametrize("kind", [Finetune, WA, ACIL])
def test_a_run_tells_what_each_task_cost(kind):
    records, _, _ = run(Lab(kind, {"width": 20} if kind is ACIL else None).experiment())
    for record in records:
        cost = record["compute"]
        assert set(cost["seconds"]) == set(PHASES)
        assert record["seconds"] == pytest.approx(sum(cost["seconds"].values()))
        assert all(value >= 0 for value in cost["seconds"].values())
        assert cost["seconds"]["learning"] > 0 < cost["seconds"]["evaluation"]
        assert cost["peak_bytes"]["process"] > 2**20 and cost["peak_bytes"]["device"] is None
    first, last = records[0]["compute"], records[-1]["compute"]
    body = 2 * (16 * 8 * 9 + 4 * 12 * 8 * 9)  # convolutions of the toy network on 8 x 8 pixels, of stride 2
    head = 2 * (12 * 20 + 20 * 6) if kind is ACIL else 2 * 12 * 6
    assert last["forward_flops"] == body + head
    assert first["images"] == 8 * records[0]["train_images"]  # epochs
    if kind is Finetune:
        # Without the gradient of the images: the first convolution twice, everything else three times.
        assert first["training_flops"] / first["images"] == 3 * (body + 2 * 12 * 2) - 2 * 16 * 8 * 9
    if kind is WA:  # the teacher's pass comes on top
        forward, second = body + 2 * 12 * records[1]["n_seen"], records[1]["compute"]
        assert second["training_flops"] / second["images"] == 3 * forward - 2 * 16 * 8 * 9 + forward
    if kind is ACIL:  # after the first task, one pass over each image
        assert last["images"] == 0
        assert last["training_flops"] == body * records[-1]["train_images"]


def test_predicting_one_image_on_a_frozen_backbone_counts_one_image():
    record = run(cached.experiment())[0][-1]
    features = cached.experiment().fresh().model.backbone.num_features
    body = 2 * (64 * 64 * 9 + 16 * 64 * 64 * 9)  # convolutions on 8 x 8 pixels and, after pooling, on 4 x 4
    assert record["compute"]["forward_flops"] == body + 2 * features * record["n_seen"]


def test_the_peak_of_memory_is_that_of_the_process():
    before = peak_memory(CPU)["process"]
    block = torch.ones(2**26)  # 256 MiB
    after = peak_memory(CPU)["process"]
    assert after >= before and after >= block.numel() * 4


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "flags", "chosen"),
    [
        ("Linux", "flags\t\t: fpu sse2 avx512f avx512_bf16", "bf16-mixed"),
        ("Linux", "flags\t\t: fpu amx_bf16 amx_tile", "bf16-mixed"),
        ("Linux", "Features\t: fp asimd bf16 i8mm", "bf16-mixed"),
        ("Linux", "flags\t\t: fpu sse2 avx2 avx512f", "32"),
        ("Linux", "model name\t: with bf16 in its name", "32"),
        ("Darwin", "flags\t\t: avx512_bf16", "32"),
    ],
)
def test_a_processor_gets_bfloat16_where_it_multiplies_it(monkeypatch, system, flags, chosen):
    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor\t: 0\n{flags}\n")
    assert machine.pick_precision("auto", CPU) == chosen
    emulated = system == "Linux" and chosen == "32"  # of other systems nothing is known
    assert machine.is_emulated("bf16-mixed", CPU) == emulated
    assert not machine.is_emulated(chosen, CPU)
    assert not machine.is_emulated("bf16-mixed", torch.device("cuda"))


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "bf16-mixed"), ((7, 5), "16-mixed"), ((6, 1), "32")])
def test_a_gpu_gets_what_it_computes_fast(monkeypatch, capability, chosen):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.pick_precision("auto", torch.device("cuda:0")) == chosen


@pytest.mark.parametrize("name", ["32", "64", "bf16-mixed"])
def test_what_is_asked_for_is_taken(name):
    assert machine.pick_precision(name, CPU) == name


def test_precisions_that_do_not_work_are_refused():
    with pytest.raises(UserError, match="did you mean 'bf16-mixed'"):
        machine.pick_precision("bf16-mixd", CPU)
    with pytest.raises(UserError, match="16-mixed is for NVIDIA GPUs"):
        machine.pick_precision("16-mixed", CPU)


def test_float64_computes_everything_in_it():
    experiment = Lab(WA).experiment()
    experiment.precision = "64"
    _, strategy, _ = run(experiment)
    floats = [tensor for tensor in strategy.state_dict().values() if tensor.is_floating_point()]
    assert floats and all(tensor.dtype == torch.float64 for tensor in floats)


# --- compiled losses --------------------------------------------------------------------------------------------------


def test_a_compiled_loss_is_for_batches_of_one_shape(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda batch: calls.append(options) or loss(batch))
    loss = Compiled(lambda batch: batch.x.sum() - batch.y.sum(), "reduce-overhead")
    for size in (4, 4, 3, 4):
        nothing = torch.zeros(size, dtype=torch.int64)
        assert loss(Batch(torch.ones(size, 2), torch.ones(size), nothing, nothing, {})) == size
    # Not the first, whose operations are counted, and not the one of three.
    assert calls == 2 * [{"mode": "reduce-overhead", "dynamic": False}]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="what torch.compile writes for a processor without vector instructions is no valid C++",
)
def test_compiling_changes_nothing_but_rounding(tmp_path, monkeypatch):
    # What was compiled for a processor with other instructions lies in the same place, and may be taken for ours.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    states = []
    for mode in (None, "default"):
        experiment = Lab(WA).experiment(sizes=(4, 2))
        experiment.precision, experiment.compile = "64", mode
        _, strategy, _ = run(experiment)
        states.append(strategy.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    assert any(not torch.equal(states[1][name], tensor) for name, tensor in states[0].items())  # it was compiled


def test_several_processes_do_not_compile(tmp_path):
    with pytest.raises(UserError, match="compile: default works in one process"):
        words = ["--config", "configs/quickstart.yaml", "--run_dir", str(tmp_path / "run")]
        session.train([*words, "--compile", "default", "--devices", "2"], load, "train.py")
    assert not list(tmp_path.iterdir())


# --- images on the device ---------------------------------------------------------------------------------------------


def test_images_on_the_device_are_those_that_were_put_there(monkeypatch):
    data = toy_dataset().train.subset([5, 3, 100, 7])
    there = OnDevice(data, CPU)
    index = torch.tensor([2, 0, 2])
    assert len(there) == 4
    assert torch.equal(there.labels, data.labels)
    assert torch.equal(there.gather(index), data.gather(index))
    assert there.gather(index).is_contiguous(memory_format=torch.channels_last)
    assert near(data, CPU) is data


@pytest.mark.parametrize(("free", "fits"), [(4 * 4 * 64, True), (4 * 4 * 64 - 1, False)])
def test_a_gpu_holds_images_that_leave_three_quarters_of_it(monkeypatch, free, fits):
    data = toy_dataset().train.subset([5, 3, 100, 7])  # 64 bytes each
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr("cil.data.images.OnDevice", lambda images, device: (images, device))
    device = torch.device("cuda:0")
    assert near(data, device) == ((data, device) if fits else data)


def test_a_run_learns_the_same_from_images_on_the_device(monkeypatch):
    wanted = run(Lab(WA).experiment())[1].state_dict()
    put = []
    monkeypatch.setattr("cil.learning.trainer.near", lambda data, device: put.append(1) or OnDevice(data, device))
    found = run(Lab(WA).experiment())[1].state_dict()
    assert len(put) == 3
    assert not equal_states(wanted, found)


FAULTS = """
import resource, sys, torch
from cil.machine.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(40):  # the heap settles within ten
    if step == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 * 2**20)  # 48 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told to keep memory")
def test_freed_memory_is_not_asked_for_again():
    def faults(word):
        return int(
            subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True).stdout
        )

    assert 3 * faults("kept") < faults("given back")


def test_command_lines_keep_freed_memory(monkeypatch):
    called = []
    monkeypatch.setattr(config, "keep_freed_memory", lambda: called.append(True))
    with pytest.raises(SystemExit):
        config.main(lambda argv: 0, [])
    assert called == [True]
