"""Input that crashed, hung or slipped through once: each case ends with status 2 and one sentence that says what is
wrong and what is legal, in bounded time and memory, before anything is written."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cil.command import config
from tools import train

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ["--config", str(ROOT / "configs/protocols/digits.yaml")]
WA = [*DIGITS, "--strategy", "WA"]
FROZEN = [*DIGITS, "--strategy", "NCM", "--model.frozen", "true"]
BUDGET = [*WA, "--memory.exemplars", "null", "--memory.budget"]
SECONDS, ROOM = 20, 4 * 2**30


@contextlib.contextmanager
def bounded():
    """What takes longer is interrupted, and what asks for more memory gets a MemoryError."""

    def late(*_):
        raise TimeoutError(f"no answer within {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(argv, capsys, tmp_path):
    """What the training command says before it ends with status 2."""
    folder = tmp_path / "run"
    with bounded(), pytest.raises(SystemExit) as stop:
        config.main(train.main, argv if "--run_dir" in argv else [*argv, "--run_dir", str(folder)])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1  # one paragraph
    assert len(said) < 1500
    assert not folder.exists()
    return said


# --- the command line and its files -----------------------------------------------------------------------------------

WORDS = {
    "a backbone that is any function": (
        [*WA, "--model.backbone", "torch.hub.load"],
        ["model.backbone: 'torch.hub.load'", "in_channels", "torch.nn.Module"],
    ),
    "a dry run with a backbone that is any function": (
        [*WA, "--model.backbone", "torch.hub.load", "--dry-run"],
        ["model.backbone: 'torch.hub.load'", "in_channels"],
    ),
    "a class among a backbone's options": (
        [*WA, "--model.backbone_args", "{x: [{class_path: subprocess.Popen, init_args: {args: 'true'}}]}"],
        ["model.backbone_args: class_path", "strategy and scenario alone"],
    ),
    "a class among a task's options": (
        [*WA, "--trainer.per_task", "{0: {lr: {class_path: subprocess.Popen, init_args: {args: 'true'}}}}"],
        ["trainer.per_task: class_path", "strategy and scenario alone"],
    ),
    "a class in a flag of its own": (
        [*WA, "--model.head_args.scale.class_path", "subprocess.Popen"],
        ["model.head_args.scale.class_path: class_path", "strategy and scenario alone"],
    ),
    "a backbone that is no function": (
        [*WA, "--model.backbone", "sys.path"],
        ["model.backbone: 'sys.path'", "in_channels"],
    ),
    "a budget's backbone that is any function": (
        [*BUDGET, "{as: {strategy: der, exemplars: 9, backbone: torch.hub.load}}"],
        ["memory.budget.as: model.backbone: 'torch.hub.load'", "in_channels"],
    ),
    "options of a budget's method that are no mapping": (
        [*BUDGET, "{as: {strategy: der, exemplars: 9, init_args: 3}}"],
        ["memory.budget.as.init_args", "3", "keys and values"],
    ),
    "a backbone that begins with a dot": ([*WA, "--model.backbone", ".x"], ["model.backbone: '.x'"]),
    "a backbone with two dots": ([*WA, "--model.backbone", "a..b"], ["model.backbone: 'a..b'"]),
    "a strategy that begins with a dot": ([*DIGITS, "--strategy", ".x"], ["strategy: '.x'"]),
    "a strategy with two dots": ([*DIGITS, "--strategy", "a..b"], ["strategy: 'a..b'"]),
    "a strategy that ends with a dot": ([*DIGITS, "--strategy", "wa."], ["strategy: 'wa.'"]),
    "a scenario with two dots": ([*WA, "--scenario", "a..b"], ["scenario: 'a..b'"]),
    "a key that begins with a dot": ([*WA, "--.x", "3"], ["no option '.x'"]),
    "a key with two dots": ([*WA, "--trainer..lr", "3"], ["no option 'trainer..lr'"]),
    "a key of something that has none": ([*WA, "--seed.x", "3"], ["no option 'seed.x'"]),
    "an empty key": ([*WA, "--", "3"], ["no option ''"]),
    "options of the strategy that are no mapping": (
        [*DIGITS, "--strategy", "{class_path: WA, init_args: 3}"],
        ["strategy.init_args", "3", "keys and values"],
    ),
    "a strategy that is a number": ([*DIGITS, "--strategy", "3"], ["strategy", "3"]),
    "seeds that are not there": ([*WA, "--seeds", "{tests: 3}"], ["seeds", "tests", "init", "data", "exemplars"]),
    "a seed that is no number": ([*WA, "--seeds", "{init: x}"], ["seeds", "x", "int"]),
    "too many threads": ([*WA, "--threads", "1000000"], ["threads: 1000000", "1024"]),
    "no threads": ([*WA, "--threads", "0"], ["threads: 0", "1"]),
    "too many workers": ([*WA, "--workers", "1000000"], ["workers: 1000000", "1024"]),
    "too many processes": ([*WA, "--devices", "1000000"], ["devices: 1000000", "1024"]),
    "negative epochs between checkpoints": ([*WA, "--checkpoint_every", "-1"], ["checkpoint_every: -1", ">= 0"]),
    "images beyond sense": ([*WA, "--image_size", "1000000000"], ["image_size: 1000000000", "4096"]),
    "images that do not fit into memory": ([*WA, "--image_size", "4096"], ["at 4096 x 4096 pixels", "MiB"]),
    "more images of a class than it has": ([*WA, "--train_per_class", "140"], ["train_per_class: 140", "from 1 to"]),
    "no image of a class": ([*WA, "--train_per_class", "0"], ["train_per_class: 0", ">= 1"]),
    "padding beyond sense": ([*WA, "--augmentation.pad", "1000000000"], ["pad", "1000000000", "8 x 8"]),
    "a crop beyond sense": ([*WA, "--augmentation.size", "1000000000"], ["size", "1000000000", "4096"]),
    "an input beyond sense": ([*WA, "--augmentation.input_size", "99999999"], ["input_size", "99999999", "4096"]),
    "brightness that is no number": (
        [*WA, "--augmentation.brightness", ".nan"],
        ["augmentation.brightness: nan", ">= 0 and <= 1"],
    ),
    "a deviation that is no number": ([*WA, "--augmentation.std", "[.nan]"], ["std", "nan", "> 0"]),
    "a mean that is infinite": ([*WA, "--augmentation.mean", "[.inf]"], ["mean", "inf"]),
    "preprocessing with a mean that is no number": (
        [*FROZEN, "--model.weights", "random", "--model.preprocessing", "{mean: .nan, std: 1}"],
        ["model.preprocessing.mean", "nan", "finite"],
    ),
    "preprocessing with a deviation that is no number": (
        [*FROZEN, "--model.weights", "random", "--model.preprocessing", "{mean: 0.5, std: [.nan]}"],
        ["model.preprocessing.std", "nan"],
    ),
    "preprocessing to a size beyond sense": (
        [*FROZEN, "--model.weights", "random", "--model.preprocessing", "{mean: 0.5, std: 1, size: 1000000}"],
        ["model.preprocessing.size", "1000000", "4096"],
    ),
    "a text as preprocessing": (
        [*FROZEN, "--model.weights", "random", "--model.preprocessing", "{mean: abc, std: 1}"],
        ["model.preprocessing.mean", "abc"],
    ),
    "a file that never ends as data": ([*WA, "--data", "npz:/dev/zero"], ["/dev/zero", "file"]),
    "a folder of processes as data": ([*WA, "--data", "folder:/proc"], ["/proc", "train/CLASS/"]),
    "a device as a folder of data": ([*WA, "--data", "folder:/dev/zero"], ["/dev/zero", "folder"]),
    "a folder as npz": ([*WA, "--data", "npz:/tmp"], ["/tmp", "file"]),
    "a configuration that never ends": ([*WA, "--config", "/dev/zero"], ["/dev/zero", "MiB"]),
    "weights that never end": ([*WA, "--model.weights", "/dev/zero"], ["/dev/zero"]),
    "a folder below a file": ([*WA, "--run_dir", f"{__file__}/run"], ["run_dir", "test_bad_input.py", "file"]),
    "a name that is too long": ([*WA, "--run_dir", "x" * 300], ["run_dir", "xxx", "too long"]),
    "a folder with a NUL": ([*WA, "--run_dir", "a\0b"], ["NUL"]),
    "a cache below a file": (
        [*FROZEN, "--memory.exemplars", "0", "--model.weights", "random", "--cache", f"{__file__}/cache"],
        ["cache", "test_bad_input.py", "file"],
    ),
    "a flag nested 3,000 deep": ([*WA, "--trainer.per_task", "[" * 3000 + "]" * 3000], ["trainer.per_task", "levels"]),
    "a flag with an alias bomb": ([*WA, "--evaluators", "BOMB"], ["evaluators", "aliases"]),
    "warm-up longer than training": (
        [*WA, "--trainer.warmup_epochs", "15"],
        ["trainer.warmup_epochs: 15", "trainer.epochs", "15"],
    ),
    "an infinite weight decay": ([*WA, "--trainer.weight_decay", ".inf"], ["trainer.weight_decay: inf", ">= 0"]),
    "a factor that is no number": ([*WA, "--trainer.gamma", ".inf"], ["trainer.gamma: inf", "> 0"]),
    "a milestone that is infinite": ([*WA, "--trainer.milestones", "[.inf]"], ["trainer.milestones: [inf]"]),
    "epochs of a task that are true": ([*WA, "--trainer.per_task", "{0: {epochs: true}}"], ["trainer.epochs: True"]),
    "a scale of the head that is no number": (
        [*WA, "--model.head", "cosine", "--model.head_args", "{scale: .nan}"],
        ["model.head_args", "scale", "nan", "> 0"],
    ),
}
BOMB = (
    "{" + ", ".join([f"a0: &a0 [{'x, ' * 9}x]"] + [f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}x]" for n in range(1, 12)]) + "}"
)


@pytest.mark.parametrize(("argv", "told"), WORDS.values(), ids=WORDS.keys())
def test_words_of_the_command_line(argv, told, capsys, tmp_path):
    said = refused([BOMB if word == "BOMB" else word for word in argv], capsys, tmp_path)
    for words in told:
        assert words in said


FILES = {
    "a key twice": ("strategy: WA\nseed: 1\nseed: 2\n", ["'seed' stands twice", "line 3"]),
    "a key of a group twice": ("strategy: WA\ntrainer: {lr: 1, lr: 2}\n", ["'lr' stands twice"]),
    "an option of the strategy twice": (
        "strategy: {class_path: WA, init_args: {temperature: 1, temperature: 3}}\n",
        ["'temperature' stands twice"],
    ),
    "a key that is a number": ("strategy: WA\n3: 4\n", ["no option '3'"]),
    "a key that is null": ("strategy: WA\nnull: 4\n", ["no option 'None'"]),
    "a key that is a list": ("strategy: WA\n? [a]\n: 4\n", ["key"]),
    "a key of a group that is a number": ("strategy: WA\ntrainer: {3: 4}\n", ["no option 'trainer.3'"]),
    "an option of the strategy that is a number": (
        "strategy: {class_path: WA, init_args: {3: 4}}\n",
        ["no option 'strategy.3'"],
    ),
    "options of the strategy that are a list": (
        "strategy: {class_path: WA, init_args: [temperature]}\n",
        ["strategy.init_args", "keys and values"],
    ),
    "a class that is a list": ("strategy: {class_path: [WA]}\n", ["strategy.class_path", "['WA']"]),
    "a strategy that is a list": ("strategy: [WA]\n", ["strategy", "['WA']"]),
    "a group that is a number": ("strategy: WA\ntrainer: 3\n", ["trainer", "3", "keys and values"]),
    "a file that names another": ("strategy: WA\nconfig: other.yaml\n", ["no option 'config'"]),
    "values nested 3,000 deep": ("strategy: WA\nevaluators: " + "[" * 3000 + "]" * 3000 + "\n", ["levels"]),
    "mappings nested 3,000 deep": ("strategy: WA\nseeds: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n", ["levels"]),
    "an alias bomb": (f"strategy: WA\nmemory: {{budget: {BOMB}}}\n", ["aliases"]),
    "a list that holds itself": ("strategy: WA\nevaluators: &a [*a]\n", ["aliases"]),
    "a date that there is not": ("strategy: WA\nrun_dir: 2026-13-45\n", ["month"]),
    "a class among the options of a budget": (
        "strategy: WA\nmemory: {budget: {as: {class_path: subprocess.Popen, init_args: {args: 'true'}}}}\n",
        ["memory.budget: class_path", "strategy and scenario alone"],
    ),
    "a path with a NUL": ('strategy: WA\nrun_dir: "a\\0b"\n', ["NUL"]),
    "bytes that are no text": (b"strategy: \xff\xfe\n", ["is not YAML"]),
    "a backbone that is any function, in the file that a run keeps": (
        "strategy: WA\nmodel: {backbone: torch.hub.load, backbone_args: {repo_or_dir: x, model: y}}\n",
        ["model.backbone: 'torch.hub.load'", "in_channels"],
    ),
}


@pytest.mark.parametrize(("text", "told"), FILES.values(), ids=FILES.keys())
def test_files_of_configuration(text, told, capsys, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refused([*DIGITS, "--config", str(path)], capsys, tmp_path)
    for words in told:
        assert words in said


OPTIONS = {
    "WA": ["temperature -1", "temperature 0", "temperature .nan"],
    "ICaRL": ["temperature -1", "keep -1", "mean_over 0"],
    "LwF": ["temperature 0", "keep -1", "warm_up -0.5"],
    "DER": ["temperature -1", "auxiliary -1", "retrain_epochs 0", "retrain_epochs .inf", "retrain_weight_decay -1"],
    "MEMO": ["auxiliary -1", "few_classes -1"],
    "FOSTER": [
        *("temperature -2", "keep -1", "beta_boost 1", "beta_boost []", "beta_boost [2]", "beta_compress -0.1"),
        *("compress_epochs -1", "compress_weight_decay -1", "images 0"),
    ],
    "KNN": ["temperature -1", "k 0", "per_class 0"],
    "TEEN": ["alpha 2", "tau -1", "tau .inf"],
    "FeCAM": ["alpha -1", "beta -1", "tau -1", "ridge 0"],
    "FeTrIL": ["penalty -1"],
    "SLDA": ["shrinkage -1", "shrinkage 1.5"],
    "GKEAL": ["sigma -1", "width 0"],
    "ACIL": ["gamma -1", "gamma .inf", "width 0"],
    "DSAL": ["compensation -1", "compensation_gamma 0", "residual_batch 0"],
    "RanPAC": ["held_out 1", "penalties [-1]", "penalties []"],
}
CASES = [(name, *option.split(maxsplit=1)) for name, options in OPTIONS.items() for option in options]


@pytest.mark.parametrize(("strategy", "option", "value"), CASES, ids=["-".join(case) for case in CASES])
def test_senseless_options_of_strategies(strategy, option, value, capsys, tmp_path):
    argv = [*DIGITS, "--strategy", strategy, f"--strategy.{option}", value]
    exemplar_free = strategy not in ("WA", "ICaRL", "DER", "MEMO", "FOSTER")
    said = refused([*argv, *["--memory.exemplars", "0"] * exemplar_free], capsys, tmp_path)
    shown = value.strip(".[]")
    assert f"strategy.{option}: " in said
    assert shown in said
    assert "must be" in said


# --- data and weights -------------------------------------------------------------------------------------------------


def write_npz(path, compression=zipfile.ZIP_STORED, **changed):
    """A small data set of two classes, 8 x 8 pixels, with these arrays in place of its own."""
    images, labels = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8, 1), np.arange(20) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, "classes": np.array(["a", "b"])}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in (arrays | changed).items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    return path


def small(path):
    """A run on such a file."""
    return [*WA, "--data", f"npz:{path}", "--scenario.step", "1"]


def damage(path, name):
    """Overwrite the middle of what one array is stored as."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    content = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename) + 12
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["LZMA", "BZIP2", "DEFLATED"])
def test_an_npz_file_with_damaged_data(kind, capsys, tmp_path):
    path = write_npz(tmp_path / "data.npz", getattr(zipfile, f"ZIP_{kind}"))
    damage(path, "x_train")
    said = refused(small(path), capsys, tmp_path)
    assert str(path) in said
    assert "not a whole npz file" in said


NAMES = {
    "bytes that are no text": (np.array([b"a", b"\xff\xfe"]), ["class 1", "UTF-8"]),
    "half a surrogate pair": (np.array(["a", "\ud800"]), ["class 1", "UTF-8"]),
    "no character at all": (np.array([97, 0x110000], np.uint32).view("<U1"), ["classes", "UTF-8"]),
    "a name twice": (np.array(["a", "a"]), ["'a'", "0", "1", "twice"]),
    "a name without a letter": (np.array(["a", " "]), ["class 1", "empty"]),
}


@pytest.mark.parametrize(("names", "told"), NAMES.values(), ids=NAMES.keys())
def test_names_of_classes(names, told, capsys, tmp_path):
    said = refused(small(write_npz(tmp_path / "data.npz", classes=names)), capsys, tmp_path)
    for words in told:
        assert words in said


@pytest.mark.parametrize(
    ("names", "told"),
    [(["Cat", "cat"], "'Cat' and 'cat'"), (["\u00e9", "e\u0301"], "differ only in case or Unicode form")],
)
def test_names_that_look_alike_are_told(names, told, capsys, tmp_path):
    path = write_npz(tmp_path / "data.npz", classes=np.array(names))
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, [*small(path), "--dry-run"])
    assert stop.value.code == 0
    assert told in capsys.readouterr().out


def test_images_with_channels_first_are_told(capsys, tmp_path):
    images = np.zeros((20, 3, 8, 8), np.uint8)
    path = write_npz(tmp_path / "data.npz", x_train=images, x_test=images)
    with pytest.raises(SystemExit) as stop:
        config.main(train.main, [*small(path), "--dry-run"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(20, 3, 8, 8) look like (N, C, H, W)" in said
    assert "read as (N, H, W, C)" in said


def write_folder(root, suffix=".png", **options):
    for split in ("train", "test"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / split / label / f"0{suffix}", **options)
    return [*WA, "--data", f"folder:{root}", "--scenario.step", "1", "--workers", "0"]


@pytest.mark.parametrize("format", ["TGA", "PCX", "ICO", "SGI"])
def test_files_of_other_formats_are_not_opened(format, capsys, tmp_path):
    """Whatever they are called: of Pillow's decoders only those of the listed formats are in reach."""
    argv = write_folder(tmp_path / "data", ".png", format=format)
    said = refused(argv, capsys, tmp_path)
    assert "train/a/0.png cannot be read as an image" in said


@pytest.mark.parametrize("about", ["[]", "3", "null", '{"written": 3}', '{"fingerprint": 3, "written": WRITTEN}', "["])
def test_a_note_beside_decoded_images_of_another_shape(about, capsys, tmp_path):
    argv = [*write_folder(tmp_path / "data"), "--images", str(tmp_path / "decoded")]
    with pytest.raises(SystemExit):
        config.main(train.main, [*argv, "--dry-run"])
    capsys.readouterr()
    (path,) = (tmp_path / "decoded").glob("*/about.json")
    path.write_text(about.replace("WRITTEN", json.dumps(json.loads(path.read_text())["written"])))
    said = refused(argv, capsys, tmp_path)
    assert str(path.parent) in said
    assert "delete it" in said


TENSORS = {
    "sparse": (torch.eye(3).to_sparse(), "sparse"),
    "float8": (torch.zeros(3, 3).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "complex": (torch.zeros(3, 3, dtype=torch.complex64), "complex64"),
}


# Files of safetensors hold no sparse tensors.
WEIGHTS = [(kind, suffix) for kind in TENSORS for suffix in (".pt", ".safetensors")]
WEIGHTS.remove(("sparse", ".safetensors"))


@pytest.mark.parametrize(("kind", "suffix"), WEIGHTS)
def test_weights_that_are_no_plain_numbers(kind, suffix, capsys, tmp_path):
    from cil.nets.network import Model

    tensor, told = TENSORS[kind]

    weights = Model(backbone="convnet2").build(1).backbone.state_dict()
    name = next(iter(weights))
    weights[name] = tensor if tensor.is_sparse else tensor[0, 0].expand_as(weights[name]).contiguous()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        from safetensors.torch import save_file

        save_file(weights, path)
    said = refused([*WA, "--model.weights", str(path)], capsys, tmp_path)
    assert name in said
    assert told in said
    assert "float32" in said
