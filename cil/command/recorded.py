"""A command line as it is kept and shown: typed again, it does the same, in whatever folder that is."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from cil.command import configurations
from cil.neighbours import HOME, is_ours

# Options whose values are paths. What else they may be is no file of the current folder.
PLACES = ("run_dir", "root")
FILES = ("model.weights", "model.pretrained_classes", "cache", "images", "model", "trainer", "memory", "augmentation")
SCRIPTS = "tools/"
NAMES = {"check": "check_strategy"}  # scripts that are not called as their commands are


def command(argv: Sequence[str], program: str, config: dict[str, Any] | None = None) -> str:
    """The command of a run as it can be typed again.

    Where this package is installed it starts from any folder: configurations stand by name, other files by their whole
    path, and what the current folder alone has, such as a strategy of one's own, is preceded by going there. In a
    checkout it stands as it was typed.

    Args:
        argv: arguments without the program's name.
        program: ``cil train`` or ``tools/train.py``.
        config: what they resolve to.
    """
    if program.startswith(SCRIPTS) and _at_home():
        return shlex.join(["python", program, *argv])
    text = shlex.join([*typed(program), *_anywhere(argv)])
    return f"cd {shlex.quote(os.getcwd())} && {text}" if config and _needs_folder(argv, config) else text


def typed(program: str) -> list[str]:
    """The words that start a program: ``cil train``, or ``python tools/train.py`` with its whole path elsewhere."""
    if program.startswith(SCRIPTS):
        return ["python", program if _at_home() else str(HOME / program)]
    return program.split()


def started(program: str) -> list[str]:
    """The words with which Python starts a program as another process."""
    if program.startswith(SCRIPTS):
        return [str(HOME / program)]
    return [str(HOME / "cil/__main__.py"), *program.split()[1:]]


def other(program: str, name: str) -> str:
    """The program beside one: of ``cil train`` and ``compare`` it is ``cil compare``."""
    return f"{SCRIPTS}{NAMES.get(name, name)}.py" if program.startswith(SCRIPTS) else f"cil {name}"


def place(path: Path, program: str) -> Path:
    """A path as it is shown beside a program: whole, but in a checkout as it was given."""
    return path if program.startswith(SCRIPTS) and _at_home() else path.absolute()


def _at_home() -> bool:
    return os.path.samefile(os.getcwd(), HOME)


def _anywhere(argv: Sequence[str]) -> Iterator[str]:
    """The words with whole paths in place of those that depend on the current folder."""
    leading, key = True, ""
    for word in argv:
        leading &= not word.startswith("-")
        if leading:
            yield _file(word)
        elif word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            yield f"{name}={_value(name[2:], value)}"
        else:
            yield word if word.startswith("-") else _value(key, word)
        key = word[2:] if word.startswith("--") else ""


def _file(word: str) -> str:
    """A configuration: its name where it has one, else its whole path."""
    found = configurations.find(word)
    return configurations.named(found) or os.path.abspath(found)


def _value(key: str, value: str) -> str:
    if key == "config":
        return _file(value)
    if key == "data":
        kind, colon, path = value.partition(":")
        return f"{kind}:{os.path.abspath(path)}" if colon and not path.startswith("~") else value
    file = re.search(r"\.py(:\w*)?$", value) if key == "strategy" else key in FILES and os.path.exists(value)
    here = file or key in PLACES
    return os.path.abspath(value) if here and not value.startswith("~") else value


def _needs_folder(argv: Sequence[str], config: dict[str, Any]) -> bool:
    """Whether files or modules that no word of the command line names are those of the current folder."""
    given = {word.partition("=")[0] for word in argv if word.startswith("--")}
    path = str(config.get("data")).partition(":")[2]
    model = config.get("model") or {}
    weights = str(model.get("weights") or "")
    if path and "--data" not in given and not os.path.isabs(os.path.expanduser(path)):
        return True
    if "--model.weights" not in given and not os.path.isabs(weights) and os.path.exists(weights):
        return True
    classes = [(config.get(kind) or {}).get("class_path") for kind in ("strategy", "scenario")]
    modules = [str(name).rpartition(".")[0] for name in (*classes, model.get("backbone"))]
    return any(_is_of_this_folder(module) for module in modules)


def _is_of_this_folder(module: str) -> bool:
    if not module or is_ours(module):
        return False
    first, inner = (module.split(".")[0], module.split(".")[1:])
    return PathFinder.find_spec(first, [os.getcwd()]) is not None or Path(first, *inner).with_suffix(".py").exists()
