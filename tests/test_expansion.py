"""What methods share that add networks: their maths against loops, heads that grow in width, backbones in two parts."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cil.nets import resnet
from cil.nets.heads import CosineHead, LinearHead
from cil.nets.network import BACKBONES, Backbone, Network, Splittable
from cil.ops.distillation import distillation
from cil.ops.expansion import auxiliary_loss, auxiliary_targets, balanced_distillation, effective_weights


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


# --- auxiliary targets -----------------------------------------------------------------------------------------------


def test_auxiliary_targets_worked_by_hand():
    got = auxiliary_targets(torch.tensor([3, 10, 19, 0, 9, 11]), 10)
    assert got.tolist() == [0, 1, 10, 0, 0, 2]
    assert got.dtype == torch.int64


@settings(max_examples=60, deadline=None)
@given(n_old=st.integers(0, 30), labels=st.lists(st.integers(0, 60), max_size=12))
def test_auxiliary_targets_tell_new_classes_apart_and_old_ones_not(n_old, labels):
    y = torch.tensor(labels, dtype=torch.int64)
    assert auxiliary_targets(y, n_old).tolist() == [0 if label < n_old else 1 + label - n_old for label in labels]
    assert y.tolist() == labels


def test_the_auxiliary_loss_equals_loops():
    logits, y, n_old = randn(7, 4), [0, 5, 8, 6, 2, 7, 8], 6  # six old classes, three new ones
    expected = 0.0
    for row, label in zip(logits.tolist(), y, strict=True):
        expected -= math.log(softmax(row)[0 if label < n_old else 1 + label - n_old]) / len(y)
    assert auxiliary_loss(logits, torch.tensor(y), n_old).item() == pytest.approx(expected)


# --- weights by effective number -------------------------------------------------------------------------------------


def weights_by_definition(counts, beta):
    """One over the effective number, which is 1 + beta + beta^2 + ... with one term an image; then mean 1."""
    inverse = [1 / sum(beta**power for power in range(count)) for count in counts]
    return [value * len(counts) / sum(inverse) for value in inverse]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    beta=st.sampled_from([0.0, 0.3, 0.9, 0.96, 0.97, 0.999]),
)
def test_effective_weights_equal_loops(counts, beta):
    got = effective_weights(torch.tensor(counts), beta)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(weights_by_definition(counts, beta), rel=1e-9)
    assert float(got.mean()) == pytest.approx(1, rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_without_beta_all_classes_weigh_one(counts):
    assert effective_weights(torch.tensor(counts), 0.0).tolist() == [1.0] * len(counts)


def test_classes_with_few_images_weigh_more_until_they_have_many():
    weights = effective_weights(torch.tensor([1, 20, 500, 5000]), 0.97).tolist()
    assert weights[0] > weights[1] > weights[2]
    assert weights[2] == pytest.approx(weights[3], rel=1e-4)  # 0.97^500 is nothing
    assert effective_weights(torch.tensor([7, 7, 7]), 0.97).tolist() == pytest.approx([1, 1, 1])


# --- balanced distillation -------------------------------------------------------------------------------------------


def balanced_by_loops(logits, target, weights, temperature):
    total = 0.0
    for z, t in zip(logits, target, strict=True):
        soft = [p * w for p, w in zip(softmax(t, temperature), weights, strict=True)]
        q = softmax(z, temperature)
        total -= sum(p / sum(soft) * math.log(q[k]) for k, p in enumerate(soft))
    return total / len(logits)


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 5),
    classes=st.integers(1, 6),
    temperature=st.floats(0.5, 5),
    scale=st.floats(0.1, 4),
    seed=st.integers(0, 999),
)
def test_balanced_distillation_equals_loops(batch, classes, temperature, scale, seed):
    logits, target = scale * randn(batch, classes, seed=seed), scale * randn(batch, classes, seed=seed + 1000)
    weights = randn(classes, seed=seed + 2000).exp()
    got = balanced_distillation(logits, target, weights, temperature)
    assert got.shape == ()
    assert got.dtype == torch.float64
    expected = balanced_by_loops(logits.tolist(), target.tolist(), weights.tolist(), temperature)
    assert float(got) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(weight=st.floats(0.01, 50), temperature=st.floats(0.5, 5), seed=st.integers(0, 999))
def test_with_equal_weights_it_is_plain_distillation(weight, temperature, seed):
    logits, target = randn(4, 5, seed=seed), randn(4, 5, seed=seed + 1000)
    got = balanced_distillation(logits, target, torch.full((5,), weight, dtype=torch.float64), temperature)
    assert float(got) == pytest.approx(float(distillation(logits, target, temperature)), rel=1e-12)


def test_a_heavy_class_draws_the_student_to_itself():
    target = torch.zeros(1, 3, dtype=torch.float64)
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    balanced_distillation(logits, target, torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), 1.0).backward()
    # softmax(logits) minus the targets 1/8, 2/8, 5/8
    assert logits.grad[0].tolist() == pytest.approx([1 / 3 - 1 / 8, 1 / 3 - 2 / 8, 1 / 3 - 5 / 8])


# --- heads that grow in rows and columns -----------------------------------------------------------------------------

HEADS = {"linear": LinearHead, "no bias": lambda d: LinearHead(d, bias=False), "cosine": CosineHead}


def bits(tensor):
    return tensor.detach().contiguous().numpy().tobytes()


@pytest.mark.parametrize("kind", HEADS)
@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 6),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
def test_a_head_that_grows_in_rows_and_columns_keeps_every_bit(kind, width, steps, seed):
    torch.manual_seed(seed)
    head, rows, columns = HEADS[kind](width), 0, width
    for n_new, more in steps:
        weight = head.weight.detach().clone()
        bias = None if getattr(head, "bias", None) is None else head.bias.detach().clone()
        head.grow(n_new, more)
        bound = 1 / math.sqrt(columns + more)
        assert head.weight.shape == (rows + n_new, columns + more)
        assert head.n_classes == rows + n_new
        assert bits(head.weight[:rows, :columns]) == bits(weight)
        assert (head.weight[rows:].abs() <= bound).all()
        assert (head.weight[:, columns:].abs() <= bound).all()
        if bias is not None:
            assert head.bias.shape == (rows + n_new,)
            assert bits(head.bias[:rows]) == bits(bias)
            assert (head.bias[rows:].abs() <= bound).all()
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in head.parameters())
        rows, columns = rows + n_new, columns + more
        with torch.no_grad():  # what is learned must survive, not only what was initialised
            for parameter in head.parameters():
                parameter += 3 * torch.randn_like(parameter)


def test_fresh_values_start_as_those_of_a_layer_of_the_new_size():
    torch.manual_seed(0)
    head = LinearHead(16)
    head.grow(300)
    head.grow(300, 48)  # 64 features in all
    columns, rows = head.weight[:300, 16:].detach(), head.weight[300:].detach()
    for values in (columns, rows, head.bias[300:].detach()):
        assert 0.12 < float(values.abs().max()) <= 0.125  # 1 / sqrt(64)
        assert float(values.std()) == pytest.approx(0.125 / 3**0.5, rel=0.1)
        assert abs(float(values.mean())) < 0.01
    assert len(columns.unique()) > 13_000
    assert float(head.weight.detach()[:300, :16].abs().max()) > 0.24  # as drawn for 16 features


@pytest.mark.parametrize("kind", HEADS)
def test_new_features_that_are_zero_change_no_old_score(kind):
    torch.manual_seed(0)
    head = HEADS[kind](5)
    head.grow(3)
    x = torch.randn(4, 5)
    before = head(x)
    head.grow(2)
    torch.testing.assert_close(head(x)[:, :3], before)
    head.grow(2, 4)
    wide = torch.cat([x, torch.zeros(4, 4)], 1)
    got = head(wide)
    assert got.shape == (4, 7)
    if kind != "cosine":  # there the length of a row has changed
        torch.testing.assert_close(got[:, :3], before)
    assert not torch.equal(head(wide + 1), got)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_grows_on_the_meta_device_as_it_does_elsewhere(kind):
    def shapes():
        head = HEADS[kind](6)
        for n_new, more in ((2, 0), (3, 6), (1, 12)):
            head.grow(n_new, more)
        return {name: (tuple(v.shape), v.dtype) for name, v in head.state_dict().items()}, head

    real, _ = shapes()
    with torch.device("meta"):
        meta, head = shapes()
    assert meta == real
    assert all(value.is_meta for value in head.state_dict().values())
    assert head.weight.shape == (6, 24)


@pytest.mark.parametrize("kind", HEADS)
def test_growing_in_width_keeps_dtype_and_whether_it_learns(kind):
    head = HEADS[kind](4)
    head.grow(2)
    head.double().requires_grad_(False)
    head.grow(1, 3)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_is_reset_is_as_a_fresh_one_of_its_size(kind):
    head = HEADS[kind](4)
    head.grow(3)
    head.grow(2, 8)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 5
    parameters, scale = list(head.parameters()), float(head.scale.detach()) if kind == "cosine" else None
    torch.manual_seed(3)
    head.reset()
    torch.manual_seed(3)
    fresh = HEADS[kind](12)
    fresh.grow(5)
    assert all(one is other for one, other in zip(parameters, head.parameters(), strict=True))
    for name in ("weight", "bias"):
        if getattr(fresh, name, None) is not None:
            assert bits(getattr(head, name)) == bits(getattr(fresh, name))
    assert scale is None or float(head.scale.detach()) == scale


@pytest.mark.parametrize("kind", HEADS)
def test_an_auxiliary_head_is_a_fresh_linear_one_beside_the_network_s_own(kind):
    backbone = nn.Linear(3, 7)
    backbone.num_features = 7
    network = Network(backbone, HEADS[kind](7))
    network.head.grow(2)
    before = set(network.state_dict())
    torch.manual_seed(1)
    head = network.auxiliary_head(4)
    torch.manual_seed(1)
    fresh = LinearHead(7)
    fresh.grow(4)
    assert [bits(tensor) for tensor in head.state_dict().values()] == [bits(t) for t in fresh.state_dict().values()]
    assert set(network.state_dict()) == before
    assert network.to("meta").auxiliary_head(4).weight.is_meta


# --- split backbones -------------------------------------------------------------------------------------------------

# Zhou et al., A Model or 603 Exemplars, ICLR 2023, Tables 2-12: parameters before the last stage, and of it.
PARTS = {
    "cifar_resnet14": (42_320, 129_536),
    "cifar_resnet20": (65_552, 203_520),
    "cifar_resnet26": (88_784, 277_504),
    "cifar_resnet32": (112_016, 351_488),
    "resnet10": (1_232_704, 3_673_088),
    "resnet18": (2_782_784, 8_393_728),
    "resnet26": (3_444_032, 10_502_144),
    "resnet34": (8_170_304, 13_114_368),
    "resnet50": (8_543_296, 14_964_736),
    "convnet2": (1_920, 37_056),
    "convnet4": (314_880, 591_360),
}


def learned(net):
    """Numbers of parameters that have a gradient."""
    return {name: p.numel() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_shallow_and_the_deep_part_use_the_published_numbers_of_parameters(name):
    with torch.device("meta"):
        net = BACKBONES[name]()
        shared = net.shallow(torch.empty(2, 3, 64, 64))
        shared.sum().backward()
        shallow = learned(net)
        net.zero_grad(set_to_none=True)
        net.pool(net.deep(shared.detach())).sum().backward()
        deep = learned(net)
    everything = {key: parameter.numel() for key, parameter in net.named_parameters()}
    assert not shallow.keys() & deep.keys()
    assert {**shallow, **deep} == everything
    assert sum(deep.values()) == sum(parameter.numel() for parameter in net.deep.parameters())
    if name in PARTS:
        assert (sum(shallow.values()), sum(deep.values())) == PARTS[name]
    else:
        assert name == "cifar_resnet44"


def stirred(net):
    """The network with weights and statistics as if it had learned."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return net


SPLIT = [*((name, {}) for name in BACKBONES), ("resnet10", {"stem": "3x3"}), ("cifar_resnet20", {"in_channels": 1})]


@pytest.mark.parametrize(("name", "options"), SPLIT, ids=str)
def test_a_backbone_is_its_parts_one_after_the_other(name, options):
    net = stirred(BACKBONES[name](**options))
    assert isinstance(net, Splittable)
    x = torch.rand(2, options.get("in_channels", 3), 32, 32)
    with torch.inference_mode():
        for train in (False, True):
            one, other = (copy.deepcopy(net), net) if train else (net, net)
            one.train(train), other.train(train)
            whole, maps = one(x), other.deep(other.shallow(x))
            assert maps.ndim == 4
            assert maps.shape[:2] == (2, net.num_features)
            assert torch.equal(whole, other.pool(maps))
            assert not torch.equal(whole[0], whole[1])
    changed = [key for key, value in one.state_dict().items() if not torch.equal(value, net.state_dict()[key])]
    assert not changed  # both ways have learned the same statistics


def test_the_parts_cut_before_the_last_stage():
    x = torch.rand(1, 3, 32, 32)
    net, other = resnet.cifar(14), resnet.imagenet(10, stem="3x3")
    assert net.deep is net.stage3
    assert (net.shallow(x).shape, net.deep(net.shallow(x)).shape) == ((1, 32, 16, 16), (1, 64, 8, 8))
    assert other.deep is other.layer4
    assert (other.shallow(x).shape, other.deep(other.shallow(x)).shape) == ((1, 256, 8, 8), (1, 512, 4, 4))


def test_the_shallow_part_is_the_layers_before_the_cut():
    x = torch.rand(2, 3, 16, 16)
    net = stirred(resnet.cifar(14)).eval()
    with torch.inference_mode():
        maps = torch.relu(net.bn1(net.conv1(x)))
        for block in (*net.stage1, *net.stage2):
            maps = block(maps)
        assert torch.equal(net.shallow(x), maps)
        for name in ("convnet2", "convnet4"):
            convolutional, maps = stirred(BACKBONES[name]()).eval(), x
            for block in list(convolutional.blocks)[:-1]:
                for layer in block:
                    maps = layer(maps)
            assert torch.equal(convolutional.shallow(x), maps)
            assert convolutional.deep is list(convolutional.blocks)[-1]


def test_pooling_is_the_mean_over_places():
    maps = torch.rand(2, 64, 3, 5)
    expected = [[float(np.mean(channel.double().numpy())) for channel in image] for image in maps]
    for name in ("cifar_resnet14", "resnet10", "convnet2"):
        with torch.device("meta"):
            net = BACKBONES[name]()
        np.testing.assert_allclose(net.pool(maps).numpy(), expected, rtol=1e-5)


def test_a_deep_part_can_be_copied_and_changed_alone():
    net = BACKBONES["cifar_resnet14"]().eval()
    other, x = copy.deepcopy(net.deep), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        assert torch.equal(net.pool(other(net.shallow(x))), before)
        for parameter in other.parameters():
            parameter += 1
        assert torch.equal(net(x), before)
        assert not torch.equal(net.pool(other(net.shallow(x))), before)


def test_a_backbone_without_parts_is_not_splittable():
    class Whole(nn.Module):
        num_features = 4

        def forward(self, x):
            return x.flatten(1)

    assert isinstance(Whole(), Backbone)
    assert not isinstance(Whole(), Splittable)
