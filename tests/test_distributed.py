"""Closed-form strategies on several processes: each reads its share, and the result is that of one process."""

import datetime

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cil.command.names import find_class
from cil.experiment.run import run
from cil.machine import distributed
from cil.testing.lab import Lab

OPTIONS = {
    "acil": {"width": 40, "gamma": 1.0, "products": "float64"},
    "gacil": {"width": 40, "gamma": 1.0, "products": "float64"},
    "dsal": {"width": 40, "gamma": 1.0, "compensation_gamma": 1.0, "products": "float64"},
    "dsal by batches": {  # one has a single image; on one process, auto would carry the inverse then
        "width": 40,
        "residual_batch": 23,
        "products": "float64",
        "solver": "accumulated",
    },
    "gkeal": {"width": 20, "gamma": 1.0, "sigma": None, "products": "float64"},
    "ranpac": {"width": 40, "penalties": [0.1, 1.0, 10.0], "products": "float64"},
    "slda": {},
    "simplecil": {},
    "ncm": {},
    "fetril": {},
}


def final_state(name: str) -> dict[str, np.ndarray]:
    """The state after the last task of the toy scenario, on a backbone that is never learned."""
    lab = Lab(find_class("strategy", name.split()[0]), OPTIONS[name])
    experiment = lab.experiment()
    build = experiment.build

    def frozen():
        strategy = build()
        strategy.model.frozen = True
        return strategy

    experiment.build = frozen
    _, strategy, _ = run(experiment)
    return {key: tensor.numpy() for key, tensor in strategy.state_dict().items()}


def worker(rank: int, world: int, address: str, results) -> None:
    """One process of ``world``: learns all strategies and hands over its states."""
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=world, timeout=wait)
    results.put((rank, {name: final_state(name) for name in OPTIONS}))
    dist.barrier()
    dist.destroy_process_group()


def on_processes(world: int, folder) -> list[dict[str, dict[str, np.ndarray]]]:
    """The states of each of ``world`` processes."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    processes = mp.spawn(worker, (world, str(folder / f"store{world}"), results), nprocs=world, join=False)
    found = dict(results.get() for _ in range(world))
    processes.join()
    return [found[rank] for rank in range(world)]


@pytest.fixture(scope="module")
def alone():
    return {name: final_state(name) for name in OPTIONS}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_result_on_several_processes_is_that_of_one(world, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    for states in on_processes(world, tmp_path):
        for name, state in states.items():
            assert state.keys() == alone[name].keys()
            for key, value in state.items():
                # scikit-learn's support vector machine stops at a tolerance of its own.
                close = 1e-3 if name == "fetril" and key.startswith("linear") else 1e-9
                np.testing.assert_allclose(value, alone[name][key], rtol=close, atol=close, err_msg=f"{name}: {key}")


def test_shares_cover_everything_once_and_differ_by_one_at_most(monkeypatch):
    for world in (1, 2, 3, 4, 7):
        monkeypatch.setattr(distributed, "world_size", lambda world=world: world)
        for n in (0, 1, 5, 12, 13):
            parts = []
            for rank in range(world):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                parts.append(np.arange(n)[distributed.share(n)])
            assert np.concatenate(parts).tolist() == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
