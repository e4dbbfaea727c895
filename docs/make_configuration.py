"""Write the generated parts of the documentation from the code they describe.

``python docs/make_configuration.py`` fills the tables of ``configuration.md`` from the constructors' signatures and
docstrings, and the list of promises in ``strategies.md`` from the conformance suite. The text between
``<!-- generated: NAME -->`` and ``<!-- end -->`` is replaced; all other text is written by hand and kept.
``--check`` writes nothing and exits with status 1 when a file is stale.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from docstring_parser import parse

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # a checkout works without being installed

from cil.command import config
from cil.command.names import class_path, strategies
from cil.data.augmentation import PRESETS, Augmentation
from cil.data.scenario import ScenarioBuilder
from cil.learning.trainer import RULES, Trainer
from cil.memory.exemplars import Memory
from cil.nets.heads import CosineHead, LinearHead
from cil.nets.network import BACKBONES, Model
from cil.testing import checks

FILES = ("configuration.md", "strategies.md")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def told(text: str) -> str:
    """A docstring's text on one line, with Markdown's marks for code."""
    return " ".join(text.replace("``", "`").split())


def type_name(annotation: Any) -> str:
    """A type as a user of YAML reads it: ``int or null``, ``sgd or adamw``."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: re.sub("[\"']", "", match[1]).replace(", ", " or "), text)
    text = text.replace(" | ", " or ").replace("None", "null").replace("Any", "any")
    text = re.sub(r"\blist\[(\w+)\]", r"list of \1", text)
    text = re.sub(r"\bdict\[([^,\[]+), dict\[.*?\]\]", r"map from \1 to options", text)
    return re.sub(r"\bdict\[([^,\[]+), (\w+)\]", r"map from \1 to \2", text)


def value_name(value: Any) -> str:
    """A default as YAML writes it."""
    named = {None: "null", True: "true", False: "false"}
    return named.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def options(owner: Callable[..., Any], prefix: str = "") -> str:
    """The keyword-only parameters of a function or a class's constructor: name, type, default, meaning."""
    function = owner.__init__ if inspect.isclass(owner) else owner
    # A class without a constructor of its own is described by the one that it takes over.
    places = [
        place for place in getattr(owner, "__mro__", [owner]) if not inspect.isclass(place) or "__init__" in vars(place)
    ]
    described = {param.arg_name: param.description or "" for param in parse(inspect.getdoc(places[0]) or "").params}
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or (parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is parameter.empty):
            continue  # what the engine hands in
        default = f"`{value_name(parameter.default)}`"
        rows.append((f"`{prefix}{name}`", type_name(parameter.annotation), default, told(described[name])))
    return table(("option", "type", "default", "meaning"), rows) if rows else "No options."


def sentence(owner: type) -> str:
    """The first paragraph of a class's docstring."""
    return told((inspect.getdoc(owner) or "").split("\n\n")[0])


def scenario_builders() -> list[type]:
    """The builders in ``scenarios/``, by file; a file that does not name the base class is not imported."""
    found: list[type] = []
    for path in sorted((DOCS.parent / "scenarios").glob("*.py")):
        if "ScenarioBuilder" in path.read_text():
            module = importlib.import_module(f"scenarios.{path.stem}")
            own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
            found += [value for value in own if inspect.isclass(value) and issubclass(value, ScenarioBuilder)]
    return found


def classes(prefix: str, found: Iterable[type]) -> str:
    """A heading, a sentence and the options of each class."""
    parts = [f"#### `{class_path(owner)}`\n\n{sentence(owner)}\n\n{options(owner, prefix)}" for owner in found]
    return "\n\n".join(parts)


def backbones() -> str:
    """Every backbone with its features and parameters for colour images."""
    rows = []
    for name, make in BACKBONES.items():
        with torch.device("meta"):
            net = make(in_channels=3)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        rows.append((f"`{name}`", str(net.num_features), f"{parameters:,}"))
    return table(("backbone", "features", "parameters, 3 channels"), rows)


def presets() -> str:
    """What each preset of the augmentation stands for."""
    keys = [key for key in PRESETS["none"] if key != "stats"]
    rows = []
    for name, preset in PRESETS.items():
        numbers = [f"{preset[key]:.3f}" if isinstance(preset[key], float) else value_name(preset[key]) for key in keys]
        mean, std = preset["stats"] or ("0.5", "0.5")
        rows.append((f"`{name}`", *numbers, str(mean).strip("()"), str(std).strip("()")))
    return table(("preset", *keys, "mean", "std"), rows)


def promises() -> str:
    """The conformance suite's promises, in its own words."""
    listed = [f"**{name.replace('_', ' ')}**: {told(f.__doc__ or '')}" for name, f in checks.all_checks().items()]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(listed, 1))


PARTS: dict[str, Callable[[], str]] = {
    "run": lambda: options(config.settings),
    "scenario": lambda: classes("scenario.", scenario_builders()),
    "strategies": lambda: classes("strategy.", [found for _, found in sorted(strategies().items())]),
    "model": lambda: options(Model, "model."),
    "backbones": backbones,
    "heads": lambda: "\n\n".join(
        f"`model.head: {name}`\n\n{options(head)}" for name, head in (("linear", LinearHead), ("cosine", CosineHead))
    ),
    "trainer": lambda: options(Trainer, "trainer."),
    "per_task": lambda: ", ".join(f"`{name}`" for name in RULES) + ".",
    "memory": lambda: options(Memory, "memory."),
    "augmentation": lambda: options(Augmentation, "augmentation."),
    "presets": presets,
    "promises": promises,
}


def filled(text: str) -> str:
    """The text with every generated part as the code has it now."""
    pattern = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.S)
    return pattern.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


def main() -> int:
    """Write the files, or with ``--check`` only compare them."""
    stale = []
    for path in (DOCS / name for name in FILES):
        before = path.read_text()
        after = filled(before)
        if before != after:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(after)
    if stale and "--check" in sys.argv[1:]:
        print(f"stale: {', '.join(stale)}; run python docs/make_configuration.py", file=sys.stderr)
        return 1
    print(f"written: {', '.join(stale)}" if stale else "up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
