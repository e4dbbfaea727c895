"""Batch normalisation folded into convolutions: the same features up to rounding, and nothing changed afterwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cil.data.augmentation import Augmentation
from cil.learning import inference
from cil.learning.inference import features_of, passes
from cil.learning.place import Place
from cil.learning.strategy import Strategy
from cil.nets.folding import Folded, pairs
from cil.nets.heads import LinearHead
from cil.nets.network import BACKBONES, Network
from cil.nets.pretrained import Pretrained
from cil.testing.lab import TinyNet, toy_dataset

# Convolutions that are followed by batch normalisation, shortcuts included, counted by hand.
FOLDABLE = {"cifar_resnet14": 13, "resnet10": 12, "resnet26": 29, "convnet2": 2, "convnet4": 4}


def lively(net: nn.Module) -> nn.Module:
    """The network in eval mode with statistics, scales and shifts that are not those of the start."""
    draws = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=draws) / 4)
            for tensor in (module.running_var, module.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=draws) + 0.5)
    return net.eval()


def images(channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))


def place() -> Place:
    data = toy_dataset().train
    return Place(0, 0, Augmentation().bind(data.image_shape, None, None, torch.device("cpu")))


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_networks_give_the_same_features(name):
    net = lively(BACKBONES[name]()).double()
    folded = Folded(net)
    assert len(folded.pairs) == FOLDABLE[name]
    with torch.inference_mode():
        due = net(images().double())
        with folded.standing_in():
            assert not any(type(part) is nn.BatchNorm2d for part in net.modules())
            torch.testing.assert_close(net(images().double()), due, rtol=1e-12, atol=1e-12)
        assert torch.equal(net(images().double()), due)


def test_a_convolution_and_its_norm_fold_as_the_formula_says():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()
    for tensor, value in ((net[0].weight, 3), (net[0].bias, 1), (net[1].weight, 2), (net[1].bias, 5)):
        nn.init.constant_(tensor, value)
    net[1].running_mean.fill_(4)
    net[1].running_var.fill_(9 - net[1].eps)
    folded = Folded(net)
    with folded.standing_in():
        assert net[0].weight.item() == pytest.approx(3 * 2 / 3)
        assert net[0].bias.item() == pytest.approx((1 - 4) * 2 / 3 + 5)
    assert net[0].weight.item() == 3


def test_a_module_is_itself_again_after_an_error():
    net = lively(TinyNet())
    own = list(net.modules())
    with pytest.raises(RuntimeError), Folded(net).standing_in():
        net(torch.zeros(1, 7, 8, 8))  # seven channels
    assert list(net.modules()) == own


class Own(nn.Module):
    """A convolution and a norm that are called in a way of a test's own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.num_features = how, 4
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raw = self.conv(x)
        if self.how == "twice":
            raw = raw + self.conv(x.flip(3))
        out = self.norm(raw)
        if self.how == "norm twice":
            out = self.norm(out)
        if self.how == "raw, too":
            out = out + raw
        if self.how == "by value" and x.sum() > 0:
            out = F.relu(out)
        return out.mean((2, 3))


@pytest.mark.parametrize(
    ("how", "number"), [("plainly", 1), ("twice", 0), ("norm twice", 0), ("raw, too", 0), ("by value", 0)]
)
def test_only_a_convolution_that_feeds_one_norm_and_nothing_else_is_folded(how, number):
    assert len(pairs(Own(how).eval())) == number


@pytest.mark.parametrize("prevented", ["by training", "by a hook", "without statistics", "by another kind"])
def test_what_would_not_be_the_same_is_not_folded(prevented):
    net = Own("plainly").eval()
    if prevented == "by training":
        net.norm.train()
    elif prevented == "by a hook":
        net.conv.register_forward_hook(lambda *words: None)
    elif prevented == "without statistics":
        net.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    else:
        net.norm = nn.SyncBatchNorm(4).eval()
    assert not pairs(net)


def test_frozen_pretrained_parts_are_left_as_they_are():
    assert not Folded(Pretrained(TinyNet(), "tiny", frozen=True).eval()).pairs
    assert len(Folded(Pretrained(TinyNet(), "tiny").eval()).pairs) == 2


class Apart(Strategy):
    """A method whose features are those of the stem's convolution, without its norm."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.backbone.stem[0](x).mean((2, 3))


class ScoresApart(Strategy):
    """A method whose scores come from there, and its features from the network as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.backbone.stem[0](x).mean((2, 3))


@pytest.mark.parametrize("kind", [Strategy, Apart, ScoresApart])
def test_passes_give_what_the_strategy_gives(kind):
    network = Network(lively(TinyNet()), LinearHead(8 if kind is Apart else 12))
    network.head.grow(2)
    strategy, data = kind(network).eval(), toy_dataset().train
    x = place().augmentation.test(data.gather())
    with torch.inference_mode():
        torch.testing.assert_close(features_of(strategy, data, place()), strategy.features(x))
        scores = torch.cat([scores for _, scores in passes(strategy, data, place())])
        torch.testing.assert_close(scores, strategy(x))


def test_it_is_looked_at_again_when_norms_have_learned_since_fresh_ones_hide_a_difference():
    strategy, data = Apart(Network(TinyNet(), LinearHead(8))), toy_dataset().train
    x = place().augmentation.test(data.gather())
    features_of(strategy, data, place())
    strategy.train().model.backbone(x)
    with torch.inference_mode():
        due = strategy.features(x)
    torch.testing.assert_close(features_of(strategy, data, place()), due)


def test_passes_compute_with_folded_convolutions(monkeypatch):
    strategy = Strategy(Network(lively(TinyNet()), LinearHead(12)))
    seen = []

    class Watched(Folded):
        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            seen.append(len(self.pairs))

    monkeypatch.setattr(inference, "Folded", Watched)
    norms = [part for part in strategy.modules() if isinstance(part, nn.BatchNorm2d)]
    features_of(strategy, toy_dataset().train, place())
    called = []
    for norm in norms:
        monkeypatch.setattr(norm, "forward", lambda x, norm=norm: called.append(norm) or x)
    features_of(strategy, toy_dataset().train, place())
    assert seen == [2, 2]
    assert not called


def test_weights_that_changed_are_folded_anew():
    strategy, data = Strategy(Network(lively(TinyNet()), LinearHead(12))), toy_dataset().train
    before = features_of(strategy, data, place())
    with torch.no_grad():
        strategy.model.backbone.stem[0].weight.mul_(2)
    after = features_of(strategy, data, place())
    assert not torch.allclose(before, after)
    with torch.inference_mode():
        torch.testing.assert_close(after, strategy.features(place().augmentation.test(data.gather())))
