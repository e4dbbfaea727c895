"""Checkpoints come back bit for bit, and no damage passes for a checkpoint."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from torch import nn

from cil.errors import UserError
from cil.experiment import checkpoint as ckpt
from cil.experiment.checkpoint import Checkpoints, DamagedError, Moment
from cil.files import write_atomic
from cil.learning.state import under, with_prefix

RECORD = {"task": 3, "accuracy": [0.1, 1 / 3], "name": "größe", "nested": {"b": None, "a": [True, {}]}}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "float32": torch.randn(3, 4, generator=generator),
        "float64": torch.randn(5, generator=generator, dtype=torch.float64),
        "float16": torch.randn(2, 2, generator=generator).half(),
        "bfloat16": torch.randn(7, generator=generator).bfloat16(),
        "uint8": torch.arange(256, dtype=torch.uint8).view(2, 128),
        "int32": torch.tensor([-(2**31), 0, 2**31 - 1], dtype=torch.int32),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "count": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def saved(tmp_path):
    """A folder with one checkpoint, and its two files."""
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints")
    checkpoints.save(Moment(3), tensors(), RECORD)
    return checkpoints, checkpoints.folder / "task003.json", checkpoints.folder / "task003.safetensors"


# --- round trip ------------------------------------------------------------------------------------------------------


def test_every_type_comes_back_bit_by_bit(saved):
    loaded, record = saved[0].load(Moment(3))
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert bits(loaded[name]) == bits(tensor), name
    assert record == RECORD


def test_layout_and_sharing_do_not_matter(tmp_path):
    image = torch.randn(2, 3, 4, 5)
    base = torch.arange(12.0).view(3, 4)
    parameter = nn.Parameter(torch.randn(2))
    given = {
        "last": image.to(memory_format=torch.channels_last),
        "transposed": base.T,
        "slice": base[1:, ::2],
        "shared": base,
        "again": base,
        "parameter": parameter,
    }
    Checkpoints(tmp_path).save(Moment(0), given, {})
    loaded, _ = Checkpoints(tmp_path).load(Moment(0))
    assert torch.equal(loaded["last"], image)
    assert torch.equal(loaded["transposed"], base.T)
    assert torch.equal(loaded["slice"], torch.tensor([[4.0, 6], [8, 10]]))
    assert torch.equal(loaded["shared"], base)
    assert torch.equal(loaded["again"], base)
    assert torch.equal(loaded["parameter"], parameter)


def test_saving_changes_nothing_and_loading_shares_nothing(saved):
    given = tensors()
    before = {name: bits(tensor) for name, tensor in given.items()}
    saved[0].save(Moment(4), given, RECORD)
    assert {name: bits(tensor) for name, tensor in given.items()} == before
    saved[0].load(Moment(4))[0]["float32"].zero_()
    assert bits(saved[0].load(Moment(4))[0]["float32"]) == before["float32"]


def test_a_checkpoint_without_tensors(tmp_path):
    Checkpoints(tmp_path).save(Moment(0), {}, {"a": 1})
    assert Checkpoints(tmp_path).load(Moment(0)) == ({}, {"a": 1})


def test_saving_again_replaces(saved):
    checkpoints, *files = saved
    checkpoints.save(Moment(3), {"x": torch.ones(2)}, {"new": 1})
    loaded, record = checkpoints.load(Moment(3))
    assert list(loaded) == ["x"]
    assert record == {"new": 1}
    assert sorted(checkpoints.folder.iterdir()) == sorted(files)


# --- damage ----------------------------------------------------------------------------------------------------------


def positions(length):
    """Places in a file: both ends densely, the rest in steps that are no multiple of a tensor's size."""
    return sorted({*range(min(length, 24)), *range(0, length, 61), *range(max(0, length - 24), length)})


@pytest.mark.parametrize("which", [1, 2], ids=["json", "safetensors"])
def test_a_file_that_was_cut_short_is_damaged(saved, which):
    checkpoints, path = saved[0], saved[which]
    whole = path.read_bytes()
    for length in positions(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=path.stem):
            checkpoints.load(Moment(3))
    path.write_bytes(whole)
    checkpoints.load(Moment(3))


@pytest.mark.parametrize("which", [1, 2], ids=["json", "safetensors"])
@pytest.mark.parametrize("tail", [b"\0", b"x", b"{}"])
def test_a_file_that_grew_is_damaged(saved, which, tail):
    saved[which].write_bytes(saved[which].read_bytes() + tail)
    with pytest.raises(DamagedError):
        saved[0].load(Moment(3))


@pytest.mark.parametrize("mask", [1, 32, 128, 255])
def test_a_flipped_byte_of_the_tensors_is_damage(saved, mask):
    checkpoints, _, path = saved
    whole = path.read_bytes()
    for position in positions(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        with pytest.raises(DamagedError, match=r"task003.safetensors: damaged"):
            checkpoints.load(Moment(3))


def test_a_flipped_byte_of_the_record_is_damage_or_means_the_same(saved):
    checkpoints, path, _ = saved
    whole, damaged = path.read_bytes(), 0
    for position, mask in [(p, 1 << p % 8) for p in range(len(whole))] + [(p, 32) for p in range(len(whole))]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        try:
            loaded, record = checkpoints.load(Moment(3))
        except (DamagedError, UserError) as error:
            assert isinstance(error, DamagedError) or "of a later version" in str(error)  # the digit of the format
            damaged += 1
            continue
        # White space, or a hexadecimal digit of an escape in another case: the same JSON value.
        assert json.dumps(record, sort_keys=True) == json.dumps(RECORD, sort_keys=True)
        assert {name: bits(value) for name, value in loaded.items()} == {n: bits(v) for n, v in tensors().items()}
    assert damaged > 1.6 * len(whole)


@pytest.mark.parametrize("which", [1, 2], ids=["json", "safetensors"])
def test_a_missing_file_is_damage(saved, which):
    saved[which].unlink()
    with pytest.raises(DamagedError, match="task003"):
        saved[0].load(Moment(3))


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", "{}", '{"sha256": "x"}', "{", "\xff"])
def test_other_json_is_damage(saved, text):
    saved[1].write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedError):
        saved[0].load(Moment(3))


def test_files_of_two_checkpoints_do_not_mix(saved):
    checkpoints, path, data = saved
    other = {**tensors(), "scalar": torch.tensor(2.5)}
    checkpoints.save(Moment(4), other, RECORD)
    whole = data.read_bytes()
    data.write_bytes((checkpoints.folder / "task004.safetensors").read_bytes())
    with pytest.raises(DamagedError, match=r"task003.safetensors: damaged"):
        checkpoints.load(Moment(3))
    data.write_bytes(whole)
    path.write_bytes((checkpoints.folder / "task004.json").read_bytes())
    with pytest.raises(UserError, match=r"task003.json is the checkpoint task004 under another name"):
        checkpoints.load(Moment(3))


def test_a_later_format_is_no_damage(saved, monkeypatch):
    monkeypatch.setattr(ckpt, "FORMAT", ckpt.FORMAT - 1)
    with pytest.raises(
        UserError, match=r"task003\.json: format 1, of a later version of this program; this one reads 0"
    ):
        saved[0].load(Moment(3))


# --- which there are -------------------------------------------------------------------------------------------------

ORDER = [
    Moment(0, 0, 2),
    Moment(0),
    Moment(1, 0, 2),
    Moment(1, 0, 10),
    Moment(1, 1, 1),
    Moment(1, 10, 0),
    Moment(1),
    Moment(2, 0, 10000),
    Moment(10),
    Moment(1000, 0, 1),
    Moment(1000),
]


def test_moments_are_sorted_by_time(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for moment in ORDER[::-1]:
        checkpoints.save(moment, {}, {})
    for name in ("task003.safetensors", "task.json", "task3-stage0.json", "notes.json", ".task004.json.part"):
        (tmp_path / name).write_bytes(b"{}")
    assert checkpoints.moments() == ORDER
    assert sorted(ORDER[::-1]) == ORDER
    assert Checkpoints(tmp_path / "nowhere").moments() == []


def test_names_say_when():
    assert Moment(3).name == "task003"
    assert Moment(4, 0, 10).name == "task004-stage0-epoch0010"
    assert not Moment(3).inside
    assert Moment(3, 0, 0).inside


def test_prune_keeps_what_is_wanted(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for moment in ORDER:
        checkpoints.save(moment, {"x": torch.tensor(moment.task)}, {})
    checkpoints.prune(lambda moment: not moment.inside)
    kept = [moment for moment in ORDER if not moment.inside]
    assert checkpoints.moments() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{moment.name}.{kind}" for moment in kept for kind in ("json", "safetensors")
    )
    for moment in kept:
        assert checkpoints.load(moment)[0]["x"] == moment.task


def test_the_record_goes_first_when_pruned(saved, monkeypatch):
    gone = []
    unlink = type(saved[1]).unlink
    monkeypatch.setattr(
        type(saved[1]), "unlink", lambda path, **options: (gone.append(path.suffix), unlink(path, **options))
    )
    saved[0].prune(lambda moment: False)
    assert gone == [".json", ".safetensors"]


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    events, real_sync, real_replace = [], os.fsync, os.replace

    def sync(descriptor):
        status = os.fstat(descriptor)
        events.append(("folder",) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size))
        real_sync(descriptor)

    def replace(source, target):
        events.append(("replace", os.path.getsize(source)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "file.bin", b"12345")
    assert events == [("file", 5), ("replace", 5), ("folder",)]


@pytest.mark.parametrize("writes", [0, 1])
def test_a_crash_while_saving_leaves_no_checkpoint(tmp_path, monkeypatch, writes):
    checkpoints, real, done = Checkpoints(tmp_path), os.replace, []

    def replace(source, target):
        if len(done) == writes:
            raise OSError("power cut")
        done.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="power cut"):
        checkpoints.save(Moment(1), tensors(), RECORD)
    assert checkpoints.moments() == []
    with pytest.raises(DamagedError):
        checkpoints.load(Moment(1))


# --- optimisers ------------------------------------------------------------------------------------------------------


def steps(parameters, optimizer, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, 0.1),
        lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.01),
        lambda groups: torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True),
        lambda groups: torch.optim.AdamW(groups, 0.01, weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "nesterov", "adamw"],
)
def test_an_optimiser_restored_from_disk_goes_on_bit_by_bit(tmp_path, make):
    def start():
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 4), (5,), (), (2, 3, 2, 2)]
        parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        parameters[3].data = parameters[3].data.to(memory_format=torch.channels_last)
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.03}]
        return parameters, make(groups)

    first, optimizer = start()
    steps(first, optimizer, 3, seed=1)
    state = with_prefix("optimizer", ckpt.optimizer_tensors(optimizer))
    weights = {f"weight/{index}": parameter for index, parameter in enumerate(first)}
    Checkpoints(tmp_path).save(Moment(0, 0, 3), {**state, **weights}, {})

    loaded, _ = Checkpoints(tmp_path).load(Moment(0, 0, 3))
    second, fresh = start()
    with torch.no_grad():
        for index, parameter in enumerate(second):
            parameter.copy_(under("weight", loaded)[str(index)])
    ckpt.load_optimizer(fresh, under("optimizer", loaded))
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] for group in optimizer.param_groups]
    steps(first, optimizer, 4, seed=2)
    steps(second, fresh, 4, seed=2)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    was, now = ckpt.optimizer_tensors(optimizer), ckpt.optimizer_tensors(fresh)
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_the_state_of_adamw_is_complete():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], 0.1)
    steps([parameter], optimizer, 2, seed=0)
    state = ckpt.optimizer_tensors(optimizer)
    assert set(state) == {"0.step", "0.exp_avg", "0.exp_avg_sq"}
    assert state["0.step"] == 2


def test_prefixes_nest_and_do_not_mix():
    inner = {"weight": torch.ones(1), "a/b": torch.zeros(1)}
    named = {**with_prefix("strategy", inner), **with_prefix("strategy2", {"weight": torch.full((1,), 2.0)})}
    assert set(named) == {"strategy/weight", "strategy/a/b", "strategy2/weight"}
    assert under("strategy", named) == inner
    assert under("other", named) == {}
