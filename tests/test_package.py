"""The program ``cil``: its commands, configurations by name, our packages among others' folders, and the wheel."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from cil.authoring import begin as authoring
from cil.command import config, configurations, recorded
from cil.command.names import find_class
from cil.commands import entry
from cil.errors import UserError
from cil.report.report import comparable
from cil.sweep import command as sweeps
from cil.testing.checks import all_checks
from cil.testing.lab import toy_dataset
from tools import check_strategy
from tools import new as tool

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("avalanche", "ray", "timm", "plotly", "sklearn", "tensorboard")
SCRIPTS = {script: name for name, script in recorded.NAMES.items()}
TOLD = {"capture_output": True, "text": True}


def call(main, *argv):
    """The status of a command line in this process."""
    with pytest.raises(SystemExit) as stop:
        config.main(main, list(map(str, argv)))
    return stop.value.code


def start(folder, *words, path=ROOT):
    """Run Python in a folder, with ours on its path and no checkout if ``path`` is where it was installed."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of the user's, which is the current one; what was imported from it is forgotten."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


THEIRS = "raise RuntimeError('a file of the user was run')\n"


@pytest.fixture
def crowded(tmp_path):
    """A folder of the user's in which all our names are taken."""
    for name in ("strategies", "scenarios", "configs", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(THEIRS)
    (tmp_path / "strategies/wa.py").write_text(THEIRS)
    (tmp_path / "scenarios/datasets.py").write_text(THEIRS)
    (tmp_path / "configs/protocols").mkdir()
    (tmp_path / "configs/protocols/digits.yaml").write_text("data: theirs\n")
    return tmp_path


# --- commands ---------------------------------------------------------------------------------------------------------


def test_every_command_has_a_name_of_its_own_and_a_sentence():
    names = [name for commands in entry.families().values() for name in commands]
    assert len(names) == len(set(names)) > 10
    told = entry.overview()
    for name in names:
        (line,) = [line for line in told.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3, line
        assert f"``cil {name}" in Path(str(entry.find(name)).replace(".", "/") + ".py").read_text().splitlines()[0]


def test_every_script_of_tools_is_one_of_the_commands_and_nothing_more():
    for path in (ROOT / "tools").glob("*.py"):
        name = SCRIPTS.get(path.stem, path.stem)
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)]
        assert f"functools.partial({name}.main, program='tools/{path.name}')" in calls
        assert not [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)], path
        assert entry.find(name)


def test_an_unknown_command_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        entry.main(["tarin"])
    assert stop.value.code == 2
    assert "no 'tarin'; did you mean 'train'? Legal: advise, cache" in capsys.readouterr().err


def test_the_program_calls_the_command_that_is_asked_for(capsys):
    with pytest.raises(SystemExit) as stop:
        entry.main(["memory", "plan", "digits", "wa"])
    assert stop.value.code == 0
    assert "plan: digits B0 Inc2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        entry.main(["profile", "--help"])
    assert stop.value.code == 0
    assert "usage: cil profile" in capsys.readouterr().out


def test_every_command_has_a_help(capsys):
    for name in (name for commands in entry.families().values() for name in commands):
        with pytest.raises(SystemExit) as stop:
            entry.main([name, "--help"])
        assert (stop.value.code, f"usage: cil {name}" in capsys.readouterr().out) == (0, True), name


def test_what_is_not_used_is_not_imported(tmp_path):
    toys = toy_dataset()
    parts = {split: getattr(toys, split) for split in ("train", "test")}
    images = {f"x_{split}": part.raw() for split, part in parts.items()}
    labels = {f"y_{split}": part.labels.numpy() for split, part in parts.items()}
    np.savez(tmp_path / "toys.npz", **images, **labels, classes=toys.classes)
    said = "print([name for name in (*HEAVY, *more) if name in sys.modules])"
    code = f"import sys, cil; HEAVY, more = {HEAVY}, ['torch', 'numpy', 'rich']; {said}"
    assert start(tmp_path, "-c", code).stdout.split("\n")[0] == "[]"
    program = "import sys\nfrom cil.commands.entry import main\ntry: main({words})\nexcept SystemExit as e: print(e)"
    code = f"{program.format(words=['--help'])}\nHEAVY, more = {HEAVY}, ['torch', 'numpy', 'rich']\n{said}"
    assert start(tmp_path, "-c", code).stdout.splitlines()[-2:] == ["0", "[]"]
    words = ["train", "digits", "wa", "--data", "npz:toys.npz", "--dry-run"]
    done = start(tmp_path, "-c", f"{program.format(words=words)}\nHEAVY, more = {HEAVY}, []\n{said}")
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr


# --- configurations by name -------------------------------------------------------------------------------------------


def test_a_name_is_one_configuration():
    for rooms in (configurations.ROOMS, configurations.SWEEPS):
        files = [path for room in rooms for path in (configurations.folder() / room).glob("*.yaml")]
        assert len(configurations.known(rooms)) == len(files) > 10


def test_names_are_the_files_that_they_stand_for(folder):
    files = [ROOT / f"configs/{path}.yaml" for path in ("protocols/cifar100_b0_10", "strategies/wa")]
    _, plain = config.parse([f"--config={path}" for path in files] + ["--data", "digits"])
    for argv in (["cifar100_b0_10", "wa"], ["--config", "cifar100_b0_10", "--config=wa"], ["cifar100_b0_10", files[1]]):
        _, named = config.parse([*map(str, argv), "--data", "digits"])
        named.config = plain.config = None
        assert named == plain
    _, quick = config.parse(["quickstart", "--seed", "3"])
    assert (quick.seed, quick.run_dir) == (3, "runs/quickstart")


def test_a_file_of_the_current_folder_is_a_configuration(folder, crowded):
    (folder / "mine.yaml").write_text("strategy: wa\n")
    (folder / "wa").write_text("nonsense")
    assert config.parse(["digits", "mine.yaml"])[1] == config.parse(["digits", "mine"])[1]
    assert configurations.find("digits") == str(ROOT / "configs/protocols/digits.yaml")  # and not theirs
    assert configurations.find("wa") == str(ROOT / "configs/strategies/wa.yaml")
    assert configurations.find("./wa") == "./wa"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["cifar100_b0_1O", "wa"], "no 'cifar100_b0_1O'; did you mean 'cifar100_b0_10'? Legal: acil,"),
        (["digits", "quick"], "'quick' is a sweep"),
        (["digits", "--config", "repaly"], "did you mean 'replay'?"),
        (["digits", "nowhere/wa.yaml"], "nowhere/wa.yaml: No such file"),
        (["digits", "wa", "--seed", "3", "replay"], "'replay' stands alone"),
    ],
)
def test_an_unknown_name_is_refused(argv, told, folder):
    with pytest.raises(UserError) as error:
        config.parse(argv)
    assert told in str(error.value)


def test_a_sweep_has_a_name_and_names_its_files(folder, crowded):
    named, plain = sweeps.read("quick"), sweeps.read(str(ROOT / "configs/sweeps/quick.yaml"))
    assert named == plain
    assert named.protocols[0].files == ("digits",)  # not a path, at which theirs would be found
    run = sweeps.expand(named)[0]
    assert run.config["data"] == "digits"
    command = sweeps.command(run, "cil train")
    assert command.startswith("cil train --config digits --config replay --trainer.epochs 3 ")
    assert command.endswith(f" --run_dir {run.folder.path.absolute()} --resume")
    with pytest.raises(UserError, match="no 'quikc'; did you mean 'quick'"):
        sweeps.read("quikc")


def test_every_sweep_names_files_that_there_are(folder):
    for name in configurations.known(configurations.SWEEPS):
        asked = sweeps.read(name)
        for file in itertools.chain(*(part.files for part in (*asked.protocols, *asked.methods))):
            assert not configurations.is_path(file), (name, file)
            assert configurations.find(file)


# --- recorded commands ------------------------------------------------------------------------------------------------


def test_a_command_is_kept_as_it_can_be_typed_anywhere(folder):
    (folder / "mine.yaml").write_text("strategy: wa\n")
    (folder / "weights.pt").write_text("")
    typed = ["digits", "mine.yaml", "--data", "npz:toys.npz", "--model.weights=weights.pt", "--seed", "3"]
    kept = ["digits", f"{folder}/mine.yaml", "--data", f"npz:{folder}/toys.npz", f"--model.weights={folder}/weights.pt"]
    assert shlex.split(recorded.command(typed, "cil train")) == ["cil", "train", *kept, "--seed", "3"]
    program = str(ROOT / "tools/train.py")
    assert shlex.split(recorded.command(typed, "tools/train.py")) == ["python", program, *kept, "--seed", "3"]
    (folder / "long.yaml").write_text("epochs: 9\n")
    typed = [
        "--config",
        str(ROOT / "configs/strategies/wa.yaml"),
        "--trainer",
        "long.yaml",
        "--run_dir",
        "out",
        "--resume",
    ]
    kept = ["--config", "wa", "--trainer", f"{folder}/long.yaml", "--run_dir", f"{folder}/out", "--resume"]
    assert shlex.split(recorded.command(typed, "cil train")) == ["cil", "train", *kept]


def test_a_command_of_a_checkout_is_kept_as_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    typed = ["--config", "configs/protocols/digits.yaml", "--strategy", "wa", "--run_dir", "runs/x"]
    assert recorded.command(typed, "tools/train.py") == shlex.join(["python", "tools/train.py", *typed])


@pytest.mark.parametrize(
    ("resolved", "goes"),
    [
        ({"data": "digits", "strategy": {"class_path": "strategies.rehearsal.wa.WA"}}, False),
        ({"data": "npz:there.npz"}, True),
        ({"data": "npz:/there.npz"}, False),
        ({"data": "digits", "strategy": {"class_path": "mine.Mine"}}, True),
        ({"data": "digits", "model": {"backbone": "torchvision.models.resnet18"}}, False),
        ({"data": "digits", "model": {"backbone": "mine.net", "weights": None}}, True),
    ],
)
def test_what_the_current_folder_alone_has_is_gone_to(resolved, goes, folder):
    (folder / "mine.py").write_text("")
    words = recorded.command(["digits", "--seed", "3"], "cil train", resolved)
    assert words == f"cd {folder} && " * goes + "cil train digits --seed 3"


# --- strategies of one's own ------------------------------------------------------------------------------------------

MINE = (ROOT / "strategies/baselines/replay.py").read_text().replace("class Replay", "class Mine")


def test_a_strategy_is_found_by_the_path_of_its_file(folder, tmp_path_factory):
    (folder / "mine.py").write_text(MINE)
    (folder / "lab").mkdir()
    (folder / "lab/two.py").write_text(MINE + MINE.partition("class Mine")[2].join(["\n\nclass Other", ""]))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.py").write_text(MINE)
    found = find_class("strategy", "mine")
    assert f"{found.__module__}.{found.__name__}" == "mine.Mine"
    assert found is find_class("strategy", "mine.Mine") is find_class("strategy", "./mine.py")
    assert find_class("strategy", "lab/two.py:Other") is find_class("strategy", "lab.two.Other")
    assert find_class("strategy", str(elsewhere / "far.py")).__module__ == "far"
    _, parsed = config.parse(["digits", "--strategy", "mine.py"])
    assert parsed.strategy.class_path == "mine.Mine"


def test_a_file_that_is_no_strategy_is_refused(folder):
    (folder / "json.py").write_text(MINE)
    (folder / "two.py").write_text(MINE + MINE.partition("class Mine")[2].join(["\n\nclass Other", ""]))
    (folder / "plain.py").write_text("x = 1\n")
    (folder / "my-method.py").write_text(MINE)
    (folder / "script.py").write_text(THEIRS)
    told = {
        "json.py": "its name, json, is that of",
        "two.py": "has several; say which, such as two.py:",
        "two.py:Mien": "did you mean 'Mine'?",
        "plain.py": "no subclass of cil.learning.strategy.Strategy",
        "my-method.py": "letters, digits and _ alone",
        "nowhere.py": "there is no such file",
        "script": "strategies: no 'script'",  # and is not run to find out
    }
    for name, words in told.items():
        with pytest.raises(UserError) as error:
            find_class("strategy", name)
        assert words in str(error.value)


# --- our packages among others' folders -------------------------------------------------------------------------------

NOTEBOOK = """
import sys
sys.path[0] = ""  # as in a notebook
{before}
import cil
from cil.command.names import files, find_class, loader
assert files("strategy")["wa"] == "strategies.rehearsal.wa", files("strategy")
print(sys.modules[find_class("strategy", "wa").__module__].__file__)
print(loader().__code__.co_filename)
from cil.command import config
_, parsed = config.parse(["--strategy", "wa", "--scenario", "few_shot"])
config.make_parser("x").instantiate(parsed)
{after}
"""


def notebook(where, before="", after=""):
    done = start(where, "-c", NOTEBOOK.format(before=before, after=after))
    assert done.returncode == 0, done.stderr
    ours = [str(ROOT / "strategies/rehearsal/wa.py"), str(ROOT / "scenarios/datasets.py")]
    assert done.stdout.splitlines()[:2] == ours
    return done.stdout.splitlines()[2:]


def test_folders_of_our_names_do_not_hide_ours(crowded):
    notebook(crowded)


def test_files_of_our_names_do_not_hide_ours(tmp_path):
    for name in ("strategies", "scenarios", "configs", "tools"):
        (tmp_path / f"{name}.py").write_text(THEIRS)
    notebook(tmp_path)


def test_what_is_not_ours_is_found_in_theirs(crowded):
    (crowded / "strategies/mine.py").write_text(MINE)
    after = 'print(find_class("strategy", "strategies.mine.Mine").__name__)'
    assert notebook(crowded, after=after) == ["Mine"]


@pytest.mark.parametrize("place", ["strategies.py", "strategies/__init__.py"])
def test_theirs_may_be_imported_first_and_stays(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("name = 'theirs'\n")
    assert notebook(tmp_path, "import strategies", "import strategies; print(strategies.name)") == ["theirs"]


# --- a strategy begun -------------------------------------------------------------------------------------------------


def test_a_strategy_that_was_begun_keeps_every_promise(folder, capsys):
    assert call(tool.main, "my_method") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["my_method.py", "my_method.yaml", "test_my_method.py"]
    said = capsys.readouterr().out
    assert "check_strategy.py my_method\n" in said and "digits my_method.yaml\n" in said
    assert call(check_strategy.main, "my_method") == 0
    assert "BROKEN" not in capsys.readouterr().out
    _, parsed = config.parse(["digits", "my_method.yaml"])
    assert (parsed.strategy.class_path, parsed.strategy.init_args.keep) == ("my_method.MyMethod", 1.0)
    assert call(tool.main, "my_method") == 2
    assert "my_method.py is already there" in capsys.readouterr().err


@pytest.mark.slow
def test_its_own_test_passes_and_fails_with_a_wrong_formula(folder):
    for argv in (["my_method"], ["other", "--family", "lab/methods"], ["third", "--family", "strategies"]):
        assert call(tool.main, *argv) == 0
    done = start(folder, "-m", "pytest", "-q", ".")
    assert done.returncode == 0, done.stdout
    assert f"{3 * (len(all_checks()) + 2)} passed" in done.stdout
    text = (folder / "my_method.py").read_text()
    (folder / "my_method.py").write_text(text.replace("learn + self.keep", "learn - self.keep"))
    assert start(folder, "-m", "pytest", "-q", "test_my_method.py", "-k", "loss").returncode == 1


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["My"], "no name of a method"),
        (["2nd"], "no name of a method"),
        (["my-method"], "no name of a method"),
        (["class"], "no name of a method"),
        (["../up"], "no name of a method"),
        (["wa"], "there is a strategy 'wa'"),
        (["w_a"], "there is a strategy 'wa'"),
        (["torch"], "module of Python"),
        (["json"], "module of Python"),
        (["fine", "--family", "torch"], "modules of that name elsewhere"),
        (["fine", "--family", "cil"], "modules of that name elsewhere"),
        (["fine", "--family", "strategies/rehearsal"], "modules of that name elsewhere"),
        (["fine", "--family", "file/below"], "is a file"),
        (["taken"], "test_taken.py is already there"),
    ],
)
def test_what_cannot_be_begun_is_refused_before_anything_is_written(argv, told, folder, capsys):
    (folder / "test_taken.py").write_text("")
    (folder / "file").write_text("")
    assert call(tool.main, *argv) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "test_taken.py"]


def test_nothing_is_half_written(folder, monkeypatch):
    write = authoring.write_atomic

    def full(path, data):
        if path.name.startswith("test_"):
            raise OSError(28, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(authoring, "write_atomic", full)
    with pytest.raises(UserError, match="No space left on device"):
        authoring.begin("my_method", "lab/methods")
    assert not list(folder.iterdir())


def test_in_a_checkout_the_files_go_where_those_of_all_strategies_are(tmp_path, monkeypatch, capsys):
    for part in ("strategies/rehearsal", "configs/strategies", "tests"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "strategies/rehearsal/__init__.py").write_text('"""A family."""\n')
    monkeypatch.setattr(authoring, "HOME", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call(tool.main, "my_method", "--family", "rehearsals") == 2
    assert "no 'rehearsals'; did you mean 'rehearsal'?" in capsys.readouterr().err
    begun = authoring.begin("my_method", "strategies/rehearsal")
    places = ("strategies/rehearsal/my_method.py", "configs/strategies/my_method.yaml", "tests/test_my_method.py")
    assert tuple(map(str, (begun.strategy, begun.configuration, begun.test))) == places
    test = (tmp_path / places[2]).read_text()
    assert "from strategies.rehearsal.my_method import MyMethod" in test
    assert 'parents[1] / "configs/strategies/my_method.yaml"' in test
    assert yaml.safe_load((tmp_path / places[1]).read_text())["strategy"]["class_path"] == "MyMethod"
    ruff = [sys.executable, "-m", "ruff"]
    for words in (["check", "--ignore", "I001"], ["format", "--check"]):
        done = subprocess.run([*ruff, *words, "--config", ROOT / "pyproject.toml", "."], **TOLD)
        assert done.returncode == 0, done.stdout


# --- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, made of a copy, in which a build leaves its traces."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("cil", "strategies", "scenarios", "configs", "tools", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    have = subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True).returncode == 0
    pip(folder, "wheel", source, "--no-deps", *["--no-build-isolation"] * have, "--wheel-dir", folder)
    (made,) = folder.glob("*.whl")
    return made


def pip(folder, *words):
    quiet = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*quiet, *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder in which the wheel is installed."""
    place = tmp_path_factory.mktemp("installed")
    pip(place, "install", "--no-deps", "--target", place, wheel)
    return place


def cil(where, installed, *words):
    """Run the installed program in a folder; what it said."""
    done = start(where, installed / "bin/cil", *words, path=installed)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_the_program_its_configurations_and_its_templates(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"cil", "strategies", "scenarios"}
    for package in ("cil", "strategies", "scenarios"):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {str(path.relative_to(ROOT)) for path in files} <= names
    configs = [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")]
    assert {f"cil/{path}" for path in configs} <= names


@pytest.mark.slow
def test_an_installed_program_learns_and_predicts_among_folders_of_its_names(installed, crowded, tmp_path_factory):
    said = cil(crowded, installed, "train", "quickstart", "--trainer.epochs", "1", "--run_dir", "runs/one")
    assert "written to runs/one" in said
    first = json.loads((crowded / "runs/one/results.json").read_text())
    assert first["command"] == f"cil train quickstart --trainer.epochs 1 --run_dir {crowded}/runs/one"
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(crowded / "one.png")
    answers = json.loads(cil(crowded, installed, "predict", "runs/one", "one.png", "--top", "3", "--json"))
    assert len(answers[0]["answers"]) == 3
    # What was recorded does the same in another folder.
    other = tmp_path_factory.mktemp("other")
    cil(other, installed, *shlex.split(first["command"])[1:-2], "--run_dir", "again")
    again = json.loads((other / "again/results.json").read_text())
    assert comparable(again) == comparable(first) | {"config": comparable(again)["config"]}
    notebook = "import sys; sys.path[0] = ''; import cil; print(cil.__file__, len(cil.load('runs/one').classes))"
    done = start(crowded, "-c", notebook, path=installed)
    assert done.stdout.split() == [str(installed / "cil/__init__.py"), "10"], done.stderr


@pytest.mark.slow
def test_an_installed_sweep_runs_and_is_compared(installed, crowded):
    asked = {"out": "out", "protocols": {"digits": "digits"}, "methods": {"finetune": "finetune"}, "threads": 1}
    (crowded / "mine.yaml").write_text(yaml.safe_dump({**asked, "set": {"trainer.epochs": 1}}))
    said = cil(crowded, installed, "sweep", "mine.yaml")
    last = said.splitlines()[-1]
    assert last == f"compare them with: cil compare {crowded}/out --out {crowded}/out/report"
    assert "1 of 1" in said
    (log,) = (crowded / "out").rglob("log.txt")
    assert log.read_text().startswith("$ cil train --config digits --config finetune")
    assert "written to" in cil(crowded, installed, *shlex.split(last.partition("cil ")[2]))
    assert "8 runs: 0 done" in cil(crowded, installed, "sweep", "quick", "--dry-run")


@pytest.mark.slow
def test_a_strategy_of_ones_own_works_with_the_installed_program(installed, crowded):
    cil(crowded, installed, "new", "my_method")
    assert "23 of 23 promises kept" in cil(crowded, installed, "check", "my_method")
    cil(crowded, installed, "train", "digits", "my_method.yaml", "--trainer.epochs", "1", "--run_dir", "run")
    results = json.loads((crowded / "run/results.json").read_text())
    assert results["strategy"] == "my_method.MyMethod"
    assert results["command"].startswith(f"cd {crowded} && cil train digits {crowded}/my_method.yaml")
    for name in ("my_method.MyMethod", "my_method.py", "my_method"):
        assert "plan: digits" in cil(crowded, installed, "train", "digits", "--strategy", name, "--dry-run")
