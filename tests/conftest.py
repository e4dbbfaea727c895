"""One thread for every test: the same results on every machine, and two workers do not get in each other's way."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """What a run keeps for others is kept in a temporary folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def computed(monkeypatch):
    """Numbers of images that frozen backbones computed, call by call."""
    from cil.nets.pretrained import Pretrained

    counts = []

    def counting(plain):
        def counted(self, x):
            counts.append(len(x))
            return plain(self, x)

        return counted

    for name in ("compute", "predict"):
        monkeypatch.setattr(Pretrained, name, counting(getattr(Pretrained, name)))
    return counts
