"""The rooms of the house: who may import whom, every configuration works, every public name is documented."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import itertools
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cil.command import config
from cil.command.names import class_path, find_class, strategies
from cil.data.scenario import ScenarioBuilder
from cil.errors import UserError
from cil.learning.strategy import Strategy
from cil.renamed import MOVED, NOW, current

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PROTOCOLS = [path for path in CONFIGS if path.parent.name == "protocols"]
SWEEPS = [path for path in CONFIGS if path.parent.name == "sweeps"]
STRATEGIES = [path for path in CONFIGS if path.parent.name == "strategies"]
BACKBONES = [path for path in CONFIGS if path.parent.name == "backbones"]


def imported(path: Path, whole: bool = False) -> set[str]:
    """The modules that a file imports, anywhere in it: their first parts, or with ``whole`` all that is named."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names if whole else {name.split(".")[0] for name in names}


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def test_the_engine_imports_neither_strategies_nor_scenarios():
    for path in files("cil"):
        assert not imported(path) & {"strategies", "scenarios", "tools", "tests"}, path


def test_plugins_import_the_engine_and_not_one_another():
    for path in files("strategies"):
        assert not imported(path) & {"tools", "tests", "strategies", "scenarios"}, path
    for path in files("scenarios"):
        assert not imported(path) & {"tools", "tests", "strategies"}, path


# From the ground up: a room knows the rooms before it, and no other; imports for types count. Files that lie in cil/
# itself are the ground.
ROOMS = (
    *("data", "machine", "ops", "nets", "learning", "memory", "features", "evaluation", "experiment", "report"),
    *("command", "verbs", "deploy", "compare", "sweep", "testing", "authoring", "commands"),
)
GROUND = ("errors", "files", "locks", "neighbours", "renamed", "shown", "units")


def arrows() -> dict[str, set[str]]:
    """The modules of the house, and which of them each imports, anywhere in it."""
    paths = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for p in PACKAGES for path in files(p)}
    known = set(paths.values())
    found = {}
    for path, module in paths.items():
        if path.name != "__init__.py":  # the face of a room
            names = {name for name in imported(path, whole=True) if name.split(".")[0] in PACKAGES}
            found[module] = {name if name in known else name.rpartition(".")[0] for name in names} & known
    return found


PACKAGES = ("cil", "strategies", "scenarios", "tools")


def test_every_room_has_its_place_in_the_order():
    assert {path.name for path in (ROOT / "cil").iterdir() if (path / "__init__.py").exists()} == set(ROOMS)
    assert {path.stem for path in (ROOT / "cil").glob("*.py")} <= {*GROUND, "__init__", "__main__"}


def test_arrows_between_rooms_point_down():
    order = {name: height for height, name in enumerate((*ROOMS, "__main__"))}
    up = [
        (module, other)
        for module, others in arrows().items()
        for other in others
        if module.startswith("cil.") and order.get(other.split(".")[1], -1) > order.get(module.split(".")[1], -1)
    ]
    assert not up


def test_no_files_know_each_other_in_a_circle():
    graphlib.TopologicalSorter(arrows()).prepare()  # raises CycleError, which names them


def test_an_installed_package_has_its_files_that_are_not_python():
    kept = re.search(r"^\[tool\.setuptools\.package-data\]\ncil = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M)
    packed = {path for pattern in ast.literal_eval(kept[1]) for path in (ROOT / "cil").glob(pattern)}
    assert packed == {
        path for path in (ROOT / "cil").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }


def test_a_run_does_not_import_the_room_that_compares_runs():
    for path in files("cil"):
        names = {name for name in imported(path, whole=True) if name.split(".")[:2] == ["cil", "compare"]}
        assert not names or path.relative_to(ROOT / "cil").parts[0] in ("compare", "commands"), path


def test_a_room_is_taken_in_at_a_glance():
    """About a dozen modules, and one sentence that says what belongs there."""
    for package in PACKAGES[:3]:
        for room in [ROOT / package, *(path.parent for path in (ROOT / package).rglob("*/__init__.py"))]:
            assert len(list(room.glob("*.py"))) <= 14, room
            text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
            assert text.splitlines()[0].endswith("."), room


def test_a_name_that_two_strategies_bear_is_refused(tmp_path, monkeypatch):
    import strategies

    (tmp_path / "mine").mkdir()
    for file in ("mine/__init__.py", "mine/wa.py"):
        (tmp_path / file).write_text("")
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=r"strategies\.rehearsal\.wa and strategies\.mine\.wa have one name"):
        find_class("strategy", "wa")


@pytest.mark.parametrize(("old", "new"), sorted(NOW.items()))
def test_a_module_is_found_under_its_old_name(old, new):
    with pytest.warns(DeprecationWarning, match=new):
        assert importlib.import_module(old) is importlib.import_module(new)
    assert sys.modules.pop(old).__spec__.name == new


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in MOVED.items() for name in names])
def test_what_went_to_another_room_is_found_under_its_old_name(module, name):
    sys.modules.pop(module, None)
    with pytest.warns(DeprecationWarning, match=NOW[module]):
        found = getattr(importlib.import_module(module), name)
    del sys.modules[module]
    assert found is getattr(importlib.import_module(MOVED[module][name]), name)


def test_names_of_modules_that_are_rooms_now_are_found_there():
    from cil.data import ImageSet
    from cil.experiment import plan
    from cil.machine import Compiled, pick_device

    assert Compiled.__module__ == "cil.learning.learner"
    assert (ImageSet.__module__, plan.__module__) == ("cil.data.images", "cil.experiment.experiment")
    assert pick_device.__module__ == "cil.machine.device"


def test_a_class_path_of_before_names_the_class_of_today():
    assert find_class("strategy", "strategies.wa.WA") is find_class("strategy", "wa")
    assert current("strategies.wa.WA") == class_path(find_class("strategy", "wa"))
    assert current("my_method.Mine") == "my_method.Mine"


def test_avalanche_is_imported_only_when_used():
    names = ("avalanche", "timm", "torchvision", "tensorboard")
    code = f"import sys, tools.train; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_configuration_is_known_here():
    assert len(CONFIGS) == 66
    assert (
        len(CONFIGS) == len(PROTOCOLS) + len(STRATEGIES) + len(SWEEPS) + len(BACKBONES) + 1
    )  # the quickstart stands alone
    assert {path.stem for path in STRATEGIES} == set(strategies())


def kind_of(strategy: Path) -> type[Strategy]:
    """The class that a file of ``configs/strategies`` is for."""
    return find_class("strategy", strategy.stem)


def pairs() -> list[tuple[Path, Path]]:
    """Each protocol with a strategy of each kind of memory, and each strategy with one of the protocols in turn."""
    kinds = {(kind_of(path).exemplar_free, kind_of(path).needs_all_data): path for path in STRATEGIES}
    assert len(kinds) == 3
    return list({*itertools.product(PROTOCOLS, kinds.values()), *zip(itertools.cycle(PROTOCOLS), STRATEGIES)})


def test_files_of_strategies_and_of_protocols_state_different_things():
    """So that a protocol that takes one strategy of a kind takes all of it."""
    stated = {path: yaml.safe_load(path.read_text()) for path in CONFIGS}
    assert all(set(stated[path]) <= {"strategy", "memory"} for path in STRATEGIES)
    assert all(set(stated[path].get("memory", {})) <= {"exemplars", "per_class"} for path in STRATEGIES)
    assert not any("strategy" in stated[path] for path in PROTOCOLS)


@pytest.mark.parametrize(("protocol", "strategy"), sorted(pairs()), ids=lambda path: path.stem)
def test_every_protocol_takes_every_strategy(protocol, strategy):
    _, parsed = config.parse(["--config", str(protocol), "--config", str(strategy)])
    kind = find_class("strategy", parsed.strategy.class_path)
    assert kind is kind_of(strategy)
    memory = parsed.memory.as_dict()
    if kind.exemplar_free:
        assert (memory["exemplars"], memory["per_class"]) == (0, None)
    elif kind.needs_all_data:
        assert (memory["exemplars"], memory["per_class"]) == ("all", None)
    else:
        usual = 100 if protocol.stem.startswith("digits") else 2000
        assert memory["exemplars"] == {"cifar100_b0_10_trained": 1000}.get(protocol.stem, usual)


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda path: path.stem)
def test_every_backbone_can_be_built_and_merged(backbone):
    parser, parsed = config.parse(
        [
            word
            for path in (PROTOCOLS[0], ROOT / "configs/strategies/finetune.yaml", backbone)
            for word in ("--config", str(path))
        ]
    )
    net = parser.instantiate(parsed).model.build(3)
    assert net.frozen
    assert net.features(torch.rand(2, 3, 32, 32)).shape == (2, net.num_features)


def test_the_quickstart_is_the_protocol_of_the_digits_with_weight_aligning():
    """The next command after it, in the README's words, then tells the same story."""
    _, quick = config.parse(["--config", str(ROOT / "configs/quickstart.yaml")])
    words = [f"--config={ROOT / path}" for path in ("configs/protocols/digits.yaml", "configs/strategies/wa.yaml")]
    _, plain = config.parse([*words, "--run_dir", quick.run_dir])
    quick.config = plain.config = None
    assert quick == plain


def modules(package: str):
    loaded = importlib.import_module(package)
    yield loaded
    for item in pkgutil.walk_packages(loaded.__path__, f"{package}."):
        yield importlib.import_module(item.name)


@pytest.mark.parametrize("package", ["cil", "strategies", "scenarios"])
def test_every_public_name_is_documented(package):
    hooks = {n for base in (Strategy, ScenarioBuilder) for n in vars(base)} | {"forward"}
    silent = []
    for module in modules(package):
        assert module.__doc__, module.__name__
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
            if not own or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if not value.__doc__:
                silent.append(f"{module.__name__}.{name}")
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if method.startswith("_") or not inspect.isfunction(function) or function.__doc__:
                        continue
                    inherited = any(method in vars(base) for base in value.__mro__[1:]) or method in hooks
                    if not inherited and name not in ("Keeper", "NoWatcher", "Watcher"):
                        silent.append(f"{module.__name__}.{name}.{method}")
    assert not silent


def test_the_generated_documentation_is_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["docs/make_configuration.py", "--check"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    assert made["main"]() == 0, capsys.readouterr().err
