"""Backbones have the published sizes and shapes; heads grow without touching what they hold."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from cil.errors import UserError
from cil.nets import resnet
from cil.nets.convnet import convnet2, convnet4
from cil.nets.heads import CosineHead, LinearHead
from cil.nets.network import BACKBONES, Backbone, Model, Network

# Zhou et al., A Model or 603 Exemplars, ICLR 2023, Tables 2-12: parameters up to and of the last stage.
CIFAR_SIZES = {14: (42_320, 129_536), 20: (65_552, 203_520), 26: (88_784, 277_504), 32: (112_016, 351_488)}
IMAGENET_SIZES = {
    10: (1_232_704, 3_673_088),
    18: (2_782_784, 8_393_728),
    26: (3_444_032, 10_502_144),
    34: (8_170_304, 13_114_368),
    50: (8_543_296, 14_964_736),
}

SMALL = ("cifar_resnet14", "resnet10", "convnet2", "convnet4")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", CIFAR_SIZES)
def test_cifar_resnets_have_the_published_sizes(depth):
    with torch.device("meta"):
        net = resnet.cifar(depth)
    first, last = CIFAR_SIZES[depth]
    assert count(net.stage3) == last
    assert count(net) == first + last


def test_resnet32_has_463504_parameters():
    net = BACKBONES["cifar_resnet32"]()
    assert count(net) == 463_504
    assert sum(count(part) for part in (net.conv1, net.bn1, net.stage1, net.stage2)) == 112_016


@pytest.mark.parametrize("depth", [8, 32, 44])
def test_a_cifar_resnet_is_the_sum_of_its_convolutions_and_norms(depth):
    n = (depth - 2) // 6
    expected, width = 3 * 16 * 9 + 2 * 16, 16
    for channels in (16, 32, 64):
        for _ in range(n):
            expected += width * channels * 9 + channels * channels * 9 + 2 * 2 * channels
            width = channels
    with torch.device("meta"):
        assert count(resnet.cifar(depth)) == expected


@pytest.mark.parametrize("depth", IMAGENET_SIZES)
def test_imagenet_resnets_have_the_published_sizes(depth):
    with torch.device("meta"):
        net = resnet.imagenet(depth)
    first, last = IMAGENET_SIZES[depth]
    assert count(net.layer4) == last
    assert count(net) == first + last
    assert net.num_features == (2048 if depth in (26, 50) else 512)


def test_convnets_have_the_published_sizes():
    two, four = convnet2(), convnet4()
    assert [count(block) for block in two.blocks] == [1_920, 37_056]
    assert count(two) == 38_976
    assert count(four) == 906_240
    assert count(four.blocks[-1]) == 591_360


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "channels"), [*((name, 3) for name in BACKBONES), *((name, 1) for name in SMALL)])
def test_every_backbone_keeps_the_protocol(name, channels):
    net = BACKBONES[name](in_channels=channels).eval()
    side = 32 if name.startswith("resnet") else 8
    assert isinstance(net, nn.Module)
    assert isinstance(net, Backbone)
    with torch.inference_mode():
        features = net(torch.rand(2, channels, side, side))
    assert features.shape == (2, net.num_features)
    assert torch.isfinite(features).all()
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SMALL)
def test_channels_change_the_first_convolution_alone(name, channels):
    with torch.device("meta"):
        usual, other = BACKBONES[name](), BACKBONES[name](in_channels=channels)
    shapes = {key: tuple(value.shape) for key, value in usual.state_dict().items()}
    changed = {key: tuple(value.shape) for key, value in other.state_dict().items()}
    first = next(key for key in shapes if key.endswith("weight"))
    assert shapes.pop(first) == (*changed[first][:1], 3, *changed[first][2:])
    assert changed.pop(first)[1] == channels
    assert changed == shapes


def sides(net: nn.Module, names: list[str], side: int) -> list[int]:
    """Height of what each named child gives for an image of this side."""
    seen = {}
    for name in names:
        getattr(net, name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.shape[2]}))
    with torch.inference_mode():
        net.eval()(torch.rand(1, 3, side, side))
    return [seen[name] for name in names]


def test_cifar_stages_halve_the_resolution_twice():
    assert sides(resnet.cifar(8), ["bn1", "stage1", "stage2", "stage3"], 16) == [16, 16, 8, 4]


def test_stem_3x3_keeps_the_resolution_and_7x7_quarters_it():
    names = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert sides(resnet.imagenet(10, stem="3x3"), names, 16) == [16, 16, 8, 4, 2]
    assert sides(resnet.imagenet(10), names, 32) == [16, 8, 4, 2, 1]


def test_stem_3x3_takes_any_channels():
    with torch.device("meta"):
        net = resnet.imagenet(10, in_channels=2, stem="3x3")
    assert net.conv1.weight.shape == (64, 2, 3, 3)


@pytest.mark.parametrize("depth", [2, 7, 33])
def test_a_cifar_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=f"6n \\+ 2.*{depth}"):
        resnet.cifar(depth)


def test_an_unknown_imagenet_depth_or_stem_is_refused():
    with pytest.raises(ValueError, match="not 19"):
        resnet.imagenet(19)
    with pytest.raises(ValueError, match="not '5x5'"):
        resnet.imagenet(10, stem="5x5")


# --- arithmetic ------------------------------------------------------------------------------------------------------


def shortcut(x: np.ndarray, channels: int, stride: int) -> np.ndarray:
    """Option A by loops: take every ``stride``-th pixel, fill the further channels with zeros."""
    batch, channels_in, height, width = x.shape
    out = np.zeros((batch, channels, -(-height // stride), -(-width // stride)), x.dtype)
    for b in range(batch):
        for c in range(channels_in):
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    out[b, c, i, j] = x[b, c, stride * i, stride * j]
    return out


@pytest.mark.parametrize(("channels_in", "channels", "stride"), [(3, 3, 1), (3, 6, 2), (2, 5, 2), (4, 4, 2)])
@pytest.mark.parametrize("side", [6, 7])
def test_the_shortcut_subsamples_and_pads_with_zeros(channels_in, channels, stride, side):
    block = resnet.CifarBlock(channels_in, channels, stride).eval()
    nn.init.zeros_(block.conv2.weight)  # the other branch gives 0
    x = torch.randn(2, channels_in, side, side)
    expected = np.maximum(shortcut(x.numpy(), channels, stride), 0)
    assert np.array_equal(block(x).detach().numpy(), expected)


@pytest.mark.parametrize(("channels_in", "channels", "stride"), [(3, 6, 2), (3, 3, 1), (3, 3, 2)])
def test_a_shortcut_may_be_a_convolution_where_the_size_changes(channels_in, channels, stride):
    block = resnet.CifarBlock(channels_in, channels, stride, shortcut="B").eval()
    nn.init.zeros_(block.conv2.weight)  # the other branch gives 0
    x = torch.randn(2, channels_in, 6, 6)
    if (channels, stride) == (3, 1):
        assert block.projection is None
        expected = x
    else:
        weight = block.projection[0].weight[:, :, 0, 0]
        expected = torch.einsum("oc,bchw->bohw", weight, x[:, :, ::stride, ::stride]) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(x), expected.relu())


def test_shortcuts_with_parameters_are_two_small_convolutions_more():
    def size(**options):
        return sum(p.numel() for p in Model(backbone="cifar_resnet20", backbone_args=options).build(3).parameters())

    assert size(shortcut="B") - size() == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    with pytest.raises(UserError, match="a shortcut is 'A' or 'B', not 'C'"):
        size(shortcut="C")


def test_zeros_around_lie_half_before_and_half_after():
    x = torch.rand(2, 4, 6, 6)
    after, around = (resnet.CifarBlock(4, 10, 2, zeros).eval() for zeros in ("after", "around"))
    for block in (after, around):
        nn.init.zeros_(block.conv2.weight)  # the other branch gives 0
    expected = np.zeros((2, 10, 3, 3), np.float32)
    expected[:, 3:7] = x.numpy()[:, :, ::2, ::2]
    assert np.array_equal(around(x).detach().numpy(), expected)
    assert np.array_equal(after(x).detach().numpy(), shortcut(x.numpy(), 10, 2))
    net = Model(backbone="cifar_resnet20", backbone_args={"zeros": "around"}).build(3).backbone
    assert [stage[0].before for stage in (net.stage1, net.stage2, net.stage3)] == [0, 8, 16]
    with pytest.raises(UserError, match="zeros are 'after' or 'around', not 'both'"):
        Model(backbone="cifar_resnet20", backbone_args={"zeros": "both"}).build(3)


def test_a_block_adds_two_convolutions_to_its_shortcut():
    block = resnet.CifarBlock(2, 4, 2).eval()
    x = torch.randn(3, 2, 6, 6)
    inner = np.maximum(block.bn1(block.conv1(x)).detach().numpy(), 0)
    outer = block.bn2(block.conv2(torch.from_numpy(inner))).detach().numpy()
    expected = np.maximum(outer + shortcut(x.numpy(), 4, 2), 0)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    assert sum(isinstance(module, nn.Conv2d) for module in block.modules()) == 2


def test_features_are_the_mean_over_the_last_map():
    net, maps = resnet.cifar(8).eval(), []
    net.stage3.register_forward_hook(lambda _m, _i, out: maps.append(out))
    features = net(torch.rand(2, 3, 8, 8))
    np.testing.assert_allclose(
        features.detach().numpy(), maps[0].detach().numpy().mean(axis=(2, 3)), rtol=1e-5, atol=1e-6
    )
    assert (maps[0] >= 0).all()


def test_convolutions_start_he_normal_by_fan_out():
    torch.manual_seed(0)
    weight = resnet.cifar(8).stage3[0].conv1.weight  # 64 x 32 x 3 x 3: fan-out 576, fan-in 288
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    assert abs(float(weight.detach().mean())) < 0.002


# --- heads -----------------------------------------------------------------------------------------------------------

HEADS = {"linear": LinearHead, "no bias": lambda d: LinearHead(d, bias=False), "cosine": CosineHead}


@pytest.mark.parametrize("kind", HEADS)
def test_growing_keeps_old_rows_bit_by_bit(kind):
    torch.manual_seed(0)
    head = HEADS[kind](7)
    assert head.n_classes == 0
    n_old = 0
    for n_new in (3, 1, 4):
        before = {name: bits(value[:n_old]) for name, value in head.named_parameters() if value.ndim}
        head.grow(n_new)
        for name, old in before.items():
            assert bits(getattr(head, name)[:n_old]) == old
        n_old += n_new
        assert head.n_classes == n_old
        assert head.weight.shape == (n_old, 7)
        assert head(torch.randn(2, 7)).shape == (2, n_old)
        with torch.no_grad():  # what is learned must survive, not only what was initialised
            for parameter in head.parameters():
                parameter += torch.randn_like(parameter)


def test_linear_rows_and_biases_start_as_those_of_torch():
    torch.manual_seed(0)
    head = LinearHead(16)
    head.grow(500)
    for values in (head.weight.detach(), head.bias.detach()):
        assert float(values.abs().max()) <= 0.25  # 1 / sqrt(16)
        assert float(values.abs().max()) > 0.24
        assert float(values.std()) == pytest.approx(0.25 / 3**0.5, rel=0.1)
    assert len(head.weight.unique()) > 7000


def test_linear_rows_may_start_as_those_of_pycil():
    torch.manual_seed(0)
    head = LinearHead(3, init="kaiming")
    head.grow(2)
    head.grow(500, 9)
    bound = (3 / 12) ** 0.5
    weight = head.weight.detach()
    assert float(weight[:, 3:].abs().max()) <= bound
    assert 0.99 * bound < float(weight[2:].abs().max()) <= bound
    assert float(weight[2:].std()) == pytest.approx(1 / 12**0.5, rel=0.05)  # what keeps a variance of 1
    assert not head.bias.any()
    torch.nn.init.ones_(head.bias)
    head.reset()
    assert not head.bias.any()
    assert 0.99 * bound < float(weight.abs().max()) <= bound


def test_an_auxiliary_head_starts_as_the_networks_own():
    torch.manual_seed(0)
    network = Model(backbone="convnet2", head_args={"init": "kaiming"}).build(3)
    assert not network.auxiliary_head(5).bias.any()
    assert Model(backbone="convnet2").build(3).auxiliary_head(5).bias.all()
    assert Model(backbone="convnet2", head="cosine").build(3).auxiliary_head(5).bias.all()


def test_linear_scores_are_inner_products_plus_bias():
    head = LinearHead(3)
    head.grow(2)
    x = torch.randn(4, 3)
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    expected = [[sum(weight[k][d] * float(row[d]) for d in range(3)) + bias[k] for k in range(2)] for row in x]
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_cosine_scores_are_scaled_cosines():
    head = CosineHead(5, scale=7.0)
    head.grow(3)
    x = torch.randn(4, 5)
    got, weight = head(x).detach().numpy(), head.weight.detach().numpy()
    for b, row in enumerate(x.numpy()):
        for k in range(3):
            cosine = row @ weight[k] / (np.sqrt((row**2).sum()) * np.sqrt((weight[k] ** 2).sum()))
            assert got[b, k] == pytest.approx(7 * cosine, abs=1e-5)
    np.testing.assert_allclose(head(100 * x).detach().numpy(), got, rtol=1e-4, atol=1e-5)


def test_the_scale_is_a_parameter_or_a_buffer():
    learned, constant = CosineHead(4, scale=3.0), CosineHead(4, scale=3.0, learn_scale=False)
    assert dict(learned.named_parameters())["scale"].item() == 3.0
    assert not list(learned.buffers())
    assert dict(constant.named_buffers())["scale"].item() == 3.0
    assert [name for name, _ in constant.named_parameters()] == ["weight"]
    assert "scale" in constant.state_dict()
    learned.grow(2)
    learned(torch.randn(3, 4)).square().sum().backward()
    assert learned.scale.grad != 0


@pytest.mark.parametrize("kind", HEADS)
def test_growing_keeps_dtype_and_requires_grad(kind):
    head = HEADS[kind](4)
    head.grow(2)
    head.double().requires_grad_(False)
    head.grow(2)
    assert head.weight.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in head.parameters())
    head.requires_grad_(True)
    head.grow(1)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in head.parameters())


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_networks_are_made_and_grow_on_the_meta_device(kind):
    model = Model(backbone="cifar_resnet14", head=kind)
    real = model.build(3)
    with torch.device("meta"):
        meta = model.build(3)
    for net in (real, meta):
        with torch.device("meta") if net is meta else torch.device("cpu"):
            net.head.grow(2)
            net.head.grow(3)
    assert all(value.is_meta for value in meta.state_dict().values())
    described = [{key: (value.shape, value.dtype) for key, value in net.state_dict().items()} for net in (real, meta)]
    assert described[0] == described[1]


# --- Network and Model -----------------------------------------------------------------------------------------------


def test_a_network_scores_its_features():
    net = Model(backbone="convnet2").build(1)
    net.head.grow(4)
    net.eval()
    x = torch.rand(3, 1, 6, 6)
    assert torch.equal(net.features(x), net.backbone(x))
    assert torch.equal(net(x), net.head(net.backbone(x)))
    assert net(x).shape == (3, 4)


def test_build_hands_arguments_on():
    net = Model(
        backbone="resnet10", backbone_args={"stem": "3x3"}, head="cosine", head_args={"scale": 5, "learn_scale": False}
    ).build(1)
    assert net.backbone.conv1.weight.shape == (64, 1, 3, 3)
    assert isinstance(net.head, CosineHead)
    assert net.head.n_classes == 0
    assert net.head.weight.shape == (0, 512)
    assert dict(net.head.named_buffers())["scale"] == 5


def test_an_unknown_backbone_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="no 'cifar_resnt32'; did you mean 'cifar_resnet32'") as caught:
        Model(backbone="cifar_resnt32").build(3)
    assert all(name in str(caught.value) for name in BACKBONES)
    with pytest.raises(UserError, match="no 'zzz'; Legal:"):
        Model(backbone="zzz").build(3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": "resnet18", "backbone_args": {"stam": "3x3"}}, "backbone_args.*stam"),
        ({"backbone": "resnet18", "backbone_args": {"stem": "5x5"}}, "backbone_args.*5x5"),
        ({"backbone": "cifar_resnet32", "backbone_args": {"depth": 20}}, "backbone_args.*depth"),
        ({"backbone": "cil.nets.resnet.cifar", "backbone_args": {"depth": 33}}, "backbone_args.*33"),
        ({"backbone": "convnet2", "head_args": {"scale": 2}}, "head_args.*linear.*scale"),
        ({"backbone": "convnet2", "head": "cosine", "head_args": {"bias": False}}, "head_args.*cosine.*bias"),
        ({"backbone": "cil.nets.nothing.net"}, "'cil.nets.nothing.net' cannot be imported"),
        ({"backbone": "cil.nets.resnet.nothing"}, "'cil.nets.resnet.nothing' cannot be imported"),
        ({"backbone": "no_such_package.net"}, "'no_such_package.net' cannot be imported"),
        ({"backbone": "cil.nets.resnet"}, "'cil.nets.resnet'"),
    ],
)
def test_what_cannot_be_built_is_refused(options, words):
    with torch.device("meta"), pytest.raises(UserError, match=words):
        Model(**options).build(3)


@pytest.mark.parametrize("name", [".net", "..net"])
def test_a_path_without_module_is_refused(name):
    with pytest.raises(UserError, match=r"model\.backbone"):
        Model(backbone=name).build(3)


def test_a_head_argument_of_the_wrong_kind_is_refused():
    with pytest.raises(UserError, match=r"model\.head_args"):
        Model(backbone="convnet2", head="cosine", head_args={"scale": "wide"}).build(3)


def test_an_unknown_start_of_a_head_is_refused():
    with pytest.raises(UserError, match=r"model.head_args: .*init: no 'kaming'; did you mean 'kaiming'"):
        Model(head_args={"init": "kaming"}).build(3)


def test_an_unknown_head_is_refused():
    with pytest.raises(UserError, match=r"model\.head"):
        Model(backbone="convnet2", head="cosin").build(3)


@pytest.fixture
def foreign(monkeypatch):
    """An importable module with one proper backbone and two that break the protocol."""

    class Mean(nn.Module):
        def __init__(self, in_channels, gain=1.0):
            super().__init__()
            self.num_features, self.gain = in_channels, gain

        def forward(self, x):
            return self.gain * x.mean((2, 3))

    module = types.ModuleType("foreign_backbones")
    module.Mean = Mean
    module.silent = lambda in_channels: nn.Flatten()
    module.no_module = lambda in_channels: types.SimpleNamespace(num_features=3)
    monkeypatch.setitem(sys.modules, "foreign_backbones", module)


def test_a_dotted_path_names_any_backbone(foreign):
    net = Model(backbone="foreign_backbones.Mean", backbone_args={"gain": 2.0}).build(5)
    x = torch.rand(2, 5, 3, 3)
    assert torch.equal(net.features(x), 2 * x.mean((2, 3)))
    assert net.head.weight.shape == (0, 5)
    assert count(Model(backbone="cil.nets.resnet.cifar", backbone_args={"depth": 14}).build(3)) == 171_856


@pytest.mark.parametrize("name", ["silent", "no_module"])
def test_a_callable_that_gives_no_backbone_is_refused(foreign, name):
    with pytest.raises(UserError, match=f"foreign_backbones.{name}.*num_features"):
        Model(backbone=f"foreign_backbones.{name}").build(3)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_reinitialise_forgets_everything_but_the_classes(kind):
    net = Model(backbone="cifar_resnet14", head=kind).build(1)
    net.head.grow(2)
    net.head.grow(3)
    for value in net.state_dict().values():
        value.copy_(torch.full_like(value, 9))
    net.head.weight.requires_grad_(False)
    parameters = list(net.parameters())
    torch.manual_seed(3)
    net.reinitialise()
    torch.manual_seed(3)
    fresh = Model(backbone="cifar_resnet14", head=kind).build(1)
    fresh.head.grow(5)
    assert net.state_dict().keys() == fresh.state_dict().keys()
    for name, value in fresh.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert all(now is then for now, then in zip(net.parameters(), parameters, strict=True))
    assert not net.head.weight.requires_grad


def test_a_network_of_unknown_make_cannot_be_reinitialised():
    with pytest.raises(ValueError, match="make"):
        Network(convnet2(), LinearHead(64)).reinitialise()
